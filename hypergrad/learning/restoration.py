"""What was learned, applied to a whole picture, a sound or rows: cut, solve, put together."""

from __future__ import annotations

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

__all__ = ["check_observed", "restore"]

Floats = NDArray[np.floating]

# Samples that are cut out at a time, at least: the memory that is taken, whatever the size.
_SAMPLES_AT_A_TIME = 16384

# Samples that are solved at a time: always as many, so that no other size is compiled for anew.
_PIECE = 1024


def restore(operator: SavedOperator, x_tilde: Any, *, stride: int | None = None) -> Floats:
    """A picture, a sound or rows restored by a learned operator, in the shape they came in.

    The observation is cut into overlapping samples of the shape that was learned on, every `stride`
    entries and one more at the end where that does not divide; each is solved by itself, as in
    training, and overlaps are averaged.

    **Arguments**: `x_tilde`, in the units that were learned on (grey in [0, 1]): `(h, w)` or
    `(h, w, channels)` of any size for an operator learned on patches; `(t,)` or `(t, channels)` for
    one learned on sound; `(samples, n)` for one learned on rows. Every channel by itself. `stride`,
    that of the operator by default: 1 averages most and costs most.

    **Returns**: an array of the same shape, not clipped to any range.

    **Errors**: a `ValueError` where the shape does not fit, or an entry is masked or not finite.

    **Cost**: `h w / stride^2` forward solves a channel; memory for 16384 of them, and the picture.

    **Caveat**: it knows the noise (or the quantiser) that it learned on, and no other. What is
    smaller than one sample is continued by its mirror image.

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
        return _solved(operator, x_tilde)
    stride = operator.stride if stride is None else stride
    check_count("stride", stride)
    if stride > min(operator.shape):
        raise HypergradError(
            f"stride must be at most the sides of a sample, {operator.shape}; got {stride}: larger "
            "ones leave gaps"
        )
    if x_tilde.ndim == len(operator.shape):
        return _channel(operator, x_tilde, stride)
    channels = np.moveaxis(x_tilde, -1, 0)
    return np.stack([_channel(operator, channel, stride) for channel in channels], axis=-1)


def _is_of_rows(operator: SavedOperator) -> bool:
    """Rows are samples already: neighbouring ones are not continuations of each other."""
    return len(operator.shape) == 1 and operator.rate is None


def check_observed(operator: SavedOperator, x_tilde: Any) -> None:
    """Refuse an array that the operator was not learned for, or that is not finite."""
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
            f"{x_tilde.dtype} of shape {shape}: choose the operator that goes with it"
        )
    check_finite("x_tilde", x_tilde)


def _solved(operator: SavedOperator, samples: Floats) -> Floats:
    """Samples, one a row, as training saw them."""
    return solve_in_pieces(
        operator.problem,
        samples.astype(operator.problem.dtype),
        solver=operator.solver,
        strategy=operator.strategy,
        piece=_PIECE,
    )[0]


def _channel(operator: SavedOperator, observed: Floats, stride: int) -> Floats:
    """One channel, where it is smaller than a sample continued by its mirror image."""
    missing = [(0, max(0, k - s)) for s, k in zip(observed.shape, operator.shape, strict=True)]
    padded = np.pad(observed, missing, mode="symmetric")
    whole = _overlaps_averaged(
        padded, operator.shape, stride, lambda samples: _solved(operator, samples)
    )
    return whole[tuple(map(slice, observed.shape))]


def _overlaps_averaged(
    observed: Floats, tile: tuple[int, ...], stride: int, solved: Callable[[Floats], Floats]
) -> Floats:
    starts = [_starts(*sides, stride) for sides in zip(observed.shape, tile, strict=True)]
    windows = sliding_window_view(observed, tile)
    total, covered = np.zeros(observed.shape), np.zeros(observed.shape)
    for some in _groups(starts):
        lengths = tuple(map(len, some))
        samples = windows[np.ix_(*some)].reshape(np.prod(lengths), -1)
        pieces = solved(samples).reshape(*lengths, *tile)
        for offset in np.ndindex(tile):  # one entry of every sample: no place occurs twice
            place = np.ix_(*(start + o for start, o in zip(some, offset, strict=True)))
            total[place] += pieces[(..., *offset)]
            covered[place] += 1
    return total / covered


def _starts(extent: int, side: int, stride: int) -> NDArray[np.intp]:
    """Where samples start along one axis: the last one reaches the end."""
    return np.unique(np.append(np.arange(0, extent - side, stride), extent - side))


def _groups(starts: list[NDArray[np.intp]]) -> Iterator[list[NDArray[np.intp]]]:
    """Rows of samples that are solved at a time: what is held does not grow with the picture."""
    first, *others = starts
    across = int(np.prod([len(other) for other in others]))
    rows = max(1, _SAMPLES_AT_A_TIME // across)
    for i in range(0, len(first), rows):
        yield [first[i : i + rows], *others]
