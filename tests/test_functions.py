"""Every function of the package against brute force, Moreau, finite differences and exact kinks."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from function_cases import (
    CASES,
    CENTER,
    INF,
    KNOTS,
    PER_BLOCK,
    POINTS,
    STEP,
    evaluate,
    every_function,
)
from jax.flatten_util import ravel_pytree
from scipy.optimize import differential_evolution

import hypergrad as hg
from hypergrad.problem.lower_level import cast_floats


def concrete_subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from concrete_subclasses(subclass)


def is_of_the_package(cls: type) -> bool:
    """Whether one of its modules holds the class (that of a doctest only says so)."""
    module = cls.__module__
    ours = module.partition(".")[0] == "hypergrad"
    return ours and vars(sys.modules[module]).get(cls.__name__) is cls


def test_list_is_complete():
    package = set(filter(is_of_the_package, concrete_subclasses(hg.AbstractFunction)))
    assert {type(case.f) for case in CASES.values()} == package


@every_function
def test_points_are_away_from_kinks(case):
    assert jnp.min(evaluate(case.f, POINTS, STEP).margin) > 1e-3
    assert jnp.min(evaluate(case.f, POINTS / STEP, 1 / STEP).margin) > 1e-3


# -------------------------------------------------------------------------------- brute force


def brute_force_minimum(
    objective: Callable[[np.ndarray], np.ndarray], bound: float = 4.0, generations: int = 400
):
    """The least value over `|v_i| <= bound`, and where: scipy's global search, no derivatives.

    The objective takes `(N, 4)`. 0 is in every domain of the list, and all of that of Zero's
    conjugate, which no search would hit: so it is where the search starts.
    """
    found = differential_evolution(
        lambda v: np.asarray(objective(v.T)),
        [(-bound, bound)] * 4,
        x0=np.zeros(4),
        vectorized=True,
        updating="deferred",
        polish=False,
        rng=np.random.default_rng(0),
        maxiter=generations,
        popsize=8,
        tol=0,
    )
    return found.fun, found.x


def moreau_envelope(value: Callable[[np.ndarray], Any], z: np.ndarray):
    """What the prox at z minimises."""
    return lambda v: float(STEP) * np.asarray(value(v)) + np.sum((v - z) ** 2, -1) / 2


@every_function
def test_value(case):
    feasible = evaluate(case.f, POINTS, STEP).prox  # inside, and on the bound of an indicator
    for points in (POINTS, feasible):
        got = evaluate(case.f, points, STEP).value
        np.testing.assert_allclose(got, case.value(np.asarray(points)), rtol=1e-14)


# The search is exact to about 1e-6 in v (measured on those with a closed form, a ball the hardest).
# test_no_point_beats_the_prox is sharper.
SEARCH_ERROR = 1e-5


@every_function
def test_prox_is_the_brute_force_minimum(case):
    p = evaluate(case.f, POINTS, STEP).prox
    _, found = brute_force_minimum(moreau_envelope(case.value, np.asarray(POINTS[6])))
    np.testing.assert_allclose(p[6], found, atol=SEARCH_ERROR)


@every_function
def test_prox_conjugate_is_the_brute_force_minimum(case):
    p = evaluate(case.f, POINTS, STEP).prox_conjugate
    conjugate = jax.jit(lambda y: case.f.conjugate(y))
    _, found = brute_force_minimum(moreau_envelope(conjugate, np.asarray(POINTS[6])))
    np.testing.assert_allclose(p[6], found, atol=SEARCH_ERROR)


@every_function
def test_no_point_beats_the_prox(case):
    """`p` is the prox if and only if no `v` comes below `phi(p) + ||v - p||^2 / 2`."""
    rng = np.random.default_rng(1)
    moves = 10.0 ** rng.uniform(-7, 0.5, (10_000, 1)) * rng.standard_normal((10_000, 4))
    proxes = np.asarray(evaluate(case.f, POINTS, STEP).prox)
    for z, p in zip(np.asarray(POINTS), proxes, strict=True):
        phi = moreau_envelope(case.value, z)
        # phi is at most some 100 here, so that 1e-13 is its rounding (and SLACK is less).
        assert np.all(phi(p + moves) - phi(p) >= np.sum(moves**2, -1) / 2 - 1e-13)


@every_function
def test_conjugate_is_the_brute_force_supremum(case):
    """Equal where the supremum is attained inside; infinite where it grows with the region."""
    # Short and negative, which is in most of the domains; and long, of both signs, in few.
    points = POINTS.at[0].set(-abs(POINTS[0]))
    conjugates = evaluate(case.f, points, STEP).conjugate
    for i in (0, 6):
        y = np.asarray(points[i])
        least, found = brute_force_minimum(lambda v, y=y: case.value(v) - v @ y, 10.0, 300)
        if np.max(np.abs(found)) < 9.9:
            np.testing.assert_allclose(conjugates[i], -least, atol=1e-7)
        else:
            farther, _ = brute_force_minimum(lambda v, y=y: case.value(v) - v @ y, 1000.0, 100)
            assert -farther > 50 * -least
            assert conjugates[i] == INF


@every_function
def test_fenchel_young(case):
    """`f(v) + f*(y) >= <v, y>`, with equality where `y` is a subgradient at `v`."""
    v = evaluate(case.f, POINTS, jnp.asarray(1.0)).prox
    y = POINTS - v  # the optimality condition of the prox: a subgradient
    conjugate = evaluate(case.f, y, STEP).conjugate
    total = evaluate(case.f, v, STEP).value + conjugate
    np.testing.assert_allclose(total, jnp.sum(v * y, -1), rtol=1e-14, atol=1e-14)
    for other in np.asarray(POINTS):
        elsewhere = case.value(other) + np.asarray(conjugate)
        assert np.all(elsewhere >= np.asarray(y) @ other - 1e-14)


@every_function
@pytest.mark.parametrize("step", [0.1, 1.0, 7.0])
def test_moreau(case, step):
    proxes = evaluate(case.f, POINTS, jnp.asarray(step))
    of_the_other = evaluate(case.f, POINTS / step, jnp.asarray(1 / step))
    total = proxes.prox_conjugate + step * of_the_other.prox
    np.testing.assert_allclose(total, POINTS, rtol=1e-14, atol=1e-14)


# -------------------------------------------------------------------------------- derivatives


class Derivatives(NamedTuple):
    """Of a prox in the function's own parameters (in its structure), in z and in the step."""

    parameters: hg.AbstractFunction
    z: jax.Array
    step: jax.Array


