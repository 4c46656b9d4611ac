"""The result of a training run."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hypergrad._foundation.checks import describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.printing import worst
from hypergrad._foundation.records import format_cell, latex_table
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.problem.lower_level import LowerLevel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Best", "History", "best_epoch"]


_SAVED = {"kind of file": "a history"}  # a checkpoint of a run names its settings here


class Best(NamedTuple):
    """The problem of the epoch with the smallest loss on validation data, and that epoch."""

    problem: LowerLevel
    epoch: int


def best_epoch(records: list[dict[str, Any]]) -> int:
    """Return the first epoch with the smallest validation loss; the last one without any.

    >>> best_epoch([{"epoch": 0, "validation_loss": 2.0}, {"epoch": 1, "validation_loss": 3.0}])
    0
    """
    judged = [
        record
        for record in records
        if record["validation_loss"] is not None and not np.isnan(record["validation_loss"])
    ]
    if not judged:
        return records[-1]["epoch"]
    return min(judged, key=lambda record: record["validation_loss"])["epoch"]


@dataclasses.dataclass(frozen=True)
class History:
    """The result of a training run: the last `problem`, a record per epoch, and the `best` problem.

    `best` holds the `problem` and the `epoch` with the smallest loss on validation data (epoch 0 if
    learning made it worse); without validation data, those of the last epoch.

    Each of the `records` holds `epoch` (0 is the untrained problem), `seconds` (the cumulative time
    of the updates, without compilation and validation), `train_loss` (the mean over the epoch's
    batches, each before its update; for epoch 0 over all data), `validation_loss` (None without
    validation data), `residual` (the largest relative residual of a forward solve), `converged`
    (the share of samples whose forward solve converged) and `counted` (the share whose gradient
    counted: all, unless a `WarmStart` excluded some).

    With a `method` an epoch is one step, and `train_loss` that of the problem after it. Its records
    also hold `evaluations` (of the loss, with or without gradient), `iterations`, `adjoint_steps`
    (of all evaluations, the mean over the samples), `backtracks`, `tolerance` and `rtol` (of the
    two solves), `loss_lower` and `loss_upper` (bounds on the true loss), `gradient_norm` and
    `gradient_bound` (on the error of the gradient), `step_size`, and `promised` (by how much the
    true loss is known to have decreased); None where nothing is known. Where a method or `patience`
    ended the run, the last record holds the reason as `stopped`.
    """

    problem: LowerLevel
    records: list[dict[str, Any]]
    best: Best

    @property
    def stopped(self) -> str | None:
        """The reason why a method or `patience` ended the run before its last epoch, or None."""
        return self.records[-1].get("stopped")

    def column(self, name: str) -> np.ndarray:
        """Return one entry of every record, NaN if a record has none (`residual` in epoch 0).

        **Errors**: a `HypergradError` for an unknown column, and for one without numbers.
        """
        if name not in self.records[0]:
            known = ", ".join(self.records[0])
            raise HypergradError(f"a column must be one of {known}; got {describe(name)}")
        entries = [record[name] for record in self.records]
        if all(entry is None for entry in entries):
            raise HypergradError(
                f"column {name!r} must hold numbers; got none in {len(entries)} records: "
                + (
                    "give train validation data"
                    if name == "validation_loss"
                    else "it is known from epoch 1 on"
                )
            )
        try:
            return np.array(entries, dtype=float)
        except (TypeError, ValueError):
            raise HypergradError(
                f"column {name!r} must hold numbers; got {describe(entries[0])}: read it from "
                "records"
            ) from None

    def to_dataframe(self) -> pd.DataFrame:
        """Return the records as a pandas data frame, one row per epoch."""
        import pandas as pd

        return pd.DataFrame(self.records)

    def to_latex(self) -> str:
        """Return a row per epoch as a LaTeX `tabular`, with rules of the package booktabs."""
        headings = {
            "epoch": "epoch",
            "seconds": "time (s)",
            "train_loss": "training loss",
            "validation_loss": "held-out loss",
        }
        rows = [[format_cell(record[key]) for key in headings] for record in self.records]
        return latex_table(list(headings.values()), rows)

    def save(self, folder: str | Path) -> None:
        """Write the records, the last and the best problem to a folder, atomically."""
        state = (self.problem, self.best.problem)
        Checkpoints(folder, _SAVED).save(self.records[-1]["epoch"], state, self.records)

    @classmethod
    def load(cls, folder: str | Path, problem: LowerLevel) -> History:
        """Read what `save` wrote.

        **Arguments**: `folder`; `problem`, any of the same structure, such as the initial one (a
        file holds arrays only).

        **Raises**: `HypergradError` if the folder holds no history, or one of another structure.
        """
        found = Checkpoints(folder, _SAVED).load((problem, problem))
        if found is None:
            raise HypergradError(
                f"{folder} must be a folder of History.save; got one without a history: name "
                "another folder"
            )
        (last, best), records = found
        return cls(last, records, Best(best, best_epoch(records)))

    def plot(self) -> Any:
        """Return a matplotlib figure of the losses over the epochs."""
        from hypergrad.plotting import plot_loss_curves

        return plot_loss_curves([{"strategy": "training", **record} for record in self.records])

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.to_dataframe().to_html(index=False)}"

    def __repr__(self) -> str:
        last: dict[str, Any] = self.records[-1] if self.records else {}
        epochs, seconds = worst(last.get("epoch"), ".0f"), worst(last.get("seconds"), ".1f")
        better = (
            "" if self.best.epoch == last.get("epoch") else f", best in epoch {self.best.epoch}"
        )
        return (
            f"History({epochs} epochs in {seconds} s, "
            f"train_loss={worst(last.get('train_loss'), '.6g')}, "
            f"validation_loss={last.get('validation_loss')}{better})"
        )
