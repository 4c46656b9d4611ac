"""The convex functions F and G of the lower level: value, prox, and the prox of the conjugate.

Conventions, for every function `f` here and every function that a user adds:

- `f` acts on the last axis; leading axes are a batch.
- `f.prox(z, t) = argmin_v t f(v) + ||v - z||^2 / 2`.
- Moreau: `prox_{s f*}(z) = z - s prox_{f/s}(z/s)`. So the two derivatives add up to the identity.
- At a kink a projection (a clip is one) has derivative 0, the derivative of its *outside*;
  everything else follows by Moreau, so that soft thresholding has derivative 1 at its kink.
  (`jnp.clip` gives 0.5 there, which belongs to neither side.)
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._checks import as_inexact, check_finite, check_positive

__all__ = [
    "L1",
    "AbstractFunction",
    "Box",
    "BoxQuadratic",
    "ElasticNet",
    "GroupL1",
    "Huber",
    "L2Ball",
    "NonNegative",
    "Quadratic",
    "SeparableSum",
    "Zero",
]

Scalar = Float[Array, ""] | float
Vector = Float[Array, "*batch size"]
Values = Float[Array, "*batch"]

# A dual variable that a prox put on its bound may lie beyond it by rounding. The conjugate of a
# norm is an indicator; without this slack (in units of the machine precision) the primal-dual gap
# would be infinite at every solution.
_FEASIBILITY_SLACK = 64.0


class AbstractFunction(eqx.Module):
    """A closed proper convex function with a prox: what one subclasses to add one.

    A subclass gives its value and its `prox`. Five more methods have a default that a subclass may
    replace: `prox_conjugate` (Moreau), `conjugate` (unknown: NaN, so no primal-dual gap), `margin`
    (unknown: NaN), `piece` (not piecewise affine: None, so no error bound) and `check_size` (any
    size). Array fields are what one can learn.

    Class variables: `positive` names the fields that are positive (they are learned in the log),
    `homogeneous` says that `f(c v) = c f(v)` for `c > 0`, `indicator` that `f` is 0 or infinite,
    `separable` that `f` is a sum over coordinates, so that the Jacobian of its prox is diagonal
    (said of one that is not, it gives wrong Newton steps; not said, only slow ones), `smooth` that
    `f` is differentiable everywhere, with a gradient that does not jump.

    Example: `f(v) = -weight * sum_i log(v_i)`, from its value and its prox alone.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> class LogBarrier(hg.AbstractFunction):
    ...     weight: float = 1.0
    ...     def __call__(self, v):
    ...         return -self.weight * jnp.sum(jnp.log(v), axis=-1)
    ...     def prox(self, z, step):
    ...         return (z + jnp.sqrt(z**2 + 4 * step * self.weight)) / 2
    >>> f, z = LogBarrier(), jnp.array([0.0, 3.0])
    >>> print(f.prox(z, 1.0) + f.prox_conjugate(z, 1.0))  # Moreau: their sum is z
    [0. 3.]
    """

    positive: ClassVar[tuple[str, ...]] = ()
    homogeneous: ClassVar[bool] = False
    indicator: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, v: Vector) -> Values:
        """The value `f(v)`, `(..., size)` to `(...)`."""

    @abc.abstractmethod
    def prox(self, z: Vector, step: Scalar) -> Vector:
        """`argmin_v step * f(v) + ||v - z||^2 / 2`, for `step > 0`."""

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        """`prox_{step f*}(z)`, by Moreau's identity."""
        return z - step * self.prox(z / step, 1 / step)

    def conjugate(self, y: Vector) -> Values:
        """`f*(y) = sup_v <y, v> - f(v)`, or NaN where no formula is known."""
        return jnp.full(y.shape[:-1], jnp.nan, y.dtype)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        """Distance of `z` from the kinks of `prox_{step f}`, relative to the size of the kink.

        One number for each coordinate (or group); infinity where the prox is smooth, NaN where it
        is not known. Being relative, `margin(z/s, 1/s)` is that of `prox_{s f*}` at `z`. (A kink
        at 0 has no size: there the distance itself.)
        """
        return jnp.full((*z.shape[:-1], 1), jnp.nan, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        """In which affine piece of `prox_{step f}` each coordinate of `z` lies, counted upwards.

        The pieces are intervals: two points of the same piece have no kink between them, of
        neighbouring pieces one. None where `f` is not separable or its prox not piecewise affine
        (the default). `piece(z/s, 1/s)` is that of `prox_{s f*}` at `z`. A parameter that is a
        vector has one entry a coordinate.
        """
        return None

    def check_size(self, size: int) -> None:
        """Raise a `ValueError` if the function does not act on vectors of this size."""

    @property
    def dual_scale(self) -> Array | None:
        """The size of the subgradients where it is known (the weight of a norm)."""
        return None

    @property
    def primal_scale(self) -> Array | None:
        """The size of the arguments where it is known (the radius of a box)."""
        return None

    @property
    def strong_convexity(self) -> Array | None:
        """The largest `mu` known for which `f - (mu / 2) ||.||^2` is convex."""
        return None


# --------------------------------------------------------------------------- building blocks


def _clip(z: Vector, bound: Array) -> Vector:
    """Projection onto `|z| <= bound`, with derivative 0 in z (and ±1 in the bound) at the bound."""
    return jnp.where(jnp.abs(z) < bound, z, jnp.sign(z) * bound)


def _shrink_to_ball(z: Array, radius: Array, axis: int) -> Array:
    """Projection onto `||z|| <= radius` along an axis, differentiable at 0 and at radius 0.

    `z / max(1, ||z|| / radius)` has a NaN derivative at 0: the norm is not differentiable there.
    So the norm is only taken where it is used, outside the ball.
    """
    squared = jnp.sum(z**2, axis=axis, keepdims=True)
    outside = squared >= radius**2
    size = jnp.sqrt(jnp.where(outside & (squared > 0), squared, 1.0))
    return jnp.where(outside, z * radius / size, z)


def _norm(v: Array, axis: int) -> Array:
    """Euclidean norm along an axis, with derivative 0 at 0."""
    squared = jnp.sum(v**2, axis=axis)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _relative(distance: Array, size: Array | float) -> Array:
    """Distance over size; infinite where the size is 0 (then there is no kink to speak of)."""
    return jnp.where(size > 0, jnp.abs(distance) / jnp.where(size > 0, size, 1.0), jnp.inf)


def _side(z: Array, kink: Array | float) -> Array:
    """-1, 0, 1: below `-kink`, between, above `kink`."""
    return jnp.where(jnp.abs(z) < kink, 0.0, jnp.sign(z)).astype(jnp.int32)


def _indicator(violation: Array, size: Array) -> Values:
    """0 where no entry of the violation exceeds rounding (relative to `size`), else infinity."""
    slack = _FEASIBILITY_SLACK * jnp.finfo(violation.dtype).eps * size
    return jnp.where(jnp.all(violation <= slack, axis=-1), 0.0, jnp.inf).astype(violation.dtype)


def _median(value: Array) -> Array:
    return value if value.ndim == 0 else jnp.median(value)


def _check_length(owner: object, name: str, size: int) -> None:
    """A parameter is a number or has one entry a coordinate."""
    shape = np.shape(getattr(owner, name))
    if shape not in ((), (size,)):
        raise ValueError(
            f"{type(owner).__name__}.{name} must be a number or have shape ({size},); got shape "
            f"{shape}: give one entry for each of the {size} coordinates"
        )


def _check_number(owner: object, name: str) -> None:
    """A parameter is one number."""
    shape = np.shape(getattr(owner, name))
    if shape != ():
        raise ValueError(
            f"{type(owner).__name__}.{name} must be one number; got shape {shape}: use a "
            "SeparableSum for several"
        )


# ------------------------------------------------------------------------------------- norms


class L1(AbstractFunction):
    """`f(v) = sum_i weight_i |v_i|`; its prox is soft thresholding, that of `f*` a clip.

    `weight` is a number or has one entry a row of K (`(m,)`).
    """

    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    homogeneous: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "weight", zero_allowed=True)

    def __call__(self, v: Vector) -> Values:
        return jnp.sum(self.weight * jnp.abs(v), axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return z - _clip(z, step * self.weight)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return _clip(z, self.weight)

    def conjugate(self, y: Vector) -> Values:
        return _indicator(jnp.abs(y) - self.weight, self.weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * self.weight
        return _relative(jnp.abs(z) - kink, kink)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return _side(z, step * self.weight)

    def check_size(self, size: int) -> None:
        _check_length(self, "weight", size)

    @property
    def dual_scale(self) -> Array | None:
        return _median(self.weight)


class GroupL1(AbstractFunction):
    """`f(v) = weight * sum_groups ||v_group||_2`; with 2-D differences, isotropic total variation.

    `v` is reshaped to `shape` and the norm is taken along `axis`: with `shape=(2, n), axis=0` a
    group is what the two halves of `v` hold at the same place. The prox Jacobian is not diagonal.
    """

    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    shape: tuple[int, ...] = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=0)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    homogeneous: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "weight", zero_allowed=True)
        _check_number(self, "weight")
        if not -len(self.shape) <= self.axis < len(self.shape):
            raise ValueError(f"GroupL1.axis must be an axis of shape {self.shape}; got {self.axis}")

    def _groups(self, v: Array) -> Array:
        return v.reshape(*v.shape[:-1], *self.shape)

    @property
    def _group_axis(self) -> int:
        """The axis counted from the back, so that it holds under any batch."""
        return self.axis if self.axis < 0 else self.axis - len(self.shape)

    def _group_norms(self, v: Array) -> Array:
        norms = _norm(self._groups(v), self._group_axis)
        return norms.reshape(*v.shape[:-1], -1)

    def __call__(self, v: Vector) -> Values:
        return self.weight * jnp.sum(self._group_norms(v), axis=-1)

    def _project(self, z: Array, radius: Array) -> Array:
        return _shrink_to_ball(self._groups(z), radius, self._group_axis).reshape(z.shape)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return z - self._project(z, step * self.weight)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return self._project(z, self.weight)

    def conjugate(self, y: Vector) -> Values:
        return _indicator(self._group_norms(y) - self.weight, self.weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * self.weight
        return _relative(self._group_norms(z) - kink, kink)

    def check_size(self, size: int) -> None:
        if math.prod(self.shape) != size:
            raise ValueError(
                f"GroupL1.shape must hold {size} coordinates; got {self.shape}, which holds "
                f"{math.prod(self.shape)}"
            )

    @property
    def dual_scale(self) -> Array | None:
        return self.weight


class Huber(AbstractFunction):
    """`f(v) = weight * sum_i h(v_i)`: the smooth L1.

    `h(v) = v^2 / (2 smoothing)` where `|v| <= smoothing`, else `|v| - smoothing / 2`.
    """

    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    smoothing: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("weight", "smoothing")
    separable: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "weight")
        check_positive(self, "smoothing")

    def __call__(self, v: Vector) -> Values:
        size = jnp.abs(v)
        # The square of v and not of its size, which has no second derivative at 0.
        near, far = v**2 / (2 * self.smoothing), size - self.smoothing / 2
        return jnp.sum(self.weight * jnp.where(size <= self.smoothing, near, far), axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        bound = step * self.weight
        return z - _clip(z * bound / (bound + self.smoothing), bound)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return _clip(z * self.weight / (self.weight + step * self.smoothing), self.weight)

    def conjugate(self, y: Vector) -> Values:
        quadratic = jnp.sum(self.smoothing / (2 * self.weight) * y**2, axis=-1)
        return quadratic + _indicator(jnp.abs(y) - self.weight, self.weight)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        bound = step * self.weight
        return _relative(jnp.abs(z) - (bound + self.smoothing), bound)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return _side(z, step * self.weight + self.smoothing)

    def check_size(self, size: int) -> None:
        _check_length(self, "weight", size)
        _check_length(self, "smoothing", size)

    @property
    def dual_scale(self) -> Array | None:
        return _median(self.weight)


class ElasticNet(AbstractFunction):
    """`f(v) = weight * ||v||_1 + (ridge / 2) ||v||^2`."""

    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    ridge: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("weight", "ridge")
    separable: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "weight", zero_allowed=True)
        check_positive(self, "ridge")

    def __call__(self, v: Vector) -> Values:
        return jnp.sum(self.weight * jnp.abs(v) + self.ridge / 2 * v**2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return (z - _clip(z, step * self.weight)) / (1 + step * self.ridge)

    def conjugate(self, y: Vector) -> Values:
        excess = y - _clip(y, self.weight)
        return jnp.sum(excess**2 / (2 * self.ridge), axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        kink = step * self.weight
        return _relative(jnp.abs(z) - kink, kink)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return _side(z, step * self.weight)

    def check_size(self, size: int) -> None:
        _check_length(self, "weight", size)
        _check_length(self, "ridge", size)

    @property
    def dual_scale(self) -> Array | None:
        return _median(self.weight)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.ridge)


# --------------------------------------------------------------------------- smooth functions


class Quadratic(AbstractFunction):
    """`f(v) = (weight / 2) ||v - center||^2`."""

    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    center: Float[Array, "..."] = eqx.field(converter=as_inexact, default=0.0)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    separable: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "weight")
        check_finite("Quadratic.center", self.center)

    def __call__(self, v: Vector) -> Values:
        return jnp.sum(self.weight / 2 * (v - self.center) ** 2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return (z + step * self.weight * self.center) / (1 + step * self.weight)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return (z - step * self.center) * self.weight / (self.weight + step)

    def conjugate(self, y: Vector) -> Values:
        return jnp.sum(y**2 / (2 * self.weight) + y * self.center, axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32)

    def check_size(self, size: int) -> None:
        _check_length(self, "weight", size)
        _check_length(self, "center", size)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.weight)


