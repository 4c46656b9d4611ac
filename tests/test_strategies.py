"""What every strategy owes its user: one contract, run over the one list of strategies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Quadratic,
    assert_close,
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


@pytest.fixture(scope="module", autouse=True)
def _ranks_are_not_promoted() -> Iterator[None]:
    """One parameter a coordinate, a batch of two axes: JAX raises where it would broadcast."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", "allow")


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


# Which rule JAX is given depends on the class of a strategy, and not on its options.
@pytest.mark.parametrize(
    "case", [s() for s in hg.STRATEGIES.values()], indirect=True, ids=lambda s: s.label
)
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
        h = hg.hypergradient(problem, x, x, error_bound=True, **shared)
        diagnostics = (
            ()
            if not isinstance(F, hg.Huber)
            else (  # of any function
                hg.solve(problem, x, trace=True, **shared).trace,
                hg.contraction_factor(problem, x, solver=solver),
                hg.steps_needed(problem, x, x, solver=solver, error=0.1),
                hg.adjoint_trajectory(problem, x, x, **shared),
            )
        )
        return h, diagnostics, problem.objective(x, x)

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


# Of every strategy `vmap` traces one sample, below; samples by themselves are solved by some.
ONE_BY_ONE = [hg.Truncation(), hg.LimitFormula(), hg.LimitFormula(hg.Tolerance(1e-2))]


@pytest.mark.parametrize("case", ONE_BY_ONE, indirect=True, ids=lambda s: s.label)
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


# Forward mode has no rule of its own that `vmap` could miss, and is traced for ten seconds.
BY_VMAP = [
    pytest.param(s, id=s.label, marks=[pytest.mark.slow] * isinstance(s, hg.ForwardUnrolling))
    for s in strategies_for_contract(L)
]


@pytest.mark.parametrize("case", BY_VMAP, indirect=True)
def test_vmap_over_samples_under_jit_is_the_batch(case):
    def sample(x_tilde, x_true):
        return case.hypergradient(case.problem, x_tilde, x_true)

    h = jax.jit(jax.vmap(jax.vmap(sample)))(case.x_tilde, case.x_true)
    for name in ("x", "y", "state"):
        assert_close(getattr(h.solution, name), getattr(case.h.solution, name), RTOL)
    assert_close(h.grad_x_tilde / COUNT, case.h.grad_x_tilde, RTOL)
    assert_close(jax.tree.map(lambda a: jnp.mean(a, (0, 1)), h.grad), case.h.grad, RTOL)
    stats, expected = h.solution.stats, case.h.solution.stats
    np.testing.assert_array_equal(stats.status, expected.status)
    np.testing.assert_array_equal(stats.iterations, expected.iterations)
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


# --------------------------------------------------------------- what a compiled one consists of


def _compiled(arguments: tuple, strategy: AbstractStrategy) -> jax.stages.Compiled:
    """The executable that a call of `hypergradient` with these arguments makes, or has made."""
    lowered = compute_hypergradient.lower(*arguments, strategy, half_mean_squared_error, None)
    return lowered.compile().compiled


def _sizes_in(executable: jax.stages.Compiled) -> set[int]:
    """The number of entries of every array in the optimised HLO."""
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", executable.as_text())
    return {int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes}


def test_no_gradient_of_K_is_formed_sample_by_sample(case):
    """An array `(batch, m, n)`, or one that is reshaped from it, would have so many entries."""
    sizes = _sizes_in(_compiled(case.cast(jnp.float64), case.strategy))
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
