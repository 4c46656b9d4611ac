"""The values of a function at random points: the input of the checks of `check_function`.

One program for everything, since compiling it is nearly all that it costs; for the same reason a
method is called once with all its points wherever that is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad.problem.functions._base import AbstractFunction, Scalar, prox, prox_conjugate

__all__ = ["PARTNERS", "ROUNDINGS", "TRUSTED", "Draws", "Probe", "draw", "probe"]

_STEPS = (0.05, 1.0, 8.0)
# Points of five magnitudes, and 0, where every solve starts: an even number, for a batch of two
# axes.
_MAGNITUDES, _EACH = (0.01, 0.1, 1.0, 10.0, 100.0), 5
_POINTS = len(_MAGNITUDES) * _EACH + 1
# Points of all magnitudes to compare each with.
PARTNERS = np.linspace(0, _POINTS - 1, 8).astype(int)
# Moves away from a prox: near ones find a slope that is left, far ones another minimiser.
_LENGTHS = (1e-6, 1e-4, 1e-2, 0.3, 1.0)
_DIRECTIONS = 6
_COORDINATES = 16
_MOVES = 4
# Differences to both sides that differ by less are those of one straight piece.
_STRAIGHT = 1e-3

# In units of the machine precision and relative to all that was added up: a handful of operations
# for an entry, and the rounding of a sum, which grows like the root of its length.
ROUNDINGS = 64.0
# The change of f under four roundings of its argument is the least of what its prox may miss: it
# was measured in four directions, and is trusted to so much.
TRUSTED = 16.0


class Draws(NamedTuple):
    """The points at which the function is evaluated."""

    z: Array  # (points, size)
    sizes: Array  # (points,), their magnitudes
    steps: Array  # (steps,)
    directions: Array  # (directions, size)
    coordinates: Array  # (points, coordinates), which ones each point is moved along
    tangents: Array  # (3, points, size); the last is the first with other signs


class Probe(NamedTuple):
    """The values at these points; the first axes are steps and points."""

    prox: Any
    value: Any
    prox_alone: Any  # one sample at a time
    value_alone: Any
    prox_conjugate: Any
    by_moreau: Any
    fenchel_young: Any  # f(v) + f*(y) - <v, y>, NaN where f* is not known
    fenchel_young_allowed: Any
    derivatives: Any  # (steps, points, tangents, size), of the prox
    conjugate_derivatives: Any
    mismatch: Any  # (steps, points), of the derivative of the prox along the first tangent
    conjugate_mismatch: Any
    gain: Any  # (..., lengths, moves): how much lower the objective is elsewhere
    gain_scale: Any  # what its rounding is relative to
    convex: Any  # (..., partners): f in the middle less the mean of f
    doubled: Any  # f(2 p)
    noise: Any  # the change of f under a few roundings of p


def draw(size: int, seed: int, dtype: Any) -> Draws:
    rng = np.random.default_rng(seed)
    magnitudes = np.repeat((0.0, *_MAGNITUDES), (1, *[_EACH] * len(_MAGNITUDES)))
    coordinates = [rng.permutation(size)[:_COORDINATES] for _ in magnitudes]
    numbers = (
        magnitudes[:, None] * rng.standard_normal((_POINTS, size)) + 0.0,  # no -0
        np.where(magnitudes > 0, magnitudes, 1.0),
        _STEPS,
        rng.standard_normal((_DIRECTIONS, size)),
    )
    z, sizes, steps, directions = (jnp.asarray(number, dtype) for number in numbers)
    a, b = rng.standard_normal((2, _POINTS, size))
    tangents = jnp.asarray([a, b, a * rng.choice([-1, 1], a.shape)], dtype)
    return Draws(z, sizes, steps, directions, jnp.asarray(np.stack(coordinates)), tangents)


def probe(f: AbstractFunction, draws: Draws) -> Probe:
    """Evaluate everything in one program."""
    return jax.lax.map(lambda step: _probe_at(f, draws, step), draws.steps)


def _probe_at(f: AbstractFunction, draws: Draws, step: Array) -> Probe:
    z, eps = draws.z, jnp.finfo(draws.z.dtype).eps
    p, derivatives, mismatch = _with_derivatives(prox, f, draws, step)
    y, conjugate_derivatives, conjugate_mismatch = _with_derivatives(prox_conjugate, f, draws, step)
    v = f.prox(z / step, 1 / step)  # which Moreau's identity makes (z - y) / step
    # Every call is compiled, so that there is one for all points and their roundings.
    rounding = eps * (jnp.max(jnp.abs(z), axis=-1) + jnp.max(jnp.abs(p), axis=-1))
    rounding_v = eps * (jnp.max(jnp.abs(z), axis=-1) / step + jnp.max(jnp.abs(v), axis=-1))
    points = jnp.concatenate([p[None], v[None], (p[PARTNERS][:, None] + p) / 2, 2 * p[None]])
    near_p, near_v = _rounded(p, rounding, draws), _rounded(v, rounding_v, draws)
    values = f(jnp.concatenate([near_p, near_v, points]))
    at_p, at_v, (value, value_v, *between, doubled) = jnp.split(values, [_MOVES, 2 * _MOVES])
    gain, gain_scale = _gains(f, draws, step, p, value)
    gap, allowed = _fenchel_young(f, draws, v, y, value_v, step * rounding_v)
    return Probe(
        prox=p,
        value=value,
        prox_alone=jax.vmap(lambda z: f.prox(z, step))(z),
        value_alone=jax.vmap(f)(p),
        prox_conjugate=y,
        by_moreau=z - step * v,
        fenchel_young=gap,
        fenchel_young_allowed=allowed + TRUSTED * _largest_change(at_v, value_v),
        derivatives=derivatives,
        conjugate_derivatives=conjugate_derivatives,
        mismatch=mismatch,
        conjugate_mismatch=conjugate_mismatch,
        gain=gain,
        gain_scale=gain_scale,
        convex=(jnp.stack(between) - (value[PARTNERS][:, None] + value) / 2).T,
        doubled=doubled,
        noise=_largest_change(at_p, value),
    )


def _rounded(v: Array, rounding: Array, draws: Draws) -> Array:
    """Moved by a few roundings in some directions, `(moves, points, size)`."""
    return v + 4 * rounding[:, None] * draws.directions[:_MOVES, None]


def _largest_change(near: Array, value: Array) -> Array:
    change = jnp.abs(near - value)
    return jnp.max(jnp.where(jnp.isfinite(change), change, 0.0), axis=0)


def _gains(
    f: AbstractFunction, draws: Draws, step: Array, p: Array, value: Array
) -> tuple[Array, Array]:
    """Return by how much a move lowers the objective of the prox, and the size to compare with."""

    def at_point(at: tuple[Array, ...]) -> tuple[Array, Array]:
        z, v, f_v, size, coordinates = at
        size = jnp.maximum(size, jnp.max(jnp.abs(v)))
        units = jax.nn.one_hot(coordinates, z.size, dtype=z.dtype)
        anywhere = size * jnp.concatenate([draws.directions, units])
        moves = jnp.concatenate([jnp.stack([z - v, v]), p[PARTNERS] - v, anywhere])
        moves = jnp.concatenate([moves, -moves])

        def at_length(length: Array) -> tuple[Array, Array]:
            d = length * moves
            f_u = f(v + d)
            gain = step * (f_v - f_u) - jnp.sum(d * (d / 2 + v - z), axis=-1)
            rest, reach = jnp.linalg.norm(v - z), jnp.linalg.norm(z) + jnp.linalg.norm(v)
            length_d = jnp.linalg.norm(d, axis=-1)
            scale = step * (jnp.abs(f_v) + jnp.abs(f_u)) + (rest + length_d) * (reach + length_d)
            # An indicator may let each coordinate through by some roundings of 1.
            scale += 2 * jnp.sum(jnp.abs(v - z))
            # Where f is infinite or does not exist, nothing is gained.
            known = jnp.isfinite(f_u)
            return jnp.where(known, gain, -1.0), jnp.where(known, scale, 1.0)

        return jax.lax.map(at_length, jnp.asarray(_LENGTHS, z.dtype))

    return jax.lax.map(at_point, (draws.z, p, value, draws.sizes, draws.coordinates))


def _fenchel_young(
    f: AbstractFunction, draws: Draws, v: Array, y: Array, value: Array, rounding: Array
) -> tuple[Array, Array]:
    """Return `f(v) + f*(y) - <v, y>`, and how much of it may be rounding.

    `y` may lie beyond a bound by its rounding, where f* is infinite: a point nearer to 0 is taken
    first. Where f* is finite on a subspace only, that point leaves it, and y itself is taken.
    """
    slack = ROUNDINGS * rounding
    nearer = jnp.sign(y) * jnp.maximum(jnp.abs(y) - slack[:, None], 0.0)

    def at(y: Array) -> tuple[Array, Array]:
        conjugates = f.conjugate(jnp.concatenate([_rounded(y, rounding, draws), y[None]]))
        near, conjugate = conjugates[:-1], conjugates[-1]
        added = jnp.abs(value) + jnp.abs(conjugate) + jnp.sum(jnp.abs(v * y), axis=-1)
        allowed = ROUNDINGS * jnp.finfo(v.dtype).eps * jnp.where(jnp.isfinite(added), added, 0.0)
        allowed += slack * jnp.sum(jnp.abs(v), axis=-1) + TRUSTED * _largest_change(near, conjugate)
        return value + conjugate - jnp.sum(v * y, axis=-1), allowed

    (gap, allowed), (gap_itself, allowed_itself) = at(nearer), at(y)
    leaves = jnp.isinf(gap)
    return jnp.where(leaves, gap_itself, gap), jnp.where(leaves, allowed_itself, allowed)


def _with_derivatives(
    of: Callable[[AbstractFunction, Array, Scalar], Array],
    f: AbstractFunction,
    draws: Draws,
    step: Array,
) -> tuple[Array, Array, Array]:
    """A prox, of a batch of two axes, its derivatives in z along the tangents, and their error.

    The derivatives are NaN where one in a parameter of f is not finite.
    """
    z, two_axes = draws.z, (2, _POINTS // 2, draws.z.shape[-1])
    p, pull = eqx.filter_vjp(lambda f, z: of(f, z.reshape(two_axes), step).reshape(z.shape), f, z)
    in_f, along = jax.vmap(pull)(draws.tangents)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(in_f)]
    along = jnp.where(jnp.all(jnp.asarray(finite, bool)), along, jnp.nan)
    mismatch = _mismatch(lambda z: of(f, z, step), z, p, draws.tangents[0], along[0])
    return p, jnp.swapaxes(along, 0, 1), mismatch


def _largest(v: Array) -> Array:
    return jnp.max(jnp.abs(v), axis=-1, keepdims=True)


def _mismatch(
    at_z: Callable[[Array], Array], z: Array, p: Array, a: Array, derivative: Array
) -> Array:
    """The derivative along a tangent less a difference, relative to the tangent.

    Of the coordinates where the differences to both sides agree: at a kink a derivative may be
    that of either side. (Around 0 they agree across two kinks, so that 0 is left out.)
    """
    h = jnp.cbrt(jnp.finfo(z.dtype).eps) * (_largest(z) + _largest(p))
    h = jnp.where(_largest(z) > 0, h, 1.0)
    ahead, behind = at_z(jnp.stack([z + h * a, z - h * a]))
    difference, bend = (ahead - behind) / (2 * h), jnp.abs(ahead - 2 * p + behind) / h
    straight = (bend <= _STRAIGHT * _largest(a)) & (_largest(z) > 0)
    return jnp.max(
        jnp.where(straight, jnp.abs(difference - derivative), 0.0) / _largest(a), axis=-1
    )