class Zero(AbstractFunction):
    """`f(v) = 0`; its conjugate is the indicator of the origin."""

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
        return _indicator(jnp.abs(y), jnp.ones((), y.dtype))

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32)


# --------------------------------------------------------------------------------- indicators


class Box(AbstractFunction):
    """Indicator of `|v_i| <= radius_i`; with a quantiser of step `2 radius`, its cell."""

    radius: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("radius",)
    indicator: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "radius")

    def __call__(self, v: Vector) -> Values:
        return _indicator(jnp.abs(v) - self.radius, self.radius)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return _clip(z, self.radius)

    def conjugate(self, y: Vector) -> Values:
        return jnp.sum(self.radius * jnp.abs(y), axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return _relative(jnp.abs(z) - self.radius, self.radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return _side(z, self.radius)

    def check_size(self, size: int) -> None:
        _check_length(self, "radius", size)

    @property
    def primal_scale(self) -> Array | None:
        return _median(self.radius)


class BoxQuadratic(AbstractFunction):
    """Indicator of `|v_i| <= radius_i` plus `(weight / 2) ||v||^2`: the cell, and unique."""

    radius: Float[Array, "..."] = eqx.field(converter=as_inexact)
    weight: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("radius", "weight")
    separable: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "radius")
        check_positive(self, "weight")

    def __call__(self, v: Vector) -> Values:
        cell = _indicator(jnp.abs(v) - self.radius, self.radius)
        return cell + jnp.sum(self.weight / 2 * v**2, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return _clip(z / (1 + step * self.weight), self.radius)

    def conjugate(self, y: Vector) -> Values:
        maximiser = _clip(y / self.weight, self.radius)
        return jnp.sum(y * maximiser - self.weight / 2 * maximiser**2, axis=-1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return _relative(jnp.abs(z) / (1 + step * self.weight) - self.radius, self.radius)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return _side(z, (1 + step * self.weight) * self.radius)

    def check_size(self, size: int) -> None:
        _check_length(self, "radius", size)
        _check_length(self, "weight", size)

    @property
    def primal_scale(self) -> Array | None:
        return _median(self.radius)

    @property
    def strong_convexity(self) -> Array | None:
        return jnp.min(self.weight)


class L2Ball(AbstractFunction):
    """Indicator of `||v||_2 <= radius`; the prox Jacobian is not diagonal."""

    radius: Float[Array, "..."] = eqx.field(converter=as_inexact)
    positive: ClassVar[tuple[str, ...]] = ("radius",)
    indicator: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self, "radius")
        _check_number(self, "radius")

    def __call__(self, v: Vector) -> Values:
        return _indicator(_norm(v, -1)[..., None] - self.radius, self.radius)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return _shrink_to_ball(z, self.radius, -1)

    def conjugate(self, y: Vector) -> Values:
        return self.radius * _norm(y, -1)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return _relative(_norm(z, -1)[..., None] - self.radius, self.radius)

    @property
    def primal_scale(self) -> Array | None:
        return self.radius


class NonNegative(AbstractFunction):
    """Indicator of `v_i >= 0`. Its kink has no natural size: the margin is the distance itself."""

    homogeneous: ClassVar[bool] = True
    indicator: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __call__(self, v: Vector) -> Values:
        return _indicator(-v, jnp.ones((), v.dtype))

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.where(z > 0, z, 0.0)

    def conjugate(self, y: Vector) -> Values:
        return _indicator(y, jnp.ones((), y.dtype))

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.abs(z)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return (z > 0).astype(jnp.int32)


# ------------------------------------------------------------------------------- combinations


class SeparableSum(AbstractFunction):
    """`f(v) = sum_j parts_j(v_j)`, where `v` is cut into consecutive pieces of the given sizes.

    A constraint on `x` itself is a row block of `K` (the identity, say) with a part of its own.
    """

    parts: tuple[AbstractFunction, ...] = eqx.field(converter=tuple)
    sizes: tuple[int, ...] = eqx.field(static=True, converter=lambda sizes: tuple(map(int, sizes)))

    @property
    def separable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are (a constant of the class elsewhere, here of the parts)."""
        return all(part.separable for part in self.parts)

    @property
    def smooth(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are."""
        return all(part.smooth for part in self.parts)

    def __check_init__(self):
        if len(self.parts) != len(self.sizes) or not self.parts:
            raise ValueError(
                "SeparableSum must have one size for each part and at least one part; got "
                f"{len(self.parts)} parts and {len(self.sizes)} sizes"
            )
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.check_size(size)

    def _split(self, v: Array) -> Iterator[tuple[AbstractFunction, Array]]:
        """The parts, each with its piece of `v`."""
        pieces = jnp.split(v, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        return zip(self.parts, pieces, strict=True)

    def _sum(self, values: Iterable[Values], v: Vector) -> Values:
        return sum(values, jnp.zeros(v.shape[:-1], v.dtype))

    def __call__(self, v: Vector) -> Values:
        return self._sum((f(piece) for f, piece in self._split(v)), v)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.concatenate([f.prox(piece, step) for f, piece in self._split(z)], axis=-1)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return jnp.concatenate(
            [f.prox_conjugate(piece, step) for f, piece in self._split(z)], axis=-1
        )

    def conjugate(self, y: Vector) -> Values:
        return self._sum((f.conjugate(piece) for f, piece in self._split(y)), y)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.concatenate([f.margin(piece, step) for f, piece in self._split(z)], axis=-1)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        pieces = [f.piece(part, step) for f, part in self._split(z)]
        known = [piece for piece in pieces if piece is not None]
        return jnp.concatenate(known, axis=-1) if len(known) == len(pieces) else None

    def check_size(self, size: int) -> None:
        if sum(self.sizes) != size:
            raise ValueError(
                f"SeparableSum.sizes must add up to {size}; got {self.sizes}, which add up to "
                f"{sum(self.sizes)}"
            )

    def _median_scale(self, name: str) -> Array | None:
        """The median over all coordinates whose scale is known."""
        known = [
            jnp.full(size, scale)
            for part, size in zip(self.parts, self.sizes, strict=True)
            if (scale := getattr(part, name)) is not None
        ]
        return jnp.median(jnp.concatenate(known)) if known else None

    @property
    def dual_scale(self) -> Array | None:
        return self._median_scale("dual_scale")

    @property
    def primal_scale(self) -> Array | None:
        return self._median_scale("primal_scale")

    @property
    def strong_convexity(self) -> Array | None:
        moduli = [part.strong_convexity for part in self.parts]
        known = [modulus for modulus in moduli if modulus is not None]
        return jnp.min(jnp.stack(known)) if len(known) == len(moduli) else None
