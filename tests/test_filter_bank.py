"""Filters of whole images: against SciPy, dense matrices, and central differences."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.fft
from helpers import random_data, relative_error
from jax.test_util import check_grads
from scipy import ndimage
from scipy.signal import correlate2d

import hypergrad as hg
from hypergrad.problem.operators import (
    FFT,
    Direct,
    FilterBank,
    Periodic,
    Reflect,
    Symmetric,
    Valid,
    ZeroOutside,
    apply,
    apply_transpose,
    bilinear_gradient,
    operator_norm,
)
from hypergrad.problem.operators.convolutions import (
    correlate,
    correlate_adjoint,
    fastest_convolution,
    filter_gradient,
)

SHAPE = (7, 9)
N = SHAPE[0] * SHAPE[1]


def by_signal(**how):
    """SciPy's filtering of one image, by `scipy.signal`."""
    return lambda image, taps: correlate2d(image, taps, **how)


def reflected(image, taps):
    """By `scipy.ndimage`, whose even filters lie one pixel further up and left."""
    return ndimage.correlate(image, taps, mode="mirror", origin=[n % 2 - 1 for n in taps.shape])


SCIPY = {
    Symmetric(): by_signal(mode="same", boundary="symm"),
    Reflect(): reflected,
    ZeroOutside(): by_signal(mode="same", boundary="fill"),
    Periodic(): by_signal(mode="same", boundary="wrap"),
    Valid(): by_signal(mode="valid"),
}
every_boundary = pytest.mark.parametrize("boundary", SCIPY, ids=lambda b: type(b).__name__)
every_convolution = pytest.mark.parametrize(
    "convolution", [Direct(), FFT()], ids=lambda c: type(c).__name__
)
# Odd, even, a row, a column.
every_size = pytest.mark.parametrize("size", [(5, 5), (2, 4), (1, 3), (3, 1)])


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape))


def bank(size=(3, 3), **how) -> FilterBank:
    return FilterBank(normal(3, *size), SHAPE, **how)


# Compiled as a whole: operation by operation, compiling takes three times as long.
compiled_norm, compiled_product = eqx.filter_jit(operator_norm), eqx.filter_jit(apply)


def true_norm(K: FilterBank) -> float:
    """Of the dense matrix, whose columns are the unit images as SciPy filters them."""
    filtered, units = SCIPY[K.boundary], np.eye(K.in_size()).reshape(-1, *K.image_shape)
    rows = [[filtered(unit, taps).ravel() for unit in units] for taps in np.asarray(K.filters)]
    return float(np.linalg.norm(np.concatenate(rows, axis=1), 2))


