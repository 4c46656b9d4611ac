"""Every bad input gives one ValueError that says the rule, and what was got."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import lineax as lx
import numpy as np
import pytest
import scipy.sparse.linalg

import hypergrad as hg
from hypergrad.chambolle_pock import State


@pytest.fixture(autouse=True)
def no_type_checker():
    """What users see: the runtime type checker of the other tests would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


M, N = 3, 4
K = np.asarray(hg.operators.differences(N))
PROBLEM = hg.LowerLevel(K=K, F=hg.L1(0.1), G=hg.Quadratic(1.0))
X = jnp.array([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 2.0, 3.0]])
NAN, INF = np.nan, np.inf


def solve(
    x_tilde: Any = X,
    problem: hg.LowerLevel = PROBLEM,
    strategy: Any = None,
    init: State | None = None,
    **options,
) -> hg.Solution:
    strategy = hg.Truncation(1) if strategy is None else strategy
    solver = hg.ChambollePock(**{"iterations": 20, **options})
    return hg.solve(problem, x_tilde, solver=solver, strategy=strategy, init=init)


def hypergradient(x_true: Any = X, **options) -> hg.Hypergradient:
    return hg.hypergradient(PROBLEM, X, x_true, **{"strategy": hg.Truncation(1), **options})


def lower_level(K: Any = K, F: Any = PROBLEM.F, G: Any = PROBLEM.G) -> hg.LowerLevel:
    return hg.LowerLevel(K=K, F=F, G=G)


def train(data: Any = (X, X), **options) -> hg.History:
    usual = {"strategy": hg.Truncation(1), "epochs": 1, "progress": False}
    return hg.train(PROBLEM, data, **{**usual, **options})


def evaluate(x_tilde: Any = X, x_true: Any = X, **options) -> float:
    return hg.evaluate(PROBLEM, x_tilde, x_true, strategy=hg.Truncation(1), **options)


def compare(strategies: Any, problem: Any = PROBLEM, **options) -> hg.Comparison:
    return hg.compare(problem, X, X, strategies=strategies, repeats=1, **options)


def a_sample(x: jax.Array, x_true: jax.Array) -> jax.Array:
    """What people write first: one number a sample."""
    return jnp.sum((x - x_true) ** 2, axis=-1)


def backwards() -> lx.FunctionLinearOperator:
    """An operator without a number that could be learned."""
    return lx.FunctionLinearOperator(lambda v: v[::-1], jax.ShapeDtypeStruct((N,), X.dtype))


def of_two_dtypes() -> hg.Solution:
    """Where JAX would promote one of them."""
    twice = lx.FunctionLinearOperator(lambda v: 2 * v, jax.ShapeDtypeStruct((N,), jnp.float32))
    with jax.numpy_dtype_promotion("standard"):
        return solve(problem=lower_level(K=twice))


class Nameless(hg.AbstractDifferentiableStrategy):
    def run(self, problem, x_tilde, solver, init):
        return x_tilde


class NoSolution(Nameless):
    name = "no solution"


def zero_state(r: tuple[int, ...], r_bar: tuple[int, ...], y: tuple[int, ...]) -> State:
    return State(jnp.zeros(r), jnp.zeros(r_bar), jnp.zeros(y))


