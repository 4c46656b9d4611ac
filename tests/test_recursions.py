"""Every strategy that stands on the posters' recursions, against those recursions as NumPy loops,
and the loops' other ingredients (prox derivatives, step sizes, operators) against `jax.grad`.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    Box,
    Convolution,
    Poster,
    Quadratic,
    Shifts,
    assert_close,
    central_differences,
    gradient_of,
    plain_scan,
    random_data,
    random_poster,
    relative_error,
    to_hypergrad,
)

import hypergrad as hg
from hypergrad.adjoint import Cotangent, adjoint_step, start_adjoint
from hypergrad.chambolle_pock import ProxArguments, StepSizes, record

L, BATCH = 12, 3
THETAS = (0.0, 0.3, 1.0)
# Two correct implementations in float64 differ by rounding alone; 1e-10 leaves it a wide margin.
RTOL = 1e-10

# ------------------------------------------------------- the package's strategies and the loops

_ARRAY = np.random.default_rng(5).uniform(size=L)
_ARRAY /= _ARRAY.sum()
_GEOMETRIC = np.array([0.8 ** (L - l) for l in range(1, L + 1)])

AVERAGES = {
    "uniform": (hg.Uniform(), np.full(L, 1 / L)),
    "tail": (hg.Tail(0.25), np.array([0.0] * 9 + [1 / 3] * 3)),
    "linear": (hg.LinearWeights(), np.array([l / (L * (L + 1) / 2) for l in range(1, L + 1)])),
    "geometric": (hg.Geometric(0.8), _GEOMETRIC / _GEOMETRIC.sum()),
    "array": (_ARRAY, _ARRAY),
}


def _average(weights, alpha):
    return hg.ErgodicUnrolling(weights), alpha, lambda p, *data: p.unrolled(*data, alpha=alpha)


def _truncation(k):
    return hg.Truncation(k), None, lambda p, *data: p.unrolled(*data, k=k)


def _steps(k):
    return hg.LimitFormula(hg.Steps(k)), None, lambda p, *data: p.limit(*data, k, frozen=True)


def _last_iterates(k):
    adjoint = hg.LastIterates(k)
    return hg.LimitFormula(adjoint), None, lambda p, *data: p.limit(*data, k, frozen=False)


_FULL = (hg.FullUnrolling(), None, lambda p, *data: p.unrolled(*data))
# One of each kind goes through all shapes and functions, the others through one of them.
KINDS = [_FULL, _truncation(5), _average(*AVERAGES["linear"]), _steps(5), _last_iterates(5)]
OTHERS = [
    _truncation(1),
    *(_average(*AVERAGES[name]) for name in ("uniform", "tail", "geometric", "array")),
    _steps(1),
    _steps(L + 8),
    _last_iterates(1),
    # One segment, segments of which the first is shorter, and one an iteration.
    *((hg.FullUnrolling(checkpoints=c), *_FULL[1:]) for c in (1, 5, L)),
]

# (m, n), and whether the weights and radii have one entry a row or a column.
PROBLEMS = [
    (G, m, n, per_entry)
    for G in (Quadratic, Box)
    for m, n, per_entry in ((3, 5, False), (4, 4, False), (6, 4, True))
]
# Every day each kind with each G, once with more columns and once with more rows (a square K hides
# a transpose); the others are slow.
EVERY_DAY = [(Quadratic, 3), (Box, 6)], [(Box, 3), (Quadratic, 6)]
KINDS_OF_PROBLEMS = [
    pytest.param(kind, problem, marks=[pytest.mark.slow] * (problem[:2] not in EVERY_DAY[i % 2]))
    for i, kind in enumerate(KINDS)
    for problem in PROBLEMS
]


def _label(case):
    if isinstance(case[0], type):
        G, m, n, per_entry = case
        return f"{G.__name__}-{m}x{n}{'-per_entry' if per_entry else ''}"
    return case[0].label


def _check_against_loops(kind, poster: Poster) -> None:
    strategy, alpha, oracle = kind
    x_tilde, x_true = random_data(BATCH, poster.K.shape[1])
    for theta in THETAS:
        poster = dataclasses.replace(poster, theta=theta)
        problem, solver = to_hypergrad(poster)
        h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
        x, y = poster.output(x_tilde, alpha)
        assert_close((np.asarray(h.solution.x), np.asarray(h.solution.y)), (x, y), RTOL)
        assert relative_error(h.value, 0.5 * np.mean(np.sum((x - x_true) ** 2, 1))) <= RTOL
        assert_close(gradient_of(h), oracle(poster, x_tilde, x_true), RTOL)


@pytest.mark.parametrize(("kind", "problem"), KINDS_OF_PROBLEMS, ids=_label)
def test_every_kind_of_strategy_is_its_numpy_loop(kind, problem):
    G, m, n, per_entry = problem
    _check_against_loops(kind, random_poster(G, m, n, L=L, per_entry=per_entry))


@pytest.mark.parametrize("kind", OTHERS, ids=_label)
def test_every_option_of_a_strategy_is_its_numpy_loop(kind):
    _check_against_loops(kind, random_poster(Box, 6, 4, L=L, per_entry=True))


@pytest.mark.parametrize("problem", PROBLEMS, ids=_label)
def test_the_test_problems_have_coordinates_on_both_sides_of_a_kink(problem):
    G, m, n, per_entry = problem
    poster = random_poster(G, m, n, L=L, per_entry=per_entry)
    runs = [poster.run(x_tilde) for x_tilde in random_data(BATCH, n)[0]]
    slopes = [poster.F.prox(run.z_D[-1], poster.sigma).slope for run in runs]
    if G is Box:
        slopes = [slopes, [poster.G.prox(run.z_P[-1], poster.tau).slope for run in runs]]
    for slope in slopes if G is Box else [slopes]:
        assert 0.1 < np.mean(slope) < 0.9


# --------------------------------------------- the adjoint variables, layer by layer, by autodiff

_FUNCTIONS = {
    "L1+Quadratic": (hg.L1(0.3), hg.Quadratic(1.2)),
    "L1+Box": (hg.L1(0.3), hg.Box(0.25)),
    "GroupL1+Quadratic": (hg.GroupL1(0.3, shape=(2, 3)), hg.Quadratic(1.2)),
    "L1+L2Ball": (hg.L1(jnp.linspace(0.2, 0.4, 6)), hg.L2Ball(0.4)),
    "Huber+BoxQuadratic": (hg.Huber(0.3, 0.2), hg.BoxQuadratic(0.25, 1.5)),
    "Quadratic+L1": (hg.Quadratic(1.5, 0.4), hg.L1(0.2)),
    "SeparableSum+ElasticNet": (
        hg.SeparableSum(
            (hg.L1(0.3), hg.GroupL1(0.3, shape=(2, 2), axis=1), hg.NonNegative()), (1, 4, 1)
        ),
        hg.ElasticNet(0.1, 0.8),
    ),
}
_IN_LOOPS = ("L1+Quadratic", "L1+Box")
_TAU, _SIGMA, _THETA = 0.7, 0.9, 0.6


def _sizes(tau=_TAU, sigma=_SIGMA, theta=_THETA) -> StepSizes:
    return StepSizes(*map(jnp.asarray, (tau, sigma, theta)))


@eqx.filter_jit
def _layers_of_the_package(problem, x_tilde, g, alpha):
    """delta_P, delta_D, u_P, u_D of every layer, by `adjoint_step`."""
    solver, sizes = hg.ChambollePock(len(alpha)), _sizes()
    _, history = record(problem, x_tilde, sizes, solver.start(problem, x_tilde), len(alpha))

    def body(later, layer):
        z, alpha_l = layer
        state, terms = adjoint_step(problem, sizes, z, later, Cotangent(*(alpha_l * c for c in g)))
        return state, (state.delta_P, state.delta_D, terms.u_P, terms.u_D)

    return jax.lax.scan(
        body, start_adjoint(problem, g), (ProxArguments(*history), alpha), reverse=True
    )[1]


@eqx.filter_jit
def _layers_by_autodiff(problem, x_tilde, g, alpha):
    """The same as gradients in zero perturbations of the iterates."""

    def output(shifts):
        r, _, y = plain_scan(problem, x_tilde, *_sizes(), len(alpha), shifts=shifts)
        return jnp.vdot(g.x, alpha @ r) + jnp.vdot(g.y, alpha @ y)

    shifts = jax.grad(output)(Shifts.zero(problem.m, problem.n, len(alpha)))
    return shifts.z_P, shifts.z_D, shifts.r, shifts.y


@pytest.mark.parametrize("names", _FUNCTIONS)
def test_adjoint_variables_are_gradients_in_the_iterates(names, key):
    m, n, layers = 6, 4, 7
    problem = hg.LowerLevel(hg.operators.random(m, n, key=key), *_FUNCTIONS[names])
    rng = np.random.default_rng(1)
    x_tilde, g = jnp.asarray(rng.standard_normal(n)), Cotangent(*map(rng.standard_normal, (n, m)))
    g = Cotangent(*map(jnp.asarray, g))
    alpha = jnp.asarray(rng.uniform(size=layers))
    actual = _layers_of_the_package(problem, x_tilde, g, alpha)
    expected = _layers_by_autodiff(problem, x_tilde, g, alpha)
    for of_package, by_autodiff in zip(actual, expected, strict=True):
        for layer in range(layers):
            assert relative_error(of_package[layer], by_autodiff[layer]) <= RTOL, layer


@pytest.mark.parametrize("names", [name for name in _FUNCTIONS if name not in _IN_LOOPS])
def test_every_parameter_of_other_functions_by_autodiff(names, key):
    problem = hg.LowerLevel(hg.operators.random(6, 4, key=key), *_FUNCTIONS[names])
    x_tilde, x_true = map(jnp.asarray, random_data(BATCH, 4))
    solver = hg.ChambollePock(L, _TAU, _SIGMA, _THETA)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.FullUnrolling())

    @eqx.filter_jit
    @eqx.filter_grad
    def by_autodiff(arguments):
        problem, x_tilde = arguments
        x = jax.vmap(lambda x: x + plain_scan(problem, x, *_sizes(), L)[0][-1])(x_tilde)
        return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))

    expected = by_autodiff((problem, x_tilde))
    assert_close((h.grad, h.grad_x_tilde), expected, RTOL)


# --------------------------------------------------------------------- tau, sigma, theta


def _perturbed_loss(poster: Poster, data, alpha, k):
    """The loss as a function of (tau, sigma, theta), all before the last k layers held fixed."""
    x_tilde, x_true = data
    befores = [dataclasses.replace(poster, L=poster.L - k).run(x) for x in x_tilde]
    starts = [(run.r[-1], run.r_bar[-1], run.y[-1]) for run in befores]

    def loss(sizes):
        tau, sigma, theta = sizes
        last = dataclasses.replace(poster, tau=tau, sigma=sigma, theta=theta, L=k)
        x, _ = last.output(x_tilde, alpha, starts)
        return 0.5 * np.mean(np.sum((x - x_true) ** 2, 1))

    return loss


_IN_STEP_SIZES = {
    "full": (hg.FullUnrolling(), np.eye(L)[-1], L),
    "truncation": (hg.Truncation(5), np.eye(5)[-1], 5),
    "ergodic": (hg.ErgodicUnrolling(hg.LinearWeights()), AVERAGES["linear"][1], L),
}


@pytest.mark.parametrize(
    ("kind", "G"),
    [("full", Quadratic), ("full", Box), ("truncation", Quadratic), ("ergodic", Box)],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_step_size_gradients(kind, G):
    strategy, alpha, k = _IN_STEP_SIZES[kind]
    poster = random_poster(G, 6, 4, L=L, per_entry=True, theta=0.3)
    x_tilde, x_true = data = random_data(BATCH, 4)
    problem, solver = to_hypergrad(poster)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    actual = np.array([h.grad_solver.tau, h.grad_solver.sigma, h.grad_solver.theta])

    @eqx.filter_jit
    @jax.grad
    def by_autodiff(sizes, x_tilde, x_true):
        def sample(x_tilde):
            iterates = plain_scan(problem, x_tilde, *sizes, L)
            start = tuple(jax.lax.stop_gradient(s[L - k - 1]) for s in iterates) if k < L else None
            r, _, _ = plain_scan(problem, x_tilde, *sizes, k, start=start)
            return x_tilde + jnp.asarray(alpha) @ r

        return 0.5 * jnp.mean(jnp.sum((jax.vmap(sample)(x_tilde) - x_true) ** 2, axis=-1))

    sizes = _sizes(poster.tau, poster.sigma, poster.theta)
    expected = by_autodiff(sizes, jnp.asarray(x_tilde), jnp.asarray(x_true))
    assert relative_error(actual, np.array(expected)) <= RTOL
    # Central differences with a step of 1e-5 are good to about 1e-10 of the loss.
    differences = central_differences(_perturbed_loss(poster, data, alpha, k), np.array(sizes))
    assert relative_error(actual, differences) <= 1e-8


@pytest.mark.parametrize("given", ["tau", "sigma", "step_ratio"])
def test_step_sizes_that_follow_from_the_norm(given):
    """The norm is not differentiated; the other step size moves along with the one given."""
    poster = random_poster(Quadratic, 4, 4, L=L)
    x_tilde, x_true = data = random_data(BATCH, 4)
    problem, _ = to_hypergrad(poster)
    norm = np.linalg.norm(poster.K, 2)
    solver = hg.ChambollePock(L, **{given: 0.8})
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.FullUnrolling())

    def sizes(value):
        root = np.sqrt(value) * poster.F.parameter  # the dual scale is the weight of F
        tau, sigma = {
            "tau": (value, 1 / (value * norm**2)),
            "sigma": (1 / (value * norm**2), value),
            "step_ratio": (1 / (norm * root), root / norm),
        }[given]
        return tau, sigma, 1.0

    loss = _perturbed_loss(poster, data, np.eye(L)[-1], L)
    expected = central_differences(lambda value: loss(sizes(value)), 0.8)
    assert relative_error(getattr(h.grad_solver, given), expected) <= 1e-8


# ---------------------------------------------------------------------- operators with parameters


def _operator(name: str) -> lx.AbstractLinearOperator:
    rng = np.random.default_rng(0)
    matrix = lx.MatrixLinearOperator(jnp.asarray(rng.standard_normal((5, 5)) / 4))
    lower = lx.MatrixLinearOperator(jnp.tril(matrix.matrix))
    diagonal = lx.DiagonalLinearOperator(jnp.asarray(rng.uniform(0.5, 1.0, 5)))
    kernel = jnp.asarray([0.5, -0.4, 0.2])

    def circular_convolution(v):
        return kernel[0] * v + kernel[1] * jnp.roll(v, 1) + kernel[2] * jnp.roll(v, 2)

    return {
        "convolution": Convolution(kernel, size=7),
        "matrix": matrix,
        "tagged": lx.TaggedLinearOperator(lower, lx.lower_triangular_tag),
        "composed": matrix @ diagonal,
        "function": lx.FunctionLinearOperator(
            circular_convolution, jax.ShapeDtypeStruct((5,), kernel.dtype)
        ),
    }[name]


@pytest.mark.parametrize("name", ["convolution", "matrix", "tagged", "composed", "function"])
def test_parameters_of_an_operator_by_autodiff(name):
    problem = hg.LowerLevel(_operator(name), hg.L1(0.3), hg.Quadratic(1.0))
    x_tilde, x_true = map(jnp.asarray, random_data(BATCH, problem.n))
    solver = hg.ChambollePock(L, _TAU, _SIGMA, _THETA)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.FullUnrolling())

    @eqx.filter_jit
    @eqx.filter_grad
    def by_autodiff(problem):
        x = jax.vmap(lambda x: x + plain_scan(problem, x, *_sizes(), L)[0][-1])(x_tilde)
        return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))

    assert_close(jax.tree.leaves(h.grad), jax.tree.leaves(by_autodiff(problem)), RTOL)


@pytest.mark.parametrize("adjoint", [hg.Steps(3), hg.LastIterates(3)], ids=lambda a: a.label)
def test_limit_formula_gives_a_kernel_what_the_matrix_gets_by_the_chain_rule(adjoint):
    """Entry `(i, i + 2 - j)` of the matrix of a convolution is `kernel[j]`."""
    kernel = np.array([0.5, -0.4, 0.2])
    K = sum(kernel[j] * np.eye(5, 7, 2 - j) for j in range(3))
    x_tilde, x_true = random_data(BATCH, 7)
    solver = hg.ChambollePock(L, _TAU, _SIGMA)
    dense, sparse = (
        hg.hypergradient(
            hg.LowerLevel(operator, hg.L1(0.3), hg.Quadratic(1.0)),
            x_tilde,
            x_true,
            solver=solver,
            strategy=hg.LimitFormula(adjoint),
        )
        for operator in (jnp.asarray(K), Convolution(jnp.asarray(kernel), size=7))
    )
    expected = [np.sum(np.asarray(dense.grad.K) * np.eye(5, 7, 2 - j)) for j in range(3)]
    assert relative_error(sparse.grad.K.kernel, np.array(expected)) <= RTOL
    assert_close(sparse.grad_x_tilde, dense.grad_x_tilde, RTOL)
