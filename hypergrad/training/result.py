"""What a training run gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hypergrad._printing import worst
from hypergrad.lower_level import LowerLevel

__all__ = ["History"]


@dataclasses.dataclass(frozen=True)
class History:
    """What a training run gave: the learned `problem` and its `records`, one an epoch.

    A record holds `epoch` (0 is the untrained problem), `seconds` (of the updates alone, summed up;
    compilation and validation are not in it), `train_loss` (the mean over the epoch's batches, each
    before its update; for epoch 0 over all data), `validation_loss` (None without validation data),
    `residual` (the largest relative residual of a forward solve), `converged` (the share of samples
    whose forward solve converged) and `counted` (the share whose gradient counted: all of them,
    unless a `WarmStart` held some back).
    """

    problem: LowerLevel
    records: list[dict[str, Any]]

    def column(self, name: str) -> np.ndarray:
        """One entry of every record."""
        return np.array([record[name] for record in self.records], dtype=float)

    def __repr__(self) -> str:
        last: dict[str, Any] = self.records[-1] if self.records else {}
        epochs, seconds = worst(last.get("epoch"), ".0f"), worst(last.get("seconds"), ".1f")
        return (
            f"History({epochs} epochs in {seconds} s, "
            f"train_loss={worst(last.get('train_loss'), '.6g')}, "
            f"validation_loss={last.get('validation_loss')})"
        )
