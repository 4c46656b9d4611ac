"""The path that Newton's method follows to the pair of minimum norm.

Plain Newton on the active sets is quick where it works and cycles where it does not. So the method
follows a path: `F*` and `G` with a quadratic added, (t/sigma)||y||^2 / 2 and (t/tau)||r||^2 / 2,
whose proxes are `prox_{step/(1+t)}(z/(1+t))`. For t > 0 the solution is unique and every Newton
system regular; as t falls to 0 it tends to the solution of minimum norm, primal and dual; and as
soon as the active sets have settled, one step at t = 0 is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.samples import where
from hypergrad.adjoint import pair_norm
from hypergrad.chambolle_pock import ProxArguments
from hypergrad.exact.active_sets import REFINEMENTS, ActiveSystem, active_system, regularization
from hypergrad.exact.normal_map import NormalMap, smoothed
from hypergrad.problem.functions import prox, prox_conjugate
from hypergrad.problem.operators import apply, apply_transpose

_FIRST_SMOOTHING, _SMOOTHING_FACTOR = 0.1, 10.0
# Where a coordinate sits on its kink, only a path down to this t shows which of the optimal dual
# variables has minimum norm.
_NEAR_LIMIT = 1e-4
_LENGTHS = 10  # step lengths 1, 1/2, …; each costs two products with K
_MEMORY = 4  # the line search may rise above the last few residuals: pieces are crossed sooner
_SUFFICIENT_DECREASE = 0.1
POLISHING = 3  # at most so many Newton steps at t = 0
_BURST = 50  # Chambolle-Pock iterations out of a dead end
_SHORT = 0.25  # a step length that counts as a dead end


def least_margin(dtype: jnp.dtype) -> float:
    """Return the margin below which a margin counts as zero: 1e-9, or 1e-4 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.575


class Found(NamedTuple):
    """A point at t = 0, its relative residual, and whether it is accepted.

    `tolerance` is that below which a residual there is one of a solution.
    """

    z: ProxArguments
    residual: Array
    tolerance: Array
    accepted: Array

    @classmethod
    def nothing(cls, z: ProxArguments) -> Found:
        """Return what has been found before the search begins."""
        worst = jnp.full(z.z_P.shape[:1], jnp.inf, z.z_P.dtype)
        return cls(z, worst, jnp.zeros_like(worst), jnp.zeros(worst.shape, bool))

    @classmethod
    def at(cls, normal_map: NormalMap, z: ProxArguments) -> Found:
        """Return a point with its residual, not accepted yet."""
        residual, tolerance = normal_map.judge(z, jnp.zeros(z.z_P.shape[:1], z.z_P.dtype))
        return cls(z, residual, tolerance, jnp.zeros(residual.shape, bool))


def polish(normal_map: NormalMap, z: ProxArguments, near_limit: Array) -> Found:
    """Take Newton steps at t = 0 from `z`, then move to the pair of minimum norm.

    An accepted point has a small residual without its part in the kernel. It is the pair of minimum
    norm among those with the same active sets, hence of all unless a coordinate sits on its kink;
    then the path has to be followed until t is small (`near_limit`).

    **Cost**: one factorisation where the active sets are right, `POLISHING` where not.
    """
    none = jnp.zeros(near_limit.shape, z.z_P.dtype)
    precise = 100 * float(jnp.finfo(none.dtype).eps)

    def system_at(z: ProxArguments) -> ActiveSystem:
        return active_system(normal_map.problem, normal_map.sizes, z)

    def newton_step(carry: Any):
        now, _, best, done = carry
        system = system_at(now.z)
        f = jax.tree.map(jnp.negative, normal_map(now.z, none))
        z = normal_map.moved(now.z, none + 1, system.solve(f, refinements=REFINEMENTS))
        now = Found.at(normal_map, z)
        return now, system, where(now.residual < best.residual, now, best), done + 1

    def unpolished(carry: Any):
        now, *_, done = carry
        return (done < POLISHING) & jnp.any(now.residual > precise)

    shapes = eqx.filter_eval_shape(system_at, z)
    system = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    first = Found.at(normal_map, z)
    # At least one step is taken: only a system tells what is in the kernel.
    carry = (first._replace(residual=none + jnp.inf), system, first, jnp.zeros((), jnp.int32))
    (z, *_), system, best, _ = jax.lax.while_loop(unpolished, newton_step, carry)
    if system.D_P.basis is not None or system.D_D.basis is not None:
        # Where the Jacobian is curved it has to be taken here. Elsewhere the sets of the last step
        # are the better ones: where it led onto a kink, those that are read there are rounding.
        system = system_at(z)
    r, y = normal_map.pair(z, none)
    kernel = system.kernel_part(normal_map.scaled(ProxArguments(y, r)))
    shortest = normal_map.moved(z, none - 1, kernel)
    return judge_shortest(normal_map, shortest, best, near_limit)


def judge_shortest(
    normal_map: NormalMap, shortest: ProxArguments, best: Found, near_limit: Array
) -> Found:
    """Return the pair without its part in the kernel if it is a solution, else the best so far."""
    found = Found.at(normal_map, shortest)
    feasible = found.residual <= found.tolerance
    off_kinks = normal_map.margin(shortest) > least_margin(found.residual.dtype)
    accepted = feasible & (off_kinks | near_limit)
    return where(feasible, found, best)._replace(accepted=accepted)


