"""Measure how far a pair is from solving a problem, relative to the pair and without units.

For a pair `r`, `y` at `x = x_tilde + r`, let `q = K^T y`. The pair's own step sizes are

    t = ||r|| / ||q||,        s = ||y||^2 / (||r|| ||q||),

those for which a step along `q` is as long as `r`, and both halves weigh the same in the metric of
the iteration, `||r||^2 / t = ||y||^2 / s`. The residual is how far one step of that size moves each
half, relative to that half:

    e_P = r - prox_{t G}(r - t q),    e_D = y - prox_{s F*}(y + s K x)
    residual = sqrt( (||e_P||^2 / ||r||^2 + ||e_D||^2 / ||y||^2) / 2 )

It is 0 exactly at the solutions. It does not change with

- `tau`, `sigma`, `step_ratio` and `theta`: it does not contain them;
- the unit of the data, of the weights or of `K`: `r`, `t`, `q` and `y`, `s`, `K x` scale along;
- an offset of `x_tilde` that `K` does not see: `x` enters through `K x` alone;
- the precision of the arithmetic, until rounding is reached.

`e_D` bounds an error of `r`, too. If `G` is `mu`-strongly convex and `e_P = 0`, the duality gap is
at most `||y|| ||K x - u||`, where `u` is the nearest point at which `y` is optimal. In units of the
energy `||r|| ||q||` that is `s ||K x - u|| / ||y||`, and `(mu / 2) ||r - r*||^2` is at most the
gap.

**Where the pair says nothing**, since `r`, `y` or `q` is 0, the solver's steps are taken; `t` is
`tau / eps` if `q` alone is, for a limit. A half that is 0 has to stay where it is; if it moves, its
part of the residual is 1.

**Rounding.** `x` resolves `r` to `resolution = eps ||x|| / ||r||`, and `K x` is off by about
`eps ||K|| ||x||`, so that no residual below about

    rounding = eps (1 + s ||K|| ||x|| / ||y|| + t ||K|| ||y|| / ||r||)

means anything. (For `||K||` stands the largest norm that the step sizes allow, `1 / sqrt(tau
sigma)`.) A solve is CONVERGED if its residual and its resolution are within the tolerance; if not,
and the residual is down at its rounding, it is ROUNDING that stopped it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._samples import safe_norm
from hypergrad.chambolle_pock.iteration import StepSizes

__all__ = [
    "ROUNDINGS",
    "PairSteps",
    "attainable_tolerance",
    "default_tolerance",
    "pair_steps",
    "primal_dual_norm",
    "relative_to",
    "rounding_of_pair",
    "with_steps",
]

# A residual of so many times its rounding is rounding.
ROUNDINGS = 8.0


class PairSteps(NamedTuple):
    """Step sizes per sample: primal `t`, dual `s`."""

    t: Float[Array, "*batch"]
    s: Float[Array, "*batch"]


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


def pair_steps(r: Array, y: Array, q: Array, sizes: StepSizes) -> PairSteps:
    """Return the pair's own step sizes, given `q = K^T y`; see above where one of them is 0."""
    size_r, size_y, size_q = safe_norm(r), safe_norm(y), safe_norm(q)
    info = jnp.finfo(r.dtype)
    longest = float(info.max) * float(info.eps)  # of what does not overflow in a prox

    def ratio(over: Array, under: Array) -> Array:
        return jnp.minimum(over / jnp.where(under > 0, under, 1.0), longest)

    t = jnp.where(size_q > 0, ratio(size_r, size_q), sizes.tau / float(info.eps))
    s = jnp.minimum(ratio(size_y, size_q) * ratio(size_y, size_r), longest)
    known = (size_r > 0) & (size_y > 0) & (size_q > 0)
    return PairSteps(jnp.where(size_r > 0, t, sizes.tau), jnp.where(known, s, sizes.sigma))


def with_steps(prox: Callable[[Array, Array], Array], z: Array, steps: Array) -> Array:
    """Apply a prox that takes one step size to every sample with a step size of its own."""
    return jnp.vectorize(prox, signature="(n),()->(n)")(z, steps)


def rounding_of_pair(
    x: Array, r: Array, y: Array, sizes: StepSizes, own: PairSteps
) -> Float[Array, "*batch"]:
    """Return the size of what rounding makes of a residual of 0 (`rounding` above)."""
    eps = float(jnp.finfo(x.dtype).eps)
    norm_K = 1 / (jnp.sqrt(sizes.tau) * jnp.sqrt(sizes.sigma))
    in_dual = relative_to(own.s * norm_K * safe_norm(x), safe_norm(y))
    in_primal = relative_to(own.t * norm_K * safe_norm(y), safe_norm(r))
    return eps * (1 + in_dual + in_primal)


def default_tolerance(dtype: jnp.dtype) -> float:
    """`eps^(3/4)`: a relative residual below it counts as converged (2e-12 and 6e-6)."""
    return float(jnp.finfo(dtype).eps) ** 0.75


def attainable_tolerance(rounding: Array) -> Float[Array, "*batch"]:
    """Return `default_tolerance`, or where rounding is coarser its size, at most `sqrt(eps)`."""
    eps = float(jnp.finfo(rounding.dtype).eps)
    return jnp.clip(ROUNDINGS * rounding, default_tolerance(rounding.dtype), eps**0.5)
