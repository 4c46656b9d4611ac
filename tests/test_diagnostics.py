"""Contraction, steps and errors per sample against numpy's eigenvalues and gradients written out
matrix by matrix.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SATURATED,
    Box,
    Poster,
    Quadratic,
    convolution_poster,
    random_data,
    random_poster,
    relative_error,
    saturated_poster,
    to_hypergrad,
    unsaturated_poster,
)

import hypergrad as hg
from hypergrad.adjoint import AdjointStats
from hypergrad.diagnostics import are_certified

L, BATCH = 12, 3
RTOL = 1e-10


# ------------------------------------------------------------------------------- the contraction


def dense_jacobian(poster: Poster, run) -> np.ndarray:
    """d (r, r_bar, y)[L] / d (r, r_bar, y)[L - 1], by hand."""
    m, n = poster.K.shape
    D_P = np.diag(poster.G.prox(run.z_P[-1], poster.tau).slope)
    D_D = np.diag(poster.F.prox(run.z_D[-1], poster.sigma).slope)
    y = np.hstack([np.zeros((m, n)), poster.sigma * D_D @ poster.K, D_D])
    r = D_P @ (np.eye(n, 2 * n + m) - poster.tau * poster.K.T @ y)
    r_bar = (1 + poster.theta) * r - poster.theta * np.eye(n, 2 * n + m)
    return np.vstack([r, r_bar, y])


def spectral_radius(jacobian) -> tuple[float, int]:
    """Of what decays, and how many eigenvalues 1 were left out."""
    values = np.linalg.eigvals(jacobian)
    one = np.abs(values - 1) <= 1e-6
    return np.max(np.abs(values[~one])), int(np.sum(one))


CONTRACTIONS = [
    pytest.param(random_poster(Quadratic, 6, 4, L=300), 0, id="quadratic"),
    pytest.param(random_poster(Quadratic, 6, 4, L=300, theta=0.5), 0, id="theta"),
    pytest.param(random_poster(Box, 6, 4, L=300), 0, id="box"),
    pytest.param(saturated_poster(200), 2, id="saturated-with-kernel"),
    pytest.param(unsaturated_poster(20), 2, id="unsaturated-with-kernel"),
]


@pytest.mark.parametrize(("poster", "ones"), CONTRACTIONS)
def test_contraction_factor_is_the_spectral_radius_without_the_kernel(poster, ones):
    problem, solver = to_hypergrad(poster)
    x_tilde = SATURATED if problem.n == 4 and ones else random_data(2, problem.n)[0]
    contraction = hg.contraction_factor(problem, x_tilde, solver=solver)
    expected, left_out = zip(
        *(spectral_radius(dense_jacobian(poster, poster.run(x))) for x in x_tilde), strict=True
    )
    # With everything saturated J is nilpotent: an eigenvalue 0 that rounding moves by its root.
    np.testing.assert_allclose(contraction.factor, expected, rtol=1e-9, atol=1e-7)
    assert max(expected) > 0.5
    assert np.all(contraction.residual <= 1e-9)
    assert set(left_out) == {ones}  # the case is what it says it is


def test_a_krylov_space_that_is_too_small_says_so():
    poster = random_poster(Quadratic, 30, 20, L=100)
    problem, solver = to_hypergrad(poster)
    x_tilde = random_data(2, 20)[0]
    small = hg.contraction_factor(problem, x_tilde, solver=solver, dimension=4)
    expected = [spectral_radius(dense_jacobian(poster, poster.run(x)))[0] for x in x_tilde]
    assert np.all(small.residual > 1e-3)
    assert np.all(np.abs(small.factor - np.array(expected)) > 1e-4)


# ------------------------------------------------------------------------------------- the steps


def test_steps_needed_is_the_first_k_of_the_loop_that_is_near_enough():
    poster, error = random_poster(Quadratic, 6, 4, L=300), 1e-3
    problem, solver = to_hypergrad(poster)
    x_tilde, x_true = random_data(BATCH, 4)
    needed = hg.steps_needed(problem, x_tilde, x_true, solver=solver, error=error)
    for i in range(BATCH):
        one = x_tilde[i : i + 1], x_true[i : i + 1]
        exact = poster.limit_solved(*one).K
        k = 1
        while relative_error(poster.limit(*one, k, frozen=True).K, exact) > error:
            k += 1
        assert needed.measured[i] == k > 2
        rho, _ = spectral_radius(dense_jacobian(poster, poster.run(x_tilde[i])))
        assert needed.predicted[i] == np.ceil(np.log(error) / np.log(rho))
    few = hg.steps_needed(problem, x_tilde, x_true, solver=solver, error=error, most=2)
    assert np.all(np.isinf(few.measured))


def test_steps_needed_wants_an_error_that_can_be_reached():
    problem, solver = to_hypergrad(random_poster(Quadratic, 6, 4, L=L))
    with pytest.raises(ValueError, match=r"error must lie in \(0, 1\); got 1\.5: try 1e-3"):
        hg.steps_needed(problem, *random_data(2, 4), solver=solver, error=1.5)


# ---------------------------------------------------------------------------- errors by sample

_POSTER = random_poster(Quadratic, 6, 4, L=60)
PAIRS = [
    # Both by factors; one written out; both written out, three samples in pieces of two.
    (hg.LimitFormula(hg.Steps(2)), hg.LimitFormula(), 16),
    (hg.Truncation(2), hg.LimitFormula(), 16),
    (hg.Truncation(2), hg.FullUnrolling(), 2),
]
ORACLES = {
    "limit:steps=2": lambda *one: _POSTER.limit(*one, 2, frozen=True),
    "limit:cgls": _POSTER.limit_solved,
    "truncation:k=2": lambda *one: _POSTER.unrolled(*one, k=2),
    "full": _POSTER.unrolled,
}


@pytest.mark.parametrize(
    ("strategy", "reference", "piece"), PAIRS, ids=lambda v: getattr(v, "label", str(v))
)
def test_errors_are_those_of_gradients_written_out(strategy, reference, piece):
    problem, solver = to_hypergrad(_POSTER)
    x_tilde, x_true = random_data(BATCH, 4)
    errors = hg.per_sample_errors(
        problem, x_tilde, x_true, solver=solver, strategy=strategy, reference=reference, piece=piece
    )
    for i in range(BATCH):
        one = x_tilde[i : i + 1], x_true[i : i + 1]
        a, b = (ORACLES[s.label](*one).K for s in (strategy, reference))
        assert relative_error(errors.relative_error[i], relative_error(a, b)) <= 1e-8
        cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert relative_error(errors.cosine[i], cosine) <= 1e-8
        assert errors.relative_error[i] > 1e-3


def test_a_small_error_against_a_reference_with_a_solver_of_its_own():
    """The factors of the two gradients cancel, and no digits are lost but those that are gone."""
    problem, solver = to_hypergrad(_POSTER)
    x_tilde, x_true = random_data(BATCH, 4)
    errors = hg.per_sample_errors(
        problem, x_tilde, x_true, strategy=hg.LimitFormula(),
        solver=dataclasses.replace(solver, iterations=40),
        reference_solver=dataclasses.replace(solver, iterations=1000),
    )  # fmt: skip
    for i in range(BATCH):
        one = x_tilde[i : i + 1], x_true[i : i + 1]
        a, b = (dataclasses.replace(_POSTER, L=L).limit_solved(*one).K for L in (40, 1000))
        np.testing.assert_allclose(errors.relative_error[i], relative_error(a, b), atol=1e-13)
    assert 1e-12 < np.max(errors.relative_error) < 1e-6
    assert np.all(errors.certified)


def test_errors_in_the_parameters_of_an_operator():
    poster, problem, solver, shifts = convolution_poster(200)
    x_tilde, x_true = random_data(2, 7)
    errors = hg.per_sample_errors(
        problem, x_tilde, x_true, solver=solver, strategy=hg.LimitFormula(hg.Steps(2))
    )
    for i in range(2):
        one = x_tilde[i : i + 1], x_true[i : i + 1]
        gradients = poster.limit(*one, 2, frozen=True).K, poster.limit_solved(*one).K
        a, b = (np.array([np.sum(g * shift) for shift in shifts]) for g in gradients)
        assert relative_error(errors.relative_error[i], relative_error(a, b)) <= 1e-8


def test_an_operator_without_parameters_has_no_errors_to_look_at():
    operator = hg.operators.difference_operator((2, 2))
    problem = hg.LowerLevel(operator, hg.L1(0.1), hg.Quadratic(1.0))
    data, solver = random_data(2, 4), hg.ChambollePock(5)
    with pytest.raises(ValueError, match="K must have a parameter"):
        hg.per_sample_errors(problem, *data, solver=solver, strategy=hg.Truncation(1))
    with pytest.raises(ValueError, match="K must have a parameter"):
        hg.steps_needed(problem, *data, solver=solver, error=0.1)


@pytest.mark.parametrize("name", hg.STRATEGIES)
def test_sums_that_a_strategy_gives_are_those_of_its_gradient(name):
    """What `per_sample_errors` takes from `Gradients.adjoint`."""
    problem, solver = to_hypergrad(_POSTER)

    def call() -> hg.Hypergradient:
        data, strategy = random_data(2, 4), hg.STRATEGIES[name]()
        return hg.hypergradient(problem, *data, solver=solver, strategy=strategy)

    if eqx.filter_eval_shape(lambda: call().state.adjoint) is None:  # nothing to compile
        assert name != "limit"
        return
    h = call()
    Delta_P, Delta_D = map(np.asarray, h.state.adjoint)
    x, y = np.asarray(h.solution.x), np.asarray(h.solution.y)
    expected = _POSTER.sigma * Delta_D.T @ x - _POSTER.tau * y.T @ Delta_P
    assert relative_error(h.grad.K, expected) <= 1e-8


def test_quantiles_are_those_of_the_certified_samples():
    values = np.array([[0.4, np.inf, 0.1], [np.nan, 0.3, 0.2]])
    certified = np.array([[True, True, True], [True, False, True]])
    errors = hg.SampleErrors(*map(jnp.asarray, (values - 1, values, certified)))
    quantiles = errors.quantiles((0.0, 0.5, 1.0))
    assert quantiles["relative_error"] == [0.1, 0.4, np.inf]  # of 0.1, 0.2, 0.4, inf
    assert quantiles["cosine"][0] == np.inf
    np.testing.assert_allclose(quantiles["cosine"][1:], [-0.8, -0.9])
    assert "6 samples, 83.3 % certified" in repr(errors)
    assert "| worst | -0.9 | inf |" in repr(errors)
    none = hg.SampleErrors(errors.cosine, errors.relative_error, jnp.zeros((2, 3), bool))
    assert none.quantiles((0.5,)) == {"cosine": [None], "relative_error": [None]}


def test_certified_wants_both_solves_and_no_kink():
    stats = hg.SolverStats(
        iterations=jnp.ones(4, jnp.int32),
        residual=jnp.zeros(4),
        gap=jnp.zeros(4),
        margin=jnp.array([1.0, 1e-9, jnp.nan, 1.0]),
        status=jnp.array([0, 0, 0, int(hg.Status.ITERATIONS_USED_UP)], jnp.int32),
        products=jnp.ones(4, jnp.int32),
    )
    adjoint = AdjointStats.of(1, jnp.zeros(4), jnp.zeros(4, jnp.int32), 1)
    assert are_certified(stats, adjoint).tolist() == [True, False, True, False]
    inconsistent = AdjointStats.of(1, jnp.zeros(4), jnp.full(4, int(hg.Status.INCONSISTENT)), 1)
    assert not np.any(are_certified(stats, inconsistent))
