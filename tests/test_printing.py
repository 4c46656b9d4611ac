"""Results print, whatever has become of their numbers, and stay equal to what was put in."""

from __future__ import annotations

import functools
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad._foundation.printing import shares
from hypergrad.learning.result import Best

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
PROBLEM = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
SOLVER = hg.ChambollePock(4)


def results(x):
    """One of each class, for `(..., 4)`."""
    shared = {"solver": SOLVER, "strategy": hg.Truncation(1)}
    return {
        "hypergradient": hg.hypergradient(PROBLEM, x, x + 1, error_bound=True, **shared),
        "solution": hg.solve(PROBLEM, x, trace=True, **shared),
        "trajectory": hg.adjoint_trajectory(PROBLEM, x, x + 1, **shared),
        "steps": hg.steps_needed(PROBLEM, x, x + 1, solver=SOLVER, error=0.1),
        "errors": hg.per_sample_errors(PROBLEM, x, x + 1, **shared),
    }


@functools.cache
def made(kind):
    """The results under one transformation."""
    return {
        "as they are": lambda: results(X),
        "vmap": lambda: eqx.filter_vmap(results)(X[:, None]),
    }[kind]()


def parts(result):
    """The modules in a result, itself included."""
    inner = lambda node: isinstance(node, eqx.Module) and node is not result  # noqa: E731
    yield result
    for node in jax.tree.leaves(result, is_leaf=inner):
        if isinstance(node, eqx.Module):
            yield from parts(node)


MADE = ["as they are", "vmap"]
RESULTS = ["hypergradient", "solution", "trajectory", "steps", "errors"]
CHANGES = {
    "ShapeDtypeStruct": lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
    "None": lambda a: None,
    "NumPy": np.asarray,
    "floats": lambda a: a.astype(float),
    "empty": lambda a: a[None][:0],
    "stacked": lambda a: jnp.stack([a, a]),
    "NaN": lambda a: jnp.full(a.shape, jnp.nan),
    "an object": lambda a: object(),
    "a mask": lambda a: True,
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("kind", MADE)
def test_everything_prints(kind, name):
    for change in (lambda a: a, *CHANGES.values()):
        for part in parts(jax.tree.map(change, made(kind)[name])):
            assert repr(part).startswith(type(part).__name__)
            assert str(part) == repr(part)


@pytest.mark.parametrize("name", RESULTS)
def test_tracers_and_donated_arrays_print(name):
    result = made("as they are")[name]
    printed = []
    jax.jit(lambda tree: printed.append(repr(tree)))(result)
    assert printed[0].startswith(type(result).__name__)
    copied = jax.tree.map(jnp.array, result)
    jax.tree.map(lambda a: a.delete(), copied)
    assert repr(copied).startswith(type(result).__name__)


@pytest.mark.parametrize("name", RESULTS)
def test_what_goes_through_comes_out(name):
    result = made("as they are")[name]
    # NaN (a gap that is not known) is equal to nothing.
    result = jax.tree.map(jnp.nan_to_num, result)
    through = {
        "jit": jax.jit(lambda tree: tree)(result),
        "scan": jax.lax.scan(lambda tree, _: (tree, None), result, None, length=2)[0],
        "vmap": jax.tree.map(
            lambda a: a[0], jax.vmap(lambda tree: tree)(jax.tree.map(lambda a: a[None], result))
        ),
        "pickle": pickle.loads(pickle.dumps(result)),
        "tree.map": jax.tree.map(lambda a: a, result),
    }
    for how, out in through.items():
        assert bool(eqx.tree_equal(out, result)), how
        assert repr(out) == repr(result), how


def test_the_worst_is_told():
    stats = made("as they are")["solution"].stats
    stats = eqx.tree_at(
        lambda s: (s.residual, s.margin, s.status),
        stats,
        (jnp.array([1e-3, 5e-2, 0.0]), jnp.array([0.5, 0.25, 1.0]), jnp.array([0, 1, 0])),
    )
    text = repr(stats)
    assert "residual 5.0e-02" in text
    assert "margin 2.5e-01" in text
    assert "converged 66.7 %, iterations used up 33.3 %" in text
    assert "worst of 3" in text


def test_a_count_that_is_not_known_is_unknown():
    adjoint = made("as they are")["hypergradient"].adjoint
    unknown = eqx.tree_at(lambda a: a.steps, adjoint, None)
    assert "steps unknown" in repr(unknown)
    assert shares(np.array([0, 77]), hg.Status) == "converged 50 %, 77 50 %"
    assert hg.Status.summary(np.zeros(0, int)) == "none"


def test_a_history_prints_and_pickles():
    history = hg.History(PROBLEM, [], Best(PROBLEM, 0))
    assert repr(history).startswith("History(unknown epochs")
    records = [{"epoch": 0, "seconds": 0.0, "train_loss": 0.5, "validation_loss": None}]
    history = hg.History(PROBLEM, records, Best(PROBLEM, 0))
    assert repr(history) == "History(0 epochs in 0.0 s, train_loss=0.5, validation_loss=None)"
    assert repr(pickle.loads(pickle.dumps(history))) == repr(history)
