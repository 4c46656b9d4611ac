"""The operator K: products, adjoints, gradients, norm bounds; against NumPy and SciPy."""

from __future__ import annotations

import re
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
from helpers import random_data, relative_error
from scipy.signal import correlate2d

import hypergrad as hg
from hypergrad.problem.operators import (
    apply,
    apply_transpose,
    bilinear_gradient,
    dct,
    dct2,
    difference_operator,
    differences,
    differences2,
    operator_dtype,
    operator_norm,
    operator_shape,
    random,
    stack,
)

RNG = np.random.default_rng(0)
A, B, DIAGONAL = RNG.standard_normal((5, 4)), RNG.standard_normal((5, 4)), RNG.standard_normal(4)
KERNEL = RNG.standard_normal(4)


def normal(*shape: int) -> jax.Array:
    """NumPy's normal numbers: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape))


def structure(n: int, dtype=jnp.float64) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((n,), dtype)


def matrix_free(matrix) -> lx.FunctionLinearOperator:
    """The same operator as a function, so that nothing can look at its entries."""
    matrix = jnp.asarray(matrix)
    return lx.FunctionLinearOperator(lambda v: matrix @ v, structure(matrix.shape[1], matrix.dtype))


def circular_convolution(kernel: jax.Array) -> lx.FunctionLinearOperator:
    def convolve(v: jax.Array) -> jax.Array:
        return jnp.stack([kernel @ jnp.roll(v[::-1], i + 1) for i in range(4)])

    return lx.FunctionLinearOperator(convolve, structure(4))


def numpy_image_differences(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """All vertical, then all horizontal differences; 0 across the last row and column."""
    down, right = np.zeros(shape), np.zeros(shape)
    down[:-1] = np.diff(x.reshape(shape), axis=0)
    right[:, :-1] = np.diff(x.reshape(shape), axis=1)
    return np.concatenate([down.ravel(), right.ravel()])


class Case(NamedTuple):
    """An operator, and its matrix from NumPy."""

    K: jax.Array | lx.AbstractLinearOperator
    matrix: np.ndarray


MATRIX_FLOAT32 = jnp.asarray(A, jnp.float32)
IMAGE_TO_IMAGE = lx.FunctionLinearOperator(jnp.negative, jax.ShapeDtypeStruct((2, 2), jnp.float64))
MATRIX, DIAGONAL_OPERATOR = (
    lx.MatrixLinearOperator(jnp.asarray(A)),
    lx.DiagonalLinearOperator(jnp.asarray(DIAGONAL)),
)
CASES = {
    "array": Case(jnp.asarray(A), A),
    "matrix": Case(MATRIX, A),
    "function": Case(matrix_free(A), A),
    "convolution": Case(circular_convolution(jnp.asarray(KERNEL)), scipy.linalg.circulant(KERNEL)),
    "diagonal": Case(DIAGONAL_OPERATOR, np.diag(DIAGONAL)),
    "composed": Case(MATRIX @ DIAGONAL_OPERATOR, A @ np.diag(DIAGONAL)),
    "sum": Case(MATRIX + lx.MatrixLinearOperator(jnp.asarray(B)), A + B),
    "multiple": Case(-3.0 * MATRIX, -3.0 * A),
    "transpose": Case(MATRIX.T, A.T),
    "stacked": Case(
        stack(A, MATRIX @ DIAGONAL_OPERATOR, circular_convolution(jnp.asarray(KERNEL))),
        np.vstack([A, A @ np.diag(DIAGONAL), scipy.linalg.circulant(KERNEL)]),
    ),
    "image differences": Case(
        difference_operator((2, 3)),
        np.stack([numpy_image_differences(e, (2, 3)) for e in np.eye(6)], axis=1),
    ),
}
every_operator = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# ----------------------------------------------------------------------------------- products


@eqx.filter_jit
def products(K, v: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """With a batch, and with its first vector alone."""
    return apply(K, v), apply_transpose(K, y), apply(K, v[0, 0]), apply_transpose(K, y[0, 0])


@every_operator
def test_products(case):
    m, n = case.matrix.shape
    v, y = normal(2, 3, n), normal(2, 3, m)
    K_v, KT_y, K_v_alone, KT_y_alone = products(case.K, v, y)
    np.testing.assert_allclose(K_v, np.asarray(v) @ case.matrix.T, atol=1e-14)
    np.testing.assert_allclose(KT_y, np.asarray(y) @ case.matrix, atol=1e-14)
    np.testing.assert_allclose(K_v_alone, case.matrix @ np.asarray(v)[0, 0], atol=1e-14)
    np.testing.assert_allclose(KT_y_alone, case.matrix.T @ np.asarray(y)[0, 0], atol=1e-14)
    assert (operator_shape(case.K), operator_dtype(case.K)) == (case.matrix.shape, jnp.float64)


def test_float32_stays_float32():
    v = jnp.ones((3, 6), jnp.float32)
    for K in (jnp.ones((5, 6), jnp.float32), difference_operator((2, 3), dtype=jnp.float32)):
        product = jax.eval_shape(lambda v, K=K: apply(K, v), v)
        there_and_back = jax.eval_shape(lambda v, K=K: apply_transpose(K, apply(K, v)), v)
        norm = jax.eval_shape(lambda K=K: operator_norm(K))
        assert operator_dtype(K) == jnp.float32
        assert {product.dtype, there_and_back.dtype, norm.dtype} == {jnp.dtype(jnp.float32)}


# --------------------------------------------------------------- gradient of the bilinear form


def test_bilinear_gradient_of_a_matrix():
    """Outer products, summed over pairs and samples one by one."""
    lefts, rights = normal(2, 3, 5), normal(2, 3, 4)
    expected = sum(
        np.outer(left, right)
        for left, right in zip(lefts.reshape(-1, 5), rights.reshape(-1, 4), strict=True)
    )
    got = bilinear_gradient(jnp.asarray(A), *zip(lefts, rights, strict=True))
    np.testing.assert_allclose(got, expected, atol=1e-14)


def test_bilinear_gradient_of_a_composition():
    """`<left, A (d * right)>` by hand, in A and in d."""
    left, right = normal(3, 5), normal(3, 4)
    got = bilinear_gradient(MATRIX @ DIAGONAL_OPERATOR, (left, right))
    d_A, d_diagonal = jax.tree.leaves(got)
    np.testing.assert_allclose(d_A, left.T @ (right * DIAGONAL), atol=1e-14)
    np.testing.assert_allclose(d_diagonal, np.sum((left @ A) * right, axis=0), atol=1e-14)


@every_operator
def test_bilinear_gradient_is_the_gradient_of_the_form(case):
    """Against jax.grad of the sum, sample by sample through lineax's own product."""
    m, n = case.matrix.shape
    left, right = normal(3, m), normal(3, n)

    def form(K):
        mv = (lambda v: K @ v) if isinstance(K, jax.Array) else K.mv
        return sum(left[i] @ mv(right[i]) for i in range(3))

    @eqx.filter_jit
    def both(K):
        return bilinear_gradient(K, (left, right)), eqx.filter_grad(form)(K)

    got, expected = both(case.K)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


