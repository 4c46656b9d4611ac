"""The search for the pair of minimum norm: first-order iterations, plain steps, then the path.

Difficulty is heavy-tailed over the samples of a batch, so only the first burst of iterations runs
on all of them. After that the search takes a part of the batch at a time, the samples with the
fewest attempts first: the few stragglers end up in one part, and the others do not pay for them.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hypergrad._foundation.samples import where
from hypergrad.chambolle_pock import Iteration, ProxArguments, RestartedHalpern, State
from hypergrad.exact.active_sets import AbstractActiveSystem, active_system
from hypergrad.exact.normal_map import NormalMap
from hypergrad.exact.path import BURST_ON_PATH, Found, Point, Step, newton_step
from hypergrad.problem.operators import dense_matrix

_FIRST_BURST, _BURST = 100, 400  # iterations before the first attempt, and before each later one
PLAIN_STEPS = 3  # at most so many plain Newton steps in an attempt
_ATTEMPTS = 7  # after so many failed ones the path is followed
_PARTS = 32  # so many make up the batch
_METHOD = RestartedHalpern()


class ExactPair(NamedTuple):
    """The point `z` at t = 0 where the search ended, and its properties per sample.

    `unique_P`, `unique_D`, whether the primal and the dual solution are unique (no kernel on that
    side); the `system` there; `iterations` of Chambolle-Pock that were taken, and `products` with K
    that the Newton steps took.
    """

    z: ProxArguments
    unique_P: Bool[Array, " batch"]
    unique_D: Bool[Array, " batch"]
    system: AbstractActiveSystem
    iterations: Int[Array, " batch"]
    products: Int[Array, " batch"]

    @classmethod
    def at(
        cls, z: ProxArguments, system: AbstractActiveSystem, iterations: Array, products: Array
    ) -> ExactPair:
        """Return the pair at `z`; the system there tells whether it is unique."""
        unique_P, unique_D = system.unique()
        return cls(z, unique_P, unique_D, system, iterations, products)


class AbstractSearch(eqx.Module):
    """A search for the exact pair of every sample of a batch."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The search as it is written on the command line."""

    @abc.abstractmethod
    def __call__(
        self,
        iteration: Iteration,
        start: State,
        *,
        max_steps: int | Int[Array, ""],
    ) -> ExactPair:
        """Return the pair of minimum norm, by at most `max_steps` Newton steps per sample.

        (Those of a search's first attempts may come on top.)
        """


class _Search(NamedTuple):
    """Where each sample's search stands, the best point found, and the cost so far."""

    iterate: Any  # of the first-order method
    point: Point  # from which the next Newton step is taken
    path: Point  # the last one reached on the path
    plain_steps: Int[Array, " batch"]  # taken in this attempt
    failed_attempts: Int[Array, " batch"]  # `_ATTEMPTS` once on the path
    found: Found
    finished: Bool[Array, " batch"]
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]
    products: Int[Array, " batch"]

    @classmethod
    def start(cls, normal_map: NormalMap, iterate: Any) -> _Search:
        """Return the search after the first burst."""
        z = _reached(normal_map, iterate)
        none = jnp.zeros(len(z.z_P), jnp.int32)
        return cls(
            iterate=iterate,
            point=Point.plain(z),
            path=Point.before_path(z),
            plain_steps=none,
            failed_attempts=none,
            found=Found.nothing(z),
            finished=none > 0,
            iterations=none + _FIRST_BURST,
            newton_steps=none,
            products=none,
        )

    @property
    def on_path(self) -> Array:
        """Return whether the samples follow their paths."""
        return self.failed_attempts >= _ATTEMPTS


