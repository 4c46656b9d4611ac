"""The growth of cost with the number of samples: an epoch of training, a comparison in chunks.

Natural patches, written to a file and read from there
by rows. Seconds of a sample relative to the smallest number say whether cost is linear; the growth
of the peak of the process, whether memory is bounded. (Pages of the file that the system keeps in
memory count in it, up to the size of the file.)
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad._foundation.records import markdown_table
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import compare
from hypergrad.learning import train
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, Quadratic
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import Truncation
from hypergrad.workbench import data
from hypergrad.workbench.sweep import Cell, Record, Result, Workspace

__all__ = ["NAME", "Settings", "cells", "report"]

NAME = "batches"

_DRAWN_AT_ONCE = 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """8 x 8 patches with noise 0.1, float32, `truncation:k=1`."""

    samples: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """To learn from."""
    compared: tuple[int, ...] = (10_000, 30_000)
    """To compare on; a sample takes as long as thirty of training."""
    rows: int = 128
    """m, of a random K."""
    iterations: int = 100
    batch_size: int = 256
    piece: int = 1024
    epochs: int = 3
    """The number of epochs; the median counts."""

    def quick(self) -> Settings:
        """Few samples, a small K."""
        return dataclasses.replace(
            self,
            samples=(256, 512),
            compared=(256, 512),
            rows=32,
            iterations=10,
            batch_size=64,
            piece=128,
        )


COLUMNS = {
    "job": "job",
    "samples": "samples",
    "seconds": "time (s)",
    "microseconds": "a sample (µs)",
    "relative": "relative to the fewest",
    "megabytes": "growth of the peak (MB)",
    "file_megabytes": "file (MB)",
}


def _peak_megabytes() -> float:
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _patches_on_disk(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`x_tilde` and `x_true` of natural patches, float32, as memory maps."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}-{count}.npy" for name in ("x_tilde", "x_true")}
    written = {
        name: np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, 64))
        for name, file in files.items()
    }
    for start in range(0, count, _DRAWN_AT_ONCE):
        few = min(_DRAWN_AT_ONCE, count - start)
        drawn = data.noisy_patches(data.PHOTOGRAPHS_TRAIN, few, noise=0.1, seed=start)
        for name, rows in written.items():
            rows[start : start + few] = getattr(drawn, name)
    x_tilde, x_true = (np.load(file, mmap_mode="r") for file in files.values())
    return x_tilde, x_true


def measure(settings: Settings, workspace: Workspace) -> Result:
    """Each job with each number of samples, the fewest first: the peak only ever grows."""
    K = operators.random(settings.rows, 64, key=jax.random.key(0)).astype(jnp.float32)
    problem = LowerLevel(K=K, F=L1(jnp.float32(0.03)), G=Quadratic(jnp.float32(1.0)))
    solver = ChambollePock(settings.iterations, primal_scale=0.1)

    def epoch(pair: tuple[Any, Any]) -> float:
        history = train(
            problem, pair,
            solver=solver, strategy=Truncation(1), optimizer=optax.adam(1e-3),
            epochs=settings.epochs, batch_size=settings.batch_size, progress=workspace.bar,
        )  # fmt: skip
        return float(np.median(np.diff(history.column("seconds"))))

    def comparison(pair: tuple[Any, Any]) -> float:
        started = time.perf_counter()
        result = compare(
            problem, *pair,
            solver=solver, strategies=[Truncation(1)], repeats=1, piece=settings.piece,
        )  # fmt: skip
        return time.perf_counter() - started - result.records[0]["compile_seconds"]

    jobs: dict[str, tuple[Callable[[tuple[Any, Any]], float], tuple[int, ...]]] = {
        "training, an epoch": (epoch, settings.samples),
        "comparison": (comparison, settings.compared),
    }
    records = []
    for job, (seconds_of, counts) in jobs.items():
        # Compilation, and the memory that it takes, is no matter of the number of samples.
        seconds_of(_patches_on_disk(workspace.checkpoints, counts[0]))
        start = _peak_megabytes()
        for count in counts:
            pair = _patches_on_disk(workspace.checkpoints, count)
            seconds = seconds_of(pair)
            records.append(
                {
                    "job": job,
                    "samples": count,
                    "seconds": seconds,
                    "microseconds": 1e6 * seconds / count,
                    "megabytes": _peak_megabytes() - start,
                    "file_megabytes": sum(part.nbytes for part in pair) / 1e6,
                }
            )
    return Result(_relative_to_the_fewest(records))


def _relative_to_the_fewest(records: Sequence[dict[str, Any]]) -> list[Record]:
    fewest: dict[str, float] = {}
    for record in records:
        fewest.setdefault(record["job"], record["microseconds"])
    return [{**r, "relative": r["microseconds"] / fewest[r["job"]]} for r in records]


def cells(settings: Settings) -> list[Cell]:
    """Return 1: the numbers of samples are compared with one another."""
    return [Cell({"section": NAME}, lambda workspace: measure(settings, workspace), cost=10.0)]


def report(records: Sequence[Record]) -> str:
    """One table."""
    return f"# Cost by the number of samples\n\n{markdown_table(records, COLUMNS)}\n"
