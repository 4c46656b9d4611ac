"""Arrays of NumPy that JAX does not take as they are: masked ones, and those of foreign bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from hypergrad._foundation.errors import HypergradError


def refuse_masked(value: Any, name: str) -> None:
    """Refuse an array, or a list of arrays, that hides entries: what lies below a mask is no data.

    **Errors**: a `ValueError` that counts the masked entries.

    >>> refuse_masked(np.ma.masked_equal([1.0, 9.0], 9.0), "x")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    hypergrad.HypergradError: x must have no masked entries; got 1 out of 2: fill or drop ...
    """
    if masked := _masked_entries(value):
        raise HypergradError(
            f"{name} must have no masked entries; got {masked} out of {np.size(value)}: fill or "
            "drop the masked entries first"
        )


def unmasked(value: Any, name: str) -> np.ndarray:
    """Return the value as an array of NumPy, which must not hide entries."""
    refuse_masked(value, name)
    return np.asarray(value)


def _masked_entries(value: Any) -> int:
    if isinstance(value, np.ma.MaskedArray):
        return int(np.ma.count_masked(value))
    return sum(map(_masked_entries, value)) if isinstance(value, (list, tuple)) else 0


def native(value: Any) -> Any:
    """Convert an array to the byte order of this machine, and long doubles to doubles.

    What needs neither is returned as it is, unread.

    >>> native(np.ones(2, ">f4")).dtype
    dtype('float32')
    """
    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iuf":
        return value
    is_long = dtype.kind == "f" and dtype.itemsize > 8
    fitting = np.dtype(np.float64) if is_long else dtype.newbyteorder("=")
    return value if dtype == fitting else np.asarray(value, fitting)
