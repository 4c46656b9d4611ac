"""The certificate of a primal-dual pair, however it was found."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypergrad._foundation.printing import as_sentence, worst
from hypergrad._foundation.samples import safe_norm
from hypergrad._foundation.status import Status
from hypergrad.chambolle_pock.iteration import Iteration, ProxArguments, StepSizes
from hypergrad.chambolle_pock.residuals import (
    ROUNDINGS,
    PairScale,
    attainable_tolerance,
    largest_norm_of_K,
    pair_scale,
    relative_to,
    rounding_of_pair,
    scale_of_r,
    with_steps,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose

__all__ = ["SolverStats", "certify", "margin_of", "residual_of"]


class SolverStats(eqx.Module):
    """The statistics of the forward solve, one entry per sample.

    `iterations`; `residual`, the relative optimality residual (see
    `hypergrad.chambolle_pock.residuals`); `gap`, primal minus dual objective (absolute; NaN where a
    conjugate is not known, infinite where `y` is not feasible); `margin`, the relative distance
    to the nearest kink (infinite where nothing can kink); `status`, a `Status`; `products` with K
    or its transpose, those of the certificate included; `rank` of K between what is free on the
    primal and on the dual side, where the strategy computes it (`Exact`; -1 by `MatrixFree`).
    """

    iterations: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    products: Int[Array, "*batch"]
    rank: Int[Array, "*batch"] | None = None

    @as_sentence
    def __repr__(self) -> str:
        return (
            f"SolverStats({Status.summary(self.status)}; worst of {np.size(self.residual)}: "
            f"{worst(self.iterations, '.0f')} iterations, residual {worst(self.residual)}, "
            f"gap {worst(self.gap)}, margin {worst(self.margin, of=np.min)})"
        )


def margin_of(problem: LowerLevel, sizes: StepSizes, z: ProxArguments) -> Float[Array, "*batch"]:
    """The relative distance of prox arguments to the nearest kink (NaN where it is not known)."""
    tau, sigma, _ = sizes
    in_F = jnp.min(problem.F.margin(z.z_D / sigma, 1 / sigma), axis=-1)
    in_G = jnp.min(problem.G.margin(z.z_P, tau), axis=-1)
    return jnp.minimum(in_F, in_G)


def certify(
    iteration: Iteration, r: Array, y: Array, taken: Array, tolerance: Array | float | None
) -> SolverStats:
    """Judge a pair `x = x_tilde + r`, `y`, however it was found, by two products with K.

    `hypergrad.chambolle_pock.residuals` defines its residual and its rounding. Without a tolerance
    `default_tolerance` holds, or, where rounding is coarser than that, the rounding, as long as it
    is below `sqrt(eps)`.
    """
    problem, x_tilde, sizes = iteration
    x = x_tilde + r
    K_x, KT_y = apply(problem.K, x), apply_transpose(problem.K, y)
    moved = _moved_by_own_steps(problem, sizes, x, r, y, K_x, KT_y)
    rounding = rounding_of_pair(problem, x, moved.scale, sizes)
    if tolerance is None:
        tolerance = attainable_tolerance(rounding)
    tau, sigma, _ = sizes
    status = _status(moved.residual, rounding, _resolution(problem, sizes, x, r), tolerance)
    # A function that is blind to a NaN in x must not hide it.
    status = jnp.where(jnp.all(jnp.isfinite(x), axis=-1), status, Status.NON_FINITE)
    stats = SolverStats(
        iterations=jnp.broadcast_to(taken, status.shape).astype(jnp.int32),
        residual=moved.residual,
        gap=_gap(problem, x_tilde, r, y, K_x, KT_y, moved),
        margin=margin_of(problem, sizes, ProxArguments(y + sigma * K_x, r - tau * KT_y)),
        status=status.astype(jnp.int32),
        products=jnp.broadcast_to(2 * taken + 2, status.shape).astype(jnp.int32),
    )
    return jax.lax.stop_gradient(stats)


def _status(residual: Array, rounding: Array, resolution: Array, tolerance: Array | float) -> Array:
    converged, at_rounding = residual <= tolerance, residual <= ROUNDINGS * rounding
    status = jnp.where(at_rounding | converged, Status.ROUNDING, Status.ITERATIONS_USED_UP)
    status = jnp.where(converged & (resolution <= tolerance), Status.CONVERGED, status)
    return jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE)


def _resolution(problem: LowerLevel, sizes: StepSizes, x: Array, r: Array) -> Array:
    """Return the resolution of `x = x_tilde + r` in `r`, relative to `r`."""
    info, size_r = jnp.finfo(x.dtype), safe_norm(r)
    # Numbers below tiny / eps lose digits to underflow.
    lost = jnp.maximum(float(info.eps) * safe_norm(x), float(info.tiny) / float(info.eps))
    # An r of 0 is a solution, or what rounding has left of one: the problem's own scale tells.
    scale = scale_of_r(problem, largest_norm_of_K(sizes))
    unknown = jnp.zeros_like(lost) if scale is None else relative_to(lost, scale)
    return jnp.where(size_r > 0, relative_to(lost, size_r), unknown)


def residual_of(iteration: Iteration, r: Array, y: Array) -> Float[Array, "*batch"]:
    """Return the relative residual of a pair alone."""
    problem, x_tilde, sizes = iteration
    x = x_tilde + r
    K_x, KT_y = apply(problem.K, x), apply_transpose(problem.K, y)
    return _moved_by_own_steps(problem, sizes, x, r, y, K_x, KT_y).residual


class _Moved(NamedTuple):
    """The displacement of a pair by one step of its step sizes `t`, `s`."""

    scale: PairScale
    e_P: Array
    residual: Array


def _moved_by_own_steps(
    problem: LowerLevel, sizes: StepSizes, x: Array, r: Array, y: Array, K_x: Array, KT_y: Array
) -> _Moved:
    own = pair_scale(problem, sizes, x, r, y, K_x, KT_y)
    t, s = own.t[..., None], own.s[..., None]
    e_P = r - with_steps(problem.G.prox, r - t * KT_y, own.t)
    e_D = y - with_steps(problem.F.prox_conjugate, y + s * K_x, own.s)
    return _Moved(own, e_P, own.residual(e_P, e_D))


def _gap(
    problem: LowerLevel,
    x_tilde: Array,
    r: Array,
    y: Array,
    K_x: Array,
    KT_y: Array,
    moved: _Moved,
) -> Array:
    """The primal-dual gap of the pair; where that is infinite, with `y` a little shorter.

    `-K^T y` may lie outside of the domain of `G*`, by what `y` is wrong: the dual objective is
    minus infinity then, however near the pair is to the solution. `-K^T y / (1 + excess)` lies
    inside, if the domain is a ball of some norm.
    """
    excess = safe_norm(moved.e_P) / moved.scale.t / jnp.max(jnp.abs(KT_y), axis=-1)
    outside = jnp.isinf(problem.G.conjugate(-KT_y)) & jnp.isfinite(excess)
    shorter = jnp.where(outside, jnp.maximum(1 - 2 * excess, 0.0), 1.0)[..., None]
    return problem.gap(r, shorter * y, x_tilde, K_x=K_x, KT_y=shorter * KT_y)
