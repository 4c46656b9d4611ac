"""The path that Newton's method follows to the pair of minimum norm.

Plain Newton on the active sets is quick where it works and cycles where it does not. Then the
method follows a path: `F*` and `G` with a quadratic added, (t/sigma)||y||^2 / 2 and
(t/tau)||r||^2 / 2, whose proxes are `prox_{step/(1+t)}(z/(1+t))`. For t > 0 the solution is unique
and every Newton system regular; as t falls to 0 it tends to the solution of minimum norm, primal
and dual; and as soon as the active sets have settled, one step at t = 0 is exact. So there is one
Newton step, at each sample's t: plain steps are those at 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.samples import where
from hypergrad.adjoint import pair_norm
from hypergrad.chambolle_pock import ProxArguments
from hypergrad.exact.active_sets import REFINEMENTS, active_system, regularization
from hypergrad.exact.normal_map import NormalMap, smoothed
from hypergrad.problem.functions import prox, prox_conjugate
from hypergrad.problem.operators import apply, apply_transpose

_SMOOTHING_FACTOR = 10.0
_LENGTHS = 10  # step lengths 1, 1/2, …; each costs two products with K
_SUFFICIENT_DECREASE = 0.1
BURST_ON_PATH = 50  # Chambolle-Pock iterations out of a dead end
_SHORT = 0.25  # a step length that counts as a dead end


def _near_limit(dtype: jnp.dtype) -> float:
    """Return the t from which on a path shows which optimal pair has minimum norm.

    Where a coordinate sits on its kink nothing else does. (1e-5, with room for rounding; in float32
    the last t of a path.)
    """
    return max(1.1e-5, regularization(dtype))


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

    @property
    def feasible(self) -> Array:
        """Return whether this is a solution."""
        return self.residual <= self.tolerance


def judge_shortest(
    normal_map: NormalMap, shortest: ProxArguments, best: Found, near_limit: Array
) -> Found:
    """Return the pair without its part in the kernel if it is a solution, else the best so far.

    It is accepted if no coordinate sits on its kink, since it is then the shortest of all, or if
    the path has come near its limit.
    """
    found = Found.at(normal_map, shortest)
    off_kinks = normal_map.margin(shortest) > least_margin(found.residual.dtype)
    accepted = found.feasible & (off_kinks | near_limit)
    return where(found.feasible, found, best)._replace(accepted=accepted)


class Point(NamedTuple):
    """The samples' points, each at its smoothing `t` (0: the problem itself)."""

    z: ProxArguments
    t: Float[Array, " batch"]

    @classmethod
    def plain(cls, z: ProxArguments) -> Point:
        """Return points at t = 0."""
        return cls(z, jnp.zeros(z.z_P.shape[:1], z.z_P.dtype))

    @classmethod
    def before_path(cls, z: ProxArguments) -> Point:
        """Return the points from which paths start."""
        return cls(z, jnp.ones(z.z_P.shape[:1], z.z_P.dtype))

    @classmethod
    def before_limit(cls, z: ProxArguments) -> Point:
        """Return the starts of paths that begin at solutions: only the last t matter there."""
        dtype = z.z_P.dtype
        t = 0.9 * _SMOOTHING_FACTOR * _near_limit(dtype)  # so that the next is below it
        return cls(z, jnp.full(z.z_P.shape[:1], t, dtype))

    def next(self) -> Point:
        """Return this point at the next, smaller t."""
        return Point(self.z, self.t / _SMOOTHING_FACTOR)

    @property
    def near_limit(self) -> Array:
        """Return whether t is small enough to show which optimal pair is shortest."""
        return self.t <= _near_limit(self.t.dtype)

    @property
    def is_last(self) -> Array:
        """Return whether there is no smaller t."""
        return self.t <= regularization(self.t.dtype)


