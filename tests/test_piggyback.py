"""Interleaved iterations as a plain loop, and where they lead."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Box,
    Gradient,
    Poster,
    Quadratic,
    assert_close,
    gradient_of,
    random_data,
    random_poster,
    relative_error,
    to_hypergrad,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.chambolle_pock import AdjointPair

N, BATCH, L = 4, 3, 12
DATA = random_data(BATCH, N)
# The same computation in another order: rounding alone.
RTOL = 1e-10


def _loop(poster: Poster, x_tilde, x_true, start=None, Delta=None) -> Gradient:
    """One sample: a forward iteration and an adjoint one at its masks, by turns."""
    run = poster.run(x_tilde, start)
    x, y = x_tilde + run.r[-1], run.y[-1]
    g = (x - x_true) / BATCH
    Delta_P, Delta_D = (np.zeros(N), np.zeros(len(poster.K))) if Delta is None else Delta
    Delta_bar_D = Delta_D
    for z_P, z_D in zip(run.z_P[1:], run.z_D[1:], strict=True):
        in_G, in_F = poster.G.prox(z_P, poster.tau), poster.F.prox(z_D, poster.sigma)
        U_P = Delta_P + poster.sigma * poster.K.T @ Delta_bar_D + g
        Delta_P = in_G.slope * U_P
        U_D = Delta_D - poster.tau * poster.K @ Delta_P
        old, Delta_D = Delta_D, in_F.slope * U_D
        Delta_bar_D = Delta_D + poster.theta * (Delta_D - old)
    return Gradient(
        poster.sigma * np.outer(Delta_D, x) - poster.tau * np.outer(y, Delta_P),
        U_D * in_F.by_parameter,
        U_P * in_G.by_parameter,
        g + poster.sigma * poster.K.T @ Delta_D,
    )


def _batch(samples: list[Gradient]) -> Gradient:
    *shared, x_tilde = zip(*samples, strict=True)
    return Gradient(*map(sum, shared), np.array(x_tilde))


def _hypergradient(poster: Poster, data=DATA, init=None, strategy=None) -> hg.Hypergradient:
    problem, solver = to_hypergrad(poster)
    strategy = hg.Piggyback() if strategy is None else strategy
    return hg.hypergradient(problem, *data, solver=solver, strategy=strategy, init=init)


@pytest.mark.parametrize("G", [Quadratic, Box])
@pytest.mark.parametrize("m", [3, 6])
def test_piggyback_is_its_numpy_loop(G, m):
    for theta in (0.0, 0.3, 1.0):
        poster = random_poster(G, m, N, L=L, per_entry=True, theta=theta)
        h = _hypergradient(poster)
        expected = _batch([_loop(poster, *sample) for sample in zip(*DATA, strict=True)])
        assert_close(gradient_of(h), expected, RTOL)
        assert np.all(np.asarray(h.adjoint.steps) == L)
        assert np.all(np.asarray(h.adjoint.products) == 4 * L + 2)
    # The masks change on the way: it is not the formula with all of them frozen at the last.
    assert relative_error(expected.K, poster.limit(*DATA, L, frozen=True).K) > 1e4 * RTOL


def test_piggyback_starts_from_an_earlier_adjoint():
    poster = random_poster(Quadratic, 6, N, L=L, per_entry=True)
    rng = np.random.default_rng(1)
    r, r_bar, P = 0.3 * rng.standard_normal((3, BATCH, N))
    y, D = 0.3 * rng.standard_normal((2, BATCH, 6))
    init = hg.State(*map(jnp.asarray, (r, r_bar, y)), AdjointPair(jnp.asarray(P), jnp.asarray(D)))
    h = _hypergradient(poster, init=init)
    samples = zip(*DATA, zip(r, r_bar, y, strict=True), zip(P, D, strict=True), strict=True)
    expected = _batch([_loop(poster, *sample) for sample in samples])
    assert_close(gradient_of(h), expected, RTOL)
    without = _hypergradient(poster, init=hg.State(init.r, init.r_bar, init.y))
    assert relative_error(without.grad.K, expected.K) > 0.1


def test_piggyback_leads_to_the_limit():
    poster = random_poster(Quadratic, 3, N, L=1000, per_entry=True)
    h = _hypergradient(poster)
    assert_close(gradient_of(h), poster.limit_solved(*DATA), 1e-8)
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    early = _hypergradient(dataclasses.replace(poster, L=5))
    assert np.all(np.asarray(early.adjoint.status) == Status.ITERATIONS_USED_UP)
    assert relative_error(early.grad.K, h.grad.K) > 1e-3


def test_from_a_solution_piggyback_is_so_many_steps_of_the_limit_formula():
    poster = random_poster(Quadratic, 6, N, L=4000, per_entry=True)
    runs = [poster.run(x) for x in DATA[0]]
    r, y = (jnp.asarray([getattr(run, name)[-1] for run in runs]) for name in ("r", "y"))
    h = _hypergradient(dataclasses.replace(poster, L=L), init=hg.State(r, r, y))
    assert_close(gradient_of(h), poster.limit(*DATA, L, frozen=True), 1e-8)


def test_with_a_tolerance_each_sample_takes_its_own_number_of_iterations():
    poster = random_poster(Quadratic, 6, N, L=L, per_entry=True)
    problem, _ = to_hypergrad(poster)
    solver = hg.ChambollePock(200, poster.tau, poster.sigma, tolerance=1e-8)
    h = hg.hypergradient(problem, *DATA, solver=solver, strategy=hg.Piggyback())
    taken = np.asarray(h.solution.stats.iterations)
    assert len(set(taken.tolist())) > 1
    np.testing.assert_array_equal(h.adjoint.steps, taken)
    posters = [dataclasses.replace(poster, L=int(count)) for count in taken]
    expected = [_loop(*sample) for sample in zip(posters, *DATA, strict=True)]
    assert_close(gradient_of(h), _batch(expected), RTOL)


def test_piggyback_takes_a_cotangent_of_y():
    """In the limit, where the oracle is a dense system."""
    poster = random_poster(Quadratic, 3, N, L=1000, per_entry=True)
    problem, solver = to_hypergrad(poster)
    direction = np.random.default_rng(3).standard_normal((BATCH, 3))

    @jax.jit
    @jax.grad
    def through_solve(x_tilde):
        solution = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Piggyback())
        return jnp.vdot(jnp.asarray(direction), solution.y)

    expected = []
    for x_tilde, g_y in zip(DATA[0], direction, strict=True):
        matrix, right = poster.limit_system(poster.run(x_tilde), np.zeros(N), g_y)
        Delta_D = (np.linalg.pinv(matrix, 1e-10) @ right)[N:]
        expected.append(poster.sigma * poster.K.T @ Delta_D)
    assert relative_error(through_solve(jnp.asarray(DATA[0])), np.array(expected)) <= 1e-8
