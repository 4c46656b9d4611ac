"""What some strategies promise: to cut off, to return averages, to need little memory."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    Poster,
    Quadratic,
    assert_close,
    gradient_of,
    plain_scan,
    random_data,
    random_poster,
    relative_error,
    to_hypergrad,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.bilevel import half_mean_squared_error
from hypergrad.bilevel.hypergradients import compute_hypergradient
from hypergrad.chambolle_pock import record
from hypergrad.problem.lower_level import cast_floats
from hypergrad.strategies import AbstractStrategy

L, N = 20, 7
# The same computation in another order: rounding alone.
RTOL = 1e-10

# ------------------------------------------------------------------------------------- memory


def _memory(strategy: AbstractStrategy, L: int) -> int:
    """Bytes beyond arguments and results, for 3 samples in float64."""
    problem, solver = to_hypergrad(random_poster(Quadratic, 6, 4, L=L))
    arguments = cast_floats((problem, *random_data(3, 4), solver), jnp.float64)
    arguments = jax.tree.map(jnp.asarray, arguments)
    lowered = compute_hypergradient.lower(*arguments, strategy, half_mean_squared_error, None)
    return lowered.compile().compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    "strategy",
    [hg.Truncation(1), hg.LimitFormula(hg.Steps(1)), hg.Piggyback(), hg.ForwardUnrolling()],
    ids=lambda s: s.label,
)
def test_memory_of_what_stores_no_history_does_not_grow_with_the_iterations(strategy):
    assert _memory(strategy, 5000) <= _memory(strategy, 50)


@pytest.mark.usefixtures("optimised")
def test_memory_of_full_unrolling_is_its_history():
    grown = _memory(hg.FullUnrolling(), 5000) - _memory(hg.FullUnrolling(), 50)
    history = 4950 * 3 * (6 + 4) * 8
    assert history <= grown <= 2 * history


# --------------------------------------------------------------------------- what some promise


def _one_batch_axis() -> tuple[Poster, np.ndarray, np.ndarray]:
    return random_poster(Quadratic, 6, 4, L=L, per_entry=True), *random_data(3, 4)


@pytest.mark.parametrize("strategy", [hg.Truncation(1), hg.LimitFormula(hg.Steps(1))])
def test_jit_is_eager(strategy):
    """At shapes that are all alike, since every primitive is compiled once a shape."""
    problem, solver = to_hypergrad(random_poster(Quadratic, 3, 3, L=2))
    x_tilde, x_true = random_data(3, 3)
    compiled = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    with jax.disable_jit():
        eager = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    assert_close(
        eqx.filter(eager, eqx.is_inexact_array), eqx.filter(compiled, eqx.is_inexact_array), RTOL
    )
    assert eager.adjoint.status.tolist() == compiled.adjoint.status.tolist()


_STARTS = {
    "full": (hg.FullUnrolling(), np.eye(2 * L)[-1], L),
    "truncation": (hg.Truncation(3), np.eye(2 * L)[-1], 3),
    "ergodic": (hg.ErgodicUnrolling(), np.repeat([0, 1 / L], L), L),
}


@pytest.mark.parametrize(("strategy", "alpha", "k"), _STARTS.values(), ids=list(_STARTS))
def test_init_goes_on_and_is_held_fixed(strategy, alpha, k):
    """Twice L iterations are the oracle, of which the second half is differentiated."""
    poster, x_tilde, x_true = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    first = hg.solve(problem, x_tilde, solver=solver, strategy=hg.LimitFormula(hg.Steps(1)))
    h = hg.hypergradient(
        problem, x_tilde, x_true, solver=solver, strategy=strategy, init=first.state
    )
    twice = dataclasses.replace(poster, L=2 * L)
    assert relative_error(h.solution.x, twice.output(x_tilde, alpha)[0]) <= RTOL
    assert_close(gradient_of(h), twice.unrolled(x_tilde, x_true, alpha, k), RTOL)


# (`Exact` by any of several starts: test_exact.py.)
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(hg.Exact(), marks=pytest.mark.slow), hg.LimitFormula()],
    ids=lambda s: s.name,
)
def test_a_solve_started_at_the_solution_stays_there(strategy):
    """Of the others test_warm_starts.py knows every iterate."""
    poster, x_tilde, _ = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    runs = [dataclasses.replace(poster, L=4000).run(x) for x in x_tilde]
    assert max(np.linalg.norm(run.r[-1] - run.r[-2]) for run in runs) <= 1e-15
    r, y = (np.array([getattr(run, s)[-1] for run in runs]) for s in ("r", "y"))
    state = hg.State(*map(jnp.asarray, (r, r, y)))
    solution = hg.solve(problem, x_tilde, solver=solver, strategy=strategy, init=state)
    assert relative_error(solution.x, x_tilde + r) <= RTOL
    assert relative_error(solution.y, y) <= RTOL
    assert np.all(np.asarray(solution.stats.status) == Status.CONVERGED)


def _quartic(x, x_true):
    return jnp.sum((x - x_true) ** 4)


@pytest.mark.parametrize("strategy", [hg.Truncation(3), hg.LimitFormula(hg.Steps(2))])
def test_a_loss_of_the_users(strategy):
    poster, x_tilde, x_true = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy, loss=_quartic)
    x, _ = poster.output(x_tilde)
    assert relative_error(h.value, np.sum((x - x_true) ** 4)) <= RTOL
    # The oracle's loss has the same gradient in x, for another x_true.
    shifted = x - len(x) * 4 * (x - x_true) ** 3
    if isinstance(strategy, hg.Truncation):
        expected = poster.unrolled(x_tilde, shifted, k=3)
    else:
        expected = poster.limit(x_tilde, shifted, 2, frozen=True)
    assert_close(gradient_of(h), expected, RTOL)


_CUT_OFF = {
    "truncation": (hg.Truncation(1), lambda p, *data: p.unrolled(*data, k=1)),
    "steps": (hg.LimitFormula(hg.Steps(1)), lambda p, *data: p.limit(*data, 1, frozen=True)),
    "solve": (hg.LimitFormula(), lambda p, *data: p.limit_solved(*data)),
}


@pytest.mark.parametrize(("strategy", "oracle"), _CUT_OFF.values(), ids=list(_CUT_OFF))
def test_nothing_leaks_through_earlier_iterations(strategy, oracle):
    """`jax.grad` through `solve` sees the closed formula at the last iterate, unconverged as it is;
    x_tilde in particular gets `g + sigma K^T Delta_D` and nothing else.
    """
    poster, x_tilde, x_true = _one_batch_axis()
    problem, solver = to_hypergrad(poster)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arguments):
        problem, x_tilde = arguments
        x = hg.solve(problem, x_tilde, solver=solver, strategy=strategy).x
        return half_mean_squared_error(x, jnp.asarray(x_true))

    problem_bar, x_tilde_bar = gradient((problem, jnp.asarray(x_tilde)))
    expected = oracle(poster, x_tilde, x_true)
    actual = (problem_bar.K, problem_bar.F.weight, problem_bar.G.weight, x_tilde_bar)
    assert_close(type(expected)(*map(np.asarray, actual)), expected, RTOL)
    # They do differ from what all iterations would give.
    assert relative_error(expected.x_tilde, poster.unrolled(x_tilde, x_true).x_tilde) > 1e-3


_ALPHA = {
    "full": (hg.FullUnrolling(), np.eye(L)[-1]),
    "ergodic": (hg.ErgodicUnrolling(), np.full(L, 1 / L)),
}


@pytest.mark.parametrize(("strategy", "alpha"), _ALPHA.values(), ids=list(_ALPHA))
def test_a_loss_on_the_dual_variable(strategy, alpha):
    poster, x_tilde, x_true = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    direction = jnp.asarray(np.random.default_rng(3).standard_normal((3, 6)))

    def loss(x, y):
        return half_mean_squared_error(x, jnp.asarray(x_true)) + jnp.vdot(direction, y) / 3

    @eqx.filter_jit
    @eqx.filter_grad
    def through_solve(arguments):
        problem, x_tilde = arguments
        solution = hg.solve(problem, x_tilde, solver=solver, strategy=strategy)
        return loss(solution.x, solution.y)

    @eqx.filter_jit
    @eqx.filter_grad
    def by_autodiff(arguments):
        problem, x_tilde = arguments
        sizes = (poster.tau, poster.sigma, poster.theta)
        r, _, y = jax.vmap(lambda x: plain_scan(problem, x, *sizes, L))(x_tilde)
        return loss(x_tilde + jnp.asarray(alpha) @ r, jnp.asarray(alpha) @ y)

    arguments = (problem, jnp.asarray(x_tilde))
    assert_close(through_solve(arguments), by_autodiff(arguments), RTOL)


def test_a_loss_on_the_dual_variable_in_the_limit():
    """`D_D g_y` is then the second right-hand side of the limit system."""
    poster, x_tilde, _ = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    direction = np.random.default_rng(3).standard_normal((3, 6))

    @jax.grad
    def through_solve(x_tilde):
        solution = hg.solve(problem, x_tilde, solver=solver, strategy=hg.LimitFormula())
        return jnp.vdot(jnp.asarray(direction), solution.y)

    expected = []
    for x, g_y in zip(x_tilde, direction, strict=True):
        matrix, right = poster.limit_system(poster.run(x), np.zeros(4), g_y)
        Delta_D = (np.linalg.pinv(matrix, 1e-10) @ right)[4:]
        expected.append(poster.sigma * poster.K.T @ Delta_D)
    assert relative_error(through_solve(jnp.asarray(x_tilde)), np.array(expected)) <= RTOL


class PlainUnrolling(hg.AbstractDifferentiableStrategy):
    """What a user may add from outside: full unrolling left to JAX."""

    name = "plain"

    def run(self, problem, x_tilde, solver, init):
        sizes = solver.step_sizes(problem)
        state = solver.start(problem, x_tilde, init)
        state, _ = record(problem, x_tilde, sizes, state, solver.iterations)
        x, taken = x_tilde + state.r, jnp.full(x_tilde.shape[:-1], solver.iterations)
        stats = solver.certify(problem, x_tilde, sizes, state.r, state.y, taken)
        return hg.Solution(x, state.y, stats, state)


def test_a_strategy_of_the_users_is_differentiated_by_jax():
    """With step sizes from the norm of K: neither the norm nor F's scale is differentiated."""
    poster, x_tilde, x_true = _one_batch_axis()
    problem, _ = to_hypergrad(poster)
    solver = hg.ChambollePock(L, step_ratio=2.0)
    plain, full = (
        hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
        for strategy in (PlainUnrolling(), hg.FullUnrolling())
    )
    for field in ("solution", "grad", "grad_x_tilde", "grad_solver"):
        floats = (eqx.filter(getattr(h, field), eqx.is_inexact_array) for h in (plain, full))
        assert_close(*floats, RTOL)


