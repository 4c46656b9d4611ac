"""Checks of what the user hands over: the rule, what was got, what to do.

Everything here looks at concrete arrays only. Under `jit`, `grad` or `vmap` the values are not
there yet, so a check lets tracers (and the placeholders that pytree transformations put into
leaves) pass; what goes wrong then shows in the status of the result. It looks at them in NumPy,
since under `jit` JAX would trace the look at a constant, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hypergrad._foundation.arrays import native, refuse_masked
from hypergrad._foundation.errors import HypergradError


def describe(value: Any) -> str:
    """Describe what was received: a plain value as it is, anything else by its type and shape."""
    if value is None or isinstance(value, (str, bool, int, float, complex, type)):
        return repr(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {shape}")


def spelt(number: Any) -> str:
    """A number as a command line reads it back, as short as can be; … while JAX traces it.

    >>> spelt(1e-6), spelt(0.5), spelt(1 / 3), spelt(1000000)
    ('1e-06', '0.5', '0.3333333333333333', '1000000')
    """
    if isinstance(number, Tracer):
        return "…"
    value = np.asarray(number)
    if value.dtype.kind in "iub":
        return str(value)
    short = f"{float(value):g}"
    return short if value.dtype.type(short) == value else str(value)


# ------------------------------------------------------------------------------------------ numbers


def as_inexact(
    value: Any,
    name: str,
    *,
    rule: str = "a number or an array of numbers",
    advice: str = "pass what numpy.asarray makes floats of",
) -> Any:
    """Turn a number or an array into an inexact JAX array, since integers cannot be learned.

    What is not real numbers is refused, and so are masked entries. (An array of truth values is
    data, a binary picture; True alone is no number.) `rule` and `advice` are those of the error.
    """
    array = value
    if not isinstance(value, jax.Array):
        no_number = value is None or isinstance(value, (str, bytes, bool, np.bool_))
        refuse_masked(value, name)
        try:
            array = None if no_number else jnp.asarray(_plain(value))
        except (TypeError, ValueError):
            array = None
    if array is None:
        raise HypergradError(f"{name} must be {rule}; got {_described(value)}: {advice}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise HypergradError(
            f"{name} must be real; got {array.dtype}: split it into its real and its imaginary part"
        )
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def _plain(value: Any) -> Any:
    """As JAX takes it, a list entry by entry; a masked array hides nothing here."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return native(np.asarray(value) if isinstance(value, np.ma.MaskedArray) else value)


def _described(value: Any) -> str:
    """Describe what was received in place of numbers, with its dtype if that is wrong."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind not in "biufc":
        return f"{type(value).__name__} of dtype {dtype}"
    return describe(value)


def cast_leaves(tree: Any, dtype: Any) -> Any:
    """Every float of a pytree as an array of one dtype (a Python float cannot be learned)."""

    floats, rest = eqx.partition(
        tree, lambda leaf: isinstance(leaf, float) or eqx.is_inexact_array(leaf)
    )
    return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), floats), rest)


def inexact(name: str) -> Callable[[Any], Any]:
    """`as_inexact` as the converter of a field of this name."""
    return lambda value: as_inexact(value, name)


def is_concrete(value: Any) -> bool:
    """Return whether the numbers in `value` are concrete."""
    return isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, Tracer)


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity."""
    if not is_concrete(value):
        return
    bad = np.sum(~np.isfinite(np.asarray(value)))
    if bad:
        raise HypergradError(
            f"{name} must be finite; got {bad} NaN or infinite entries out of {np.size(value)}: "
            "remove or replace them first"
        )


def check_positive(owner: object, name: str, *, zero_allowed: bool = False) -> None:
    """Refuse a negative (or, unless allowed, zero) parameter `owner.name`."""
    label = f"{type(owner).__name__}.{name}"
    for value in jax.tree.leaves(getattr(owner, name, None)):
        if not (is_concrete(value) or isinstance(value, (int, float))):
            continue
        check_finite(label, np.asarray(value))
        least = float(np.min(np.asarray(value), initial=np.inf))
        if least < 0 or (least == 0 and not zero_allowed):
            rule = "non-negative" if zero_allowed else "positive"
            raise HypergradError(f"{label} must be {rule}; got {least:g}: pass a {rule} number")


def check_again(name: str, module: eqx.Module) -> None:
    """Repeat the checks that a module and the modules in it passed when they were made.

    Their numbers may have been updated since, and an update of a pytree runs no check.
    """
    inner = jax.tree.leaves_with_path(
        module, is_leaf=lambda node: isinstance(node, eqx.Module) and node is not module
    )
    for path, node in inner:
        if isinstance(node, eqx.Module):
            check_again(name + jax.tree_util.keystr(path), node)
    checks = [vars(kind).get("__check_init__") for kind in type(module).__mro__]
    try:
        for check in filter(None, checks):
            check(module)
    except ValueError as error:
        raise HypergradError(
            f"{error} ({name} was valid when it was made: if an update changed it, take a smaller "
            "step, clip it, or learn its logarithm, as hg.train does)"
        ) from error


# ----------------------------------------------------------------------------------------- settings


# What XLA counts with in 32 bits.
_MOST = 2**31 - 1


def check_count(name: str, value: Any, *, least: int = 1, most: int = _MOST) -> None:
    """Refuse a count that is no whole number, lies below `least` or above `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise HypergradError(
            f"{name} must be a whole number of at least {least}; got {value!r}: "
            f"pass {name}={least} or more"
        )
    if value > most:
        raise HypergradError(f"{name} must be at most {most}; got {value}: pass a smaller one")


def check_counts(name: str, values: Any) -> None:
    """Refuse what is no tuple of whole numbers of at least 1."""
    if not isinstance(values, tuple):
        raise HypergradError(
            f"{name} must be a tuple of whole numbers; got {describe(values)}: pass for example "
            "(2, 3)"
        )
    for i, value in enumerate(values):
        check_count(f"{name}[{i}]", value)


def _one_number(value: Any) -> float:
    """A concrete value as a float; NaN where it is not one real number (True is none)."""
    value = np.asarray(value)
    is_real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    return float(value) if is_real and value.ndim == 0 else np.nan


def check_number(name: str, value: Any, *, above: float = 0.0) -> None:
    """Refuse a setting that is not one finite number above `above`."""
    if isinstance(value, Tracer):
        return
    if not above < _one_number(value) < np.inf:
        raise HypergradError(
            f"{name} must be one finite number above {above:g}; got {_shown(value)}: pass a float"
        )


def check_fraction(
    name: str, value: Any, advice: str, *, zero_allowed: bool = False, one_allowed: bool = False
) -> None:
    """Refuse a setting that is not one number between 0 and 1; the two themselves where allowed."""
    if isinstance(value, Tracer):
        return
    number = _one_number(value)
    if 0 < number < 1 or (zero_allowed and number == 0) or (one_allowed and number == 1):
        return
    interval = ("[" if zero_allowed else "(") + "0, 1" + ("]" if one_allowed else ")")
    raise HypergradError(f"{name} must lie in {interval}; got {_shown(value)}: {advice}")


def _shown(value: Any) -> str:
    """A setting in an error: text with its quotes, an array without its type."""
    return str(value) if is_concrete(value) else describe(value)


def check_flag(name: str, value: Any) -> None:
    """Refuse a switch that is neither True nor False: any text would count as True."""
    if not isinstance(value, bool):
        raise HypergradError(
            f"{name} must be True or False; got {describe(value)}: try {name}=True"
        )
