"""Smooth functions."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import check_finite, check_positive, inexact
from hypergrad.problem.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.problem.functions._projections import check_length, indicator_of, spread

__all__ = ["Quadratic", "Zero"]


class Quadratic(AbstractFunction):
    """`f(v) = (weight / 2) ||v - center||^2`.

    A weight of 0 is the zero function: the prox is the identity, and the conjugate the indicator of
    `{0}`. So is a weight of 0 in one coordinate or block, there.

    **Arguments**:

    - `weight`: at least 0; a number, or one for each coordinate or block of coordinates.
    - `center`: the minimiser, of the same forms. Defaults to 0.

    **Errors**: a `HypergradError` for a negative weight, and for numbers that are not finite.

    **Caveat**: where a weight is 0, `f` is not strongly convex: `MatrixFree` and
    `ConjugateGradients`, which divide by the curvature of G, then take CGLS instead.
    `hypergrad.train` refuses to learn a weight of 0, since it learns the logarithm.

    >>> print(Quadratic(2.0, center=1.0)(jnp.array([2.0, -2.0])))
    10.0
    >>> zero = Quadratic(0.0)
    >>> print(zero.prox(jnp.array([2.0]), 1.0), zero.conjugate(jnp.array([2.0])))
    [2.] inf
    """

    weight: Float[Array, "..."] = eqx.field(converter=inexact("Quadratic.weight"))
    center: Float[Array, "..."] = eqx.field(converter=inexact("Quadratic.center"), default=0.0)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    separable: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "weight", zero_allowed=True)
        check_finite("Quadratic.center", self.center)

    def __call__(self, v: Vector) -> Values:
        weight, center = spread(self.weight, v), spread(self.center, v)
        return jnp.sum(weight / 2 * (v - center) ** 2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        weight, center = spread(self.weight, z), spread(self.center, z)
        return (z + step * weight * center) / (1 + step * weight)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        weight, center = spread(self.weight, z), spread(self.center, z)
        return (z - step * center) * weight / (weight + step)

    def conjugate(self, y: Vector) -> Values:
        weight, center = spread(self.weight, y), spread(self.center, y)
        flat = weight == 0
        curved = y**2 / (2 * jnp.where(flat, 1.0, weight)) + y * center
        outside = indicator_of(jnp.where(flat, jnp.abs(y), 0.0), jnp.ones((), y.dtype))
        return jnp.sum(jnp.where(flat, 0.0, curved), axis=-1) + outside

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32)

    def check_size(self, size: int) -> None:
        check_length(self, "weight", size)
        check_length(self, "center", size)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.weight)

    @property
    def smoothness(self) -> Array | None:
        return jnp.max(self.weight)


class Zero(AbstractFunction):
    """`f(v) = 0`; its conjugate is `IndicatorZero`.

    >>> print(Zero().prox(jnp.array([2.0]), 1.0), Zero().conjugate(jnp.array([2.0])))
    [2.] inf
    """

    homogeneous: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __call__(self, v: Vector) -> Values:
        return jnp.zeros(v.shape[:-1], v.dtype)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return z

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return jnp.zeros_like(z)

    def conjugate(self, y: Vector) -> Values:
        return indicator_of(jnp.abs(y), jnp.ones((), y.dtype))

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32)

    @property
    def smoothness(self) -> Array | None:
        return jnp.zeros(())
