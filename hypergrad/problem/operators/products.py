"""Products with the analysis operator K, and the derivative of the form that it makes.

`K` is an `(m, n)` array or a `lineax.AbstractLinearOperator` from `(n,)` to `(m,)`. Batches are
leading axes: with an array the product with a whole batch is one matrix product, with a lineax
operator its `mv` is mapped over the batch.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import as_inexact
from hypergrad._foundation.errors import HypergradError

__all__ = [
    "Operator",
    "apply",
    "apply_transpose",
    "as_operator",
    "bilinear_gradient",
    "check_takes_vectors",
    "dense_matrix",
    "matrix_of",
    "of_a_function",
    "operator_dtype",
    "operator_shape",
]

Operator = Float[Array, "m n"] | lx.AbstractLinearOperator


def operator_shape(K: Operator) -> tuple[int, int]:
    """Return `(m, n)`.

    >>> operator_shape(jnp.zeros((3, 2)))
    (3, 2)
    """
    if isinstance(K, lx.AbstractLinearOperator):
        return K.out_size(), K.in_size()
    m, n = K.shape
    return m, n


def as_operator(K: Any, name: str = "K") -> Operator:
    """Return an operator as it is, and a matrix as an array.

    >>> as_operator([[1.0, 2.0]]).shape
    (1, 2)
    """
    if isinstance(K, lx.AbstractLinearOperator):
        return K
    matrix = as_inexact(
        K,
        name,
        rule="an (m, n) matrix or a lineax operator",
        advice="pass .toarray() of a sparse matrix, or a lineax.FunctionLinearOperator",
    )
    if matrix.ndim != 2:
        raise HypergradError(
            f"{name} must be an (m, n) matrix or a lineax operator; got shape {matrix.shape}: pass "
            "a single row as row[None]"
        )
    return matrix


def check_takes_vectors(name: str, K: Operator) -> None:
    """Check that a lineax operator takes vectors to vectors (and not pytrees or images)."""
    if not isinstance(K, lx.AbstractLinearOperator):
        return
    for side, structure in (("in", K.in_structure()), ("out", K.out_structure())):
        shapes = [leaf.shape for leaf in jax.tree.leaves(structure)]
        if len(shapes) != 1 or len(shapes[0]) != 1:
            raise HypergradError(
                f"{name} must take vectors (n,) to vectors (m,); got {side}_structure {structure}: "
                "reshape inside it"
            )


def operator_dtype(K: Operator) -> jnp.dtype:
    """Return the dtype of `K v`.

    >>> operator_dtype(jnp.zeros((3, 2), jnp.float32))
    dtype('float32')
    """
    if isinstance(K, lx.AbstractLinearOperator):
        return jax.tree.leaves(K.out_structure())[0].dtype
    return K.dtype


def matrix_of(K: Operator) -> Array | None:
    """Return the matrix if the operator is one already, else None; it is never built.

    >>> matrix_of(lx.IdentityLinearOperator(jax.ShapeDtypeStruct((2,), jnp.float32))) is None
    True
    """
    if isinstance(K, lx.MatrixLinearOperator):
        return K.matrix
    return None if isinstance(K, lx.AbstractLinearOperator) else K


def of_a_function(K: Operator) -> bool:
    """Return whether K contains a `lineax.FunctionLinearOperator`, a program for one device.

    >>> of_a_function(jnp.zeros((3, 2)))
    False
    """

    def is_one(node: object) -> bool:
        return isinstance(node, lx.FunctionLinearOperator)

    return any(map(is_one, jax.tree.leaves(K, is_leaf=is_one)))


def dense_matrix(K: Operator) -> Float[Array, "m n"]:
    """Return the matrix of any operator, built by n products where it is not one already.

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
    """Return `K v` for every vector of a batch.

    >>> print(apply(jnp.array([[1.0, 2.0]]), jnp.array([1.0, 1.0])))
    [3.]
    """
    matrix = matrix_of(K)
    if matrix is not None:
        return v @ matrix.T
    assert isinstance(K, lx.AbstractLinearOperator)
    return _map_over_batch(K, v)


def apply_transpose(K: Operator, y: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
    """Return `K^T y` for every vector of a batch.

    >>> print(apply_transpose(jnp.array([[1.0, 2.0]]), jnp.array([2.0])))
    [2. 4.]
    """
    matrix = matrix_of(K)
    if matrix is not None:
        return y @ matrix
    assert isinstance(K, lx.AbstractLinearOperator)
    return _map_over_batch(K.transpose(), y)


def bilinear_gradient(K: Operator, *pairs: tuple[Array, Array]) -> Operator:
    """Differentiate `sum <left, K right>`, over batches and pairs, in the parameters of K.

    For a matrix this is `sum left right^T`, the whole batch of a pair in one matrix product; for a
    convolution or anything else it is what the chain rule gives. Every gradient in K of this
    package is such a form.

    >>> print(bilinear_gradient(jnp.zeros((1, 2)), (jnp.array([2.0]), jnp.array([1.0, 3.0]))))
    [[2. 6.]]
    """
    gradients = [_bilinear_gradient(K, *map(_as_rows, pair)) for pair in pairs]
    return jax.tree.map(lambda *summands: sum(summands[1:], summands[0]), *gradients)


def _as_rows(v: Array) -> Array:
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
