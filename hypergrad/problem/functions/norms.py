"""The l1 norm and its relatives: group norm, Huber function, elastic net."""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import check_counts, check_positive, inexact
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.problem.functions._projections import (
    check_length,
    check_one_number,
    clip,
    indicator_of,
    median,
    norm,
    ratio,
    relative_distance,
    shrink_groups_to_ball,
    side,
    spread,
)

__all__ = ["L1", "ElasticNet", "GroupL1", "Huber"]


class L1(AbstractFunction):
    """`f(v) = sum_i weight_i |v_i|`; its prox is soft thresholding, that of `f*` a clip.

    `weight` is a number, or has one entry per row of K (`(m,)`), or one per block of rows
    (`(groups,)`): m is cut into `groups` blocks of equal size, as the rows of a filter bank are,
    filter after filter. `Huber` and `ElasticNet` take their parameters in these shapes, too.

    >>> print(L1(0.5)(jnp.array([1.0, -3.0])), L1(0.5).prox(jnp.array([1.0, 0.25]), 1.0))
    2.0 [0.5 0. ]
    """

    weight: Float[Array, "..."] = eqx.field(converter=inexact("L1.weight"))
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    homogeneous: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __call__(self, v: Vector) -> Values:
        return jnp.sum(spread(self.weight, v) * jnp.abs(v), axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return z - clip(z, step * spread(self.weight, z))

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return clip(z, spread(self.weight, z))

    def conjugate(self, y: Vector) -> Values:
        weight = spread(self.weight, y)
        return indicator_of(jnp.abs(y) - weight, weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * spread(self.weight, z)
        return relative_distance(jnp.abs(z) - kink, kink)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return side(z, step * spread(self.weight, z))

    def check_size(self, size: int) -> None:
        check_length(self, "weight", size, in_blocks=True)

    @property
    def dual_scale(self) -> Array | None:
        return median(self.weight)


class GroupL1(AbstractFunction):
    """`f(v) = weight * sum_groups ||v_group||_2`; with 2-D differences, isotropic total variation.

    `v` is reshaped to `shape` and the norm is taken along `axis`: with `shape=(2, n), axis=0` a
    group is what the two halves of `v` hold at the same place. The prox Jacobian is not diagonal.

    >>> print(GroupL1(0.5, shape=(2, 2), axis=0)(jnp.array([3.0, 0.0, 4.0, 0.0])))
    2.5
    """

    weight: Float[Array, "..."] = eqx.field(converter=inexact("GroupL1.weight"))
    shape: tuple[int, ...] = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=0)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    homogeneous: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_one_number(self, "weight")
        check_counts("GroupL1.shape", self.shape)
        if self.axis not in range(-len(self.shape), len(self.shape)):
            raise HypergradError(
                f"GroupL1.axis must be an axis of shape {self.shape}; got {self.axis!r}: 0 is the "
                "first"
            )

    def _groups(self, v: Array) -> Array:
        return v.reshape(*v.shape[:-1], *self.shape)

    @property
    def _group_axis(self) -> int:
        """The axis counted from the back, so that it holds under any batch."""
        return self.axis if self.axis < 0 else self.axis - len(self.shape)

    def _group_norms(self, v: Array) -> Array:
        norms = norm(self._groups(v), self._group_axis)
        return norms.reshape(*v.shape[:-1], -1)

    def __call__(self, v: Vector) -> Values:
        return self.weight * jnp.sum(self._group_norms(v), axis=-1)

    def _project(self, z: Array, radius: Array) -> Array:
        shrunk = shrink_groups_to_ball(self._groups(z), radius, self._group_axis)
        return shrunk.reshape(z.shape)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return z - self._project(z, step * self.weight)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return self._project(z, self.weight)

    def conjugate(self, y: Vector) -> Values:
        return indicator_of(self._group_norms(y) - self.weight, self.weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * self.weight
        return relative_distance(self._group_norms(z) - kink, kink)

    def check_size(self, size: int) -> None:
        if math.prod(self.shape) != size:
            raise HypergradError(
                f"GroupL1.shape must hold {size} coordinates; got {self.shape}, which holds "
                f"{math.prod(self.shape)}"
            )

    @property
    def dual_scale(self) -> Array | None:
        return self.weight


class Huber(AbstractFunction):
    """`f(v) = weight * sum_i h(v_i)`: the smooth L1.

    `h(v) = v^2 / (2 smoothing)` where `|v| <= smoothing`, else `|v| - smoothing / 2`.

    >>> print(Huber(1.0, smoothing=2.0)(jnp.array([1.0, 4.0])))
    3.25
    """

    weight: Float[Array, "..."] = eqx.field(converter=inexact("Huber.weight"))
    smoothing: Float[Array, "..."] = eqx.field(converter=inexact("Huber.smoothing"))
    positive: ClassVar[tuple[str, ...]] = ("weight", "smoothing")
    separable: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "weight")
        check_positive(self, "smoothing")

    def __call__(self, v: Vector) -> Values:
        weight, smoothing = spread(self.weight, v), spread(self.smoothing, v)
        size = jnp.abs(v)
        # The square of v and not of its size, which has no second derivative at 0.
        near, far = v**2 / (2 * smoothing), size - smoothing / 2
        return jnp.sum(weight * jnp.where(size <= smoothing, near, far), axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        weight, smoothing = spread(self.weight, z), spread(self.smoothing, z)
        bound = step * weight
        return z - clip(z * bound / (bound + smoothing), bound)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        weight, smoothing = spread(self.weight, z), spread(self.smoothing, z)
        return clip(z * weight / (weight + step * smoothing), weight)

    def conjugate(self, y: Vector) -> Values:
        weight, smoothing = spread(self.weight, y), spread(self.smoothing, y)
        quadratic = jnp.sum(smoothing / (2 * weight) * y**2, axis=-1)
        return quadratic + indicator_of(jnp.abs(y) - weight, weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        weight, smoothing = spread(self.weight, z), spread(self.smoothing, z)
        bound = step * weight
        return relative_distance(jnp.abs(z) - (bound + smoothing), bound)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        weight, smoothing = spread(self.weight, z), spread(self.smoothing, z)
        return side(z, step * weight + smoothing)

    def check_size(self, size: int) -> None:
        check_length(self, "weight", size, in_blocks=True)
        check_length(self, "smoothing", size, in_blocks=True)

    @property
    def dual_scale(self) -> Array | None:
        return median(self.weight)

    @property
    def smoothness(self) -> Array | None:
        return jnp.max(ratio(self.weight, self.smoothing))


class ElasticNet(AbstractFunction):
    """`f(v) = weight * ||v||_1 + (ridge / 2) ||v||^2`.

    >>> print(ElasticNet(1.0, ridge=2.0)(jnp.array([1.0, -2.0])))
    8.0
    """

    weight: Float[Array, "..."] = eqx.field(converter=inexact("ElasticNet.weight"))
    ridge: Float[Array, "..."] = eqx.field(converter=inexact("ElasticNet.ridge"))
    positive: ClassVar[tuple[str, ...]] = ("weight", "ridge")
    separable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive(self, "ridge")

    def __call__(self, v: Vector) -> Values:
        weight, ridge = spread(self.weight, v), spread(self.ridge, v)
        return jnp.sum(weight * jnp.abs(v) + ridge / 2 * v**2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        weight, ridge = spread(self.weight, z), spread(self.ridge, z)
        return (z - clip(z, step * weight)) / (1 + step * ridge)

    def conjugate(self, y: Vector) -> Values:
        weight, ridge = spread(self.weight, y), spread(self.ridge, y)
        excess = y - clip(y, weight)
        return jnp.sum(excess**2 / (2 * ridge), axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * spread(self.weight, z)
        return relative_distance(jnp.abs(z) - kink, kink)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return side(z, step * spread(self.weight, z))

    def check_size(self, size: int) -> None:
        check_length(self, "weight", size, in_blocks=True)
        check_length(self, "ridge", size, in_blocks=True)

    @property
    def dual_scale(self) -> Array | None:
        return median(self.weight)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.ridge)
