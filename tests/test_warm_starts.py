"""Backward solves that start from an earlier one, against the adjoint iteration as a plain loop."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Box,
    Poster,
    Quadratic,
    assert_close,
    gradient_of,
    random_data,
    random_poster,
    relative_error,
    strategies_for_contract,
    to_hypergrad,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.chambolle_pock import AdjointPair

M, N, BATCH, L = 6, 4, 3, 12
DATA = random_data(BATCH, N)
# The same computation in another order: rounding alone.
RTOL = 1e-10


class Pair(NamedTuple):
    """`Delta_P`, `Delta_D` of one sample."""

    P: np.ndarray
    D: np.ndarray


def adjoint_loop(poster: Poster, z_P, z_D, g, start: Pair, steps: int) -> Pair:
    """The adjoint iteration at fixed masks, its extrapolation forgotten at the start."""
    Delta_P, Delta_D = start
    Delta_bar_D = Delta_D
    for _ in range(steps):
        U_P = Delta_P + poster.sigma * poster.K.T @ Delta_bar_D + g
        Delta_P = poster.G.prox(z_P, poster.tau).slope * U_P
        U_D = Delta_D - poster.tau * poster.K @ Delta_P
        old, Delta_D = Delta_D, poster.F.prox(z_D, poster.sigma).slope * U_D
        Delta_bar_D = Delta_D + poster.theta * (Delta_D - old)
    return Pair(Delta_P, Delta_D)


class Warm(NamedTuple):
    """A batch of states to start from, their adjoint included; one row a sample."""

    r: np.ndarray
    r_bar: np.ndarray
    y: np.ndarray
    Delta: Pair

    @property
    def state(self) -> hg.State:
        r, r_bar, y, (P, D) = jax.tree.map(jnp.asarray, self)
        return hg.State(r, r_bar, y, AdjointPair(P, D))

    def samples(self) -> list[tuple[tuple, Pair]]:
        rows = zip(self.r, self.r_bar, self.y, *self.Delta, strict=True)
        return [((r, r_bar, y), Pair(P, D)) for r, r_bar, y, P, D in rows]


def _anywhere(seed: int = 0) -> Warm:
    """Any numbers: what is true of a warm start is true of a bad one."""
    rng = np.random.default_rng([seed, 3])
    r, r_bar, P = 0.3 * rng.standard_normal((3, BATCH, N))
    y, D = 0.3 * rng.standard_normal((2, BATCH, M))
    return Warm(r, r_bar, y, Pair(P, D))


def _by_loop(poster: Poster, warm: Warm, steps: int) -> tuple[Pair, np.ndarray]:
    """The adjoint pair, one row a sample, and the limit formula's gradient in K."""
    pairs, grad_K = [], np.zeros((M, N))
    for x_tilde, x_true, (start, Delta) in zip(*DATA, warm.samples(), strict=True):
        run = poster.run(x_tilde, start)
        x, y = x_tilde + run.r[-1], run.y[-1]
        g = (x - x_true) / BATCH
        pairs.append(adjoint_loop(poster, run.z_P[-1], run.z_D[-1], g, Delta, steps))
        P, D = pairs[-1]
        grad_K += poster.sigma * np.outer(D, x) - poster.tau * np.outer(y, P)
    return Pair(*map(np.array, zip(*pairs, strict=True))), grad_K


def _hypergradient(poster: Poster, strategy, init=None) -> hg.Hypergradient:
    problem, solver = to_hypergrad(poster)
    return hg.hypergradient(problem, *DATA, solver=solver, strategy=strategy, init=init)


def _steps(k: int) -> hg.LimitFormula:
    return hg.LimitFormula(hg.Steps(k))


# ------------------------------------------------------------------------- the adjoint carried on


