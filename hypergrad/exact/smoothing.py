"""Proxes with a quadratic added, and their Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.problem.functions import AbstractFunction

__all__ = ["Jacobian", "Prox", "jacobian", "smoothed"]

Prox = Callable[[AbstractFunction, Array, Array], Array]


class Jacobian(NamedTuple):
    """A prox Jacobian of each sample: its eigenvalues in [0, 1], in a basis (None: the usual)."""

    values: Float[Array, "batch size"]
    basis: Float[Array, "batch size size"] | None

    def into(self, v: Array) -> Array:
        """Return the coordinates in the basis."""
        return v if self.basis is None else jnp.einsum("bij,bi->bj", self.basis, v)

    def out_of(self, v: Array) -> Array:
        """Return the vector with these coordinates in the basis."""
        return v if self.basis is None else jnp.einsum("bij,bj->bi", self.basis, v)


def smoothed(prox: Prox, f: AbstractFunction, z: Array, step: Array, t: Array) -> Array:
    """Return the prox of `f` (or `f*`) with `(t/step) ||.||^2 / 2` added, `t` per sample."""
    return jax.vmap(lambda z, t: prox(f, z / (1 + t), step / (1 + t)))(z, t)


def jacobian(prox: Prox, f: AbstractFunction, z: Array, step: Array, t: Array) -> Jacobian:
    """Return the Jacobian of the smoothed prox, diagonal if f is separable, else diagonalised."""
    if f.separable:
        value, pull = jax.vjp(lambda z: smoothed(prox, f, z, step, t), z)
        return Jacobian(jnp.clip(pull(jnp.ones_like(value))[0], 0.0, 1.0), None)
    dense = jax.vmap(jax.jacfwd(lambda z, t: prox(f, z / (1 + t), step / (1 + t))))(z, t)
    values, basis = jnp.linalg.eigh((dense + dense.swapaxes(-1, -2)) / 2)
    return Jacobian(jnp.clip(values, 0.0, 1.0), basis)
