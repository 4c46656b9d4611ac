"""Signals with jumps: rows of a measured disparity map."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hypergrad.workbench.data._checks import one_of, require
from hypergrad.workbench.data.samples import Floats, Samples, noisy

DISPARITY_ROWS = {"train": (0, 300), "test": (350, 500)}  # a gap, since neighbouring rows are alike
DISPARITY_PEAK = 60.0  # pixels; the largest measured disparity is 59.9
MEASURED = 0.9  # of the pixels of a window, at least; the others are filled in


def disparity_rows(
    split: Literal["train", "test"], *, length: int | None = None, noise: float = 0.1, seed: int
) -> Samples:
    """Rows of a measured disparity map, piecewise smooth with jumps, with Gaussian noise added.

    Rows 0-299 train, 350-499 test, cut side by side to `length` pixels (None: the whole row, 741)
    and divided by 60 pixels: `x_true` in [0.1, 1], `noise` in the same units. A pixel without a
    measurement (+inf in the map) takes the smaller, that is the farther, of the nearest measured
    ones left and right of it: a jump stays one jump. Windows more than a tenth unmeasured are left
    out, so up to a tenth of `x_true` is a guess. The test rows have far fewer jumps than the
    training rows. The map: `skimage.data.stereo_motorcycle`, Scharstein et al., GCPR 2014.

    >>> disparity_rows("test", length=128, seed=0).shape
    (128,)
    """
    one_of("split", split, DISPARITY_ROWS)
    import skimage.data

    first, last = DISPARITY_ROWS[split]
    rows = skimage.data.stereo_motorcycle()[2][first:last].astype(float)
    width = rows.shape[1]
    n = width if length is None else length
    require(1 <= n <= width, f"length must be from 1 to {width}", length, "choose another")
    across = width // n
    filled, measured = (a[:, : across * n].reshape(-1, n) for a in (_fill(rows), np.isfinite(rows)))
    kept = np.flatnonzero(measured.mean(axis=1) >= MEASURED)
    x_true, source = filled[kept] / DISPARITY_PEAK, tuple(f"row {i}" for i in range(first, last))
    x_tilde = noisy(x_true, noise, np.random.default_rng(seed))
    return Samples(x_tilde, x_true, (n,), source, kept // across)


def _fill(rows: Floats) -> Floats:
    """Each unmeasured pixel replaced by the smaller of its nearest measured ones in the row."""

    def carried_right(rows: Floats) -> Floats:
        columns = np.where(np.isfinite(rows), np.arange(rows.shape[1]), 0)
        return np.take_along_axis(rows, np.maximum.accumulate(columns, axis=1), axis=1)

    # fmin prefers a number to NaN: the map has +inf, its documentation says NaN.
    return np.fmin(carried_right(rows), carried_right(rows[:, ::-1])[:, ::-1])
