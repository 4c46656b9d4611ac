"""Tomography, and a data term on measurements as a second dual block."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg

ANGLES = np.linspace(0, np.pi, 7, endpoint=False)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# ------------------------------------------------------------------------------------ tomography


@pytest.mark.parametrize("shape", [(5, 8), (1, 4)])
def test_the_back_projection_is_the_exact_adjoint(shape):
    hg.check_operator(hg.operators.Radon(shape, ANGLES))


def test_line_integrals_of_a_disc_are_its_chords():
    side, radius = 129, 40.0
    rows, columns = np.mgrid[:side, :side] - side // 2
    disc = (rows**2 + columns**2 <= radius**2).astype(float)
    A = hg.operators.Radon((side, side), ANGLES)
    projections = np.asarray(A.mv(jnp.asarray(disc.ravel()))).reshape(len(ANGLES), -1)
    offsets = np.arange(A.bins) - (A.bins - 1) / 2
    chords = 2 * np.sqrt(np.maximum(radius**2 - offsets**2, 0))
    inner = np.abs(offsets) < 0.9 * radius  # the pixels' staircase is at the ends
    # A pixel is as wide as a bin: chords are off by about one pixel of 80.
    assert np.max(np.abs(projections - chords)[:, inner]) < 2.5
    assert np.max(np.abs(projections.sum(axis=1) - disc.sum())) < 1e-9  # no mass is lost


def test_an_off_centre_pixel_moves_with_the_angle():
    A = hg.operators.Radon((9, 9), [0.0, np.pi / 2, np.pi])
    image = np.zeros((9, 9))
    image[6, 3] = 1.0  # two rows below the middle, one column left of it
    found = np.asarray(A.mv(jnp.asarray(image.ravel()))).reshape(3, -1)
    middle = (A.bins - 1) / 2
    centres = found @ np.arange(A.bins) - middle
    np.testing.assert_allclose(centres, [-1.0, 2.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("angles", [[], [[0.0]], [np.nan]])
def test_angles_that_are_none(angles):
    with pytest.raises(ValueError, match=r"Radon.angles must be .*; got .*: try"):
        hg.operators.Radon((4, 4), angles)


# ------------------------------------------------------------------------- the second dual block


def beside(x, b):
    return np.concatenate([x, b], axis=-1)


def a_problem(rng, F, G, D):
    n, p = 6, 4
    K, A = rng.normal(size=(5, n)), rng.normal(size=(p, n))
    x_tilde, b, x_true = rng.normal(size=(3, n)), rng.normal(size=(3, p)), rng.normal(size=(3, n))
    problem = hg.with_measurements(hg.LowerLevel(K=K, F=F, G=G), A, D)
    return problem, beside(x_tilde, b), beside(x_true, b)


@jax.jit
def closed_form(weights, K, A, x_tilde, b):
    """All three functions quadratic: one linear system."""
    f, g, d = weights
    normal = f * K.T @ K + d * A.T @ A + g * jnp.eye(K.shape[1])
    return jnp.linalg.solve(normal, (d * b @ A + g * x_tilde).T).T


STRATEGIES = [
    hg.FullUnrolling(),
    hg.LimitFormula(hg.CGLS()),
    hg.Exact(),
    hg.Piggyback(),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.label)
def test_quadratics_agree_with_the_normal_equations(rng, strategy):
    weights = (0.3, 0.7, 2.0)
    F, G, D = map(hg.Quadratic, weights)
    problem, data, truth = a_problem(rng, F, G, D)
    x_tilde, b, x_true = data[:, :6], data[:, 6:], truth[:, :6]
    solver = hg.ChambollePock(4000)
    h = hg.hypergradient(problem, data, truth, solver=solver, strategy=strategy)

    def loss(weights, K, A):
        x = closed_form(weights, K, A, x_tilde, b)
        return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))

    K = problem.K
    x = closed_form(weights, K.K, K.A, x_tilde, b)
    np.testing.assert_allclose(h.solution.x[:, :6], x, atol=1e-9)
    expected, dK, dA = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(weights, K.K, K.A)
    found = h.grad.F.parts[0].weight, h.grad.G.parts[0].weight, h.grad.F.parts[1].weight
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(h.grad.K.K, dK, atol=1e-8)
    np.testing.assert_allclose(h.grad.K.A, dA, atol=1e-8)


def test_l1_agrees_with_a_plain_primal_dual_loop(rng):
    problem, data, _ = a_problem(rng, hg.L1(0.2), hg.Zero(), hg.Quadratic(2.0))
    K, A, b = np.asarray(problem.K.K), np.asarray(problem.K.A), np.asarray(data[:, 6:])
    step = 0.9 / np.linalg.norm(np.concatenate([K, A]), 2)
    x = np.asarray(data[:, :6])
    x_bar, y, u = x, np.zeros((3, 5)), np.zeros((3, 4))
    for _ in range(20_000):
        y = np.clip(y + step * x_bar @ K.T, -0.2, 0.2)
        u = (u + step * (x_bar @ A.T - b)) / (1 + step / 2.0)
        new = x - step * (y @ K + u @ A)
        x, x_bar = new, 2 * new - x
    for strategy in (hg.Truncation(1), hg.Exact()):
        found = hg.solve(problem, data, solver=hg.ChambollePock(20_000), strategy=strategy)
        np.testing.assert_allclose(found.x[:, :6], x, atol=1e-8)
        np.testing.assert_allclose(found.x[:, 6:], b, atol=0)


def test_it_agrees_with_the_data_term_of_the_same_matrix(rng):
    K, A = rng.normal(size=(5, 6)), rng.normal(size=(4, 6))
    b = rng.normal(size=(2, 4))
    x_tilde = hg.operators.pseudo_inverse(A, b)
    closed = hg.LowerLevel(K=K, F=hg.Huber(0.2, 0.1), G=hg.DataFidelity(A, 3.0))
    blocks = hg.with_measurements(
        hg.LowerLevel(K=K, F=hg.Huber(0.2, 0.1), G=hg.Zero()), A, hg.Quadratic(3.0)
    )
    solver = hg.ChambollePock(20_000)
    expected = hg.solve(closed, x_tilde, solver=solver, strategy=hg.Truncation(1)).x
    found = hg.solve(blocks, beside(x_tilde, b), solver=solver, strategy=hg.Truncation(1)).x
    np.testing.assert_allclose(found[:, :6], expected, atol=1e-7)


def test_tomography_by_total_variation(rng):
    """Of a phantom, from noisy projections: far closer than the least-squares reconstruction."""
    shape = (8, 8)
    phantom = np.zeros(shape)
    phantom[1:5, 2:6], phantom[3:7, 3:7] = 1.0, 0.5
    A = hg.operators.Radon(shape, np.linspace(0, np.pi, 8, endpoint=False))
    b = A.mv(jnp.asarray(phantom.ravel())) + 0.1 * rng.standard_normal(A.out_size())
    least_squares = np.linalg.lstsq(np.asarray(A.as_matrix()), np.asarray(b), rcond=None)[0]
    K = hg.operators.difference_operator(shape)
    problem = hg.LowerLevel(K=K, F=hg.GroupL1(0.02, shape=(2, 64)), G=hg.Zero())
    problem = hg.with_measurements(problem, A, hg.Quadratic(1.0))
    data, truth = (beside(x, b) for x in (np.zeros(64), phantom.ravel()))
    solver, parameters = hg.ChambollePock(20_000, tolerance=1e-9), lambda p: p.F.parts[0].weight

    def at(weight: float) -> hg.Hypergradient:
        """By one program for all weights."""
        changed = eqx.tree_at(lambda p: p.F.parts[0].weight, problem, jnp.asarray(weight))
        return hg.hypergradient(
            changed, data, truth, solver=solver, strategy=hg.LimitFormula(hg.CGLS()),
            parameters=parameters,
        )  # fmt: skip

    h = at(0.02)
    error = np.linalg.norm(h.solution.x[:64] - phantom.ravel())
    assert error < 0.5 * np.linalg.norm(least_squares - phantom.ravel())

    central = (at(0.02 + 1e-5).value - at(0.02 - 1e-5).value) / 2e-5
    np.testing.assert_allclose(h.grad.F.parts[0].weight, central, rtol=1e-3)


def test_an_operator_for_other_images_is_refused():
    problem = hg.LowerLevel(K=jnp.eye(6), F=hg.L1(0.1), G=hg.Zero())
    with pytest.raises(ValueError, match="A must take vectors of the size of x, 6; got 9: build"):
        hg.with_measurements(problem, hg.operators.Radon((3, 3), ANGLES), hg.Quadratic(1.0))
    with pytest.raises(ValueError, match=r"shape \(2,\); got shape \(3,\): give one entry"):
        hg.with_measurements(problem, jnp.ones((2, 6)), hg.Quadratic(jnp.ones(3)))


# ------------------------------------------------------------------------- parameters by sample


def test_a_mask_and_a_noise_level_of_each_sample(rng):
    """`jax.vmap` over samples and their parameters says what one call for each of them says."""
    n, count = 5, 3
    masks = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    noise = np.array([0.5, 1.0, 2.0])
    x_tilde, x_true = masks * rng.normal(size=(count, n)), rng.normal(size=(count, n))
    G = hg.DataFidelity(hg.operators.Mask(np.ones(n)), 1.0)
    problem = hg.LowerLevel(K=rng.normal(size=(6, n)), F=hg.Huber(0.3, 0.1), G=G)
    solver, strategy = hg.ChambollePock(500), hg.LimitFormula(hg.CGLS())

    def one(mask, noise, x_tilde, x_true):
        mine = eqx.tree_at(lambda p: (p.G.A.mask, p.G.weight), problem, (mask, 1 / noise**2))
        return hg.hypergradient(mine, x_tilde, x_true, solver=solver, strategy=strategy)

    together = jax.vmap(one)(masks, noise, x_tilde, x_true)
    for i in range(count):
        alone = one(*map(jnp.asarray, (masks[i], noise[i], x_tilde[i], x_true[i])))
        np.testing.assert_allclose(together.solution.x[i], alone.solution.x, atol=1e-12)
        np.testing.assert_allclose(together.grad.K[i], alone.grad.K, atol=1e-10)
        np.testing.assert_allclose(together.grad.G.weight[i], alone.grad.G.weight, atol=1e-10)
