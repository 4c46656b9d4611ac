"""Update the problem, one batch after the other."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.rows import Rows
from hypergrad.chambolle_pock import State
from hypergrad.learning.devices import Placement
from hypergrad.learning.variables import Variables
from hypergrad.learning.warm_start import ComputeGradient, gather, scatter
from hypergrad.problem.lower_level import LowerLevel

if TYPE_CHECKING:
    import optax

__all__ = ["Learner", "RunState", "make_update", "updates_a_call"]

# Small updates are made several at a time, since a call takes Python longer than they do. Not so
# many that a call takes long: in between progress is shown, and a run can be interrupted.
_MOST_UPDATES, _MOST_BYTES, _SHORT_CALL = 16, 2**21, 0.1

_MEASURED = ("train_loss", "residual", "converged", "counted")


class RunState(NamedTuple):
    """The state of a run between two steps; `memory`, for warm starts, stays on the host."""

    problem: LowerLevel
    optimizer_state: Any
    memory: State | None


def make_update(
    variables: Variables,
    compute_gradient: ComputeGradient,
    optimizer: optax.GradientTransformation,
    project: Callable[[LowerLevel], LowerLevel] | None,
    share: float,
) -> Any:
    """Return a jitted step of the optimiser; it moves nothing if less than a share is near."""
    import optax

    def step(problem: LowerLevel, optimizer_state: Any, grad: LowerLevel):
        gradient, free = variables.gradient(grad, problem), variables.free(problem)
        # optax raises a float to an integer count, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, free)
        problem = variables.problem(optax.apply_updates(free, updates), problem)
        return problem if project is None else project(problem), optimizer_state

    def update(problem: LowerLevel, optimizer_state: Any, x_tilde: Array, *others: Any):
        batch = compute_gradient(problem, x_tilde, *others)
        near = batch.near / len(x_tilde)
        counted = jnp.where(near >= share, near, 0.0)
        before = (problem, optimizer_state)
        # If nothing counts, neither the optimiser's momentum nor a projection may move K.
        problem, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(counted > 0, new, old) if eqx.is_array(new) else new,
            step(*before, batch.grad),
            before,
        )
        measured = (batch.loss, batch.residual, batch.converged / len(x_tilde), counted)
        measured = dict(zip(_MEASURED, measured, strict=True))
        return problem, optimizer_state, measured, batch.next_state

    return eqx.filter_jit(update)


def make_updates(update: Any) -> Any:
    """Return a jitted function that makes the first `count` of a group of updates, in turn.

    The batches of the group are a leading axis of the rows, and of the measurements returned. No
    sample is in two of them: each may start from its state before the group.
    """

    def updates(problem: LowerLevel, optimizer_state: Any, count: Array, *rows: Any) -> Any:
        arrays, rest = eqx.partition((problem, optimizer_state), eqx.is_array)
        x_tilde, *_, states = rows

        def one(i: Array, carry: Any) -> Any:
            arrays, *found = carry
            batch = jax.tree.map(lambda part: part[i], rows)
            *new, now, next_state = update(*eqx.combine(arrays, rest), *batch)
            entries = jnp.stack([now[name].astype(x_tilde.dtype) for name in _MEASURED])
            found = jax.tree.map(lambda a, b: a.at[i].set(b), found, [entries, next_state])
            return eqx.filter(tuple(new), eqx.is_array), *found

        # (New states are not written over the old ones: XLA would copy all of them each time.)
        found = (
            jnp.zeros((len(x_tilde), len(_MEASURED)), x_tilde.dtype),
            jax.tree.map(jnp.zeros_like, states),
        )
        arrays, *found = jax.lax.fori_loop(0, count, one, (arrays, *found))
        return *eqx.combine(arrays, rest), *found

    return eqx.filter_jit(updates)


def updates_a_call(batch: Any) -> int:
    """Return how many updates are made at most in one call, from the rows of one."""
    return min(_MOST_UPDATES, max(1, _MOST_BYTES // sum(a.nbytes for a in jax.tree.leaves(batch))))


@dataclasses.dataclass(frozen=True)
class Learner:
    """Take training steps: the learned variables, the rule of an update and the devices.

    At most `together` of them are made in one call.
    """

    variables: Variables
    compute_gradient: ComputeGradient
    optimizer: optax.GradientTransformation
    project: Callable[[LowerLevel], LowerLevel] | None
    share: float
    place: Placement
    together: int

    columns = ()  # it measures nothing beside what every run does

    def start(self, problem: LowerLevel, memory: State | None, example: Any) -> RunState:
        """Return the state before the first step."""
        del example
        with jax.numpy_dtype_promotion("standard"):  # see make_update
            state = self.optimizer.init(self.variables.free(problem))
        return RunState(problem, state, memory)

    def replicate(self, state: RunState) -> RunState:
        """Copy the problem and the state of the optimiser to every device."""
        problem, optimizer_state = self.place.replicate((state.problem, state.optimizer_state))
        return RunState(problem, optimizer_state, state.memory)

    def _arguments(
        self, state: RunState, pair: tuple[Rows, ...], group: Sequence[Any]
    ) -> tuple[Any, ...]:
        batches = [(*(part[rows] for part in pair), gather(state.memory, rows)) for rows in group]
        rows = jax.tree.map(lambda *parts: _stacked(parts, self.together), *batches)
        count = np.int32(len(group))
        return state.problem, state.optimizer_state, count, *self.place.rows(rows, axis=1)

    def lower(self, state: RunState, pair: tuple[Rows, ...], rows: Any) -> Any:
        """Return the program of a call, not yet compiled."""
        compute_gradient = self.place.shard(self.compute_gradient)
        update = make_update(
            self.variables, compute_gradient, self.optimizer, self.project, self.share
        )
        arguments = self._arguments(self.replicate(state), pair, [rows])
        return make_updates(update).lower(*arguments)

    def updates(
        self, compiled: Any, state: RunState, pair: tuple[Rows, ...], group: Sequence[np.ndarray]
    ) -> tuple[RunState, list[dict[str, float]]]:
        """Make one update for each batch of rows; return the measurements before each."""
        arguments = self._arguments(state, pair, group)
        problem, optimizer_state, measured, next_states = compiled(*arguments)
        next_states = jax.tree.map(np.asarray, next_states)
        for i, rows in enumerate(group):
            scatter(state.memory, rows, gather(next_states, i))
        found: list[dict[str, float]] = [
            dict(zip(_MEASURED, row, strict=True)) for row in np.asarray(measured).tolist()
        ]
        return RunState(problem, optimizer_state, state.memory), found[: len(group)]

    def epoch(
        self,
        compiled: Any,
        state: RunState,
        pair: tuple[Rows, ...],
        rows: Iterable[np.ndarray],
        show: Callable[[float], None],
    ) -> tuple[RunState, list[dict[str, float]]]:
        """Make one update per batch of rows; return the measurements before each."""
        measured, rows, count = [], iter(rows), 1
        while group := list(itertools.islice(rows, count)):
            started = time.perf_counter()
            state, found = self.updates(compiled, state, pair, group)
            measured += found
            for one in found:
                show(one["train_loss"])
            is_short = time.perf_counter() - started < _SHORT_CALL
            count = min(2 * count, self.together) if is_short else max(1, count // 2)
        return state, measured


def _stacked(parts: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return the arrays along a new first axis, filled up with zeros to so many."""
    if len(parts) == count == 1:
        return parts[0][None]
    stacked = np.zeros((count, *parts[0].shape), parts[0].dtype)
    np.stack(parts, out=stacked[: len(parts)])
    return stacked
