"""Linear systems in a pair of unknowns, one system a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from hypergrad._foundation.checks import spelt
from hypergrad._foundation.samples import magnitude, safe_norm, where

Unknowns = tuple[Array, Array]

# The tolerance of the Krylov solvers of lineax, which need a number before there is a dtype.
_LINEAX_TOLERANCE = 1e-10


def _gmres(tolerance: float = _LINEAX_TOLERANCE) -> lx.GMRES:
    return lx.GMRES(rtol=tolerance, atol=tolerance)


def _bicgstab(tolerance: float = _LINEAX_TOLERANCE) -> lx.BiCGStab:
    return lx.BiCGStab(rtol=tolerance, atol=tolerance)


def solver_label(solver: lx.AbstractLinearSolver[Any]) -> str:
    """Return the word that names it, with its tolerance unless that is the default."""
    word = type(solver).__name__.lower()
    if not isinstance(solver, (lx.GMRES, lx.BiCGStab)):
        return word
    tolerance = spelt(solver.rtol)
    return word if tolerance == spelt(_LINEAX_TOLERANCE) else f"{word}={tolerance}"


# The solvers of lineax that have a word on the command line.
LINEAX_SOLVERS: Mapping[str, Callable[..., lx.AbstractLinearSolver[Any]]] = {
    "gmres": _gmres,
    "bicgstab": _bicgstab,
    "lu": lx.LU,
    "svd": lx.SVD,
}


def solve_least_squares(
    product: Callable[[Unknowns], Unknowns],
    transpose_product: Callable[[Unknowns], Unknowns],
    right: Unknowns,
    *,
    rtol: float,
    max_steps: int,
) -> tuple[Unknowns, Array, Array]:
    """Return the least-squares solution of minimum norm of one linear system per sample, by CGLS.

    Conjugate gradients on `A^T A p = A^T b` from zero, in the form that never squares A: the
    iterates stay in the range of `A^T`, which is where the solution of minimum norm lies, so a
    singular system needs no care. All samples of a batch at once, each frozen when it converges.

    **Returns**: the unknowns, the steps taken and whether it converged, per sample.

    **Cost**: 4 products with K per step, for the whole batch.

    **Source**: Hestenes & Stiefel 1952; Björck, Numerical Methods for Least Squares, §7.4.
    """

    def unfinished(carry: Any):
        *_, running, steps = carry
        return jnp.any(running) & jnp.all(steps < max_steps)

    def body(carry: Any):
        x, r, p, gamma, running, steps = carry
        q = product(p)
        length = jnp.where(running, gamma / positive(squared_norm(q)), 0.0)
        x, r = _axpy(length, p, x), _axpy(-length, q, r)
        s = transpose_product(r)
        gamma_next = squared_norm(s)
        p = where(running, _axpy(gamma_next / positive(gamma), p, s), p)
        small = (squared_norm(r) <= rtol**2 * squared_norm(right)) | (
            gamma_next <= rtol**2 * squared_norm(r)
        )
        steps = jnp.where(running, steps + 1, steps)
        return x, r, p, jnp.where(running, gamma_next, gamma), running & ~small, steps

    unit = magnitude(*right)  # squares of the right-hand side must not vanish
    right = _scaled(1 / unit, right)
    s = transpose_product(right)
    gamma = squared_norm(s)
    zero = jax.tree.map(jnp.zeros_like, right)
    carry = (zero, right, s, gamma, gamma > 0, jnp.zeros(gamma.shape, jnp.int32))
    x, _, _, _, running, steps = jax.lax.while_loop(unfinished, body, carry)
    return _scaled(unit, x), steps, ~running


def squared_norm(pair: tuple[Array, Array]) -> Array:
    """Return the squared Euclidean norm of a pair of unknowns per sample."""
    return jnp.sum(pair[0] ** 2, axis=-1) + jnp.sum(pair[1] ** 2, axis=-1)


def pair_norm(pair: tuple[Array, Array]) -> Array:
    """Return the Euclidean norm of a pair of unknowns per sample, safely."""
    return jnp.hypot(safe_norm(pair[0]), safe_norm(pair[1]))


def positive(value: Array) -> Array:
    """Return the value where it is positive, else 1: a denominator where the numerator is 0."""
    return jnp.where(value > 0, value, 1.0)


def _scaled(factor: Array, pair: Unknowns) -> Unknowns:
    return factor[..., None] * pair[0], factor[..., None] * pair[1]


def _axpy(length: Array, p: Any, x: Any) -> Any:
    """Return `x + length p`, sample by sample."""
    return jax.tree.map(lambda a, b: b + length[..., None] * a, p, x)


def solve_both_ways(
    product: Callable[[Unknowns], Unknowns],
    right: Unknowns,
    forwards: Callable[[Unknowns], Unknowns],
    backwards: Callable[[Unknowns], Unknowns],
) -> Unknowns:
    """Solve such that JAX can transpose it: `backwards` solves the transposed system.

    The unknowns are one vector per sample, since JAX cannot transpose a solve of which one half is
    unused.
    """

    def on_vectors(function: Callable[[Unknowns], Unknowns]) -> Callable[[Array], Array]:
        size = right[0].shape[-1]

        def on_vector(v: Array) -> Array:
            return jnp.concatenate(function((v[..., :size], v[..., size:])), axis=-1)

        return on_vector

    solved = jax.lax.custom_linear_solve(
        on_vectors(product),
        jnp.concatenate(right, axis=-1),
        lambda _, b: on_vectors(forwards)(b),
        lambda _, b: on_vectors(backwards)(b),
    )
    return solved[..., : right[0].shape[-1]], solved[..., right[0].shape[-1] :]
