"""Conjugate gradients on the dual half of the limit system, against a dense solve of all of it."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_data, relative_error

import hypergrad as hg
from hypergrad.adjoint import LimitSystem
from hypergrad.chambolle_pock import ProxArguments

N, BATCH = 8, 3
RTOL = 1e-10


def _K(m: int, *, repeated: bool = False) -> np.ndarray:
    K = np.random.default_rng(7).normal(size=(m, N))
    return np.concatenate([K, K[:3]]) if repeated else K


# What cannot be eliminated is solved for as a whole.
WEIGHTS_OF_0 = "weights of 0"
PROBLEMS = {
    "wide": hg.LowerLevel(_K(5), hg.L1(0.3), hg.Quadratic(1.2)),
    "tall": hg.LowerLevel(_K(12), hg.L1(jnp.linspace(0.2, 0.4, 12)), hg.Quadratic(1.2)),
    "box": hg.LowerLevel(_K(6), hg.L1(0.3), hg.BoxQuadratic(0.25, 1.5)),
    "smooth": hg.LowerLevel(_K(6), hg.Huber(0.3, 0.2), hg.ElasticNet(0.1, 0.8)),
    "groups": hg.LowerLevel(_K(6), hg.GroupL1(0.3, shape=(2, 3)), hg.Quadratic(1.2)),
    WEIGHTS_OF_0: hg.LowerLevel(_K(12), hg.L1(0.3), hg.Quadratic(jnp.arange(8.0) % 3)),
    "repeated rows": hg.LowerLevel(_K(4, repeated=True), hg.L1(0.3), hg.Quadratic(1.2)),
}


@functools.cache
def _system(name: str) -> LimitSystem:
    """At a solution, with coordinates on either side of their kinks."""
    problem = PROBLEMS[name]
    x_tilde, _ = random_data(BATCH, N)
    solver = hg.ChambollePock(5000, step_ratio=10.0)
    state = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).state
    sizes = solver.step_sizes(problem)
    K, x = jnp.asarray(problem.K), x_tilde + state.r
    z_D, z_P = state.y + sizes.sigma * x @ K.T, state.r - sizes.tau * state.y @ K
    return LimitSystem(problem, sizes, ProxArguments(z_D, z_P))


def _dense(system: LimitSystem, right, *, transposed: bool) -> np.ndarray:
    """The solution of minimum norm, a sample, by the pseudo-inverse of the whole matrix."""
    product = eqx.filter_jit(system.scaled_transpose if transposed else system.scaled)
    n, size = N, N + system.problem.m
    columns = [
        np.concatenate(product((jnp.tile(e[:n], (BATCH, 1)), jnp.tile(e[n:], (BATCH, 1)))), axis=-1)
        for e in np.eye(size)
    ]
    matrices = np.stack(columns, axis=-1)
    return np.einsum(
        "bij,bj->bi", np.linalg.pinv(matrices, rcond=1e-9), np.concatenate(right, axis=-1)
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_the_dense_solution_of_minimum_norm(name, transposed):
    system = _system(name)
    rng = np.random.default_rng(1)
    # In the range of the system, which is singular where rows repeat.
    something = rng.normal(size=(BATCH, N)), rng.normal(size=(BATCH, system.problem.m))
    product = system.scaled_transpose if transposed else system.scaled
    right = product(tuple(map(jnp.asarray, something)))
    unknowns, steps, used_up = hg.ConjugateGradients().solve(system, right, transposed=transposed)
    expected = _dense(system, right, transposed=transposed)
    assert relative_error(np.concatenate(unknowns, axis=-1), expected) <= RTOL
    assert not np.any(np.asarray(used_up))
    # Without the primal there are m unknowns; the transpose is solved as a whole.
    whole = transposed or name == WEIGHTS_OF_0
    counted = 2 if name == WEIGHTS_OF_0 and not transposed else 1  # a step, by its products
    assert np.all(np.asarray(steps) <= 2 * counted * (system.problem.m + N * whole))


# The systems of all problems are solved above: here one that is reduced and one that is not.
@pytest.mark.parametrize("name", ["box", "groups", WEIGHTS_OF_0])
def test_a_hypergradient_by_it_is_that_of_least_squares(name):
    problem = PROBLEMS[name]
    x_tilde, x_true = random_data(BATCH, N)
    solver = hg.ChambollePock(5000, step_ratio=10.0)
    strategy = hg.LimitFormula(hg.ConjugateGradients())
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    whole = hg.hypergradient(
        problem, x_tilde, x_true, solver=solver, strategy=hg.LimitFormula(hg.CGLS())
    )
    for got, true in zip(jax.tree.leaves(h.grad), jax.tree.leaves(whole.grad), strict=True):
        assert relative_error(got, true) <= 1e-8
    assert np.all(np.asarray(h.adjoint.status) == hg.Status.CONVERGED)


@pytest.mark.parametrize("name", ["tall", "repeated rows"])
def test_forward_mode_is_the_transpose_of_reverse_mode(name):
    """Also where the derivative is none: then both are that of a least-squares solution."""
    problem = PROBLEMS[name]
    x_tilde, _ = random_data(BATCH, N)
    solver = hg.ChambollePock(3000, step_ratio=10.0)
    strategy = hg.parse_strategy("limit:cg")

    def x(K):
        moved = hg.LowerLevel(K, problem.F, problem.G)
        return hg.solve(moved, x_tilde, solver=solver, strategy=strategy).x

    direction = jnp.asarray(np.random.default_rng(2).normal(size=problem.shape))
    value, moved = jax.jvp(x, (problem.K,), (direction,))
    (pulled,) = jax.vjp(x, problem.K)[1](jnp.ones_like(value))
    assert relative_error(jnp.sum(moved), jnp.sum(pulled * direction)) <= RTOL


@pytest.mark.parametrize("adjoint", [hg.ConjugateGradients(1), hg.CGLS(1)])
def test_a_limit_of_steps_is_kept_and_said(adjoint):
    problem = PROBLEMS["tall"]
    x_tilde, x_true = random_data(BATCH, N)
    strategy = hg.LimitFormula(adjoint)
    assert hg.parse_strategy(strategy.label) == strategy
    h = hg.hypergradient(problem, x_tilde, x_true, strategy=strategy)
    assert int(jnp.max(h.adjoint.steps)) == 1
    assert np.any(np.asarray(h.adjoint.status) == hg.Status.ITERATIONS_USED_UP)


def test_a_G_that_cannot_be_divided_by_is_refused():
    problem = hg.LowerLevel(_K(5), hg.L1(0.3), hg.Box(0.2))
    x_tilde, x_true = random_data(BATCH, N)
    strategy = hg.LimitFormula(hg.ConjugateGradients())
    with pytest.raises(ValueError, match="must have a G that is separable and strongly convex"):
        hg.hypergradient(problem, x_tilde, x_true, strategy=strategy)
