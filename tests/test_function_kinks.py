"""Functions at kinks, on the border of their domains and near them, by numbers written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import FUNCTIONS

import hypergrad as hg

INF = np.inf
POINTS, STEP = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4))), jnp.asarray(0.8)

# ----------------------------------------------------------------------------------- at kinks

# Numbers that floating point holds exactly, so that z is on the kink and not beside it.
BALL = np.diag([1.0, 1, 1, 1]) - np.outer([3.0, 0, 4, 0], [3.0, 0, 4, 0]) / 25  # outside, at (3,4)
POTENTIAL = hg.ConvexPotential([[1.0, 2.0]], (0.5, 1.0), jump=0.5)
KINKS = {
    # name: (function, method, z, step, the prox Jacobian there; a vector is its diagonal)
    "Box": (hg.Box(0.5), "prox", [0.5, -0.5, 0.25, 0.75], 3.0, [0, 0, 1, 0]),
    "Box dual": (hg.Box(0.5), "prox_conjugate", [1.5, -1.5, 1.0, 2.0], 3.0, [1, 1, 0, 1]),
    "L1": (hg.L1(0.5), "prox", [1.5, -1.5, 1.0, 2.0], 3.0, [1, 1, 0, 1]),
    "L1 dual": (hg.L1(0.5), "prox_conjugate", [0.5, -0.5, 0.25, 0.75], 3.0, [0, 0, 1, 0]),
    "Huber": (hg.Huber(0.5, 0.25), "prox", [0.75, -0.75, 0.5, 1.0], 1.0, [1, 1, 1 / 3, 1]),
    "Huber dual": (
        hg.Huber(0.5, 0.25),
        "prox_conjugate",
        [0.75, -0.75, 0.5, 1.0],
        1.0,
        [0, 0, 2 / 3, 0],
    ),
    "ElasticNet": (
        hg.ElasticNet(0.5, 3.0),
        "prox",
        [0.5, -0.5, 0.25, 1],
        1.0,
        [1 / 4, 1 / 4, 0, 1 / 4],
    ),
    "ElasticNet dual": (
        hg.ElasticNet(0.5, 3.0),
        "prox_conjugate",
        [0.5, -0.5, 0.25, 1],
        1.0,
        [3 / 4, 3 / 4, 1, 3 / 4],
    ),
    # The images of the knots 0, 0.5 and 1 are 0.5, 1.5 and 3.
    "ConvexPotential": (
        POTENTIAL,
        "prox",
        [0.5, -1.5, 3.0, 0.25],
        1.0,
        [1 / 2, 1 / 3, 1, 0],
    ),
    "ConvexPotential dual": (
        POTENTIAL,
        "prox_conjugate",
        [0.5, -1.5, 3.0, 0.25],
        1.0,
        [1 / 2, 2 / 3, 0, 1],
    ),
    "BoxQuadratic": (
        hg.BoxQuadratic(0.5, 1.0),
        "prox",
        [1.0, -1.0, 0.5, 2.0],
        1.0,
        [0, 0, 1 / 2, 0],
    ),
    "NonNegative": (hg.NonNegative(), "prox", [0.0, -0.0, 1.0, -1.0], 1.0, [0, 0, 1, 0]),
    "NonNegative dual": (
        hg.NonNegative(),
        "prox_conjugate",
        [0.0, -0.0, 1.0, -1.0],
        1.0,
        [1, 1, 0, 1],
    ),
    "L2Ball": (hg.L2Ball(5.0), "prox", [3.0, 0, 4, 0], 1.0, BALL),
    "L2Ball dual": (hg.L2Ball(5.0), "prox_conjugate", [3.0, 0, 4, 0], 1.0, np.eye(4) - BALL),
    "GroupL1": (
        hg.GroupL1(5.0, shape=(2, 2)),
        "prox",
        [3.0, 1, 4, 1],
        1.0,
        # The second group is inside: the prox is 0 around it.
        np.diag([1.0, 0, 1, 0]) - np.diag([1.0, 0, 1, 0]) @ BALL,
    ),
    "GroupL1 dual": (
        hg.GroupL1(5.0, shape=(2, 2)),
        "prox_conjugate",
        [3.0, 1, 4, 1],
        1.0,
        np.diag([0.0, 1, 0, 1]) + np.diag([1.0, 0, 1, 0]) @ BALL,
    ),
}


def jacobian(prox: Callable[..., jax.Array], z: Any, step: float) -> np.ndarray:
    return np.asarray(jax.jit(jax.jacrev(lambda z: prox(z, step)))(jnp.asarray(z)))


@pytest.mark.parametrize("name", KINKS)
def test_kink_convention(name):
    """A projection has the derivative of its outside; the rest follows by Moreau."""
    f, method, z, step, expected = KINKS[name]
    expected = np.asarray(expected, float)
    expected = np.diag(expected) if expected.ndim == 1 else expected
    np.testing.assert_allclose(jacobian(getattr(f, method), z, step), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("f", "method", "z"),
    [
        (hg.Box(5.0), "prox", [5.0, -5.0]),
        (hg.L1(5.0), "prox_conjugate", [5.0, -5.0]),
        (hg.L2Ball(5.0), "prox", [3.0, 4.0]),
        (hg.GroupL1(5.0, shape=(2, 1)), "prox_conjugate", [3.0, 4.0]),
    ],
)
def test_kink_convention_in_the_radius(f, method, z):
    """Outside, a projection moves along with its bound: `d/d radius = z / ||z||`."""
    z = jnp.asarray(z)
    (derivative,) = jax.tree.leaves(
        jax.jacrev(lambda parameters: getattr(eqx.combine(parameters, f), method)(z, 1.0))(
            eqx.filter(f, eqx.is_inexact_array)
        )
    )
    np.testing.assert_allclose(derivative, z / 5.0, rtol=1e-15)


@pytest.mark.parametrize(
    "f",
    [hg.L1(0.0), hg.GroupL1(0.0, shape=(2, 2)), hg.ElasticNet(0.0, 1e-300)],
    ids=["L1", "GroupL1", "ElasticNet"],
)
@pytest.mark.parametrize("z", [jnp.zeros(4), POINTS[0]], ids=["at 0", "elsewhere"])
def test_weight_zero_is_the_zero_function(f, z):
    """Its prox is the identity, and that of its conjugate the constant 0, everywhere."""
    np.testing.assert_array_equal(f.prox(z, 1.0), z)
    np.testing.assert_array_equal(f.prox_conjugate(z, 1.0), np.zeros(4))
    np.testing.assert_array_equal(jacobian(f.prox, z, 1.0), np.eye(4))
    np.testing.assert_array_equal(jacobian(f.prox_conjugate, z, 1.0), np.zeros((4, 4)))


# ------------------------------------------------------------------- values on and off the set

EPS = np.finfo(float).eps


@pytest.mark.parametrize(
    ("value", "v", "expected"),
    [
        (hg.Box(0.5), [0.5, -0.5], 0.0),
        (hg.Box(0.5), [0.5 * (1 + 4 * EPS), 0.0], 0.0),  # beyond by rounding
        (hg.Box(0.5), [0.5 + 1e-9, 0.0], INF),
        (hg.Box([0.5, 2.0]), [0.5, -2.0], 0.0),
        (hg.Box([0.5, 2.0]), [2.0, 0.5], INF),
        (hg.BoxQuadratic(0.5, 4.0), [0.5, 0.5], 1.0),
        (hg.BoxQuadratic(0.5, 4.0), [0.5, 0.6], INF),
        (hg.L2Ball(5.0), [3.0, 4.0], 0.0),
        (hg.L2Ball(5.0), [3.0, 4.0 + 1e-9], INF),
        (hg.NonNegative(), [0.0, 2.0], 0.0),
        (hg.NonNegative(), [-1e-9, 2.0], INF),
        (hg.NonNegative(), [-1e-12, 1e4], 0.0),  # beyond by the rounding of a product with K
        (hg.L1(0.5).conjugate, [0.5, -0.5], 0.0),
        (hg.L1(0.5).conjugate, [0.5 + 1e-9, 0.0], INF),
        (hg.L1([0.5, 0.0]).conjugate, [0.5, 0.0], 0.0),
        (hg.L1([0.5, 0.0]).conjugate, [0.5, 1e-9], INF),
        (hg.GroupL1(5.0, shape=(2, 1)).conjugate, [3.0, 4.0], 0.0),
        (hg.GroupL1(5.0, shape=(2, 1)).conjugate, [3.0, 4.0 + 1e-9], INF),
        (hg.Huber(0.5, 2.0).conjugate, [0.5, 0.0], 0.5),
        (hg.Huber(0.5, 2.0).conjugate, [0.5 + 1e-9, 0.0], INF),
        (POTENTIAL.conjugate, [2.0, 0.5], 0.875),  # 2 * 1 - phi(1)
        (POTENTIAL.conjugate, [2.0 + 1e-9, 0.0], INF),
        (hg.NonNegative().conjugate, [0.0, -2.0], 0.0),
        (hg.NonNegative().conjugate, [1e-9, -2.0], INF),
        (hg.NonNegative().conjugate, [1e-12, -1e4], 0.0),
        (hg.Zero().conjugate, [0.0, 0.0], 0.0),
        (hg.Zero().conjugate, [1e-9, 0.0], INF),
    ],
)
def test_infeasible_is_infinite(value, v, expected):
    np.testing.assert_allclose(value(jnp.asarray(v)), expected, rtol=1e-15)


# ------------------------------------------------------------------------------------- margins

MARGINS = {
    # name: (function, z, step, expected)
    "L1": (hg.L1(0.5), [0.5, -0.25, 1.0, 0.0], 1.0, [0, 0.5, 1, 1]),
    "L1 longer step": (hg.L1(0.5), [0.5, -0.25, 1.0, 0.0], 2.0, [0.5, 0.75, 0, 1]),
    "L1 rows": (hg.L1([0.5, 0.0]), [0.5, 0.5], 1.0, [0, INF]),
    "GroupL1": (hg.GroupL1(5.0, shape=(2, 2)), [3.0, 6, 4, 8], 1.0, [0, 1]),
    "GroupL1 longer step": (hg.GroupL1(5.0, shape=(2, 2)), [3.0, 6, 4, 8], 2.0, [0.5, 0]),
    "Huber": (hg.Huber(0.5, 0.25), [0.75, -1.25, 0.0], 1.0, [0, 1, 1.5]),
    "ElasticNet": (hg.ElasticNet(0.5, 3.0), [0.5, -0.25, 1.0, 0.0], 1.0, [0, 0.5, 1, 1]),
    "ConvexPotential": (POTENTIAL, [0.5, -1.5, 2.0, 4.5, 0.25], 1.0, [0, 0, 1 / 3, 0.5, 0.5]),
    "ConvexPotential without kinks": (
        hg.ConvexPotential([[0.0, 0.0], [1.0, 1.0]], (0.5, 1.0), [0.0, 0.0]),
        [0.5, 3.0],
        1.0,
        [INF, 0.5],  # equal slopes are no kink, and neither is a jump of 0
    ),
    "Quadratic": (hg.Quadratic(0.5), [0.5, -0.25], 1.0, [INF]),
    "Zero": (hg.Zero(), [0.5, -0.25], 1.0, [INF]),
    "IndicatorZero": (hg.IndicatorZero(), [0.0, -0.25], 1.0, [INF]),
    "Box": (hg.Box(0.5), [0.5, -0.25, 1.0, 0.0], 7.0, [0, 0.5, 1, 1]),
    "Box rows": (hg.Box([0.5, 0.25]), [0.25, 0.25], 7.0, [0.5, 0]),
    "BoxQuadratic": (hg.BoxQuadratic(0.5, 1.0), [1.0, -0.5, 2.0, 0.0], 1.0, [0, 0.5, 1, 1]),
    "L2Ball": (hg.L2Ball(5.0), [6.0, 8.0], 7.0, [1]),
    "NonNegative": (hg.NonNegative(), [0.0, -2.0, 3.0], 7.0, [0, 2, 3]),
    "SeparableSum": (
        hg.SeparableSum((hg.L1(0.5), hg.L2Ball(5.0)), (2, 2)),
        [0.5, 1.0, 6.0, 8.0],
        1.0,
        [0, 1, 1],
    ),
}


def test_margins_are_all_listed():
    assert {type(f).__name__ for f, *_ in MARGINS.values()} == {
        name.split()[0] for name in FUNCTIONS
    }


@pytest.mark.parametrize("name", MARGINS)
def test_margin(name):
    f, z, step, expected = MARGINS[name]
    np.testing.assert_array_equal(f.margin(jnp.asarray(z), step), np.asarray(expected, float))


@pytest.mark.parametrize(
    ("f", "z", "expected"),
    [
        # prox_{s f*} is a clip at the weight, whatever s; Huber's kink is at weight + s smoothing.
        (hg.L1(0.5), [0.5, -0.25, 1.0, 0.0], [0, 0.5, 1, 1]),
        (hg.GroupL1(5.0, shape=(2, 2)), [3.0, 6, 4, 8], [0, 1]),
        (hg.Huber(0.5, 0.25), [1.0, -1.5, 0.0], [0, 1, 2]),
    ],
)
def test_margin_of_the_conjugate(f, z, expected):
    s = 2.0
    np.testing.assert_array_equal(f.margin(jnp.asarray(z) / s, 1 / s), np.asarray(expected, float))


@pytest.mark.parametrize(
    "scaled",
    [
        lambda c: hg.L1(0.7 * c),
        lambda c: hg.GroupL1(0.7 * c, shape=(2, 2)),
        lambda c: hg.Huber(0.7 * c, 0.4 * c),
        lambda c: hg.ElasticNet(0.7 * c, 0.4),
        lambda c: hg.ConvexPotential([[0.7, 0.2]], (0.4 * c, 0.9 * c), 0.3 * c),
        lambda c: hg.Box(0.6 * c),
        lambda c: hg.BoxQuadratic(0.6 * c, 0.7),
        lambda c: hg.L2Ball(0.9 * c),
        lambda c: hg.SeparableSum((hg.L1(0.7 * c), hg.L2Ball(0.9 * c)), (1, 3)),
    ],
)
def test_margin_is_free_of_units(scaled):
    """Data and kinks in other units: the same margin (NonNegative alone has no size to go by)."""
    np.testing.assert_allclose(
        scaled(0.01).margin(0.01 * POINTS, STEP), scaled(1.0).margin(POINTS, STEP), rtol=1e-13
    )
