"""Measure how far a pair is from solving a problem, relative to the pair and without units.

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
squares). (For `||K||` stands the largest norm that the step sizes allow, `1 / sqrt(tau
sigma)`, here and for the scale of `r`: with steps far shorter than `1 / ||K||` rounding is
overestimated.) A solve is CONVERGED if its residual and its resolution are within the tolerance; if
not, and the residual is down at its rounding, it is ROUNDING that stopped it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.samples import safe_norm
from hypergrad.chambolle_pock.iteration import StepSizes
from hypergrad.problem.lower_level import LowerLevel

__all__ = [
    "ROUNDINGS",
    "PairScale",
    "attainable_tolerance",
    "default_tolerance",
    "largest_norm_of_K",
    "pair_scale",
    "primal_dual_norm",
    "relative_to",
    "rounding_of_pair",
    "scale_of_r",
    "with_steps",
]

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
    info, norm_K = jnp.finfo(r.dtype), largest_norm_of_K(sizes)
    longest = float(info.max) * float(info.eps)  # of what does not overflow in a prox

    def ratio(over: Array, under: Array, otherwise: Array) -> Array:
        known = (over > 0) & (under > 0)
        quotient = over / jnp.where(known, under, 1.0)
        return jnp.minimum(jnp.where(known, quotient, otherwise), longest)

    gain = ratio(safe_norm(KT_y), safe_norm(y), norm_K)
    size_r, size_y = safe_norm(r), safe_norm(y)
    scale_r, scale_y = scale_of_r(problem, norm_K), problem.F.dual_scale
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


def scale_of_r(problem: LowerLevel, norm_K: Array) -> Array | None:
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


def largest_norm_of_K(sizes: StepSizes) -> Array:
    """The largest norm of K that the step sizes allow."""
    return 1 / (jnp.sqrt(sizes.tau) * jnp.sqrt(sizes.sigma))


def with_steps(prox: Callable[[Array, Array], Array], z: Array, steps: Array) -> Array:
    """Apply a prox that takes one step size to every sample with a step size of its own."""
    return jnp.vectorize(prox, signature="(n),()->(n)")(z, steps)


def rounding_of_pair(
    problem: LowerLevel, x: Array, scale: PairScale, sizes: StepSizes
) -> Float[Array, "*batch"]:
    """Return the size of what rounding makes of a residual of 0 (`rounding` above)."""
    norm_K, size_x = largest_norm_of_K(sizes), safe_norm(x)
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
