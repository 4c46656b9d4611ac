"""Indicator functions of constraints."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import check_positive, inexact
from hypergrad.problem.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.problem.functions._projections import (
    check_length,
    check_one_number,
    clip,
    indicator_of,
    median,
    norm,
    relative_distance,
    shrink_to_ball,
    side,
    spread,
)

__all__ = ["Box", "BoxQuadratic", "IndicatorZero", "L2Ball", "NonNegative"]


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
        radius = spread(self.radius, v)
        return indicator_of(jnp.abs(v) - radius, radius)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return clip(z, spread(self.radius, z))

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        radius = spread(self.radius, z)
        # 0 inside, where z - step (z / step) would be rounding.
        return z - clip(z, step * radius)

    def conjugate(self, y: Vector) -> Values:
        return jnp.sum(spread(self.radius, y) * jnp.abs(y), axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        radius = spread(self.radius, z)
        return relative_distance(jnp.abs(z) - radius, radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return side(z, spread(self.radius, z))

    def check_size(self, size: int) -> None:
        check_length(self, "radius", size)

    @property
    def primal_scale(self) -> Array | None:
        return median(self.radius)


class BoxQuadratic(AbstractFunction):
    """Indicator of `|v_i| <= radius_i` plus `(weight / 2) ||v||^2`, which is strongly convex.

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
        radius, weight = spread(self.radius, v), spread(self.weight, v)
        cell = indicator_of(jnp.abs(v) - radius, radius)
        return cell + jnp.sum(weight / 2 * v**2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        radius, weight = spread(self.radius, z), spread(self.weight, z)
        return clip(z / (1 + step * weight), radius)

    def conjugate(self, y: Vector) -> Values:
        radius, weight = spread(self.radius, y), spread(self.weight, y)
        maximiser = clip(y / weight, radius)
        return jnp.sum(y * maximiser - weight / 2 * maximiser**2, axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        radius, weight = spread(self.radius, z), spread(self.weight, z)
        return relative_distance(jnp.abs(z) / (1 + step * weight) - radius, radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        radius, weight = spread(self.radius, z), spread(self.weight, z)
        return side(z, (1 + step * weight) * radius)

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

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return z - shrink_to_ball(z, step * self.radius, -1)

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
        return indicator_of(-v, _size(v))

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.where(z > 0, z, 0.0)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        # By Moreau, z - step (z / step) is 0 to the rounding of z alone, which may lie outside.
        return jnp.where(z > 0, 0.0, z)

    def conjugate(self, y: Vector) -> Values:
        return indicator_of(y, _size(y))

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.abs(z)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return (z > 0).astype(jnp.int32)


class IndicatorZero(AbstractFunction):
    """Indicator of `{0}`: 0 at the origin, infinite elsewhere; the conjugate of `Zero`.

    As a part of F it is the constraint `K x = 0` on its rows (with `SeparableSum`); G = this one
    fixes `x = x_tilde`. The prox is 0, and that of the conjugate the identity.

    **Caveat**: iterates satisfy `K x = 0` in the limit only, and until then the objective and the
    primal-dual gap are infinite.

    >>> print(IndicatorZero().prox(jnp.array([2.0]), 1.0), IndicatorZero()(jnp.array([2.0])))
    [0.] inf
    """

    homogeneous: ClassVar[bool] = True
    indicator: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __call__(self, v: Vector) -> Values:
        return indicator_of(jnp.abs(v), jnp.ones((), v.dtype))

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.zeros_like(z)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return z

    def conjugate(self, y: Vector) -> Values:
        return jnp.zeros(y.shape[:-1], y.dtype)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32)


def _size(v: Vector) -> Array:
    """Return the scale of the rounding of a vector: its largest entry, at least 1."""
    return jnp.maximum(jnp.max(jnp.abs(v), axis=-1, keepdims=True), 1.0)
