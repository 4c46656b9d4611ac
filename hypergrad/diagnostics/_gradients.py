"""Gradients in K that are never written out."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import float_vector
from hypergrad.adjoint import Cotangent
from hypergrad.bilevel.arguments import Loss, flatten_batch
from hypergrad.chambolle_pock import AdjointPair, Solution, StepSizes
from hypergrad.problem.operators import Operator, bilinear_gradient, matrix_of

__all__ = ["Factors", "check_learnable", "form_norm", "layer_factors", "loss_gradient"]

Factors = tuple[tuple[Array, Array], ...]


def layer_factors(
    sizes: StepSizes, delta: AdjointPair, x: Float[Array, "*batch n"], y: Float[Array, "*batch m"]
) -> Factors:
    """Return `sigma delta_D x^T - tau y delta_P^T` as pairs of factors of outer products."""
    delta_P, delta_D = delta
    return (sizes.sigma * delta_D, x), (-sizes.tau * y, delta_P)


def check_learnable(name: str, part: Any) -> None:
    """Refuse a part of a problem whose gradient has no entries: its errors would all be 0."""
    if not jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array)):
        raise HypergradError(
            f"{name} must have a parameter for its gradient to be measured; got a "
            f"{type(part).__name__} without any: use a matrix or an operator with array fields"
        )


def form_norm(K: Operator, factors: Factors) -> Float[Array, "*batch"]:
    """Return the Frobenius norm of `sum left right^T`, the gradient in a matrix K, per sample.

    With `left = Q R` (thin) and `right = Q' R'` it is `||R R'^T||`, of the size of the number of
    pairs: unlike the Gram matrices this loses no digits where the pairs cancel. For other
    operators, the norm of the gradient in the parameters, one sample after the other.
    """
    if matrix_of(K) is not None:
        left, right = (jnp.stack(side, axis=-1) for side in zip(*factors, strict=True))
        triangles = (jnp.linalg.qr(side, mode="r") for side in (left, right))
        R_left, R_right = triangles
        return jnp.linalg.norm(R_left @ jnp.swapaxes(R_right, -1, -2), axis=(-2, -1))
    batch = factors[0][0].shape[:-1]
    norms = jax.lax.map(
        lambda pairs: jnp.linalg.norm(float_vector(bilinear_gradient(K, *pairs))),
        flatten_batch(factors, batch),
    )
    return norms.reshape(batch)


def loss_gradient(loss: Loss, solution: Solution, x_true: Array) -> Cotangent:
    """Return the loss gradient `g` in x, and zeros for y."""
    g = jax.grad(lambda x: loss(x.reshape(x_true.shape), x_true))(solution.x)
    return Cotangent(g, jnp.zeros_like(solution.y))
