"""What is wrong only in the values: under `jit`, after an update, and where a status is bad."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg

pytestmark = pytest.mark.usefixtures("no_type_checker")


M, N = 3, 4
PROBLEM = hg.LowerLevel(K=hg.operators.differences(N), F=hg.L1(0.1), G=hg.Quadratic(1.0))
X = jnp.array([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 2.0, 3.0]])


def solve(x_tilde: Any, problem: hg.LowerLevel = PROBLEM) -> hg.Solution:
    return hg.solve(problem, x_tilde, solver=hg.ChambollePock(20), strategy=hg.Truncation(1))


@pytest.mark.parametrize("name", ["problem", "x_tilde"])
def test_shapes_are_checked_under_jit_too(name):
    """Values are not there yet, shapes are."""
    arguments = {"problem": PROBLEM, "x_tilde": X, name: None}
    arguments["x_tilde"] = jnp.zeros((2, 5)) if name == "x_tilde" else jnp.zeros((2, 4))
    wider = hg.LowerLevel(K=jnp.ones((3, 5)), F=PROBLEM.F, G=PROBLEM.G)
    arguments["problem"] = wider if name == "problem" else PROBLEM
    with pytest.raises(ValueError, match=r"x_tilde must have shape \(\.\.\., [45]\)"):
        jax.jit(lambda problem, x_tilde: solve(x_tilde, problem).x)(**arguments)


def test_constants_are_looked_at_under_jit_too():
    """What a compiled function closes over, or builds from it: good data and bad ones."""
    one, half, weights = jnp.ones(()), jnp.asarray(0.5), jnp.full(20, 0.05)
    spoilt = X.at[0, 1].set(np.nan)

    def x(weight, x_tilde):
        problem = hg.LowerLevel(K=PROBLEM.K, F=hg.L1(weight), G=hg.Quadratic(one))
        solver = hg.ChambollePock(20, theta=half, step_ratio=one)
        strategy = hg.ErgodicUnrolling(weights)
        return hg.solve(problem, x_tilde, solver=solver, strategy=strategy).x

    np.testing.assert_allclose(jax.jit(lambda w: x(w, X))(0.1), x(0.1, X), rtol=1e-12)
    with pytest.raises(ValueError, match="x_tilde must be finite; got 1 NaN"):
        jax.jit(lambda w: x(w, spoilt))(0.1)


def test_steps_that_are_too_long_are_seen_under_jit_where_all_is_constant():
    solver, strategy = hg.ChambollePock(tau=1.0, sigma=1.0), hg.Truncation(1)
    with pytest.raises(ValueError, match=r"must be at most 1; got 3\.41"):
        jax.jit(lambda x: hg.solve(PROBLEM, x, solver=solver, strategy=strategy).x)(X)


def test_steps_that_are_too_long_show_in_the_status_where_K_is_traced():
    problem = hg.LowerLevel(K=PROBLEM.K, F=hg.Quadratic(1.0), G=hg.Quadratic(1.0))
    solver, strategy = hg.ChambollePock(1000, tau=3.0, sigma=3.0), hg.Truncation(1)
    solved = jax.jit(lambda p: hg.solve(p, X, solver=solver, strategy=strategy).stats)(problem)
    assert np.all(np.asarray(solved.status) == hg.Status.NON_FINITE)


def test_whole_numbers_are_data_too():
    """Pixels, say: `np.uint8` or `int`. Only NaN is not a number."""
    with jax.numpy_dtype_promotion("standard"):
        solution = solve(np.array([0, 3, 3, 1]))
    np.testing.assert_array_equal(solution.x, solve(np.array([0.0, 3.0, 3.0, 1.0])).x)


@pytest.mark.usefixtures("quick_reference")
def test_whole_numbers_are_compared_too():
    """In the precision of K, here float64; the strategies come from any collection."""
    x_true = np.array([[0, 3, 3, 1]])
    strategies = {"one": hg.Truncation(1)}.values()
    comparison = hg.compare(PROBLEM, x_true, x_true, strategies=strategies, repeats=1)
    assert "error" not in comparison.records[0]


def test_without_a_solver_it_is_the_usual_one():
    usual = hg.ChambollePock()
    factor = hg.contraction_factor(PROBLEM, X).factor
    np.testing.assert_array_equal(factor, hg.contraction_factor(PROBLEM, X, solver=usual).factor)
    found, expected = (
        hg.evaluate(PROBLEM, X, X, strategy=hg.Truncation(1), **given)
        for given in ({}, {"solver": usual})
    )
    assert found == expected


# -------------------------------------------------------------------------- throw=True raises

# Two iterations are too few for X, and enough for zeros; one layer is too few for a loss that is
# not 0 at the solution. The same compiled function then succeeds and fails.
TOO_FEW, ZERO = hg.ChambollePock(iterations=2), jnp.zeros_like(X)


def throwing_solve(x_tilde: jax.Array) -> jax.Array:
    return hg.solve(PROBLEM, x_tilde, solver=TOO_FEW, strategy=hg.Truncation(1), throw=True).x


def throwing_hypergradient(x_tilde: jax.Array, x_true: jax.Array) -> jax.Array:
    return hg.hypergradient(
        PROBLEM, x_tilde, x_true, solver=TOO_FEW, strategy=hg.Truncation(1), throw=True
    ).grad.K


@pytest.mark.parametrize("transform", [lambda f: f, eqx.filter_jit], ids=["plain", "jit"])
def test_throw_raises_where_a_status_is_bad(transform):
    solve, gradient = transform(throwing_solve), transform(throwing_hypergradient)
    np.testing.assert_array_equal(solve(ZERO), ZERO)
    np.testing.assert_array_equal(gradient(ZERO, ZERO), np.zeros((M, N)))
    with pytest.raises(RuntimeError, match="the forward solve did not succeed for every sample"):
        jax.block_until_ready(solve(X))
    with pytest.raises(RuntimeError, match="the forward solve did not succeed for every sample"):
        jax.block_until_ready(gradient(X, X))
    with pytest.raises(RuntimeError, match="the adjoint solve did not succeed for every sample"):
        jax.block_until_ready(gradient(ZERO, X))


def test_without_throw_it_is_a_status():
    """The same solve as above: data, not an exception."""
    solution = hg.solve(PROBLEM, X, solver=TOO_FEW, strategy=hg.Truncation(1))
    np.testing.assert_array_equal(solution.stats.status, hg.Status.ITERATIONS_USED_UP)


# ------------------------------------------------------- parameters that an update has moved


class Undefended(hg.AbstractFunction):
    """A function of the user's, which declares its field positive and checks nothing."""

    weight: jax.Array
    positive = ("weight",)

    def __call__(self, v):
        return jnp.sum(self.weight * jnp.abs(v), axis=-1)

    def prox(self, z, step):
        return z - jnp.clip(z, -step * self.weight, step * self.weight)


