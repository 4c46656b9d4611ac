"""One update, and what takes one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.rows import Rows
from hypergrad.chambolle_pock import State
from hypergrad.learning.devices import Placement
from hypergrad.learning.variables import Variables
from hypergrad.learning.warm_start import Visit, put, take
from hypergrad.problem.lower_level import LowerLevel

if TYPE_CHECKING:
    import optax

__all__ = ["Learner", "RunState", "make_update"]


class RunState(NamedTuple):
    """What a run carries from step to step; `memory`, what visits leave, stays on the host."""

    problem: LowerLevel
    optimizer_state: Any
    memory: State | None


def make_update(
    variables: Variables,
    visit: Visit,
    optimizer: optax.GradientTransformation,
    project: Callable[[LowerLevel], LowerLevel] | None,
    share: float,
) -> Any:
    """One step of the optimiser, as a jitted function; where less than a share is near, none."""
    import optax

    def step(problem: LowerLevel, optimizer_state: Any, grad: LowerLevel):
        gradient, free = variables.gradient(grad, problem), variables.free(problem)
        # optax raises a float to an integer count, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, free)
        problem = variables.problem(optax.apply_updates(free, updates), problem)
        return problem if project is None else project(problem), optimizer_state

    def update(
        problem: LowerLevel, optimizer_state: Any, x_tilde: Array, x_true: Array, left: State | None
    ):
        visited = visit(problem, x_tilde, x_true, left)
        near = visited.near / len(x_tilde)
        counted = jnp.where(near >= share, near, 0.0)
        before = (problem, optimizer_state)
        # Where nothing counts, neither the momentum of the optimiser nor a projection moves K.
        problem, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(counted > 0, new, old) if eqx.is_array(new) else new,
            step(*before, visited.grad),
            before,
        )
        measured = {
            "train_loss": visited.loss,
            "residual": visited.residual,
            "converged": visited.converged / len(x_tilde),
            "counted": counted,
        }
        return problem, optimizer_state, measured, visited.left

    return eqx.filter_jit(update)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What takes training steps: the training data, what is learned from them, and where."""

    x_tilde: Rows
    x_true: Rows
    variables: Variables
    visit: Visit
    optimizer: optax.GradientTransformation
    project: Callable[[LowerLevel], LowerLevel] | None
    share: float
    place: Placement

    def spread(self, state: RunState) -> RunState:
        """The state where the steps want it."""
        problem, optimizer_state = self.place.replicate((state.problem, state.optimizer_state))
        return RunState(problem, optimizer_state, state.memory)

    def _arguments(self, state: RunState, rows: Any) -> tuple[Any, ...]:
        batch = (self.x_tilde[rows], self.x_true[rows], take(state.memory, rows))
        return state.problem, state.optimizer_state, *self.place.rows(batch)

    def lower(self, state: RunState, rows: Any) -> Any:
        """The program of a step, not yet compiled."""
        visit = self.place.shard(self.visit)
        update = make_update(self.variables, visit, self.optimizer, self.project, self.share)
        return update.lower(*self._arguments(self.spread(state), rows))

    def step(self, compiled: Any, state: RunState, rows: Any) -> tuple[RunState, dict[str, float]]:
        """One update, and what was measured before it."""
        *moved, measured, left = compiled(*self._arguments(state, rows))
        put(state.memory, rows, left)
        problem, optimizer_state = moved
        return RunState(problem, optimizer_state, state.memory), jax.tree.map(float, measured)
