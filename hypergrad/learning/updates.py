"""Update the problem, one batch after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
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

__all__ = ["Learner", "RunState", "make_update"]


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
        measured = {
            "train_loss": batch.loss,
            "residual": batch.residual,
            "converged": batch.converged / len(x_tilde),
            "counted": counted,
        }
        return problem, optimizer_state, measured, batch.next_state

    return eqx.filter_jit(update)


@dataclasses.dataclass(frozen=True)
class Learner:
    """Take training steps: the learned variables, the rule of an update and the devices."""

    variables: Variables
    compute_gradient: ComputeGradient
    optimizer: optax.GradientTransformation
    project: Callable[[LowerLevel], LowerLevel] | None
    share: float
    place: Placement

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

    def _arguments(self, state: RunState, pair: tuple[Rows, ...], rows: Any) -> tuple[Any, ...]:
        batch = (*(part[rows] for part in pair), gather(state.memory, rows))
        return state.problem, state.optimizer_state, *self.place.rows(batch)

    def lower(self, state: RunState, pair: tuple[Rows, ...], rows: Any) -> Any:
        """Return the program of a step, not yet compiled."""
        compute_gradient = self.place.shard(self.compute_gradient)
        update = make_update(
            self.variables, compute_gradient, self.optimizer, self.project, self.share
        )
        return update.lower(*self._arguments(self.replicate(state), pair, rows))

    def step(
        self, compiled: Any, state: RunState, pair: tuple[Rows, ...], rows: Any
    ) -> tuple[RunState, dict[str, float]]:
        """Update the problem; return the new state, and the measurements before the update."""
        arguments = self._arguments(state, pair, rows)
        problem, optimizer_state, measured, next_state = compiled(*arguments)
        scatter(state.memory, rows, next_state)
        return RunState(problem, optimizer_state, state.memory), jax.tree.map(float, measured)

    def epoch(
        self,
        compiled: Any,
        state: RunState,
        pair: tuple[Rows, ...],
        rows: Iterable[np.ndarray],
        show: Callable[[float], None],
    ) -> tuple[RunState, list[dict[str, float]]]:
        """Make one update per batch of rows; return the measurements before each."""
        measured = []
        for batch in rows:
            state, measurement = self.step(compiled, state, pair, batch)
            measured.append(measurement)
            show(measurement["train_loss"])
        return state, measured
