"""The search for the pair of minimum norm: first-order iterations, jumps, and the path at last.

Difficulty is heavy-tailed over the samples of a batch, so only the first burst of iterations is
taken by all of it. After that it goes part by part, those first that have been tried least: so the
few stragglers come together in one part, and the others do not pay for them.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypergrad._samples import where
from hypergrad.chambolle_pock import (
    ProxArguments,
    RestartedHalpern,
    State,
    StepSizes,
    default_tolerance,
)
from hypergrad.lower_level import LowerLevel
from hypergrad.newton.active_sets import AbstractActiveSystem, active_system
from hypergrad.newton.normal_map import NormalMap
from hypergrad.newton.path import POLISHING, Found, follow_path, jump
from hypergrad.operators import dense_matrix

__all__ = ["AbstractSearch", "ExactPair", "Factorised", "solve_exactly"]

_FIRST_BURST, _BURST = 100, 400  # iterations before the first jump, and before each further one
_JUMPS = 7  # after so many in vain the path is followed
_PARTS = 8  # a part is this share of the batch
# In the line search of a Newton step on the path, mostly.
_PRODUCTS_A_NEWTON_STEP = 26


class ExactPair(NamedTuple):
    """Where the search ended: `z` at t = 0, and what is known of it, a sample.

    `iterations` of Chambolle-Pock and `newton_steps` that were taken; `unique_P`, `unique_D`,
    whether the primal and the dual solution are (no kernel on that side); the `system` there;
    `products` with K that the Newton steps took (in the line search, mostly).
    """

    z: ProxArguments
    residual: Float[Array, " batch"]
    unique_P: Bool[Array, " batch"]
    unique_D: Bool[Array, " batch"]
    system: AbstractActiveSystem
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]
    products: Int[Array, " batch"]


class AbstractSearch(eqx.Module):
    """A way to the exact pair of every sample of a batch."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The way as it is written on the command line."""

    @abc.abstractmethod
    def __call__(
        self,
        problem: LowerLevel,
        x_tilde: Float[Array, "batch n"],
        sizes: StepSizes,
        start: State,
        *,
        most: int,
    ) -> ExactPair:
        """The pair of minimum norm, by at most `most` Newton steps a sample."""


class Factorised(AbstractSearch):
    """By factorised Newton steps, with K as a matrix: `solve_exactly`."""

    @property
    def label(self) -> str:
        return "factorised"

    def __call__(
        self,
        problem: LowerLevel,
        x_tilde: Float[Array, "batch n"],
        sizes: StepSizes,
        start: State,
        *,
        most: int,
    ) -> ExactPair:
        return solve_exactly(problem, x_tilde, sizes, start, most=most)


class _Search(NamedTuple):
    """Where the samples are: their iteration, what was found, and what that has taken."""

    at: Any
    found: Found
    finished: Bool[Array, " batch"]
    jumps: Int[Array, " batch"]
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]


def solve_exactly(
    problem: LowerLevel,
    x_tilde: Float[Array, "batch n"],
    sizes: StepSizes,
    start: State,
    *,
    most: int,
) -> ExactPair:
    """The primal-dual pair of minimum norm, to rounding, by at most `most` Newton steps a sample.

    **Cost**: 100 accelerated iterations and one factorisation for most samples, 400 more iterations
    for each further try of what is left, an eighth of the batch at a time; where active rows are
    dependent tens of Newton steps.

    **Source**: the normal map is Robinson's (1992); the path is Tikhonov's; the alternation with a
    first-order method follows what was measured on natural patches.
    """
    way, tolerance, count = RestartedHalpern(), default_tolerance(x_tilde.dtype), len(x_tilde)
    at = way.begin(problem, x_tilde, sizes, start)
    at = way.advance(problem, x_tilde, sizes, at, _FIRST_BURST)
    # From here on K is a matrix, built once: every factorisation needs it.
    problem = eqx.tree_at(lambda p: p.K, problem, dense_matrix(problem.K))

    def pair_of(at: Any) -> tuple[Array, Array]:
        state = way.state(at)
        return state.r, state.y

    def try_to_jump(normal_map: NormalMap, part: _Search) -> _Search:
        new = jump(normal_map, pair_of(part.at), jnp.zeros_like(part.finished), tolerance)
        running = ~part.finished
        better = running & (new.accepted | (new.residual < part.found.residual))
        found = where(better, new, part.found)
        finished = part.finished | found.accepted | ~jnp.isfinite(new.residual)

        def go_on(at: Any) -> Any:
            further = way.advance(problem, normal_map.x_tilde, sizes, at, _BURST)
            return where(finished, at, further)

        left = running & ~finished
        return _Search(
            at=jax.lax.cond(jnp.any(left), go_on, lambda at: at, part.at),
            found=found,
            finished=finished,
            jumps=part.jumps + jnp.where(running, 1, 0),
            iterations=part.iterations + jnp.where(left, _BURST, 0),
            newton_steps=part.newton_steps + jnp.where(running, POLISHING, 0),
        )

    def take_the_path(normal_map: NormalMap, part: _Search) -> _Search:
        found, iterations, steps = follow_path(
            normal_map, pair_of(part.at), part.found, part.finished, most=most
        )
        return part._replace(
            found=found,
            finished=jnp.ones_like(part.finished),
            iterations=part.iterations + iterations,
            newton_steps=part.newton_steps + steps,
        )

    def by_parts(way_on: Any, search: _Search, jumps: int) -> _Search:
        """Part by part, until every sample is finished or has been tried so often."""

        def waiting(search: _Search) -> Array:
            return ~search.finished & (search.jumps < jumps)

        def body(search: _Search) -> _Search:
            tried = jnp.where(waiting(search), search.jumps, jnp.iinfo(jnp.int32).max)
            rows = jnp.argsort(tried)[: -(-count // _PARTS)]
            part = jax.tree.map(lambda a: a[rows], search)
            done = way_on(NormalMap(problem, x_tilde[rows], sizes), part)
            return jax.tree.map(lambda a, b: a.at[rows].set(b), search, done)

        return jax.lax.while_loop(lambda s: jnp.any(waiting(s)), body, search)

    none = jnp.zeros(count, jnp.int32)
    z = NormalMap(problem, x_tilde, sizes).arguments(*pair_of(at))
    nothing = Found(z, jnp.full(count, jnp.inf, x_tilde.dtype), jnp.zeros(count, bool))
    search = _Search(at, nothing, nothing.accepted, none, none + _FIRST_BURST, none)
    search = by_parts(try_to_jump, search, _JUMPS)
    search = by_parts(take_the_path, search, _JUMPS + 1)
    system = active_system(problem, sizes, search.found.z)
    unique_P, unique_D = system.unique((x_tilde, search.found.z.z_D))
    return ExactPair(
        search.found.z,
        search.found.residual,
        unique_P,
        unique_D,
        system,
        search.iterations,
        search.newton_steps,
        search.newton_steps * _PRODUCTS_A_NEWTON_STEP,
    )
