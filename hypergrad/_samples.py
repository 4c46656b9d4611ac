"""Choosing between two results sample by sample."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["where"]


def where(chosen: Array, new: Any, old: Any) -> Any:
    """`new` for the chosen samples, `old` for the others: pytrees of `(...)` or `(..., size)`."""

    def either(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim)), a, b)

    return jax.tree.map(either, new, old)