def test_what_jax_differentiates_claims_nothing():
    """UNKNOWN; a gradient that is not finite is seen all the same, sample by sample."""
    poster, x_tilde, x_true = _one_batch_axis()
    problem, _ = to_hypergrad(poster)

    def loss(x, x_true):
        return _quartic(x, x_true) + jnp.where(x_true[0, 0] > 1e3, jnp.inf, 0.0) * x[0, 0]

    def call(x_true, iterations=L, **options):
        return hg.hypergradient(
            problem, x_tilde, x_true,
            solver=hg.ChambollePock(iterations), strategy=PlainUnrolling(), loss=loss, **options,
        )  # fmt: skip

    h = call(jnp.asarray(x_true))
    assert (h.adjoint.steps, h.adjoint.products) == (None, None)
    assert np.all(np.asarray(h.adjoint.status) == hg.Status.UNKNOWN)
    assert np.all(np.isnan(np.asarray(h.adjoint.residual)))
    assert "adjoint=AdjointStats(unknown" in repr(h)
    assert "steps unknown, residual unknown" in repr(h)
    np.testing.assert_array_equal(jax.jit(call)(x_true).adjoint.status, h.adjoint.status)
    first, *others = np.asarray(call(jnp.asarray(x_true).at[0, 0].set(1e4)).adjoint.status).tolist()
    assert first == hg.Status.NON_FINITE
    assert set(others) <= {int(hg.Status.UNKNOWN), int(hg.Status.NON_FINITE)}
    with pytest.raises(Exception, match="the adjoint solve did not succeed"):
        jax.block_until_ready(call(jnp.asarray(x_true), iterations=5000, throw=True).value)


