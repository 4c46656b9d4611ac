"""The accelerated iteration, against independent solvers and against itself sample by sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_data, relative_error, solve_group_quadratic, solve_l1_box
from helpers import solve_l1_quadratic as solve_l1

import hypergrad as hg

M, N, BATCH = 12, 8, 4
HALPERN = hg.RestartedHalpern()
# From a step ratio of 1 to ones that are far off: it adapts.
RATIOS = (1e-3, 1.0, 1e3)


def _K(m: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(m, N))


def _problems() -> dict[str, tuple[hg.LowerLevel, object]]:
    K, pairs = _K(M), _K(4)
    shape = (2, 2)
    return {
        "L1+Quadratic": (
            hg.LowerLevel(K, hg.L1(0.3), hg.Quadratic(1.2)),
            lambda x: solve_l1(K, 0.3, 1.2, x),
        ),
        "L1+Box": (
            hg.LowerLevel(K, hg.L1(0.3), hg.Box(0.25)),
            lambda x: solve_l1_box(K, 0.3, 0.25, x),
        ),
        "GroupL1+Quadratic": (
            hg.LowerLevel(pairs, hg.GroupL1(0.3, shape=shape), hg.Quadratic(1.2)),
            lambda x: solve_group_quadratic(pairs, 0.3, 1.2, x, shape),
        ),
    }


def _solve(problem, x_tilde, ratio=1.0, iterations=3000, **settings) -> hg.Solution:
    solver = hg.ChambollePock(iterations, step_ratio=ratio, acceleration=HALPERN, **settings)
    return hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", _problems())
def test_it_arrives_at_the_solution_of_an_independent_solver(name, ratio):
    problem, oracle = _problems()[name]
    x_tilde, _ = random_data(BATCH, N)
    x = _solve(problem, x_tilde, ratio).x
    assert relative_error(x, np.stack([oracle(row) for row in x_tilde])) <= 1e-9


def test_it_is_nearer_than_the_plain_iteration_on_a_linear_programme():
    problem, _ = _problems()["L1+Box"]
    x_tilde, _ = random_data(16, N, seed=5)
    plain = hg.solve(
        problem, x_tilde, solver=hg.ChambollePock(300), strategy=hg.Truncation(1)
    ).stats.residual
    fast = _solve(problem, x_tilde, iterations=300).stats.residual
    assert np.median(fast) < 1e-3 * np.median(plain)


@pytest.mark.parametrize("tolerance", [None, 1e-6])
def test_a_batch_equals_its_samples(tolerance):
    problem, _ = _problems()["L1+Box"]
    x_tilde, _ = random_data(BATCH, N)
    together = _solve(problem, x_tilde, iterations=200, tolerance=tolerance)
    for i in range(BATCH):
        alone = _solve(problem, x_tilde[i], iterations=200, tolerance=tolerance)
        assert relative_error(alone.x, together.x[i]) <= 1e-12
        assert int(alone.stats.iterations) == int(together.stats.iterations[i])


def test_a_tolerance_stops_it():
    problem, _ = _problems()["L1+Quadratic"]
    x_tilde, _ = random_data(BATCH, N)
    stats = _solve(problem, x_tilde, tolerance=1e-8).stats
    assert np.all(np.asarray(stats.status) == hg.Status.CONVERGED)
    assert np.all(np.asarray(stats.residual) <= 1e-8)
    assert 0 < np.max(np.asarray(stats.iterations)) < 3000


def test_a_start_at_the_solution_stays_there():
    problem, _ = _problems()["L1+Quadratic"]
    x_tilde, _ = random_data(BATCH, N)
    plain = hg.ChambollePock(20_000, step_ratio=10.0)
    solved = hg.solve(problem, x_tilde, solver=plain, strategy=hg.Truncation(1))
    solver = hg.ChambollePock(50, acceleration=HALPERN)
    again = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1), init=solved.state)
    assert relative_error(again.x, solved.x) <= 1e-10


def test_single_precision_stays_and_zeros_are_finite():
    problem, _ = _problems()["L1+Box"]
    x_tilde = jnp.zeros((2, N), jnp.float32)
    problem = hg.LowerLevel(jnp.asarray(problem.K, jnp.float32), problem.F, problem.G)
    solution = _solve(problem, x_tilde)
    assert solution.x.dtype == jnp.float32
    assert np.all(np.asarray(solution.x) == 0)


def test_the_gradient_there_is_that_of_the_limit():
    problem, _ = _problems()["L1+Quadratic"]
    x_tilde, x_true = random_data(BATCH, N)
    solver = hg.ChambollePock(5000, acceleration=HALPERN)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.LimitFormula())
    plain = hg.ChambollePock(20_000, step_ratio=10.0)
    exact = hg.hypergradient(problem, x_tilde, x_true, solver=plain, strategy=hg.LimitFormula())
    assert relative_error(h.grad.K, exact.grad.K) <= 1e-9


@pytest.mark.parametrize("name", hg.STRATEGIES)
def test_who_differentiates_every_iteration_refuses_it(name):
    strategy = hg.STRATEGIES[name]()
    problem, _ = _problems()["L1+Quadratic"]
    x_tilde, x_true = random_data(BATCH, N)

    def call() -> jax.Array:
        solver = hg.ChambollePock(5, acceleration=HALPERN)
        return hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy).value

    if name in ("full", "forward", "ergodic", "piggyback", "optimistix-checkpointed"):
        with pytest.raises(ValueError, match="must have plain iterations"):
            call()
    else:
        assert np.isfinite(call())


def test_a_trace_is_refused():
    problem, _ = _problems()["L1+Quadratic"]
    solver = hg.ChambollePock(5, acceleration=HALPERN)
    with pytest.raises(ValueError, match="trace=True must have plain iterations"):
        hg.solve(
            problem, np.zeros(N), solver=solver, strategy=hg.Truncation(1), trace=True
        )  # fmt: skip