def with_entry(array: Any, value: float) -> jax.Array:
    return jnp.asarray(array).at[0, 1].set(value)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # name: (what is called, what the error says: the rule, then what was got)
    #
    # ---- data
    "x_tilde of another size": (
        lambda: solve(jnp.zeros((2, 5))),
        r"x_tilde must have shape (..., 4), the columns of K last; got (2, 5)",
    ),
    "x_tilde a number": (
        lambda: solve(jnp.array(1.0)),
        r"x_tilde must have shape (..., 4), the columns of K last; got ()",
    ),
    "x_tilde transposed": (
        lambda: solve(X.T),
        r"x_tilde must have shape (..., 4), the columns of K last; got (4, 2)",
    ),
    "an empty batch": (
        lambda: solve(jnp.zeros((0, 4))),
        r"x_tilde must hold at least one sample; got shape (0, 4)",
    ),
    "NaN in x_tilde": (
        lambda: solve(with_entry(X, NAN)),
        r"x_tilde must be finite; got 1 NaN or infinite entries out of 8",
    ),
    "infinity in x_tilde": (
        lambda: solve(with_entry(X, -INF)),
        r"x_tilde must be finite; got 1 NaN or infinite entries out of 8",
    ),
    "NaN in NumPy data": (
        lambda: solve(np.full((2, 4), NAN)),
        r"x_tilde must be finite; got 8 NaN or infinite entries out of 8",
    ),
    "x_true of another size": (
        lambda: hypergradient(jnp.zeros((2, 3))),
        r"x_true must have the shape of x_tilde, (2, 4); got (2, 3)",
    ),
    "x_true without the batch": (
        lambda: hypergradient(jnp.zeros(4)),
        r"x_true must have the shape of x_tilde, (2, 4); got (4,)",
    ),
    "NaN in x_true": (
        lambda: hypergradient(with_entry(X, NAN)),
        r"x_true must be finite; got 1 NaN or infinite entries out of 8",
    ),
    "infinity in x_true": (
        lambda: hypergradient(with_entry(X, INF)),
        r"x_true must be finite; got 1 NaN or infinite entries out of 8",
    ),
    "init of another batch": (
        lambda: solve(init=zero_state((3, 4), (3, 4), (3, 3))),
        r"init must have shapes ((2, 4), (2, 4), (2, 3)) (r, r_bar, y); got ((3, 4), (3, 4), (3, ",
    ),
    "init of another problem": (
        lambda: solve(init=zero_state((2, 4), (2, 4), (2, 5))),
        r"init must have shapes ((2, 4), (2, 4), (2, 3)) (r, r_bar, y); got ((2, 4), (2, 4), (2, 5",
    ),
    "complex x_tilde": (
        lambda: solve(X.astype(complex)),
        r"x_tilde must be real; got complex128: split it",
    ),
    "complex x_true": (
        lambda: hypergradient(X.astype(complex)),
        r"x_true must be real; got complex128: split it",
    ),
    "text for x_tilde": (
        lambda: solve("x.npy"),
        r"x_tilde must be a number or an array of numbers; got 'x.npy': pass what",
    ),
    "None for x_tilde": (
        lambda: hg.solve(PROBLEM, None, strategy=hg.Truncation(1)),
        r"x_tilde must be a number or an array of numbers; got None: pass what",
    ),
    "rows of several lengths": (
        lambda: hypergradient([[0.0, 1.0], [1.0]]),
        r"x_true must be a number or an array of numbers; got list: pass what",
    ),
    "a solution for init": (
        lambda: solve(init=solve()),
        r"init must be a hypergrad.State; got Solution: pass the .state",
    ),
    "a hypergradient for init": (
        lambda: solve(init=hypergradient()),
        r"init must be a hypergrad.State; got Hypergradient: pass the .state",
    ),
    "an x_true to evaluate that would be broadcast": (
        lambda: evaluate(X, X[:1]),
        r"x_true must have the shape of x_tilde, (2, 4); got (1, 4): one true",
    ),
    "one x_true to evaluate all samples": (
        lambda: evaluate(X, X[0]),
        r"x_true must have the shape of x_tilde, (2, 4); got (4,): one true",
    ),
    "a number for x_true to evaluate": (
        lambda: evaluate(X, 0.0),
        r"x_true must have the shape of x_tilde, (2, 4); got (): one true",
    ),
    "one sample to evaluate": (
        lambda: evaluate(X[0], X[0]),
        r"x_tilde must have shape (samples, 4); got (4,): one sample is x_tilde[None]",
    ),
    "pieces of no sample": (
        lambda: evaluate(piece=0),
        r"piece must be a whole number of at least 1; got 0",
    ),
    "complex training data": (
        lambda: train((X, X.astype(complex))),
        r"x_true of data must be real; got complex128: split it",
    ),
    #
    # ---- what is handed over
    "a matrix for the problem": (
        lambda: solve(problem=K),
        r"problem must be a hypergrad.LowerLevel; got ndarray of shape (3, 4): pass hg.Low",
    ),
    "a matrix for the problem of train": (
        lambda: hg.train(K, (X, X), strategy=hg.Truncation(1)),
        r"problem must be a hypergrad.LowerLevel; got ndarray of shape (3, 4): pass hg.Low",
    ),
    "a number for the solver": (
        lambda: hypergradient(solver=100),
        r"solver must be a hypergrad.ChambollePock; got 100: pass for example hg.Cham",
    ),
    "a number for the solver of train": (
        lambda: train(solver=100),
        r"solver must be a hypergrad.ChambollePock; got 100: pass for example hg.Cham",
    ),
    "a class for the solver": (
        lambda: hg.contraction_factor(PROBLEM, X, solver=hg.ChambollePock),
        r"solver must be a hypergrad.ChambollePock; got <class",
    ),
    "the name of a loss": (
        lambda: hypergradient(loss="mse"),
        r"loss must be a function loss(x, x_true); got 'mse': leave it out",
    ),
    "a loss a sample": (
        lambda: hypergradient(loss=a_sample),
        r"loss must return one float for the whole batch; got shape (2,) of float64 for x of",
    ),
    "a loss a sample in train": (
        lambda: train(loss=a_sample),
        r"loss must return one float for the whole batch; got shape (2,) of float64 for x of",
    ),
    "a loss a sample in evaluate": (
        lambda: evaluate(loss=a_sample),
        r"loss must return one float for the whole batch; got shape (2,) of float64 for x of",
    ),
    "a loss a sample in compare": (
        lambda: compare([hg.Exact()], loss=a_sample),
        r"loss must return one float for the whole batch; got shape (2,) of float64 for x of",
    ),
    "a loss and something else": (
        lambda: hypergradient(loss=lambda x, x_true: (jnp.sum(x), x_true)),
        r"loss must return one number; got tuple: return its mean alone",
    ),
    "a whole number as the loss": (
        lambda: hypergradient(loss=lambda x, x_true: 1),
        r"loss must return one float for the whole batch; got shape () of int64 for x of",
    ),
    "throw that is no switch": (
        lambda: hypergradient(throw="no"),
        r"throw must be True or False; got 'no': try throw=True",
    ),
    "throw of solve that is no switch": (
        lambda: hg.solve(PROBLEM, X, strategy=hg.Truncation(1), throw="no"),
        r"throw must be True or False; got 'no': try throw=True",
    ),
    "error_bound that is no switch": (
        lambda: hypergradient(error_bound=1),
        r"error_bound must be True or False; got 1: try error_bound=True",
    ),
    "a trace of Exact": (
        lambda: hg.solve(PROBLEM, X, strategy=hg.Exact(), trace=True),
        r"trace=True must have a strategy that takes the solver's iterations; got exact:most=150, ",
    ),
    "trace that is no switch": (
        lambda: hg.solve(PROBLEM, X, strategy=hg.Truncation(1), trace="no"),
        r"trace must be True or False; got 'no': try trace=True",
    ),
    "names of strategies": (
        lambda: compare(["full"]),
        r"each of strategies must be a hypergrad strategy; got 'full': use hg.parse_str",
    ),
    "strategies without brackets": (
        lambda: compare(hg.Truncation(1)),
        r"strategies must be a list of strategies; got Truncation: put it in brackets",
    ),
    "one name for strategies": (
        lambda: compare("full"),
        r"strategies must be a list of strategies; got 'full': put it in brackets",
    ),
    "no strategies": (
        lambda: compare([]),
        r"strategies must name at least one; got none",
    ),
    "comparison in a K without parameters": (
        lambda: compare([hg.Truncation(1)], lower_level(K=backwards(), F=hg.L1(0.1))),
        r"parameters must select at least one float leaf of the problem; got none: try lambda p: p",
    ),
    "a gradient wanted in something new": (
        lambda: hypergradient(parameters=lambda p: 2 * p.K),
        r"parameters must be a function that picks parts of the problem; got function, which",
    ),
    "the name of what a gradient is wanted in": (
        lambda: hypergradient(parameters="K"),
        r"parameters must be a function that picks parts of the problem; got 'K', which does",
    ),
    "a gradient wanted in a size": (
        lambda: hypergradient(parameters=lambda p: p.m),
        r"parameters must be a function that picks parts of the problem; got function, which",
    ),
    "the name of an optimizer": (
        lambda: train(optimizer="adam"),
        r"optimizer must be one of optax; got 'adam': pass for example optax.adam(1e-3)",
    ),
    "a learning rate for the optimizer": (
        lambda: train(optimizer=1e-3),
        r"optimizer must be one of optax; got 0.001: pass for example optax.adam(1e-3)",
    ),
    "a size to be learned": (
        lambda: train(trainable=lambda p: p.m),
        r"trainable must be a function that picks parts of the problem; got function, which",
    ),
    "something new to be learned": (
        lambda: train(trainable=lambda p: p.K * 2),
        r"trainable must be a function that picks parts of the problem; got function, which",
    ),
    "the name of what is learned": (
        lambda: train(trainable="K"),
        r"trainable must be a function that picks parts of the problem; got 'K', which does",
    ),
    #
    # ---- the operator
    "K a vector": (
        lambda: lower_level(K=jnp.ones(4)),
        r"K must be an (m, n) matrix or a lineax operator; got shape (4,)",
    ),
    "K a stack": (
        lambda: lower_level(K=jnp.ones((2, 3, 4))),
        r"K must be an (m, n) matrix or a lineax operator; got shape (2, 3, 4)",
    ),
    "K without rows": (
        lambda: lower_level(K=jnp.ones((0, 4))),
        r"K must have at least one row and column; got (0, 4)",
    ),
    "K zero": (
        lambda: lower_level(K=jnp.zeros((3, 4))),
        r"K must not be zero (its norm sets the step sizes); got only zeros",
    ),
    "K zero, as a lineax operator": (
        lambda: lower_level(K=lx.MatrixLinearOperator(jnp.zeros((3, 4)))),
        r"K must not be zero (its norm sets the step sizes); got only zeros",
    ),
    "NaN in K": (
        lambda: lower_level(K=with_entry(K, NAN)),
        r"K must be finite; got 1 NaN or infinite entries out of 12",
    ),
    "infinity in a lineax operator": (
        lambda: lower_level(K=lx.MatrixLinearOperator(with_entry(K, INF))),
        r"K must be finite; got 1 NaN or infinite entries out of 12",
    ),
    "K a sparse matrix": (
        lambda: lower_level(K=scipy.sparse.csr_matrix(K)),
        r"K must be an (m, n) matrix or a lineax operator; got csr_matrix of shape (3, 4): pass",
    ),
    "K an operator of scipy": (
        lambda: lower_level(K=scipy.sparse.linalg.aslinearoperator(K)),
        r"K must be an (m, n) matrix or a lineax operator; got MatrixLinearOperator of shape",
    ),
    "K complex": (
        lambda: lower_level(K=K * 1j),
        r"K must be real; got complex128: split it",
    ),
    "K a complex lineax operator": (
        lambda: lower_level(K=lx.MatrixLinearOperator(jnp.asarray(K * 1j))),
        r"K must be real; got an operator of complex128: split it",
    ),
    "K of half precision": (
        lambda: lower_level(K=jnp.asarray(K, jnp.float16)),
        r"K must have single or double precision; got float16: cast it to float32",
    ),
    "K an operator on matrices": (
        lambda: lower_level(
            K=lx.FunctionLinearOperator(lambda v: v[0], jax.ShapeDtypeStruct((2, N), X.dtype))
        ),
        r"K must take vectors (n,) to vectors (m,); got in_structure",
    ),
    "K a function of another dtype": (
        of_two_dtypes,
        r"K has fixed dtype float32 and cannot be cast; got float64: cast",
    ),
    "K a function on several devices": (
        lambda: hg.train(
            lower_level(K=backwards(), F=hg.L1(0.1)),
            (X, X),
            strategy=hg.Truncation(1),
            epochs=1,
            trainable=lambda p: p.F.weight,
            devices=1,
            progress=False,
        ),
        r"K must be a matrix, a hypergrad.operators.AbstractOperator or made of matrices to be use",
    ),
    #
    # ---- the functions
    "F no function": (
        lambda: lower_level(F=0.1),
        r"F must be a hypergrad function; got float",
    ),
    "G a class": (
        lambda: lower_level(G=hg.Quadratic),
        r"G must be a hypergrad function; got ",
    ),
    "one weight too many": (
        lambda: lower_level(F=hg.L1(jnp.ones(4))),
        r"L1.weight must be a number or have shape (3,); got shape (4,)",
    ),
    "weights as a column": (
        lambda: lower_level(F=hg.L1(jnp.ones((3, 1)))),
        r"L1.weight must be a number or have shape (3,); got shape (3, 1)",
    ),
    "radii of the size of y": (
        lambda: lower_level(G=hg.Box(jnp.ones(3))),
        r"Box.radius must be a number or have shape (4,); got shape (3,)",
    ),
    "a center of another size": (
        lambda: lower_level(G=hg.Quadratic(1.0, jnp.zeros(5))),
        r"Quadratic.center must be a number or have shape (4,); got shape (5,)",
    ),
    "one smoothing too many": (
        lambda: lower_level(F=hg.Huber(1.0, jnp.ones(4))),
        r"Huber.smoothing must be a number or have shape (3,); got shape (4,)",
    ),
    "weights for groups": (
        lambda: hg.GroupL1(jnp.ones(2), shape=(2, 2)),
        r"GroupL1.weight must be one number; got shape (2,)",
    ),
    "radii for a ball": (
        lambda: hg.L2Ball(jnp.ones(2)),
        r"L2Ball.radius must be one number; got shape (2,)",
    ),
    "groups of another size": (
        lambda: lower_level(F=hg.GroupL1(0.1, shape=(2, 2))),
        r"GroupL1.shape must hold 3 coordinates; got (2, 2), which holds 4",
    ),
    "an axis that is not there": (
        lambda: hg.GroupL1(0.1, shape=(2, 2), axis=2),
        r"GroupL1.axis must be an axis of shape (2, 2); got 2",
    ),
    "parts without a size": (
        lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (3,)),
        r"SeparableSum must have one size for each part and at least one part; got 2 parts and 1 ",
    ),
    "no parts": (
        lambda: hg.SeparableSum((), ()),
        r"SeparableSum must have one size for each part and at least one part; got 0 parts and 0 ",
    ),
    "sizes that do not add up": (
        lambda: lower_level(F=hg.SeparableSum((hg.L1(0.1), hg.Zero()), (1, 1))),
        r"SeparableSum.sizes must add up to 3; got (1, 1), which add up to 2",
    ),
    "a part of another size": (
        lambda: hg.SeparableSum((hg.L1(jnp.ones(2)), hg.Zero()), (1, 2)),
        r"L1.weight must be a number or have shape (1,); got shape (2,)",
    ),
    "a negative weight": (
        lambda: hg.L1(-0.1),
        r"L1.weight must be non-negative; got -0.1",
    ),
    "one negative weight": (
        lambda: hg.L1(jnp.array([0.1, -0.2, 0.3])),
        r"L1.weight must be non-negative; got -0.2",
    ),
    "a weight that is NaN": (
        lambda: hg.L1(NAN),
        r"L1.weight must be finite; got 1 NaN or infinite entries out of 1",
    ),
    "an infinite weight": (
        lambda: hg.GroupL1(INF, shape=(1, 3)),
        r"GroupL1.weight must be finite; got 1 NaN or infinite entries out of 1",
    ),
    "a zero weight of a quadratic": (
        lambda: hg.Quadratic(0.0),
        r"Quadratic.weight must be positive; got 0",
    ),
    "a center that is NaN": (
        lambda: hg.Quadratic(1.0, jnp.array([0.0, NAN])),
        r"Quadratic.center must be finite; got 1 NaN or infinite entries out of 2",
    ),
    "a zero radius": (
        lambda: hg.Box(0.0),
        r"Box.radius must be positive; got 0",
    ),
    "a negative radius": (
        lambda: hg.L2Ball(-1.0),
        r"L2Ball.radius must be positive; got -1",
    ),
    "a negative ridge": (
        lambda: hg.ElasticNet(0.1, -1.0),
        r"ElasticNet.ridge must be positive; got -1",
    ),
    "a zero smoothing": (
        lambda: hg.Huber(0.1, 0.0),
        r"Huber.smoothing must be positive; got 0",
    ),
    "a negative weight in a box": (
        lambda: hg.BoxQuadratic(0.1, -1.0),
        r"BoxQuadratic.weight must be positive; got -1",
    ),
    "a complex weight": (
        lambda: hg.L1(1 + 2j),
        r"L1.weight must be real; got complex128: split it",
    ),
    "text for a weight": (
        lambda: hg.Huber("0.1", 1.0),
        r"Huber.weight must be a number or an array of numbers; got '0.1': pass what",
    ),
    "None for a radius": (
        lambda: hg.Box(None),
        r"Box.radius must be a number or an array of numbers; got None: pass what",
    ),
    "half a coordinate in a group": (
        lambda: hg.GroupL1(0.1, shape=(1.5, 2)),
        r"GroupL1.shape[0] must be a whole number of at least 1; got 1.5",
    ),
    "a number for the shape of groups": (
        lambda: hg.GroupL1(0.1, shape=3),
        r"GroupL1.shape must be a tuple of whole numbers; got 3: pass for example (2, 3)",
    ),
    "half an axis": (
        lambda: hg.GroupL1(0.1, shape=(2, 2), axis=0.5),
        r"GroupL1.axis must be an axis of shape (2, 2); got 0.5",
    ),
    "a negative size": (
        lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (-1, 4)),
        r"SeparableSum.sizes[0] must be a whole number of at least 1; got -1",
    ),
    "half a size": (
        lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (1.5, 1.5)),
        r"SeparableSum.sizes[0] must be a whole number of at least 1; got 1.5",
    ),
    "a number for the sizes": (
        lambda: hg.SeparableSum((hg.L1(0.1),), 3),
        r"SeparableSum.sizes must be a tuple of whole numbers; got 3: pass for example (2, 3)",
    ),
    "a function for the parts": (
        lambda: hg.SeparableSum(hg.L1(0.1), (3,)),
        r"SeparableSum.parts must be a tuple of functions; got L1: put it in brackets",
    ),
    "a part that is no function": (
        lambda: hg.SeparableSum((0.1,), (3,)),
        r"each part of a SeparableSum must be a hypergrad function; got float",
    ),
    #
    # ---- the solver
    "no iterations": (
        lambda: hg.ChambollePock(0),
        r"iterations must be a whole number of at least 1; got 0",
    ),
    "half an iteration": (
        lambda: hg.ChambollePock(1.5),
        r"iterations must be a whole number of at least 1; got 1.5",
    ),
    "a negative tau": (
        lambda: hg.ChambollePock(tau=-0.1),
        r"tau must be one finite number above 0; got -0.1",
    ),
    "a zero sigma": (
        lambda: hg.ChambollePock(sigma=0.0),
        r"sigma must be one finite number above 0; got 0.0",
    ),
    "an infinite sigma": (
        lambda: hg.ChambollePock(sigma=INF),
        r"sigma must be one finite number above 0; got inf",
    ),
    "one tau a row": (
        lambda: hg.ChambollePock(tau=jnp.ones(3)),
        r"tau must be one finite number above 0; got [1. 1. 1.]",
    ),
    "a negative step ratio": (
        lambda: hg.ChambollePock(step_ratio=-1.0),
        r"step_ratio must be one finite number above 0; got -1.0",
    ),
    "a zero primal scale": (
        lambda: hg.ChambollePock(primal_scale=0.0),
        r"primal_scale must be one finite number above 0; got 0.0",
    ),
    "a tolerance that is NaN": (
        lambda: hg.ChambollePock(tolerance=NAN),
        r"tolerance must be one finite number above 0; got nan",
    ),
    "a negative tolerance": (
        lambda: hg.ChambollePock(tolerance=-1e-6),
        r"tolerance must be one finite number above 0; got -1e-06",
    ),
    "an acceleration by its name": (
        lambda: hg.ChambollePock(acceleration="fast"),
        r"acceleration must be an AbstractAcceleration; got 'fast'",
    ),
    "more checkpoints than iterations": (
        lambda: solve(strategy=hg.FullUnrolling(checkpoints=1000)),
        r"checkpoints must be at most iterations; got checkpoints=1000, iterations=",
    ),
    "theta above 1": (
        lambda: hg.ChambollePock(theta=1.5),
        r"theta must lie in [0, 1]; got 1.5",
    ),
    "theta below 0": (
        lambda: hg.ChambollePock(theta=-0.5),
        r"theta must lie in [0, 1]; got -0.5",
    ),
    "theta NaN": (
        lambda: hg.ChambollePock(theta=NAN),
        r"theta must lie in [0, 1]; got nan",
    ),
    "one theta a sample": (
        lambda: hg.ChambollePock(theta=jnp.ones(2)),
        r"theta must lie in [0, 1]; got [1. 1.]",
    ),
    "steps that are too long": (
        lambda: solve(tau=1.0, sigma=1.0),  # the norm of the differences of 4 is 2 cos(pi / 8)
        r"tau * sigma * ||K||^2 must be at most 1; got 3.41 (||K|| = 1.848)",
    ),
    "steps that are a little too long": (
        lambda: solve(tau=1.0, sigma=1.1 / (2 * np.cos(np.pi / 8)) ** 2),
        r"tau * sigma * ||K||^2 must be at most 1; got 1.1 (||K|| = 1.848)",
    ),
    "an imaginary tau": (
        lambda: hg.ChambollePock(tau=1j),
        r"tau must be real; got complex128: split it",
    ),
    "True for tau": (
        lambda: hg.ChambollePock(tau=True),
        r"tau must be a number or an array of numbers; got True: pass what",
    ),
    "text for theta": (
        lambda: hg.ChambollePock(theta="1"),
        r"theta must be a number or an array of numbers; got '1': pass what",
    ),
    "None for a step ratio": (
        lambda: hg.ChambollePock(step_ratio=None),
        r"step_ratio must be a number or an array of numbers; got None: pass what",
    ),
    #
    # ---- strategies
    "no strategy": (
        lambda: solve(strategy="truncation"),
        r"strategy must be a hypergrad strategy; got 'truncation'",
    ),
    "a strategy without a name": (
        lambda: solve(strategy=Nameless()),
        r"strategy must have a name for tables; got a Nameless without one: write name",
    ),
    "a strategy that returns an array": (
        lambda: solve(strategy=NoSolution()),
        r"run of NoSolution must return a hypergrad.Solution; got DynamicJaxprTracer of shape",
    ),
    "a class for a strategy": (
        lambda: solve(strategy=hg.FullUnrolling),
        r"strategy must be a hypergrad strategy; got <class",
    ),
    "Truncation of 0": (
        lambda: hg.Truncation(k=0),
        r"k must be a whole number of at least 1; got 0",
    ),
    "Truncation of 1.5": (
        lambda: hg.Truncation(k=1.5),
        r"k must be a whole number of at least 1; got 1.5",
    ),
    "Steps of -1": (
        lambda: hg.Steps(-1),
        r"k must be a whole number of at least 1; got -1",
    ),
    "LastIterates of 0": (
        lambda: hg.LastIterates(0),
        r"k must be a whole number of at least 1; got 0",
    ),
    "LastIterates of True": (
        lambda: hg.LastIterates(True),
        r"k must be a whole number of at least 1; got True",
    ),
    "Truncation of more than there are": (
        lambda: solve(strategy=hg.Truncation(50)),
        r"k must be at most iterations; got k=50, iterations=20",
    ),
    "LastIterates of more than there are": (
        lambda: solve(strategy=hg.LimitFormula(hg.LastIterates(21))),
        r"k must be at most iterations; got k=21, iterations=20",
    ),
    "a tolerance of 0 for the adjoint": (
        lambda: hg.Tolerance(0.0),
        r"rtol must lie in (0, 1); got 0.0",
    ),
    "an adjoint that is none": (
        lambda: hg.LimitFormula("steps"),
        r"adjoint must be a way to get Delta; got 'steps'",
    ),
    "a tolerance with FullUnrolling": (
        lambda: solve(strategy=hg.FullUnrolling(), tolerance=1e-6),
        r"FullUnrolling must know the number of iterations, so it takes no tolerance; got ",
    ),
    "a tolerance with ErgodicUnrolling": (
        lambda: solve(strategy=hg.ErgodicUnrolling(), tolerance=1e-6),
        r"ErgodicUnrolling must know the number of iterations, so it takes no tolerance; got ",
    ),
    "one weight too few for the iterations": (
        lambda: solve(strategy=hg.ErgodicUnrolling(jnp.full(19, 1 / 19))),
        r"weights must hold one number an iteration; got 19 for iterations=20",
    ),
    "weights that do not add up": (
        lambda: hg.ErgodicUnrolling(jnp.ones(20)),
        r"weights must add up to 1, so that the output is an average; got 20",
    ),
    "weights that are NaN": (
        lambda: hg.ErgodicUnrolling(jnp.full(20, NAN)),
        r"weights must be finite; got 20 NaN or infinite entries out of 20",
    ),
    "a matrix of weights": (
        lambda: hg.ErgodicUnrolling(jnp.full((4, 5), 1 / 20)),
        r"weights must be one number an iteration; got shape (4, 5)",
    ),
    "a tail of 0": (
        lambda: hg.Tail(0.0),
        r"Tail.fraction must lie in (0, 1]; got 0.0",
    ),
    "a geometric rate of 1": (
        lambda: hg.Geometric(1.0),
        r"Geometric.rate must lie in (0, 1); got 1.0",
    ),
    "text for the tolerance of the adjoint": (
        lambda: hg.Tolerance("a"),
        r"rtol must lie in (0, 1); got 'a': try 1e-6",
    ),
    "None for a tail": (
        lambda: hg.Tail(None),
        r"Tail.fraction must lie in (0, 1]; got None: try 0.5",
    ),
    "text for weights": (
        lambda: hg.ErgodicUnrolling("uniform"),
        r"weights must be weights of the iterates, or one number an iteration; got 'uniform'",
    ),
    "text for a target error": (
        lambda: hg.hypergradient_to_target(
            PROBLEM, X, X, strategy=hg.LimitFormula(hg.Tolerance()), target_error="1e-6"
        ),
        r"target_error must lie in (0, 1); got '1e-6': try 1e-6",
    ),
    "text for an error": (
        lambda: hg.steps_needed(PROBLEM, X, X, error="a"),
        r"error must lie in (0, 1); got 'a': try 1e-3",
    ),
    "text for a residual": (
        lambda: hg.WarmStart(residual="a"),
        r"residual must be one finite number above 0; got 'a': pass a float",
    ),
    "True for a residual": (
        lambda: hg.WarmStart(residual=True),
        r"residual must be one finite number above 0; got True: pass a float",
    ),
    "a word for a search": (
        lambda: hg.Exact(search="matrix-free"),
        "search must be a way to search for the exact pair; got 'matrix-free': pass",
    ),
    "no iterations for a search": (
        lambda: hg.MatrixFree(iterations=0),
        "iterations must be a whole number of at least 1; got 0",
    ),
    "None for a share": (
        lambda: hg.WarmStart(share=None),
        r"share must lie in [0, 1]; got None: try 0.9",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize("name", ["problem", "x_tilde"])
def test_shapes_are_checked_under_jit_too(name):
    """Values are not there yet, shapes are."""
    arguments = {"problem": PROBLEM, "x_tilde": X, name: None}
    arguments["x_tilde"] = jnp.zeros((2, 5)) if name == "x_tilde" else jnp.zeros((2, 4))
    arguments["problem"] = lower_level(K=jnp.ones((3, 5))) if name == "problem" else PROBLEM
    with pytest.raises(ValueError, match=r"x_tilde must have shape \(\.\.\., [45]\)"):
        jax.jit(lambda problem, x_tilde: solve(x_tilde, problem).x)(**arguments)


def test_constants_are_looked_at_under_jit_too():
    """What a compiled function closes over, or builds from it: good data and bad ones."""
    one, half, weights = jnp.ones(()), jnp.asarray(0.5), jnp.full(20, 0.05)
    spoilt = with_entry(X, NAN)

    def x(weight, x_tilde):
        problem = lower_level(F=hg.L1(weight), G=hg.Quadratic(one))
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
    problem = lower_level(F=hg.Quadratic(1.0))
    solver, strategy = hg.ChambollePock(1000, tau=3.0, sigma=3.0), hg.Truncation(1)
    solved = jax.jit(lambda p: hg.solve(p, X, solver=solver, strategy=strategy).stats)(problem)
    assert np.all(np.asarray(solved.status) == hg.Status.NON_FINITE)


def test_whole_numbers_are_data_too():
    """Pixels, say: `np.uint8` or `int`. Only NaN is not a number."""
    with jax.numpy_dtype_promotion("standard"):
        solution = solve(np.array([0, 3, 3, 1]))
    np.testing.assert_array_equal(solution.x, solve(np.array([0.0, 3.0, 3.0, 1.0])).x)


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
    assert evaluate() == evaluate(solver=usual)


# ------------------------------------------------------------------------- strategies by name

UNKNOWN = "a strategy must be one of " + re.escape(", ".join(hg.STRATEGIES))
BAD_NAMES = {
    "nonsense": UNKNOWN + r".*got 'nonsense'",
    "": UNKNOWN + r".*got ''",
    "Truncation": UNKNOWN + r".*got 'Truncation'",
    "truncation:k": r"'truncation' needs a value for the option 'k'; write k=…",
    "truncation:foo=1": r"Unknown option 'foo' for 'truncation'; choose k",
    "truncaton:k=1": UNKNOWN + r".*got 'truncaton:k=1' \(perhaps truncation\): choose one",
    "ergodic:unifrom": r"Unknown option 'unifrom' for 'ergodic'; choose .* \(perhaps uniform\)",
    "truncation:k=(1,2": r"option 'k=\(1,2' in .* must be name=value",
    "truncation:k=1.5": r"k must be a whole number of at least 1; got 1\.5",
    "truncation:k=0": r"k must be a whole number of at least 1; got 0",
    "truncation:k=x": r"option 'k=x' in 'truncation:k=x' must be name=value with a Python literal",
    "truncation:k=": r"option 'k=' in 'truncation:k=' must be name=value with a Python literal",
    "truncation:k=1,k=2": r"each option once; got k twice",
    "full:k=1": r"Unknown option 'k' for 'full'; choose checkpoints",
    "piggyback:k=1": r"Unknown option 'k' for 'piggyback'; it takes none",
    "limit:foo=1": r"Unknown option 'foo' for 'limit'; choose steps, last, tolerance, ",
    "limit:steps=x": r"option 'steps=x' in 'limit:steps=x' must be name=value",
    "limit:steps=0": r"k must be a whole number of at least 1; got 0",
    "limit:steps=1.5": r"k must be a whole number of at least 1; got 1\.5",
    "limit:last=-1": r"k must be a whole number of at least 1; got -1",
    "limit:tolerance=2": r"rtol must lie in \(0, 1\); got 2",
    "limit:cgls=0": r"most must be a whole number of at least 1; got 0",
    "limit:steps=1,last=2": r"each option once; got adjoint twice",
    "limit:adjoint=3": r"adjoint must be a way to get Delta; got 3",
    "ergodic:tail=2": r"Tail\.fraction must lie in \(0, 1\]; got 2",
    "ergodic:geometric=1": r"Geometric\.rate must lie in \(0, 1\); got 1",
    "no_such_module:Class": UNKNOWN + r".*got 'no_such_module:Class'.*No module named",
    "math:NoSuchClass": UNKNOWN + r".*got 'math:NoSuchClass'.*has no attribute",
    "collections:Counter": r"'collections:Counter' must name a subclass of hypergrad",
    "math:pi": r"'math:pi' must name a subclass of hypergrad",
    "hypergrad:AbstractStrategy": r"'hypergrad:AbstractStrategy' does not fit what it names",
}


@pytest.mark.parametrize("text", BAD_NAMES)
def test_bad_strategy_name(text):
    with pytest.raises(ValueError, match=BAD_NAMES[text]):
        hg.parse_strategy(text)


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
X = jnp.arange(8.0).reshape(2, 4)
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
