"""Losses: scalars for a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["Loss", "OnSamples", "half_mean_squared_error", "of_rows"]

# A scalar for a whole batch, from x and x_true. Its value is never one of earlier numbers: the
# arrays and floats of a pytree (an equinox module, `jax.tree_util.Partial`) are arguments of the
# compiled program; numbers of other objects, functions and `functools.partial` are compiled in, and
# compared at each call. A lambda in a loop that closes over a number that changes is therefore a
# new program each time, and a module with that number is not. Not seen are numbers behind an
# attribute of a Python module, and those of a function that is jitted by itself (JAX's rule).
Loss = Callable[[Array, Array], Array]


def half_mean_squared_error(
    x: Float[Array, "*batch n"], x_true: Float[Array, "*batch n"]
) -> Float[Array, ""]:
    """`0.5 ||x - x_true||^2`, summed over the last axis and averaged over the batch.

    >>> print(half_mean_squared_error(jnp.ones((3, 4)), jnp.zeros((3, 4))))
    2.0
    """
    return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))


class OnSamples(eqx.Module):
    """A loss with its full value, but whose gradient is that of the chosen samples alone."""

    loss: Loss
    chosen: Bool[Array, "*batch"]

    def __call__(self, x: Array, x_true: Array) -> Array:
        return self.loss(jnp.where(self.chosen[..., None], x, jax.lax.stop_gradient(x)), x_true)


def of_rows(loss: Loss, x_true: Float[Array, "*batch n"]) -> Callable[[Array], Array]:
    """The loss of rows `(batch, n)`; the loss itself sees the batch as it was given."""
    return lambda x: loss(x.reshape(x_true.shape), x_true)