@pytest.mark.parametrize("G", [Quadratic, Box])
@pytest.mark.parametrize("k", [1, 4])
def test_steps_from_an_earlier_adjoint_are_the_adjoint_iteration(G, k):
    warm = _anywhere()
    for theta in (0.0, 0.3, 1.0):
        poster = random_poster(G, M, N, L=L, per_entry=True, theta=theta)
        h = _hypergradient(poster, _steps(k), warm.state)
        Delta, grad_K = _by_loop(poster, warm, k)
        assert_close(Pair(*h.state.adjoint), Delta, RTOL)
        assert relative_error(h.grad.K, grad_K) <= RTOL
        # Two a step, two for the gradient in K, one to start from what there is, and one for the
        # sum of u where there is more than one step.
        assert np.all(np.asarray(h.adjoint.products) == 2 * k + 3 + (k > 1))
    # It does matter where they start.
    cold, _ = _by_loop(poster, warm._replace(Delta=Pair(*map(np.zeros_like, warm.Delta))), k)
    assert relative_error(Delta.D, cold.D) > 0.1


@pytest.mark.parametrize("adjoint", [hg.Steps(3), hg.Tolerance(1e-3)], ids=lambda a: a.label)
def test_a_zero_adjoint_and_none_are_a_cold_start(adjoint):
    poster = random_poster(Quadratic, M, N, L=L)
    warm = _anywhere()
    zero = warm._replace(Delta=Pair(*map(np.zeros_like, warm.Delta))).state
    none = hg.State(zero.r, zero.r_bar, zero.y)
    from_zero, from_none = (
        _hypergradient(poster, hg.LimitFormula(adjoint), init) for init in (zero, none)
    )
    assert_close((from_zero.grad, from_zero.state), (from_none.grad, from_none.state), RTOL)
    np.testing.assert_array_equal(from_zero.adjoint.steps, from_none.adjoint.steps)
    np.testing.assert_array_equal(from_zero.adjoint.products, from_none.adjoint.products + 1)


def _converged(poster: Poster) -> Warm:
    """The solution, from which the forward iteration does not move, with no adjoint yet."""
    runs = [dataclasses.replace(poster, L=4000).run(x) for x in DATA[0]]
    assert max(np.linalg.norm(run.r[-1] - run.r[-2]) for run in runs) <= 1e-15
    r, y = (np.array([getattr(run, name)[-1] for run in runs]) for name in ("r", "y"))
    return Warm(r, r, y, Pair(np.zeros_like(r), np.zeros_like(y)))


@pytest.mark.parametrize("theta", [0.0, 1.0])
def test_what_steps_in_two_goes_are(theta):
    """Without extrapolation the same as in one go; with it, steps that have forgotten theirs."""
    poster = random_poster(Quadratic, M, N, L=L, per_entry=True, theta=theta)
    start = _converged(dataclasses.replace(poster, theta=1.0))
    two = _hypergradient(poster, _steps(2), start.state)
    both = _hypergradient(poster, _steps(3), two.state)
    at_once, _ = _by_loop(poster, start, 5)
    after_two, _ = _by_loop(poster, start, 2)
    restarted, grad_K = _by_loop(poster, start._replace(Delta=after_two), 3)
    assert_close(Pair(*both.state.adjoint), restarted, 1e-9)
    assert relative_error(both.grad.K, grad_K) <= 1e-9
    forgotten = relative_error(restarted.D, at_once.D)
    assert forgotten <= RTOL if theta == 0 else forgotten > 1e-3


def test_one_step_a_call_goes_on_to_the_limit():
    """The forward iteration from zero, too: in the end nothing is left of where either began."""
    poster = random_poster(Quadratic, 3, N, L=L)
    h = first = _hypergradient(poster, _steps(1))
    for _ in range(150):
        h = _hypergradient(poster, _steps(1), h.state)
    expected = dataclasses.replace(poster, L=4000).limit_solved(*DATA)
    assert_close(gradient_of(h), expected, 1e-8)
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    assert not np.any(np.asarray(first.adjoint.status) == Status.CONVERGED)
    one_call = dataclasses.replace(poster, L=4000).limit(*DATA, 1, frozen=True)
    assert relative_error(one_call.K, expected.K) > 0.1


