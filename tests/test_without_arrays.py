"""Functions and operators that hold no array: their tangent is None, and everything has to do."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import assert_close

import hypergrad as hg
from hypergrad.strategies import AbstractStrategy


class Half(hg.AbstractFunction):
    """`||v||^2 / 2`, without a parameter."""

    def __call__(self, v):
        return jnp.sum(v**2, axis=-1) / 2

    def prox(self, z, step):
        return z / (1 + step)


SIZE = jax.ShapeDtypeStruct((4,), jnp.float64)
# `argmin_x F(K x) + G(x - x_tilde)` with K positive and diagonal, and its derivative in x_tilde.
CLOSED_FORMS = {
    "F = NonNegative": (hg.NonNegative(), hg.Quadratic(1.0), lambda x: (x > 0).astype(float)),
    "F = Zero": (hg.Zero(), hg.Quadratic(1.0), jnp.ones_like),
    "neither": (hg.NonNegative(), Half(), lambda x: (x > 0).astype(float)),
    "a part of a sum": (
        hg.SeparableSum([hg.Zero(), hg.NonNegative()], sizes=(1, 3)),
        hg.Quadratic(1.0),
        lambda x: (x > 0).astype(float).at[0].set(1.0),
    ),
}
OPERATORS = {
    "a matrix": jnp.diag(jnp.array([1.0, 2.0, 1.5, 1.0])),
    "an operator of a function": lx.FunctionLinearOperator(lambda v: 2.0 * v, SIZE),
}
POINT = jnp.array([-0.7, 0.3, -0.2, 0.9])


EVERY_DAY = [hg.LimitFormula(), hg.Exact()]
# Compiling `Exact` takes longest: every day with each operator once, without any array in F and G
# and with every such F as a part.
EXACT = [("neither", "a matrix"), ("a part of a sum", "an operator of a function")]
CASES = [
    pytest.param(name, operator, strategy, marks=[pytest.mark.slow] * (everyday is not strategy))
    for name in CLOSED_FORMS
    for operator in OPERATORS
    for everyday in [EVERY_DAY[(name, operator) in EXACT]]
    for strategy in EVERY_DAY
]


@pytest.mark.parametrize(
    ("name", "operator", "strategy"), CASES, ids=lambda v: getattr(v, "label", v)
)
def test_both_modes_are_the_closed_form(name, operator, strategy):
    F, G, slope = CLOSED_FORMS[name]
    problem, solver = hg.LowerLevel(K=OPERATORS[operator], F=F, G=G), hg.ChambollePock(100)

    def x(x_tilde):
        return hg.solve(problem, x_tilde, solver=solver, strategy=strategy).x

    v = jnp.arange(1.0, 5.0)
    _, push = jax.linearize(x, POINT)
    (pulled,) = jax.linear_transpose(push, POINT)(v)
    assert_close(push(v), slope(POINT) * v, 1e-9)
    assert_close(pulled, slope(POINT) * v, 1e-9)


PROBLEMS = {
    "F": hg.LowerLevel(K=hg.operators.differences(4), F=hg.NonNegative(), G=hg.Quadratic(1.0)),
    "G": hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Zero()),
    "both": hg.LowerLevel(K=hg.operators.differences(4), F=hg.Zero(), G=Half()),
    "K": hg.LowerLevel(
        K=hg.operators.difference_operator((2, 2)), F=hg.L1(0.1), G=hg.Quadratic(1.0)
    ),
    "all": hg.LowerLevel(K=hg.operators.difference_operator((2, 2)), F=hg.NonNegative(), G=Half()),
}
BOTH_MODES = [hg.LimitFormula(), hg.LimitFormula(hg.LinearSolve(lx.LU())), hg.Exact()]


# The closed forms below run every problem; that all strategies and modes trace takes a minute more.
@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
@pytest.mark.parametrize("strategy", [s() for s in hg.STRATEGIES.values()], ids=lambda s: s.label)
def test_every_strategy_traces(strategy: AbstractStrategy, problem: hg.LowerLevel):
    """Under reverse mode, `vmap`, and with a bound: tracing alone finds a tangent of None."""
    solver = hg.ChambollePock(3)

    def loss(problem, x):
        return jnp.sum(hg.solve(problem, x, solver=solver, strategy=strategy).x ** 2)

    rows = jnp.stack([POINT, POINT])
    by_row = jax.vmap(jax.grad(lambda x: loss(problem, x)))
    in_problem = eqx.filter_grad(loss)
    shapes = eqx.filter_eval_shape(lambda: (by_row(rows), in_problem(problem, POINT)))
    expected = jax.tree.map(jnp.shape, eqx.filter(problem, eqx.is_inexact_array))
    assert shapes[0].shape == (2, 4)
    assert jax.tree.map(jnp.shape, shapes[1]) == expected

    def bounded():
        return hg.hypergradient(
            problem, rows, rows, solver=solver, strategy=strategy, error_bound=True
        )

    assert eqx.filter_eval_shape(bounded).grad_x_tilde.shape == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
@pytest.mark.parametrize("strategy", BOTH_MODES, ids=lambda s: s.label)
def test_forward_mode_and_second_derivatives_trace(strategy, problem):
    floats, rest = eqx.partition(problem, eqx.is_inexact_array)
    solver = hg.ChambollePock(3)

    def x_hat(floats, x):
        given = eqx.combine(floats, rest)
        return hg.solve(given, x, solver=solver, strategy=strategy).x

    def loss(floats, x):
        return jnp.sum(x_hat(floats, x) ** 2)

    shapes = jax.eval_shape(
        lambda *at: (
            jax.jvp(x_hat, at, at)[1],
            jax.linearize(x_hat, *at)[1](*at),
            jax.jacfwd(x_hat, 1)(*at),
            jax.jacrev(x_hat, 1)(*at),
            jax.hessian(loss, (0, 1))(*at)[1][1],
        ),
        floats,
        POINT,
    )
    assert [s.shape for s in shapes] == [(4,), (4,), (4, 4), (4, 4), (4, 4)]


def test_what_can_be_learned_beside_them_is_trained():
    data = (np.asarray(jnp.stack([POINT, POINT])),) * 2
    history = hg.train(
        PROBLEMS["F"], data, strategy=hg.LimitFormula(), epochs=1, batch_size=2, progress=False
    )
    assert np.isfinite(history.column("train_loss")).all()
