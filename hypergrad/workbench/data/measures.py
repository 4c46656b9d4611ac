"""Measures of a restored signal against the truth, in decibels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hypergrad._foundation.arrays import refuse_masked
from hypergrad.workbench.data._checks import require


def psnr(x: ArrayLike, x_true: ArrayLike, peak: float = 1.0) -> float:
    """`10 log10(peak^2 / mean((x - x_true)^2))` in dB, the mean over all entries of all samples.

    Infinite where `x` equals `x_true`. ValueError where the shapes differ.

    >>> round(psnr([0.1, 0.0], [0.0, 0.1]), 9)
    20.0
    """
    return _decibels(np.full(np.shape(x_true), peak), x, x_true)


def snr(x: ArrayLike, x_true: ArrayLike) -> float:
    """`10 log10(sum(x_true^2) / sum((x - x_true)^2))` in dB, the sums over all samples.

    Infinite where `x` equals `x_true`. ValueError where the shapes differ.

    >>> round(snr([1.1, 0.0], [1.0, 0.0]), 9)
    20.0
    """
    return _decibels(x_true, x, x_true)


def _decibels(signal: ArrayLike, x: ArrayLike, x_true: ArrayLike) -> float:
    same, got = np.shape(x) == np.shape(x_true), f"{np.shape(x)} and {np.shape(x_true)}"
    require(same, "x and x_true must have the same shape", got, "compare like with like")
    for name, array in {"x": x, "x_true": x_true}.items():
        refuse_masked(array, name)
    signal, x, x_true = (np.asarray(a, float) for a in (signal, x, x_true))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10(np.sum(signal**2) / np.sum((x - x_true) ** 2)))
