"""Measure the quality of a restored signal against the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hypergrad._foundation.arrays import refuse_masked
from hypergrad._foundation.errors import HypergradError


def psnr(x: ArrayLike, x_true: ArrayLike, peak: float = 1.0) -> float:
    """Return `10 log10(peak^2 / mean((x - x_true)^2))` in dB, the mean over all entries.

    **Arguments**: `x`, `x_true`: arrays of one shape, samples or images. `peak`: the largest
    possible value. Defaults to 1.

    **Returns**: one number; infinite where `x` equals `x_true`.

    **Raises**: `HypergradError` if the shapes differ, or an entry is masked.

    >>> round(psnr([0.1, 0.0], [0.0, 0.1]), 9)
    20.0
    """
    return _decibels(np.full(np.shape(x_true), peak), x, x_true)


def snr(x: ArrayLike, x_true: ArrayLike) -> float:
    """Return `10 log10(sum(x_true^2) / sum((x - x_true)^2))` in dB, the sums over all samples.

    Infinite where `x` equals `x_true`.

    **Raises**: `HypergradError` if the shapes differ, or an entry is masked.

    >>> round(snr([1.1, 0.0], [1.0, 0.0]), 9)
    20.0
    """
    return _decibels(x_true, x, x_true)


def ssim(x: ArrayLike, x_true: ArrayLike, peak: float = 1.0) -> float:
    """Return the structural similarity of images, at most 1, averaged over them.

    By scikit-image, with its uniform 7×7 window.

    **Arguments**: `x`, `x_true`: images `(..., h, w)` of one shape. `peak`: the largest possible
    value. Defaults to 1.

    **Raises**: `HypergradError` if the shapes differ, an entry is masked, or an image is smaller
    than the window.

    **Source**: Wang, Bovik, Sheikh & Simoncelli, IEEE Trans. Image Processing 13 (2004).

    >>> ssim(np.ones((8, 8)), np.ones((8, 8)))
    1.0
    """
    x, x_true = _alike(x, x_true)
    if x.ndim < 2 or min(x.shape[-2:]) < _WINDOW:
        raise HypergradError(
            f"images must be at least {_WINDOW} x {_WINDOW} pixels; got shape {x.shape}: reshape "
            "vectors to images"
        )
    from skimage.metrics import structural_similarity

    pairs = zip(*(a.reshape(-1, *a.shape[-2:]) for a in (x, x_true)), strict=True)
    values = [structural_similarity(a, b, data_range=peak) for a, b in pairs]
    return float(np.mean(np.asarray(values, float)))


_WINDOW = 7


def _alike(x: ArrayLike, x_true: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(x) != np.shape(x_true):
        raise HypergradError(
            f"x and x_true must have the same shape; got {np.shape(x)} and {np.shape(x_true)}: "
            "compare like with like"
        )
    for name, array in {"x": x, "x_true": x_true}.items():
        refuse_masked(array, name)
    return np.asarray(x, float), np.asarray(x_true, float)


def _decibels(signal: ArrayLike, x: ArrayLike, x_true: ArrayLike) -> float:
    x, x_true = _alike(x, x_true)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.sum(np.asarray(signal, float) ** 2)
        return float(10 * np.log10(power / np.sum((x - x_true) ** 2)))
