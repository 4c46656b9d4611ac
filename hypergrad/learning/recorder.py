"""Record the losses and measurements of a run, epoch by epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hypergrad._foundation.checks import describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import Rows
from hypergrad.bilevel import Loss
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning.chunks import evaluate
from hypergrad.learning.pairs import SampleProblem
from hypergrad.learning.result import best_epoch
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["HeldOut", "Recorder", "out_of_patience"]

HeldOut = tuple[Rows, ...] | Callable[[LowerLevel], float] | None


_COLUMNS = frozenset(
    ("epoch", "seconds", "train_loss", "validation_loss", "residual", "converged", "counted")
)


def _plain_number(name: Any, value: Any) -> Any:
    """Convert a number of NumPy or JAX to one of Python; leave text and None as they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    array = np.asarray(value) if hasattr(value, "dtype") else None
    if array is None or array.ndim > 0 or not isinstance(array.item(), (bool, int, float)):
        raise HypergradError(
            f"measure must return one number for each name; got {describe(value)} for {name!r}: "
            "return one name for each number"
        )
    return array.item()


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Record the losses and measurements of a problem before the first epoch and after each."""

    data: tuple[Rows, ...]
    validation: HeldOut
    solver: ChambollePock
    strategy: AbstractStrategy
    loss: Loss
    piece: int
    measure: Callable[[LowerLevel], Mapping[str, float]]
    more: tuple[str, ...] = ()
    """Columns that a method measures beside what every run does."""
    sample_problem: SampleProblem | None = None

    def _loss_on(self, pair: HeldOut, problem: LowerLevel) -> float | None:
        if pair is None:
            return None
        if not isinstance(pair, tuple):
            loss = _plain_number("validation", pair(problem))
            if isinstance(loss, bool) or not isinstance(loss, (int, float)):
                raise HypergradError(
                    f"validation must return one number, a loss; got {describe(loss)}: return a "
                    "float"
                )
            return loss
        return evaluate(
            problem,
            *pair,
            solver=self.solver,
            strategy=self.strategy,
            loss=self.loss,
            piece=self.piece,
            sample_problem=self.sample_problem,
        )

    def _measured(self, problem: LowerLevel) -> dict[str, Any]:
        """Return the user's measurements as numbers of Python, which can be written to JSON."""
        measured = self.measure(problem)
        if not isinstance(measured, Mapping):
            raise HypergradError(
                f"measure must return numbers by name; got {describe(measured)}: return a "
                'dictionary, as in {"norm": 1.0}'
            )
        if taken := _COLUMNS.union(self.more).intersection(measured):
            raise HypergradError(
                f"measure must return new names; got {', '.join(sorted(taken))}, which "
                "train records itself: choose others"
            )
        return {str(name): _plain_number(name, value) for name, value in measured.items()}

    def first_record(self, problem: LowerLevel) -> dict[str, Any]:
        """Return the record of the untrained problem, without statistics of training solves."""
        return {
            "epoch": 0,
            "seconds": 0.0,
            "train_loss": self._loss_on(self.data, problem),
            "validation_loss": self._loss_on(self.validation, problem),
            "residual": None,
            "converged": None,
            "counted": None,
            **dict.fromkeys(self.more),
            **self._measured(problem),
        }

    def record(
        self, problem: LowerLevel, epoch: int, seconds: float, measured: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the record of an epoch, from the measurements at each of its steps."""

        def column(name: str) -> np.ndarray:
            return np.array([entry[name] for entry in measured])

        return {
            "epoch": epoch,
            "seconds": seconds,
            "train_loss": float(np.mean(column("train_loss"))),
            "validation_loss": self._loss_on(self.validation, problem),
            "residual": float(np.max(column("residual"))),
            "converged": float(np.mean(column("converged"))),
            "counted": float(np.mean(column("counted"))),
            **{name: measured[-1].get(name) for name in self.more},
            **self._measured(problem),
        }


def out_of_patience(records: list[dict[str, Any]], patience: int) -> str | None:
    """Return the reason to stop if the best epoch on validation data lies so many epochs back."""
    best, last = best_epoch(records), records[-1]["epoch"]
    if last - best < patience:
        return None
    return f"the loss on validation data has not improved for {last - best} epochs"