@eqx.filter_jit
def products(K: FilterBank, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    return K.mv(x), K.T.mv(y), K.as_matrix()


@eqx.filter_jit
def of_a_batch(K: FilterBank, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    return apply(K, x), apply_transpose(K, y), bilinear_gradient(K, (y, x)).filters


# ------------------------------------------------------------------------------------ products


@every_boundary
@every_convolution
@every_size
def test_products(boundary, convolution, size):
    """Filter by filter against SciPy, and the adjoint against the transpose of the matrix."""
    K, x = bank(size, boundary=boundary, convolution=convolution), normal(N)
    y, image = normal(K.out_size()), np.asarray(x).reshape(SHAPE)
    expected = [SCIPY[boundary](image, taps) for taps in np.asarray(K.filters)]
    assert (3, *K.response_shape) == np.shape(expected)
    K_x, KT_y, matrix = map(np.asarray, products(K, x, y))
    np.testing.assert_allclose(K_x, np.ravel(expected), atol=1e-13)
    np.testing.assert_allclose(matrix @ np.asarray(x), np.ravel(expected), atol=1e-13)
    np.testing.assert_allclose(KT_y, matrix.T @ np.asarray(y), atol=1e-13)
    np.testing.assert_allclose(np.vdot(K_x, y), np.vdot(x, KT_y), rtol=1e-13)


@every_boundary
def test_direct_and_fft_agree(boundary):
    size = (5, 4)
    direct, fft = (bank(size, boundary=boundary, convolution=c) for c in (Direct(), FFT()))
    x, y = normal(2, N), normal(2, direct.out_size())
    both = zip(of_a_batch(direct, x, y), of_a_batch(fft, x, y), strict=True)
    for (one, other), rtol in zip(both, (1e-14, 1e-14, 1e-12), strict=True):
        assert relative_error(one, other) < rtol


@every_convolution
def test_a_batch_is_its_images(convolution):
    K, x, y = bank(convolution=convolution), normal(2, 2, N), normal(2, 2, 3 * N)
    K_x, KT_y, _ = map(np.asarray, of_a_batch(K, x, y))
    for i in np.ndindex(2, 2):
        of_one = products(K, np.asarray(x)[i], np.asarray(y)[i])
        np.testing.assert_allclose(K_x[i], of_one[0], atol=1e-13)
        np.testing.assert_allclose(KT_y[i], of_one[1], atol=1e-13)


def test_float32_stays_float32():
    K = FilterBank(jnp.ones((2, 3, 3), jnp.float32), SHAPE)
    x = jnp.ones(N, jnp.float32)

    def everything():
        K_x = K.mv(x)
        return K_x, K.T.mv(K_x), operator_norm(K), bilinear_gradient(K, (K_x, x)).filters

    assert {traced.dtype for traced in jax.eval_shape(everything)} == {x.dtype}


def test_filters_of_the_size_of_the_image():
    K = FilterBank(normal(2, 4, 3), (4, 3), Periodic())
    image = normal(12)
    expected = [
        correlate2d(np.asarray(image).reshape(4, 3), taps, mode="same", boundary="wrap")
        for taps in np.asarray(K.filters)
    ]
    np.testing.assert_allclose(compiled_product(K, image), np.ravel(expected), atol=1e-13)
    assert float(compiled_norm(K)) == pytest.approx(true_norm(K), rel=1e-10)


def test_large_filters_are_transformed():
    assert fastest_convolution((5, 5)) == Direct()
    assert fastest_convolution((31, 31)) == FFT()
    assert FilterBank(normal(1, 12, 12), (20, 20)).convolution == FFT()


# --------------------------------------------------------------------------------- derivatives


@every_convolution
def test_gradient_in_the_filters_sums_over_batch_and_pairs(convolution):
    """`sum <left, K right>` is linear in the filters: its gradient is its value at each of them."""
    K = bank(convolution=convolution)
    left, right = normal(2, 2, 3 * N), normal(2, 2, N)
    pairs = zip(left, right, strict=True)
    got = np.asarray(eqx.filter_jit(bilinear_gradient)(K, *pairs).filters)
    for i in ((0, 0, 0), (1, 2, 1), (2, 0, 2)):
        unit = eqx.tree_at(lambda K: K.filters, K, jnp.zeros_like(K.filters).at[i].set(1.0))
        product = np.asarray(compiled_product(unit, right))
        assert float(got[i]) == pytest.approx(np.vdot(left, product), rel=1e-12)


def test_strips_that_do_not_divide_the_image(monkeypatch):
    monkeypatch.setattr("hypergrad.operators.convolutions._STRIP_PIXELS", 20)  # 2 rows of 7
    images, responses = normal(2, 9, 11), normal(2, 3, 7, 9)
    compiled = jax.jit(filter_gradient, static_argnums=2)
    direct, fft = (compiled(images, responses, c) for c in (Direct(), FFT()))
    assert relative_error(direct, fft) < 1e-13


@every_convolution
@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (correlate, ((2, 3, 2), (2, 6, 5))),
        (correlate_adjoint, ((2, 3, 2), (2, 2, 4, 4))),
        (filter_gradient, ((2, 6, 5), (2, 2, 4, 4))),
    ],
)
def test_derivatives_of_every_product(product, shapes, convolution):
    """Forwards, backwards, twice, and mapped over any of the arguments."""

    @jax.jit
    def run(a, b):
        return product(a, b, convolution)

    a, b = (normal(*shape) for shape in shapes)
    check_grads(run, (a, b), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
    many_a, many_b = (normal(2, *shape) for shape in shapes)
    for axes in ((0, 0), (0, None), (None, 0)):
        many = list(zip((many_a, many_b), axes, strict=True))
        got = jax.vmap(run, axes)(*(m if axis == 0 else m[0] for m, axis in many))
        for i in range(2):
            one = [m[i if axis == 0 else 0] for m, axis in many]
            np.testing.assert_allclose(got[i], run(*one), atol=1e-13)


# ---------------------------------------------------------------------------------------- norm


@every_size
def test_norm_of_a_periodic_bank_is_known(size):
    K = bank(size, boundary=Periodic())
    assert float(compiled_norm(K)) == pytest.approx(true_norm(K), rel=1e-12)


@every_boundary
@every_size
def test_norm_is_an_upper_bound(boundary, size):
    K = FilterBank(normal(2, *size), (16, 18), boundary)
    true = true_norm(K)
    assert true <= float(compiled_norm(K)) <= 1.1 * true


# -------------------------------------------------------------------------------------- lineax


def test_lineax_sees_an_operator():
    K = bank()
    matrix = np.asarray(K.as_matrix())
    for operator, expected in ((K, matrix), (K.T, matrix.T), (K.T @ K, matrix.T @ matrix)):
        assert (operator.out_size(), operator.in_size()) == expected.shape
        np.testing.assert_allclose(operator.as_matrix(), expected, atol=1e-12)
        materialised = lx.materialise(lx.linearise(lx.conj(operator)))
        np.testing.assert_allclose(materialised.as_matrix(), expected, atol=1e-12)
        assert not lx.is_symmetric(operator)
    square = FilterBank(normal(1, 3, 3), SHAPE)
    np.testing.assert_array_equal(lx.diagonal(square), np.diag(square.as_matrix()))
    np.testing.assert_array_equal(lx.tridiagonal(square)[0], np.diag(square.as_matrix()))


# ---------------------------------------------------------------------------------- strategies


@pytest.fixture(scope="module")
def scene():
    """A small image and a bank that is not overcomplete on its active rows."""
    x_true = normal(5, 6).ravel()
    x_tilde = x_true + 0.3 * normal(30)
    K = FilterBank(0.5 * normal(2, 3, 3), (5, 6))
    problem = hg.LowerLevel(K=K, F=hg.L1(0.1), G=hg.Quadratic(1.0))
    compiled_sizes = eqx.filter_jit(hg.ChambollePock(200, step_ratio=100.0).with_step_sizes)
    solver = compiled_sizes(problem)
    return problem, x_tilde, x_true, solver


@pytest.fixture(scope="module")
def central_differences(scene):
    """Of the loss at the converged lower level, in every tap."""
    problem, x_tilde, x_true, solver = scene

    @jax.jit
    def loss(filters):
        moved = eqx.tree_at(lambda p: p.K.filters, problem, filters)
        x = hg.solve(moved, x_tilde, solver=solver, strategy=hg.Truncation(1)).x
        return 0.5 * jnp.sum((x - x_true) ** 2)

    filters, h = problem.K.filters, 1e-5
    units = jnp.eye(filters.size).reshape(-1, *filters.shape)
    ends = jax.lax.map(loss, jnp.concatenate([filters + h * units, filters - h * units]))
    return ((ends[: len(units)] - ends[len(units) :]) / (2 * h)).reshape(filters.shape)


@pytest.mark.parametrize(
    ("label", "rtol"),
    [
        ("full", 1e-6),
        ("truncation:k=150", 1e-6),
        ("limit:steps=200", 1e-6),
        ("limit:cgls", 1e-6),
        ("piggyback", 1e-6),
        ("jaxopt", 1e-5),
        ("optimistix-checkpointed", 1e-5),
    ],
)
def test_hypergradients_are_central_differences(label, rtol, scene, central_differences):
    problem, x_tilde, x_true, solver = scene
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=hg.parse_strategy(label))
    assert relative_error(h.grad.K.filters, central_differences) < rtol


