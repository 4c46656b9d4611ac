"""Checks of what the user hands over: the rule, what was got, what to do.

Everything here looks at concrete arrays only. Under `jit`, `grad` or `vmap` the values are not
there yet, so a check lets tracers (and the placeholders that pytree transformations put into
leaves) pass; what goes wrong then shows in the status of the result. It looks at them in NumPy,
since under `jit` JAX would trace the look at a constant, too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def as_inexact(value: Any) -> Any:
    """Turn a number or an array into an inexact JAX array, since integers cannot be learned."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def is_concrete(value: Any) -> bool:
    """Whether the numbers in `value` can be looked at now."""
    return isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, Tracer)


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity."""
    if not is_concrete(value):
        return
    bad = np.sum(~np.isfinite(np.asarray(value)))
    if bad:
        raise ValueError(
            f"{name} must be finite; got {bad} NaN or infinite entries out of {np.size(value)}: "
            "remove or replace them first"
        )


def check_positive(owner: object, name: str, *, zero_allowed: bool = False) -> None:
    """Refuse a negative (or, unless allowed, zero) parameter `owner.name`."""
    value = getattr(owner, name)
    if not is_concrete(value):
        return
    label = f"{type(owner).__name__}.{name}"
    check_finite(label, value)
    least = float(np.min(np.asarray(value))) if np.size(value) else 0.0
    if least < 0 or (least == 0 and not zero_allowed):
        rule = "non-negative" if zero_allowed else "positive"
        raise ValueError(f"{label} must be {rule}; got {least:g}: pass a {rule} number")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse a count that is no whole number or lies below `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}; got {value!r}: "
            f"pass {name}={least} or more"
        )


def check_number(name: str, value: Any, *, above: float = 0.0) -> None:
    """Refuse a scalar setting that is not finite or does not lie above `above`."""
    if not is_concrete(value):
        return
    value = np.asarray(value)
    if np.ndim(value) != 0 or not np.isfinite(value) or not value > above:
        raise ValueError(f"{name} must be one finite number above {above:g}; got {value}")
