"""How good a primal-dual pair is, however it was found."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypergrad._printing import as_sentence, worst
from hypergrad.chambolle_pock.iteration import ProxArguments, StepSizes
from hypergrad.lower_level import LowerLevel
from hypergrad.operators import apply, apply_transpose
from hypergrad.status import Status

__all__ = [
    "SolverStats",
    "certify",
    "default_tolerance",
    "margin_of",
    "primal_dual_norm",
    "relative_to",
]


class SolverStats(eqx.Module):
    """How the forward solve went, one entry a sample.

    `iterations`; `residual`, the relative optimality residual (see `certify`); `gap`, primal minus
    dual objective (absolute; NaN where a conjugate is not known); `margin`, the relative distance
    to the nearest kink (infinite where nothing can kink); `status`, a `Status`; `products` with K
    or its transpose, those of the certificate included; `rank` of K between what is free on the
    primal and on the dual side, where the strategy finds it out (`Exact`; -1 by `MatrixFree`).
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


def default_tolerance(dtype: jnp.dtype) -> float:
    """`eps^(3/4)`: a relative residual below it counts as converged (2e-12 and 6e-6)."""
    return float(jnp.finfo(dtype).eps) ** 0.75


def primal_dual_norm(primal: Array, dual: Array, tau: Array, sigma: Array) -> Array:
    """`sqrt(||primal||^2 / tau + ||dual||^2 / sigma)` a sample: the norm of every residual.

    It is the metric (up to its coupling term) in which the iteration contracts, and the one in
    which primal and dual quantities have the same units.
    """
    return jnp.sqrt(jnp.sum(primal**2, axis=-1) / tau + jnp.sum(dual**2, axis=-1) / sigma)


def relative_to(value: Array, size: Array) -> Array:
    """`value / size`; the value itself where the size is 0, NaN where it has overflowed."""
    relative = jnp.where(size > 0, value / jnp.where(size > 0, size, 1.0), value)
    return jnp.where(jnp.isfinite(size), relative, jnp.nan)


def margin_of(problem: LowerLevel, sizes: StepSizes, z: ProxArguments) -> Float[Array, "*batch"]:
    """The relative distance of prox arguments to the nearest kink (NaN where it is not known)."""
    tau, sigma, _ = sizes
    in_F = jnp.min(problem.F.margin(z.z_D / sigma, 1 / sigma), axis=-1)
    in_G = jnp.min(problem.G.margin(z.z_P, tau), axis=-1)
    return jnp.minimum(in_F, in_G)


def certify(
    problem: LowerLevel,
    x_tilde: Array,
    sizes: StepSizes,
    r: Array,
    y: Array,
    iterations: Array,
    tolerance: Array | float,
) -> SolverStats:
    """Judge a pair `x = x_tilde + r`, `y`, however it was found, by two products with K.

    The residual is how far the two proxes move the pair, relative to the pair,

        || (r - prox_{tau G}(r - tau K^T y), y - prox_{sigma F*}(y + sigma K x)) || / || (x, y) ||

    in `primal_dual_norm`. It is 0 exactly at the solutions, whatever was iterated or averaged.
    """
    tau, sigma, _ = sizes
    F, G, x = problem.F, problem.G, x_tilde + r
    K_x, KT_y = apply(problem.K, x), apply_transpose(problem.K, y)
    z_D, z_P = y + sigma * K_x, r - tau * KT_y

    moved = primal_dual_norm(r - G.prox(z_P, tau), y - F.prox_conjugate(z_D, sigma), tau, sigma)
    size = primal_dual_norm(x, y, tau, sigma)
    residual = relative_to(moved, size)

    gap = problem.gap(r, y, x_tilde, K_x=K_x, KT_y=KT_y)

    status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.ITERATIONS_USED_UP)
    status = jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE)
    stats = SolverStats(
        iterations=jnp.broadcast_to(iterations, residual.shape).astype(jnp.int32),
        residual=residual,
        gap=gap,
        margin=margin_of(problem, sizes, ProxArguments(z_D, z_P)),
        status=status.astype(jnp.int32),
        products=jnp.broadcast_to(2 * iterations + 2, residual.shape).astype(jnp.int32),
    )
    return jax.lax.stop_gradient(stats)
