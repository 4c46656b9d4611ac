"""The lower-level problem `argmin_x F(K x) + G(x - x_tilde)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import (
    check_finite,
    describe,
    is_concrete,
)
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions import AbstractFunction
from hypergrad.problem.functions._base import check_is_function
from hypergrad.problem.operators import (
    Operator,
    apply,
    matrix_of,
    operator_dtype,
    operator_shape,
)
from hypergrad.problem.operators._base import cast_floats
from hypergrad.problem.operators.products import as_operator, check_takes_vectors


def stop_gradient(tree: Any) -> Any:
    """Return the same pytree with its arrays held fixed when differentiating.

    `jax.lax.stop_gradient` for pytrees with leaves other than arrays, which an operator may have (a
    function, say); these stay as they are.

    **Arguments**: `tree`, any pytree: a problem, a solver, a state, or a tuple of them.

    **Returns**: a pytree of the same structure.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> f = lambda p: hg.stop_gradient(p).F.weight * p.F.weight
    >>> print(jax.grad(f)(problem).F.weight)  # and not 0.2
    0.1
    """
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


held = stop_gradient  # the former name


def select_leaves(problem: LowerLevel, select: Callable[[LowerLevel], Any], name: str) -> Any:
    """Return a mask of the problem: True for the float leaves that `select` picks.

    **Errors**: a `ValueError` if `select` (called `name` in the message) picks no float leaf, or
    returns anything but parts of the problem.
    """
    nothing = jax.tree.map(lambda _: False, problem)
    try:
        selected = eqx.tree_at(
            select, nothing, replace_fn=lambda node: jax.tree.map(lambda _: True, node)
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise HypergradError(
            f"{name} must be a function that picks parts of the problem; got {describe(select)}, "
            "which does not: try lambda p: p.K or lambda p: (p.K, p.F)"
        ) from error
    mask = jax.tree.map(lambda yes, leaf: yes and eqx.is_inexact_array(leaf), selected, problem)
    if not any(jax.tree.leaves(mask)):
        raise HypergradError(
            f"{name} must select at least one float leaf of the problem; got none: try lambda p: "
            "p.K, where K is a matrix or an operator with array fields"
        )
    return mask


def _check_operator(K: Operator) -> None:
    """Check that K takes vectors to vectors, is real, finite, not zero, and has a usable dtype."""
    check_takes_vectors("K", K)
    dtype = operator_dtype(K)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise HypergradError(
            f"K must be real; got an operator of {dtype}: split it into its real and its imaginary "
            "part"
        )
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        raise HypergradError(
            f"K must have single or double precision; got {dtype}: cast it to float32 (norms and "
            "factorisations know no half precision)"
        )
    for leaf in jax.tree.leaves(K):
        check_finite("K", leaf)
    matrix = matrix_of(K)
    if is_concrete(matrix) and not np.any(np.asarray(matrix)):
        raise HypergradError(
            "K must not be zero (its norm sets the step sizes); got only zeros: "
            "start from a DCT, differences or a random matrix"
        )


class LowerLevel(eqx.Module):
    """`x_hat = argmin_x F(K x) + G(x - x_tilde)`, convex; a pytree whose float leaves are learned.

    **Arguments**:

    - `K`: an `(m, n)` array or a lineax operator from `(n,)` to `(m,)`.
    - `F`: a convex function on vectors of size m.
    - `G`: a convex function on vectors of size n; it acts on `r = x - x_tilde`.

    **Errors**: a `ValueError` if the shapes do not fit together, or if K is zero or not finite.

    **Source**: Brauer & Lorenz (posters), the constraint of the bilevel problem.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> problem.m, problem.n
    (4, 5)
    """

    K: Float[Array, "..."] | lx.AbstractLinearOperator = eqx.field(converter=as_operator)
    F: AbstractFunction
    G: AbstractFunction

    def __check_init__(self) -> None:
        if 0 in (self.m, self.n):
            raise HypergradError(f"K must have at least one row and column; got {(self.m, self.n)}")
        _check_operator(self.K)
        check_is_function("F", self.F)
        check_is_function("G", self.G)
        self.F.check_size(self.m)
        self.G.check_size(self.n)

    @property
    def m(self) -> int:
        """The number of rows of K, and the size of y."""
        return operator_shape(self.K)[0]

    @property
    def n(self) -> int:
        """The number of columns of K, and the size of x."""
        return operator_shape(self.K)[1]

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return operator_shape(self.K)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of K."""
        return operator_dtype(self.K)

    def astype(self, dtype: Any) -> LowerLevel:
        """Return the problem in another dtype.

        **Errors**: a `ValueError` if the dtype is neither single nor double precision, is disabled
        in JAX, or if K is an operator of a function, whose dtype is fixed.
        """
        dtype = jnp.dtype(dtype)
        if dtype not in (jnp.float32, jnp.float64) or jnp.zeros((), dtype).dtype != dtype:
            raise HypergradError(
                f"dtype must be float32 or float64; got {dtype}: for float64, set jax_enable_x64"
            )
        problem = cast_floats(self, dtype)
        if problem.dtype != dtype:
            raise HypergradError(
                f"K has fixed dtype {problem.dtype} and cannot be cast; got {dtype}: "
                f"cast x_tilde and x_true to {problem.dtype}, or build K anew"
            )
        return problem

    @property
    def scale_of_K_is_free(self) -> bool:
        """Return whether scaling K leaves the argmin as it is: F is homogeneous, G an indicator."""
        return self.F.homogeneous and self.G.indicator

    def objective(
        self, x: Float[Array, "*batch n"], x_tilde: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch"]:
        """Return `F(K x) + G(x - x_tilde)`."""
        return self.F(apply(self.K, x)) + self.G(x - x_tilde)

    def gap(
        self,
        r: Float[Array, "*batch n"],
        y: Float[Array, "*batch m"],
        x_tilde: Float[Array, "*batch n"],
        *,
        K_x: Float[Array, "*batch m"],
        KT_y: Float[Array, "*batch n"],
    ) -> Float[Array, "*batch"]:
        """Return primal minus dual objective of a pair, from its two products with K.

            F(K x) + G(r) - ( <K^T y, x_tilde> - F*(y) - G*(-K^T y) )

        Takes r, not x: `(x_tilde + r) - x_tilde` may leave a small cell by the rounding of x_tilde.
        """
        dual = jnp.sum(KT_y * x_tilde, axis=-1) - self.F.conjugate(y) - self.G.conjugate(-KT_y)
        return self.F(K_x) + self.G(r) - dual
