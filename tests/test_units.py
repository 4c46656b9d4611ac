"""A status means the same in every unit, at every offset, step ratio and precision.

Oracles: the active-set solutions of `helpers` in plain NumPy, at unit scale and in float64.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import Numbers, numbers
from helpers import (
    solve_group_quadratic,
    solve_l1_quadratic,
    solve_lasso,
)
from hypothesis import given

import hypergrad as hg
from hypergrad.chambolle_pock import (
    Iteration,
    PairScale,
    StepSizes,
    certify,
    rounding_of_pair,
)

N = 7
DIFFERENCES = np.diff(np.eye(N), axis=0)  # blind to an offset, and exact on a grid of numbers
GROUPS = (2, 3)
RNG = np.random.default_rng(0)
BASE = np.round(np.cumsum(RNG.normal(size=(3, N)), axis=1) * 64) / 64
SHIFT = np.round(RNG.normal(size=(3, N)) * 64) / 64

UNITS = [2.0**-56, 2.0**-20, 2.0**20, 2.0**56]
OFFSETS = [2.0**10, 2.0**20]
RATIOS = [1e-8, 1e-4, 1e-2, 1e2, 1e4, 1e8]


def problem_in(unit: float, name: str, dtype: Any = float) -> hg.LowerLevel:
    """The problem called `name` for data `unit` times as large: its solution is, too."""
    weight, cell = np.asarray(0.7 * unit, dtype), np.asarray(0.5 * unit, dtype)
    ridge = np.asarray(1.0, dtype)
    F, G = {
        "L1 + Quadratic": (hg.L1(weight), hg.Quadratic(ridge)),
        "L1 + Box": (hg.L1(weight), hg.Box(cell)),
        "GroupL1 + Quadratic": (hg.GroupL1(weight, shape=GROUPS), hg.Quadratic(ridge)),
        "Huber + Quadratic": (hg.Huber(weight, 0.2 * cell), hg.Quadratic(ridge)),
        "L1 + BoxQuadratic": (hg.L1(weight), hg.BoxQuadratic(cell, ridge)),
    }[name]
    return hg.LowerLevel(K=jnp.asarray(DIFFERENCES, dtype), F=F, G=G)


ORACLES = {
    "L1 + Quadratic": lambda x: solve_l1_quadratic(DIFFERENCES, 0.7, 1.0, x),
    "GroupL1 + Quadratic": lambda x: solve_group_quadratic(DIFFERENCES, 0.7, 1.0, x, GROUPS),
    "Huber + Quadratic": lambda x: solve_l1_quadratic(DIFFERENCES, 0.7, 1.0, x, 0.1),
}


def oracle(name: str) -> np.ndarray:
    return np.stack([ORACLES[name](x) for x in BASE]) - BASE


# ------------------------------------------------------------------- the residual of any pair


def judged(unit: float = 1.0, scale: float = 1.0, offset: float = 0.0, dtype: Any = float, **steps):
    """The statistics of a fixed pair; `scale` is the unit of the objective."""
    r, y = np.round(RNG_PAIR[0] * 64) / 64, np.round(RNG_PAIR[1] * 64) / 64
    tau, sigma = steps.get("tau", 0.5), steps.get("sigma", 0.5)
    weight = np.asarray(0.75 * scale / unit, dtype)
    problem = hg.LowerLevel(
        K=jnp.asarray(DIFFERENCES, dtype),
        F=hg.L1(weight),
        G=hg.Quadratic(np.asarray(scale / unit**2, dtype)),
    )
    sizes = StepSizes(*(jnp.asarray(v, dtype) for v in (tau, sigma, 1.0)))
    x_tilde = jnp.asarray(unit * BASE + offset, dtype)
    r, y = jnp.asarray(unit * r, dtype), jnp.asarray(scale / unit * y, dtype)
    iteration = Iteration(problem, x_tilde, sizes)
    return jax.jit(certify)(iteration, r, y, jnp.asarray(1), jnp.asarray(1e-6, dtype))


RNG_PAIR = RNG.normal(size=(3, N)), RNG.normal(size=(3, N - 1))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scale", UNITS)
def test_residual_knows_no_units(unit, scale):
    """To the last digit for powers of two: nothing in it has a unit."""
    np.testing.assert_array_equal(judged(unit, scale).residual, judged().residual)


@pytest.mark.parametrize("offset", OFFSETS)
def test_residual_is_blind_where_K_is(offset):
    np.testing.assert_array_equal(judged(offset=offset).residual, judged().residual)


@pytest.mark.parametrize("tau", [1e-8, 1e8])
@pytest.mark.parametrize("sigma", [1e-8, 1e8])
def test_residual_does_not_contain_the_step_sizes(tau, sigma):
    np.testing.assert_array_equal(judged(tau=tau, sigma=sigma).residual, judged().residual)


def test_short_steps_do_not_magnify_rounding():
    """It is that of products with K: of norm 2, and with 6 rows, of Frobenius norm sqrt(12)."""
    problem, x = problem_in(1.0, "L1 + Quadratic"), BASE + RNG_PAIR[0]
    scale = PairScale(*jnp.ones((4, 3)))
    known = 1 + np.sqrt(12) * np.linalg.norm(x, axis=-1) + np.sqrt(12)
    for tau in (1e-2, 1e-8):
        sizes = StepSizes(*jnp.array([tau, tau, 1.0]))
        rounding = rounding_of_pair(problem, jnp.asarray(x), scale, sizes)
        np.testing.assert_allclose(rounding, np.finfo(float).eps * known, rtol=1e-12)


def test_residual_in_single_precision_is_that_in_double():
    np.testing.assert_allclose(judged(dtype=np.float32).residual, judged().residual, rtol=1e-5)


def test_residual_of_a_half_that_has_to_move_is_large():
    """At the start r and y are 0; where that is the solution the residual is 0, else of order 1."""
    problem = problem_in(1.0, "L1 + Quadratic")
    sizes = hg.ChambollePock().step_sizes(problem)
    for x_tilde, solved in ((BASE, False), (np.ones_like(BASE), True)):
        zero = jnp.zeros((3, N)), jnp.zeros((3, N - 1))
        stats = jax.jit(certify)(
            Iteration(problem, jnp.asarray(x_tilde), sizes), *zero, jnp.asarray(0), 1e-6
        )
        assert np.all((np.asarray(stats.residual) == 0) == solved)
        assert np.all(np.asarray(stats.residual) >= (0 if solved else 0.5))


# --------------------------------------------------------------------- what "converged" promises


def solved(name: str, unit=1.0, offset=0.0, dtype: Any = float, tolerance=1e-6, **solver):
    x_tilde = jnp.asarray(unit * BASE + offset, dtype)
    solution = hg.solve(
        problem_in(unit, name, dtype),
        x_tilde,
        solver=hg.ChambollePock(2000, tolerance=tolerance, **solver),
        strategy=hg.Truncation(1),
    )
    r = np.asarray(solution.x, float) - np.asarray(x_tilde, float)
    return r / unit, solution.stats


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("acceleration", [None, hg.RestartedHalpern()], ids=["plain", "halpern"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_converged_is_near_the_solution_at_every_step_ratio(name, acceleration, ratio):
    r, stats = solved(name, step_ratio=ratio, acceleration=acceleration)
    error = np.linalg.norm(r - oracle(name), axis=1) / np.linalg.norm(oracle(name), axis=1)
    assert np.all((np.asarray(stats.status) != hg.Status.CONVERGED) | (error <= 1e-3))


SCALES = {
    "a weight that never saturates": (1e5, 1.0),
    "hardly any curvature": (0.1, 1e-6),
    "a mask with hardly any curvature": (0.1, np.where(np.arange(N) == 3, 1e-6, 1.0)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", SCALES)
def test_a_scale_far_above_the_solution_hides_no_error(kind, dtype):
    """The start is no solution, however small it is beside a scale of the functions."""
    weight, ridge = (np.asarray(v, dtype) for v in SCALES[kind])
    problem = hg.LowerLevel(jnp.asarray(DIFFERENCES, dtype), hg.L1(weight), hg.Quadratic(ridge))
    sizes = hg.ChambollePock().step_sizes(problem)
    zero = jnp.zeros((3, N), dtype), jnp.zeros((3, N - 1), dtype)
    tolerance = jnp.asarray(1e-3, dtype)
    stats = jax.jit(certify)(
        Iteration(problem, jnp.asarray(BASE, dtype), sizes), *zero, jnp.asarray(0), tolerance
    )
    assert np.all(np.asarray(stats.residual) > 0.1)
    assert not np.any(np.asarray(stats.status) == hg.Status.CONVERGED)


@pytest.mark.parametrize("name", ["L1 + Quadratic", "L1 + Box", "GroupL1 + Quadratic"])
@pytest.mark.parametrize("unit", UNITS)
def test_status_and_iterations_know_no_unit(name, unit):
    """The unit of the data and of the weights, and with them the one in which r is measured."""
    r, stats = solved(name, primal_scale=1.0)
    r_in_unit, in_unit = solved(name, unit, primal_scale=unit)
    np.testing.assert_array_equal(in_unit.status, stats.status)
    np.testing.assert_array_equal(in_unit.iterations, stats.iterations)
    np.testing.assert_array_equal(r_in_unit, r)
    assert np.all(np.asarray(stats.status) == hg.Status.CONVERGED)


@pytest.mark.parametrize("name", ["L1 + Quadratic", "GroupL1 + Quadratic"])
def test_status_and_iterations_know_no_offset(name):
    _, stats = solved(name)
    for offset in OFFSETS:
        r, at_offset = solved(name, offset=offset)
        np.testing.assert_array_equal(at_offset.status, stats.status)
        np.testing.assert_array_equal(at_offset.iterations, stats.iterations)
        np.testing.assert_allclose(r, oracle(name), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("L1 + Quadratic", 1e-4),
        ("L1 + Quadratic", None),
        ("GroupL1 + Quadratic", None),
        ("Huber + Quadratic", 1e-4),
    ],
)
def test_single_precision_in_small_units(name, tolerance):
    """Squares of 1e-17 vanish in float32; the solution and its status do not."""
    for unit in (1.0, 2.0**-56):
        r, stats = solved(name, unit, dtype=np.float32, tolerance=tolerance, primal_scale=unit)
        error = np.linalg.norm(r - oracle(name), axis=1) / np.linalg.norm(oracle(name), axis=1)
        assert np.all(np.asarray(stats.status) == hg.Status.CONVERGED)
        assert np.all(error <= 1e-2)


@pytest.mark.parametrize("offset", [2.0**20, 2.0**30])
@pytest.mark.parametrize("tolerance", [1e-4, None])
def test_what_float32_cannot_resolve_is_not_converged(offset, tolerance):
    """x = x_tilde + r then is x_tilde, or a neighbour of it."""
    _, stats = solved("L1 + Quadratic", offset=offset, dtype=np.float32, tolerance=tolerance)
    assert not np.any(np.asarray(stats.status) == hg.Status.CONVERGED)


def test_rounding_is_what_stopped_a_solve_to_a_tolerance_below_it():
    _, stats = solved("L1 + Quadratic", dtype=np.float32, tolerance=1e-9)
    np.testing.assert_array_equal(stats.status, hg.Status.ROUNDING)


@pytest.mark.parametrize(
    ("strategy", "acceleration"),
    [
        (hg.Truncation(1), None),
        (hg.Truncation(25), hg.RestartedHalpern()),
        (hg.LimitFormula(), None),
        (hg.LimitFormula(), hg.RestartedHalpern()),
    ],
)
def test_the_pair_that_is_returned_is_within_the_tolerance(strategy, acceleration):
    """The last iterations are plain ones, and at a bad ratio these move away from the solution."""
    draws = np.random.default_rng(1)
    K, x_tilde = draws.normal(size=(30, 12)) / 6, draws.normal(size=(24, 12))
    problem = hg.LowerLevel(K=jnp.asarray(K), F=hg.L1(0.3), G=hg.Quadratic(1.0))
    solver = hg.ChambollePock(200_000, step_ratio=1e4, tolerance=1e-4, acceleration=acceleration)
    solve = jax.jit(lambda x: hg.solve(problem, x, solver=solver, strategy=strategy).stats)
    stats = solve(jnp.asarray(x_tilde))
    stopped = np.asarray(stats.iterations) < solver.iterations
    assert stopped.all()
    assert (np.asarray(stats.status) == hg.Status.CONVERGED).all()


@pytest.mark.parametrize("unit", [2.0**-40, 1.0, 2.0**40])
def test_consistent_least_squares_stop_at_rounding(unit):
    """The dual solution is 0: what is left of y is the rounding of K x."""
    draws = np.random.default_rng(0)
    K, x = draws.normal(size=(9, 4)), unit * np.abs(draws.normal(size=(5, 4)))
    for sample in x:  # the centre is data here, one for each sample
        F = hg.Quadratic(2.0, center=jnp.asarray(K @ sample))
        problem = hg.LowerLevel(K=jnp.asarray(K), F=F, G=hg.NonNegative())
        solution = hg.solve(
            problem, jnp.zeros(4), solver=hg.ChambollePock(3000), strategy=hg.LimitFormula()
        )
        np.testing.assert_allclose(solution.x, sample, rtol=1e-12)
        assert solution.stats.status == hg.Status.ROUNDING


def test_throw_raises_where_rounding_stopped_the_solve():
    problem = problem_in(1.0, "L1 + Quadratic", np.float32)
    x_tilde = jnp.asarray(BASE + 2.0**30, jnp.float32)
    with pytest.raises(Exception, match="forward solve did not succeed"):
        hg.solve(problem, x_tilde, strategy=hg.Truncation(1), throw=True).x.block_until_ready()


# ------------------------------------------------------------------------------- hypergradients

WAYS = {
    "cgls": hg.LimitFormula(),
    "cg": hg.LimitFormula(hg.ConjugateGradients()),
    "tolerance": hg.LimitFormula(hg.Tolerance(1e-6)),
    "steps": hg.LimitFormula(hg.Steps(400)),
    "truncation": hg.Truncation(400),
    "exact": hg.Exact(),
}


def hypergradient(name: str, strategy, unit=1.0, dtype: Any = float, offset=0.0, **solver):
    x_tilde = jnp.asarray(unit * BASE + offset, dtype)
    return hg.hypergradient(
        problem_in(unit, name, dtype),
        x_tilde,
        x_tilde + jnp.asarray(unit * SHIFT, dtype),
        solver=hg.ChambollePock(2000, **solver),
        strategy=strategy,
    )


@functools.cache
def exact_hypergradient(name: str) -> hg.Hypergradient:
    """With a tolerance, so that other step ratios need no other program."""
    h = hypergradient(name, hg.Exact(), tolerance=1e-6)
    assert np.all(np.asarray(h.solution.stats.status) == hg.Status.CONVERGED)
    return h


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("cgls", "L1 + BoxQuadratic"),
        ("cg", "L1 + Quadratic"),
        ("tolerance", "L1 + BoxQuadratic"),
        ("steps", "L1 + Quadratic"),
        ("truncation", "L1 + BoxQuadratic"),
        ("exact", "L1 + BoxQuadratic"),
    ],
)
def test_hypergradients_in_small_units_of_single_precision(way, name):
    """The gradient in K has the unit of the data squared, that in a weight the unit of the data."""
    exact = exact_hypergradient(name)
    unit = 2.0**-56
    h = hypergradient(name, WAYS[way], unit, np.float32, primal_scale=unit)
    np.testing.assert_allclose(h.grad.F.weight / unit, exact.grad.F.weight, rtol=5e-3)
    K = np.asarray(h.grad.K, float) / unit**2
    assert np.linalg.norm(K - exact.grad.K) <= 5e-3 * np.linalg.norm(exact.grad.K)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("way", WAYS)
def test_converged_on_both_sides_is_the_gradient_at_every_step_ratio(way, ratio):
    name = "L1 + Quadratic"
    exact = exact_hypergradient(name).grad.F.weight
    h = hypergradient(name, WAYS[way], step_ratio=ratio, tolerance=1e-6)
    good = [np.all(np.asarray(s) == 0) for s in (h.solution.stats.status, h.adjoint.status)]
    error = abs(float(h.grad.F.weight) - float(exact)) / abs(float(exact))
    assert not all(good) or error <= 1e-2


def test_adjoint_residual_knows_no_step_sizes():
    """The same sums, computed with other step sizes: tau Delta_P and sigma Delta_D are the same."""
    residuals = []
    for ratio in (1.0, 1e4, 1e-4):
        h = hypergradient("L1 + BoxQuadratic", hg.Exact(), step_ratio=ratio, tolerance=1e-6)
        assert np.all(np.asarray(h.adjoint.status) == hg.Status.CONVERGED)
        residuals.append(np.max(np.asarray(h.adjoint.residual)))
    assert max(residuals) < 1e-11


@given(draw=numbers)
def test_gap_of_a_lasso_bounds_what_is_missing(draw: Numbers):
    """`-K^T y` leaves the cell of G* by what y is wrong; the gap is finite all the same."""
    A, b = draw.rng.normal(size=(8, 5)), draw.rng.normal(size=8)
    problem = hg.LowerLevel(K=A, F=hg.Quadratic(1.0, center=b), G=hg.L1(0.5))
    x_tilde = np.zeros(5)
    solution = hg.solve(
        problem,
        x_tilde,
        solver=hg.ChambollePock(5000, tolerance=1e-6),
        strategy=hg.Truncation(1),
    )
    best = solve_lasso(A, 1.0, b, 0.5, x_tilde)
    found, least = (
        problem.objective(jnp.asarray(x), jnp.asarray(x_tilde)) for x in (solution.x, best)
    )
    missing = float(found - least)
    assert missing - 1e-12 <= float(solution.stats.gap) <= 1e-3