# -------------------------------------------------------------- a batch is one matrix product

# Sizes that occur nowhere else, so that a shape in a program can be recognised.
BATCH, M, N = 7, 13, 11


def every_shape(program: str) -> set[tuple[int, ...]]:
    """Of the arrays in the text of a jaxpr, e.g. `f64[7,13]`."""
    shapes = re.findall(r"\b[fi]64\[([\d,]*)\]", program)
    return {tuple(map(int, filter(None, shape.split(",")))) for shape in shapes}


@pytest.mark.parametrize("K", [jnp.ones((M, N)), lx.MatrixLinearOperator(jnp.ones((M, N)))])
def test_dense_products_with_a_batch_are_one_matrix_product(K):
    v, y = jnp.ones((BATCH, N)), jnp.ones((BATCH, M))
    for program, products in (
        (jax.make_jaxpr(lambda: apply(K, v))(), 1),
        (jax.make_jaxpr(lambda: apply_transpose(K, y))(), 1),
        # One a pair, written down for the CPU and for other devices.
        (jax.make_jaxpr(lambda: bilinear_gradient(K, (y, v), (2 * y, 3 * v)))(), 4),
    ):
        text = str(program)
        assert 1 <= text.count("dot_general") <= products
        assert all(len(shape) <= 2 for shape in every_shape(text))


