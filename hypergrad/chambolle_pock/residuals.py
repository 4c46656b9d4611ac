"""Certify a primal-dual pair: how far it is from solving a problem, relative and without units.

For a pair `r`, `y` at `x = x_tilde + r`, let `q = K^T y`. The pair's own step sizes are

    t = ||r|| / ||q||,        s = ||y||^2 / (||r|| ||q||),

those for which a step along `q` is as long as `r`, and both halves weigh the same in the metric of
the iteration, `||r||^2 / t = ||y||^2 / s`. The residual is how far one step of that size moves each
half, relative to that half:

    e_P = r - prox_{t G}(r - t q),    e_D = y - prox_{s F*}(y + s K x)
    residual = sqrt( (||e_P||^2 / ||r||^2 + ||e_D||^2 / ||y||^2) / 2 )

It is 0 exactly at the solutions. It says how well the optimality conditions hold; how far `r` is
from the solution depends on the conditioning of the problem as well. It does not change with

- `tau`, `sigma`, `step_ratio` and `theta`: it does not contain them;
- the unit of the data, of the weights or of `K`: `r`, `t`, `q` and `y`, `s`, `K x` scale along;
- an offset of `x_tilde` that `K` does not see: `x` enters through `K x` alone;
- the precision of the arithmetic, until rounding is reached.

A residual is at most 1: then one half is wrong as a whole.

**Where the solution is 0**, on either side, nothing but rounding is left of a half, and it is no
measure. So `||y||` counts as at least `eps^(1/4)` of the dual scale of `F` (the weight of a norm),
and `||r||` as at least that part of the primal scale of `G` (the radius of a box) or of what that
dual scale makes of `r`, `||K|| dual scale / mu` (unknown where `mu` is 0); of these scales no more
counts than the pair, `K x` and the rounding of `x` show. Where a function has no scale and the pair
is 0, the solver's step sizes are taken, and a half that is 0 has to stay where it is.

**Rounding.** `x` resolves `r` to `resolution = eps ||x|| / ||r||`, and `K x` is off by about
`eps ||K|| ||x||`, so that no residual below about

    rounding = eps (1 + s ||K|| ||x|| / ||y|| + t ||K|| ||y|| / ||r||)

means anything. Where F is smooth with an L-Lipschitz gradient, `y = grad F(K x)` is off by `eps L
||K|| ||x||`, and that counts as well: it is all of `y` where the solution is 0 (consistent least
squares). For `||K||` stands the largest norm that the step sizes allow, `1 / sqrt(tau sigma)`, or
the Frobenius norm of a matrix where that is smaller, here and for the scale of `r`: where K is no
matrix, steps far shorter than `1 / ||K||` overestimate rounding. A solve is CONVERGED if its
residual and its resolution are within the tolerance; if not, and the residual is down at its
rounding, it is ROUNDING that stopped it.
"""

from __future__ import annotations

from collections.abc import Callable
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
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose, matrix_of

# A residual of so many times its rounding is rounding.
ROUNDINGS = 8.0


class PairScale(NamedTuple):
    """The pair's own step sizes `t`, `s` and the sizes of its halves, per sample."""

    t: Float[Array, "*batch"]
    s: Float[Array, "*batch"]
    size_r: Float[Array, "*batch"]
    size_y: Float[Array, "*batch"]

    def residual(self, e_P: Array, e_D: Array) -> Float[Array, "*batch"]:
        """Return the root mean square of both halves' moves, each relative to its half."""
        in_r = jnp.minimum(relative_to(safe_norm(e_P), self.size_r), 1.0)
        in_y = jnp.minimum(relative_to(safe_norm(e_D), self.size_y), 1.0)
        return jnp.sqrt((in_r**2 + in_y**2) / 2)


def primal_dual_norm(
    primal: Array, dual: Array, tau: Array, sigma: Array
) -> Float[Array, "*batch"]:
    """Return `sqrt(||primal||^2 / tau + ||dual||^2 / sigma)` per sample.

    It is the metric (up to its coupling term) in which the iteration contracts, and the one in
    which primal and dual quantities have the same units.
    """
    return jnp.hypot(safe_norm(primal) / jnp.sqrt(tau), safe_norm(dual) / jnp.sqrt(sigma))


def relative_to(value: Array, size: Array) -> Array:
    """Return `value / size`; where the size is 0, 0 or 1; NaN where it is not finite."""
    nothing = jnp.where(value > 0, 1.0, value)
    relative = jnp.where(size > 0, value / jnp.where(size > 0, size, 1.0), nothing)
    return jnp.where(jnp.isfinite(size), relative, jnp.nan)


def pair_scale(
    problem: LowerLevel, sizes: StepSizes, x: Array, r: Array, y: Array, K_x: Array, KT_y: Array
) -> PairScale:
    """Return the pair's own step sizes and the sizes of its halves, from its two products."""
    info, norm_K = jnp.finfo(r.dtype), _largest_norm_of_K(problem, sizes)
    longest = float(info.max) * float(info.eps)  # of what does not overflow in a prox

    def ratio(over: Array, under: Array, otherwise: Array) -> Array:
        known = (over > 0) & (under > 0)
        quotient = over / jnp.where(known, under, 1.0)
        return jnp.minimum(jnp.where(known, quotient, otherwise), longest)

    gain = ratio(safe_norm(KT_y), safe_norm(y), norm_K)
    size_r, size_y = safe_norm(r), safe_norm(y)
    scale_r, scale_y = _scale_of_r(problem, norm_K), problem.F.dual_scale
    if scale_r is not None:
        # The scales are bounds, and may lie far above any solution: no more of them counts than
        # the pair, K x and the rounding of x show.
        shown = safe_norm(K_x) / norm_K + size_r + float(info.eps) ** 0.75 * safe_norm(x)
        share = jnp.minimum(ratio(shown, scale_r, jnp.zeros_like(shown)), 1.0)
        size_r = _at_least(size_r, share * scale_r)
        share = jnp.where(scale_r < info.max, share, 1.0)  # else nothing is known of r
        scale_y = None if scale_y is None else share * scale_y.astype(share.dtype)
    size_y = _at_least(size_y, scale_y)
    t = ratio(ratio(size_r, size_y, sizes.tau * gain), gain, sizes.tau)
    s = ratio(ratio(size_y, size_r, sizes.sigma * gain), gain, sizes.sigma)
    return PairScale(t, s, size_r, size_y)


