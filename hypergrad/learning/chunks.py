"""Solve and evaluate data of any size, with the memory of one chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.checks import check_count, check_finite
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import ROWS_A_PIECE, Rows, rows_of
from hypergrad.bilevel import Loss, half_mean_squared_error, solve
from hypergrad.bilevel.arguments import (
    check_loss,
    check_problem,
    check_samples,
    check_truth_shape,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, SolverStats
from hypergrad.learning.pairs import SampleProblem, cast_rows, own_rows
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["evaluate", "solve_in_pieces"]


def solve_in_pieces(
    problem: LowerLevel,
    x_tilde: Any,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    piece: int | None = None,
) -> tuple[np.ndarray, SolverStats]:
    """Return `x` and the statistics for `(samples, n)`, solved in chunks of `piece` samples.

    All chunks have one size (the last is padded with zeros), so the solve is compiled once.
    `x_tilde` is read by rows: a memory map is not loaded.
    """
    chunks = _solved_chunks(problem, rows_of(x_tilde, "x_tilde"), solver, strategy, piece)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(solved for _, solved in chunks))


def _solved_chunks(
    problem: LowerLevel,
    x_tilde: Rows,
    solver: ChambollePock | None,
    strategy: AbstractStrategy,
    piece: int | None,
    own: Rows | None = None,
    sample_problem: SampleProblem | None = None,
) -> Iterator[tuple[slice, tuple[np.ndarray, SolverStats]]]:
    """Solve chunk by chunk: yield the rows, their `x` and their statistics."""
    check_problem(problem)
    check_samples(x_tilde.shape, problem.n)
    if piece is not None:
        check_count("piece", piece)

    def solved(problem: LowerLevel, x_tilde: Any) -> Solution:
        return solve(problem, x_tilde, solver=solver, strategy=strategy)

    count = len(x_tilde)
    size = min(ROWS_A_PIECE, count) if piece is None else piece
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        chunk = x_tilde[rows]
        padding = np.zeros((size - len(chunk), problem.n), chunk.dtype)
        padded = np.concatenate([chunk, padding])
        if own is None or sample_problem is None:
            solution = solved(problem, padded)
        else:
            # Padded with its last row: of a row of zeros there may be no solution.
            mine = own[rows]
            mine = np.concatenate([mine, mine[-1:].repeat(len(padding), axis=0)])
            one_by_one = jax.vmap(lambda x, own: solved(sample_problem(problem, own), x))
            solution = one_by_one(jnp.asarray(padded), jnp.asarray(mine))
        padded_result = (solution.x, solution.stats)
        yield rows, jax.tree.map(lambda a, chunk=chunk: np.asarray(a)[: len(chunk)], padded_result)


def evaluate(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    own: Any = None,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    piece: int | None = None,
    sample_problem: SampleProblem | None = None,
) -> float:
    """Compute the loss on `(samples, n)` of any size, solved in chunks.

    **Arguments**: those of `hypergradient`; `x_tilde` and `x_true`, `(samples, n)`; `loss`, a mean
    over samples; `piece`, samples per chunk (at most 4096 by default); `own` and `sample_problem`,
    rows of parameters that differ by sample and the problem that they make (see `train`).

    **Returns**: the loss.

    **Cost**: one solve; data are read by rows, with the memory of one chunk.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(2), F=hg.L1(0.0), G=hg.Quadratic(1.0))
    >>> x = np.array([[0.0, 1.0]])
    >>> hg.evaluate(problem, x, x + 2, strategy=hg.Truncation(1))
    4.0
    """
    x_tilde, x_true = rows_of(x_tilde, "x_tilde"), rows_of(x_true, "x_true")
    check_truth_shape(x_true.shape, x_tilde.shape)
    if (own is None) != (sample_problem is None):
        missing, there = ("own", "sample_problem") if own is None else ("sample_problem", "own")
        raise HypergradError(
            f"own and sample_problem must be given together; got {there} alone: pass {missing}, too"
        )
    if own is not None:
        (own,) = cast_rows((own_rows(own, "own", len(x_tilde)),), problem.dtype)
    total = 0.0
    chunks = _solved_chunks(problem, x_tilde, solver, strategy, piece, own, sample_problem)
    for rows, (x, _) in chunks:
        truth = jnp.asarray(x_true[rows], x.dtype)
        check_finite("x_true", truth)
        if rows.start == 0:
            check_loss(loss, truth)
        total += len(x) * float(loss(jnp.asarray(x), truth))
    return total / len(x_tilde)
