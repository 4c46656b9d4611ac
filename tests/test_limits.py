"""The solved problem as the oracle: central differences of its solution, found by other means,
against the limit formula and long unrolling; and what happens where there is no limit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    L1,
    Box,
    Poster,
    Quadratic,
    assert_close,
    gradient_of,
    random_data,
    relative_error,
    to_hypergrad,
)
from limits import (
    ENOUGH,
    LIMITS,
    assert_is_gradient,
    free_direction,
    no_fidelity,
    solved_and_differentiated,
    standard_normal,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointProblem, Cotangent, LimitSystem
from hypergrad.chambolle_pock import ProxArguments
from hypergrad.strategies import CGLS

# Every problem by the linear solve, every day; the others where they differ from it: masks of both
# functions, parameters of blocks of rows, a prox Jacobian that is not diagonal.
EVERY_DAY = {
    "limit:cgls": [*LIMITS],
    "limit:tolerance=1e-13": ["L1+Quadratic", "GroupL1+Quadratic"],
    "full": ["L1+Box", "L1 blocks+Quadratic", "ConvexPotential+Quadratic"],
}
SOLVED = [
    pytest.param(name, label, marks=[pytest.mark.slow] * (name not in names))
    for label, names in EVERY_DAY.items()
    for name in LIMITS
]


@pytest.mark.parametrize(("name", "label"), SOLVED)
def test_central_differences_of_the_solved_problem(name, label):
    strategy = hg.parse_strategy(label)
    limit = LIMITS[name]
    x, expected = solved_and_differentiated(name)
    h = hg.hypergradient(limit.problem(), *limit.data(), solver=limit.solver(), strategy=strategy)
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    assert np.all(np.asarray(h.solution.stats.margin) > 0.03)
    assert relative_error(h.solution.x, x) <= 1e-12
    assert_is_gradient(h, expected)


@pytest.mark.parametrize("name", LIMITS)
def test_the_problems_have_coordinates_on_both_sides_of_a_kink(name):
    """Else half of the formula would not be seen. By the gradients in the parameters of F and G:
    a mask of ones or zeros everywhere makes one of them vanish.
    """
    _, gradients = solved_and_differentiated(name)
    sizes = {entry: np.linalg.norm(gradient) for entry, gradient in gradients.items()}
    if name == "L1+Box":
        del sizes["F.weight"]
    assert min(sizes.values()) > 1e-3


# ------------------------------------------------------------------------- the k-step variants


@functools.cache
def _converged_state() -> hg.State:
    limit = LIMITS["L1+Quadratic"]
    x_tilde, _ = limit.data()
    strategy = hg.LimitFormula()
    return hg.solve(limit.problem(), x_tilde, solver=limit.solver(), strategy=strategy).state


def _three_variants(k: int, iterations: int, init: hg.State | None) -> list[hg.Hypergradient]:
    limit = LIMITS["L1+Quadratic"]
    variants = (
        hg.Truncation(k),
        hg.LimitFormula(hg.LastIterates(k)),
        hg.LimitFormula(hg.Steps(k)),
    )
    solver = limit.solver(iterations)
    return [
        hg.hypergradient(limit.problem(), *limit.data(), solver=solver, strategy=s, init=init)
        for s in variants
    ]


@pytest.mark.parametrize(
    "k", [pytest.param(k, marks=[pytest.mark.slow] * (k != 5)) for k in (1, 5, 200)]
)
def test_the_three_variants_agree_at_a_converged_state(k):
    a, b, c = _three_variants(k, 200, _converged_state())
    assert_close((b.grad, b.grad_x_tilde), (a.grad, a.grad_x_tilde), 1e-10)
    assert_close((c.grad, c.grad_x_tilde), (a.grad, a.grad_x_tilde), 1e-10)


def test_the_three_variants_differ_before():
    for one, other in itertools.combinations(_three_variants(5, 5, None), 2):
        assert relative_error(one.grad.K, other.grad.K) > 1e-3


# ------------------------------------------------------------------------ invariances, and rates


def test_limit_formula_does_not_depend_on_the_step_sizes():
    limit = LIMITS["L1+Quadratic"]
    problem, data = limit.problem(), limit.data()
    expected = None
    for ratio, theta in ((3.0, 1.0), (0.5, 1.0), (30.0, 1.0), (3.0, 0.5)):
        solver = limit.solver(ratio=ratio)
        solver = hg.ChambollePock(ENOUGH, solver.tau, solver.sigma, theta)
        h = hg.hypergradient(problem, *data, solver=solver, strategy=hg.LimitFormula())
        assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(h.grad_solver))
        actual = (h.grad, h.grad_x_tilde)
        expected = actual if expected is None else expected
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("G", [hg.Box(0.4), hg.Quadratic(1.1)], ids=["Box", "Quadratic"])
def test_scaling_data_radius_and_weights_together_changes_nothing(G):
    """`step_ratio` has no units: in other units the same unconverged gradient comes out.

    With data and radius in units of c and F in units of d, the loss has units `c^2`.
    """
    x_tilde, x_true = random_data(3, 4)
    K, c, d = standard_normal(0, 2, 6, 4) / 3, 0.01, 7.0
    given = {"primal_scale": 1.0} if isinstance(G, hg.Quadratic) else {}
    solver = hg.ChambollePock(15, step_ratio=2.0, **given)
    h = hg.hypergradient(
        hg.LowerLevel(K, hg.L1(0.4), G),
        x_tilde,
        x_true,
        solver=solver,
        strategy=hg.FullUnrolling(),
    )
    assert np.max(h.solution.stats.residual) > 1e-3

    scaled_G = hg.Quadratic(1.1 * d / c) if given else hg.Box(0.4 * c)
    given = {"primal_scale": c} if given else {}
    scaled = hg.hypergradient(
        hg.LowerLevel(K, hg.L1(0.4 * d), scaled_G),
        c * x_tilde,
        c * x_true,
        solver=hg.ChambollePock(15, step_ratio=2.0, **given),
        strategy=hg.FullUnrolling(),
    )
    assert relative_error(scaled.solution.stats.residual, h.solution.stats.residual) <= 1e-9
    assert relative_error(scaled.grad.K / c**2, h.grad.K) <= 1e-10
    assert relative_error(scaled.grad.F.weight * d / c**2, h.grad.F.weight) <= 1e-10
    assert relative_error(scaled.grad_x_tilde / c, h.grad_x_tilde) <= 1e-10


def test_ergodic_bias_halves_when_the_iterations_double():
    """Uniform weights: O(1/L), and no more than that once the masks have settled."""
    limit = LIMITS["L1+Quadratic"]
    _, exact = solved_and_differentiated("L1+Quadratic")
    errors = []
    for iterations in (500, 1000, 2000):
        h = hg.hypergradient(
            limit.problem(),
            *limit.data(),
            solver=limit.solver(iterations),
            strategy=hg.ErgodicUnrolling(),
        )
        errors.append(relative_error(h.grad.K, exact["K"]))
    assert all(0.45 <= b / a <= 0.55 for a, b in itertools.pairwise(errors)), errors


# ---------------------------------------------------------------- singular, but consistent systems


def _singular_posters() -> dict[str, Poster]:
    def poster(K, weight, G):
        step = 0.9 / np.linalg.norm(K, 2)
        return Poster(K, L1(weight), G, tau=step, sigma=step, theta=1.0, L=ENOUGH)

    wide, tall = standard_normal(2, 1, 4, 5) / 3, standard_normal(2, 2, 5, 4) / 3
    return {
        # Every row twice: whichever rows are active, they are dependent.
        "repeated": poster(np.vstack([wide, wide]), 0.6, Quadratic(1.1)),
        "repeated-box": poster(np.vstack([tall, tall]), 0.25, Box(1.5)),
        # A weight at which the solution is 0: all rows are active, more than there are columns.
        "zero": poster(standard_normal(1, 1, 6, 4) / 3, 10.0, Quadratic(1.1)),
    }


SINGULAR = _singular_posters()


@pytest.mark.parametrize("name", SINGULAR)
def test_a_singular_system_is_solved_with_minimum_norm(name):
    """By `numpy.linalg.pinv` of the system written out, at the same last iterate."""
    poster = SINGULAR[name]
    x_tilde, x_true = random_data(3, poster.K.shape[1])
    runs = [poster.run(x) for x in x_tilde]
    g = np.array([x + run.r[-1] for x, run in zip(x_tilde, runs, strict=True)]) - x_true
    expected = []
    for run, g_i in zip(runs, g, strict=True):
        matrix, right = poster.limit_system(run, g_i, np.zeros(len(poster.K)))
        assert np.linalg.matrix_rank(matrix, 1e-10) < len(matrix)
        expected.append(np.linalg.pinv(matrix, 1e-10) @ right)
        assert relative_error(matrix @ expected[-1], right) <= 1e-10

    problem, solver = to_hypergrad(poster)
    z = (np.array([getattr(run, z)[-1] for run in runs])[None] for z in ("z_D", "z_P"))
    history = ProxArguments(*map(jnp.asarray, z))
    cotangent = Cotangent(jnp.asarray(g), jnp.zeros((3, problem.m)))
    system = LimitSystem.at_last(problem, solver.step_sizes(problem), history)
    for adjoint in (CGLS(), hg.Tolerance(1e-14)):
        solve = eqx.filter_jit(lambda given, adjoint=adjoint: adjoint(given))
        sums, stats = solve(AdjointProblem(system, history, cotangent))
        Delta = np.concatenate([sums.Delta_P, sums.Delta_D], axis=-1)
        assert relative_error(Delta, np.array(expected)) <= 1e-9
        assert all(Status(int(status)).is_good for status in stats.status)


@pytest.mark.parametrize("adjoint", [CGLS(), hg.Tolerance(1e-14)], ids=lambda a: a.label)
def test_the_gradient_of_a_singular_problem_is_that_of_the_minimum_norm(adjoint):
    poster = SINGULAR["repeated"]
    x_tilde, x_true = random_data(3, 5)
    problem, solver = to_hypergrad(poster)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.LimitFormula(adjoint))
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    assert_close(gradient_of(h), poster.limit_solved(x_tilde, x_true), 1e-9)


# ----------------------------------------------------------------- what does not work, and says so


@pytest.mark.parametrize(
    ("lower_level", "unique", "adjoint", "status"),
    [
        (free_direction, [True, False], CGLS(), Status.INCONSISTENT),
        (no_fidelity, [False, False], CGLS(), Status.INCONSISTENT),
        (
            free_direction,
            [True, False],
            hg.Tolerance(1e-8, most=2000),
            Status.ITERATIONS_USED_UP,
        ),
    ],
    ids=["solve-free_direction", "solve-no_fidelity", "tolerance-free_direction"],
)
def test_a_lower_level_that_is_not_unique_is_told_sample_by_sample(
    lower_level, unique, adjoint, status
):
    problem, x_tilde, x_true = lower_level()
    h = hg.hypergradient(
        problem,
        x_tilde,
        x_true,
        solver=hg.ChambollePock(ENOUGH),
        strategy=hg.LimitFormula(adjoint),
    )
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    expected = [Status.CONVERGED if one else status for one in unique]
    assert np.asarray(h.adjoint.status).tolist() == expected
    assert status.label in repr(h)


def test_an_unconverged_lower_level_says_so_and_can_raise():
    limit = LIMITS["L1+Quadratic"]
    arguments = (limit.problem(), *limit.data())
    options = {"solver": limit.solver(5), "strategy": hg.LimitFormula(hg.Steps(1))}
    h = hg.hypergradient(*arguments, **options)
    assert np.all(np.asarray(h.solution.stats.status) == Status.ITERATIONS_USED_UP)
    assert np.all(np.asarray(h.solution.stats.residual) > 1e-3)
    assert "iterations used up" in repr(h)
    with pytest.raises(eqx.EquinoxRuntimeError, match="the forward solve did not succeed"):
        hg.hypergradient(*arguments, **options, throw=True)


@pytest.mark.parametrize(
    ("solver", "lower_level"),
    [
        (lx.GMRES(rtol=1e-10, atol=1e-10, max_steps=1, restart=1), None),
        (lx.BiCGStab(rtol=1e-10, atol=1e-10), no_fidelity),
    ],
    ids=["too_few_steps", "singular"],
)
def test_a_krylov_solver_that_fails_shows_in_the_status(solver, lower_level):
    limit = LIMITS["L1+Quadratic"]
    arguments = (limit.problem(), *limit.data()) if lower_level is None else lower_level()
    h = hg.hypergradient(
        *arguments, solver=hg.ChambollePock(ENOUGH), strategy=hg.LimitFormula(solver)
    )
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    assert not any(Status(int(status)).is_good for status in h.adjoint.status)
    assert np.all(~(np.asarray(h.adjoint.residual) <= 1e-6))


@pytest.mark.parametrize(
    "solver",
    [lx.SVD(), lx.LU(), lx.LSMR(rtol=1e-15, atol=1e-15, conlim=1e15)],
    ids=["svd", "lu", "lsmr"],
)
def test_solvers_of_lineax_agree_on_a_regular_system(solver):
    limit = LIMITS["L1+Quadratic"]
    default, other = (
        hg.hypergradient(
            limit.problem(), *limit.data(), solver=limit.solver(), strategy=hg.LimitFormula(a)
        )
        for a in (CGLS(), solver)
    )
    assert_close((other.grad, other.grad_x_tilde), (default.grad, default.grad_x_tilde), 1e-10)
    assert np.all(np.asarray(other.adjoint.status) == Status.CONVERGED)


def test_a_dense_solver_on_a_singular_system_is_judged_by_its_residual():
    """A number comes out, or none: what the solver says of itself does not count."""
    poster = dataclasses.replace(SINGULAR["zero"], L=300)
    problem, solver = to_hypergrad(poster)
    x_tilde, x_true = random_data(2, 4)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.LimitFormula(lx.LU()))
    residual, status = np.asarray(h.adjoint.residual), np.asarray(h.adjoint.status)
    np.testing.assert_array_equal(status == Status.CONVERGED, residual <= 1.5e-8)
    assert not np.any(status == Status.INCONSISTENT)