class Path(NamedTuple):
    """The samples' points on their paths."""

    z: ProxArguments
    t: Array
    recent: Array  # (batch, memory), residual norms at this t

    @property
    def near_limit(self) -> Array:
        """Return whether t is small enough to show which optimal pair is shortest."""
        return self.t <= _NEAR_LIMIT

    @property
    def ends(self) -> Array:
        """Return whether there is no smaller t."""
        return self.t <= regularization(self.t.dtype)

    def reduce_smoothing(self, chosen: Array) -> Path:
        """Return the path with the chosen samples at their next t."""
        t = jnp.where(chosen, self.t / _SMOOTHING_FACTOR, self.t)
        return Path(self.z, t, jnp.where(chosen[:, None], -jnp.inf, self.recent))


def path_from(z: ProxArguments) -> Path:
    """Return the start of a path."""
    t = jnp.full(z.z_P.shape[:1], _FIRST_SMOOTHING, z.z_P.dtype)
    return Path(z, t, jnp.full((len(t), _MEMORY), -jnp.inf, t.dtype))


def _damped_newton(normal_map: NormalMap, path: Path) -> tuple[ProxArguments, Array, Array]:
    """Take one Newton step at each sample's t, with a line search; also its length and residual."""
    z, t, recent = path
    system = active_system(normal_map.problem, normal_map.sizes, z, t)
    f = normal_map(z, t)
    direction = system.solve(jax.tree.map(jnp.negative, f))
    lengths = 0.5 ** jnp.arange(_LENGTHS, dtype=t.dtype)

    def residual_at(length: Array) -> Array:
        value = pair_norm(normal_map(normal_map.moved(z, length * jnp.ones_like(t), direction), t))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    tried = jax.lax.map(residual_at, lengths)
    now = pair_norm(f)
    reference = jnp.maximum(jnp.max(recent, axis=-1), now)
    enough = tried <= (1 - _SUFFICIENT_DECREASE * lengths[:, None]) * reference[None]
    chosen = jnp.where(jnp.any(enough, 0), jnp.argmax(enough, 0), jnp.argmin(tried, 0))
    length = jnp.where(jnp.isfinite(jnp.min(tried, 0)), lengths[chosen], 0.0)
    return normal_map.moved(z, length, direction), length, now


def _burst(normal_map: NormalMap, z: ProxArguments, t: Array) -> ProxArguments:
    """Run Chambolle-Pock on the smoothed problem, which changes many active sets at once."""
    tau, sigma, _ = normal_map.sizes
    K, x_tilde = normal_map.problem.K, normal_map.x_tilde

    def body(_: Array, carry: Any):
        r, r_bar, y = carry
        z_D = y + sigma * apply(K, x_tilde + r_bar)
        y = smoothed(prox_conjugate, normal_map.problem.F, z_D, sigma, t)
        new_r = smoothed(prox, normal_map.problem.G, r - tau * apply_transpose(K, y), tau, t)
        return new_r, 2 * new_r - r, y

    r, y = normal_map.pair(z, t)
    r, _, y = jax.lax.fori_loop(0, _BURST, body, (r, r, y))
    return normal_map.arguments(r, y)


class Followed(NamedTuple):
    """Points on the paths at fixed t: which samples have settled there, and the cost."""

    path: Path
    settled: Array
    iterations: Array
    newton_steps: Array


def follow_path(normal_map: NormalMap, path: Path, following: Array, max_steps: Array) -> Followed:
    """Take Newton steps until one sample has settled at its t, or each took its `max_steps`.

    Only samples that are `following` move. A stuck step is followed by a burst of first-order
    iterations.

    **Cost**: for each step a factorisation and `2 _LENGTHS` products.
    """
    settled_below = float(jnp.finfo(path.t.dtype).eps) ** 0.6

    def running(now: Followed) -> Array:
        return following & (now.newton_steps < max_steps)

    def step(now: Followed) -> Followed:
        z, length, residual = _damped_newton(normal_map, now.path)
        z = where(running(now), z, now.path.z)
        settled = running(now) & (normal_map.relative(z, path.t) <= settled_below)
        stuck = running(now) & ~settled & (length <= _SHORT)

        def burst(z: ProxArguments) -> ProxArguments:
            return where(stuck, _burst(normal_map, z, path.t), z)

        z = jax.lax.cond(jnp.any(stuck), burst, lambda z: z, z)
        recent = jnp.concatenate([now.path.recent[:, 1:], residual[:, None]], axis=-1)
        recent = jnp.where(stuck[:, None], -jnp.inf, recent)
        return Followed(
            path=Path(z, path.t, recent),
            settled=settled,
            iterations=now.iterations + jnp.where(stuck, _BURST, 0),
            newton_steps=now.newton_steps + jnp.where(running(now), 1, 0),
        )

    none = jnp.zeros(following.shape, jnp.int32)
    return jax.lax.while_loop(
        lambda now: jnp.any(running(now)) & ~jnp.any(now.settled),
        step,
        Followed(path, jnp.zeros_like(following), none, none),
    )
