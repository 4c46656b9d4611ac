"""From the regimes to the bound of a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from hypergrad._foundation.samples import safe_norm, where
from hypergrad.bilevel.error_bound._base import (
    AbstractRegime,
    ReturnedPair,
    rounding_of,
    zero_unless,
)
from hypergrad.bilevel.error_bound.active_set import ActiveSet
from hypergrad.bilevel.error_bound.as_returned import AsReturned
from hypergrad.bilevel.error_bound.result import ErrorBound, Regime
from hypergrad.bilevel.error_bound.strong_convexity import StrongConvexity
from hypergrad.problem.lower_level import LowerLevel

REGIMES: tuple[AbstractRegime, ...] = (ActiveSet(), StrongConvexity())


def regimes_of(problem: LowerLevel, smoothness: float | None) -> tuple[AbstractRegime, ...]:
    """The regimes that apply, for an upper level that asks often: the cheap one alone if it can."""
    cheap = AsReturned()
    if cheap.applies(problem, smoothness):
        return (cheap,)
    return tuple(regime for regime in REGIMES if regime.applies(problem, smoothness))


def bound_error(
    pair: ReturnedPair,
    grad: LowerLevel,
    pullback: Callable[[Bool[Array, " batch"]], LowerLevel] | None,
    loss_gradient: Callable[[Array], Array],
    *,
    smoothness: float | None,
    regimes: tuple[AbstractRegime, ...] = REGIMES,
) -> ErrorBound:
    """The bound for a gradient `grad`, however it was computed, at the pair that was returned.

    **Arguments**: `pullback`, the gradient that the strategy gives for chosen samples alone (None:
    without it nothing is known unless every sample is certified); `loss_gradient`, `(batch, n)` to
    `(batch, n)`; `smoothness`, the Lipschitz constant of that where it is known to act on each
    sample by itself. Where it is not (None) the second derivative of the loss is bounded at the
    point, by the power method, and only the active set can certify. `regimes`, in the order in
    which they are tried.

    **Cost**: see `hypergradient`; a second pullback where a sample is not certified.
    """
    problem, x = pair.problem, pair.x
    certified = jnp.zeros(x.shape[:1], jnp.int32)
    error_x, points = jnp.zeros(x.shape[:1], x.dtype), []
    for regime in regimes:
        if regime.applies(problem, smoothness):
            point = regime.locate(pair, certified == Regime.NEITHER)
            certified = jnp.where(point.holds, int(regime.code), certified)
            x = where(point.holds, point.x, x)
            error_x = jnp.where(point.holds, point.error_x, error_x)
            points.append(point)

    g = loss_gradient(x)
    if smoothness is None:
        error_g = _loss_curvature(loss_gradient, x) * safe_norm(error_x)
        error_g = jnp.broadcast_to(error_g, error_x.shape)
    else:
        error_g = smoothness * error_x
    error_g = error_g + rounding_of(problem, g.dtype) * safe_norm(g)

    grad = eqx.filter(grad, eqx.is_inexact_array)
    reference = jax.tree.map(jnp.zeros_like, grad)
    errors = jax.tree.map(lambda _: jnp.zeros((), g.dtype), grad)
    for point in points:
        part, missing = point.reference(zero_unless(point.holds, g), error_g)
        reference = jax.tree.map(jnp.add, reference, _leaves_of(grad, part))
        errors = jax.tree.map(
            lambda total, error, holds=point.holds: total + jnp.sum(jnp.where(holds, error, 0.0)),
            errors,
            _leaves_of(grad, missing),
        )

    held = certified != Regime.NEITHER
    everything = jnp.all(held)

    ours, any_held = grad, everything
    if pullback is not None:

        def on_certified() -> LowerLevel:
            return eqx.filter(pullback(held), eqx.is_inexact_array)

        ours, any_held = jax.lax.cond(everything, lambda: grad, on_certified), jnp.any(held)
    distances = jax.tree.map(_distance, ours, reference)
    bounds = jax.tree.map(lambda a, b: _known(a + b), distances, errors)
    total = _root_sum_of_squares(distances) + _root_sum_of_squares(errors)
    total = _known(total * (1 + 32 * float(jnp.finfo(total.dtype).eps)))
    return ErrorBound(
        total=jnp.where(everything, total, jnp.inf),
        grad=jax.tree.map(lambda bound: jnp.where(everything, bound, jnp.inf), bounds),
        certified=certified,
        on_certified=jnp.where(any_held, total, jnp.inf),
    )


def _leaves_of(grad: LowerLevel, other: LowerLevel) -> LowerLevel:
    """Those that the gradient has: it may be that of a part of the problem."""
    return jax.tree.map(
        lambda g, leaf: None if g is None else leaf, grad, other, is_leaf=lambda g: g is None
    )


def _distance(a: Array, b: Array) -> Array:
    """`||a - b||`, rounded upwards: one rounding an entry, and those of their sum."""
    rounding = (a.size + 4) * float(jnp.finfo(a.dtype).eps)
    return (1 + rounding) * safe_norm(jnp.ravel(a - b))


def _known(bound: Array) -> Array:
    """A bound that is not a number is none."""
    return jnp.where(jnp.isnan(bound), jnp.inf, bound)


def _root_sum_of_squares(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    return safe_norm(jnp.stack(leaves)) if leaves else jnp.zeros(())


def _loss_curvature(loss_gradient: Callable[[Array], Array], x: Array) -> Array:
    """A bound on the norm of the loss's second derivative: as `ActiveSystem.inverse_norm`."""
    powers, factor = 8, 10.0

    def power(_: Array, carry: Any):
        v, logarithm = carry
        size = safe_norm(jnp.ravel(v))
        v = jax.jvp(loss_gradient, (x,), (v / jnp.where(size > 0, size, 1.0),))[1]
        return v, logarithm + jnp.log(safe_norm(jnp.ravel(v)))

    start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    carry = start, jnp.zeros((), x.dtype)
    return factor * jnp.exp(jax.lax.fori_loop(0, powers, power, carry)[1] / powers)