@jax.jit
def derivatives(
    f: hg.AbstractFunction, z: jax.Array, step: jax.Array
) -> tuple[Derivatives, Derivatives]:
    """Of the prox and of the prox of the conjugate, one Jacobian for each row of z."""

    def of(prox: Callable[..., jax.Array]) -> Derivatives:
        of_a_row = jax.jacrev(prox, argnums=(0, 1, 2))
        return Derivatives(*jax.vmap(of_a_row, in_axes=(None, 0, None))(f, z, step))

    proxes = (lambda f, z, t: f.prox(z, t)), (lambda f, z, t: f.prox_conjugate(z, t))
    return of(proxes[0]), of(proxes[1])


@every_function
def test_prox_jacobian(case):
    """That of a convex function is symmetric with eigenvalues in [0, 1]."""
    for derivative in derivatives(case.f, POINTS, STEP):
        J = np.asarray(derivative.z)
        np.testing.assert_allclose(J, J.mT, atol=1e-15)
        eigenvalues = np.linalg.eigvalsh(J)
        assert np.min(eigenvalues) >= -1e-15
        assert np.max(eigenvalues) <= 1 + 1e-15
        if case.separable:
            assert np.array_equal(J, J * np.eye(4))


@every_function
@pytest.mark.parametrize("z", [POINTS, 0 * POINTS], ids=["points", "zero"])
def test_prox_derivatives_add_up_to_the_identity(case, z):
    """At 0 too, which is a kink of NonNegative."""
    _, of_conjugate = derivatives(case.f, z, STEP)
    of_prox, _ = derivatives(case.f, z / STEP, 1 / STEP)
    identity = np.broadcast_to(np.eye(4), (8, 4, 4))
    np.testing.assert_allclose(of_conjugate.z + of_prox.z, identity, atol=1e-15)