def test_a_weight_per_filter_holds_at_every_pixel_of_its_output(scene):
    problem, x_tilde, x_true, solver = scene
    per_filter = jnp.array([0.05, 0.2])
    strategy, found = hg.Truncation(20), []
    for weight in (per_filter, jnp.repeat(per_filter, 30)):
        problem = eqx.tree_at(lambda p: p.F.weight, problem, weight)
        h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
        found.append(h)
    blocks, rows = found
    np.testing.assert_allclose(blocks.solution.x, rows.solution.x, rtol=1e-12)
    np.testing.assert_allclose(blocks.grad.K.filters, rows.grad.K.filters, rtol=1e-9, atol=1e-12)
    expected = np.asarray(rows.grad.F.weight).reshape(2, 30).sum(1)
    np.testing.assert_allclose(blocks.grad.F.weight, expected, rtol=1e-9)
    other = hg.LowerLevel(K=FilterBank(problem.K.filters, (7, 4)), F=hg.L1(per_filter), G=problem.G)
    assert other.m == 2 * 28


def test_without_a_boundary_a_bank_of_differences_is_the_matrix_of_a_patch():
    """No row for a difference across the border."""
    down, right = [[[-1.0], [1.0]]], [[[-1.0, 1.0]]]
    matrix = np.concatenate([FilterBank(f, SHAPE, Valid()).as_matrix() for f in (down, right)])
    np.testing.assert_array_equal(matrix, hg.operators.differences2(SHAPE))


