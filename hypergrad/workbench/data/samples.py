"""Pairs of observed and true samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hypergrad._foundation.arrays import refuse_masked
from hypergrad.workbench.data._checks import require

Floats = NDArray[np.float64]
Split = Literal["train", "choose", "test"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Observations `x_tilde` of ground truths `x_true`, both `(N, n)`, float64.

    `shape` is that of one sample before flattening, `(8, 8)` or `(160,)`. Sample `i` comes from
    `source[source_index[i]]`: a photograph, a row or a file. ValueError where the shapes disagree.

    >>> pair = Samples(np.zeros((2, 4)), np.ones((2, 4)), (2, 2), ("a", "b"), np.array([0, 1]))
    >>> len(pair), pair.take([1]).x_true.shape
    (2, (1, 4))
    """

    x_tilde: Floats
    x_true: Floats
    shape: tuple[int, ...]
    source: tuple[str, ...]
    source_index: NDArray[np.intp]

    def __post_init__(self) -> None:
        for name in ("x_tilde", "x_true"):
            refuse_masked(getattr(self, name), name)
        expected = (len(self.source_index), math.prod(self.shape))
        got = self.x_tilde.shape, self.x_true.shape
        rule = f"x_tilde and x_true must be (len(source_index), prod(shape)) = {expected}"
        require(got == (expected, expected), rule, got, "flatten each sample to one row")

    def __len__(self) -> int:
        return len(self.x_true)

    def astype(self, dtype: Any) -> Samples:
        """The same samples in another precision.

        >>> pair = Samples(np.zeros((1, 2)), np.ones((1, 2)), (2,), ("a",), np.array([0]))
        >>> pair.astype(np.float32).x_true.dtype
        dtype('float32')
        """
        return replace(self, x_tilde=self.x_tilde.astype(dtype), x_true=self.x_true.astype(dtype))

    def take(self, indices: slice | Sequence[int] | NDArray[Any]) -> Samples:
        """The samples at `indices`: a slice, integers or a mask, as NumPy reads them."""
        rows = self.x_tilde[indices], self.x_true[indices]
        return Samples(*rows, self.shape, self.source, self.source_index[indices])


def stacked(
    truths: Mapping[str, Floats], shape: tuple[int, ...], observe: Callable[[Floats], Floats]
) -> Samples:
    """The ground truths by name, one below the other, and what is observed of them."""
    x_true = np.concatenate(list(truths.values()))
    index = np.repeat(np.arange(len(truths)), [len(rows) for rows in truths.values()])
    return Samples(observe(x_true), x_true, shape, tuple(truths), index)


def noisy(x_true: Floats, noise: float, rng: np.random.Generator) -> Floats:
    usable = 0 <= noise < math.inf
    require(usable, "noise must be a standard deviation, 0 or more", noise, "choose another")
    return x_true + noise * rng.standard_normal(x_true.shape)
