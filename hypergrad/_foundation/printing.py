"""Print results, whatever a transformation of JAX or of a pytree has made of their numbers."""

from __future__ import annotations

import enum
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_Result = TypeVar("_Result")


def as_sentence(sentence: Callable[[_Result], str]) -> Callable[[_Result], str]:
    """Make a `__repr__` of a method that writes a sentence about the numbers in a pytree.

    Without numbers to read (a tracer, a `ShapeDtypeStruct`, a donated array, nothing at all) it
    prints the fields as equinox does.
    """

    @functools.wraps(sentence)
    def __repr__(self: _Result) -> str:  # noqa: N807 becomes the method
        leaves = jax.tree.leaves(self)
        readable = bool(leaves) and all(map(_is_readable, leaves))
        return sentence(self) if readable else eqx.tree_pformat(self)

    return __repr__


def _is_readable(leaf: Any) -> bool:
    """Return whether a leaf holds numbers that this process can read now."""
    if isinstance(leaf, (Tracer, bool)):
        return False
    if isinstance(leaf, jax.Array) and (leaf.is_deleted() or not leaf.is_fully_addressable):
        return False
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return isinstance(leaf, (int, float))
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in (np.integer, np.floating, np.bool_))


def worst(values: Any, spelling: str = ".1e", *, of: Callable[..., Any] = np.max) -> str:
    """The largest of some numbers (or what `of` makes of them) in words.

    >>> worst(np.array([1e-3, 2e-3])), worst(3, ".0f"), worst(None), worst(np.zeros(0))
    ('2.0e-03', '3', 'unknown', 'none')
    """
    if values is None:
        return "unknown"
    values = np.asarray(values)
    return format(float(of(values)), spelling) if values.size else "none"


def extent(values: Any, spelling: str) -> str:
    """A number, or the least and the largest of several.

    >>> extent(np.array(0.5), "g"), extent(np.array([1.0, 3.0]), "g")
    ('0.5', '1 to 3')
    """
    least, largest = worst(values, spelling, of=np.min), worst(values, spelling)
    return largest if np.size(values) < 2 else f"{least} to {largest}"


def shares(codes: Any, kinds: type[enum.IntEnum]) -> str:
    """The share of each kind in words, the most frequent first."""
    if codes is None or not np.size(codes):
        return "unknown" if codes is None else "none"
    values = np.asarray(codes).ravel().tolist()
    counted = Counter(values).most_common()
    return ", ".join(f"{_label(code, kinds)} {100 * n / len(values):.3g} %" for code, n in counted)


def _label(code: Any, kinds: type[enum.IntEnum]) -> str:
    """The name in words of a code; a code without a name as it is."""
    try:
        return kinds(code).name.lower().replace("_", " ")
    except ValueError:
        return str(code)
