"""Exact: against solvers that are no iteration, its certificates, its minimum norm."""

from __future__ import annotations

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_data, relative_error
from jaxtyping import Array
from limits import (
    LIMITS,
    assert_is_gradient,
    free_direction,
    no_fidelity,
    solved_and_differentiated,
    standard_normal,
)
from scipy.optimize import minimize

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.problem import operators
from hypergrad.workbench import data

WEIGHT = 0.15


def _statuses(h: hg.Hypergradient) -> list[Status]:
    return [Status(int(code)) for code in np.ravel(h.solution.stats.status)]


def _exact(problem, x_tilde, x_true, **options) -> hg.Hypergradient:
    return hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact(), **options)


# ----------------------------------------------------------------------------- regular problems


@pytest.mark.parametrize("name", LIMITS)
def test_exact_is_what_central_differences_of_the_solved_problem_say(name):
    """Its own step sizes: nothing is known of the problem but itself."""
    limit = LIMITS[name]
    x, expected = solved_and_differentiated(name)
    h = _exact(limit.problem(), *limit.data())
    assert _statuses(h) == [Status.CONVERGED] * 2
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    assert np.max(h.solution.stats.residual) <= 1e-12
    # Where the map is curved (the groups) the last Newton step leaves the root of its precision.
    assert relative_error(h.solution.x, x) <= (1e-11 if name.startswith("Group") else 1e-13)
    assert_is_gradient(h, expected)


def test_neither_function_has_to_be_separable():
    """Each sample then has bases of its own on either side of K. Long unrolling is the oracle."""
    K, data = np.eye(4, 5) + 0.2 * standard_normal(7, 4, 4, 5), random_data(3, 5)
    problem = hg.LowerLevel(K, hg.GroupL1(0.4, shape=(2, 2)), hg.L2Ball(0.5))
    solver = hg.ChambollePock(20_000)
    unrolled = hg.hypergradient(problem, *data, solver=solver, strategy=hg.FullUnrolling())
    assert np.max(unrolled.solution.stats.residual) <= 1e-13
    h = _exact(problem, *data)
    for leaf, other in zip(jax.tree.leaves(h.grad), jax.tree.leaves(unrolled.grad), strict=True):
        assert np.linalg.norm(leaf - other) <= 1e-9 * (1 + np.linalg.norm(other))
    assert _statuses(h) == [Status.CONVERGED] * 3
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    # On the sphere, and groups on both sides of their kink.
    np.testing.assert_allclose(np.linalg.norm(h.solution.x - data[0], axis=1), 0.5, rtol=1e-12)
    at_0 = np.linalg.norm(np.reshape(h.solution.x @ K.T, (3, 2, 2)), axis=1) <= 1e-12
    assert set(at_0.ravel()) == {True, False}


def test_exact_has_a_closed_form_to_agree_with():
    """`K = I`: soft thresholding of x_tilde, whose derivative in the weight is minus a sign."""
    x_tilde = np.array([[0.5, -0.05, -2.0, 0.1, 3.0], [0.0, 0.3, 0.01, -0.4, 0.2]])
    problem = hg.LowerLevel(np.eye(5), hg.L1(np.full(5, 0.2)), hg.Quadratic(2.0))
    h = _exact(problem, x_tilde, np.zeros((2, 5)))
    x = np.sign(x_tilde) * np.maximum(np.abs(x_tilde) - 0.1, 0.0)
    assert relative_error(h.solution.x, x) <= 1e-15
    # One coordinate of the first sample lies exactly at the threshold 0.1.
    assert _statuses(h) == [Status.NONDIFFERENTIABLE, Status.CONVERGED]
    assert h.solution.stats.margin[0] <= 1e-9
    moved = -np.sign(x_tilde) * (np.abs(x_tilde) > 0.1) / 2.0
    assert relative_error(h.grad.F.weight, np.sum(x * moved, 0) / 2) <= 1e-9


