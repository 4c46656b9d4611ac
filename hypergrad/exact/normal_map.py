"""The optimality conditions of the lower level as one equation: a normal map, smoothed or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.chambolle_pock import (
    ProxArguments,
    StepSizes,
    attainable_tolerance,
    margin_of,
    pair_scale,
    rounding_of_pair,
)
from hypergrad.problem.functions import AbstractFunction, prox, prox_conjugate
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose

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


class NormalMap(eqx.Module):
    """The normal map of a batch, with smoothing `t` per sample."""

    problem: LowerLevel
    x_tilde: Float[Array, "batch n"]
    sizes: StepSizes

    def pair(self, z: ProxArguments, t: Array) -> tuple[Array, Array]:
        """Return `r`, `y`."""
        r = smoothed(prox, self.problem.G, z.z_P, self.sizes.tau, t)
        return r, smoothed(prox_conjugate, self.problem.F, z.z_D, self.sizes.sigma, t)

    def arguments(self, r: Array, y: Array) -> ProxArguments:
        """Return the prox arguments of a solution `r`, `y`."""
        K, (tau, sigma, _) = self.problem.K, self.sizes
        z_D = y + sigma * apply(K, self.x_tilde + r)
        return ProxArguments(z_D, r - tau * apply_transpose(K, y))

    def scaled(self, z: ProxArguments) -> tuple[Array, Array]:
        """Return the scaled unknowns, primal first."""
        tau, sigma, _ = self.sizes
        return z.z_P / jnp.sqrt(tau), z.z_D / jnp.sqrt(sigma)

    def moved(self, z: ProxArguments, length: Array, by: tuple[Array, Array]) -> ProxArguments:
        """Return `z` moved along a scaled direction."""
        tau, sigma, _ = self.sizes
        length = length[..., None]
        return ProxArguments(
            z.z_D + length * jnp.sqrt(sigma) * by[1], z.z_P + length * jnp.sqrt(tau) * by[0]
        )

    def __call__(self, z: ProxArguments, t: Array) -> tuple[Array, Array]:
        """Return the (scaled) distance of `z` from the arguments that its pair gives."""
        r, y = self.pair(z, t)
        wanted = self.arguments(r, y)
        return self.scaled(ProxArguments(z.z_D - wanted.z_D, z.z_P - wanted.z_P))

    def relative(self, z: ProxArguments, t: Array) -> Array:
        """Return the size of the map relative to that of the pair, at the pair's own steps.

        See `hypergrad.chambolle_pock.residuals`. The map divided by `tau` and `sigma` is the misfit
        of the optimality conditions, whatever the step sizes.
        """
        return self.judge(z, t)[0]

    def judge(self, z: ProxArguments, t: Array) -> tuple[Array, Array]:
        """Return the relative size, and that below which `z` counts as a solution."""
        (tau, sigma, _), (r, y) = self.sizes, self.pair(z, t)
        wanted, x = self.arguments(r, y), self.x_tilde + r
        K_x, KT_y = (wanted.z_D - y) / sigma, (r - wanted.z_P) / tau
        own = pair_scale(self.problem, self.sizes, x, r, y, K_x, KT_y)
        in_z_P = (own.t / tau)[..., None] * (z.z_P - wanted.z_P)
        residual = own.residual(in_z_P, (own.s / sigma)[..., None] * (z.z_D - wanted.z_D))
        rounding = rounding_of_pair(self.problem, x, own, self.sizes)
        return residual, attainable_tolerance(rounding)

    def margin(self, z: ProxArguments) -> Array:
        """Return the relative distance to the nearest kink (infinite if unknown)."""
        margin = margin_of(self.problem, self.sizes, z)
        return jnp.nan_to_num(margin, nan=jnp.inf, posinf=jnp.inf)
