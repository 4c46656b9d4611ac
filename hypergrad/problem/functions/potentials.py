"""Convex potentials whose derivative is piecewise linear, to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import as_inexact, check_number, check_positive, inexact
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.problem.functions._projections import (
    indicator_of,
    median,
    relative_distance,
    side,
    spread,
)

__all__ = ["ConvexPotential"]


def _as_knots(values: Any) -> tuple[float, ...]:
    """Return plain numbers: the knots are no leaf, so no update puts them out of order."""
    knots = np.asarray(values if as_inexact(values, "ConvexPotential.knots").ndim else [values])
    rule = "ConvexPotential.knots must be positive and increase"
    if knots.ndim != 1 or knots.size == 0:
        raise HypergradError(f"{rule}; got shape {knots.shape}: pass for example (0.1, 0.2, 0.4)")
    knots = tuple(map(float, knots))
    if not (knots[0] > 0 and np.all(np.diff(knots) > 0) and np.isfinite(knots[-1])):
        raise HypergradError(f"{rule}; got {knots}: sort them, without 0 (which is one anyway)")
    return knots


def _as_jump(value: Any) -> Any:
    return None if value is None else inexact("ConvexPotential.jump")(value)


class _Knot(NamedTuple):
    """A knot with what it needs to continue from there, each a number or one entry per group."""

    t: Array
    value: Array  # phi(t)
    force: Array  # phi'(t+)
    slope: Array  # phi'' beyond, up to the next knot
    bends: Array  # whether phi' has a kink


class ConvexPotential(AbstractFunction):
    """`f(v) = sum_i phi_i(v_i)`: an even convex potential per group, with `phi'` piecewise linear.

    With the knots `0 = t_0 < t_1 < ... < t_J`, the odd function `phi'` jumps to `jump` at 0, has
    the slope `slopes[:, j]` between `t_j` and `t_(j+1)`, and is constant beyond `t_J`. Groups are
    blocks of coordinates of equal size, as the filters of a filter bank are. The prox is exact and
    piecewise affine. L1 is a jump without slopes, Huber one slope.

    **Arguments**:

    - `slopes`: `(groups, J)`, non-negative. One group for all is `(1, J)`.
    - `knots`: `(J,)`, positive and increasing; fixed, not learned.
    - `jump`: a number or `(groups,)`, non-negative. None (the default) where `phi` is smooth.

    Slopes and jump are learned in the log, so they must start above 0 to be learned.

    **Raises**: a `HypergradError` if the knots are out of order, shapes do not fit, or a slope or
    jump is negative.

    >>> f = ConvexPotential(slopes=[[2.0, 1.0]], knots=(0.5, 1.5), jump=0.25)
    >>> print(f(jnp.array([0.5])), f(jnp.array([3.0])))  # phi' is 1.25 at 0.5, 2.25 from 1.5 on
    0.375 5.5
    >>> print(f.prox(jnp.array([0.25, 1.75, 4.0]), 1.0))
    [0.   0.5  1.75]
    """

    slopes: Float[Array, "..."] = eqx.field(converter=inexact("ConvexPotential.slopes"))
    knots: tuple[float, ...] = eqx.field(static=True, converter=_as_knots)
    jump: Float[Array, "..."] | None = eqx.field(default=None, converter=_as_jump)
    positive: ClassVar[tuple[str, ...]] = ("slopes", "jump")
    separable: ClassVar[bool] = True

    @property
    def smooth(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `phi'` is continuous (a class variable in other functions)."""
        return self.jump is None

    def __check_init__(self) -> None:
        check_positive(self, "slopes", zero_allowed=True)
        check_positive(self, "jump", zero_allowed=True)
        shape, count = jnp.shape(self.slopes), len(self.knots)
        if len(shape) != 2 or shape[1] != count or shape[0] == 0:
            raise HypergradError(
                f"ConvexPotential.slopes must have shape (groups, {count}), one slope below each "
                f"knot; got shape {shape}: a single group is slopes[None]"
            )
        jumps = () if self.jump is None else jnp.shape(self.jump)
        if jumps not in ((), shape[:1]):
            raise HypergradError(
                f"ConvexPotential.jump must be a number or have shape ({shape[0]},); got shape "
                f"{jumps}: give one for each of the {shape[0]} groups of slopes"
            )

    @classmethod
    def from_l1(
        cls, weight: Any, knots: Sequence[float], *, least_slope: float = 0.0
    ) -> ConvexPotential:
        """Return the potential that equals `L1(weight)`; a start for learning with `least_slope`.

        **Arguments**: `weight`, a number or `(groups,)`; `knots`; `least_slope`, a small number
        above 0 to make the slopes learnable, which adds at most `least_slope * v**2 / 2`.

        >>> print(ConvexPotential.from_l1(0.5, (0.1, 1.0))(jnp.array([1.0, -3.0])))
        2.0
        """
        jump = as_inexact(weight, "weight")
        slopes = jnp.full((max(jump.size, 1), len(_as_knots(knots))), least_slope, jump.dtype)
        return cls(slopes, knots, jump)

    @classmethod
    def from_huber(
        cls, weight: Any, smoothing: float, knots: Sequence[float], *, least_slope: float = 0.0
    ) -> ConvexPotential:
        """Return the potential that equals `Huber(weight, smoothing)`; `smoothing` becomes a knot.

        **Arguments**: `weight`, a number or `(groups,)`; `smoothing`, one number; `knots`;
        `least_slope`, a small number above 0 to make the slopes beyond `smoothing` learnable, which
        adds at most `least_slope * v**2 / 2`.

        >>> print(ConvexPotential.from_huber(1.0, 2.0, (1.0, 4.0))(jnp.array([1.0, 4.0])))
        3.25
        """
        check_number("smoothing", smoothing)
        knots = _as_knots(sorted({*_as_knots(knots), float(smoothing)}))
        weight = jnp.atleast_1d(as_inexact(weight, "weight"))[:, None]
        inside = np.array([knots]) <= float(smoothing)
        return cls(jnp.maximum(jnp.where(inside, weight / smoothing, 0.0), least_slope), knots)

    def _at_knots(self, v: Vector) -> list[_Knot]:
        """Return 0 and the knots, each number of them spread over the coordinates of v."""
        slopes = self.slopes
        zero = jnp.zeros(slopes.shape[:1], slopes.dtype)
        t, value = 0.0, zero
        force = zero if self.jump is None else zero + self.jump
        before = jnp.where(force > 0, -1.0, slopes[:, 0])  # differs from every slope at a jump
        knots = []
        for j, end in enumerate([*self.knots, None]):
            slope = zero if end is None else slopes[:, j]
            rows = [zero + t, value, force, slope, slope != before]
            knots.append(_Knot(*(spread(row, v) for row in rows)))
            if end is not None:
                value = value + (end - t) * (force + slope * (end - t) / 2)
                force, before, t = force + slope * (end - t), slope, end
        return knots

    def __call__(self, v: Vector) -> Values:
        phi = jnp.zeros_like(v)
        for knot in self._at_knots(v):
            # The square of v and not of its size, which has no second derivative at 0.
            beyond = v - jnp.sign(v) * knot.t
            here = knot.value + knot.force * jnp.abs(beyond) + knot.slope / 2 * beyond**2
            phi = jnp.where(jnp.abs(v) >= knot.t, here, phi)
        return jnp.sum(phi, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return _continued(
            jnp.zeros_like(z),
            z,
            [
                (knot.t + step * knot.force, knot.t, 1 / (1 + step * knot.slope))
                for knot in self._at_knots(z)
            ],
        )

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return _continued(
            z,
            z,
            [
                (knot.force + step * knot.t, knot.force, knot.slope / (step + knot.slope))
                for knot in self._at_knots(z)
            ],
        )

    def conjugate(self, y: Vector) -> Values:
        size, result = jnp.abs(y), jnp.zeros_like(y)
        knots = self._at_knots(y)
        for knot in knots:
            curved = knot.slope > 0
            excess = jnp.where(curved, size - knot.force, 0.0)
            curvature = jnp.where(curved, knot.slope, 1.0)
            here = knot.t * size - knot.value + excess**2 / (2 * curvature)
            result = jnp.where(size >= knot.force, here, result)
        greatest = knots[-1].force
        return jnp.sum(result, axis=-1) + indicator_of(size - greatest, greatest)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        margin = jnp.full_like(z, jnp.inf)
        for knot in self._at_knots(z):
            kink = knot.t + step * knot.force
            distance = relative_distance(jnp.abs(z) - kink, jnp.where(knot.bends, kink, 0.0))
            margin = jnp.minimum(margin, distance)
        return margin

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        # Equal slopes are two pieces, too: they are two parameters.
        first, *others = self._at_knots(z)
        known = others if self.jump is None else [first, *others]
        sides = [side(z, knot.t + step * knot.force) for knot in known]
        return sum(sides[1:], sides[0])

    def check_size(self, size: int) -> None:
        groups = self.slopes.shape[0]
        if size % groups:
            raise HypergradError(
                "ConvexPotential.slopes must have one row for each of several blocks of equal size "
                f"that make up {size}; got {groups} rows: give a number of them that divides {size}"
            )

    @property
    def dual_scale(self) -> Array | None:
        # phi' beyond the last knot, as it is the weight of L1 and of Huber.
        widths = jnp.diff(jnp.array([0.0, *self.knots], self.slopes.dtype))
        greatest = jnp.sum(self.slopes * widths[None], axis=-1)
        return median(greatest if self.jump is None else greatest + self.jump)

    @property
    def smoothness(self) -> Array | None:
        return jnp.max(self.slopes) if self.jump is None else None


def _continued(y: Vector, z: Vector, pieces: list[tuple[Array, Array, Array]]) -> Vector:
    """Return the odd function of z that is y up to the first kink, with its slope beyond at a kink.

    A piece is its kink, and from there on the value and the slope.
    """
    for kink, value, slope in pieces:
        sign = jnp.sign(z)
        y = jnp.where(jnp.abs(z) >= kink, sign * value + (z - sign * kink) * slope, y)
    return y
