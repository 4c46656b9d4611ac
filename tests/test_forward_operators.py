"""Linear inverse problems: data terms in closed form, against dense linear algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad import operators
from hypergrad.problem.lower_level import cast_floats

SHAPE, N = (4, 5), 20
WEIGHT, LAM = 3.0, 0.7

MASK = np.random.default_rng(0).integers(0, 2, SHAPE)
FORWARD = {
    "mask": lambda: operators.Mask(MASK),
    "blur": lambda: operators.Blur(
        jnp.asarray(np.random.default_rng(1).standard_normal((3, 2))), SHAPE
    ),
    "Fourier": lambda: operators.FourierSampling(
        np.random.default_rng(2).integers(0, 2, SHAPE), SHAPE
    ),
    "wide": lambda: operators.DenseForward.of(np.random.default_rng(3).standard_normal((7, N))),
    "tall": lambda: operators.DenseForward.of(np.random.default_rng(4).standard_normal((25, N))),
}


def dense(name: str) -> np.ndarray:
    """Return A by its definition, entry by entry; complex rows for Fourier sampling."""
    A = FORWARD[name]()
    if name == "mask":
        return np.diag(MASK.ravel().astype(float))
    if name == "blur":
        kernel, matrix = np.asarray(A.kernel), np.zeros((*SHAPE, *SHAPE))
        centre = np.array(kernel.shape) // 2
        for out in np.ndindex(*SHAPE):
            for tap in np.ndindex(*kernel.shape):
                at = tuple((np.array(out) - np.array(tap) + centre) % SHAPE)
                matrix[out + at] += kernel[tap]
        return matrix.reshape(N, N)
    if name == "Fourier":
        waves = [np.fft.fft(np.eye(size), norm="ortho") for size in SHAPE]
        return np.asarray(A.mask).reshape(-1, 1) * np.kron(*waves)
    return np.random.default_rng(3 if name == "wide" else 4).standard_normal(
        (7 if name == "wide" else 25, N)
    )


def K_and_truth() -> tuple[jax.Array, np.ndarray]:
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.standard_normal((30, N))), rng.standard_normal((2, N))


@pytest.mark.parametrize("name", FORWARD)
def test_products_and_pseudo_inverse_are_those_of_the_matrix(name: str) -> None:
    A, matrix, (_, x) = FORWARD[name](), dense(name), K_and_truth()
    b = x @ matrix.T
    np.testing.assert_allclose(A(jnp.asarray(x)), b, atol=1e-12)
    np.testing.assert_allclose(A.transpose(jnp.asarray(b)), (b @ matrix.conj()).real, atol=1e-12)
    # Over real vectors: real and imaginary parts of the measurements are rows of their own.
    real = np.concatenate([matrix.real, matrix.imag])
    both = np.concatenate([b.real, b.imag], axis=-1)
    expected = both @ np.linalg.pinv(real).T
    np.testing.assert_allclose(operators.pseudo_inverse(A, b), expected, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mask", jnp.float64), ("blur", jnp.float64), ("Fourier", jnp.float32)]
)
def test_every_kind_passes_the_check_of_functions(name: str, dtype) -> None:
    hg.check_function(cast_floats(hg.DataFidelity(FORWARD[name](), WEIGHT), dtype), N)


@pytest.mark.parametrize("shape", [(3, 5), (5, 5), (8, 5)])
def test_the_checker_accepts_data_terms_of_every_shape(shape) -> None:
    matrix = np.random.default_rng(7).standard_normal(shape)
    hg.check_function(hg.DataFidelity(matrix, 2.0), shape[1])


def test_singular_values_above_rounding_are_inverted_in_single_precision() -> None:
    matrix = np.diag(np.r_[np.ones(63), 2e-3]).astype(np.float32)
    A = cast_floats(operators.DenseForward.of(matrix), jnp.float32)
    found = operators.pseudo_inverse(A, matrix @ np.ones(64, np.float32))
    np.testing.assert_allclose(found, np.ones(64), rtol=1e-3)


def test_a_single_precision_matrix_is_as_orthogonal_as_the_problem_needs() -> None:
    matrix = np.random.default_rng(8).standard_normal((6, 10)).astype(np.float32)
    problem = hg.LowerLevel(operators.differences(10), hg.L1(0.1), hg.DataFidelity(matrix))
    x_tilde = operators.pseudo_inverse(matrix, np.ones((1, 6)))
    solver = hg.ChambollePock(50_000, tolerance=1e-13)
    stats = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).stats
    assert stats.status.tolist() == [hg.Status.CONVERGED]


def test_only_singular_values_of_a_matrix_have_a_derivative() -> None:
    A, x = FORWARD["wide"](), K_and_truth()[1]
    grad = jax.grad(lambda A: jnp.sum(hg.DataFidelity(A).prox(jnp.asarray(x), 1.0)))(A)
    assert np.any(grad.singular)
    assert not np.any(grad.left)
    assert not np.any(grad.right)


def test_a_weight_of_zero_is_the_zero_function() -> None:
    G, r = hg.DataFidelity(operators.Mask([1, 0]), 0.0), jnp.array([1.0, 2.0])
    assert G(r) == 0.0
    assert G.conjugate(r) == np.inf
    assert G.conjugate(0 * r) == 0.0
    np.testing.assert_array_equal(G.prox(r, 3.0), r)


class Decimation(operators.AbstractForward):
    """Every other entry: measurements are shorter than x."""

    @property
    def size(self) -> int:
        return 6

    def __call__(self, x):
        return jnp.asarray(x)[..., ::2]

    def transpose(self, b):
        return jnp.zeros((*b.shape[:-1], 6), b.dtype).at[..., ::2].set(b)

    def analyse(self, v):
        return v

    def synthesise(self, c):
        return c

    def gains(self, dtype):
        return jnp.tile(jnp.array([1.0, 0.0], dtype), 3)


def test_a_custom_forward_operator_may_have_fewer_measurements() -> None:
    found = operators.pseudo_inverse(Decimation(), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(found, [1.0, 0.0, 2.0, 0.0, 3.0, 0.0])


def test_small_singular_values_can_be_left_out() -> None:
    matrix = np.diag([1.0, 0.1, 1e-3])
    found = operators.pseudo_inverse(matrix, np.ones(3), cutoff=0.01)
    np.testing.assert_allclose(found, [1.0, 10.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(operators.pseudo_inverse(matrix, np.ones(3))[2], 1e3, rtol=1e-12)


@pytest.mark.parametrize("name", FORWARD)
def test_value_and_conjugate_are_those_of_the_matrix(name: str) -> None:
    G, matrix, (_, r) = hg.DataFidelity(FORWARD[name](), WEIGHT), dense(name), K_and_truth()
    value = WEIGHT / 2 * np.sum(np.abs(r @ matrix.T) ** 2, axis=-1)
    np.testing.assert_allclose(G(jnp.asarray(r)), value, rtol=1e-12)
    normal = (matrix.conj().T @ matrix).real
    y = r @ normal  # in the range of A^T
    expected = np.sum(y * (y @ np.linalg.pinv(normal, rcond=1e-10)), axis=-1) / (2 * WEIGHT)
    np.testing.assert_allclose(G.conjugate(jnp.asarray(y)), expected, rtol=1e-9)
    if np.linalg.matrix_rank(normal) < N:
        assert np.all(np.isinf(G.conjugate(jnp.asarray(r))))


def closed_form(K, matrix, b, x_true):
    """The loss of the minimiser of `LAM/2 ||K x||^2 + WEIGHT/2 ||A x - b||^2`, and its derivatives.

    By the adjoint `q = H^-1 (x - x_true)` of the normal equations `H x = WEIGHT A^T b`; in K,
    WEIGHT and LAM.
    """
    of_data, moments = (matrix.conj().T @ matrix).real, (b @ matrix.conj()).real.T
    H = WEIGHT * of_data + LAM * K.T @ K
    x = np.linalg.solve(H, WEIGHT * moments)
    error = x - x_true.T
    q, samples = np.linalg.solve(H, error), len(x_true)
    in_K = -LAM * (K @ x @ q.T + K @ q @ x.T)
    in_weight, in_lam = np.vdot(q, moments - of_data @ x), -np.vdot(K @ q, K @ x)
    return np.sum(error**2) / 2 / samples, [a / samples for a in (in_K, in_weight, in_lam)]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, "limit:cgls") for name in FORWARD),
        # (A dense A of either shape is one class, and its cases below differ in data alone.)
        *((name, "exact") for name in FORWARD if name != "tall"),
        pytest.param("tall", "exact", marks=pytest.mark.slow),
        ("blur", "full"),
        ("mask", "piggyback"),
    ],
)
def test_quadratic_problems_have_the_closed_solution_and_derivatives(name, strategy) -> None:
    matrix, (K, x_true) = dense(name), K_and_truth()
    b = x_true @ matrix.T
    x_tilde = operators.pseudo_inverse(FORWARD[name](), b)
    problem = hg.LowerLevel(K, hg.Quadratic(LAM), hg.DataFidelity(FORWARD[name](), WEIGHT))
    solver = hg.ChambollePock(4000, step_ratio=0.3)

    strategy = hg.parse_strategy(strategy)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    value, derivatives = closed_form(np.asarray(K), matrix, b, x_true)
    np.testing.assert_allclose(h.value, value, rtol=1e-8)
    found = h.grad.K, h.grad.G.weight, h.grad.F.weight
    for got, right in zip(found, derivatives, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-8, atol=1e-8 * np.max(np.abs(right)))


def test_the_l1_problem_with_a_mask_is_the_plain_iteration() -> None:
    K, x_true = K_and_truth()
    K, mask = np.asarray(K), MASK.ravel()
    x_tilde, L, tau = mask * x_true, 50, 0.9 / np.linalg.norm(K, 2)
    r = r_bar = np.zeros_like(x_tilde)
    y = np.zeros((2, 30))
    for _ in range(L):
        y = np.clip(y + tau * (x_tilde + r_bar) @ K.T, -0.4, 0.4)
        new = (r - tau * y @ K) / (1 + tau * WEIGHT * mask)
        r, r_bar = new, 2 * new - r
    problem = hg.LowerLevel(
        jnp.asarray(K), hg.L1(0.4), hg.DataFidelity(operators.Mask(MASK), WEIGHT)
    )
    solver = hg.ChambollePock(L, tau=tau, sigma=tau)
    found = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).x
    np.testing.assert_allclose(found, x_tilde + r, atol=1e-12)


@pytest.mark.parametrize("label", ["full", "limit:cgls", "exact", "truncation:k=300"])
def test_central_differences_in_a_blur_kernel(label: str) -> None:
    K, x_true = K_and_truth()
    A = FORWARD["blur"]()
    b, solver = A(jnp.asarray(x_true)), hg.ChambollePock(3000)
    start = operators.pseudo_inverse(A, b)  # fixed: what is measured does not move with the kernel

    def value_and_grad(kernel):
        G = hg.DataFidelity(operators.Blur(kernel, SHAPE), WEIGHT)
        problem = hg.LowerLevel(K, hg.L1(0.3), G)
        h = hg.hypergradient(
            problem, start, x_true, solver=solver, strategy=hg.parse_strategy(label)
        )
        return float(h.value), np.asarray(h.grad.G.A.kernel)

    direction, step = np.random.default_rng(6).standard_normal((3, 2)), 1e-5
    _, grad = value_and_grad(A.kernel)
    up, down = (value_and_grad(A.kernel + s * step * direction)[0] for s in (1, -1))
    assert np.sum(grad * direction) == pytest.approx((up - down) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: operators.Blur(jnp.ones((5, 2)), (4, 5)), "no larger than the image"),
        (lambda: operators.Blur(jnp.ones(3), (4, 5)), "must be a matrix"),
        (lambda: operators.Blur(jnp.full((2, 2), jnp.nan), (4, 5)), "must be finite"),
        (lambda: operators.FourierSampling(jnp.ones((4, 4)), (4, 5)), "the shape of the image"),
        (lambda: operators.Mask(np.array([0.5, 1.0])), "must hold 0 and 1"),
        (lambda: operators.Mask(np.array([np.nan, 1.0])), "must hold 0 and 1"),
        (lambda: operators.Mask(np.zeros(0)), "must hold 0 and 1"),
        (lambda: hg.DataFidelity(np.ones(3)), r"must be a matrix \(p, n\)"),
        (lambda: hg.DataFidelity(np.full((2, 2), np.inf)), "must be finite"),
        (lambda: hg.DataFidelity(operators.Mask([1, 0]), -1.0), "must be non-negative"),
        (lambda: hg.DataFidelity(operators.Mask([1, 0]), jnp.ones(2)), "must be one number"),
        (
            lambda: hg.LowerLevel(jnp.ones((2, 3)), hg.L1(1.0), hg.DataFidelity([[1.0, 2.0]])),
            "must act on vectors of length 3",
        ),
        (lambda: operators.pseudo_inverse(operators.Mask([1, 0]), jnp.ones(3)), "2 entries each"),
        (
            lambda: operators.pseudo_inverse(np.eye(2), jnp.ones(2), cutoff=1.5),
            "cutoff must lie in",
        ),
    ],
)
def test_bad_input_is_refused(make, words: str) -> None:
    with pytest.raises(hg.HypergradError, match=words):
        make()
