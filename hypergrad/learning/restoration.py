"""Restore an image, a sound or rows with a learned operator: cut, solve, average overlaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hypergrad._foundation.arrays import unmasked
from hypergrad._foundation.checks import check_count, check_finite
from hypergrad._foundation.errors import HypergradError
from hypergrad.learning import solve_in_pieces
from hypergrad.learning.saved_operator import SavedOperator
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import FilterBank

__all__ = ["check_observed", "restore"]

Floats = NDArray[np.floating]

# Samples that are cut out at once: limits the memory, whatever the size of the image.
_SAMPLES_AT_ONCE = 16384

# Samples that are solved at once: a fixed number, so that the solve is compiled once.
_CHUNK = 1024


def restore(operator: SavedOperator, x_tilde: Any, *, stride: int | None = None) -> Floats:
    """Restore an image, a sound or rows with a learned operator.

    With a matrix K the observation is cut into overlapping samples of the shape used in training,
    every `stride` entries (and once more at the end, if `stride` does not divide the size); each is
    solved as in training, and overlaps are averaged. With a `FilterBank` an image is solved as a
    whole, whatever its shape.

    **Arguments**: `x_tilde`, in the units of the training data (grey values in [0, 1]): `(h, w)` or
    `(h, w, channels)` of any size for an operator learned on patches; `(t,)` or `(t, channels)` for
    one learned on sound; `(samples, n)` for one learned on rows; channels are restored separately.
    `stride`, by default that of the operator: 1 averages most and costs most.

    **Returns**: an array of the same shape, not clipped to any range.

    **Errors**: a `HypergradError` if the shape does not fit, or an entry is masked or not finite.

    **Cost**: `h w / stride^2` forward solves per channel, memory for 16384 samples and the image; a
    single forward solve with a `FilterBank`, compiled for each new shape.

    **Caveat**: it is trained for one kind of noise (or quantiser). Observations smaller than one
    sample are extended by reflection.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences2((2, 2)), F=hg.L1(0.1),
    ...                         G=hg.Quadratic(1.0))
    >>> flat = hg.SavedOperator(problem, hg.ChambollePock(20), hg.Truncation(1), (2, 2), stride=1)
    >>> hg.restore(flat, np.ones((5, 7, 3))).shape
    (5, 7, 3)
    """
    x_tilde = unmasked(x_tilde, "x_tilde")
    check_observed(operator, x_tilde)
    if _is_of_rows(operator):
        return _solved(operator.problem, operator, x_tilde)
    if isinstance(operator.problem.K, FilterBank):
        return _per_channel(operator, x_tilde, lambda channel: _whole(operator, channel))
    stride = operator.stride if stride is None else stride
    check_count("stride", stride)
    if stride > min(operator.shape):
        raise HypergradError(
            f"stride must be at most the sides of a sample, {operator.shape}; got {stride}: larger "
            "ones leave gaps"
        )
    return _per_channel(operator, x_tilde, lambda channel: _channel(operator, channel, stride))


def _per_channel(
    operator: SavedOperator, x_tilde: Floats, restore_one: Callable[[Floats], Floats]
) -> Floats:
    if x_tilde.ndim == len(operator.shape):
        return restore_one(x_tilde)
    channels = np.moveaxis(x_tilde, -1, 0)
    return np.stack([restore_one(channel) for channel in channels], axis=-1)


def _is_of_rows(operator: SavedOperator) -> bool:
    """Return whether rows are samples already, which do not overlap."""
    return len(operator.shape) == 1 and operator.rate is None


def check_observed(operator: SavedOperator, x_tilde: Any) -> None:
    """Raise an error for an array that does not fit the operator, or is not finite."""
    tile, shape = operator.shape, x_tilde.shape
    if _is_of_rows(operator):
        rule, fits = f"rows (samples, {tile[0]})", len(shape) == 2 and shape[1] == tile[0]
    elif len(tile) == 1:
        rule, fits = "a sound (t,) or (t, channels)", len(shape) in (1, 2)
    else:
        rule, fits = "a picture (h, w) or (h, w, channels)", len(shape) in (2, 3)
    if not fits or x_tilde.size == 0 or x_tilde.dtype.kind not in "fiu":
        raise HypergradError(
            f"x_tilde must be {rule} for an operator learned on samples of shape {tile}; got "
            f"{x_tilde.dtype} of shape {shape}: choose an operator for this shape"
        )
    check_finite("x_tilde", x_tilde)


def _solved(
    problem: LowerLevel, operator: SavedOperator, samples: Floats, chunk: int = _CHUNK
) -> Floats:
    """Solve samples, one per row, as in training."""
    return solve_in_pieces(
        problem,
        samples.astype(problem.dtype),
        solver=operator.solver,
        strategy=operator.strategy,
        piece=chunk,
    )[0]


def _whole(operator: SavedOperator, observed: Floats) -> Floats:
    """Restore an image as one sample, by the same filters at its shape."""
    K: Any = operator.problem.K
    problem = dataclasses.replace(operator.problem, K=K.with_image_shape(observed.shape))
    return _solved(problem, operator, observed.reshape(1, -1), chunk=1).reshape(observed.shape)


def _channel(operator: SavedOperator, observed: Floats, stride: int) -> Floats:
    """Restore one channel; if it is smaller than a sample, extend it by reflection."""
    missing = [(0, max(0, k - s)) for s, k in zip(observed.shape, operator.shape, strict=True)]
    padded = np.pad(observed, missing, mode="symmetric")
    whole = _overlaps_averaged(
        padded, operator.shape, stride, lambda samples: _solved(operator.problem, operator, samples)
    )
    return whole[tuple(map(slice, observed.shape))]


def _overlaps_averaged(
    observed: Floats, tile: tuple[int, ...], stride: int, solve: Callable[[Floats], Floats]
) -> Floats:
    """Cut an array into overlapping tiles, solve them, and average them where they overlap."""
    starts = [_starts(*sides, stride) for sides in zip(observed.shape, tile, strict=True)]
    windows = sliding_window_view(observed, tile)
    total, covered = np.zeros(observed.shape), np.zeros(observed.shape)
    for group in _groups(starts):
        lengths = tuple(map(len, group))
        samples = windows[np.ix_(*group)].reshape(np.prod(lengths), -1)
        tiles = solve(samples).reshape(*lengths, *tile)
        for offset in np.ndindex(tile):  # one entry per tile: no index occurs twice
            place = np.ix_(*(start + o for start, o in zip(group, offset, strict=True)))
            total[place] += tiles[(..., *offset)]
            covered[place] += 1
    return total / covered


def _starts(extent: int, side: int, stride: int) -> NDArray[np.intp]:
    """Return where samples start along one axis; the last one reaches the end."""
    return np.unique(np.append(np.arange(0, extent - side, stride), extent - side))


def _groups(starts: list[NDArray[np.intp]]) -> Iterator[list[NDArray[np.intp]]]:
    """Yield groups of rows of samples; their memory does not grow with the image."""
    first, *others = starts
    across = int(np.prod([len(other) for other in others]))
    rows = max(1, _SAMPLES_AT_ONCE // across)
    for i in range(0, len(first), rows):
        yield [first[i : i + rows], *others]
