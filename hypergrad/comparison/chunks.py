"""The samples of a comparison, all at once or in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.rows import Rows, rows_of
from hypergrad.bilevel import Hypergradient, Loss
from hypergrad.bilevel.arguments import (
    check_loss,
    check_problem,
    check_samples,
    check_truth_shape,
    prepare,
    prepare_truth,
)
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["Chunk", "Sums", "add", "in_chunks"]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some of the samples, or all of them.

    All chunks have one size: the last is padded by repeating its last sample. `start` is the index
    of the first sample, `real` is False for the repeated ones, `share` is the share of the chunk in
    all samples, and `scale` the weight of a mean over the chunk in the mean over all samples.
    """

    x_tilde: Array
    x_true: Array
    start: int
    real: np.ndarray
    share: float
    scale: float

    def of_real(self, values: Any) -> np.ndarray:
        """Return the entries of the samples that are no padding."""
        return np.asarray(values)[self.real]

    def part_of(self, tree: Any) -> Any:
        """Return the entries of this chunk, of a pytree with one entry per sample."""
        if self.share == 1:
            return tree
        size, count = len(self.real), int(self.real.sum())

        def part(a: Array) -> Array:
            edges = [(0, size - count)] + [(0, 0)] * (a.ndim - 1)
            return jnp.pad(a[self.start : self.start + count], edges, mode="edge")

        return jax.tree.map(part, tree)

    def mean_loss(self, h: Hypergradient, loss: Loss) -> float:
        """Return the mean loss of the samples that are no padding."""
        if self.real.all():
            return float(h.value)
        return float(loss(h.solution.x[self.real], self.x_true[self.real]))


@dataclasses.dataclass(frozen=True)
class Sums:
    """Totals over samples, a pytree of numbers and arrays, and statistics with an entry each."""

    totals: dict[str, Any]
    statistics: dict[str, Any]


def add(parts: Sequence[Sums]) -> Sums:
    """Add the totals of all chunks, and concatenate their statistics.

    >>> parts = [Sums({"loss": 1.0}, {"steps": np.array([i])}) for i in (3, 4)]
    >>> add(parts).totals["loss"], add(parts).statistics["steps"].tolist()
    (2.0, [3, 4])
    """
    return Sums(
        jax.tree.map(lambda *terms: sum(terms), *(part.totals for part in parts)),
        jax.tree.map(lambda *rows: np.concatenate(rows), *(part.statistics for part in parts)),
    )


def in_chunks(
    problem: LowerLevel, x_tilde: Any, x_true: Any, solver: Any, loss: Loss, piece: int | None
) -> tuple[LowerLevel, ChambollePock, Iterator[Chunk]]:
    """Check and cast the arguments; return the samples as they are, or `piece` at a time."""
    if piece is None:
        problem, x_tilde, solver, _ = prepare(problem, x_tilde, solver, None)
        x_true = prepare_truth(x_true, x_tilde, loss)
        real = np.ones(x_tilde.shape[:-1], bool)
        return problem, solver, iter([Chunk(x_tilde, x_true, 0, real, 1.0, 1.0)])
    check_count("piece", piece)
    check_problem(problem)
    x_tilde, x_true = rows_of(x_tilde, "x_tilde"), rows_of(x_true, "x_true")
    check_samples(x_tilde.shape, problem.n)
    check_truth_shape(x_true.shape, x_tilde.shape)
    for name, rows in {"x_tilde": x_tilde, "x_true": x_true}.items():
        rows.check_finite(name)
    problem, first, solver, _ = prepare(problem, x_tilde[:1], solver, None)
    check_loss(loss, first)
    x_tilde, x_true = x_tilde.astype(first.dtype), x_true.astype(first.dtype)
    return problem, solver, _chunks_of(x_tilde, x_true, min(piece, len(x_tilde)))


def _chunks_of(x_tilde: Rows, x_true: Rows, size: int) -> Iterator[Chunk]:
    total = len(x_tilde)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        count = rows.stop - start
        observed, truth = (
            jnp.asarray(np.pad(part[rows], ((0, size - count), (0, 0)), mode="edge"))
            for part in (x_tilde, x_true)
        )
        yield Chunk(observed, truth, start, np.arange(size) < count, count / total, size / total)
