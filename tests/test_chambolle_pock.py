"""The core iteration: NumPy steps, closed-form solutions, linprog, certificates, tolerances."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy.optimize import linprog

import hypergrad as hg
from hypergrad.chambolle_pock import (
    Iteration,
    ProxArguments,
    SolverStats,
    State,
    StepSizes,
    certify,
    default_tolerance,
    step,
)

RNG = np.random.default_rng(0)
K = RNG.standard_normal((6, 4)) / 3
X_TILDE = np.random.default_rng(2).standard_normal((5, 4))


def run(problem: hg.LowerLevel, x_tilde: Any, *, init: State | None = None, **options):
    """A forward solve (Truncation(1) is one that does nothing else)."""
    solver = hg.ChambollePock(**options)
    x_tilde = jnp.asarray(x_tilde)
    return hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1), init=init)


def soft(v: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


# -------------------------------------------------------------------------- against NumPy loops

WEIGHT, RADIUS, TAU, SIGMA, THETA = 0.3, 0.2, 0.4, 0.9, 0.7


def l1_box(F_weight: float = WEIGHT, radius: float = RADIUS) -> hg.LowerLevel:
    return hg.LowerLevel(K=K, F=hg.L1(F_weight), G=hg.Box(radius))


def numpy_step(x_tilde, r, r_bar, y):
    """One iteration for L1 + Box, where both proxes are clips."""
    z_D = y + SIGMA * K @ (x_tilde + r_bar)
    y = np.clip(z_D, -WEIGHT, WEIGHT)
    z_P = r - TAU * K.T @ y
    r_new = np.clip(z_P, -RADIUS, RADIUS)
    return r_new, r_new + THETA * (r_new - r), y, z_D, z_P


def test_one_step():
    r, r_bar, y = RNG.standard_normal(4), RNG.standard_normal(4), RNG.standard_normal(6)
    state = State(*map(jnp.asarray, (r, r_bar, y)))
    sizes = StepSizes(*map(jnp.asarray, (TAU, SIGMA, THETA)))
    after, z = step(l1_box(), jnp.asarray(X_TILDE[0]), sizes, state)
    got = (after.r, after.r_bar, after.y, z.z_D, z.z_P)
    for a, b in zip(got, numpy_step(X_TILDE[0], r, r_bar, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
    assert isinstance(z, ProxArguments)


def test_a_run_from_zero():
    solution = run(l1_box(), X_TILDE, iterations=30, tau=TAU, sigma=SIGMA, theta=THETA)
    for i, x_tilde in enumerate(X_TILDE):
        r, r_bar, y = np.zeros(4), np.zeros(4), np.zeros(6)
        for _ in range(30):
            r, r_bar, y, *_ = numpy_step(x_tilde, r, r_bar, y)
        np.testing.assert_allclose(solution.x[i], x_tilde + r, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(solution.y[i], y, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(solution.state.r[i], r, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(solution.state.r_bar[i], r_bar, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(solution.stats.iterations, 30)


# ----------------------------------------------------------------------- closed-form solutions

V = np.array([2.0, -1.0, 0.3, 0.05])
DCT = np.asarray(hg.operators.dct(4))
I4, QUADRATIC = jnp.eye(4), hg.Quadratic(1.0)
CENTER = np.array([1.0, 0.0, -1.0, 0.5, 0.0, 2.0])
CLOSED_FORMS = {
    # name: (K, F, G, x_tilde, the solution)
    "total variation of a step": (
        hg.operators.differences(7),
        hg.L1(0.3),
        QUADRATIC,
        np.array([0.0] * 3 + [1.0] * 4),
        np.array([0.3 / 3] * 3 + [1 - 0.3 / 4] * 4),  # the two levels draw near, their mean stays
    ),
    "soft thresholding in an orthonormal basis": (
        DCT,
        hg.L1(0.4),
        hg.Quadratic(2.0),
        V,
        DCT.T @ soft(DCT @ V, 0.2),
    ),
    "matrix-free": (
        lx.FunctionLinearOperator(
            lambda v: jnp.asarray(DCT) @ v, jax.ShapeDtypeStruct((4,), jnp.float64)
        ),
        hg.L1(0.4),
        hg.Quadratic(2.0),
        V,
        DCT.T @ soft(DCT @ V, 0.2),
    ),
    # The smallest |x_i| in the cell around x_tilde_i.
    "box": (I4, hg.L1(0.4), hg.Box(0.25), V, soft(V, 0.25)),
    "box and quadratic": (
        I4,
        hg.L1(0.4),
        hg.BoxQuadratic(0.25, 1.0),
        V,
        V + np.clip(soft(V, 0.4) - V, -0.25, 0.25),
    ),
    "ball": (I4, QUADRATIC, hg.L2Ball(0.5), V, V * (1 - 0.5 / np.linalg.norm(V))),
    "linear system": (
        K,
        hg.Quadratic(0.7, CENTER),
        hg.Quadratic(1.5),
        V,
        np.linalg.solve(0.7 * K.T @ K + 1.5 * np.eye(4), 1.5 * V + 0.7 * K.T @ CENTER),
    ),
    # x and y are 0: nothing but the scale of F says how small y has to be.
    "L1 alone, G of weight 0": (DCT, hg.L1(0.4), hg.Quadratic(0.0), V, np.zeros(4)),
    "already solved, G of weight 0": (
        hg.operators.differences(4),
        hg.L1(0.4),
        hg.Quadratic(0.0),
        np.ones(4),
        np.ones(4),
    ),
    "a mean of 0": (np.ones((1, 4)), hg.IndicatorZero(), QUADRATIC, V, V - np.mean(V)),
    "a fixed x": (I4, QUADRATIC, hg.IndicatorZero(), V, V),
    "groups": (
        I4,
        hg.GroupL1(0.4, shape=(2, 2)),  # (V[0], V[2]) and (V[1], V[3])
        QUADRATIC,
        V,
        V * (1 - 0.4 / np.tile(np.hypot(V[:2], V[2:]), 2)),
    ),
    "Huber": (
        I4,
        hg.Huber(0.4, 0.1),
        QUADRATIC,
        V,
        np.where(np.abs(V) <= 0.4 + 0.1, V * 0.1 / (0.1 + 0.4), V - 0.4 * np.sign(V)),
    ),
    "x at least 0, by a row block of K": (
        jnp.concatenate([I4, I4]),
        hg.SeparableSum((hg.L1(0.4), hg.NonNegative()), (4, 4)),
        QUADRATIC,
        V,
        np.maximum(V - 0.4, 0),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    operator, F, G, x_tilde, expected = CLOSED_FORMS[name]
    solution = run(hg.LowerLevel(K=operator, F=F, G=G), x_tilde, iterations=3000)
    np.testing.assert_allclose(solution.x, expected, atol=1e-11)
    assert solution.stats.status == hg.Status.CONVERGED
    assert abs(solution.stats.gap) <= 1e-11


def test_a_quadratic_of_weight_0_is_solved_as_zero_is():
    """Least squares; `K^T y = 0`, so that the residual compares rounding with rounding."""
    solutions = [
        run(hg.LowerLevel(K=K, F=hg.Quadratic(0.7, CENTER), G=G), V, iterations=1000)
        for G in (hg.Quadratic(0.0), hg.Zero())
    ]
    for solution in solutions:
        np.testing.assert_allclose(solution.x, np.linalg.lstsq(K, CENTER)[0], atol=1e-11)
        assert solution.stats.status == hg.Status.ROUNDING


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_programme(seed):
    """`min ||K x||_1` over the cell: the optimum that HiGHS finds."""
    rng = np.random.default_rng(seed)
    matrix, x_tilde = rng.standard_normal((8, 5)) / 3, rng.standard_normal(5)
    problem = hg.LowerLevel(K=matrix, F=hg.L1(WEIGHT), G=hg.Box(RADIUS))
    solution = run(problem, x_tilde, iterations=20_000, tolerance=1e-13)

    # In (x, t): minimise the sum of t with -t <= K x <= t.
    minus_t = -np.eye(8)
    programme = linprog(
        np.concatenate([np.zeros(5), np.full(8, WEIGHT)]),
        A_ub=np.block([[matrix, minus_t], [-matrix, minus_t]]),
        b_ub=np.zeros(16),
        bounds=[(v - RADIUS, v + RADIUS) for v in x_tilde] + [(0, None)] * 8,
    )
    assert solution.stats.status == hg.Status.CONVERGED
    # HiGHS answers at a vertex, so that its numbers are good to rounding.
    value = WEIGHT * np.sum(np.abs(matrix @ np.asarray(solution.x)))
    assert value == pytest.approx(programme.fun, abs=1e-12)
    np.testing.assert_allclose(solution.x, programme.x[:5], atol=1e-10)


# -------------------------------------------------------------------------------- certificates

PROBLEMS = {
    "L1 + Quadratic": (hg.L1(0.3), hg.Quadratic(1.0)),
    "L1 rows + Box": (hg.L1(np.linspace(0.1, 0.5, 6)), hg.Box(0.2)),
    "GroupL1 + Quadratic": (hg.GroupL1(0.3, shape=(2, 3)), hg.Quadratic(1.0)),
    "Huber + L2Ball": (hg.Huber(0.3, 0.1), hg.L2Ball(0.4)),
    "ElasticNet + NonNegative": (hg.ElasticNet(0.3, 0.5), hg.NonNegative()),
    "Quadratic + BoxQuadratic": (hg.Quadratic(0.3), hg.BoxQuadratic(0.2, 1.0)),
}


@jax.jit
def judge(problem, x_tilde, sizes, r, y, taken, tolerance) -> SolverStats:
    """The certificate of any pair `x = x_tilde + r` and y."""
    return certify(Iteration(problem, x_tilde, sizes), r, y, taken, tolerance)


def trajectory(problem: hg.LowerLevel, x_tilde: jax.Array, iterations: int):
    """The statistics after every iteration, from zero."""
    solver = hg.ChambollePock(iterations=iterations)

    @jax.jit
    def go(problem, x_tilde):
        sizes = solver.step_sizes(problem)

        def body(state, _):
            state, _ = step(problem, x_tilde, sizes, state)
            return state, judge(problem, x_tilde, sizes, state.r, state.y, jnp.asarray(0), 0.0)

        return jax.lax.scan(body, solver.start(problem, x_tilde), None, length=iterations)[1]

    return go(problem, x_tilde)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gap_and_residual_go_to_zero(name):
    F, G = PROBLEMS[name]
    stats = trajectory(hg.LowerLevel(K=K, F=F, G=G), jnp.asarray(X_TILDE), 2000)
    # Weak duality, up to rounding: the objectives are about 1, and an indicator leaves 64 eps.
    assert jnp.all(stats.gap >= -1e-13)
    assert jnp.all(stats.gap[1] > 1e-4)  # there was something to close
    assert jnp.all(jnp.abs(stats.gap[-1]) <= 1e-13)
    assert jnp.all(stats.residual[1] > 1e-3)
    assert jnp.all(stats.residual[-1] <= default_tolerance(X_TILDE.dtype))


def test_gap_is_finite_where_the_data_are_much_larger_than_the_cell():
    """Like 10-bit audio: `(x_tilde + r) - x_tilde` leaves the cell by the rounding of x_tilde."""
    x_tilde = np.random.default_rng(3).uniform(0.5, 1.0, (20, 4))
    problem = hg.LowerLevel(K=K, F=hg.L1(1.0), G=hg.Box(7e-4))
    stats = run(problem, x_tilde, iterations=2000).stats
    np.testing.assert_array_equal(stats.status, hg.Status.CONVERGED)
    assert jnp.all(jnp.abs(stats.gap) <= 1e-13)


def judge_l1_box(r, y) -> SolverStats:
    sizes = StepSizes(*map(jnp.asarray, (TAU, SIGMA, 1.0)))
    return judge(l1_box(), X_TILDE, sizes, r, y, jnp.asarray(7), 1e-3)


def test_definitions_of_the_statistics():
    """Residual, gap and margin of any pair, for L1 + Box in plain NumPy."""
    r, y = RNG.uniform(-1, 1, (5, 4)) * RADIUS, RNG.uniform(-1, 1, (5, 6)) * WEIGHT
    x = X_TILDE + r
    stats = judge_l1_box(r, y)

    def norm(v):
        return np.linalg.norm(v, axis=-1, keepdims=True)

    t, s = norm(r) / norm(y @ K), norm(y) ** 2 / (norm(r) * norm(y @ K))
    e_P = r - np.clip(r - t * (y @ K), -RADIUS, RADIUS)
    e_D = y - np.clip(y + s * (x @ K.T), -WEIGHT, WEIGHT)
    in_r, in_y = np.minimum(norm(e_P) / norm(r), 1), np.minimum(norm(e_D) / norm(y), 1)
    residual = np.sqrt((in_r**2 + in_y**2) / 2)[:, 0]
    np.testing.assert_allclose(stats.residual, residual, rtol=1e-13)

    primal = WEIGHT * np.sum(np.abs(x @ K.T), -1)
    dual = np.sum((y @ K) * X_TILDE, -1) - RADIUS * np.sum(np.abs(y @ K), -1)
    np.testing.assert_allclose(stats.gap, primal - dual, rtol=1e-12)

    z_D, z_P = y + SIGMA * x @ K.T, r - TAU * y @ K
    margins = np.concatenate([abs(abs(z_D) - WEIGHT) / WEIGHT, abs(abs(z_P) - RADIUS) / RADIUS], -1)
    np.testing.assert_allclose(stats.margin, np.min(margins, -1), rtol=1e-12)

    np.testing.assert_array_equal(stats.iterations, 7)
    np.testing.assert_array_equal(stats.status, hg.Status.ITERATIONS_USED_UP)


@pytest.mark.parametrize(("r", "y"), [(2 * RADIUS, 0.0), (0.0, 2 * WEIGHT)], ids=["primal", "dual"])
def test_gap_of_an_infeasible_pair_is_infinite(r, y):
    assert jnp.all(judge_l1_box(np.full((5, 4), r), np.full((5, 6), y)).gap == np.inf)


def test_residual_is_zero_exactly_at_a_solution():
    """K = I: soft thresholding, in numbers that floating point holds exactly."""
    problem = hg.LowerLevel(K=jnp.eye(4), F=hg.L1(0.5), G=hg.Quadratic(1.0))
    x_tilde = jnp.array([2.0, -1.0, 0.25, 0.0])
    r = jnp.array([1.5, -0.5, 0.0, 0.0]) - x_tilde
    y = -r

    def stats(r, y, tau=1.0, sigma=2.0):
        sizes = StepSizes(*map(jnp.asarray, (tau, sigma, 1.0)))
        return judge(problem, x_tilde, sizes, r, y, jnp.asarray(0), 1e-9)

    for sizes in ((1.0, 2.0), (3.0, 0.25)):  # whatever the steps
        at_solution = stats(r, y, *sizes)
        assert at_solution.residual == 0
        assert at_solution.gap == 0
        assert at_solution.status == hg.Status.CONVERGED
    # z_D = y + 2 x = (3.5, -1.5, 0.25, 0) and the kinks are at 0.5: the third is half way.
    assert stats(r, y).margin == 0.5
    for i in range(4):
        assert stats(r.at[i].add(1e-3), y).residual > 1e-5
        assert stats(r, y.at[i].add(-1e-3)).residual > 1e-5


def test_zero_data_have_zero_residual():
    """The residual is relative to a pair that is 0 here."""
    stats = run(l1_box(), np.zeros((5, 4)), iterations=3).stats
    np.testing.assert_array_equal(stats.residual, 0)
    np.testing.assert_array_equal(stats.status, hg.Status.CONVERGED)


def test_status_says_when_iterations_were_used_up():
    stats = run(l1_box(), X_TILDE, iterations=3).stats
    np.testing.assert_array_equal(stats.status, hg.Status.ITERATIONS_USED_UP)
    np.testing.assert_array_equal(stats.iterations, 3)
    assert jnp.all(stats.residual > default_tolerance(X_TILDE.dtype))
    assert "iterations used up" in repr(stats)


@pytest.mark.parametrize("tolerance", [None, 1e-8])
def test_status_says_when_it_diverged(tolerance):
    """Too long steps cannot be refused under jit: they show in the status."""
    problem = hg.LowerLevel(K=K, F=hg.Quadratic(1.0), G=hg.Quadratic(1.0))

    @jax.jit
    def status(tau):
        return run(
            problem, X_TILDE, iterations=2000, tau=tau, sigma=tau, tolerance=tolerance
        ).stats.status

    np.testing.assert_array_equal(status(100.0), hg.Status.NON_FINITE)


@pytest.mark.parametrize("tolerance", [None, 1e-8])
def test_a_bad_sample_spoils_no_other(tolerance):
    problem = hg.LowerLevel(K=K, F=hg.L1(0.3), G=hg.Quadratic(1.0))
    solve = jax.jit(lambda x_tilde: run(problem, x_tilde, iterations=2000, tolerance=tolerance))
    clean, spoilt = solve(X_TILDE), solve(jnp.asarray(X_TILDE).at[2, 1].set(jnp.nan))
    good = np.array([0, 1, 3, 4])
    assert spoilt.stats.status[2] == hg.Status.NON_FINITE
    np.testing.assert_array_equal(spoilt.stats.status[good], hg.Status.CONVERGED)
    np.testing.assert_array_equal(spoilt.x[good], clean.x[good])
    np.testing.assert_array_equal(spoilt.stats.iterations[good], clean.stats.iterations[good])


# ----------------------------------------------------------------------------------- tolerance

TOLERANCE = 1e-7
DENOISING = hg.LowerLevel(K=K, F=hg.L1(0.3), G=QUADRATIC)
HARD_AND_EASY = np.concatenate([X_TILDE, 0.01 * X_TILDE[:1], np.zeros((1, 4))])


def to_tolerance(x_tilde, iterations: int = 3000, init: State | None = None):
    return run(DENOISING, x_tilde, iterations=iterations, tolerance=TOLERANCE, init=init)


def test_each_sample_stops_when_it_has_arrived():
    """At the first of the checks, one in ten iterations, that finds it within the tolerance."""
    stats = to_tolerance(HARD_AND_EASY).stats
    residuals = trajectory(DENOISING, jnp.asarray(HARD_AND_EASY), 3000).residual
    at_checks = np.concatenate([np.full((1, 7), np.inf), residuals[9::10]])
    at_checks[0, -1] = 0.0  # zero data are solved before the first iteration
    first = 10 * np.argmax(at_checks <= TOLERANCE, axis=0)
    np.testing.assert_array_equal(stats.iterations, first + 1)  # Truncation(1) takes one more
    assert len(set(np.asarray(stats.iterations).tolist())) > 3  # they did not stop together
    np.testing.assert_array_equal(stats.status, hg.Status.CONVERGED)
    assert jnp.all(stats.residual <= TOLERANCE)


def test_a_batch_equals_its_samples():
    batch = to_tolerance(HARD_AND_EASY)
    for i, x_tilde in enumerate(HARD_AND_EASY):
        alone = to_tolerance(x_tilde)
        assert alone.stats.iterations == batch.stats.iterations[i]
        # A product with a vector and one with a matrix add up in another order.
        np.testing.assert_allclose(alone.x, batch.x[i], rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(alone.y, batch.y[i], rtol=1e-14, atol=1e-14)


def test_an_arrived_sample_is_frozen():
    """The easy ones have the same answer whatever the hard ones need."""
    easy = HARD_AND_EASY[5:]
    alone, beside = to_tolerance(easy), to_tolerance(np.concatenate([easy, X_TILDE]))
    np.testing.assert_allclose(beside.x[:2], alone.x, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(beside.stats.iterations[:2], alone.stats.iterations)


def test_iterations_are_the_most_that_a_tolerance_takes():
    """Also where they are no multiple of the ten between two checks."""
    cut, plain = to_tolerance(X_TILDE, iterations=17), run(DENOISING, X_TILDE, iterations=17)
    np.testing.assert_array_equal(cut.stats.iterations, 17)
    np.testing.assert_array_equal(cut.stats.status, hg.Status.ITERATIONS_USED_UP)
    np.testing.assert_allclose(cut.x, plain.x, rtol=1e-14, atol=1e-14)


def test_a_solution_as_start_is_seen_at_once():
    first = to_tolerance(X_TILDE)
    again = to_tolerance(X_TILDE, init=first.state)
    np.testing.assert_array_equal(again.stats.iterations, 1)
    np.testing.assert_array_equal(again.stats.status, hg.Status.CONVERGED)


# --------------------------------------------------------------------------------- state, shapes


def test_init_continues():
    """50 and 50 iterations are 100, as the extrapolation is part of the state."""
    problem, half = l1_box(), {"iterations": 50, "theta": 0.5}
    whole = run(problem, X_TILDE, iterations=100, theta=0.5)
    twice = run(problem, X_TILDE, init=run(problem, X_TILDE, **half).state, **half)
    for a, b in zip(jax.tree.leaves(twice.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(twice.x, whole.x, rtol=1e-14, atol=1e-14)


def test_leading_axes_are_a_batch():
    x_tilde = RNG.standard_normal((2, 3, 4))
    whole = run(l1_box(), x_tilde, iterations=40)
    flat = run(l1_box(), x_tilde.reshape(6, 4), iterations=40)
    assert whole.x.shape == (2, 3, 4)
    assert whole.y.shape == (2, 3, 6)
    assert {leaf.shape for leaf in jax.tree.leaves(whole.stats)} == {(2, 3)}
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(flat), strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)

    alone = run(l1_box(), x_tilde[1, 2], iterations=40)  # one sample needs none
    assert alone.x.shape == (4,)
    assert alone.y.shape == (6,)
    assert {leaf.shape for leaf in jax.tree.leaves(alone.stats)} == {()}
    np.testing.assert_allclose(alone.x, whole.x[1, 2], rtol=1e-14, atol=1e-14)


def test_float32_stays_float32():
    problem = hg.LowerLevel(K=jnp.asarray(K, jnp.float32), F=hg.L1(0.3), G=hg.Box(0.2))
    x_tilde = jnp.asarray(X_TILDE, jnp.float32)
    solution = run(problem, x_tilde, iterations=3000, tolerance=1e-6)
    stats = solution.stats
    floats = (solution.x, solution.y, solution.state, stats.residual, stats.gap, stats.margin)
    assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {jnp.dtype(jnp.float32)}
    assert {stats.iterations.dtype, stats.status.dtype} == {jnp.dtype(jnp.int32)}
    exact = run(l1_box(0.3, 0.2), X_TILDE, iterations=3000)
    np.testing.assert_allclose(solution.x, exact.x, atol=2e-5)
    np.testing.assert_array_equal(stats.status, hg.Status.CONVERGED)


def test_data_are_cast_to_what_they_promote_to_with_K():
    x_tilde = jnp.asarray(X_TILDE, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        solution = run(l1_box(), x_tilde, iterations=40)
    assert solution.x.dtype == jnp.float64
    expected = run(l1_box(), x_tilde.astype(jnp.float64), iterations=40)
    np.testing.assert_allclose(solution.x, expected.x, rtol=1e-14)
