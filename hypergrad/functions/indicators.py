"""Constraints."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._checks import check_positive, inexact
from hypergrad.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.functions._blocks import (
    check_length,
    check_one_number,
    clip,
    indicator_of,
    median,
    norm,
    relative_distance,
    shrink_to_ball,
    side,
)

__all__ = ["Box", "BoxQuadratic", "L2Ball", "NonNegative"]


class Box(AbstractFunction):
    """Indicator of `|v_i| <= radius_i`; with a quantiser of step `2 radius`, its cell.

    >>> print(Box(0.5).prox(jnp.array([2.0, -0.25]), 1.0))
    [ 0.5  -0.25]
    """

    radius: Float[Array, "..."] = eqx.field(converter=inexact("Box.radius"))
    positive: ClassVar[tuple[str, ...]] = ("radius",)
    indicator: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "radius")

    def __call__(self, v: Vector) -> Values:
        return indicator_of(jnp.abs(v) - self.radius, self.radius)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return clip(z, self.radius)

    def conjugate(self, y: Vector) -> Values:
        return jnp.sum(self.radius * jnp.abs(y), axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return relative_distance(jnp.abs(z) - self.radius, self.radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return side(z, self.radius)

    def check_size(self, size: int) -> None:
        check_length(self, "radius", size)

    @property
    def primal_scale(self) -> Array | None:
        return median(self.radius)


class BoxQuadratic(AbstractFunction):
    """Indicator of `|v_i| <= radius_i` plus `(weight / 2) ||v||^2`: the cell, and unique.

    >>> print(BoxQuadratic(1.0, weight=3.0).prox(jnp.array([2.0, 8.0]), 1.0))
    [0.5 1. ]
    """

    radius: Float[Array, "..."] = eqx.field(converter=inexact("BoxQuadratic.radius"))
    weight: Float[Array, "..."] = eqx.field(converter=inexact("BoxQuadratic.weight"))
    positive: ClassVar[tuple[str, ...]] = ("radius", "weight")
    separable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "radius")
        check_positive(self, "weight")

    def __call__(self, v: Vector) -> Values:
        cell = indicator_of(jnp.abs(v) - self.radius, self.radius)
        return cell + jnp.sum(self.weight / 2 * v**2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return clip(z / (1 + step * self.weight), self.radius)

    def conjugate(self, y: Vector) -> Values:
        maximiser = clip(y / self.weight, self.radius)
        return jnp.sum(y * maximiser - self.weight / 2 * maximiser**2, axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return relative_distance(jnp.abs(z) / (1 + step * self.weight) - self.radius, self.radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return side(z, (1 + step * self.weight) * self.radius)

    def check_size(self, size: int) -> None:
        check_length(self, "radius", size)
        check_length(self, "weight", size)

    @property
    def primal_scale(self) -> Array | None:
        return median(self.radius)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.weight)


class L2Ball(AbstractFunction):
    """Indicator of `||v||_2 <= radius`; the prox Jacobian is not diagonal.

    >>> print(L2Ball(5.0).prox(jnp.array([6.0, 8.0]), 1.0))
    [3. 4.]
    """

    radius: Float[Array, "..."] = eqx.field(converter=inexact("L2Ball.radius"))
    positive: ClassVar[tuple[str, ...]] = ("radius",)
    indicator: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "radius")
        check_one_number(self, "radius")

    def __call__(self, v: Vector) -> Values:
        return indicator_of(norm(v, -1)[..., None] - self.radius, self.radius)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return shrink_to_ball(z, self.radius, -1)

    def conjugate(self, y: Vector) -> Values:
        return self.radius * norm(y, -1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return relative_distance(norm(z, -1)[..., None] - self.radius, self.radius)

    @property
    def primal_scale(self) -> Array | None:
        return self.radius


class NonNegative(AbstractFunction):
    """Indicator of `v_i >= 0`. Its kink has no natural size: the margin is the distance itself.

    >>> print(NonNegative().prox(jnp.array([1.0, -2.0]), 1.0))
    [1. 0.]
    """

    homogeneous: ClassVar[bool] = True
    indicator: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __call__(self, v: Vector) -> Values:
        return indicator_of(-v, jnp.ones((), v.dtype))

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.where(z > 0, z, 0.0)

    def conjugate(self, y: Vector) -> Values:
        return indicator_of(y, jnp.ones((), y.dtype))

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.abs(z)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return (z > 0).astype(jnp.int32)
