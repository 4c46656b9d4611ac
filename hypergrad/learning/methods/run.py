"""A run of a method: its steps are the epochs of `train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.checks import describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import Rows
from hypergrad.chambolle_pock import ChambollePock, default_tolerance
from hypergrad.learning.methods.base import AbstractUpperLevelMethod, Step
from hypergrad.learning.methods.evaluations import Evaluations, Evaluator, Programs
from hypergrad.learning.updates import RunState
from hypergrad.problem.lower_level import LowerLevel, cast_floats

__all__ = ["METHOD_COLUMNS", "MethodRun", "check_method", "with_tolerance"]

# What a method records of an epoch, beside what every run does.
METHOD_COLUMNS = (
    *("evaluations", "iterations", "adjoint_steps", "backtracks", "tolerance", "rtol"),
    *("loss_lower", "loss_upper", "gradient_norm", "gradient_bound", "step_size", "promised"),
)


def check_method(method: Any, others: dict[str, Any], data: Any) -> None:
    """Refuse what is no method, and arguments of `train` that do not go with one."""
    if not isinstance(method, AbstractUpperLevelMethod):
        raise HypergradError(
            f"method must be an AbstractUpperLevelMethod; got {describe(method)}: pass for example "
            "hg.LBFGS(), or an optimiser of optax as optimizer="
        )
    reasons = {
        "optimizer": "a method makes its own steps",
        "batch_size": "a method takes all samples at once",
        "warm_start": "a method starts every solve from the last one by itself",
        "project": "its steps are judged without a projection",
        "devices": "a method runs on one device",
        "sample_problem": "a method has one problem for all samples",
    }
    for name, value in others.items():
        if value is not None and value is not False:
            raise HypergradError(
                f"{name} must be left out with a method; got {describe(value)}: {reasons[name]}"
            )
    if callable(data):
        raise HypergradError(
            f"data must be one pair of arrays with a method; got {describe(data)}, which draws "
            "another for every epoch: draw once, or pass an optimiser of optax"
        )


def with_tolerance(solver: ChambollePock, problem: LowerLevel) -> ChambollePock:
    """Return the solver in the dtype of the problem, with a tolerance.

    By default that at which a solve counts as converged.
    """
    solver.check_step_sizes(problem)
    cast: ChambollePock = cast_floats(solver, problem.dtype)
    if cast.tolerance is not None:
        return cast
    tolerance = jnp.asarray(default_tolerance(problem.dtype), problem.dtype)
    return eqx.tree_at(lambda s: s.tolerance, cast, tolerance, is_leaf=lambda leaf: leaf is None)


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """Make the steps of a method: what a `Learner` is for an optimiser of optax."""

    method: AbstractUpperLevelMethod
    evaluator: Evaluator

    columns = METHOD_COLUMNS
    project = None

    def __post_init__(self) -> None:
        self.method.check(self.evaluator)

    @property
    def optimizer(self) -> AbstractUpperLevelMethod:
        """What makes the steps, as the identity of a run names it."""
        return self.method

    def start(self, problem: LowerLevel, memory: Any, example: tuple[Any, Any]) -> RunState:
        """Return the state before the first step, for these samples."""
        free = self.evaluator.variables.free(problem)
        warm = self.evaluator.start(jnp.asarray(example[0]))
        return RunState(problem, self.method.init(free, warm, self.evaluator.finest), memory)

    def replicate(self, state: RunState) -> RunState:
        """Return the state as it is: a method runs on one device."""
        return state

    def lower(self, state: RunState, pair: tuple[Rows, ...], rows: Any) -> Programs:
        """Return the programs of the evaluations, not yet compiled."""
        x_tilde, x_true = (jnp.asarray(part[rows]) for part in pair)
        free = self.evaluator.variables.free(state.problem)
        return Programs.lower(self.evaluator, free, x_tilde, x_true)

    def epoch(
        self,
        compiled: Any,
        state: RunState,
        pair: tuple[Rows, ...],
        rows: Any,
        show: Callable[[float], None],
    ) -> tuple[RunState, list[dict[str, Any]]]:
        """Make one step; return the new state and what was measured in it."""
        del rows
        x_tilde, x_true = (jnp.asarray(part[slice(None)]) for part in pair)
        evaluations = Evaluations(compiled, x_tilde, x_true, self.evaluator.finest)
        free = self.evaluator.variables.free(state.problem)
        step = self.method.step(evaluations, free, state.optimizer_state)
        problem = state.problem
        if step.free is not free:  # the exponential of a logarithm is not quite the number
            problem = self.evaluator.variables.problem(step.free, problem)
        show(float(step.at.loss))
        return RunState(problem, step.state, None), [_measured(step, evaluations)]


def _measured(step: Step, evaluations: Evaluations) -> dict[str, Any]:
    made, at = evaluations.made, step.at

    def known(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "train_loss": float(at.loss),
        "residual": float(at.residual),
        "converged": float(at.converged),
        "counted": 1.0,
        "evaluations": len(made),
        "iterations": float(sum(evaluation.iterations for evaluation in made)),
        "adjoint_steps": float(sum(evaluation.adjoint_steps for evaluation in made)),
        "backtracks": step.backtracks,
        "tolerance": float(step.accuracy.tolerance),
        "rtol": float(step.accuracy.rtol),
        "loss_lower": known(at.lower),
        "loss_upper": known(at.upper),
        "gradient_norm": step.gradient_norm,
        "gradient_bound": known(step.gradient_bound),
        "step_size": step.step_size,
        "promised": step.promised,
        "stopped": step.stopped,
    }
