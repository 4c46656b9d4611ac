"""The interface of a regime, and the parts that regimes share."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.samples import safe_norm, where
from hypergrad.adjoint import problem_gradient
from hypergrad.bilevel.error_bound.result import Regime
from hypergrad.chambolle_pock import AdjointPair, StepSizes
from hypergrad.problem.functions import AbstractFunction
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose


class ReturnedPair(NamedTuple):
    """The result of a solve, one row per sample, with the step sizes of its prox arguments.

    `adjoint` is that of its backward solve, if there is one.
    """

    problem: LowerLevel
    x_tilde: Float[Array, "batch n"]
    sizes: StepSizes
    x: Float[Array, "batch n"]
    y: Float[Array, "batch m"]
    adjoint: AdjointPair | None = None


class AbstractPoint(eqx.Module):
    """A point near the solution: where the reference gradient is taken.

    `holds`, whether the bound is certified; `x (batch, n)` and a bound `error_x` on its distance
    from the solution, a sample (of no meaning where it does not hold).
    """

    holds: eqx.AbstractVar[Array]
    x: eqx.AbstractVar[Array]
    error_x: eqx.AbstractVar[Array]

    @abc.abstractmethod
    def reference(self, g: Array, error_g: Array) -> tuple[LowerLevel, LowerLevel]:
        """The reference gradient, and in its structure a bound `(batch,)` on its error a sample.

        `g` is the loss gradient at the points, 0 where this one does not hold, and `error_g` a
        bound on its error a sample.
        """


class AbstractRegime(eqx.Module):
    """A way to certify samples."""

    code: ClassVar[Regime]

    @abc.abstractmethod
    def applies(self, problem: LowerLevel, smoothness: float | None) -> bool:
        """Return whether the regime can hold for these functions (and the loss: `bound_error`)."""

    @abc.abstractmethod
    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        """From what was returned to a point that is nearer; it holds for wanted samples only."""


# --------------------------------------------------------------------------- what the regimes share

# Maximum of Newton steps from the returned pair: one is enough where its active set is right.
_NEWTON_STEPS = 4


def rounding_of(problem: LowerLevel, dtype: Any) -> float:
    """Return the rounding of a product with K, and of what follows, relative to the terms in it.

    The roundings of a sum of n terms are taken to add up like `sqrt(n)` (Higham & Mary 2019).
    """
    return (4 + max(problem.shape) ** 0.5) * float(jnp.finfo(dtype).eps)


def gap_distance(pair: ReturnedPair, gap: Array) -> Float[Array, " batch"]:
    """Bound `||x - x*||` by `sqrt(2 gap / mu)`: infinite where the gap or `mu` says nothing.

    The gap is a difference of sums, and so no better known than the rounding of these.
    """
    problem, x_tilde, _, x, y, _ = pair
    K_x, KT_y = apply(problem.K, x), apply_transpose(problem.K, y)
    size = 2 * jnp.abs(problem.F(K_x)) + jnp.abs(problem.F.conjugate(y)) + jnp.abs(gap)
    size = size + jnp.sum(jnp.abs(KT_y * x_tilde), axis=-1)
    known = jnp.maximum(gap, 0.0) + rounding_of(problem, x.dtype) * size
    mu = problem.G.strong_convexity
    curved = jnp.zeros_like(gap) if mu is None else mu + jnp.zeros_like(gap)
    distance = jnp.sqrt(2 * known / jnp.where(curved > 0, curved, 1.0))
    return jnp.where((curved > 0) & jnp.isfinite(distance), distance, jnp.inf)


def zero_unless(chosen: Array, tree: Any) -> Any:
    """0 for the samples that are not chosen."""
    return where(chosen, tree, jax.tree.map(jnp.zeros_like, tree))


def has_pieces(f: AbstractFunction, size: int, dtype: Any) -> bool:
    """Return whether the prox of f is known to be piecewise affine, coordinate by coordinate."""
    return f.separable and f.piece(jnp.zeros(size, dtype), jnp.ones((), dtype)) is not None


def pieces(f: AbstractFunction, z: Array, step: Array | float) -> Array:
    """The piece of each coordinate, of a function that has them."""
    piece = f.piece(z, step)
    assert piece is not None  # that is what `applies` asks
    return piece


def best_of_newton(
    newton_step: Callable[[Any], Any], residual: Callable[[Any], Array], start: Any, enough: float
) -> Any:
    """Newton steps while a (relative) residual is above rounding; each sample's best iterate."""

    def advance(carry: Any):
        now, best, least, steps = carry
        now = newton_step(now)
        size = residual(now)
        better = size < least
        return now, where(better, now, best), jnp.where(better, size, least), steps + 1

    def unfinished(carry: Any):
        _, _, least, steps = carry
        return jnp.any(least > enough) & (steps < _NEWTON_STEPS)

    carry = (start, start, residual(start), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, advance, carry)[1]


