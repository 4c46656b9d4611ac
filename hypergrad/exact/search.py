"""The search for the pair of minimum norm: first-order iterations, polishing, then the path.

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
from jaxtyping import Array, Bool, Float, Int

from hypergrad._foundation.samples import where
from hypergrad.chambolle_pock import Iteration, ProxArguments, RestartedHalpern, State
from hypergrad.exact.active_sets import AbstractActiveSystem, active_system
from hypergrad.exact.normal_map import NormalMap
from hypergrad.exact.path import POLISHING, Found, Path, follow_path, path_from, polish
from hypergrad.problem.operators import dense_matrix

_FIRST_BURST, _BURST = 100, 400  # iterations before the first polish, and before each later one
_POLISHES = 7  # after so many in vain the path is followed
_PARTS = 32  # so many make up the batch
# Mostly in the line search of a Newton step on the path.
_PRODUCTS_A_NEWTON_STEP = 26


class ExactPair(NamedTuple):
    """The point `z` at t = 0 where the search ended, and its properties per sample.

    `iterations` of Chambolle-Pock and `newton_steps` that were taken; `unique_P`, `unique_D`,
    whether the primal and the dual solution are unique (no kernel on that side); the `system`
    there; `products` with K that the Newton steps took (mostly in the line search).
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
        """Return the pair of minimum norm, by at most `max_steps` Newton steps per sample."""


class _Search(NamedTuple):
    """Each sample's iterate, its point on the path, the best point found, and the cost so far."""

    iterate: Any
    path: Path
    found: Found
    finished: Bool[Array, " batch"]
    polishes: Int[Array, " batch"]
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]


class Factorised(AbstractSearch):
    """A search by factorised Newton steps, with K as a matrix.

    **Cost**: 100 accelerated iterations and one factorisation for most samples, 400 more iterations
    for each further attempt, on a 32nd of the batch at a time; where active rows are dependent
    tens of Newton steps.

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
        max_all_steps = max_steps + _POLISHES * POLISHING  # those before the path
        method, (problem, x_tilde, sizes) = RestartedHalpern(), iteration
        iterate = method.begin(iteration, start)
        iterate = method.advance(iteration, iterate, _FIRST_BURST)
        # From here on K is a matrix, built once: every factorisation needs it.
        problem = eqx.tree_at(lambda p: p.K, problem, dense_matrix(problem.K))

        def waiting(search: _Search) -> Array:
            return ~search.finished & (search.newton_steps < max_all_steps)

        def attempt(normal_map: NormalMap, part: _Search) -> _Search:
            """Run a burst of iterations (not at first) or follow the path, then polish."""
            running, on_path = waiting(part), part.polishes >= _POLISHES
            iterating = running & (part.polishes > 0) & ~on_path
            burst = jnp.where(jnp.any(iterating), _BURST, 0)
            rows = Iteration(problem, normal_map.x_tilde, sizes)
            iterate = where(iterating, method.advance(rows, part.iterate, burst), part.iterate)
            state = method.state(iterate)
            path = where(on_path, part.path, path_from(normal_map.arguments(state.r, state.y)))
            followed = follow_path(
                normal_map, path, running & on_path, max_all_steps - part.newton_steps
            )
            path, polishing = followed.path, running & (followed.settled | ~on_path)
            at_end = normal_map.arguments(*normal_map.pair(path.z, path.t))
            new = polish(normal_map, where(on_path, at_end, path.z), on_path & path.near_limit)
            # The later one is the better one, however small the residual was before.
            good_enough = jnp.maximum(part.found.residual, new.tolerance)
            better = polishing & (new.accepted | (new.residual <= good_enough))
            over = new.accepted | ~jnp.isfinite(new.residual) | (on_path & path.ends)
            # On a kink no further burst helps: only its path shows which solution is the shortest.
            on_kink = polishing & ~on_path & ~new.accepted & (new.residual <= new.tolerance)
            path = path.reduce_smoothing(polishing & on_path)
            return _Search(
                iterate=iterate,
                path=where(on_kink, path_from(new.z), path),
                found=where(better, new, part.found),
                finished=part.finished | (polishing & over),
                polishes=jnp.where(on_kink, _POLISHES, part.polishes + jnp.where(polishing, 1, 0)),
                iterations=part.iterations + jnp.where(iterating, burst, followed.iterations),
                newton_steps=part.newton_steps
                + jnp.where(polishing & ~on_path, POLISHING, 0)
                + followed.newton_steps,
            )

        def attempt_part(search: _Search) -> _Search:
            """Make one more attempt on the part with the fewest attempts so far."""
            tried = jnp.where(waiting(search), search.polishes, jnp.iinfo(jnp.int32).max)
            # (Unsigned: no index counts from the end, which JAX would provide for.)
            rows = jnp.argsort(tried)[: -(-count // _PARTS)].astype(jnp.uint32)
            part = jax.tree.map(lambda a: a[rows], search)
            part = attempt(NormalMap(problem, x_tilde[rows], sizes), part)
            return jax.tree.map(lambda a, b: a.at[rows].set(b), search, part)

        count, state = len(x_tilde), method.state(iterate)
        none = jnp.zeros(count, jnp.int32)
        z = NormalMap(problem, x_tilde, sizes).arguments(state.r, state.y)
        nothing = Found.nothing(z)
        search = _Search(
            iterate, path_from(z), nothing, nothing.accepted, none, none + _FIRST_BURST, none
        )
        search = jax.lax.while_loop(lambda search: jnp.any(waiting(search)), attempt_part, search)
        system = active_system(problem, sizes, search.found.z)
        unique_P, unique_D = system.unique()
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
