"""Every function of the package with its value in NumPy, and the points it is evaluated at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.problem.lower_level import cast_floats

INF = np.inf


class Case(NamedTuple):
    """A function on vectors of size 4, and its value once more in plain NumPy."""

    f: hg.AbstractFunction
    value: Callable[[np.ndarray], np.ndarray]
    separable: bool = True


def numpy_blur(v):
    """Convolve 2×2 images with the kernel, whose centre is its last entry."""
    images = v.reshape(*v.shape[:-1], 2, 2)
    moved = (np.roll(images, (a - 1, b - 1), (-2, -1)) for a, b in np.ndindex(2, 2))
    return sum(k * image for k, image in zip(KERNEL.ravel(), moved, strict=True)).reshape(v.shape)


def inside(v_is_inside: np.ndarray) -> np.ndarray:
    """An indicator. The sets in the list have some slack: a prox may sit on a bound by rounding."""
    return np.where(v_is_inside, 0.0, INF)


SLACK = 1e-14
KERNEL = np.array([[0.1, 0.1], [-0.1, 1.0]])
WEIGHTS, RADII = np.array([0.3, 0.7, 0.5, 1.2]), np.array([0.4, 0.6, 1.0, 0.2])
SMOOTHINGS, CENTER = np.array([0.2, 0.4, 0.6, 0.1]), np.array([0.5, -1.0, 0.0, 2.0])


def numpy_huber(v: np.ndarray, weight: Any, smoothing: Any) -> np.ndarray:
    size = np.abs(v)
    return np.sum(
        weight * np.where(size <= smoothing, v**2 / (2 * smoothing), size - smoothing / 2), -1
    )


KNOTS, JUMPS = (0.2, 0.7, 1.5), np.array([0.3, 0.1])
SLOPES = np.array([[0.8, 2.0, 0.5], [0.1, 0.0, 1.2]])


def numpy_potential(v: np.ndarray, slopes: np.ndarray, jumps: np.ndarray) -> np.ndarray:
    """`int_0^|v| phi'`: the jump, and each slope on its interval and after it."""
    slopes, jumps = (np.repeat(p, 4 // len(slopes), axis=0) for p in (slopes, jumps))
    size, total, start = np.abs(v), jumps * np.abs(v), 0.0
    for slope, knot in zip(slopes.T, KNOTS, strict=True):
        inside = np.clip(size - start, 0, knot - start)
        total = total + slope * (inside**2 / 2 + (knot - start) * np.maximum(size - knot, 0))
        start = knot
    return np.sum(total, -1)


# One weight per row and, for filter banks, one per block of rows.
PER_BLOCK = np.array([0.3, 0.9])
BLOCKS = np.repeat(PER_BLOCK, 2)

CASES = {
    "L1": Case(hg.L1(0.7), lambda v: 0.7 * np.sum(np.abs(v), -1)),
    "L1 rows": Case(hg.L1(WEIGHTS), lambda v: np.sum(WEIGHTS * np.abs(v), -1)),
    "L1 blocks": Case(hg.L1(PER_BLOCK), lambda v: np.sum(BLOCKS * np.abs(v), -1)),
    # With axis 0 the groups of shape (2, 2) are (v0, v2) and (v1, v3), with axis -1 neighbours.
    "GroupL1": Case(
        hg.GroupL1(0.7, shape=(2, 2)),
        lambda v: 0.7 * (np.hypot(v[..., 0], v[..., 2]) + np.hypot(v[..., 1], v[..., 3])),
        separable=False,
    ),
    "GroupL1 last axis": Case(
        hg.GroupL1(0.7, shape=(2, 2), axis=-1),
        lambda v: 0.7 * (np.hypot(v[..., 0], v[..., 1]) + np.hypot(v[..., 2], v[..., 3])),
        separable=False,
    ),
    "Huber": Case(hg.Huber(0.7, 0.4), lambda v: numpy_huber(v, 0.7, 0.4)),
    "Huber rows": Case(
        hg.Huber(WEIGHTS, SMOOTHINGS), lambda v: numpy_huber(v, WEIGHTS, SMOOTHINGS)
    ),
    "Huber blocks": Case(hg.Huber(WEIGHTS, PER_BLOCK), lambda v: numpy_huber(v, WEIGHTS, BLOCKS)),
    "ElasticNet blocks": Case(
        hg.ElasticNet(PER_BLOCK, WEIGHTS),
        lambda v: np.sum(BLOCKS * np.abs(v) + WEIGHTS / 2 * v**2, -1),
    ),
    "ElasticNet": Case(hg.ElasticNet(0.7, 0.4), lambda v: np.sum(0.7 * np.abs(v) + 0.2 * v**2, -1)),
    "ConvexPotential": Case(
        hg.ConvexPotential(SLOPES, KNOTS, JUMPS), lambda v: numpy_potential(v, SLOPES, JUMPS)
    ),
    "ConvexPotential smooth": Case(
        hg.ConvexPotential(SLOPES[:1], KNOTS), lambda v: numpy_potential(v, SLOPES[:1], np.zeros(1))
    ),
    "Quadratic": Case(hg.Quadratic(0.7), lambda v: 0.35 * np.sum(v**2, -1)),
    "Quadratic rows": Case(
        hg.Quadratic(WEIGHTS, CENTER), lambda v: np.sum(WEIGHTS / 2 * (v - CENTER) ** 2, -1)
    ),
    "Quadratic of weight 0": Case(hg.Quadratic(0.0, CENTER), lambda v: np.zeros(v.shape[:-1])),
    "Zero": Case(hg.Zero(), lambda v: np.zeros(v.shape[:-1])),
    "IndicatorZero": Case(hg.IndicatorZero(), lambda v: inside(np.all(v == 0, -1))),
    "Box": Case(hg.Box(0.6), lambda v: inside(np.all(np.abs(v) <= 0.6 + SLACK, -1))),
    "Box rows": Case(hg.Box(RADII), lambda v: inside(np.all(np.abs(v) <= RADII + SLACK, -1))),
    "BoxQuadratic": Case(
        hg.BoxQuadratic(0.6, 0.7),
        lambda v: inside(np.all(np.abs(v) <= 0.6 + SLACK, -1)) + 0.35 * np.sum(v**2, -1),
    ),
    "L2Ball": Case(
        hg.L2Ball(0.9), lambda v: inside(np.linalg.norm(v, axis=-1) <= 0.9 + SLACK), separable=False
    ),
    "NonNegative": Case(hg.NonNegative(), lambda v: inside(np.all(v >= -SLACK, -1))),
    "DataFidelity": Case(
        hg.DataFidelity(hg.operators.Blur(KERNEL, (2, 2)), 1.4),
        lambda v: 0.7 * np.sum(numpy_blur(v) ** 2, -1),
        separable=False,
    ),
    "SeparableSum": Case(
        hg.SeparableSum((hg.L1(0.7), hg.L2Ball(0.9)), (1, 3)),
        lambda v: (
            0.7 * np.abs(v[..., 0]) + inside(np.linalg.norm(v[..., 1:], axis=-1) <= 0.9 + SLACK)
        ),
        separable=False,
    ),
}

# In one dtype: a Python number is weakly typed, and would be compiled for once more.
CASES = {name: case._replace(f=cast_floats(case.f, float)) for name, case in CASES.items()}
every_function = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

# Small and large entries, so that both sides of every kink occur; away from the kinks themselves,
# which test_points_are_away_from_kinks checks.
LENGTHS = np.array([0.1, 0.3, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0])
POINTS = jnp.asarray(LENGTHS[:, None] * np.random.default_rng(0).standard_normal((8, 4)))
STEP = jnp.asarray(0.8)


class Evaluation(NamedTuple):
    """All that a function computes."""

    value: jax.Array
    conjugate: jax.Array
    prox: jax.Array
    prox_conjugate: jax.Array
    margin: jax.Array


# Compiled as a whole and used with few shapes: operation by operation, compiling takes minutes.
@jax.jit
def evaluate(f: hg.AbstractFunction, z: jax.Array, step: jax.Array) -> Evaluation:
    proxes = f.prox(z, step), f.prox_conjugate(z, step)
    return Evaluation(f(z), f.conjugate(z), *proxes, f.margin(z, step))