@pytest.mark.usefixtures("optimised")
def test_bilinear_gradient_costs_one_product():
    """What is left after compilation: the sum of the outer products, and none of them alone."""
    K, v, y = jnp.ones((M, N)), jnp.ones((BATCH, N)), jnp.ones((BATCH, M))
    compiled = jax.jit(lambda K, v, y: bilinear_gradient(K, (y, v))).lower(K, v, y).compile()
    assert compiled.cost_analysis()["flops"] == 2 * BATCH * M * N
    assert f"[{BATCH},{M},{N}]" not in compiled.as_text()


# --------------------------------------------------------------------------------------- norm

compiled_norm = eqx.filter_jit(operator_norm)


def with_singular_values(m: int, n: int, values) -> np.ndarray:
    rng, k = np.random.default_rng(1), len(values)
    left = np.linalg.qr(rng.standard_normal((m, k)))[0]
    return left * np.asarray(values) @ np.linalg.qr(rng.standard_normal((n, k)))[0].T


DENSE = {
    "wide": RNG.standard_normal((3, 40)),
    "tall": RNG.standard_normal((40, 3)),
    "square": RNG.standard_normal((30, 30)),
    "one entry": np.array([[-2.5]]),
    "one row": RNG.standard_normal((1, 20)),
    "one column": RNG.standard_normal((20, 1)),
    "rank 1": np.outer(RNG.standard_normal(20), RNG.standard_normal(30)),
    "identity": np.eye(25),
    "orthonormal": np.asarray(dct2((5, 5))),
    "near-degenerate": with_singular_values(20, 30, [1.0, 1 - 1e-9, 1 - 1e-8, 0.5]),
    "ill-conditioned": with_singular_values(20, 20, np.logspace(0, -12, 20)),
    "repeated rows": np.repeat(RNG.standard_normal((5, 12)), 4, axis=0),
}


@pytest.mark.parametrize("matrix", DENSE.values(), ids=DENSE.keys())
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_norm_of_a_matrix_is_a_tight_upper_bound(matrix, scale):
    norm = float(compiled_norm(jnp.asarray(scale * matrix)))
    reference = scale * np.linalg.norm(matrix, 2)
    # The reference is itself rounded, hence a few eps of room below.
    assert reference * (1 - 1e-15) <= norm <= reference * (1 + 1e-10)


@pytest.mark.parametrize(
    ("dtype", "scale", "rtol"),
    [
        (np.float64, 1e-200, 1e-10),
        (np.float64, 1e200, 1e-10),
        (np.float32, 1e-25, 1e-5),
        (np.float32, 1e25, 1e-5),
    ],
)
def test_norm_does_not_underflow_or_overflow(dtype, scale, rtol):
    """Squares do: 1e-200 is a number, 1e-400 is not."""
    relative = float(compiled_norm(jnp.asarray(scale * A, dtype))) / scale
    assert relative == pytest.approx(np.linalg.norm(A, 2), rel=rtol)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (64, 64)])
def test_norm_in_float32_is_an_upper_bound(shape):
    """Against the norm of the same numbers in float64; within what float32 can say."""
    matrices = np.random.default_rng(2).standard_normal((20, *shape)).astype(np.float32)
    norms = np.asarray(jax.lax.map(operator_norm, jnp.asarray(matrices)))
    references = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    assert np.all(norms >= references)
    assert np.all(norms <= references * (1 + 3e-5))


def diagonal(values) -> lx.DiagonalLinearOperator:
    """Lanczos sees a spectrum and a random start, so that a diagonal is any operator."""
    return lx.DiagonalLinearOperator(jnp.asarray(values, float))