@every_function
def test_derivatives_in_parameters_z_and_step(case):
    """Against central differences, away from the kinks."""
    flat, unravel = ravel_pytree((case.f, jnp.zeros(4), STEP))
    h, differences = 1e-5, []
    for direction in h * np.eye(flat.size):
        ahead, behind = (
            evaluate(f, POINTS + dz, step)
            for f, dz, step in (unravel(flat + direction), unravel(flat - direction))
        )
        differences.append((np.asarray(ahead[2:4]) - np.asarray(behind[2:4])) / (2 * h))
    for derivative, expected in zip(
        derivatives(case.f, POINTS, STEP), np.stack(differences, axis=-1), strict=True
    ):
        columns = [np.reshape(leaf, (8, 4, -1)) for leaf in jax.tree.leaves(derivative)]
        # Central differences are exact to h^2 (a third derivative) / 6 and to eps / h, about 1e-10.
        np.testing.assert_allclose(np.concatenate(columns, axis=-1), expected, atol=2e-9)


@every_function
def test_derivatives_at_zero_are_finite(case):
    """Where a norm has none: 0 is what every solve starts from."""
    for leaf in jax.tree.leaves(derivatives(case.f, 0 * POINTS, STEP)):
        assert jnp.all(jnp.isfinite(leaf))


# ------------------------------------------------------------------------------ what they claim


@pytest.mark.parametrize(
    ("f", "dual", "primal"),
    [
        (hg.L1(0.7), 0.7, None),
        (hg.L1([1.0, 2.0, 9.0]), 2.0, None),
        (hg.GroupL1(0.7, shape=(2, 2)), 0.7, None),
        (hg.Huber([1.0, 2.0, 9.0], 0.4), 2.0, None),
        (hg.ElasticNet(0.7, 0.4), 0.7, None),
        (hg.ConvexPotential([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]], (1.0, 1.5), 0.5), 2.5, None),
        (hg.Quadratic(0.7), None, None),
        (hg.Zero(), None, None),
        (hg.IndicatorZero(), None, None),
        (hg.NonNegative(), None, None),
        (hg.Box([1.0, 2.0, 9.0]), None, 2.0),
        (hg.BoxQuadratic(0.6, 0.7), None, 0.6),
        (hg.L2Ball(0.9), None, 0.9),
        # The median over the coordinates whose scale is known: 1, 3, 3.
        (hg.SeparableSum((hg.L1(1.0), hg.L1(3.0), hg.Box(5.0)), (1, 2, 9)), 3.0, 5.0),
        (hg.SeparableSum((hg.Zero(), hg.Quadratic(1.0)), (1, 2)), None, None),
    ],
)
def test_scales(f, dual, primal):
    assert f.dual_scale == (None if dual is None else pytest.approx(dual, rel=1e-15))
    assert f.primal_scale == (None if primal is None else pytest.approx(primal, rel=1e-15))


@every_function
def test_claims_hold(case):
    """`homogeneous` and `indicator` decide whether the scale of K is free; `positive` is kept."""
    v = jnp.asarray(POINTS)
    if case.f.homogeneous:
        np.testing.assert_allclose(case.f(3 * v), 3 * case.f(v), rtol=1e-15)
    if case.f.indicator:
        assert set(np.asarray(case.f(0.1 * v)).tolist()) <= {0.0, INF}
        assert jnp.any(jnp.isinf(case.f(v)))
    for name in case.f.positive:
        with pytest.raises(ValueError, match=rf"{name} must be (positive|non-negative); got -1"):
            dataclasses.replace(case.f, **{name: -1.0})


