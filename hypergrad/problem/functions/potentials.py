"""Convex potentials whose derivative is piecewise linear, to be learned."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
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
        raise HypergradError(f"{rule}; got {knots}: sort them and leave out 0, always one")
    return knots


def _as_jump(value: Any) -> Any:
    return None if value is None else inexact("ConvexPotential.jump")(value)


class _Knot(NamedTuple):
    """A knot and `phi` there, one entry per group."""

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

    def _in_blocks(self, v: Vector) -> tuple[Array, list[_Knot]]:
        """Return v as `(..., groups, size)`, and 0 and the knots in shapes that broadcast to it."""
        slopes = self.slopes
        t, value, zero = 0.0, jnp.zeros_like(slopes[:, 0]), jnp.zeros_like(slopes[:, 0])
        force = zero if self.jump is None else zero + self.jump
        before = jnp.where(force > 0, -1.0, slopes[:, 0])  # at a jump, unlike every slope
        groups = slopes.shape[0]
        knots, shape = [], (*(1,) * (v.ndim - 1), groups, 1)
        for j, end in enumerate([*self.knots, math.inf]):
            slope = slopes[:, j] if end < math.inf else zero
            rows = zero + t, value, force, slope, slope != before
            knots.append(_Knot(*(jnp.reshape(row, shape) for row in rows)))
            if end < math.inf:
                width = end - t
                value = value + width * (force + slope * width / 2)
                force, before, t = force + slope * width, slope, end
        return jnp.reshape(v, (*v.shape[:-1], groups, v.shape[-1] // groups)), knots

    def __call__(self, v: Vector) -> Values:
        v, knots = self._in_blocks(v)
        phi = jnp.zeros_like(v)
        for knot in knots:
            # The square of v and not of its size, which has no second derivative at 0.
            beyond = v - jnp.sign(v) * knot.t
            here = knot.value + knot.force * jnp.abs(beyond) + knot.slope / 2 * beyond**2
            phi = jnp.where(jnp.abs(v) >= knot.t, here, phi)
        return jnp.sum(phi, axis=(-2, -1))

    def prox(self, z: Vector, step: Scalar) -> Vector:
        blocks, knots = self._in_blocks(z)
        kinks = [knot.t + step * knot.force for knot in knots]
        slopes = [1 / (1 + step * knot.slope) for knot in knots]
        return _affine(0.0, blocks, kinks, [knot.t for knot in knots], slopes).reshape(z.shape)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        blocks, knots = self._in_blocks(z)
        kinks = [knot.force + step * knot.t for knot in knots]
        slopes = [knot.slope / (step + knot.slope) for knot in knots]
        return _affine(1.0, blocks, kinks, [knot.force for knot in knots], slopes).reshape(z.shape)

    def conjugate(self, y: Vector) -> Values:
        blocks, knots = self._in_blocks(y)
        size, total = jnp.abs(blocks), jnp.zeros_like(blocks)
        for knot in knots:
            curved = knot.slope > 0
            excess = jnp.where(curved, size - knot.force, 0.0)
            curvature = jnp.where(curved, knot.slope, 1.0)
            here = knot.t * size - knot.value + excess**2 / (2 * curvature)
            total = jnp.where(size >= knot.force, here, total)
        greatest = knots[-1].force + jnp.zeros_like(size)
        inside = indicator_of((size - greatest).reshape(y.shape), greatest.reshape(y.shape))
        return jnp.sum(total, axis=(-2, -1)) + inside

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        blocks, knots = self._in_blocks(z)
        margin = jnp.full_like(blocks, jnp.inf)
        for knot in knots:
            kink = knot.t + step * knot.force
            distance = jnp.abs(blocks) - kink
            nearest = relative_distance(distance, jnp.where(knot.bends, kink, 0.0))
            margin = jnp.minimum(margin, nearest)
        return margin.reshape(z.shape)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        blocks, knots = self._in_blocks(z)
        # Between equal slopes, too, there is a kink: in the derivative in either slope.
        kinks = [knot.t + step * knot.force for knot in knots]
        if self.jump is None:  # smooth at 0
            kinks = kinks[1:]
        pieces = sum((side(blocks, kink) for kink in kinks), jnp.zeros(blocks.shape, jnp.int32))
        return pieces.reshape(z.shape)

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


def _affine(
    below: float, z: Array, kinks: list[Array], values: list[Array], slopes: list[Array]
) -> Array:
    """Return the odd function of z that is `below * z`, and from each kink on a value and a slope.

    At a kink it has the slope beyond.
    """
    offsets = [v - kink * slope for kink, v, slope in zip(kinks, values, slopes, strict=True)]
    return _pieces(below, z, jnp.stack(kinks), jnp.stack(offsets), jnp.stack(slopes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pieces(below: float, z: Array, kinks: Array, offsets: Array, slopes: Array) -> Array:
    """Return `below * z`, and from each kink on `offset * sign(z) + slope * z`."""
    y = below * z
    for kink, offset, slope in zip(kinks, offsets, slopes, strict=True):
        y = jnp.where(jnp.abs(z) >= kink, offset * jnp.sign(z) + slope * z, y)
    return y


@_pieces.defjvp
def _pieces_derivative(
    below: float, at: tuple[Array, ...], along: tuple[Array, ...]
) -> tuple[Array, Array]:
    # By itself, JAX would hold every piece of every coordinate at once to sum over the groups.
    (z, kinks, offsets, slopes), (dz, _, doffsets, dslopes) = at, along
    slope_at_z = jnp.full_like(z, below)
    for kink, slope in zip(kinks, slopes, strict=True):
        slope_at_z = jnp.where(jnp.abs(z) >= kink, slope, slope_at_z)
    ends = jnp.concatenate([kinks[1:], jnp.full_like(kinks[:1], jnp.inf)])

    @jax.checkpoint
    def add(dy: Array, piece: tuple[Array, ...]) -> tuple[Array, None]:
        kink, end, doffset, dslope = piece
        here = (jnp.abs(z) >= kink) & (jnp.abs(z) < end)
        return dy + jnp.where(here, doffset * jnp.sign(z) + dslope * z, 0.0), None

    dy, _ = jax.lax.scan(add, slope_at_z * dz, (kinks, ends, doffsets, dslopes))
    return _pieces(below, z, kinks, offsets, slopes), dy