def moved(where: Callable[[hg.LowerLevel], Any], value: Any, F: Any, G: Any) -> hg.LowerLevel:
    """A problem that was valid, after an update."""
    return eqx.tree_at(where, hg.LowerLevel(K=jnp.eye(4), F=F, G=G), value)


MOVED = {
    "problem.F": moved(lambda p: p.F.weight, jnp.array(-0.2), hg.L1(0.1), hg.Quadratic(1.0)),
    "problem.F one entry": moved(
        lambda p: p.F.weight, jnp.array([0.1, 0.1, -0.1, 0.1]), hg.L1(jnp.ones(4)), hg.Box(1.0)
    ),
    "problem.F custom": moved(
        lambda p: p.F.weight, jnp.array(-0.2), Undefended(jnp.array(0.1)), hg.Quadratic(1.0)
    ),
    "problem.F.parts[1]": moved(
        lambda p: p.F.parts[1].weight,
        jnp.array(-0.2),
        hg.SeparableSum([hg.Zero(), hg.GroupL1(0.1, shape=(3, 1))], sizes=(1, 3)),
        hg.Quadratic(1.0),
    ),
    "problem.G": moved(lambda p: p.G.radius, jnp.array(-1.0), hg.Zero(), hg.L2Ball(0.1)),
    "problem.G NaN": moved(lambda p: p.G.weight, jnp.array(jnp.nan), hg.Zero(), hg.Quadratic(1.0)),
}
ENTRIES = {
    "solve": lambda p: hg.solve(p, X, strategy=hg.Truncation(1)),
    "hypergradient": lambda p: hg.hypergradient(p, X, X, strategy=hg.Truncation(1)),
    "compare": lambda p: hg.compare(p, X, X, strategies=[hg.Truncation(1)]),
    "train": lambda p: hg.train(p, (X, X), strategy=hg.Truncation(1), epochs=0, progress=False),
    "evaluate": lambda p: hg.evaluate(p, X, X, strategy=hg.Truncation(1)),
    "contraction_factor": lambda p: hg.contraction_factor(p, X),
    "restore": lambda p: hg.restore(
        hg.SavedOperator(p, hg.ChambollePock(3), hg.Truncation(1), (4,), stride=1), np.asarray(X)
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", MOVED)
def test_parameters_out_of_range_are_refused_at_every_call(name, entry):
    where = re.escape(name.split(" ")[0])
    with pytest.raises(ValueError, match=f"must be .*; got .*{where} was valid when it was made"):
        ENTRIES[entry](MOVED[name])


@pytest.mark.parametrize("name", MOVED)
def test_traced_parameters_out_of_range_are_not_solved_with(name):
    solved = eqx.filter_jit(lambda p: hg.solve(p, X, strategy=hg.Truncation(1)))(MOVED[name])
    assert (np.asarray(solved.stats.status) == int(hg.Status.NON_FINITE)).all()
    assert np.isnan(np.asarray(solved.x)).all()


def test_settings_of_a_solver_out_of_range_are_refused():
    solver = hg.ChambollePock(3, tau=0.5, sigma=0.5)
    solver = eqx.tree_at(lambda s: (s.tau, s.sigma), solver, (jnp.array(-0.5), jnp.array(-0.5)))
    problem = hg.LowerLevel(K=jnp.eye(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    with pytest.raises(ValueError, match=r"tau must be one finite number above 0; got -0\.5"):
        hg.solve(problem, X, solver=solver, strategy=hg.Truncation(1))
