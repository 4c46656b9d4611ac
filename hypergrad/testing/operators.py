"""Check the rules that every operator must satisfy, at random points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import AbstractOperator
from hypergrad.problem.operators.norm import operator_norm
from hypergrad.problem.operators.products import (
    Operator,
    apply,
    apply_transpose,
    operator_dtype,
    operator_shape,
)

__all__ = ["check_operator"]

_POINTS = 8
# In units of the machine precision and of the root of the length of a sum.
_ROUNDINGS = 64.0


def check_operator(K: Operator, *, seed: int = 0) -> None:
    """Check that the products of an operator are consistent.

    If `rmv` is not the transpose of `mv`, the iteration does not converge, and reports only that.
    At random `x`, `v`, `y` this checks that

        <K x, y> = <x, K^T y>,    K (x + v) = K x + K v,    ||K x|| <= ||K|| ||x||

    and that products are finite; `||K||` is the norm (or `norm_bound`) that sets the step sizes.

    **Arguments**: `K`, an operator (a matrix passes); `seed` of the points.

    **Returns**: None.

    **Errors**: a `ValueError` that names the class, the rule and the value found.

    **Cost**: 40 products with K, and its norm.

    **Caveat**: random points prove nothing, and errors of the size of rounding pass: in single
    precision a relative error of the products of 1e-4 for a long vector.

    >>> from hypergrad.problem.operators import difference_operator
    >>> check_operator(difference_operator((3, 4)))
    """
    m, n = operator_shape(K)
    dtype, name = operator_dtype(K), type(K).__name__
    rng = np.random.default_rng(seed)
    x, v = (jnp.asarray(rng.standard_normal((_POINTS, n)), dtype) for _ in range(2))
    y = jnp.asarray(rng.standard_normal((_POINTS, m)), dtype)
    K_x, K_v, KT_y = apply(K, x), apply(K, v), apply_transpose(K, y)
    for product, size, method in ((K_x, m, "mv"), (KT_y, n, "rmv")):
        if product.shape != (_POINTS, size) or not bool(jnp.all(jnp.isfinite(product))):
            raise HypergradError(
                f"{name}.{method} must give finite vectors of {size} entries; got shape "
                f"{product.shape[1:]} or NaN: check its structures, and for divisions by 0"
            )
    # The largest of all sizes, since a single product may be 0 and its rounding is not.
    length = _largest(K_x) * _largest(y) + _largest(x) * _largest(KT_y)
    allowed = _ROUNDINGS * float(jnp.finfo(dtype).eps) * (m + n) ** 0.5
    crossed = float(jnp.max(jnp.abs(jnp.sum(K_x * y, axis=-1) - jnp.sum(x * KT_y, axis=-1))))
    if not crossed <= allowed * length:
        raise HypergradError(
            f"{name}.rmv must be the transpose of mv, <K x, y> = <x, K^T y>; got a difference of "
            f"{crossed:.3g}, where both are of size {length:.3g}: derive it anew, or compare its "
            "matrix for a small size"
        )
    bent = _largest(apply(K, x + v) - K_x - K_v)
    if not bent <= allowed * (_largest(K_x) + _largest(K_v)):
        raise HypergradError(
            f"{name}.mv must be linear, K (x + v) = K x + K v; got a difference of {bent:.3g}: "
            "leave out what is constant (it belongs to x_tilde or to F) or not linear"
        )
    _check_norm(K, name, x)


def _check_norm(K: Operator, name: str, x: jax.Array) -> None:
    """Check the norm against a lower bound by the power method."""
    for _ in range(_POINTS):
        x = apply_transpose(K, apply(K, x))
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    reached, norm = _largest(apply(K, x)), float(operator_norm(K))
    if not reached <= norm * (1 + 1e-5):
        bound = isinstance(K, AbstractOperator) and K.norm_bound() is not None
        method = "norm_bound" if bound else "norm, as estimated,"
        raise HypergradError(
            f"{name}.{method} must be at least ||K x|| / ||x||; got {norm:.6g}, and {reached:.6g} "
            "for some x: the step sizes would be too large"
        )


def _largest(v: jax.Array) -> float:
    """Return the largest norm of a batch."""
    return float(jnp.max(jnp.linalg.norm(v, axis=-1)))
