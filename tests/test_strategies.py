"""What every strategy owes its user: one contract, run over the one list of strategies.

Afterwards what only some of them promise: to cut off, to return averages, to need little memory.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

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
    strategies_for_contract,
    to_hypergrad,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.bilevel import half_mean_squared_error
from hypergrad.bilevel.hypergradients import compute_hypergradient
from hypergrad.chambolle_pock import record
from hypergrad.problem.lower_level import cast_floats
from hypergrad.strategies import AbstractStrategy

# Primes, so that an array that holds all three can be told by its size.
M, N, BATCH = 13, 7, (1, 11)
COUNT, L = 11, 20
# The same computation in another order: rounding alone.
RTOL = 1e-10


class Case(NamedTuple):
    """A strategy with one hypergradient of it."""

    strategy: AbstractStrategy
    problem: hg.LowerLevel
    solver: hg.ChambollePock
    x_tilde: np.ndarray
    x_true: np.ndarray
    h: hg.Hypergradient

    def hypergradient(self, problem, x_tilde, x_true) -> hg.Hypergradient:
        return hg.hypergradient(
            problem, x_tilde, x_true, solver=self.solver, strategy=self.strategy
        )

    def cast(self, dtype) -> tuple:
        """The arguments as the entry hands them on."""
        arrays = (jnp.asarray(self.x_tilde), jnp.asarray(self.x_true))
        return cast_floats((self.problem, *arrays, self.solver), dtype)


@pytest.fixture(scope="module", params=strategies_for_contract(L), ids=lambda s: s.label)
def case(request) -> Case:
    problem, solver = to_hypergrad(random_poster(Quadratic, M, N, L=L, per_entry=True))
    x_tilde, x_true = (data.reshape(*BATCH, N) for data in random_data(COUNT, N))
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=request.param)
    return Case(request.param, problem, solver, x_tilde, x_true, h)


def _samples(tree: Any) -> list:
    """The samples of a batched pytree, in order."""
    rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(BATCH) :]), tree)
    return [jax.tree.map(lambda a, i=i: a[i], rows) for i in range(COUNT)]


# ------------------------------------------------------------------------------- the contract


def test_every_strategy_of_the_list_is_tested():
    assert {s.name for s in strategies_for_contract(L)} == set(hg.STRATEGIES)
    assert {type(s) for s in strategies_for_contract(L)} == set(hg.STRATEGIES.values())


def test_grad_through_solve_is_the_hypergradient(case):
    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(arguments):
        problem, x_tilde, solver = arguments
        x = hg.solve(problem, x_tilde, solver=solver, strategy=case.strategy).x
        return half_mean_squared_error(x, jnp.asarray(case.x_true))

    value, gradients = loss((case.problem, jnp.asarray(case.x_tilde), case.solver))
    assert relative_error(value, case.h.value) <= RTOL
    assert_close(gradients, (case.h.grad, case.h.grad_x_tilde, case.h.grad_solver), RTOL)


def test_gradients_have_the_structure_of_their_arguments_and_say_something(case):
    floats = eqx.filter((case.problem, case.solver), eqx.is_inexact_array)
    gradients = (case.h.grad, case.h.grad_solver)
    assert jax.tree.structure(floats) == jax.tree.structure(gradients)
    shapes = zip(jax.tree.leaves(floats), jax.tree.leaves(gradients), strict=True)
    assert all(a.shape == b.shape for a, b in shapes)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert all(np.linalg.norm(leaf) > 1e-3 for leaf in jax.tree.leaves(case.h.grad))


def test_ranks_are_not_promoted(case):
    """One parameter a coordinate, a batch of two axes: tracing finds what JAX would broadcast."""

    def everything(problem, x_tilde, x_true):
        shared = {"solver": case.solver, "strategy": case.strategy}
        h = hg.hypergradient(problem, x_tilde, x_true, error_bound=True, **shared)
        grad = eqx.filter_grad(lambda p: jnp.sum(hg.solve(p, x_tilde, **shared).x))(problem)
        return h.grad, grad

    with jax.numpy_rank_promotion("raise"):
        for gradient in eqx.filter_eval_shape(everything, *case.cast(jnp.float64)[:3]):
            assert gradient.F.weight.shape == (M,)


# One parameter a row, or one for all rows as a block.
OF_VECTORS = {
    "L1": hg.L1,
    "L1 block": lambda w: hg.L1(w[:1]),
    "Huber": lambda w: hg.Huber(w, w[:1]),
    "ElasticNet": lambda w: hg.ElasticNet(w[:1], w),
    "ConvexPotential": lambda w: hg.ConvexPotential(jnp.stack([w, 2 * w], 1), (0.1, 0.2), w),
    "Quadratic": lambda w: hg.Quadratic(w, w),
    "Box": hg.Box,
    "BoxQuadratic": lambda w: hg.BoxQuadratic(w, w),
}


@pytest.mark.parametrize("f", OF_VECTORS.values(), ids=OF_VECTORS)
def test_functions_and_diagnostics_promote_no_ranks(f):
    x = jnp.ones((2, 3, 4))
    F, G = (f(jnp.linspace(0.1, 0.2, size)) for size in (3, 4))
    problem, solver = hg.LowerLevel(K=hg.operators.differences(4), F=F, G=G), hg.ChambollePock(3)

    def everything():
        shared = {"solver": solver, "strategy": hg.Truncation(1)}
        return (
            hg.hypergradient(problem, x, x, error_bound=True, **shared),
            hg.solve(problem, x, trace=True, **shared).trace,
            hg.contraction_factor(problem, x, solver=solver),
            hg.steps_needed(problem, x, x, solver=solver, error=0.1),
            hg.adjoint_trajectory(problem, x, x, **shared),
            problem.objective(x, x),
        )

    with jax.numpy_rank_promotion("raise"):
        *_, objective = eqx.filter_eval_shape(everything)
    assert objective.shape == (2, 3)


def test_value_is_the_loss_of_the_solution(case):
    x = np.asarray(case.h.solution.x)
    assert x.shape == case.x_tilde.shape
    assert case.h.solution.y.shape == (*BATCH, case.problem.m)
    loss = 0.5 * np.mean(np.sum((x - case.x_true) ** 2, -1))
    assert relative_error(case.h.value, loss) <= RTOL


def test_status_and_stats_have_one_entry_a_sample(case):
    statistics = jax.tree.leaves((case.h.solution.stats, case.h.adjoint))
    assert all(leaf.shape == BATCH for leaf in statistics)
    known = {status.value for status in Status}
    assert set(np.ravel(case.h.solution.stats.status)) <= known
    assert set(np.ravel(case.h.adjoint.status)) <= known
    # The rule is the default tolerance of float64, eps^(3/4).
    small = np.asarray(case.h.solution.stats.residual) <= np.finfo(float).eps ** 0.75
    status = np.asarray(case.h.solution.stats.status)
    assert np.all(small[status == Status.CONVERGED])
    assert not np.any(small[status == Status.ITERATIONS_USED_UP])
    assert Status(int(case.h.solution.stats.status[0, 0])).label in repr(case.h.solution.stats)


def test_batch_is_the_mean_of_its_samples(case):
    data = zip(_samples(case.x_tilde), _samples(case.x_true), strict=True)
    singles = [case.hypergradient(case.problem, *sample) for sample in data]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / COUNT, *(h.grad for h in singles))
    assert_close(mean, case.h.grad, RTOL)
    for single, of_batch in zip(singles, _samples(case.h.solution), strict=True):
        assert_close((single.solution.x, single.solution.y), (of_batch.x, of_batch.y), RTOL)
        assert_close(single.solution.state, of_batch.state, RTOL)
        assert single.solution.stats.status == of_batch.stats.status
        assert single.solution.stats.iterations == of_batch.stats.iterations
    for single, of_batch in zip(singles, _samples(case.h.adjoint), strict=True):
        assert single.adjoint.status == of_batch.status
    for single, of_batch in zip(singles, _samples(case.h.grad_x_tilde), strict=True):
        assert_close(single.grad_x_tilde / COUNT, of_batch, RTOL)


def test_vmap_over_samples_under_jit_is_the_batch(case):
    def sample(x_tilde, x_true):
        return case.hypergradient(case.problem, x_tilde, x_true)

    h = jax.jit(jax.vmap(jax.vmap(sample)))(case.x_tilde, case.x_true)
    assert_close((h.solution.x, h.solution.y), (case.h.solution.x, case.h.solution.y), RTOL)
    assert_close(h.grad_x_tilde / COUNT, case.h.grad_x_tilde, RTOL)
    assert_close(jax.tree.map(lambda a: jnp.mean(a, (0, 1)), h.grad), case.h.grad, RTOL)
    np.testing.assert_array_equal(h.solution.stats.status, case.h.solution.stats.status)
    np.testing.assert_array_equal(h.adjoint.status, case.h.adjoint.status)


def test_numpy_input_is_jax_input(case):
    assert isinstance(case.x_tilde, np.ndarray)
    problem = hg.LowerLevel(np.asarray(case.problem.K), case.problem.F, case.problem.G)
    from_numpy = case.hypergradient(problem, case.x_tilde, case.x_true)
    from_jax = case.hypergradient(case.problem, *map(jnp.asarray, (case.x_tilde, case.x_true)))
    assert eqx.tree_equal(from_numpy, from_jax)


def test_second_call_at_the_same_shapes_compiles_nothing(case, caplog):
    problem = eqx.tree_at(lambda p: p.K, case.problem, case.problem.K / 2)
    with jax.log_compiles(True):
        h = case.hypergradient(problem, case.x_tilde / 2, case.x_true)
    assert not [r.message for r in caplog.records if "Compiling" in r.message]
    assert relative_error(h.grad.K, case.h.grad.K) > 0.01


def test_first_call_is_seen_to_compile(caplog):
    """The control of the test above."""
    problem = hg.LowerLevel(jnp.eye(2), hg.L1(0.1), hg.Quadratic(1.0))
    with jax.log_compiles(True):
        solver = hg.ChambollePock(2)
        hg.solve(problem, np.ones(2), solver=solver, strategy=hg.LimitFormula(hg.Steps(1)))
    assert [r.message for r in caplog.records if "Compiling" in r.message]


def test_a_sample_that_is_not_finite_spoils_no_other(case):
    """The entry refuses NaN; what turns up inside is one sample's status."""
    problem, x_tilde, x_true, solver = case.cast(jnp.float64)
    x_tilde = x_tilde.at[0, 1].set(jnp.nan)
    loss = half_mean_squared_error
    h = compute_hypergradient(problem, x_tilde, x_true, solver, case.strategy, loss, None)
    spoilt = np.zeros(BATCH, bool)
    spoilt[0, 1] = True
    for status, before in (
        (h.solution.stats.status, case.h.solution.stats.status),
        (h.adjoint.status, case.h.adjoint.status),
    ):
        np.testing.assert_array_equal(status, np.where(spoilt, Status.NON_FINITE, before))
    for actual, expected in (
        (h.solution.x, case.h.solution.x),
        (h.grad_x_tilde, case.h.grad_x_tilde),
    ):
        assert relative_error(actual[~spoilt], expected[~spoilt]) <= RTOL
        assert np.all(np.isnan(actual[spoilt]))