def test_a_bank_of_differences():
    """Mirrored, the border is repeated: no difference crosses it."""
    taps = np.zeros((2, 2, 2))
    taps[0, :, 0], taps[1, 0] = [-1, 1], [-1, 1]
    expected = hg.operators.difference_operator(SHAPE).mv(normal(N))
    np.testing.assert_allclose(FilterBank(taps, SHAPE).mv(normal(N)), expected, atol=1e-14)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 3)), SHAPE), r"filters must have shape \(f, h, w\); got \(3, 3\)"),
        ((np.ones((0, 3, 3)), SHAPE), r"filters must have shape \(f, h, w\)"),
        ((np.full((1, 3, 3), np.nan), SHAPE), "filters must be finite"),
        ((np.zeros((1, 3, 3)), SHAPE), "filters must not be zero"),
        ((np.ones((1, 8, 3)), SHAPE), r"not be larger than the image; got \(8, 3\)"),
        ((np.ones((1, 3, 3)), (2, 3, 4)), r"image_shape must be \(height, width\)"),
        ((np.ones((1, 3, 3)), 9), "image_shape must be a tuple"),
        ((np.ones((1, 3, 3)), SHAPE, "wrap"), r"boundary must be an object .* got 'wrap'"),
        ((np.ones((1, 3, 3)), SHAPE, Periodic(), "fft"), "convolution must be an object"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        FilterBank(*arguments)


# image, filters: large and small against each other, along one axis and both.
SIZES = [
    ((8, 9), (3, 7, 7)),
    ((5, 5), (2, 5, 5)),
    ((1, 30), (2, 1, 9)),
    ((1, 60), (2, 1, 9)),
    ((1, 80), (2, 1, 9)),
    ((24, 3), (1, 4, 3)),
    ((21, 22), (2, 3, 3)),
    ((7, 1), (1, 1, 1)),
]


@every_boundary
@pytest.mark.parametrize(("image_shape", "shape"), SIZES)
def test_norm_is_an_upper_bound_within_three_per_cent(boundary, image_shape, shape):
    corners = np.zeros(shape)
    corners[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 1.0
    for filters in (corners, np.random.default_rng(0).normal(size=shape)):
        K = FilterBank(filters, image_shape, boundary=boundary)
        true, norm = true_norm(K), float(compiled_norm(K))
        assert true <= norm * (1 + 1e-12)
        assert norm <= 1.03 * true


@every_boundary
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_norm_in_any_unit(boundary, unit):
    filters = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    for image_shape in ((5, 6), (22, 21)):
        one, other = (
            float(compiled_norm(FilterBank(jnp.asarray(f), image_shape, boundary=boundary)))
            for f in (filters, filters * np.float32(unit))
        )
        assert other == pytest.approx(unit * one, rel=1e-5)


# ------------------------------------------------------------------------------- banks of filters


@pytest.mark.parametrize(("size", "count"), [(2, 3), (5, 24), (7, 48)])
def test_dct_bank_is_the_dct_by_frequency(size, count):
    bank = hg.operators.dct_bank(size, (9, 8))
    filters = np.asarray(bank.filters)
    spectra = scipy.fft.dctn(filters, axes=(1, 2), norm="ortho")
    _, u, v = np.unravel_index(np.argmax(spectra.reshape(count, -1), 1), (1, size, size))
    expected = np.zeros((count, size, size))
    expected[range(count), u, v] = 1.0  # each filter is one frequency, and each occurs once
    np.testing.assert_allclose(spectra, expected, atol=1e-14)
    assert {*zip(u.tolist(), v.tolist(), strict=True)} == {*np.ndindex(size, size)} - {(0, 0)}
    keys = list(zip((u**2 + v**2).tolist(), u.tolist(), strict=True))
    assert keys == sorted(keys)


def test_dct_bank_takes_the_first_and_the_options_of_a_bank():
    how = {"boundary": hg.operators.Valid(), "convolution": hg.operators.FFT()}
    bank = hg.operators.dct_bank(3, (9, 8), count=4, **how)
    np.testing.assert_array_equal(bank.filters, hg.operators.dct_bank(3, (9, 8)).filters[:4])
    assert (bank.boundary, bank.convolution) == tuple(how.values())
    assert bank.image_shape == (9, 8)


def test_zero_mean_is_the_projection():
    bank = hg.operators.FilterBank(normal(3, 2, 4), (6, 7), hg.operators.Reflect())
    filters, found = np.asarray(bank.filters), hg.operators.zero_mean(bank)
    ones = np.full((8, 8), 1 / 8)  # onto the constants
    np.testing.assert_allclose(
        found.filters, (filters.reshape(3, 8) @ (np.eye(8) - ones)).reshape(3, 2, 4), atol=1e-15
    )
    assert eqx.tree_equal(eqx.tree_at(lambda b: b.filters, found, bank.filters), bank)
    np.testing.assert_allclose(found.mv(jnp.ones(42)), 0.0, atol=1e-14)


def test_training_with_filters_of_zero_mean():
    """Every update ends on the constraint, and moves the filters."""
    start = hg.LowerLevel(hg.operators.dct_bank(3, (5, 6), count=3), hg.L1(0.1), hg.Quadratic(1.0))
    x_tilde, x_true = random_data(4, 30)
    history = hg.train(
        start,
        (x_tilde + 1.0, x_true + 1.0),
        solver=hg.ChambollePock(10),
        strategy=hg.Truncation(2),
        epochs=2,
        batch_size=2,
        project=lambda p: dataclasses.replace(p, K=hg.operators.zero_mean(p.K)),
        progress=False,
    )
    filters = np.asarray(history.problem.K.filters)
    np.testing.assert_allclose(np.sum(filters, axis=(1, 2)), 0.0, atol=1e-15)
    assert np.max(abs(filters - np.asarray(start.K.filters))) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.operators.dct_bank(1, (4, 4)), "size must be a whole number of at least 2"),
        (lambda: hg.operators.dct_bank(3, (4, 4), count=9), "count must be at most 8; got 9"),
        (lambda: hg.operators.dct_bank(3, (4, 4), count=0), "count must be a whole number of at"),
        (lambda: hg.operators.dct_bank(5, (4, 4)), "filters must not be larger than the image"),
        (
            lambda: hg.operators.zero_mean(hg.operators.dct(4)),
            "bank must be a FilterBank; got .*subtract",
        ),
        (
            lambda: hg.operators.zero_mean(hg.operators.FilterBank(np.ones((2, 1, 1)), (3, 3))),
            "filters must have at least two taps",
        ),
    ],
)
def test_banks_that_cannot_be_made(make, message):
    with pytest.raises(hg.HypergradError, match=message):
        make()