class Factorised(AbstractSearch):
    """A search by factorised Newton steps, with K as a matrix.

    **Cost**: 100 accelerated iterations and two factorisations for most samples; for each further
    attempt up to three factorisations and 400 iterations, on a 32nd of the batch at a time; where
    active rows are dependent tens of Newton steps.

    **Source**: the normal map is Robinson's (1992); the path is Tikhonov's; the alternation with a
    first-order method follows measurements on natural patches.
    """

    @property
    def label(self) -> str:
        return "factorised"

    def __call__(
        self,
        iteration: Iteration,
        start: State,
        *,
        max_steps: int | Int[Array, ""],
    ) -> ExactPair:
        most = max_steps + _ATTEMPTS * PLAIN_STEPS  # with those of the attempts
        problem, x_tilde, sizes = iteration
        iterate = _METHOD.advance(iteration, _METHOD.begin(iteration, start), _FIRST_BURST)
        # From here on K is a matrix, built once: every factorisation needs it.
        problem = eqx.tree_at(lambda p: p.K, problem, dense_matrix(problem.K))

        def waiting(search: _Search) -> Array:
            return ~search.finished & (search.newton_steps < most)

        def step_of_part(search: _Search) -> _Search:
            """Take one more step with the part that has had the fewest failed attempts."""
            failed = jnp.where(waiting(search), search.failed_attempts, jnp.iinfo(jnp.int32).max)
            # (Unsigned indices spare the code that JAX adds for negative ones.)
            rows = jnp.argsort(failed)[: -(-len(x_tilde) // _PARTS)].astype(jnp.uint32)
            part = jax.tree.map(lambda a: a[rows], search)
            moving = waiting(part)
            new = _step(NormalMap(problem, x_tilde[rows], sizes), part, moving)
            new = where(moving, new, part)
            return jax.tree.map(lambda a, b: a.at[rows].set(b), search, new)

        search = _Search.start(NormalMap(problem, x_tilde, sizes), iterate)
        search = jax.lax.while_loop(lambda search: jnp.any(waiting(search)), step_of_part, search)
        found = search.found
        system = active_system(problem, sizes, found.z, jnp.zeros_like(found.residual))
        return ExactPair.at(found.z, system, search.iterations, search.products)


def _reached(normal_map: NormalMap, iterate: Any) -> ProxArguments:
    """Return the prox arguments that the first-order method has reached."""
    state = _METHOD.state(iterate)
    return normal_map.arguments(state.r, state.y)


def _step(normal_map: NormalMap, now: _Search, moving: Array) -> _Search:
    """Run a burst of iterations where an attempt has failed, then take a Newton step."""
    in_vain = moving & ~now.on_path & (now.plain_steps >= PLAIN_STEPS)
    burst = jnp.where(jnp.any(in_vain), _BURST, 0)
    iteration = Iteration(normal_map.problem, normal_map.x_tilde, normal_map.sizes)
    iterate = where(in_vain, _METHOD.advance(iteration, now.iterate, burst), now.iterate)
    z = _reached(normal_map, iterate)
    point = now.point._replace(z=where(in_vain, z, now.point.z))
    plain = point.t == 0
    taken = newton_step(normal_map, point, now.on_path & now.path.near_limit)
    iterations = jnp.where(in_vain, burst, 0) + jnp.where(taken.stuck, BURST_ON_PATH, 0)
    now = now._replace(
        iterate=iterate,
        plain_steps=jnp.where(in_vain, 0, now.plain_steps) + plain.astype(jnp.int32),
        iterations=now.iterations + iterations,
        newton_steps=now.newton_steps + 1,
        products=now.products + taken.products,
    )
    now = _after_plain(z, taken, plain, now)
    # Where a step on the path has converged, plain steps follow.
    return now._replace(
        point=where(taken.converged, Point.plain(taken.point.z), now.point),
        path=where(taken.converged, taken.point, now.path),
    )


def _after_plain(reached: ProxArguments, taken: Step, plain: Array, now: _Search) -> _Search:
    """Return the search after steps at t = 0: samples end, begin their paths, or return to them."""
    new = taken.found
    # Among solutions the later one is better: both residuals are rounding.
    good_enough = jnp.maximum(now.found.residual, new.tolerance)
    better = new.accepted | (~now.found.accepted & (new.residual <= good_enough))
    found = where(plain & better, new, now.found)
    precise = new.feasible & (new.residual <= 100 * float(jnp.finfo(new.residual.dtype).eps))
    used_up = plain & (precise | (now.plain_steps >= PLAIN_STEPS))
    ended = used_up & (found.accepted | (now.on_path & now.path.is_last))
    over = ended | (plain & ~jnp.isfinite(new.residual))  # NaN is data that no step mends
    failed = used_up & ~over & ~now.on_path
    # Where a coordinate sits on its kink no burst helps: only the path shows what is shortest.
    on_kink = failed & new.feasible
    failed_attempts = now.failed_attempts + failed.astype(jnp.int32)
    failed_attempts = jnp.where(on_kink, _ATTEMPTS, failed_attempts)
    begins = failed & (failed_attempts >= _ATTEMPTS)
    start = where(on_kink, Point.before_limit(new.z), Point.before_path(reached))
    path = where(begins, start, now.path)
    onto_path = begins | (used_up & ~over & now.on_path)
    return now._replace(
        point=where(onto_path, path.next(), taken.point),
        path=path,
        plain_steps=jnp.where(onto_path, 0, now.plain_steps),
        failed_attempts=failed_attempts,
        found=found,
        finished=now.finished | over,
    )
