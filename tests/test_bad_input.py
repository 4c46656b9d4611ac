"""Every bad input gives one ValueError that says the rule, and what was got."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse.linalg

import hypergrad as hg
from hypergrad.chambolle_pock import State

pytestmark = pytest.mark.usefixtures("no_type_checker")


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


def train(data: Any = (X, X), problem: Any = PROBLEM, **options) -> hg.History:
    usual = {"strategy": hg.Truncation(1), "epochs": 1, "progress": False}
    return hg.train(problem, data, **{**usual, **options})


def to_target(error: Any) -> hg.Hypergradient:
    strategy = hg.LimitFormula(hg.Tolerance())
    return hg.hypergradient_to_target(PROBLEM, X, X, strategy=strategy, target_error=error)


def evaluate(x_tilde: Any = X, x_true: Any = X, **options) -> float:
    return hg.evaluate(PROBLEM, x_tilde, x_true, strategy=hg.Truncation(1), **options)


def compare(strategies: Any, problem: Any = PROBLEM, **options) -> hg.Comparison:
    return hg.compare(problem, X, X, strategies=strategies, repeats=1, **options)


def a_sample(x: jax.Array, x_true: jax.Array) -> jax.Array:
    """What people write first: one number a sample."""
    return jnp.sum((x - x_true) ** 2, axis=-1)


def backwards(shape: tuple[int, ...] = (N,)) -> lx.FunctionLinearOperator:
    """An operator without a number that could be learned."""
    return lx.FunctionLinearOperator(lambda v: v[::-1], jax.ShapeDtypeStruct(shape, X.dtype))


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


BAD: list[tuple[Callable[[], Any], str]] = [
    # what is called, and how its error begins: the rule, then what was received
    # data
    (lambda: solve(jnp.zeros((2, 5))),
     "x_tilde must have shape (..., 4), the columns of K last; got (2, 5)"),
    (lambda: solve(jnp.array(1.0)),
     "x_tilde must have shape (..., 4), the columns of K last; got ()"),
    (lambda: solve(X.T), "x_tilde must have shape (..., 4), the columns of K last; got (4, 2)"),
    (lambda: solve(jnp.zeros((0, 4))), "x_tilde must hold at least one sample; got shape (0, 4)"),
    (lambda: solve(with_entry(X, NAN)),
     "x_tilde must be finite; got 1 NaN or infinite entries out of 8"),
    (lambda: solve(with_entry(X, -INF)),
     "x_tilde must be finite; got 1 NaN or infinite entries out of 8"),
    (lambda: solve(np.full((2, 4), NAN)),
     "x_tilde must be finite; got 8 NaN or infinite entries out of 8"),
    (lambda: hypergradient(jnp.zeros((2, 3))),
     "x_true must have the shape of x_tilde, (2, 4); got (2, 3)"),
    (lambda: hypergradient(jnp.zeros(4)),
     "x_true must have the shape of x_tilde, (2, 4); got (4,)"),
    (lambda: hypergradient(with_entry(X, NAN)),
     "x_true must be finite; got 1 NaN or infinite entries out of 8"),
    (lambda: hypergradient(with_entry(X, INF)),
     "x_true must be finite; got 1 NaN or infinite entries out of 8"),
    (lambda: solve(init=zero_state((3, 4), (3, 4), (3, 3))),
     "init must have shapes ((2, 4), (2, 4), (2, 3)) (r, r_bar, y); got ((3, 4), (3, 4), (3, "),
    (lambda: solve(init=zero_state((2, 4), (2, 4), (2, 5))),
     "init must have shapes ((2, 4), (2, 4), (2, 3)) (r, r_bar, y); got ((2, 4), (2, 4), (2, 5"),
    (lambda: solve(X.astype(complex)), "x_tilde must be real; got complex128: split it"),
    (lambda: hypergradient(X.astype(complex)), "x_true must be real; got complex128: split it"),
    (lambda: solve("x.npy"),
     "x_tilde must be a number or an array of numbers; got 'x.npy': pass what"),
    (lambda: hg.solve(PROBLEM, None, strategy=hg.Truncation(1)),
     "x_tilde must be a number or an array of numbers; got None: pass what"),
    (lambda: hypergradient([[0.0, 1.0], [1.0]]),
     "x_true must be a number or an array of numbers; got list: pass what"),
    (lambda: solve(init=solve()), "init must be a hypergrad.State; got Solution: pass the .state"),
    (lambda: solve(init=hypergradient()),
     "init must be a hypergrad.State; got Hypergradient: pass the .state"),
    (lambda: evaluate(X, X[:1]),
     "x_true must have the shape of x_tilde, (2, 4); got (1, 4): one true"),
    (lambda: evaluate(X, X[0]),
     "x_true must have the shape of x_tilde, (2, 4); got (4,): one true"),
    (lambda: evaluate(X, 0.0), "x_true must have the shape of x_tilde, (2, 4); got (): one true"),
    (lambda: evaluate(X[0], X[0]),
     "x_tilde must have shape (samples, 4); got (4,): one sample is x_tilde[None]"),
    (lambda: evaluate(piece=0), "piece must be a whole number of at least 1; got 0"),
    (lambda: train((X, X.astype(complex))),
     "x_true of data must be real; got complex128: split it"),
    # what is handed over
    (lambda: solve(problem=K),
     "problem must be a hypergrad.LowerLevel; got ndarray of shape (3, 4): pass hg.Low"),
    (lambda: train(problem=K),
     "problem must be a hypergrad.LowerLevel; got ndarray of shape (3, 4): pass hg.Low"),
    (lambda: hypergradient(solver=100),
     "solver must be a hypergrad.ChambollePock; got 100: pass for example hg.Cham"),
    (lambda: train(solver=100),
     "solver must be a hypergrad.ChambollePock; got 100: pass for example hg.Cham"),
    (lambda: hg.contraction_factor(PROBLEM, X, solver=hg.ChambollePock),
     "solver must be a hypergrad.ChambollePock; got <class"),
    (lambda: hypergradient(loss="mse"),
     "loss must be a function loss(x, x_true); got 'mse': leave it out"),
    (lambda: hypergradient(loss=a_sample),
     "loss must return one float for the whole batch; got shape (2,) of float64 for x of"),
    (lambda: train(loss=a_sample),
     "loss must return one float for the whole batch; got shape (2,) of float64 for x of"),
    (lambda: evaluate(loss=a_sample),
     "loss must return one float for the whole batch; got shape (2,) of float64 for x of"),
    (lambda: compare([hg.Exact()], loss=a_sample),
     "loss must return one float for the whole batch; got shape (2,) of float64 for x of"),
    (lambda: hypergradient(loss=lambda x, x_true: (jnp.sum(x), x_true)),
     "loss must return one number; got tuple: return its mean alone"),
    (lambda: hypergradient(loss=lambda x, x_true: 1),
     "loss must return one float for the whole batch; got shape () of int64 for x of"),
    (lambda: hypergradient(throw="no"), "throw must be True or False; got 'no': try throw=True"),
    (lambda: hg.solve(PROBLEM, X, strategy=hg.Truncation(1), throw="no"),
     "throw must be True or False; got 'no': try throw=True"),
    (lambda: hypergradient(error_bound=1),
     "error_bound must be True or False; got 1: try error_bound=True"),
    (lambda: hg.solve(PROBLEM, X, strategy=hg.Exact(), trace=True),
     "trace=True must have a strategy that takes the solver's iterations; got exact:most=150, "),
    (lambda: hg.solve(PROBLEM, X, strategy=hg.Truncation(1), trace="no"),
     "trace must be True or False; got 'no': try trace=True"),
    (lambda: compare(["full"]),
     "each of strategies must be a hypergrad strategy; got 'full': use hg.parse_str"),
    (lambda: compare(hg.Truncation(1)),
     "strategies must be a list of strategies; got Truncation: put it in brackets"),
    (lambda: compare("full"),
     "strategies must be a list of strategies; got 'full': put it in brackets"),
    (lambda: compare([]), "strategies must name at least one; got none"),
    (lambda: compare([hg.Truncation(1)], lower_level(K=backwards())),
     "parameters must select at least one float leaf of the problem; got none: try lambda p: p"),
    (lambda: hypergradient(parameters=lambda p: 2 * p.K),
     "parameters must be a function that picks parts of the problem; got function, which"),
    (lambda: hypergradient(parameters="K"),
     "parameters must be a function that picks parts of the problem; got 'K', which does"),
    (lambda: hypergradient(parameters=lambda p: p.m),
     "parameters must be a function that picks parts of the problem; got function, which"),
    (lambda: train(optimizer="adam"),
     "optimizer must be one of optax; got 'adam': pass for example optax.adam(1e-3)"),
    (lambda: train(optimizer=1e-3),
     "optimizer must be one of optax; got 0.001: pass for example optax.adam(1e-3)"),
    (lambda: train(trainable=lambda p: p.m),
     "trainable must be a function that picks parts of the problem; got function, which"),
    (lambda: train(trainable=lambda p: p.K * 2),
     "trainable must be a function that picks parts of the problem; got function, which"),
    (lambda: train(trainable="K"),
     "trainable must be a function that picks parts of the problem; got 'K', which does"),
    # the operator
    (lambda: lower_level(K=jnp.ones(4)),
     "K must be an (m, n) matrix or a lineax operator; got shape (4,)"),
    (lambda: lower_level(K=jnp.ones((2, 3, 4))),
     "K must be an (m, n) matrix or a lineax operator; got shape (2, 3, 4)"),
    (lambda: lower_level(K=jnp.ones((0, 4))),
     "K must have at least one row and column; got (0, 4)"),
    (lambda: lower_level(K=jnp.zeros((3, 4))),
     "K must not be zero (its norm sets the step sizes); got only zeros"),
    (lambda: lower_level(K=lx.MatrixLinearOperator(jnp.zeros((3, 4)))),
     "K must not be zero (its norm sets the step sizes); got only zeros"),
    (lambda: lower_level(K=with_entry(K, NAN)),
     "K must be finite; got 1 NaN or infinite entries out of 12"),
    (lambda: lower_level(K=lx.MatrixLinearOperator(with_entry(K, INF))),
     "K must be finite; got 1 NaN or infinite entries out of 12"),
    (lambda: lower_level(K=scipy.sparse.csr_matrix(K)),
     "K must be an (m, n) matrix or a lineax operator; got csr_matrix of shape (3, 4): pass"),
    (lambda: lower_level(K=scipy.sparse.linalg.aslinearoperator(K)),
     "K must be an (m, n) matrix or a lineax operator; got MatrixLinearOperator of shape"),
    (lambda: lower_level(K=K * 1j), "K must be real; got complex128: split it"),
    (lambda: lower_level(K=lx.MatrixLinearOperator(jnp.asarray(K * 1j))),
     "K must be real; got an operator of complex128: split it"),
    (lambda: lower_level(K=jnp.asarray(K, jnp.float16)),
     "K must have single or double precision; got float16: cast it to float32"),
    (lambda: lower_level(K=backwards((2, N))),
     "K must take vectors (n,) to vectors (m,); got in_structure"),
    (of_two_dtypes, "K has fixed dtype float32 and cannot be cast; got float64: cast"),
    (lambda: train(problem=lower_level(K=backwards()), trainable=lambda p: p.F.weight, devices=1),
     "K must be a matrix, a hypergrad.operators.AbstractOperator or made of matrices to be use"),
    # the functions
    (lambda: lower_level(F=0.1), "F must be a hypergrad function; got float"),
    (lambda: lower_level(G=hg.Quadratic), "G must be a hypergrad function; got "),
    (lambda: lower_level(F=hg.L1(jnp.ones(4))),
     "L1.weight must be a number or have shape (3,); got shape (4,)"),
    (lambda: lower_level(F=hg.L1(jnp.ones((3, 1)))),
     "L1.weight must be a number or have shape (3,); got shape (3, 1)"),
    (lambda: lower_level(F=hg.L1(jnp.ones(2))),
     "L1.weight must be a number or have shape (3,); got shape (2,): give one entry for each of t"),
    (lambda: lower_level(F=hg.L1(jnp.ones(0))), "L1.weight must be a number or have shape (3,)"),
    (lambda: lower_level(G=hg.Box(jnp.ones(2))),
     "Box.radius must be a number or have shape (4,); got shape (2,)"),
    (lambda: lower_level(G=hg.Box(jnp.ones(3))),
     "Box.radius must be a number or have shape (4,); got shape (3,)"),
    (lambda: lower_level(G=hg.Quadratic(1.0, jnp.zeros(5))),
     "Quadratic.center must be a number or have shape (4,); got shape (5,)"),
    (lambda: lower_level(F=hg.Huber(1.0, jnp.ones(4))),
     "Huber.smoothing must be a number or have shape (3,); got shape (4,)"),
    (lambda: hg.GroupL1(jnp.ones(2), shape=(2, 2)),
     "GroupL1.weight must be one number; got shape (2,)"),
    (lambda: hg.L2Ball(jnp.ones(2)), "L2Ball.radius must be one number; got shape (2,)"),
    (lambda: lower_level(F=hg.GroupL1(0.1, shape=(2, 2))),
     "GroupL1.shape must hold 3 coordinates; got (2, 2), which holds 4"),
    (lambda: hg.GroupL1(0.1, shape=(2, 2), axis=2),
     "GroupL1.axis must be an axis of shape (2, 2); got 2"),
    (lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (3,)),
     "SeparableSum must have one size for each part and at least one part; got 2 parts and 1 "),
    (lambda: hg.SeparableSum((), ()),
     "SeparableSum must have one size for each part and at least one part; got 0 parts and 0 "),
    (lambda: lower_level(F=hg.SeparableSum((hg.L1(0.1), hg.Zero()), (1, 1))),
     "SeparableSum.sizes must add up to 3; got (1, 1), which add up to 2"),
    (lambda: hg.SeparableSum((hg.L1(jnp.ones(2)), hg.Zero()), (1, 2)),
     "L1.weight must be a number or have shape (1,); got shape (2,)"),
    (lambda: lower_level(F=hg.ConvexPotential(jnp.ones((2, 1)), (1.0,))),
     "ConvexPotential.slopes must have one row for each of several blocks of equal size that make"),
    (lambda: hg.ConvexPotential(jnp.ones(2), (1.0, 2.0)),
     "ConvexPotential.slopes must have shape (groups, 2), one slope below each knot; got shape (2"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 2)), (1.0,)),
     "ConvexPotential.slopes must have shape (groups, 1), one slope below each knot; got shape (1"),
    (lambda: hg.ConvexPotential(jnp.ones((2, 1)), (1.0,), jnp.ones(3)),
     "ConvexPotential.jump must be a number or have shape (2,); got shape (3,)"),
    (lambda: hg.ConvexPotential(-jnp.ones((1, 1)), (1.0,)),
     "ConvexPotential.slopes must be non-negative; got -1"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 1)), (1.0,), -1.0),
     "ConvexPotential.jump must be non-negative; got -1"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 2)), (2.0, 1.0)),
     "ConvexPotential.knots must be positive and increase; got (2.0, 1.0)"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 2)), (0.0, 1.0)),
     "ConvexPotential.knots must be positive and increase; got (0.0, 1.0)"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 1)), (NAN,)),
     "ConvexPotential.knots must be positive and increase; got (nan,)"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 1)), ((1.0,),)),
     "ConvexPotential.knots must be positive and increase; got shape (1, 1)"),
    (lambda: hg.ConvexPotential(jnp.ones((1, 1)), "1"),
     "ConvexPotential.knots must be a number or an array of numbers; got '1'"),
    (lambda: hg.ConvexPotential.from_huber(0.1, (1.0, 2.0), (1.0, 2.0)),
     "smoothing must be one finite number above 0; got tuple"),
    (lambda: hg.L1(-0.1), "L1.weight must be non-negative; got -0.1"),
    (lambda: hg.L1(jnp.array([0.1, -0.2, 0.3])), "L1.weight must be non-negative; got -0.2"),
    (lambda: hg.L1(NAN), "L1.weight must be finite; got 1 NaN or infinite entries out of 1"),
    (lambda: hg.GroupL1(INF, shape=(1, 3)),
     "GroupL1.weight must be finite; got 1 NaN or infinite entries out of 1"),
    (lambda: hg.Quadratic(-0.5), "Quadratic.weight must be non-negative; got -0.5"),
    (lambda: hg.Quadratic(1.0, jnp.array([0.0, NAN])),
     "Quadratic.center must be finite; got 1 NaN or infinite entries out of 2"),
    (lambda: hg.Box(0.0), "Box.radius must be positive; got 0"),
    (lambda: hg.L2Ball(-1.0), "L2Ball.radius must be positive; got -1"),
    (lambda: hg.ElasticNet(0.1, -1.0), "ElasticNet.ridge must be positive; got -1"),
    (lambda: hg.Huber(0.1, 0.0), "Huber.smoothing must be positive; got 0"),
    (lambda: hg.BoxQuadratic(0.1, -1.0), "BoxQuadratic.weight must be positive; got -1"),
    (lambda: hg.L1(1 + 2j), "L1.weight must be real; got complex128: split it"),
    (lambda: hg.Huber("0.1", 1.0),
     "Huber.weight must be a number or an array of numbers; got '0.1': pass what"),
    (lambda: hg.Box(None),
     "Box.radius must be a number or an array of numbers; got None: pass what"),
    (lambda: hg.GroupL1(0.1, shape=(1.5, 2)),
     "GroupL1.shape[0] must be a whole number of at least 1; got 1.5"),
    (lambda: hg.GroupL1(0.1, shape=3),
     "GroupL1.shape must be a tuple of whole numbers; got 3: pass for example (2, 3)"),
    (lambda: hg.GroupL1(0.1, shape=(2, 2), axis=0.5),
     "GroupL1.axis must be an axis of shape (2, 2); got 0.5"),
    (lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (-1, 4)),
     "SeparableSum.sizes[0] must be a whole number of at least 1; got -1"),
    (lambda: hg.SeparableSum((hg.L1(0.1), hg.Zero()), (1.5, 1.5)),
     "SeparableSum.sizes[0] must be a whole number of at least 1; got 1.5"),
    (lambda: hg.SeparableSum((hg.L1(0.1),), 3),
     "SeparableSum.sizes must be a tuple of whole numbers; got 3: pass for example (2, 3)"),
    (lambda: hg.SeparableSum(hg.L1(0.1), (3,)),
     "SeparableSum.parts must be a tuple of functions; got L1: put it in brackets"),
    (lambda: hg.SeparableSum((0.1,), (3,)),
     "each part of a SeparableSum must be a hypergrad function; got float"),
    # the solver
    (lambda: hg.ChambollePock(0), "iterations must be a whole number of at least 1; got 0"),
    (lambda: hg.ChambollePock(1.5), "iterations must be a whole number of at least 1; got 1.5"),
    (lambda: hg.ChambollePock(tau=-0.1), "tau must be one finite number above 0; got -0.1"),
    (lambda: hg.ChambollePock(sigma=0.0), "sigma must be one finite number above 0; got 0.0"),
    (lambda: hg.ChambollePock(sigma=INF), "sigma must be one finite number above 0; got inf"),
    (lambda: hg.ChambollePock(tau=jnp.ones(3)),
     "tau must be one finite number above 0; got [1. 1. 1.]"),
    (lambda: hg.ChambollePock(step_ratio=-1.0),
     "step_ratio must be one finite number above 0; got -1.0"),
    (lambda: hg.ChambollePock(primal_scale=0.0),
     "primal_scale must be one finite number above 0; got 0.0"),
    (lambda: hg.ChambollePock(tolerance=NAN),
     "tolerance must be one finite number above 0; got nan"),
    (lambda: hg.ChambollePock(tolerance=-1e-6),
     "tolerance must be one finite number above 0; got -1e-06"),
    (lambda: hg.ChambollePock(acceleration="fast"),
     "acceleration must be an AbstractAcceleration; got 'fast'"),
    (lambda: solve(strategy=hg.FullUnrolling(checkpoints=1000)),
     "checkpoints must be at most iterations; got checkpoints=1000, iterations="),
    (lambda: hg.ChambollePock(theta=1.5), "theta must lie in [0, 1]; got 1.5"),
    (lambda: hg.ChambollePock(theta=-0.5), "theta must lie in [0, 1]; got -0.5"),
    (lambda: hg.ChambollePock(theta=NAN), "theta must lie in [0, 1]; got nan"),
    (lambda: hg.ChambollePock(theta=jnp.ones(2)), "theta must lie in [0, 1]; got [1. 1.]"),
    (lambda: solve(tau=1.0, sigma=1.0),
     "tau * sigma * ||K||^2 must be at most 1; got 3.41 (||K|| = 1.848)"),
    (lambda: solve(tau=1.0, sigma=1.1 / (2 * np.cos(np.pi / 8)) ** 2),
     "tau * sigma * ||K||^2 must be at most 1; got 1.1 (||K|| = 1.848)"),
    (lambda: hg.ChambollePock(tau=1j), "tau must be real; got complex128: split it"),
    (lambda: hg.ChambollePock(tau=True),
     "tau must be a number or an array of numbers; got True: pass what"),
    (lambda: hg.ChambollePock(theta="1"),
     "theta must be a number or an array of numbers; got '1': pass what"),
    (lambda: hg.ChambollePock(step_ratio=None),
     "step_ratio must be a number or an array of numbers; got None: pass what"),
    # strategies
    (lambda: solve(strategy="truncation"),
     "strategy must be a hypergrad strategy; got 'truncation'"),
    (lambda: solve(strategy=Nameless()),
     "strategy must have a name for tables; got a Nameless without one: write name"),
    (lambda: solve(strategy=NoSolution()),
     "run of NoSolution must return a hypergrad.Solution; got DynamicJaxprTracer of shape"),
    (lambda: solve(strategy=hg.FullUnrolling), "strategy must be a hypergrad strategy; got <class"),
    (lambda: hg.Truncation(k=0), "k must be a whole number of at least 1; got 0"),
    (lambda: hg.Truncation(k=1.5), "k must be a whole number of at least 1; got 1.5"),
    (lambda: hg.Steps(-1), "k must be a whole number of at least 1; got -1"),
    (lambda: hg.LastIterates(0), "k must be a whole number of at least 1; got 0"),
    (lambda: hg.LastIterates(True), "k must be a whole number of at least 1; got True"),
    (lambda: solve(strategy=hg.Truncation(50)),
     "k must be at most iterations; got k=50, iterations=20"),
    (lambda: solve(strategy=hg.LimitFormula(hg.LastIterates(21))),
     "k must be at most iterations; got k=21, iterations=20"),
    (lambda: hg.Tolerance(0.0), "rtol must lie in (0, 1); got 0.0"),
    (lambda: hg.LimitFormula("steps"), "adjoint must be a way to get Delta; got 'steps'"),
    (lambda: solve(strategy=hg.FullUnrolling(), tolerance=1e-6),
     "FullUnrolling must know the number of iterations, so it takes no tolerance; got "),
    (lambda: solve(strategy=hg.ErgodicUnrolling(), tolerance=1e-6),
     "ErgodicUnrolling must know the number of iterations, so it takes no tolerance; got "),
    (lambda: solve(strategy=hg.ErgodicUnrolling(jnp.full(19, 1 / 19))),
     "weights must hold one number an iteration; got 19 for iterations=20"),
    (lambda: hg.ErgodicUnrolling(jnp.ones(20)),
     "weights must add up to 1, so that the output is an average; got 20"),
    (lambda: hg.ErgodicUnrolling(jnp.full(20, NAN)),
     "weights must be finite; got 20 NaN or infinite entries out of 20"),
    (lambda: hg.ErgodicUnrolling(jnp.full((4, 5), 1 / 20)),
     "weights must be one number an iteration; got shape (4, 5)"),
    (lambda: hg.Tail(0.0), "Tail.fraction must lie in (0, 1]; got 0.0"),
    (lambda: hg.Geometric(1.0), "Geometric.rate must lie in (0, 1); got 1.0"),
    (lambda: hg.Tolerance("a"), "rtol must lie in (0, 1); got 'a': try 1e-6"),
    (lambda: hg.Tail(None), "Tail.fraction must lie in (0, 1]; got None: try 0.5"),
    (lambda: hg.ErgodicUnrolling("uniform"),
     "weights must be weights of the iterates, or one number an iteration; got 'uniform'"),
    (lambda: to_target("1e-6"), "target_error must lie in (0, 1); got '1e-6': try 1e-6"),
    (lambda: hg.steps_needed(PROBLEM, X, X, error="a"),
     "error must lie in (0, 1); got 'a': try 1e-3"),
    (lambda: hg.WarmStart(residual="a"),
     "residual must be one finite number above 0; got 'a': pass a float"),
    (lambda: hg.WarmStart(residual=True),
     "residual must be one finite number above 0; got True: pass a float"),
    (lambda: hg.Exact(search="matrix-free"),
     "search must be a way to search for the exact pair; got 'matrix-free': pass"),
    (lambda: hg.MatrixFree(iterations=0), "iterations must be a whole number of at least 1; got 0"),
    (lambda: hg.WarmStart(share=None), "share must lie in [0, 1]; got None: try 0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


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
