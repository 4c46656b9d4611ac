"""Check pairs of observed and true samples, and draw batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.rows import Rows, rows_of
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["Pair", "batches", "of_one_dtype"]

Pair = tuple[Any, Any]


def of_one_dtype(
    problem: LowerLevel, data: Pair, validation: Pair | None
) -> tuple[LowerLevel, tuple[Rows, Rows], tuple[Rows, Rows] | None]:
    """Return the problem and the checked data in one dtype."""
    pair, held_out = check_pair("data", data, problem.n), None
    if validation is not None:
        held_out = check_pair("validation", validation, problem.n)
    dtype = jnp.result_type(problem.dtype, pair[0].dtype)
    pair, held_out = jax.tree.map(lambda rows: rows.astype(dtype), (pair, held_out))
    return problem.astype(dtype), pair, held_out


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