def _scale_of_r(problem: LowerLevel, norm_K: Array) -> Array | None:
    """Return how large `r` can be: the radius of G, or what the dual scale of F makes of it.

    The largest number where G has no curvature (a weight of 0); None where nothing is known of it.
    """
    F, G = problem.F, problem.G
    if G.primal_scale is not None:
        return G.primal_scale.astype(norm_K.dtype)
    if F.dual_scale is None or G.strong_convexity is None:
        return None
    mu = G.strong_convexity.astype(norm_K.dtype)
    bound = norm_K * F.dual_scale.astype(norm_K.dtype) / jnp.where(mu > 0, mu, 1.0)
    return jnp.where(mu > 0, bound, jnp.finfo(mu.dtype).max)


def _at_least(size: Array, scale: Array | None) -> Array:
    """A size, or where a solution of 0 leaves nothing but rounding a small part of its scale."""
    if scale is None:
        return size
    return jnp.maximum(size, float(jnp.finfo(size.dtype).eps) ** 0.25 * scale.astype(size.dtype))


def _largest_norm_of_K(problem: LowerLevel, sizes: StepSizes) -> Array:
    """Return the largest norm of K that the step sizes, and the entries of a matrix, allow."""
    allowed = 1 / (jnp.sqrt(sizes.tau) * jnp.sqrt(sizes.sigma))
    matrix = matrix_of(problem.K)
    return allowed if matrix is None else jnp.minimum(allowed, safe_norm(jnp.ravel(matrix)))


def with_steps(prox: Callable[[Array, Array], Array], z: Array, steps: Array) -> Array:
    """Apply a prox that takes one step size to every sample with a step size of its own."""
    return jnp.vectorize(prox, signature="(n),()->(n)")(z, steps)


def rounding_of_pair(
    problem: LowerLevel, x: Array, scale: PairScale, sizes: StepSizes
) -> Float[Array, "*batch"]:
    """Return the size of what rounding makes of a residual of 0 (`rounding` above)."""
    norm_K, size_x = _largest_norm_of_K(problem, sizes), safe_norm(x)
    in_dual = relative_to(scale.s * norm_K * size_x, scale.size_y)
    in_primal = relative_to(scale.t * norm_K * scale.size_y, scale.size_r)
    relative = 1 + in_dual + in_primal
    L = problem.F.smoothness
    if L is not None:
        # y = grad F(K x) is no better known than K x, however small it is itself.
        relative += (1 + in_primal) * relative_to(L.astype(x.dtype) * norm_K * size_x, scale.size_y)
    return float(jnp.finfo(x.dtype).eps) * relative


def default_tolerance(dtype: jnp.dtype) -> float:
    """`eps^(3/4)`: a relative residual below it counts as converged (2e-12 and 6e-6)."""
    return float(jnp.finfo(dtype).eps) ** 0.75


def attainable_tolerance(rounding: Array) -> Float[Array, "*batch"]:
    """Return `default_tolerance`, or where rounding is coarser its size, at most `sqrt(eps)`."""
    eps = float(jnp.finfo(rounding.dtype).eps)
    return jnp.clip(ROUNDINGS * rounding, default_tolerance(rounding.dtype), eps**0.5)


# ---- the certificate


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

    Residual and rounding are defined above. Without a tolerance
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
    residual, resolved = moved.residual, _resolution(problem, sizes, x, r) <= tolerance
    within, at_rounding = residual <= tolerance, residual <= ROUNDINGS * rounding
    status = jnp.where(at_rounding | within, Status.ROUNDING, Status.ITERATIONS_USED_UP)
    status = jnp.where(within & resolved, Status.CONVERGED, status)
    # A function that is blind to a NaN in x must not hide it.
    finite = jnp.isfinite(residual) & jnp.all(jnp.isfinite(x), axis=-1)
    status = jnp.where(finite, status, Status.NON_FINITE)
    stats = SolverStats(
        iterations=jnp.broadcast_to(taken, status.shape).astype(jnp.int32),
        residual=residual,
        gap=_gap(problem, x_tilde, r, y, K_x, KT_y, moved),
        margin=margin_of(problem, sizes, ProxArguments(y + sigma * K_x, r - tau * KT_y)),
        status=status.astype(jnp.int32),
        products=jnp.broadcast_to(2 * taken + 2, status.shape).astype(jnp.int32),
    )
    return jax.lax.stop_gradient(stats)


def _resolution(problem: LowerLevel, sizes: StepSizes, x: Array, r: Array) -> Array:
    """Return the resolution of `x = x_tilde + r` in `r`, relative to `r`."""
    info, size_r = jnp.finfo(x.dtype), safe_norm(r)
    # Numbers below tiny / eps lose digits to underflow.
    lost = jnp.maximum(float(info.eps) * safe_norm(x), float(info.tiny) / float(info.eps))
    # An r of 0 is a solution, or what rounding has left of one: the problem's own scale tells.
    scale = _scale_of_r(problem, _largest_norm_of_K(problem, sizes))
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
