"""The interface of an upper-level method."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx

from hypergrad._foundation.errors import HypergradError
from hypergrad.chambolle_pock import State
from hypergrad.learning.methods.evaluations import Accuracy, Evaluation, Evaluations, Evaluator

__all__ = ["AbstractUpperLevelMethod", "Step"]


class Step(NamedTuple):
    """The result of one step: new free variables and state, and what is recorded of it.

    `at`, the evaluation of the loss at the new variables; `gradient_norm` and `gradient_bound`, of
    the gradient that was followed; `step_size`, along it; `promised`, the decrease of the true loss
    that is guaranteed (None where nothing is); `stopped`, the reason if the run ends here.
    """

    free: Any
    state: Any
    at: Evaluation
    gradient_norm: float
    gradient_bound: float
    accuracy: Accuracy
    step_size: float
    backtracks: int = 0
    promised: float | None = None
    stopped: str | None = None


class AbstractUpperLevelMethod(eqx.Module):
    """A way to minimise the upper-level loss of all samples; subclass it to add a method.

    Its state is a pytree of arrays, which checkpoints keep. It sees the problem through its free
    variables (the learned leaves, positive ones as their logarithm) and through `Evaluations`: the
    loss and its gradient, each to an accuracy that the method chooses, from the state that earlier
    solves ended in.
    """

    @abc.abstractmethod
    def check(self, evaluator: Evaluator) -> None:
        """Raise a `HypergradError` where the problem, loss or strategy does not suit the method."""

    @abc.abstractmethod
    def init(self, free: Any, warm: State, finest: Accuracy) -> Any:
        """Return the state before the first step; `warm` is where the first solves start."""

    @abc.abstractmethod
    def step(self, evaluations: Evaluations, free: Any, state: Any) -> Step:
        """Make one step. A Python function: the evaluations are compiled, decisions are not."""


def lost_in_error(norm: float, bound: float, share: float = 1.0) -> str | None:
    """Return the reason to stop if a gradient's error can be more than a share of it."""
    if bound <= share * norm and norm > 0:
        return None
    if math.isinf(bound):
        return "the error of the gradient is unknown: no bound holds for one of the samples"
    return f"a gradient of norm {norm:.1e} cannot be told from its error of at most {bound:.1e}"


def check_has_tolerance(method: AbstractUpperLevelMethod, evaluator: Evaluator) -> None:
    """Refuse a strategy whose adjoint cannot be solved to a tolerance."""
    rtol = evaluator.finest.rtol
    if evaluator.strategy.with_tolerance(rtol) is None:
        raise HypergradError(
            f"{type(method).__name__} must have a strategy with a tolerance; got "
            f"{evaluator.strategy.label}: pass hg.LimitFormula(hg.Tolerance())"
        )
