"""The analysis operator K: products with a batch, its norm, and the usual choices.

`K` is an `(m, n)` array or a `lineax.AbstractLinearOperator` from `(n,)` to `(m,)`. Batches are
leading axes: with an array the product with a whole batch is one matrix product, with a lineax
operator its `mv` is mapped over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.fft import dct as _scipy_dct

__all__ = [
    "Operator",
    "apply",
    "apply_transpose",
    "bilinear_gradient",
    "dct",
    "dct2",
    "dense_matrix",
    "difference_operator",
    "differences",
    "differences2",
    "matrix_of",
    "operator_dtype",
    "operator_norm",
    "operator_shape",
    "random",
    "stack",
]

Operator = Float[Array, "m n"] | lx.AbstractLinearOperator

# Lanczos approaches the norm from below. After so many steps from a random start the estimate plus
# its own error bound was above the true norm in all trials; the margin is added on top of that.
_LANCZOS_STEPS = 32
LANCZOS_MARGIN = 0.01


# ----------------------------------------------------------------------------------- products


def operator_shape(K: Operator) -> tuple[int, int]:
    """`(m, n)`.

    >>> operator_shape(jnp.zeros((3, 2)))
    (3, 2)
    """
    if isinstance(K, lx.AbstractLinearOperator):
        return K.out_size(), K.in_size()
    m, n = K.shape
    return m, n


def operator_dtype(K: Operator) -> jnp.dtype:
    """The dtype of `K v`."""
    if isinstance(K, lx.AbstractLinearOperator):
        return jax.tree.leaves(K.out_structure())[0].dtype
    return K.dtype


def matrix_of(K: Operator) -> Array | None:
    """The matrix, if the operator is one already; never built."""
    if isinstance(K, lx.MatrixLinearOperator):
        return K.matrix
    return None if isinstance(K, lx.AbstractLinearOperator) else K


def dense_matrix(K: Operator) -> Float[Array, "m n"]:
    """The matrix of any operator, built where it is not one already: n products, `m n` numbers.

    >>> print(dense_matrix(lx.IdentityLinearOperator(jax.ShapeDtypeStruct((2,), jnp.float32))))
    [[1. 0.]
     [0. 1.]]
    """
    matrix = matrix_of(K)
    if matrix is not None:
        return matrix
    return apply(K, jnp.eye(operator_shape(K)[1], dtype=operator_dtype(K))).T


def _map_over_batch(K: lx.AbstractLinearOperator, v: Array) -> Array:
    rows = v.reshape(math.prod(v.shape[:-1]), v.shape[-1])
    return jax.vmap(K.mv)(rows).reshape(*v.shape[:-1], K.out_size())


def apply(K: Operator, v: Float[Array, "*batch n"]) -> Float[Array, "*batch m"]:
    """`K v` for every vector of a batch."""
    matrix = matrix_of(K)
    if matrix is not None:
        return v @ matrix.T
    assert isinstance(K, lx.AbstractLinearOperator)
    return _map_over_batch(K, v)


def apply_transpose(K: Operator, y: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
    """`K^T y` for every vector of a batch."""
    matrix = matrix_of(K)
    if matrix is not None:
        return y @ matrix
    assert isinstance(K, lx.AbstractLinearOperator)
    return _map_over_batch(K.transpose(), y)


def bilinear_gradient(K: Operator, *pairs: tuple[Array, Array]) -> Operator:
    """Derivative of `sum <left, K right>` over batches and pairs, in the parameters of K.

    For a matrix this is `sum left right^T`, the whole batch of a pair in one matrix product; for a
    convolution or anything else it is what the chain rule gives. Every gradient in K of this
    package is such a form.

    >>> print(bilinear_gradient(jnp.zeros((1, 2)), (jnp.array([2.0]), jnp.array([1.0, 3.0]))))
    [[2. 6.]]
    """
    gradients = [_bilinear_gradient(K, *map(_rows, pair)) for pair in pairs]
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *gradients)


def _rows(v: Array) -> Array:
    return v.reshape(-1, v.shape[-1])


def _bilinear_gradient(K: Operator, left: Array, right: Array) -> Operator:
    if matrix_of(K) is None:
        return eqx.filter_vjp(lambda K: apply(K, right), K)[1](left)[0]
    product = jax.lax.platform_dependent(
        left, right, cpu=_product_of_transpose, default=lambda left, right: left.T @ right
    )
    return jax.tree.map(lambda _: product, eqx.filter(K, eqx.is_inexact_array))


def _product_of_transpose(left: Array, right: Array) -> Array:
    # Written out, since XLA's product on the CPU takes half as long again with a transposed left.
    return jax.lax.optimization_barrier(left.T) @ right


# --------------------------------------------------------------------------------------- norm


def operator_norm(K: Operator) -> Float[Array, ""]:
    """`||K||_2`, estimated from above: to rounding for a matrix, else to one or two per cent.

    A matrix: the square root of the largest eigenvalue of the smaller of `K K^T` and `K^T K`, plus
    a margin for the rounding of forming it. Any other operator: 32 steps of the Lanczos method on
    `K^T K` from a fixed random start, plus its residual, plus a margin of 1 %.

    **Cost**: `O(min(m, n)^2 max(m, n))` for a matrix, 64 products with K otherwise.

    **Caveat**: the residual bounds the distance to some eigenvalue, not to the largest one: for a
    matrix-free operator this lies above the norm in practice, but that is not proved.

    >>> f"{operator_norm(jnp.diag(jnp.array([3.0, 1.0]))):.4f}"
    '3.0000'
    """
    matrix = matrix_of(K)
    return _lanczos_norm(K) if matrix is None else _matrix_norm(matrix)


def _matrix_norm(matrix: Array) -> Array:
    m, n = matrix.shape
    largest = jnp.max(jnp.abs(matrix))
    scale = jnp.where(largest > 0, largest, 1.0)  # squares must neither overflow nor vanish
    unit = matrix / scale
    gram = unit @ unit.T if m <= n else unit.T @ unit
    rounding = max(m, n) * jnp.finfo(matrix.dtype).eps
    eigenvalue = jnp.linalg.eigvalsh(gram)[-1]
    return scale * jnp.sqrt(jnp.maximum(eigenvalue, 0.0)) * (1 + rounding)


def _lanczos_norm(K: Operator) -> Array:
    """Lanczos on `K^T K` with full reorthogonalisation (the basis is short)."""
    n, dtype = operator_shape(K)[1], operator_dtype(K)
    steps = min(_LANCZOS_STEPS, n)
    start = jax.random.normal(jax.random.key(0), (n,), dtype)

    def body(i, carry):
        basis, alpha, beta = carry
        v = basis[i]
        w = apply_transpose(K, apply(K, v))
        alpha = alpha.at[i].set(w @ v)
        for _ in range(2):  # "twice is enough" against the loss of orthogonality
            w = w - (basis @ w) @ basis
        size = jnp.linalg.norm(w)
        # Where the Krylov space is exhausted the remainder is rounding: stop there with a zero.
        exhausted = size <= 10 * n * jnp.finfo(dtype).eps * jnp.max(jnp.abs(alpha))
        size = jnp.where(exhausted, 0.0, size)
        basis = basis.at[i + 1].set(jnp.where(exhausted, 0.0, w / jnp.where(exhausted, 1.0, size)))
        return basis, alpha, beta.at[i].set(size)

    basis = jnp.zeros((steps + 1, n), dtype).at[0].set(start / jnp.linalg.norm(start))
    zeros = jnp.zeros(steps, dtype)
    _, alpha, beta = jax.lax.fori_loop(0, steps, body, (basis, zeros, zeros))
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    error = beta[-1] * jnp.abs(vectors[-1, -1])
    return jnp.sqrt(jnp.maximum(values[-1] + error, 0.0)) * (1 + LANCZOS_MARGIN)


# ---------------------------------------------------------------------------- usual operators


def dct(n: int, *, constant: bool = True) -> Float[Array, "m n"]:
    """Orthonormal DCT-II matrix; `constant=False` leaves out its constant row (`m = n - 1`).

    >>> dct(4, constant=False).shape
    (3, 4)
    """
    matrix = _dct_matrix(n)
    return jnp.asarray(matrix if constant else matrix[1:])


def dct2(shape: tuple[int, int], *, constant: bool = True) -> Float[Array, "m n"]:
    """Orthonormal 2-D DCT-II of patches in row-major order, `n = height * width`."""
    matrix = np.kron(_dct_matrix(shape[0]), _dct_matrix(shape[1]))
    return jnp.asarray(matrix if constant else matrix[1:])


def _dct_matrix(n: int) -> np.ndarray:
    return np.asarray(_scipy_dct(np.eye(n), axis=0, norm="ortho"))


def differences(n: int) -> Float[Array, "m n"]:
    """Forward differences `x[i+1] - x[i]`, `m = n - 1`: total variation in 1-D."""
    return jnp.asarray(np.diff(np.eye(n), axis=0))


def differences2(shape: tuple[int, int]) -> Float[Array, "m n"]:
    """All vertical, then all horizontal differences inside a patch (anisotropic total variation).

    `m = (height - 1) width + height (width - 1)`; no difference crosses the border.
    """
    height, width = shape
    down = np.kron(np.diff(np.eye(height), axis=0), np.eye(width))
    right = np.kron(np.eye(height), np.diff(np.eye(width), axis=0))
    return jnp.asarray(np.concatenate([down, right]))


def difference_operator(shape: tuple[int, int], dtype=None) -> lx.FunctionLinearOperator:
    """2-D differences of a whole image, matrix-free, for `GroupL1(weight, shape=(2, n))`.

    `m = 2 n`: all vertical, then all horizontal forward differences, 0 across the last row and
    column.
    """
    dtype = jnp.zeros(()).dtype if dtype is None else dtype

    def gradient(x: Array) -> Array:
        image = x.reshape(shape)
        down = jnp.diff(image, axis=0, append=image[-1:])
        right = jnp.diff(image, axis=1, append=image[:, -1:])
        return jnp.concatenate([down.ravel(), right.ravel()])

    structure = jax.ShapeDtypeStruct((math.prod(shape),), dtype)
    return lx.FunctionLinearOperator(gradient, structure)


def random(m: int, n: int, *, key: PRNGKeyArray) -> Float[Array, "m n"]:
    """Independent normal entries, scaled to norm 1."""
    matrix = jax.random.normal(key, (m, n))
    return matrix / jnp.linalg.norm(matrix, 2)


def stack(operators: Sequence[Float[Array, "_ n"]]) -> Float[Array, "m n"]:
    """Matrices on top of each other."""
    return jnp.concatenate(list(operators), axis=0)
