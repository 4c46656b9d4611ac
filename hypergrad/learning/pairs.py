"""Check pairs of observed and true samples, and draw batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.contents import contents_on_disk
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import Rows, rows_of
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["Draw", "Pair", "TrainingPairs", "batches", "check_pair"]

Pair = tuple[Any, Any]

# The pair of an epoch; the same epoch gives the same pair.
Draw = Callable[[int], Pair]


class TrainingPairs:
    """The training pair of each epoch, checked and in one dtype: one pair, or drawn by a function.

    Rows that are drawn again are the rows of before, the same objects.
    """

    def __init__(self, data: Pair | Draw, problem: LowerLevel):
        self.data, self.n = data, problem.n
        self._drawn = data(1) if callable(data) else data
        pair = check_pair("data", self._drawn, self.n)
        self.dtype = jnp.result_type(problem.dtype, pair[0].dtype)
        self._rows = self._cast(pair)

    def of(self, epoch: int) -> tuple[Rows, Rows]:
        """Return the rows of `(x_tilde, x_true)` in an epoch, counted from 1."""
        drawn = self.data(epoch) if callable(self.data) else self.data
        if not _equal(drawn, self._drawn):
            self._drawn, self._rows = drawn, self._cast(check_pair("data", drawn, self.n))
        return self._rows

    def _cast(self, pair: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
        return pair[0].astype(self.dtype), pair[1].astype(self.dtype)

    def digest(self) -> str:
        if callable(self.data):
            return contents_on_disk(self.data)
        return contents_on_disk([rows.digest() for rows in self.of(1)])


def _equal(pair: Pair, other: Pair) -> bool:
    """Return whether two pairs are the same objects, or equal arrays of NumPy."""
    return pair is other or all(
        a is b or (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b))
        for a, b in zip(pair, other, strict=False)
    )


def check_pair(name: str, pair: Pair, n: int) -> tuple[Rows, Rows]:
    """Return `(x_tilde, x_true)` as rows, after checking their shape and that they are finite."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = type(pair).__name__ + (f" of {len(pair)}" if hasattr(pair, "__len__") else "")
        raise HypergradError(f"{name} must be a pair (x_tilde, x_true); got a {got}")
    x_tilde, x_true = (
        rows_of(array, f"{part} of {name}")
        for part, array in zip(("x_tilde", "x_true"), pair, strict=True)
    )
    if x_tilde.shape != x_true.shape or len(x_tilde.shape) != 2 or x_tilde.shape[1] != n:
        raise HypergradError(
            f"{name} must be two arrays of the same shape (samples, {n}); got {x_tilde.shape} and "
            f"{x_true.shape}"
        )
    if len(x_tilde) == 0:
        raise HypergradError(f"{name} must hold at least one sample; got none")
    for part in (x_tilde, x_true):
        part.check_finite(name)
    return x_tilde, x_true


def batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the indices of an epoch's batches, all of one size (one compilation).

    The order depends on seed and epoch alone, so that a resumed run sees the same batches. Samples
    that do not fill a batch are skipped in this epoch; each epoch is shuffled anew. Indices ascend
    within a batch: files are read forwards (HDF5 requires it).
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield np.sort(order[start : start + batch_size])