@pytest.mark.parametrize(
    "strategy", [hg.Truncation(2), PlainUnrolling(), hg.LimitFormula()], ids=lambda s: s.name
)
def test_a_start_has_no_derivative(strategy):
    """By the pullback, by JAX alone, and by the pushforward."""
    poster, x_tilde, _ = _one_batch_axis()
    problem, solver = to_hypergrad(poster)
    start = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).state

    @eqx.filter_grad
    def moved(start):
        return jnp.sum(hg.solve(problem, x_tilde, solver=solver, strategy=strategy, init=start).x)

    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(moved(start)))


@pytest.mark.parametrize(
    "strategy",
    # (`Exact` with such an operator, every day: test_without_arrays.py.)
    [
        hg.LimitFormula(),
        pytest.param(hg.Exact(), marks=pytest.mark.slow),
        hg.Truncation(2),
        PlainUnrolling(),
    ],
    ids=lambda s: s.name,
)
def test_an_operator_of_a_function_is_its_matrix(strategy):
    """Such an operator holds more than arrays: with and without a derivative, and traced."""
    matrix = hg.operators.differences(N)
    structure = jax.ShapeDtypeStruct((N,), matrix.dtype)
    x_tilde, _ = random_data(3, N)

    @eqx.filter_jit
    @functools.partial(eqx.filter_value_and_grad, has_aux=True)
    def loss(problem):
        trace = strategy.follows_solver
        solution = hg.solve(problem, x_tilde, solver=solver, strategy=strategy, trace=trace)
        return jnp.sum(solution.x**2), solution.trace

    solver, found = hg.ChambollePock(L, tau=0.4, sigma=0.4), []
    for K in (matrix, lx.FunctionLinearOperator(jnp.diff, structure)):
        (value, trace), grad = loss(hg.LowerLevel(K, hg.L1(0.1), hg.Quadratic(1.0)))
        found.append((value, trace, grad.F, grad.G))
    assert_close(*found, RTOL)


