"""Baselines for a learned operator, each tuned on training data alone.

Identity; shrinkage of the step from `x_tilde` to any solution; an operator at its best weight, or
with one weight a row; the best affine estimator. And the lower level solved until its residual is
small, so that early stopping is not taken for learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from hypergrad._foundation.arrays import unmasked
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.status import Status
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning import solve_in_pieces
from hypergrad.problem import operators
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import Operator
from hypergrad.strategies.truncation import Truncation

__all__ = [
    "Affine",
    "BestWeight",
    "Converged",
    "best_affine",
    "best_of",
    "best_shrinkage",
    "best_weight",
    "mean_loss",
    "reciprocal_row_weights",
    "shrink",
    "solve_to_tolerance",
]

Rows = Float[np.ndarray, "samples n"]


class Converged(NamedTuple):
    """`x (samples, n)`, and the share of samples whose residual got below the tolerance."""

    x: Rows
    share: float


def solve_to_tolerance(
    problem: LowerLevel,
    x_tilde: ArrayLike,
    *,
    primal_scale: float | None = None,
    tolerance: float = 1e-6,
    most: int = 1000,
    step_ratio: float = 100.0,
    piece: int = 256,
) -> Converged:
    """The lower level until its relative residual is below `tolerance`, `most` iterations at most.

    "Converged" is a residual, never a number of iterations; the share says how many arrived.

    **Arguments**: `x_tilde (samples, n)`; `primal_scale`, as in `ChambollePock`; `piece`, samples
    that are solved at a time (one compilation for one size).

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x, share = solve_to_tolerance(problem, np.array([[0.0, 1.0, 1.0]]))
    >>> np.round(x, 3).tolist(), share
    ([[0.1, 0.95, 0.95]], 1.0)
    """
    solver = ChambollePock(
        most, step_ratio=step_ratio, primal_scale=primal_scale, tolerance=tolerance
    )
    x, stats = solve_in_pieces(problem, x_tilde, solver=solver, strategy=Truncation(1), piece=piece)
    return Converged(x, float(np.mean(np.asarray(stats.status) == Status.CONVERGED)))


def mean_loss(x: ArrayLike, x_true: ArrayLike) -> float:
    """`0.5 ||x - x_true||^2`, averaged over samples.

    >>> mean_loss(np.ones((3, 4)), np.zeros((3, 4)))
    2.0
    """
    error = unmasked(x, "x") - unmasked(x_true, "x_true")
    return 0.5 * float(np.mean(np.sum(error**2, axis=-1)))


# ---------------------------------------------------------------------------------- shrinkage


def shrink(x_tilde: ArrayLike, x: ArrayLike, a: float) -> Rows:
    """`x_tilde + a (x - x_tilde)`: a part of the step from what was observed to a solution."""
    x_tilde = unmasked(x_tilde, "x_tilde")
    return x_tilde + a * (unmasked(x, "x") - x_tilde)


def best_shrinkage(x_tilde: ArrayLike, x: ArrayLike, x_true: ArrayLike) -> float:
    """The `a` for which `x_tilde + a (x - x_tilde)` is nearest to the truth (0 if x = x_tilde).

    Averages over few iterations and early stopping shrink as well: that is what this is for.

    >>> best_shrinkage(np.zeros((1, 2)), np.array([[2.0, 2.0]]), np.array([[1.0, 1.0]]))
    0.5
    """
    x_tilde = unmasked(x_tilde, "x_tilde")
    r, needed = unmasked(x, "x") - x_tilde, unmasked(x_true, "x_true") - x_tilde
    energy = float(np.sum(r**2))
    return float(np.sum(r * needed)) / energy if energy > 0 else 0.0


# ------------------------------------------------------------------------ operators as they are


def reciprocal_row_weights(K: Operator, x_true: ArrayLike) -> Float[Array, " m"]:
    """One weight a row, `1 / E|<k_i, x>|` over samples of the truth, of geometric mean 1.

    What the maximum-likelihood Laplace prior of independent coefficients gives, up to one factor.
    A row that sees nothing gets the largest weight of the others.

    >>> K = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> reciprocal_row_weights(K, np.array([[1.0, 4.0]])).tolist()
    [2.0, 0.5]
    """
    v = operators.apply(K, jnp.asarray(unmasked(x_true, "x_true")))
    size = np.mean(np.abs(np.asarray(v)), axis=0)
    seen = size > 1e-12 * np.max(size, initial=0.0)
    if not np.any(seen):
        raise HypergradError("K must see something of x_true; got Kx = 0 for all samples")
    weights = 1 / np.where(seen, size, np.min(size[seen]))
    return jnp.asarray(weights / np.exp(np.mean(np.log(weights))))


def best_of(
    candidates: Iterable[LowerLevel],
    x_tilde: ArrayLike,
    x_true: ArrayLike,
    restore: Callable[[LowerLevel, ArrayLike], ArrayLike],
) -> LowerLevel:
    """The problem whose restored samples are nearest to the truth.

    `restore(problem, x_tilde)`, say by `solve_to_tolerance`.
    """
    candidates = list(candidates)
    if not candidates:
        raise HypergradError("candidates must hold at least one problem; got none")
    losses = [mean_loss(restore(problem, x_tilde), x_true) for problem in candidates]
    return candidates[int(np.argmin(losses))]


# So many weights are tried beyond a grid, however close its weights are to each other.
_MOST_BEYOND = 100


class BestWeight(NamedTuple):
    """The best problem that was tried, its weight, and whether a better one may lie still farther.

    `at_an_end` is True where the best weight is an end of all that was tried, of several.
    """

    problem: LowerLevel
    weight: float
    at_an_end: bool


def best_weight(
    at: Callable[[float], LowerLevel],
    weights: Iterable[float],
    x_tilde: ArrayLike,
    x_true: ArrayLike,
    restore: Callable[[LowerLevel, ArrayLike], ArrayLike],
    *,
    farthest: float = 1000.0,
) -> BestWeight:
    """The problem `at(weight)` whose restored samples are nearest to the truth.

    Where an end of the grid is the best, the grid grows there by its last ratio, until the best
    lies inside: an end is no optimum.

    **Arguments**: `weights`, the grid, positive; `restore(problem, x_tilde)`, say by
    `solve_to_tolerance`; `farthest`, by which factor the grid may grow at either end.

    **Cost**: one `restore` a weight, and at most 100 beyond the grid.

    **Caveat**: of several local optima it finds one. A grid of one weight has no ratio, and stays.

    >>> import hypergrad as hg
    >>> def at(weight):
    ...     return hg.LowerLevel(K=jnp.eye(1), F=hg.L1(weight), G=hg.Quadratic(1.0))
    >>> x_tilde, x_true = np.array([[5.0]]), np.array([[1.0]])
    >>> best = best_weight(at, [0.5, 1.0], x_tilde, x_true, lambda p, x: solve_to_tolerance(p, x).x)
    >>> best.weight, best.at_an_end
    (4.0, False)
    """
    losses: dict[float, float] = {}

    def look_at(weight: float) -> None:
        loss = mean_loss(restore(at(weight), x_tilde), x_true)
        losses[weight] = np.inf if np.isnan(loss) else loss

    grid = sorted(weights)
    if not grid or not (grid[0] > 0 and np.isfinite(grid[-1])):
        raise HypergradError(
            f"weights must be positive numbers, at least one; got {grid}: give a grid"
        )
    for weight in grid:
        look_at(weight)
    least, most = min(losses) / farthest, max(losses) * farthest
    for _ in range(_MOST_BEYOND):
        beyond = _beyond(losses)
        if beyond is None or not least <= beyond <= most:
            break
        look_at(beyond)
    best = min(losses, key=losses.__getitem__)
    return BestWeight(at(best), best, _beyond(losses) is not None)


def _beyond(losses: Mapping[float, float]) -> float | None:
    """The next weight beyond the end that is the best; None where the best one lies inside."""
    grid, best = sorted(losses), min(losses, key=losses.__getitem__)
    if len(grid) == 1 or grid[0] < best < grid[-1]:
        return None
    end, inner = (grid[0], grid[1]) if best == grid[0] else (grid[-1], grid[-2])
    return end * end / inner


# ---------------------------------------------------------------------------------- estimators


class Affine(NamedTuple):
    """`x = A x_tilde + b`."""

    A: Float[np.ndarray, "n n"]
    b: Float[np.ndarray, " n"]

    def __call__(self, x_tilde: ArrayLike) -> Rows:
        return unmasked(x_tilde, "x_tilde") @ self.A.T + self.b


def best_affine(x_tilde: ArrayLike, x_true: ArrayLike) -> Affine:
    """The affine estimator of least mean square error on the given samples.

        A = Cov(x, x_tilde) Cov(x_tilde)^+,    b = E x - A E x_tilde

    **Caveat**: with fewer samples than `n` it fits the samples, not the truth.

    >>> x_true = np.array([[0.0], [1.0], [2.0]])
    >>> print(best_affine(2 * x_true + 1, x_true)(np.array([[5.0]])).round(12))
    [[2.]]
    """
    pairs = (("x_tilde", x_tilde), ("x_true", x_true))
    x_tilde, x_true = (unmasked(a, name).astype(float) for name, a in pairs)
    from_mean, to_mean = x_tilde.mean(axis=0), x_true.mean(axis=0)
    A = np.linalg.lstsq(x_tilde - from_mean, x_true - to_mean, rcond=None)[0].T
    return Affine(A, to_mean - A @ from_mean)
