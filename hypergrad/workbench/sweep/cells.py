"""A cell of a sweep: what it computes, and where it works."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from hypergrad._foundation.records import to_json

__all__ = ["Cell", "Record", "Result", "Workspace", "digest"]

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The folder of a cell's checkpoints, a bar for its steps, and a folder for files to keep.

    The files stay with the run: they are neither records nor stored.
    """

    checkpoints: Path
    bar: Progress
    files: Path

    @classmethod
    def of(cls, cell: Cell, out: Path, bar: Progress) -> Workspace:
        """Return the workspace of a cell in the folder of a sweep."""
        return cls(out / "checkpoints" / cell.name, bar, out / "files" / cell.name)

    def part(self, name: str) -> Workspace:
        """For one of several runs in a cell: checkpoints of its own."""
        return dataclasses.replace(self, checkpoints=self.checkpoints / name)


@dataclasses.dataclass(frozen=True)
class Result:
    """The flat records of a cell (its key is added to each) and arrays for the figures."""

    records: Sequence[Record]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One independent piece of a sweep.

    `key`, its parameters, plain values and different from those of any other cell; `compute`, a
    function of the key and the files under its workspace alone; `cost`, relative to other cells
    (the time left is estimated from it).
    """

    key: Record
    compute: Callable[[Workspace], Result]
    cost: float = 1.0

    @property
    def name(self) -> str:
        """The name of its files: the key in words, and a digest of it.

        >>> Cell({"strategy": "truncation:k=1", "seed": 0}, lambda workspace: Result([])).name
        'truncation-k-1-0-aac87a97'
        """
        words = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, self.key.values())))
        return f"{words[:60]}-{digest(self.key)[:8]}"


def digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()
