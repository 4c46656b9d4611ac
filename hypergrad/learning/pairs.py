"""Check observed and true samples, with rows of their own parameters; draw batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.contents import contents_on_disk
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import Rows, rows_of
from hypergrad.problem.lower_level import LowerLevel

__all__ = [
    "Draw",
    "Pair",
    "SampleProblem",
    "TrainingPairs",
    "batches",
    "cast_rows",
    "check_pair",
    "own_rows",
]

# `(x_tilde, x_true)`, or `(x_tilde, x_true, own)` where the problem differs by sample.
Pair = tuple[Any, ...]

# The problem of one sample, from the shared problem and the sample's row of `own`.
SampleProblem = Callable[[LowerLevel, Any], LowerLevel]

# The pair of an epoch; the same epoch gives the same pair.
Draw = Callable[[int], Pair]


class TrainingPairs:
    """The training pair of each epoch, checked and in one dtype: one pair, or drawn by a function.

    Rows that are drawn again are the rows of before, the same objects. `own` tells whether there
    are rows of the samples' own parameters.
    """

    def __init__(self, data: Pair | Draw, problem: LowerLevel, *, own: bool = False):
        self.data, self.n, self.own = data, problem.n, own
        self._drawn = data(1) if callable(data) else data
        pair = check_pair("data", self._drawn, self.n, own=own)
        self.dtype = jnp.result_type(problem.dtype, pair[0].dtype)
        self._rows = cast_rows(pair, self.dtype)

    def of(self, epoch: int) -> tuple[Rows, ...]:
        """Return the rows of `(x_tilde, x_true)`, and of `own`, in an epoch counted from 1."""
        drawn = self.data(epoch) if callable(self.data) else self.data
        if not _equal(drawn, self._drawn):
            pair = check_pair("data", drawn, self.n, own=self.own)
            self._drawn, self._rows = drawn, cast_rows(pair, self.dtype)
        return self._rows

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


def cast_rows(pair: tuple[Rows, ...], dtype: Any) -> tuple[Rows, ...]:
    """Cast rows of floats; whole numbers and truth values, of `own`, stay what they are."""
    return tuple(rows if rows.dtype.kind in "biu" else rows.astype(dtype) for rows in pair)


def own_rows(own: Any, name: str, count: int) -> Rows:
    """Return a row of parameters for each of `count` samples, finite, in the dtype of its kind."""
    rows = rows_of(np.asarray(own) if isinstance(own, jax.Array) else own, name)
    if rows.shape[:1] != (count,):
        raise HypergradError(
            f"{name} must have one row for each of the {count} samples; got shape {rows.shape}: "
            "the samples are its first axis"
        )
    rows.check_finite(name)
    kind = np.dtype(rows.source.dtype)
    return rows.astype(jax.dtypes.canonicalize_dtype(kind)) if kind.kind in "biu" else rows


def check_pair(name: str, pair: Pair, n: int, *, own: bool = False) -> tuple[Rows, ...]:
    """Return the parts as rows, after checking their shape and that they are finite."""
    count = 3 if own else 2
    if not isinstance(pair, (tuple, list)) or len(pair) != count:
        got = type(pair).__name__ + (f" of {len(pair)}" if hasattr(pair, "__len__") else "")
        rule = "triple (x_tilde, x_true, own)" if own else "pair (x_tilde, x_true)"
        both = isinstance(pair, (tuple, list)) and len(pair) in (2, 3)
        advice = ": pass both sample_problem and rows of own, or neither" if both else ""
        raise HypergradError(f"{name} must be a {rule}; got a {got}{advice}")
    x_tilde, x_true = (
        rows_of(array, f"{part} of {name}")
        for part, array in zip(("x_tilde", "x_true"), pair[:2], strict=True)
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
    own_part = [own_rows(part, f"own of {name}", len(x_tilde)) for part in pair[2:]]
    return x_tilde, x_true, *own_part


def batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the indices of an epoch's batches, all of one size (one compilation).

    The order depends on seed and epoch alone, so that a resumed run sees the same batches. Samples
    that do not fill a batch are skipped in this epoch; each epoch is shuffled anew. Indices ascend
    within a batch: files are read forwards (HDF5 requires it).
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield np.sort(order[start : start + batch_size])
