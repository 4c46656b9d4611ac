"""Choosing between two results sample by sample."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["where"]


def where(chosen: Array, new: Any, old: Any) -> Any:
    """`new` for the chosen samples, `old` for the others: pytrees of `(..., size)`."""
    return jax.tree.map(lambda a, b: jnp.where(chosen[..., None], a, b), new, old)