def test_float32_stays_float32_and_is_close_to_float64(case):
    """The weights are float64 here: K and the data decide."""
    K = np.asarray(case.problem.K, np.float32)
    problem = hg.LowerLevel(K, case.problem.F, case.problem.G)
    data = case.x_tilde.astype(np.float32), case.x_true.astype(np.float32)
    h = case.hypergradient(problem, *data)
    floats = [leaf for leaf in jax.tree.leaves(h) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    # Masks agree (no coordinate sits on a kink), so what is left is the rounding of float32.
    assert_close((h.grad, h.grad_x_tilde), (case.h.grad, case.h.grad_x_tilde), 1e-4)


def test_a_solve_started_at_the_solution_stays_there(case):
    poster = random_poster(Quadratic, M, N, L=4000, per_entry=True)
    x_tilde = case.x_tilde[0, :3]
    runs = [poster.run(x) for x in x_tilde]
    assert max(np.linalg.norm(run.r[-1] - run.r[-2]) for run in runs) <= 1e-15
    r, y = (np.array([getattr(run, s)[-1] for run in runs]) for s in ("r", "y"))
    state = hg.State(*map(jnp.asarray, (r, r, y)))
    solution = hg.solve(
        case.problem, x_tilde, solver=case.solver, strategy=case.strategy, init=state
    )
    assert relative_error(solution.x, x_tilde + r) <= RTOL
    assert relative_error(solution.y, y) <= RTOL
    assert np.all(np.asarray(solution.stats.status) == Status.CONVERGED)


# --------------------------------------------------------------- what a compiled one consists of


def _compiled(arguments: tuple, strategy: AbstractStrategy) -> jax.stages.Compiled:
    """The executable that a call of `hypergradient` with these arguments makes, or has made."""
    lowered = compute_hypergradient.lower(*arguments, strategy, half_mean_squared_error, None)
    return lowered.compile().compiled


def _sizes_in(executable: jax.stages.Compiled) -> set[int]:
    """The number of entries of every array in the optimised HLO."""
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", executable.as_text())
    return {int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_gradient_of_K_is_formed_sample_by_sample(case, dtype):
    """An array `(batch, m, n)`, or one that is reshaped from it, would have so many entries."""
    arguments = case.cast(dtype)
    sizes = _sizes_in(_compiled(arguments, case.strategy))
    assert {COUNT * M, COUNT * N, M * N} <= sizes  # it does see the arrays
    if isinstance(case.strategy, hg.Exact):
        # Dense by its nature: it factorises a system a sample, and says so in its cost.
        assert COUNT * N * N in sizes
        return
    assert not [size for size in sizes if size % (COUNT * M * N) == 0]


def test_a_gradient_sample_by_sample_is_seen():
    """The control of the test above."""
    outer = jax.jit(lambda a, b: jax.vmap(jnp.outer)(a, b) ** 2)
    executable = outer.lower(jnp.ones((COUNT, M)), jnp.ones((COUNT, N))).compile()
    assert COUNT * M * N in _sizes_in(executable)


def _memory(strategy: AbstractStrategy, L: int) -> int:
    """Bytes beyond arguments and results, for 3 samples in float64."""
    problem, solver = to_hypergrad(random_poster(Quadratic, 6, 4, L=L))
    arguments = cast_floats((problem, *random_data(3, 4), solver), jnp.float64)
    arguments = jax.tree.map(jnp.asarray, arguments)
    return _compiled(arguments, strategy).memory_analysis().temp_size_in_bytes


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
    [hg.LimitFormula(), hg.Exact(), hg.Truncation(2), PlainUnrolling()],
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