t = np.linspace(0, 1, 300)
MATRIX_FREE = {
    # name: (operator, its norm)
    "identity": (diagonal(np.ones(300)), 1.0),
    "n = 1": (diagonal([-2.5]), 2.5),
    "rank 1 diagonal": (diagonal(np.eye(300)[7]), 1.0),
    "clustered": (diagonal(np.where(t < 0.5, 1.0, 1e-3)), 1.0),
    "near-degenerate": (diagonal([1.0, 1 - 1e-6, *(0.9 * t[2:])]), 1.0),
    "outlier": (diagonal([1.0, *(0.98 * t[1:])]), 1.0),
    "geometric": (diagonal(1e5 * 10.0 ** (-8 * t)), 1e5),
    **{
        name: (matrix_free(matrix), float(np.linalg.norm(matrix, 2)))
        for name, matrix in DENSE.items()
        if name in ("wide", "one column", "rank 1")
    },
    # The eigenvalues of a difference matrix: 4 sin^2(pi i / (2 h)), vertical plus horizontal.
    "image": (difference_operator((32, 32)), 8**0.5 * np.sin(np.pi * 31 / 64)),
}


@pytest.mark.parametrize("name", MATRIX_FREE)
def test_norm_of_a_matrix_free_operator(name):
    """An upper bound, and within its margin of 1 % (and 0.1 % for what Lanczos is not sure of)."""
    K, norm = MATRIX_FREE[name]
    assert norm <= float(compiled_norm(K)) <= 1.011 * norm


crowd = np.cos(np.pi / 2 * np.linspace(0, 1, 20_000))


def with_a_hidden_one() -> np.ndarray:
    """A norm of 1 in the direction that the start of the iteration sees least."""
    start = jax.random.normal(jax.random.key(0), crowd.shape)
    values = 0.97 * crowd
    values[np.argmin(np.abs(start))] = 1.0
    return values


HARD = {
    # Singular values that crowd at the upper end: 32 steps cannot tell them apart, and the
    # residual, which bounds the error, is larger than it.
    "uniform": (diagonal(1 - np.arange(300) / 300), 1.0),
    "crowded": (diagonal(1 - t**2), 1.0),
    "crowd below a gap": (diagonal([1.0, *(0.99 * crowd[1:])]), 1.0),
    "hidden": (diagonal(with_a_hidden_one()), 1.0),
    "large image": (difference_operator((128, 128)), 8**0.5 * np.sin(np.pi * 127 / 256)),
}


@pytest.mark.parametrize("name", HARD)
def test_norm_bound_holds_where_lanczos_has_not_converged(name):
    K, norm = HARD[name]
    assert norm <= float(compiled_norm(K)) <= 1.015 * norm


# ---------------------------------------------------------------------------- usual operators


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_dct(n):
    K, x = np.asarray(dct(n)), np.asarray(normal(n))
    np.testing.assert_allclose(K @ x, scipy.fft.dct(x, norm="ortho"), atol=1e-14)
    np.testing.assert_allclose(K @ K.T, np.eye(n), atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (8, 8)])
def test_dct2(shape):
    image = np.asarray(normal(*shape))
    K, n = np.asarray(dct2(shape)), image.size
    coefficients = (K @ image.ravel()).reshape(shape)
    np.testing.assert_allclose(coefficients, scipy.fft.dctn(image, norm="ortho"), atol=1e-14)
    np.testing.assert_allclose(K @ K.T, np.eye(n), atol=1e-14)


@pytest.mark.parametrize(("transform", "size"), [(dct, 7), (dct2, (3, 4))])
def test_transforms_without_their_constant(transform, size):
    rest = transform(size, constant=False)
    np.testing.assert_array_equal(rest, transform(size)[1:])
    np.testing.assert_allclose(rest @ np.ones(rest.shape[1]), np.zeros(len(rest)), atol=1e-14)


def test_differences():
    x = np.asarray(normal(9))
    np.testing.assert_allclose(differences(9) @ x, np.diff(x), atol=1e-15)


def test_differences2():
    image = np.asarray(normal(3, 5))
    expected = [np.diff(image, axis=axis).ravel() for axis in (0, 1)]
    got = differences2((3, 5)) @ image.ravel()
    np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-15)


