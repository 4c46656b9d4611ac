"""Step sizes from the norm of K and the scales of F and G, and what they owe to units."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hypergrad as hg

K = np.random.default_rng(0).standard_normal((6, 4)) / 3
X_TILDE = np.random.default_rng(2).standard_normal((5, 4))
L1_BOX = hg.LowerLevel(K=K, F=hg.L1(0.3), G=hg.Box(0.2))


@pytest.mark.parametrize("ratio", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(
    ("F", "G", "primal_scale", "scale_ratio"),
    [
        (hg.L1(0.3), hg.Box(0.2), None, 0.3 / 0.2),
        (hg.L1([0.1, 0.2, 0.3, 0.4, 0.5, 9.0]), hg.Box(0.2), None, 0.35 / 0.2),  # the median
        (hg.L1(0.3), hg.Box(0.2), 5.0, 0.3 / 5.0),  # what the user says goes first
        (hg.L1(0.3), hg.Quadratic(1.0), None, 0.3),
        (hg.L1(0.3), hg.Quadratic(1.0), 0.05, 0.3 / 0.05),
        (hg.Quadratic(0.3), hg.Box(0.2), None, 1 / 0.2),
        (hg.Quadratic(0.3), hg.Quadratic(1.0), None, 1.0),
        (hg.L1(0.0), hg.Box(0.2), None, 1 / 0.2),  # a zero scale is no scale
    ],
)
def test_step_sizes_from_the_norm(ratio, F, G, primal_scale, scale_ratio):
    solver = hg.ChambollePock(step_ratio=ratio, primal_scale=primal_scale)
    tau, sigma, theta = solver.step_sizes(hg.LowerLevel(K=K, F=F, G=G))
    assert float(sigma / tau) == pytest.approx(ratio * scale_ratio**2, rel=1e-13)
    product = float(tau * sigma) * np.linalg.norm(K, 2) ** 2
    assert 1 - 1e-10 <= product <= 1  # from an upper bound on the norm: never too long
    assert theta == 1


@pytest.mark.parametrize("given", [{"tau": 0.07}, {"sigma": 0.07}])
def test_one_step_size_fixes_the_other(given):
    sizes = hg.ChambollePock(**given).step_sizes(L1_BOX)
    assert float(getattr(sizes, *given)) == 0.07
    assert float(sizes.tau * sizes.sigma) * np.linalg.norm(K, 2) ** 2 == pytest.approx(1, abs=1e-10)


def test_given_step_sizes_are_taken_as_they_are():
    sizes = hg.ChambollePock(tau=0.07, sigma=0.11, theta=0.5).step_sizes(L1_BOX)
    assert tuple(map(float, sizes)) == (0.07, 0.11, 0.5)


def test_with_step_sizes_writes_them_out():
    problem, solver = L1_BOX, hg.ChambollePock(iterations=20, step_ratio=3.0, theta=0.9)
    written = solver.with_step_sizes(problem)
    assert written.iterations == 20
    expected = solver.step_sizes(problem)
    assert (written.tau, written.sigma, written.theta) == tuple(expected)
    assert written.step_sizes(problem) == expected


def test_with_step_sizes_changes_nothing_else():
    given = {"step_ratio": 3.0, "primal_scale": 2.0, "tolerance": 1e-3}
    solver = hg.ChambollePock(20, **given, acceleration=hg.RestartedHalpern())
    written = solver.with_step_sizes(L1_BOX)
    for name in (*given, "iterations", "acceleration"):
        assert eqx.tree_equal(getattr(written, name), getattr(solver, name)), name


@pytest.mark.parametrize(
    ("operator", "norm"),
    [
        (jnp.asarray(K), np.linalg.norm(K, 2)),
        # Its singular values crowd at 1, where Lanczos bounds the norm least tightly.
        (lx.DiagonalLinearOperator(1 - jnp.arange(300) / 300), 1.0),
    ],
    ids=["matrix", "matrix-free"],
)
def test_the_longest_steps_are_allowed(operator, norm):
    """`tau sigma ||K||^2 = 1`, where the norm is only bounded from above."""
    problem = hg.LowerLevel(K=operator, F=hg.L1(0.3), G=hg.Quadratic(1.0))
    hg.ChambollePock(tau=0.5, sigma=2 / norm**2).check_step_sizes(problem)


# --------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(("data", "weight"), [(0.01, 0.01), (0.01, 3.0), (50.0, 1.0)])
@pytest.mark.parametrize("name", ["Box", "Quadratic"])
def test_other_units_change_nothing(name, data, weight):
    """MATHEMATICS section 2: r scales with the data and y with the weight of F.

    A quadratic's weight is the unit of y over that of r. It has no scale to tell, so the user's
    primal_scale carries the unit of the data.
    """

    def solve(data: float, weight: float):
        G = hg.Box(0.2 * data) if name == "Box" else hg.Quadratic(weight / data)
        problem = hg.LowerLevel(K=K, F=hg.L1(0.3 * weight), G=G)
        primal_scale = None if name == "Box" else 0.4 * data
        # So few iterations that it is far from converged: the iterates agree, not the limits.
        solver = hg.ChambollePock(4, primal_scale=primal_scale)
        return hg.solve(problem, data * X_TILDE, solver=solver, strategy=hg.Truncation(1))

    one, other = solve(1.0, 1.0), solve(data, weight)
    assert jnp.max(one.stats.residual) > 1e-2
    np.testing.assert_allclose(other.x / data, one.x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(other.state.r / data, one.state.r, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(other.y / weight, one.y, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(other.stats.residual, one.stats.residual, atol=1e-14)
    np.testing.assert_allclose(other.stats.margin, one.stats.margin, rtol=1e-9)
    np.testing.assert_allclose(other.stats.gap / (data * weight), one.stats.gap, atol=1e-14)
