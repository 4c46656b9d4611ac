"""`Exact` without a matrix, against factorised Newton steps on images that are small enough."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

import hypergrad as hg
from hypergrad import operators
from hypergrad.problem.operators import FilterBank

SIDE = 10
MATRIX_FREE = hg.Exact(search=hg.MatrixFree())
# Between two searches, both to a residual of 1e-14, by the condition of the limit system.
RTOL = 1e-8


def _images(side: int = SIDE) -> tuple[jax.Array, jax.Array]:
    """Two images of a bright square, and what is seen of them."""
    rng = np.random.default_rng(0)
    x_true = np.zeros((2, side, side))
    x_true[0, 2:6, 3:8] = 1.0
    x_true[1, 4:, :5] = 0.7
    x_true = x_true.reshape(2, side**2)
    return jnp.asarray(x_true + 0.1 * rng.normal(size=x_true.shape)), jnp.asarray(x_true)


def _problem(filters: np.ndarray, F: hg.AbstractFunction, side: int = SIDE) -> hg.LowerLevel:
    return hg.LowerLevel(FilterBank(filters, (side, side)), F, hg.Quadratic(1.0))


def _random_filters(weight: float, side: int = SIDE) -> hg.LowerLevel:
    return _problem(np.random.default_rng(1).normal(size=(2, 2, 2)), hg.L1(weight), side)


def _differences(F: hg.AbstractFunction) -> hg.LowerLevel:
    """Of each pixel and two of its neighbours, in filters of the size of the random ones."""
    filters = np.zeros((2, 2, 2))
    filters[:, 0, 0] = -1.0
    filters[range(2), [1, 0], [0, 1]] = 1.0
    return _problem(filters, F)


@eqx.filter_jit
def _hypergradient(problem, strategy):
    return hg.hypergradient(problem, *_images(), strategy=strategy)


def test_where_it_is_differentiable_it_is_the_factorised_one():
    problem = _random_filters(0.01)
    ours, theirs = (_hypergradient(problem, s) for s in (MATRIX_FREE, hg.Exact()))
    assert hg.Status.summary(ours.solution.stats.status) == "converged 100 %"
    assert hg.Status.summary(ours.adjoint.status) == "converged 100 %"
    for a, b in zip(jax.tree.leaves(ours.grad), jax.tree.leaves(theirs.grad), strict=True):
        assert relative_error(a, b) < RTOL
    assert relative_error(ours.solution.y, theirs.solution.y) < RTOL


@pytest.mark.parametrize("F", [hg.L1(0.1), hg.GroupL1(0.1, shape=(2, SIDE**2))])
def test_dependent_rows_are_found_and_the_solution_is_certified(F):
    h = _hypergradient(_differences(F), MATRIX_FREE)
    stats = h.solution.stats
    # Around every pixel of a flat region the differences add up to 0.
    assert hg.Status.summary(stats.status) == "nondifferentiable 100 %"
    assert hg.Status.summary(h.adjoint.status) == "minimum norm 100 %"
    assert float(jnp.max(stats.residual)) < 1e-12
    assert float(jnp.max(jnp.abs(stats.gap))) < 1e-11
    assert float(jnp.max(h.adjoint.residual)) < 1e-12


def test_forward_and_reverse_mode_agree():
    # Differentiable: elsewhere the two modes need not choose the same dual solution.
    problem, (x_tilde, x_true) = _random_filters(0.01), _images()
    along = np.random.default_rng(2).normal(size=problem.K.filters.shape)

    def loss(filters):
        moved = eqx.tree_at(lambda p: p.K.filters, problem, filters)
        x = hg.solve(moved, x_tilde, strategy=MATRIX_FREE).x
        return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))

    _, forward = jax.jvp(loss, (problem.K.filters,), (jnp.asarray(along),))
    reverse = jnp.sum(_hypergradient(problem, MATRIX_FREE).grad.K.filters * along)
    assert relative_error(forward, reverse) < RTOL


def test_no_matrix_is_built():
    side = 24
    problem, (x_tilde, x_true) = _random_filters(0.03, side), _images(side)
    program = eqx.filter_jit(
        lambda p: hg.hypergradient(p, x_tilde, x_true, strategy=MATRIX_FREE).grad.K.filters
    )
    memory = program.lower(problem).compile().compiled.memory_analysis()
    assert memory is not None
    m, n = problem.shape
    of_the_matrix = 8 * m * n
    assert memory.temp_size_in_bytes < 0.25 * of_the_matrix


def test_what_has_not_arrived_is_not_certified():
    impatient = hg.Exact(search=hg.MatrixFree(iterations=3, steps=1))
    stats = hg.solve(_random_filters(0.3), _images()[0], strategy=impatient).stats
    assert hg.Status.summary(stats.status) == "not certified 100 %"
    assert int(jnp.max(stats.iterations)) == 3


def test_it_has_a_name_on_the_command_line():
    strategy = hg.parse_strategy("exact:matrix-free=500")
    assert strategy.search == hg.MatrixFree(iterations=500)
    assert hg.parse_strategy(strategy.label) == strategy


def test_measurements_of_every_pixel_are_data():
    """Without a G of x itself, `D(x - b)` is what `G(x - x_tilde)` is in the plain problem."""
    plain, (b, x_true) = _random_filters(0.01), _images()
    K = eqx.tree_at(lambda p: p.G, plain, hg.Quadratic(0.0))
    problem = hg.with_measurements(K, jnp.eye(SIDE**2), hg.Quadratic(1.0))
    sides = (jnp.concatenate([x, b], axis=-1) for x in (jnp.zeros_like(b), x_true))
    h = hg.hypergradient(problem, *sides, strategy=MATRIX_FREE)
    expected = _hypergradient(plain, hg.Exact())
    assert hg.Status.summary(h.solution.stats.status) == "converged 100 %"
    assert hg.Status.summary(h.adjoint.status) == "converged 100 %"
    assert relative_error(h.solution.x[:, : SIDE**2], expected.solution.x) < RTOL
    assert relative_error(h.grad.K.K.filters, expected.grad.K.filters) < RTOL
    assert relative_error(h.grad.F.parts[0].weight, expected.grad.F.weight) < RTOL


SEEN = operators.Mask(np.arange(SIDE**2) % 3 > 0)
WITHOUT_CURVATURE = {
    "a mask": hg.DataFidelity(SEEN),
    "a blur": hg.DataFidelity(operators.Blur(jnp.array([[0.1, 0.0], [0.1, 0.8]]), (SIDE, SIDE))),
}


@pytest.mark.parametrize(
    "G",
    [
        # It goes the way of the weight of 0 above.
        pytest.param(WITHOUT_CURVATURE["a mask"], marks=pytest.mark.slow),
        WITHOUT_CURVATURE["a blur"],
    ],
    ids=["a mask", "a blur"],
)
def test_a_G_that_cannot_be_divided_by_is_solved_for_as_a_whole(G):
    problem = eqx.tree_at(lambda p: p.G, _random_filters(0.005), G)
    ours, theirs = (_hypergradient(problem, s) for s in (MATRIX_FREE, hg.Exact()))
    np.testing.assert_array_equal(ours.solution.stats.status, theirs.solution.stats.status)
    assert hg.Status.summary(ours.adjoint.status) == "converged 100 %"
    # Some rows are 0, in both samples: there is an active set for the search to find.
    zero = np.abs(jax.vmap(problem.K.mv)(ours.solution.x)) < 1e-12
    assert np.all(np.any(zero, axis=-1))
    assert relative_error(ours.solution.x, theirs.solution.x) < RTOL
    for a, b in zip(jax.tree.leaves(ours.grad), jax.tree.leaves(theirs.grad), strict=True):
        assert relative_error(a, b) < RTOL


def test_what_nothing_determines_is_not_unique():
    """Half of the pixels are seen by neither K nor G: the solution of minimum norm is returned."""
    n, seen = SIDE**2, np.arange(SIDE**2) < SIDE**2 // 2
    K = jnp.asarray(np.eye(n)[seen])
    G = hg.Quadratic(jnp.asarray(seen, float))
    problem, (x_tilde, _) = hg.LowerLevel(K, hg.L1(0.1), G), _images()
    solution = hg.solve(problem, x_tilde, strategy=MATRIX_FREE)
    assert hg.Status.summary(solution.stats.status) == "not unique 100 %"
    soft = jnp.sign(x_tilde) * jnp.maximum(jnp.abs(x_tilde) - 0.1, 0.0)
    assert relative_error(solution.x, jnp.where(seen, soft, x_tilde)) < RTOL