@pytest.mark.parametrize("shape", [(4, 6), (1, 5), (5, 1)])
def test_difference_operator(shape):
    x = normal(shape[0] * shape[1])
    got = difference_operator(shape).mv(x)
    np.testing.assert_allclose(got, numpy_image_differences(np.asarray(x), shape), atol=1e-15)


class Scaled(hg.operators.AbstractOperator):
    """`scale` times forward differences of a circle, and what is wrong with it."""

    scale: jax.Array
    size: int = eqx.field(static=True, default=6)
    constant: float = 0.0
    turn: int = eqx.field(static=True, default=1)
    bound: float | None = None

    def mv(self, vector):
        return self.scale * (jnp.roll(vector, -1) - vector) + self.constant

    def rmv(self, vector):
        return self.scale * (jnp.roll(vector, self.turn) - vector)

    def norm_bound(self):
        return None if self.bound is None else jnp.asarray(self.bound)

    def in_structure(self):
        return jax.ShapeDtypeStruct((self.size,), self.scale.dtype)

    def out_structure(self):
        return self.in_structure()


def test_what_is_right_passes_the_check():
    for K in (
        Scaled(jnp.asarray(3.0, jnp.float32)),
        Scaled(jnp.asarray(3.0), bound=6.0),
        jnp.asarray(np.random.default_rng(0).standard_normal((200, 300)), jnp.float32),
        difference_operator((20, 30)),
        hg.operators.FilterBank(jnp.ones((2, 3, 2), jnp.float32), (9, 8)),
    ):
        hg.check_operator(K)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"turn": -1}, r"Scaled\.rmv must be the transpose of mv, .*; got a difference of"),
        ({"turn": 0}, r"Scaled\.rmv must be the transpose of mv"),
        ({"constant": 0.1}, r"Scaled\.(rmv must be the transpose|mv must be linear)"),
        ({"constant": np.nan}, r"Scaled\.mv must give finite vectors of 6 entries"),
        ({"bound": 5.0}, r"Scaled\.norm_bound must be at least .*; got 5, and 5\.99"),
    ],
    ids=str,
)
def test_what_is_wrong_does_not(wrong, words):
    with pytest.raises(ValueError, match=words):
        hg.check_operator(Scaled(jnp.array(3.0), **wrong))


def test_a_learned_operator_of_ones_own():
    """Its one leaf, by the chain rule and by the dense matrix."""
    K, (x_tilde, x_true) = Scaled(jnp.array(0.7)), random_data(3, 6)
    # Far from converged, so that the step sizes count: both operators get the same.
    solver, strategy = hg.ChambollePock(20, tau=0.6, sigma=0.6), hg.FullUnrolling()

    def grad(K):
        problem = hg.LowerLevel(K, hg.L1(0.1), hg.Quadratic(1.0))
        return hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy).grad.K

    unit = Scaled(jnp.array(1.0)).as_matrix()
    assert relative_error(grad(K).scale, jnp.sum(grad(K.as_matrix()) * unit)) <= 1e-10


