"""Solves and losses on data of any size, with the memory of one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.checks import check_count, check_finite
from hypergrad._foundation.rows import ROWS_A_PIECE, Rows, rows_of
from hypergrad.bilevel import Loss, half_mean_squared_error, solve
from hypergrad.bilevel.arguments import (
    check_loss,
    check_problem,
    check_samples,
    check_truth_shape,
)
from hypergrad.chambolle_pock import ChambollePock, SolverStats
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
    """`x` and the statistics for `(samples, n)` of any size, with the memory of one piece (and x).

    Pieces have one size (the last is filled up with zeros), so there is one compilation. `x_tilde`
    is read by rows: a memory map is not loaded.
    """
    solved = _pieces_solved(problem, rows_of(x_tilde, "x_tilde"), solver, strategy, piece)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(found for _, found in solved))


def _pieces_solved(
    problem: LowerLevel,
    x_tilde: Rows,
    solver: ChambollePock | None,
    strategy: AbstractStrategy,
    piece: int | None,
) -> Iterator[tuple[slice, tuple[np.ndarray, SolverStats]]]:
    """Piece by piece: which rows it is, their `x` and their statistics."""
    check_problem(problem)
    check_samples(x_tilde.shape, problem.n)
    if piece is not None:
        check_count("piece", piece)
    count = len(x_tilde)
    size = min(ROWS_A_PIECE, count) if piece is None else piece
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        few = x_tilde[rows]
        filled = np.concatenate([few, np.zeros((size - len(few), problem.n), few.dtype)])
        solution = solve(problem, filled, solver=solver, strategy=strategy)
        found = (solution.x, solution.stats)
        yield rows, jax.tree.map(lambda a, few=few: np.asarray(a)[: len(few)], found)


def evaluate(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    piece: int | None = None,
) -> float:
    """The loss on `(samples, n)` of any size, solved in pieces (of at most 4096 by default).

    **Arguments**: as for `hypergradient`, `x_tilde` and `x_true` `(samples, n)`; `loss`, a mean
    over samples (that of all is the mean of those of the pieces); `piece`, samples at a time.

    **Returns**: the loss.

    **Cost**: one solve; data are read by rows, with the memory of one piece.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(2), F=hg.L1(0.0), G=hg.Quadratic(1.0))
    >>> x = np.array([[0.0, 1.0]])
    >>> hg.evaluate(problem, x, x + 2, strategy=hg.Truncation(1))
    4.0
    """
    x_tilde, x_true = rows_of(x_tilde, "x_tilde"), rows_of(x_true, "x_true")
    check_truth_shape(x_true.shape, x_tilde.shape)
    total = 0.0
    for rows, (x, _) in _pieces_solved(problem, x_tilde, solver, strategy, piece):
        truth = jnp.asarray(x_true[rows], x.dtype)
        check_finite("x_true", truth)
        if rows.start == 0:
            check_loss(loss, truth)
        total += len(x) * float(loss(jnp.asarray(x), truth))
    return total / len(x_tilde)