@every_function
def test_batch_equals_its_samples(case):
    """Any leading axes, and none: here (2, 4), (8,) and one sample after the other."""

    @jax.jit
    def other_shapes(f):
        samples = jax.lax.map(lambda z: evaluate(f, z, STEP), POINTS)
        return samples, evaluate(f, POINTS.reshape(2, 4, 4), STEP)

    batch = evaluate(case.f, POINTS, STEP)
    for expected, of_sample, of_batches in zip(batch, *other_shapes(case.f), strict=True):
        # Not bit for bit: the compiler divides and sums vectors in another order than numbers.
        np.testing.assert_allclose(of_sample, expected, rtol=1e-15, atol=2e-15)
        shape = (2, 4, *expected.shape[1:])
        np.testing.assert_allclose(of_batches, expected.reshape(shape), rtol=1e-15, atol=2e-15)


@every_function
def test_float32_stays_float32(case):
    f, z, step = cast_floats((case.f, POINTS, STEP), jnp.float32)
    results = jax.eval_shape(
        lambda *arguments: (evaluate(*arguments), derivatives(*arguments)), f, z, step
    )
    assert {result.dtype for result in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}


def test_separable_sum_is_its_parts(key):
    parts = (hg.L1(0.7), hg.GroupL1(0.5, shape=(2, 2)), hg.NonNegative(), hg.BoxQuadratic(0.6, 0.7))
    f = hg.SeparableSum(parts, (1, 4, 2, 3))
    z = jax.random.normal(key, (8, 10))
    pieces = (z[:, :1], z[:, 1:5], z[:, 5:7], z[:, 7:])

    whole = evaluate(f, z, STEP)
    value, conjugate, *vectors = zip(
        *(evaluate(part, piece, STEP) for part, piece in zip(parts, pieces, strict=True)),
        strict=True,
    )
    np.testing.assert_allclose(whole.value, sum(value), rtol=1e-15)
    np.testing.assert_allclose(whole.conjugate, sum(conjugate), rtol=1e-15)
    for got, expected in zip(whole[2:], vectors, strict=True):
        np.testing.assert_allclose(got, np.concatenate(expected, axis=-1), rtol=1e-15, atol=1e-15)


def test_zero_and_the_indicator_of_zero_are_conjugates():
    zero, indicator, quadratic = (
        evaluate(f, POINTS, STEP) for f in (hg.Zero(), hg.IndicatorZero(), hg.Quadratic(0.0))
    )
    for f in (zero, quadratic):
        np.testing.assert_array_equal(f.prox, indicator.prox_conjugate)
        np.testing.assert_array_equal(f.prox_conjugate, indicator.prox)
        np.testing.assert_array_equal(f.value, indicator.conjugate)
        np.testing.assert_array_equal(f.conjugate, indicator.value)


def test_a_quadratic_may_have_weight_0_in_some_coordinates():
    """There it is the zero function, whatever the center; elsewhere it is what it was."""
    f, on = hg.Quadratic([0.7, 0.0, 2.0, 0.0], CENTER), np.array([0, 2])
    rest = hg.Quadratic([0.7, 2.0], CENTER[on])
    got, of_rest = evaluate(f, POINTS, STEP), evaluate(rest, POINTS[:, on], STEP)
    np.testing.assert_allclose(got.value, of_rest.value, rtol=1e-15)
    np.testing.assert_allclose(got.prox[:, on], of_rest.prox, rtol=1e-15)
    np.testing.assert_array_equal(got.prox[:, [1, 3]], POINTS[:, [1, 3]])
    np.testing.assert_array_equal(got.conjugate, np.full(8, INF))
    inside = evaluate(f, POINTS * jnp.array([1.0, 0.0, 1.0, 0.0]), STEP).conjugate
    np.testing.assert_allclose(inside, of_rest.conjugate, rtol=1e-15)
    assert f.strong_convexity == 0