def test_a_tolerance_has_little_left_to_do():
    poster = random_poster(Quadratic, 3, N, L=400)
    strategy = hg.LimitFormula(hg.Tolerance(1e-8))
    cold = _hypergradient(poster, strategy)
    warm = _hypergradient(poster, strategy, cold.state)
    assert np.min(cold.adjoint.steps) > 10
    assert np.max(warm.adjoint.steps) <= 2
    assert_close(gradient_of(warm), poster.limit_solved(*DATA), 1e-6)


@pytest.mark.parametrize(
    "strategy",
    [hg.LimitFormula(), hg.LimitFormula(hg.LastIterates(2)), hg.FullUnrolling()],
    ids=lambda s: s.label,
)
def test_what_does_not_iterate_on_an_adjoint_does_not_see_one(strategy):
    poster = random_poster(Quadratic, M, N, L=L)
    state = _anywhere().state
    without = hg.State(state.r, state.r_bar, state.y)
    assert_close(
        _hypergradient(poster, strategy, state).grad,
        _hypergradient(poster, strategy, without).grad,
        RTOL,
    )


# ----------------------------------------------------------------------------- any from any other


def test_every_strategy_starts_from_the_state_of_another():
    """In a ring, in which states with an adjoint and without one follow each other.

    `Exact` solves the lower level wherever it starts (test_exact.py): there is no iterate to
    compare.
    """
    poster = random_poster(Quadratic, M, N, L=L)
    strategies = [s for s in strategies_for_contract(L) if not isinstance(s, hg.Exact)]
    state, followed = _anywhere().state, set()
    for strategy in strategies:
        alpha = np.eye(L)[-1]
        if isinstance(strategy, hg.ErgodicUnrolling):
            alpha = np.asarray(strategy.weights(L))
        h = _hypergradient(poster, strategy, state)
        starts = list(zip(*map(np.asarray, (state.r, state.r_bar, state.y)), strict=True))
        x, y = poster.output(DATA[0], alpha, starts)
        assert_close((np.asarray(h.solution.x), np.asarray(h.solution.y)), (x, y), RTOL)
        shapes = [leaf.shape for leaf in jax.tree.leaves(h.state)]
        assert shapes[:3] == [(BATCH, N), (BATCH, N), (BATCH, M)]
        assert shapes[3:] in ([], [(BATCH, N), (BATCH, M)])
        followed.add((state.adjoint is None, h.state.adjoint is None))
        state = h.state
    assert len(followed) == 4


def test_leading_axes_of_a_state_are_those_of_the_batch():
    poster = random_poster(Quadratic, M, N, L=L)
    problem, solver = to_hypergrad(poster)
    state = jax.tree.map(lambda a: a.reshape(1, BATCH, -1), _anywhere().state)
    data = [a.reshape(1, BATCH, N) for a in DATA]
    h = hg.hypergradient(problem, *data, solver=solver, strategy=_steps(2), init=state)
    flat = _hypergradient(poster, _steps(2), _anywhere().state)
    assert h.state.adjoint.Delta_D.shape == (1, BATCH, M)
    assert_close(jax.tree.map(lambda a: a[0], h.state), flat.state, RTOL)


@pytest.mark.parametrize(
    "Delta",
    [
        Pair(np.zeros((BATCH, M)), np.zeros((BATCH, N))),
        Pair(np.zeros((BATCH + 1, N)), np.zeros((BATCH + 1, M))),
        Pair(np.zeros(N), np.zeros(M)),
    ],
    ids=["changed places", "of another batch", "of one sample"],
)
def test_the_shapes_of_an_adjoint_are_checked(Delta):
    poster = random_poster(Quadratic, M, N, L=L)
    state = _anywhere().state
    init = hg.State(state.r, state.r_bar, state.y, AdjointPair(*Delta))
    with pytest.raises(ValueError, match=r"init must have shapes .* Delta_P, Delta_D\); got"):
        _hypergradient(poster, _steps(1), init)
