"""Building blocks of the functions: projections, norms, and checks of parameters."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import power_of_two
from hypergrad.problem.functions._base import Values, Vector

# A dual variable that a prox put on its bound may lie beyond it by rounding. The conjugate of a
# norm is an indicator; without this slack (in units of the machine precision) the primal-dual gap
# would be infinite at every solution.
_FEASIBILITY_SLACK = 64.0


@jax.custom_jvp
def clip(z: Vector, bound: Array) -> Vector:
    """Project onto `|z| <= bound`, with derivative 0 in z (and ±1 in the bound) at the bound."""
    # Two instructions: the iteration is little more than its products and this.
    return jnp.minimum(jnp.maximum(z, -bound), bound)


@clip.defjvp
def _clip_derivative(at: tuple[Array, Array], along: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, bound), (dz, dbound) = at, along
    outside = jnp.where(z > 0, dbound, jnp.where(z < 0, -dbound, 0.0))
    return clip(z, bound), jnp.where(jnp.abs(z) < bound, dz, outside)


def shrink_to_ball(z: Array, radius: Array, axis: int) -> Array:
    """Project onto `||z|| <= radius` along an axis, differentiable at 0 and at radius 0.

    `z / max(1, ||z|| / radius)` has a NaN derivative at 0: the norm is not differentiable there.
    So the norm is taken only where it is used, outside the ball.
    """
    unit = power_of_two(radius)  # squares must not vanish
    radius = radius / unit
    squared = jnp.sum((z / unit) ** 2, axis=axis, keepdims=True)
    outside = squared >= radius**2
    size = jnp.sqrt(jnp.where(outside & (squared > 0), squared, 1.0))
    return jnp.where(outside, z * radius / size, z)


# Groups of at most this many members are summed member by member.
_FEW = 8


def shrink_groups_to_ball(z: Array, radius: Array, axis: int) -> Array:
    """Apply `shrink_to_ball` to every group along a short axis.

    Over an axis of 2 or 3 XLA reduces and broadcasts entry by entry; the members one by one are
    sums and products of whole arrays, which are vectorised (5 times faster).
    """
    if z.shape[axis] > _FEW:
        return shrink_to_ball(z, radius, axis)
    unit = power_of_two(radius)
    radius, in_units = radius / unit, z / unit
    members = [
        jax.lax.slice_in_dim(in_units, i, i + 1, axis=axis % z.ndim) for i in range(z.shape[axis])
    ]
    squared = sum((member**2 for member in members[1:]), members[0] ** 2)
    outside = squared >= radius**2
    size = jnp.sqrt(jnp.where(outside & (squared > 0), squared, 1.0))
    factor = jnp.where(outside, radius / size, 1.0)
    return z * jnp.concatenate([factor] * len(members), axis=axis)


def norm(v: Array, axis: int) -> Array:
    """Return the Euclidean norm along an axis, with derivative 0 at 0."""
    unit = power_of_two(jnp.max(jnp.abs(v), axis=axis, keepdims=True))
    squared = jnp.sum((v / unit) ** 2, axis=axis)
    positive = squared > 0
    size = jnp.sqrt(jnp.where(positive, squared, 1.0))
    return jnp.where(positive, jnp.squeeze(unit, axis) * size, 0.0)


def relative_distance(distance: Array, size: Array | float) -> Array:
    """Return distance over size, infinite where the size is 0 (there is no kink)."""
    return jnp.where(size > 0, jnp.abs(distance) / jnp.where(size > 0, size, 1.0), jnp.inf)


def side(z: Array, kink: Array | float) -> Array:
    """Return -1, 0 or 1: below `-kink`, between, above `kink`."""
    return jnp.where(jnp.abs(z) < kink, 0.0, jnp.sign(z)).astype(jnp.int32)


def indicator_of(violation: Array, size: Array) -> Values:
    """Return 0 if no entry of the violation exceeds rounding (relative to `size`), else inf."""
    slack = _FEASIBILITY_SLACK * jnp.finfo(violation.dtype).eps * size
    return jnp.where(jnp.all(violation <= slack, axis=-1), 0.0, jnp.inf).astype(violation.dtype)


def spread(parameter: Array, v: Vector) -> Array:
    """Return a parameter with the axes of v, or a number as it is.

    An entry of a shorter vector holds for a block of coordinates. (JAX would add the leading axes
    by itself, but not under `jax.numpy_rank_promotion("raise")`.)
    """
    shape, leading = jnp.shape(parameter), (1,) * (v.ndim - 1)
    if not shape:
        return parameter
    if not is_in_blocks(shape, v.shape[-1]):
        return jnp.reshape(parameter, leading + shape)
    # To the whole batch in one broadcast, whose transpose is one sum (10 times faster than two).
    blocks = jnp.reshape(parameter, (*leading, shape[0], 1))
    return jnp.broadcast_to(blocks, (*v.shape[:-1], shape[0], v.shape[-1] // shape[0])).reshape(
        v.shape
    )


def is_in_blocks(shape: tuple[int, ...], size: int) -> bool:
    """Return whether a parameter has one entry per block of several coordinates."""
    return len(shape) == 1 and 0 < shape[0] < size and size % shape[0] == 0


def median(value: Array) -> Array:
    """Return one number for a parameter with one entry per coordinate or block."""
    return value if value.ndim == 0 else jnp.median(value)


def ratio(a: Array, b: Array) -> Array:
    """Return `a / b`, each a number or with one entry per coordinate or block."""
    coordinates = jnp.zeros(math.lcm(a.size, b.size), a.dtype)
    return spread(a, coordinates) / spread(b, coordinates)


def check_length(owner: object, name: str, size: int, *, in_blocks: bool = False) -> None:
    """Check that a parameter is a number or has one entry per coordinate (or per block)."""
    shape = np.shape(getattr(owner, name))
    if shape in ((), (size,)) or (in_blocks and is_in_blocks(shape, size)):
        return
    blocks = f", or one for each of several blocks of equal size that make up {size}"
    raise HypergradError(
        f"{type(owner).__name__}.{name} must be a number or have shape ({size},); got shape "
        f"{shape}: give one entry for each of the {size} coordinates{blocks if in_blocks else ''}"
    )


def check_one_number(owner: object, name: str) -> None:
    """Check that a parameter is one number."""
    shape = np.shape(getattr(owner, name))
    if shape != ():
        raise HypergradError(
            f"{type(owner).__name__}.{name} must be one number; got shape {shape}: use a "
            "SeparableSum for several"
        )
