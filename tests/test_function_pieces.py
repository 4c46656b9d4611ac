"""What the error bound takes from a function: pieces of its prox, modulus of strong convexity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg

FUNCTIONS = [
    hg.L1(0.7),
    hg.Huber(0.7, 0.4),
    hg.ElasticNet(0.7, 0.5),
    hg.ConvexPotential([[0.7, 1.5]], (0.4, 1.0)),
    hg.ConvexPotential([[0.7, 1.5], [0.3, 0.1]], (0.4, 1.0), [0.2, 0.6]),
    hg.Quadratic(0.7, 0.2),
    hg.Zero(),
    hg.IndicatorZero(),
    hg.Box(0.7),
    hg.BoxQuadratic(0.7, 0.5),
    hg.NonNegative(),
    hg.SeparableSum((hg.L1(0.7), hg.Box(0.3)), (2000, 2000)),
]


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_a_prox_is_affine_within_a_piece(f, key):
    step = jnp.asarray(0.8)
    a, b = 2 * jax.random.normal(key, (2, 4000))
    bent = jnp.abs(f.prox((a + b) / 2, step) - (f.prox(a, step) + f.prox(b, step)) / 2) > 1e-12
    crossed = jnp.abs(f.piece(a, step) - f.piece(b, step))
    assert not np.any(bent & (crossed == 0))
    assert np.all(bent[crossed == 1])  # and not within two: pieces are not cut without need
    conjugate = f.piece(a / step, 1 / step) == f.piece(b / step, 1 / step)
    middle = f.prox_conjugate((a + b) / 2, step)
    ends = (f.prox_conjugate(a, step) + f.prox_conjugate(b, step)) / 2
    assert np.all(jnp.abs(middle - ends)[conjugate] <= 1e-12)
    assert (np.asarray(crossed) > 0).any() == (
        type(f) not in (hg.Quadratic, hg.Zero, hg.IndicatorZero)
    )


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_strong_convexity_is_the_modulus(f, key):
    known = {hg.Quadratic: 0.7, hg.ElasticNet: 0.5, hg.BoxQuadratic: 0.5}
    modulus = f.strong_convexity
    assert (None if modulus is None else float(modulus)) == known.get(type(f))
    if modulus is not None:
        a, b = jax.random.uniform(key, (2, 100, 1), minval=-0.7, maxval=0.7)
        bend = (f(a) + f(b)) / 2 - f((a + b) / 2) - modulus / 8 * jnp.sum((a - b) ** 2, axis=-1)
        assert np.all(bend >= -1e-14)
        assert np.min(bend) < 1e-3  # a larger modulus would be too much


def test_a_function_that_does_not_say_so_is_not_certified():
    assert hg.GroupL1(0.1, shape=(2, 1)).piece(jnp.zeros(2), 1.0) is None
    assert hg.L2Ball(1.0).piece(jnp.zeros(2), 1.0) is None
    mixed = hg.SeparableSum((hg.L1(0.1), hg.L2Ball(1.0)), (1, 2))
    assert mixed.piece(jnp.zeros(3), 1.0) is None
    sum_of_two = hg.SeparableSum((hg.Huber(0.1, 1.0), hg.Quadratic(1.0)), (1, 1))
    assert sum_of_two.smooth
    assert sum_of_two.strong_convexity is None