class Step(NamedTuple):
    """The point that a Newton step led to.

    At t = 0: what was `found` there. On the path: whether the step has `converged` at its t, or was
    `stuck` (and followed by first-order iterations). The `products` with K that it took.
    """

    point: Point
    found: Found
    converged: Array
    stuck: Array
    products: Array


def newton_step(normal_map: NormalMap, point: Point, near_limit: Array) -> Step:
    """Take one step at each sample's t: a whole one at 0, one with a line search on the path.

    **Cost**: a factorisation and up to 15 solves; on the path `2 _LENGTHS` products.
    """
    z, t = point
    plain, whole = t == 0, jnp.ones_like(t)
    system = active_system(normal_map.problem, normal_map.sizes, z, t)
    f = normal_map(z, t)
    direction = system.solve(jax.tree.map(jnp.negative, f), refinements=REFINEMENTS)
    length = jax.lax.cond(
        jnp.all(plain),
        lambda: whole,
        lambda: jnp.where(plain, whole, _length(normal_map, point, f, direction)),
    )
    # (A length of 0 is one along which nothing is finite: 0 times that is not 0.)
    z = where(length > 0, normal_map.moved(z, length, direction), z)
    residual, tolerance = normal_map.judge(z, t)
    now = Found(z, residual, tolerance, jnp.zeros(t.shape, bool))
    r, y = normal_map.pair(z, t)

    def shortest() -> Found:
        kernel = system.kernel_part(normal_map.scaled(ProxArguments(y, r)))
        pair = normal_map.moved(ProxArguments(y, r), -whole, kernel)
        return judge_shortest(normal_map, normal_map.arguments(pair.z_P, pair.z_D), now, near_limit)

    found = jax.lax.cond(jnp.any(plain), shortest, lambda: now)
    converged = ~plain & (residual <= float(jnp.finfo(t.dtype).eps) ** 0.6)
    stuck = ~plain & ~converged & (length <= _SHORT)
    z = jax.lax.cond(
        jnp.any(stuck), lambda: where(stuck, _burst(normal_map, r, y, t), z), lambda: z
    )
    products = jnp.where(plain, 8, 4 + 2 * _LENGTHS)
    return Step(Point(where(plain, found.z, z), t), found, converged, stuck, products)


def _length(normal_map: NormalMap, point: Point, f: Any, direction: Any) -> Array:
    """Return the longest step with a sufficient decrease, else that with the smallest residual.

    (0 where no residual is finite.)
    """
    lengths = 0.5 ** jnp.arange(_LENGTHS, dtype=point.t.dtype)

    def residual_at(length: Array) -> Array:
        z = normal_map.moved(point.z, length * jnp.ones_like(point.t), direction)
        value = pair_norm(normal_map(z, point.t))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    tried = jax.lax.map(residual_at, lengths)
    enough = tried <= (1 - _SUFFICIENT_DECREASE * lengths[:, None]) * pair_norm(f)[None]
    chosen = jnp.where(jnp.any(enough, 0), jnp.argmax(enough, 0), jnp.argmin(tried, 0))
    return jnp.where(jnp.isfinite(jnp.min(tried, 0)), lengths[chosen], 0.0)


def _burst(normal_map: NormalMap, r: Array, y: Array, t: Array) -> ProxArguments:
    """Run Chambolle-Pock on the smoothed problem, which changes many active sets at once."""
    tau, sigma, _ = normal_map.sizes
    K, x_tilde = normal_map.problem.K, normal_map.x_tilde

    def body(_: Array, carry: Any):
        r, r_bar, y = carry
        z_D = y + sigma * apply(K, x_tilde + r_bar)
        y = smoothed(prox_conjugate, normal_map.problem.F, z_D, sigma, t)
        new_r = smoothed(prox, normal_map.problem.G, r - tau * apply_transpose(K, y), tau, t)
        return new_r, 2 * new_r - r, y

    r, _, y = jax.lax.fori_loop(0, BURST_ON_PATH, body, (r, r, y))
    return normal_map.arguments(r, y)