KNOTS_OF_HUBER = (0.1, 0.4, 3.0)  # with its smoothing


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        (hg.ConvexPotential.from_l1(0.7, KNOTS), hg.L1(0.7)),
        (hg.ConvexPotential.from_l1(PER_BLOCK, KNOTS), hg.L1(PER_BLOCK)),
        (hg.ConvexPotential.from_huber(0.7, 0.4, KNOTS), hg.Huber(0.7, 0.4)),
        (hg.ConvexPotential.from_huber(PER_BLOCK, 2.0, KNOTS), hg.Huber(PER_BLOCK, 2.0)),
        (hg.ConvexPotential.from_huber(0.7, 0.4, KNOTS_OF_HUBER), hg.Huber(0.7, 0.4)),
    ],
    ids=["L1", "L1 blocks", "Huber", "Huber beyond the last knot", "Huber at a knot"],
)
def test_potentials_of_l1_and_huber(potential, expected):
    potential, expected = cast_floats((potential, expected), float)
    for z in (POINTS, 0 * POINTS):
        computed = evaluate(potential, z, STEP), evaluate(expected, z, STEP)
        # All but the margins: they are relative to the kink, and Huber's to its weight.
        for a, b in list(zip(*computed, strict=True))[:-1]:
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
        for a, b in zip(
            derivatives(potential, z, STEP), derivatives(expected, z, STEP), strict=True
        ):
            np.testing.assert_allclose(a.z, b.z, rtol=1e-14, atol=1e-14)
    for name in ("dual_scale", "smoothness"):
        got, wanted = getattr(potential, name), getattr(expected, name)
        assert got == (None if wanted is None else pytest.approx(float(wanted), rel=1e-15))
    assert potential.smooth == expected.smooth


@pytest.mark.parametrize(
    "start",
    [
        lambda least: hg.ConvexPotential.from_l1(PER_BLOCK, KNOTS, least_slope=least),
        lambda least: hg.ConvexPotential.from_huber(PER_BLOCK, 0.4, KNOTS, least_slope=least),
    ],
    ids=["L1", "Huber"],
)
def test_least_slope_makes_every_slope_positive_and_adds_little(start):
    lifted, exact = start(0.01), start(0.0)
    assert np.min(lifted.slopes) == 0.01
    added = np.asarray(lifted(POINTS) - exact(POINTS))
    assert np.all(added >= 0)
    assert np.max(added) > 0
    assert np.all(added <= 0.005 * np.sum(np.asarray(POINTS) ** 2, -1) + 1e-15)


# ------------------------------------------------------------------------- a function of one's own


class LogBarrier(hg.AbstractFunction):
    """`-weight * sum log(v)`: a value and a prox, nothing else."""

    weight: jax.Array

    def __call__(self, v):
        return -self.weight * jnp.sum(jnp.log(v), axis=-1)

    def prox(self, z, step):
        return (z + jnp.sqrt(z**2 + 4 * step * self.weight)) / 2


def test_user_function_from_value_and_prox_alone():
    """`argmin_x -w sum log x + ||x - x_tilde||^2 / 2` and its derivative in w, in closed form."""
    w, x_tilde = 0.3, jnp.array([[0.5, 1.0, 2.0], [-1.0, 0.1, 3.0]])
    problem = hg.LowerLevel(K=jnp.eye(3), F=LogBarrier(jnp.asarray(w)), G=hg.Quadratic(1.0))
    h = hg.hypergradient(
        problem,
        x_tilde,
        jnp.zeros_like(x_tilde),
        solver=hg.ChambollePock(iterations=200),
        strategy=hg.FullUnrolling(),
    )
    root = np.sqrt(np.asarray(x_tilde) ** 2 + 4 * w)
    x = (x_tilde + root) / 2
    np.testing.assert_allclose(h.solution.x, x, rtol=1e-12)
    # The loss is 0.5 ||x||^2, averaged over two samples, and dx/dw = 1 / root.
    np.testing.assert_allclose(h.grad.F.weight, np.sum(x / root) / 2, rtol=1e-10)
    np.testing.assert_array_equal(h.solution.stats.status, hg.Status.CONVERGED)
    # Neither conjugate nor kinks are known, and nothing pretends otherwise.
    assert jnp.all(jnp.isnan(h.solution.stats.gap))
    assert jnp.all(jnp.isnan(h.solution.stats.margin))