def test_hypergradient_is_not_to_be_differentiated():
    """It would be the derivative of the iterations, whatever the strategy."""
    poster, x_tilde, x_true = _one_batch_axis()
    problem, solver = to_hypergrad(poster)

    def value(problem, x_tilde, scale):
        loss = eqx.Partial(lambda scale, x, x_true: scale * _quartic(x, x_true), scale)
        return hg.hypergradient(
            problem, x_tilde, x_true, solver=solver, strategy=hg.Truncation(1), loss=loss
        ).value

    for argnum in (0, 1):
        with pytest.raises(TypeError, match=r"must not be differentiated; got .* hg\.solve"):
            jax.jit(jax.grad(value, argnum))(problem, x_tilde, 2.0)
    # What belongs to the loss alone is no derivative of the lower level.
    in_scale = jax.grad(value, 2)(problem, x_tilde, 2.0)
    assert relative_error(in_scale, value(problem, x_tilde, 1.0)) <= RTOL


def test_a_tolerance_stops_each_sample_by_itself():
    """Samples that arrive at different times: a batch equals its samples, and says how long each
    took; whatever is unconverged when the iterations end says so.
    """
    poster = random_poster(Quadratic, 6, 4, L=L, per_entry=True)
    problem, _ = to_hypergrad(poster)
    solver = hg.ChambollePock(100, poster.tau, poster.sigma, tolerance=1e-8)
    strategy = hg.Truncation(1)
    x_tilde, _ = random_data(10, 4)
    batch = hg.solve(problem, x_tilde, solver=solver, strategy=strategy)
    assert len(set(np.asarray(batch.stats.iterations).tolist())) >= 3
    for i, x in enumerate(x_tilde):
        single = hg.solve(problem, x, solver=solver, strategy=strategy)
        assert relative_error(single.x, batch.x[i]) <= RTOL
        assert single.stats.iterations == batch.stats.iterations[i]
        assert single.stats.status == batch.stats.status[i]
    good = np.asarray(batch.stats.residual) <= 1e-8
    np.testing.assert_array_equal(np.asarray(batch.stats.status) == Status.CONVERGED, good)
    assert set(good.tolist()) == {True, False}
