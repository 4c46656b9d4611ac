"""Forward mode through all iterations, against the posters' recursion and central differences."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Box,
    Convolution,
    Gradient,
    Poster,
    Quadratic,
    assert_close,
    central_differences,
    gradient_of,
    plain_scan,
    random_data,
    random_poster,
    relative_error,
    to_hypergrad,
)

import hypergrad as hg

N, BATCH, L = 5, 3, 10
DATA = random_data(BATCH, N)
# The same computation in another order: rounding alone.
RTOL = 1e-10


def _loss_of(poster: Poster) -> Callable:
    """The loss as a function of (tau, sigma, theta)."""

    def loss(sizes):
        tau, sigma, theta = sizes
        x, _ = dataclasses.replace(poster, tau=tau, sigma=sigma, theta=theta).output(DATA[0])
        return 0.5 * np.mean(np.sum((x - DATA[1]) ** 2, axis=-1))

    return loss


@pytest.mark.parametrize(("G", "m"), [(Quadratic, 3), (Box, 6)])
def test_forward_mode_is_the_recursion_backwards(G, m):
    for theta in (0.0, 0.3, 1.0):
        poster = random_poster(G, m, N, L=L, per_entry=True, theta=theta)
        problem, solver = to_hypergrad(poster)
        h = hg.hypergradient(problem, *DATA, solver=solver, strategy=hg.ForwardUnrolling())
        assert_close(gradient_of(h), poster.unrolled(*DATA), RTOL)
        assert relative_error(h.solution.x, poster.output(DATA[0])[0]) <= RTOL
        sizes = np.array([poster.tau, poster.sigma, poster.theta])
        in_sizes = np.array([h.grad_solver.tau, h.grad_solver.sigma, h.grad_solver.theta])
        # Central differences with a step of 1e-5 are good to about 1e-10 of the loss.
        assert relative_error(in_sizes, central_differences(_loss_of(poster), sizes)) <= 1e-8
    assert np.all(np.asarray(h.adjoint.steps) == L)
    assert np.all(np.asarray(h.adjoint.residual) == 0)


@pytest.mark.parametrize("solver", [hg.ChambollePock(L), hg.ChambollePock(100, tolerance=1e-3)])
def test_a_derivative_in_one_direction_goes_through_its_run(solver):
    """Forward mode itself, what `solve` has not here."""
    problem = hg.LowerLevel(jnp.eye(N), hg.L1(0.3), hg.Quadratic(1.0))
    x_tilde = jnp.asarray(DATA[0])

    def x(x_tilde):
        return hg.ForwardUnrolling().run(problem, x_tilde, solver, None).x

    moved = jax.jvp(x, (x_tilde,), (jnp.ones_like(x_tilde),))[1]
    ahead, behind = x(x_tilde + 1e-6), x(x_tilde - 1e-6)
    np.testing.assert_allclose(moved, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_products_are_counted():
    """An iteration: 2 for each derivative, 2 more where K moves, 2 for every 4 of a leaf."""
    problem = hg.LowerLevel(
        Convolution(jnp.asarray([0.5, -0.4, 0.2]), size=N), hg.L1(0.3), hg.Zero()
    )
    solver = hg.ChambollePock(L, 0.5, 0.5)
    h = hg.hypergradient(problem, *DATA, solver=solver, strategy=hg.ForwardUnrolling())
    # The kernel's 3, the weight, x_tilde's 5, and the solver's tau, sigma, theta, step_ratio.
    derivatives, in_K, groups = 3 + 1 + 5 + 4, 3, 1 + 1 + 2 + 4
    assert np.all(np.asarray(h.adjoint.products) == 2 * L * (derivatives + in_K + groups))


def test_a_few_parameters_of_an_operator_and_a_loss_on_y():
    """A K with three of them, whose step sizes follow from the norm (which is held fixed)."""
    operator = Convolution(jnp.asarray([0.5, -0.4, 0.2]), size=N)
    problem = hg.LowerLevel(operator, hg.L1(0.3), hg.Quadratic(1.0))
    solver = hg.ChambollePock(L, step_ratio=2.0)
    x_tilde, x_true = map(jnp.asarray, DATA)
    direction = jnp.asarray(np.random.default_rng(3).standard_normal((BATCH, problem.m)))

    def loss(x, y):
        return 0.5 * jnp.sum((x - x_true) ** 2) + jnp.vdot(direction, y)

    @eqx.filter_jit
    @eqx.filter_grad
    def through_solve(problem):
        solution = hg.solve(problem, x_tilde, solver=solver, strategy=hg.ForwardUnrolling())
        return loss(solution.x, solution.y)

    sizes = solver.step_sizes(problem)

    @eqx.filter_jit
    @eqx.filter_grad
    def by_autodiff(problem):
        r, _, y = jax.vmap(lambda x: plain_scan(problem, x, *sizes, L))(x_tilde)
        return loss(x_tilde + r[:, -1], y[:, -1])

    assert_close(through_solve(problem), by_autodiff(problem), RTOL)


def test_with_a_tolerance_each_sample_is_differentiated_through_its_own_iterations():
    poster = random_poster(Quadratic, 6, N, L=L, per_entry=True)
    problem, _ = to_hypergrad(poster)
    solver = hg.ChambollePock(200, poster.tau, poster.sigma, tolerance=1e-3)
    h = hg.hypergradient(problem, *DATA, solver=solver, strategy=hg.ForwardUnrolling())
    taken = np.asarray(h.solution.stats.iterations)
    assert len(set(taken.tolist())) > 1
    single = [
        dataclasses.replace(poster, L=int(count)).unrolled(x_tilde[None], x_true[None])
        for count, x_tilde, x_true in zip(taken, *DATA, strict=True)
    ]
    *shared, x_tilde = zip(*single, strict=True)
    mean = Gradient(*(sum(g) / BATCH for g in shared), np.concatenate(x_tilde) / BATCH)
    assert_close(gradient_of(h), mean, RTOL)
    converged = dataclasses.replace(poster, L=300).unrolled(*DATA)
    assert relative_error(mean.K, converged.K) > 1e-6


def test_its_run_can_be_differentiated_forwards_by_jax():
    poster = random_poster(Quadratic, 6, N, L=L, per_entry=True)
    problem, solver = to_hypergrad(poster)
    x_tilde = jnp.asarray(DATA[0])

    def x_of(weight):
        moved = eqx.tree_at(lambda p: p.F.weight, problem, weight)
        return hg.ForwardUnrolling().run(moved, x_tilde, solver, None).x

    weight, direction = problem.F.weight, jnp.linspace(-1.0, 1.0, 6)
    _, actual = jax.jvp(x_of, (weight,), (direction,))
    step = 1e-5
    plus, minus = (
        dataclasses.replace(poster, F=type(poster.F)(weight + s * direction)).output(DATA[0])[0]
        for s in (step, -step)
    )
    assert relative_error(actual, (plus - minus) / (2 * step)) <= 1e-8


def test_leaves_that_nobody_asks_for_cost_nothing():
    """One loop a leaf, and those whose gradients are thrown away are gone from the program."""
    poster = random_poster(Quadratic, 6, N, L=L)
    problem, solver = to_hypergrad(poster)
    x_tilde = jnp.asarray(DATA[0])

    def loss(learned, select):
        moved = eqx.tree_at(select, problem, learned)
        return jnp.sum(hg.solve(moved, x_tilde, solver=solver, strategy=hg.ForwardUnrolling()).x)

    def loops(select) -> int:
        gradient = jax.jit(jax.grad(lambda learned: loss(learned, select)))
        return gradient.lower(select(problem)).compile().as_text().count(" while(")

    # The one entry of the weight is carried along in one loop over the iterations.
    assert loops(lambda p: p.F.weight) == 1
    assert loops(lambda p: (p.F.weight, p.K)) > 1


# ------------------------------------------------------------------------- of some parameters alone


@pytest.mark.parametrize("strategy", [hg.ForwardUnrolling(), hg.FullUnrolling(), hg.LimitFormula()])
def test_a_gradient_in_some_parameters_is_a_part_of_the_whole(strategy) -> None:
    """Against the posters' recursion for those that are exact; None for what nobody asked for."""
    poster = random_poster(Quadratic, 3, N, L=L)
    problem, solver = to_hypergrad(poster)
    settings = {"solver": solver, "strategy": strategy}
    whole = hg.hypergradient(problem, *DATA, **settings)
    part = hg.hypergradient(problem, *DATA, **settings, parameters=lambda p: (p.F.weight, p.G))
    assert part.grad.K is None
    assert part.grad_x_tilde is None
    assert part.grad_solver is None
    for leaf, expected in ((part.grad.F, whole.grad.F), (part.grad.G, whole.grad.G)):
        floats = (eqx.filter(tree, eqx.is_inexact_array) for tree in (leaf, expected))
        assert_close(*floats, RTOL)
    if strategy.differentiates_every_iteration:
        assert relative_error(part.grad.F.weight, poster.unrolled(*DATA).F) <= RTOL
    assert_close(part.solution.x, whole.solution.x, RTOL)