def parameter_errors(
    value: Callable[[AbstractFunction, Array], Array],
    f: AbstractFunction,
    z: Float[Array, "batch size"],
    spread: Float[Array, "batch size"],
    uncertain: Bool[Array, "batch size"] | None,
    u: Float[Array, "batch size"],
    error_u: Float[Array, " batch"],
    rounding: float,
) -> Any:
    """Errors of `<u, d/dp value(f, z)>` for each leaf p of f, `(batch,)`, in the structure of f.

    `value` acts on coordinates, `z` may move by `spread` and `u` by `error_u`. Between kinks the
    slope in p is affine in z; an uncertain coordinate has one kink in its reach, and the slope
    there is bounded by what the pieces on both sides can make of it. (None: all are certain.) Along
    the first axis of a leaf a coordinate depends on one entry (`AbstractFunction.piece`), so that
    the slopes in all of them are found together, for one index of the other axes at a time.
    """
    leaves, structure = jax.tree.flatten(eqx.filter(f, eqx.is_inexact_array))
    rest = eqx.filter(f, eqx.is_inexact_array, inverse=True)

    def error(i: int) -> Array:
        leaf = leaves[i]
        others = leaf.shape[1:]
        if not others:
            return error_along(i, jnp.ones_like(leaf))
        units = jnp.eye(math.prod(others), dtype=leaf.dtype).reshape(-1, 1, *others)
        columns = jax.lax.map(lambda unit: error_along(i, unit + jnp.zeros_like(leaf)), units)
        return safe_norm(columns.T)

    def error_along(i: int, direction: Array) -> Array:
        along = [jnp.zeros_like(leaf) for leaf in leaves]
        along[i] = direction

        def slope(z: Array) -> Array:
            def of_leaves(leaves: Any):
                return value(eqx.combine(jax.tree.unflatten(structure, leaves), rest), z)

            return jax.jvp(of_leaves, (leaves,), (along,))[1]

        def slope_and_change(z: Array) -> tuple[Array, Array]:
            s, change = jax.jvp(slope, (z,), (jnp.ones_like(z),))
            return jnp.abs(s), jnp.abs(change) * spread

        s, moved = slope_and_change(z)
        if uncertain is not None:
            below, above = (slope_and_change(z + side * spread) for side in (-1.0, 1.0))
            highest = jnp.maximum(below[0] + 2 * below[1], above[0] + 2 * above[1])
            moved = jnp.where(uncertain, s + jnp.maximum(s + 2 * moved, highest), moved)
        known, moved, size = safe_norm(s), safe_norm(moved), safe_norm(u)
        return (known + moved) * error_u + (moved + rounding * known) * size

    return jax.tree.unflatten(structure, [error(i) for i in range(len(leaves))])


def in_structure(problem: LowerLevel, in_K: Array, in_F: Any, in_G: Any) -> LowerLevel:
    """Errors a sample in the structure of the problem (a matrix has one leaf)."""
    all_K = jax.tree.map(lambda _: in_K, eqx.filter(problem.K, eqx.is_inexact_array))
    return problem_gradient(problem, all_K, in_F, in_G)
