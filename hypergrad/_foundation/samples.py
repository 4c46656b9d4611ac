"""Choose between two results per sample, take norms, and flatten pytrees."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
    return power_of_two(
        functools.reduce(jnp.maximum, [jnp.max(jnp.abs(v), axis=-1) for v in vectors])
    )


def power_of_two(size: Array) -> Array:
    """Return the power of two next below a size (1 if that is 0 or not finite), as a constant."""
    # Its exponent bits alone, in few operations: dozens of norms are in every program.
    bits = np.uint32 if size.dtype.itemsize == 4 else np.uint64
    exponent = np.asarray(np.inf, size.dtype).view(bits)
    masked = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(size), bits) & exponent
    power = jax.lax.bitcast_convert_type(masked, size.dtype)
    return jax.lax.select((power > 0) & (power < np.inf), power, jnp.ones_like(power))


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
