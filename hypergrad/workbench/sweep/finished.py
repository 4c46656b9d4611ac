"""Finished cells on disk, and a finished sweep in compact form."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from hypergrad._foundation.errors import reason_of
from hypergrad._foundation.records import (
    read_json,
    read_jsonl,
    round_numbers,
    write_json,
    write_jsonl,
    write_npz,
)
from hypergrad.workbench.sweep.cells import Cell, Record, Result, digest

__all__ = ["FinishedCells", "store"]


class FinishedCells:
    """The finished cells of a folder."""

    def __init__(self, out: Path):
        self.folder = out / "cells"

    def _paths(self, cell: Cell) -> tuple[Path, Path]:
        return self.folder / f"{cell.name}.json", self.folder / f"{cell.name}.npz"

    def write(self, cell: Cell, result: Result) -> list[Record]:
        """Write the arrays, then the records, which make the cell a finished one; return these."""
        path, arrays_path = self._paths(cell)
        checksum = None
        if result.arrays:
            write_npz(arrays_path, result.arrays)
            checksum = hashlib.sha256(arrays_path.read_bytes()).hexdigest()
        content = {
            "key": dict(cell.key),
            "records": [{**cell.key, **record} for record in result.records],
            "arrays": checksum,
        }
        write_json(path, {**content, "checksum": digest(content)})
        return read_json(path)["records"]

    def read(self, cell: Cell) -> list[Record] | None:
        """The records, or None where the cell is not finished; a damaged one is said to be."""
        path, arrays_path = self._paths(cell)
        if not path.exists():
            return None
        try:
            content = read_json(path)
            checksum = content.pop("checksum")
            whole = checksum == digest(content)
            if whole and content["arrays"] is not None:
                whole = hashlib.sha256(arrays_path.read_bytes()).hexdigest() == content["arrays"]
            reason = "" if whole else "its checksum is another"
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            content, reason = {}, reason_of(error)
        if reason:
            print(f"{path} is damaged ({reason}): the cell is computed again", file=sys.stderr)
            return None
        return content["records"]


def store(out: str | Path, folder: str | Path) -> None:
    """Write the records of a finished sweep in compact form: six digits, arrays in float32."""
    out, folder = Path(out), Path(folder)
    write_jsonl(folder / "records.jsonl", round_numbers(read_jsonl(out / "records.jsonl")))
    for name in ("config.json", "environment.json"):
        write_json(folder / name, read_json(out / name))
    for path in sorted((out / "cells").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            compact = {name: _single(arrays[name]) for name in arrays.files}
        write_npz(folder / path.name, compact, compress=True)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array