def test_only_what_is_wanted_is_carried_along() -> None:
    """By the count, and by the program: one loop beside that of the solve."""
    poster = random_poster(Quadratic, 3, N, L=L)
    problem, solver = to_hypergrad(poster)

    def call(x_tilde):
        return hg.hypergradient(
            problem, x_tilde, DATA[1], solver=solver, strategy=hg.ForwardUnrolling(),
            parameters=lambda p: p.F.weight,
        )  # fmt: skip

    products = np.asarray(call(DATA[0]).adjoint.products)
    assert np.all(products == 2 * L * (1 + 1))  # the derivative, and the iteration it goes along
    text = jax.jit(lambda x: call(x)).lower(jnp.asarray(DATA[0])).compile().as_text()
    assert text.count(" while(") <= 3


def _large() -> hg.LowerLevel:
    return hg.LowerLevel(jnp.eye(126, 64), hg.L1(0.3), hg.Quadratic(1.0))


class EnoughError(Exception):
    """Here nothing is computed any more."""


@pytest.fixture
def nothing_runs(monkeypatch) -> None:
    def stop(*_, **__):
        raise EnoughError

    monkeypatch.setattr(hg.bilevel.hypergradients, "compute_hypergradient", stop)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (lambda p: p.K, r"forward differentiates 8,064 .*\(K: 8,064\), about 16,000 forward"),
        (None, r"differentiates 8,133 .*K: 8,064, F.weight: 1, .*x_tilde: 64, the solver: 2\)"),
        (lambda p: p.F.weight, None),
    ],
)
@pytest.mark.parametrize("call", ["hypergradient", "in a comparison"])
def test_a_large_cost_is_told_before_it_runs(call, parameters, said) -> None:
    x, strategy = jnp.ones((2, 64)), hg.ForwardUnrolling()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(EnoughError))
        if said is not None:  # else a warning would be an error
            said += ".*: pass parameters=, as in lambda p: p.F.weight"
            stack.enter_context(pytest.warns(UserWarning, match=said))
        if call == "hypergradient":
            hg.hypergradient(_large(), x, x, strategy=strategy, parameters=parameters)
        solver = hg.ChambollePock(5)
        hg.comparison.one_hypergradient(_large(), x, x, solver, strategy, parameters=parameters)