# Problems of a few shapes, since each shape is a compilation: with rows to spare or without.
SAMPLES, N = 20, 5
WIDE, TALL = 3, 8
Q, BOX_Q = hg.Quadratic(1.1), hg.BoxQuadratic(0.3, 1.1)
SHAPES = [
    pytest.param(WIDE, Q, id="wide-Q"),
    pytest.param(TALL, Q, id="tall-Q"),
    pytest.param(TALL, BOX_Q, id="tall-BoxQ"),
    pytest.param(WIDE, BOX_Q, id="wide-BoxQ", marks=pytest.mark.slow),
    pytest.param(N, Q, id="square-Q", marks=pytest.mark.slow),
    pytest.param(N, BOX_Q, id="square-BoxQ", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("m", "G"), SHAPES)
def test_every_shape_of_K_is_certified(m, G):
    K = np.random.default_rng(m).standard_normal((m, N)) / 3
    h = _exact(hg.LowerLevel(K, hg.L1(0.2), G), *random_data(SAMPLES, N))
    assert np.max(h.solution.stats.residual) <= 1e-12
    assert np.max(np.abs(h.solution.stats.gap)) <= 1e-12
    assert set(_statuses(h)) <= {Status.CONVERGED, Status.NONDIFFERENTIABLE}
    x, y = np.asarray(h.solution.x), np.asarray(h.solution.y)
    free_D = np.abs(y) < 0.2 * (1 - 1e-12)
    free_P = np.ones_like(x, bool)
    if isinstance(G, hg.BoxQuadratic):
        free_P = np.abs(x - random_data(SAMPLES, N)[0]) < 0.3 * (1 - 1e-12)
    expected = [
        np.linalg.matrix_rank(K * rows[:, None] * columns)
        for rows, columns in zip(free_D, free_P, strict=True)
    ]
    assert np.asarray(h.solution.stats.rank).tolist() == expected
    assert np.max(np.abs((K @ x.T).T[free_D])) <= 1e-12


def test_rows_that_differ_only_where_x_is_held_count_once():
    """The second coordinate is held at the end of the box; on the first, both rows are the same."""
    K = np.array([[1.0, 0.0], [1.0, 3.0]])
    x_tilde = np.array([[0.28, 0.3]])
    h = _exact(hg.LowerLevel(K, hg.L1(1.0), BOX_Q), x_tilde, np.ones((1, 2)))
    np.testing.assert_allclose(h.solution.x, [[0.0, 0.0]], atol=1e-14)
    np.testing.assert_allclose(h.solution.y, [[0.154, 0.154]], atol=1e-12)  # free, the shortest
    assert h.solution.stats.rank.tolist() == [np.linalg.matrix_rank(K[:, :1])]


# --------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(("weight", "mu"), [(1e6, 1.0), (1e10, 1.0), (0.1, 1e-8)])
def test_curvature_is_no_kernel_however_the_solver_is_scaled(weight, mu):
    """G is strongly convex and K of full row rank: x is unique, and `K x = 0` for a large weight.

    Then x is the projection of `x_tilde` onto the kernel of K; its gradient is known.
    """
    rng = np.random.default_rng(0)
    K, (x_tilde, x_true) = rng.standard_normal((WIDE, N)) / 3, rng.standard_normal((2, SAMPLES, N))
    h = _exact(hg.LowerLevel(K, hg.L1(weight), hg.Quadratic(mu)), x_tilde, x_true)
    assert set(_statuses(h)) == {Status.CONVERGED}
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    if weight > 1:
        pinv = np.linalg.pinv(K)
        x = x_tilde - x_tilde @ (pinv @ K).T
        assert relative_error(h.solution.x, x) <= 1e-12
        g = (x - x_true) / SAMPLES
        # d(-K^+ K x_tilde): the projector moves by -(P dK^T K^+T + K^+ dK P), with P onto ker K.
        P = np.eye(N) - pinv @ K
        expected = -pinv.T @ (g.T @ x_tilde + x_tilde.T @ g) @ P
        assert relative_error(h.grad.K, expected) <= 1e-11


@pytest.mark.parametrize("step_ratio", [1.0, 100.0])
@pytest.mark.parametrize("weight", [1.3, 50.0, 1000.0])
def test_single_precision_pixels_are_certified(weight, step_ratio):
    """Grey values up to 255 in float32, where a short step once looked like a kernel."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 16)).astype(np.float32)
    ramp = 10 * np.cumsum(np.ones((4, 16), np.float32), axis=1)

    def gradient(dtype):
        K = operators.differences(16).astype(dtype)
        problem = hg.LowerLevel(K, hg.L1(dtype(weight)), hg.Quadratic(dtype(1.0)))
        solver = hg.ChambollePock(step_ratio=step_ratio)
        return _exact(problem, pixels.astype(dtype), ramp.astype(dtype), solver=solver)

    h, double = gradient(np.float32), gradient(np.float64)
    assert h.grad.K.dtype == jnp.float32
    # Whole numbers meet: with weight 50 one sample sits on a kink, and single precision has to call
    # whatever is near to one a kink.
    assert set(_statuses(h)) <= {Status.CONVERGED, Status.NONDIFFERENTIABLE}
    assert (Status.NONDIFFERENTIABLE in _statuses(double)) == (weight == 50.0)
    on_kink = np.array(_statuses(double)) == Status.NONDIFFERENTIABLE
    assert np.all(np.array(_statuses(h))[on_kink] == Status.NONDIFFERENTIABLE)
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    if weight != 50.0:
        assert relative_error(h.grad.K, double.grad.K) <= 1e-5


@pytest.mark.parametrize("strategy", [hg.Exact(), hg.Truncation(1), hg.LimitFormula()])
def test_what_cannot_be_resolved_is_not_said_to_be_converged(strategy):
    """`r` is 0.1, and the distance of two numbers near x_tilde is 1e144."""
    problem = hg.LowerLevel(np.eye(5), hg.L1(np.full(5, 0.1)), hg.Quadratic(1.0))
    x_tilde, x_true = np.full((2, 5), 1e160), np.zeros((2, 5))
    h = hg.hypergradient(problem, x_tilde, x_true, strategy=strategy)
    assert set(_statuses(h)) == {Status.ROUNDING}


def test_a_solution_that_is_held_at_0_is_differentiable():
    """More active rows than columns: the dual is not unique, but x = 0 whatever moves a little."""
    rng = np.random.default_rng(1)
    K, (x_tilde, x_true) = rng.standard_normal((TALL, N)) / 3, rng.standard_normal((2, SAMPLES, N))
    h = _exact(hg.LowerLevel(K, hg.L1(100.0), hg.Quadratic(1.0)), x_tilde, x_true)
    assert set(_statuses(h)) == {Status.CONVERGED}
    assert np.max(np.abs(h.solution.x)) <= 1e-13
    assert np.linalg.norm(h.grad.K) <= 1e-13


# ------------------------------------------------------------------------------ natural patches


@functools.cache
def _patches(count: int) -> data.Samples:
    return data.noisy_patches(data.PHOTOGRAPHS_TRAIN, count, seed=0)


def _dct() -> Array:
    return operators.dct2((8, 8), constant=False)


def _random() -> Array:
    return operators.random(128, 64, key=jax.random.key(0))


def _solve_for_signs(K, weight, x_tilde, signs) -> np.ndarray:
    """`L1(weight)`, `Quadratic(1)`: signs of K x tried (0 where active), proved by optimality."""
    active = signs == 0
    free = x_tilde - weight * K.T @ signs
    y = np.linalg.lstsq(K[active].T, free, rcond=None)[0]
    x = free - K[active].T @ y
    assert np.all(np.sign(K[~active] @ x) == signs[~active])
    assert np.max(np.abs(K[active] @ x)) <= 1e-12
    assert np.max(np.abs(y)) <= weight
    return x


# The DCT is the easier one of the two.
PATCH_OPERATORS = [
    pytest.param(_dct, id="dct", marks=pytest.mark.slow),
    pytest.param(_random, id="random"),
]


@pytest.mark.parametrize("K", PATCH_OPERATORS)
def test_natural_patches_are_certified_and_their_gradient_is_that_of_an_active_set_method(K):
    """Central differences along random directions of K."""
    samples = _patches(15)
    problem = hg.LowerLevel(K(), hg.L1(WEIGHT), hg.Quadratic(1.0))
    solver = hg.ChambollePock(step_ratio=100.0)
    h = _exact(problem, samples.x_tilde, samples.x_true, solver=solver)
    assert np.max(h.solution.stats.residual) <= 1e-12
    # Away from kinks, or the differences would cross one.
    stats = h.solution.stats
    smooth = (np.asarray(stats.margin) > 1e-4) & (np.asarray(stats.status) == Status.CONVERGED)
    chosen = np.flatnonzero(smooth)[:3]
    assert len(chosen) == 3
    # Five times each: the same mean, and the same program.
    x_tilde, x_true = (np.tile(a[chosen], (5, 1)) for a in (samples.x_tilde, samples.x_true))
    h = _exact(problem, x_tilde, x_true, solver=solver)
    matrix = np.asarray(problem.K)

    K_x = np.asarray(h.solution.x) @ matrix.T
    signs = np.sign(K_x) * (np.abs(K_x) > 1e-9)

    def loss(K):
        x = [
            _solve_for_signs(K, WEIGHT, sample, pattern)
            for sample, pattern in zip(x_tilde[:3], signs[:3], strict=True)
        ]
        return 0.5 * np.mean(np.sum((np.array(x) - x_true[:3]) ** 2, 1))

    for seed in range(2):
        direction = np.random.default_rng(seed).standard_normal(matrix.shape)
        direction /= np.linalg.norm(direction)
        step = 1e-5
        slope = (loss(matrix + step * direction) - loss(matrix - step * direction)) / (2 * step)
        size = np.linalg.norm(h.grad.K)
        assert abs(slope - np.sum(np.asarray(h.grad.K) * direction)) <= 1e-7 * size


# ----------------------------------------------------------- singular: one answer, and it says so


def _twice() -> tuple[hg.LowerLevel, np.ndarray, np.ndarray]:
    """Every row twice: whatever is active is dependent."""
    half = np.random.default_rng(2).standard_normal((TALL // 2, N)) / 3
    problem = hg.LowerLevel(np.vstack([half, half]), hg.L1(0.3), hg.Quadratic(1.1))
    return problem, *random_data(SAMPLES, N)


def _crowded() -> tuple[hg.LowerLevel, np.ndarray, np.ndarray]:
    """More active rows than columns, and bounds that the shortest dual variable runs into."""
    K = np.random.default_rng(1).standard_normal((TALL, N)) / 3
    x_tilde, x_true = random_data(SAMPLES, N)
    return hg.LowerLevel(K, hg.L1(0.25), hg.Quadratic(1.0)), 0.3 * x_tilde, x_true


def _shortest_dual(K, weight, ridge, x_tilde, x) -> np.ndarray:
    """The optimal dual variable of least norm, as a quadratic programme in the active rows."""
    y, active = weight * np.sign(K @ x), np.abs(K @ x) <= 1e-10
    if not np.any(active):
        return y
    rest = ridge * (x_tilde - x) - K[~active].T @ y[~active]
    A = K[active].T
    start = np.clip(np.linalg.pinv(A) @ rest, -weight, weight)
    found = minimize(
        lambda v: 0.5 * v @ v,
        start,
        jac=lambda v: v,
        bounds=[(-weight, weight)] * len(start),
        constraints={"type": "eq", "fun": lambda v: A @ v - rest, "jac": lambda v: A},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    y[active] = found.x
    assert np.linalg.norm(K.T @ y - ridge * (x_tilde - x)) <= 1e-8
    return y


@pytest.mark.parametrize(
    ("lower_level", "ridge", "weight"), [(_twice, 1.1, 0.3), (_crowded, 1.0, 0.25)]
)
def test_dependent_rows_give_the_shortest_dual_and_say_nondifferentiable(
    lower_level, ridge, weight
):
    problem, x_tilde, x_true = lower_level()
    K = np.asarray(problem.K)
    h = _exact(problem, x_tilde, x_true)
    assert np.max(h.solution.stats.residual) <= 1e-12
    x, y = np.asarray(h.solution.x), np.asarray(h.solution.y)
    active = [int(np.sum(np.abs(K @ sample) <= 1e-10)) for sample in x]
    ranks = [np.linalg.matrix_rank(K * (np.abs(K @ sample) <= 1e-10)[:, None]) for sample in x]
    dependent = [a > r for a, r in zip(active, ranks, strict=True)]
    assert any(dependent)
    for i, status in enumerate(_statuses(h)):
        # Held at 0 with something to spare, x stays there: that is differentiable.
        on_bound = np.any(np.abs(np.abs(y[i]) - weight)[np.abs(K @ x[i]) <= 1e-10] <= 1e-9)
        several = dependent[i] and (np.linalg.norm(x[i]) > 1e-10 or on_bound)
        assert status == (Status.NONDIFFERENTIABLE if several else Status.CONVERGED)
        expected = _shortest_dual(K, weight, ridge, x_tilde[i], x[i])
        assert np.linalg.norm(y[i] - expected) <= 1e-6
        if dependent[i] and lower_level is _twice:
            assert h.adjoint.status[i] == Status.MINIMUM_NORM
    if lower_level is _crowded:
        # The quadratic programme matters: its bounds are met where K x = 0.
        at_bound = (np.abs(y) >= weight * (1 - 1e-12)) & (np.abs(x @ K.T) <= 1e-10)
        assert np.any(at_bound)


@pytest.mark.parametrize("lower_level", [_twice, _crowded])
def test_the_answer_does_not_depend_on_the_start(lower_level):
    """Another dual start moves the gradient of the limit formula by per cents, not this one."""
    problem, x_tilde, x_true = lower_level()
    rng = np.random.default_rng(1)
    weight = float(problem.F.weight)
    states = []
    for _ in range(2):
        r = jnp.asarray(rng.standard_normal(x_tilde.shape))
        y = jnp.asarray(rng.uniform(-weight, weight, (len(x_tilde), problem.m)))
        states.append(hg.State(r, r, y))
    answers = [_exact(problem, x_tilde, x_true, init=state) for state in (None, *states)]
    for answer in answers[1:]:
        assert relative_error(answer.solution.y, answers[0].solution.y) <= 1e-9
        assert relative_error(answer.grad.K, answers[0].grad.K) <= 1e-9
    # The control: from the same starts the iteration ends at other dual variables.
    solver = hg.ChambollePock(5000)
    others = [
        hg.solve(problem, x_tilde, solver=solver, strategy=hg.LimitFormula(), init=state)
        for state in states
    ]
    assert max(relative_error(other.y, others[0].y) for other in others) > 1e-2
    assert max(relative_error(other.x, others[0].x) for other in others) <= 1e-9


@pytest.mark.parametrize(
    ("lower_level", "unique"), [(free_direction, [True, False]), (no_fidelity, [False, False])]
)
def test_a_solution_that_is_not_unique_is_told_sample_by_sample(lower_level, unique):
    problem, x_tilde, x_true = lower_level()
    h = _exact(problem, x_tilde, x_true)
    # What `Exact` promises, eps^(3/4): the part in the kernel is known no better.
    assert np.max(h.solution.stats.residual) <= np.finfo(np.float64).eps ** 0.75
    for i, one in enumerate(unique):
        assert (_statuses(h)[i] == Status.NOT_UNIQUE) == (not one)
        assert (h.adjoint.status[i] == Status.INCONSISTENT) == (not one)
    assert "not unique" in repr(h)


def test_of_many_minimisers_the_nearest_to_the_data_is_returned():
    problem, x_tilde, x_true = no_fidelity()
    x = _exact(problem, x_tilde, x_true).solution.x
    # Rounding, over the square of what makes the system regular (6e-6).
    nearest = x_tilde - x_tilde @ (np.linalg.pinv(problem.K) @ problem.K).T
    assert relative_error(x, nearest) <= 1e-5


def test_giving_up_is_said():
    """24 Newton steps (`most` and the 21 of the attempts) are not enough for every one of these."""
    K = operators.stack([_dct(), operators.differences2((8, 8))])
    samples = _patches(15)
    problem = hg.LowerLevel(K, hg.L1(0.05), hg.Quadratic(1.0))
    stats = hg.solve(problem, samples.x_tilde, strategy=hg.Exact(most=3)).stats
    bad = np.asarray(stats.residual) > 1e-11
    assert np.any(bad)
    np.testing.assert_array_equal(np.asarray(stats.status) == Status.NOT_CERTIFIED, bad)
    assert not Status.NOT_CERTIFIED.is_good  # so that `throw=True` raises


# --------------------------------------------------------------------- functions of other kinds


class UnknownL1(hg.AbstractFunction):
    """What a user writes: a value and a prox, without a word on its structure."""

    weight: Array
    positive: ClassVar[tuple[str, ...]] = ("weight",)

    def __call__(self, v):
        return jnp.sum(self.weight * jnp.abs(v), axis=-1)

    def prox(self, z, step):
        return jnp.where(jnp.abs(z) > step * self.weight, z - jnp.sign(z) * step * self.weight, 0.0)


def test_a_function_of_the_users_needs_no_more_than_its_prox():
    limit = LIMITS["L1+Quadratic"]
    problem = limit.problem()
    unknown = hg.LowerLevel(problem.K, UnknownL1(problem.F.weight), problem.G)
    known, other = (_exact(p, *limit.data()) for p in (problem, unknown))
    assert not UnknownL1.separable  # so its Jacobian is a matrix, diagonalised
    assert relative_error(other.solution.x, known.solution.x) <= 1e-12
    assert relative_error(other.grad.K, known.grad.K) <= 1e-10
    assert relative_error(other.grad.F.weight, known.grad.F.weight) <= 1e-10


def test_a_ball_and_a_sum_of_parts_are_certified():
    """Optimality by hand: `K^T y + u = 0` with `u` a multiple of r on the sphere."""
    x_tilde, x_true = random_data(8, 4)
    K = np.random.default_rng(5).standard_normal((6, 4)) / 3
    F = hg.SeparableSum((hg.L1(0.3), hg.GroupL1(0.2, shape=(2, 2))), (2, 4))
    h = _exact(hg.LowerLevel(K, F, hg.L2Ball(0.4)), x_tilde, x_true)
    assert np.max(h.solution.stats.residual) <= 1e-12
    r, slope = np.asarray(h.solution.x) - x_tilde, np.asarray(h.solution.y) @ K
    assert np.max(np.linalg.norm(r, axis=1)) <= 0.4 + 1e-12
    on_sphere = np.linalg.norm(r, axis=1) >= 0.4 - 1e-9
    assert np.any(on_sphere)
    along = np.sum(r * slope, 1, keepdims=True) / np.sum(r**2, 1, keepdims=True) * r
    assert np.max(np.abs((slope - along)[on_sphere])) <= 1e-10
    assert np.max(np.abs(slope[~on_sphere]), initial=0.0) <= 1e-10
