"""Checks of records and arrays that are to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hypergrad._foundation.errors import HypergradError

Records = Sequence[Mapping[str, Any]]
Arrays = Mapping[str, ArrayLike]
Floats = NDArray[np.float64]


def check_records(records: Records, *keys: str) -> None:
    require(len(records) > 0, "records must not be empty; got none: run something first")
    missing = [key for key in keys for record in records if key not in record]
    require(not missing, f"a record must have {', '.join(keys)}; got one without {missing[:1]}")


def arrays_of(what: str, given: Arrays, shape: tuple[int, int] | None = None) -> dict[str, Floats]:
    """All as matrices of one shape, finite, and with rows that are pictures of `shape` if given."""
    arrays = {name: np.asarray(value, float) for name, value in given.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    same = len(set(shapes.values())) == 1 and all(a.ndim == 2 and a.size for a in arrays.values())
    require(same, f"{what} must be matrices of one shape, not empty; got {shapes or 'none'}")
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    require(not bad, f"{what} must be finite; got NaN or inf in {', '.join(bad)}")
    n = next(iter(shapes.values()))[1]
    fits = shape is None or (len(shape) == 2 and math.prod(shape) == n)
    require(fits, f"shape must be (h, w) with h w = {n}; got {shape}: a signal has (1, {n})")
    return arrays


def require(holds: bool, message: str) -> None:
    if not holds:
        raise HypergradError(message)
