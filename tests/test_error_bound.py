"""The error bound against dense solves in NumPy; what no regime certifies; driving to a target."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.bilevel.error_bound import REGIMES, ReturnedPair, StrongConvexity, bound_error
from hypergrad.exact import NormalMap, active_system
from hypergrad.workbench.benchmark._compilations import count_compilations
from tests.helpers import Convolution, solve_l1_quadratic

TIGHT = hg.ChambollePock(20_000, tolerance=1e-13)
COUNT, SAMPLES, M, N = 150, 2, 6, 5
SOLVER = hg.ChambollePock(40)
DIRECT = hg.LimitFormula()


def flat(tree) -> np.ndarray:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def bounded(problem, x_tilde, x_true, strategy=DIRECT, solver=SOLVER, **options):
    return hg.hypergradient(
        problem, x_tilde, x_true, solver=solver, strategy=strategy, error_bound=True, **options
    )


# ---------------------------------------------------------------- hundreds of draws, by the oracle


def half_square_gradient(x, x_true):
    return x - x_true


def kkt_gradient(K, weight, smoothing, mu, x_tilde, x_true, loss_gradient=half_square_gradient):
    """The gradient of `L1` (smoothing 0) or `Huber` with `Quadratic(mu)`, by dense solves.

    In K, then in what is left, as vectors; the loss is a mean over the samples.
    """
    in_K, in_weight, in_smoothing = np.zeros_like(K), np.zeros_like(weight), 0.0
    in_mu, in_center = 0.0, 0.0
    for observed, true in zip(x_tilde, x_true, strict=True):
        x = solve_l1_quadratic(K, weight, mu, observed, smoothing)
        v, y, curved = adjoint_by_kkt(K, weight, smoothing, mu, observed, x, loss_gradient(x, true))
        in_K -= (np.outer(y, v) + np.outer(curved, x)) / len(x_tilde)
        in_weight -= np.where(np.abs(y) < weight * (1 - 1e-9), 0, np.sign(y)) * (K @ v)
        if smoothing:
            inside = np.abs(K @ x) < smoothing
            in_weight -= np.where(inside, K @ x / smoothing, 0) * (K @ v)
            in_smoothing += np.sum(np.where(inside, weight * (K @ x) / smoothing**2, 0) * (K @ v))
        in_mu -= v @ (x - observed)
        in_center += mu * np.sum(v)
    rest = [in_smoothing] if smoothing else []
    scalars = np.array([*rest, in_mu, in_center])
    return in_K.ravel(), np.concatenate([in_weight, scalars]) / len(x_tilde)


def adjoint_by_kkt(K, weight, smoothing, mu, x_tilde, x, g):
    """`v`, `y` and `S K v` (the multiplier of `K_I v = 0` where F has a kink)."""
    m, n = K.shape
    if smoothing:
        y = weight * np.clip(K @ x / smoothing, -1, 1)
        S = np.where(np.abs(K @ x) < smoothing, weight / smoothing, 0)
        v = np.linalg.solve(K.T @ (S[:, None] * K) + mu * np.eye(n), g)
        return v, y, S * (K @ v)
    on = np.abs(K @ x) < 1e-10
    y = weight * np.sign(K @ x)
    A = K[on]
    saddle = np.block([[mu * np.eye(n), A.T], [A, np.zeros((len(A), len(A)))]])
    y[on] = np.linalg.lstsq(A.T, mu * (x_tilde - x) - K[~on].T @ y[~on], rcond=None)[0]
    solved = np.linalg.lstsq(saddle, np.concatenate([g, np.zeros(len(A))]), rcond=None)[0]
    curved = np.zeros(m)
    curved[on] = solved[n:]
    return solved[:n], y, curved


def random_draws(seed: int):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((COUNT, M, N)) / 4
    weight = rng.uniform(0.05, 0.8, (COUNT, M))
    mu = rng.uniform(0.5, 2, COUNT)
    x_true = rng.standard_normal((COUNT, SAMPLES, N))
    return K, weight, mu, x_true + 0.5 * rng.standard_normal(x_true.shape), x_true


def alone(problem, x_tilde, x_true, h):
    """The bound by the second regime only."""
    batch, sizes = len(x_tilde), SOLVER.step_sizes(problem)
    pair = ReturnedPair(problem, x_tilde, sizes, h.solution.x, h.solution.y)
    return bound_error(
        pair,
        h.grad,
        lambda _: h.grad,
        lambda x: (x - x_true) / batch,
        smoothness=1 / batch,
        regimes=(StrongConvexity(),),
    )


@pytest.mark.parametrize(
    ("smoothing", "blocks"),
    [
        pytest.param(0.0, M, id="L1", marks=pytest.mark.slow),
        pytest.param(0.2, M, id="Huber"),
        pytest.param(0.0, 2, id="L1 blocks"),
        pytest.param(0.2, 3, id="Huber blocks", marks=pytest.mark.slow),
    ],
)
def test_no_violation_in_hundreds_of_draws(smoothing, blocks):
    K, weight, *data = random_draws(3)
    draws = K, weight[:, :blocks], *data

    def run(K, weight, mu, x_tilde, x_true):
        F = hg.Huber(weight, smoothing) if smoothing else hg.L1(weight)
        problem = hg.LowerLevel(K=K, F=F, G=hg.Quadratic(mu))
        # One that is near the truth, and one that is far and returns an average.
        strategy = hg.LimitFormula() if smoothing else hg.ErgodicUnrolling()
        h = bounded(problem, x_tilde, x_true, strategy)
        results = [(h.grad, h.error_bound)]
        return [*results, (h.grad, alone(problem, x_tilde, x_true, h))] if smoothing else results

    results = jax.jit(jax.vmap(run))(*map(jnp.asarray, draws))
    oracles = []
    for K, weight, *data in zip(*draws, strict=True):
        rows = np.repeat(weight, M // blocks)
        in_K, rest = kkt_gradient(K, rows, smoothing, *data)
        in_weight = np.sum(rest[:M].reshape(blocks, -1), axis=1)
        oracles.append((in_K, np.concatenate([in_weight, rest[M:]])))
    for grad, bound in results:
        looseness = []
        for i, (in_K, rest) in enumerate(oracles):
            mine = flat(jax.tree.map(lambda leaf, i=i: leaf[i], grad))
            error = np.linalg.norm(mine - np.concatenate([in_K, rest]))
            if np.isfinite(bound.total[i]):
                in_K_alone = np.linalg.norm(np.ravel(grad.K[i]) - in_K)
                assert error <= bound.total[i]
                assert in_K_alone <= bound.grad.K[i]
                if error > 1e-12 * np.linalg.norm(mine):
                    looseness.append(float(bound.total[i]) / error)
        # The bound is tight: an error a tenth larger than it says would have been seen.
        assert np.sum(np.isfinite(bound.total)) > 0.8 * COUNT
        assert np.median(looseness) < 1.1


def draws_of_potentials(jump: bool):
    """Problems with two potentials of two slopes, with a jump at 0 and without."""
    rng = np.random.default_rng(4)
    slopes, jumps = rng.uniform(0.1, 2, (COUNT, 2, 2)), rng.uniform(0.05, 0.3, (COUNT, 2))
    K, _, _, x_tilde, x_true = random_draws(5)
    return K, slopes, jumps if jump else None, x_tilde, x_true


# One without a jump compiles for a quarter of a minute, and is the same sum with a term less.
@pytest.mark.parametrize("jump", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_violation_for_potentials(jump):
    """Against a tight solve and its limit formula (test_limits.py: central differences)."""

    def run(K, slopes, jump, x_tilde, x_true):
        problem = hg.LowerLevel(K, hg.ConvexPotential(slopes, (0.1, 0.4), jump), hg.Quadratic(1.0))
        h = bounded(problem, x_tilde, x_true, hg.Truncation(5))
        exact = hg.hypergradient(problem, x_tilde, x_true, solver=TIGHT, strategy=DIRECT)
        solved = jnp.all(exact.solution.stats.residual <= 1e-13)
        results = [h.error_bound, alone(problem, x_tilde, x_true, h)]
        return h.grad, exact.grad, solved, results if jump is None else results[:1]

    grad, true, solved, bounds = jax.jit(jax.vmap(run))(*draws_of_potentials(jump))
    assert np.all(solved)
    difference = jax.tree.map(lambda a, b: np.asarray(a - b), grad, true)
    for bound in bounds:
        known = np.isfinite(bound.total)
        assert np.mean(known) > 0.8
        pairs = zip(jax.tree.leaves(difference), jax.tree.leaves(bound.grad), strict=True)
        for leaf, at_most in pairs:
            error = np.linalg.norm(leaf.reshape(COUNT, -1), axis=1)
            assert np.all((error <= at_most + 1e-11)[known])
        error = np.linalg.norm(difference.F.slopes.reshape(COUNT, -1), axis=1)
        assert np.median((bound.grad.F.slopes / error)[known]) < 1.1


def test_the_bound_of_every_leaf(key):
    problem, x_tilde, x_true = an_example(key)
    h = bounded(problem, x_tilde, x_true, hg.Truncation(1))
    assert h.error_bound.certified.shape == (3, 1)
    assert "certified: active set 100 %" in repr(h)
    grad = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact()).grad
    differences = jax.tree.map(lambda a, b: jnp.linalg.norm(jnp.ravel(a - b)), h.grad, grad)
    assert jax.tree.structure(h.error_bound.grad) == jax.tree.structure(differences)
    pairs = zip(jax.tree.leaves(differences), jax.tree.leaves(h.error_bound.grad), strict=True)
    for difference, bound in pairs:
        assert difference <= bound <= 1.001 * difference + 1e-9
    assert np.linalg.norm(flat(differences)) <= h.error_bound.total


def an_example(key, batch=(3, 1)):
    keys = jax.random.split(key, 3)
    problem = hg.LowerLevel(
        K=hg.operators.random(M, N, key=keys[0]), F=hg.L1(0.1), G=hg.Quadratic(1.0)
    )
    x_true = jax.random.normal(keys[1], (*batch, N))
    return problem, x_true + 0.3 * jax.random.normal(keys[2], (*batch, N)), x_true


def test_nothing_is_given_unasked(key):
    problem, x_tilde, x_true = an_example(key)
    plain = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Truncation(1), solver=SOLVER)
    assert plain.error_bound is None
    assert plain.chosen is None
    assert "error_bound" not in repr(plain)
    asked = bounded(problem, x_tilde, x_true, hg.Truncation(1))
    np.testing.assert_array_equal(plain.grad.K, asked.grad.K)
    np.testing.assert_array_equal(plain.value, asked.value)


def test_float32_promises_no_more_than_it_can(key):
    problem, x_tilde, x_true = an_example(key)
    true = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact()).grad
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (problem, x_tilde, x_true))
    h = bounded(*single, solver=hg.ChambollePock(2000))
    assert h.error_bound.total.dtype == jnp.float32
    assert np.linalg.norm(flat(h.grad) - flat(true)) <= float(h.error_bound.total)


# ------------------------------------------------------------------------------- the two regimes


def test_huber_on_its_kink_is_certified_by_strong_convexity():
    # x + clip(2 x) = 1.5 has the solution 0.5, where the Huber function has its kink.
    problem = hg.LowerLevel(K=jnp.eye(2), F=hg.Huber(1.0, 0.5), G=hg.Quadratic(1.0))
    x_true = jnp.zeros((1, 2))
    h = bounded(problem, jnp.array([[1.5, 0.3]]), x_true, solver=TIGHT)
    assert h.error_bound.certified.tolist() == [hg.Regime.STRONG_CONVEXITY]
    sides = []
    # The gradients on both sides are limits of the true one: the bound has to cover the two.
    for shift in (-1e-7, 1e-7):
        side = bounded(problem, jnp.array([[1.5 + shift, 0.3]]), x_true, solver=TIGHT)
        assert side.error_bound.certified.tolist() == [hg.Regime.ACTIVE_SET]
        assert side.error_bound.total < 1e-9
        assert np.linalg.norm(flat(side.grad) - flat(h.grad)) <= h.error_bound.total
        sides.append(flat(side.grad))
    assert np.linalg.norm(sides[0] - sides[1]) > 0.1


def test_matrix_free_operators_take_strong_convexity():
    operator = hg.operators.difference_operator((2, 3))
    K, rng = np.asarray(operator.as_matrix()), np.random.default_rng(0)
    weight, x_true = rng.uniform(0.2, 0.4, len(K)), rng.standard_normal((2, K.shape[1]))
    x_tilde = x_true + 0.4 * rng.standard_normal(x_true.shape)
    problem = hg.LowerLevel(K=operator, F=hg.Huber(weight, 0.2), G=hg.Quadratic(1.5))
    h = bounded(problem, x_tilde, x_true)
    assert h.error_bound.certified.tolist() == [hg.Regime.STRONG_CONVEXITY] * 2
    _, true = kkt_gradient(K, weight, 0.2, 1.5, x_tilde, x_true)
    error = np.linalg.norm(flat((h.grad.F, h.grad.G)) - true)
    assert error <= h.error_bound.total < 2 * error + 1e-10


def test_of_the_parameters_of_an_operator_nothing_is_said(key):
    K = Convolution(jnp.array([1.0, -0.5]), 5)
    problem = hg.LowerLevel(K=K, F=hg.Huber(0.3, 0.2), G=hg.Quadratic(1.5))
    x_true = jax.random.normal(key, (2, 5))
    bound = bounded(problem, x_true + 0.3, x_true).error_bound
    assert np.isinf(bound.grad.K.kernel)
    assert np.isinf(bound.total)
    assert np.isfinite(bound.grad.F.weight)


def test_another_loss_has_the_active_set_alone(key):
    def quartic(x, x_true):
        return jnp.mean(jnp.sum((x - x_true) ** 4, axis=-1))

    problem, x_tilde, x_true = an_example(key)
    problem = eqx.tree_at(lambda p: p.F.weight, problem, jnp.full(M, 0.1))
    h = bounded(problem, x_tilde, x_true, hg.Truncation(1), loss=quartic)
    numbers = map(np.asarray, (problem.K, problem.F.weight, 0.0, 1.0, x_tilde[:, 0], x_true[:, 0]))
    true = kkt_gradient(*numbers, lambda x, x_true: 4 * (x - x_true) ** 3)
    error = np.linalg.norm(flat(h.grad) - np.concatenate(true))
    assert error <= h.error_bound.total < 1.01 * error
    smooth = hg.LowerLevel(K=problem.K, F=hg.Huber(0.1, 0.1), G=hg.Quadratic(1.0))
    applicable = [regime.applies(smooth, None) for regime in REGIMES]
    assert applicable == [True, False]


@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 1, 0)], ids=["regular", "singular"])
def test_inverse_norm_bounds_that_of_the_dense_matrix(key, rows):
    problem, x_tilde, _ = an_example(key, (3,))
    problem = hg.LowerLevel(K=problem.K[jnp.array(rows)], F=problem.F, G=problem.G)

    @jax.jit
    def look(x_tilde):
        sizes = SOLVER.step_sizes(problem)
        # x = 0 and y = 0 lie between all kinks, so that a repeated row counts.
        z = NormalMap(problem, x_tilde, sizes).arguments(-x_tilde, jnp.zeros((3, problem.m)))
        system = active_system(problem, sizes, z, jnp.zeros(3))

        def column(e):
            a, b = (jnp.tile(part, (3, 1)) for part in jnp.split(e, [N]))
            return jnp.concatenate(system.product((a, b)), axis=-1)

        return jax.vmap(column)(jnp.eye(N + problem.m)), system.inverse_norm()

    columns, bound = look(x_tilde)
    least = np.linalg.svd(np.moveaxis(columns, 0, -1), compute_uv=False)[:, -1]
    if len(set(rows)) < len(rows):
        assert np.all(least < 1e-12)
        assert np.all(np.isinf(bound))
    else:
        assert np.all(1 / least <= bound)
        assert np.all(bound <= 4 / least)


# ---------------------------------------------------------------------------- what has no bound

EYE = jnp.eye(2)
KINK = jnp.array([[0.1, 1.0]])  # soft thresholding by 0.1 has its kink there
SHORT = hg.ChambollePock(3)
UNCERTIFIED = {
    "kink": (hg.LowerLevel(K=EYE, F=hg.L1(0.1), G=hg.Quadratic(1.0)), KINK),
    # Both rows vanish at the solution, so that y is one of several.
    "dependent rows": (
        hg.LowerLevel(K=jnp.ones((2, 2)), F=hg.L1(1.0), G=hg.Quadratic(1.0)),
        jnp.array([[0.1, 0.2]]),
    ),
    # K does not see the second coordinate: any value in the box will do.
    "linear programme": (
        hg.LowerLevel(K=jnp.array([[1.0, 0.0]]), F=hg.L1(1.0), G=hg.Box(0.1)),
        jnp.array([[1.0, 1.0]]),
    ),
    "group": (
        hg.LowerLevel(K=EYE, F=hg.GroupL1(0.1, shape=(2, 1)), G=hg.Quadratic(1.0)),
        jnp.array([[1.0, 1.0]]),
    ),
}


@pytest.mark.parametrize("name", UNCERTIFIED)
def test_where_no_bound_holds_it_says_so(name):
    problem, x_tilde = UNCERTIFIED[name]
    bound = bounded(problem, x_tilde, jnp.zeros((1, 2)), hg.Truncation(1), SHORT).error_bound
    assert bound.certified.tolist() == [hg.Regime.NEITHER]
    assert np.isinf(bound.total)
    assert np.isinf(bound.on_certified)
    assert all(np.isinf(leaf) for leaf in jax.tree.leaves(bound.grad))
    assert "no bound holds: 1 of 1 samples are not certified" in repr(bound)


def test_a_kink_within_the_forward_error():
    problem, _ = UNCERTIFIED["kink"]
    found = [
        bounded(problem, KINK + shift, jnp.zeros((1, 2)), hg.Truncation(1), SHORT).error_bound
        for shift in (1e-15, 1e-6)
    ]
    codes = [bound.certified.tolist() for bound in found]
    assert codes == [[hg.Regime.NEITHER], [hg.Regime.ACTIVE_SET]]


def test_the_part_that_stems_from_the_certified_samples():
    problem, x_tilde = UNCERTIFIED["kink"]
    good = jnp.array([[0.7, -0.4]])
    both, x_true = jnp.concatenate([x_tilde, good]), jnp.zeros((2, 2))
    h = bounded(problem, both, x_true, hg.Truncation(1), SHORT)
    bound = h.error_bound
    assert bound.certified.tolist() == [hg.Regime.NEITHER, hg.Regime.ACTIVE_SET]
    assert np.isinf(bound.total)
    # By itself the good sample has twice the weight in the mean.
    one = bounded(problem, good, x_true[:1], hg.Truncation(1), SHORT)
    np.testing.assert_allclose(bound.on_certified, one.error_bound.total / 2, rtol=1e-6)
    assert f"1 of 2 samples are not certified; without them {bound.on_certified:.2g}" in repr(h)


# ------------------------------------------------------------------------------- to a target error

DRIVEN = hg.LimitFormula(hg.Tolerance())
PATIENT = hg.ChambollePock(100_000)


def drive(problem, x_tilde, x_true, solver=PATIENT, target_error=1e-6, **options):
    return hg.hypergradient_to_target(
        problem, x_tilde, x_true, solver=solver, strategy=DRIVEN, target_error=target_error,
        **options,
    )  # fmt: skip


def test_the_target_is_reached_and_told(key):
    problem, x_tilde, x_true = an_example(key)
    true = flat(hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact()).grad)
    taken = []
    for target in (1e-2, 1e-9):
        h = drive(problem, x_tilde, x_true, target_error=target)
        size = np.linalg.norm(flat(h.grad))
        assert h.chosen.status == hg.Status.CONVERGED
        assert h.error_bound.total <= target * size
        assert np.linalg.norm(flat(h.grad) - true) <= target * size
        assert "target reached" in repr(h)
        taken.append(int(jnp.max(h.chosen.iterations)))
    assert h.chosen.rounds > 1
    assert h.chosen.iterations.shape == (3, 1)
    # (Of the lower level: a system of active sets that have not settled may take more steps.)
    assert taken[0] < taken[1]
    # Whatever the tolerances of a round, all are one program.
    assert count_compilations(lambda: drive(problem, x_tilde, x_true, target_error=1e-5)) == 0


def test_a_target_out_of_reach_is_told():
    problem, x_tilde = UNCERTIFIED["kink"]
    x_true = jnp.zeros((1, 2))
    h = drive(problem, x_tilde, x_true)
    assert h.chosen.status == hg.Status.NOT_CERTIFIED
    assert "target not reached, not certified" in repr(h)
    with pytest.raises(Exception, match="reaching the target error did not succeed"):
        drive(problem, x_tilde, x_true, throw=True)


def test_a_target_with_too_few_iterations(key):
    problem, x_tilde, x_true = an_example(key)
    h = drive(problem, x_tilde, x_true, hg.ChambollePock(20), 1e-9)
    assert h.chosen.status == hg.Status.ITERATIONS_USED_UP
    assert h.error_bound.total > 1e-9 * np.linalg.norm(flat(h.grad))


def test_targets_that_make_no_sense(key):
    problem, x_tilde, x_true = an_example(key)
    for strategy in (hg.Truncation(1), hg.LimitFormula(hg.Steps(3))):
        with pytest.raises(ValueError, match=r"target_error .* got .*: pass hg.LimitFormula"):
            hg.hypergradient_to_target(
                problem, x_tilde, x_true, strategy=strategy, target_error=1e-3
            )
    with pytest.raises(ValueError, match=r"target_error must lie in \(0, 1\); got 2"):
        drive(problem, x_tilde, x_true, target_error=2.0)
    with (
        pytest.warns(DeprecationWarning, match="hypergradient_to_target"),
        pytest.raises(ValueError, match=r"target_error must lie in \(0, 1\); got 3"),
    ):
        hg.hypergradient(problem, x_tilde, x_true, strategy=DRIVEN, target_error=3.0)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda *data: drive(problem, *data).value)(x_tilde, x_true)


def test_a_tolerance_may_be_an_array():
    number, array = hg.Tolerance(1e-3), hg.Tolerance(jnp.asarray(1e-3))
    assert number.label == array.label == "tolerance=0.001"
    assert number == hg.Tolerance(1e-3)
    assert isinstance(DRIVEN.with_tolerance(jnp.asarray(1e-3)).adjoint.rtol, jax.Array)