def test_difference_operator_gives_isotropic_total_variation():
    """The groups of `GroupL1(shape=(2, n))` are the two differences at the same pixel."""
    image = np.asarray(normal(4, 5))
    down, right = np.zeros((2, 4, 5))
    down[:-1], right[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
    F = hg.GroupL1(0.3, shape=(2, 20))
    got = F(difference_operator((4, 5)).mv(jnp.asarray(image.ravel())))
    np.testing.assert_allclose(got, 0.3 * np.sum(np.hypot(down, right)), rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_random_has_norm_one(shape, key):
    K = random(*shape, key=key)
    assert K.shape == shape
    assert np.linalg.norm(K, 2) == pytest.approx(1.0, rel=1e-14)
    assert not np.array_equal(K, random(*shape, key=jax.random.key(1)))


def test_stacked_matrices_are_a_matrix():
    expected = np.vstack([A, np.eye(4)])
    for matrices in (
        ([jnp.asarray(A), jnp.eye(4)],),
        (jnp.asarray(A), np.eye(4)),
        (lx.MatrixLinearOperator(jnp.asarray(A)), jnp.eye(4)),
        (iter([A, np.eye(4)]),),
        (np.stack([A[:4], np.eye(4)]),),
    ):
        K = stack(*matrices)
        assert isinstance(K, jax.Array)
        np.testing.assert_array_equal(K, expected if len(K) == 9 else np.delete(expected, 4, 0))
    np.testing.assert_array_equal(stack(A), A)


def stacked_bank() -> hg.operators.Stacked:
    """Filters without a boundary, differences, and a matrix, of an image of 4 x 5 pixels."""
    filters, boundary = normal(2, 2, 3), hg.operators.Valid()
    bank = hg.operators.FilterBank(filters, (4, 5), boundary)
    return stack(bank, difference_operator((4, 5)), dct2((4, 5), constant=False))


def test_a_bank_differences_and_a_matrix_on_top_of_each_other():
    K, x = stacked_bank(), normal(20)
    bank, image = K.operators[0], np.asarray(x).reshape(4, 5)
    responses = [correlate2d(image, taps, mode="valid").ravel() for taps in bank.filters]
    down_and_right = numpy_image_differences(np.asarray(x), (4, 5))
    frequencies = scipy.fft.dctn(image, norm="ortho").ravel()[1:]
    expected = np.concatenate([*responses, down_and_right, frequencies])
    np.testing.assert_allclose(K.mv(x), expected, atol=1e-13)
    assert (operator_shape(K), len(jax.tree.leaves(K))) == ((2 * 9 + 40 + 19, 20), 2)
    hg.check_operator(K)
    true = np.linalg.norm(K.as_matrix(), 2)
    assert true <= float(compiled_norm(K)) <= 1.011 * true


def test_a_stack_is_cast_with_operators_that_have_no_leaves():
    K = stacked_bank().astype(jnp.float32)
    dtypes = {part.dtype for part in (*jax.tree.leaves(K), K.operators[1])}
    assert dtypes == {jnp.dtype(jnp.float32)}
    assert {K.mv(jnp.ones(20, jnp.float32)).dtype, operator_dtype(K)} == {jnp.dtype(jnp.float32)}


def test_filters_of_a_stack_are_learned():
    """By the chain rule from the gradient in the dense matrix."""
    K, (x_tilde, x_true) = stacked_bank(), random_data(2, 20)
    F = hg.SeparableSum((hg.L1(0.1), hg.Huber(0.1, 0.1), hg.L1(0.05)), (18, 40, 19))
    # Far from converged, so that the step sizes count: both operators get the same.
    solver, strategy = hg.ChambollePock(20, tau=0.2, sigma=0.2), hg.FullUnrolling()

    def grad(K):
        problem = hg.LowerLevel(K, F, hg.Quadratic(1.0))
        return hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy).grad.K

    in_matrix = np.asarray(grad(K.as_matrix()))
    of_bank, of_dct = jax.tree.leaves(grad(K))
    np.testing.assert_allclose(of_dct, in_matrix[58:], rtol=1e-10, atol=1e-13)
    for i in ((0, 0, 0), (1, 1, 2)):
        unit = eqx.tree_at(lambda K: K.filters, K.operators[0], jnp.zeros((2, 2, 3)).at[i].set(1.0))
        expected = np.vdot(in_matrix[:18], unit.as_matrix())
        assert float(of_bank[i]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ((), "a stack must have at least one operator; got none"),
        (([],), "a stack must have at least one operator; got none"),
        ((A, np.eye(3)), r"must have the same number of columns; got \[4, 3\]"),
        ((stacked_bank, A), r"must be an \(m, n\) matrix or a lineax operator; got function"),
        ((A, np.ones(4)), r"operator 1 of a stack must be an \(m, n\) matrix .*; got shape \(4,\)"),
        ((3.0,), r"must be an \(m, n\) matrix or a lineax operator; got"),
        ((MATRIX_FLOAT32, CASES["function"].K), "must have one dtype; got float32, float64"),
        ((IMAGE_TO_IMAGE, A), r"operator 0 of a stack must take vectors \(n,\) to vectors"),
    ],
)
def test_what_cannot_be_stacked(operators, message):
    with pytest.raises(hg.HypergradError, match=message):
        stack(*operators)
