"""Choose between two results per sample, take norms, and flatten pytrees."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


def where(chosen: Array, new: Any, old: Any) -> Any:
    """`new` for the chosen samples, `old` for the others: pytrees of `(...)` or `(..., size)`."""

    def either(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim)), a, b)

    return jax.tree.map(either, new, old)


def magnitude(*vectors: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """Return the power of two next below the largest entry per sample (1 if there is none).

    What is divided by it can be squared without under- or overflow, and loses no digit.
    """
    return power_of_two(jnp.max(jnp.stack([jnp.max(jnp.abs(v), axis=-1) for v in vectors]), axis=0))


def power_of_two(size: Array) -> Array:
    """Return the power of two next below a size (1 if that is 0 or not finite), as a constant."""
    size = jax.lax.stop_gradient(size)
    # Its exponent bits alone: `jnp.frexp` would be most of a small program.
    bits = jnp.uint32 if size.dtype.itemsize == 4 else jnp.uint64
    exponent = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, size.dtype), bits)
    power = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(size, bits) & exponent, size.dtype
    )
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1.0)


def safe_norm(v: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """Return the Euclidean norm per sample; squares neither underflow nor overflow."""
    scale = magnitude(v)
    return scale * jnp.linalg.norm(v / scale[..., None], axis=-1)


def float_vector(tree: Any) -> Float[Array, " size"]:
    """Return every float of a pytree in one vector.

    >>> float_vector({"a": jnp.ones(2), "b": jnp.zeros((1, 1)), "c": "x"}).tolist()
    [1.0, 1.0, 0.0]
    """
    return ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0]
