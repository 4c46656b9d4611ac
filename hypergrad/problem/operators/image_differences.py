"""Differences of a whole image as an operator, matrix-free."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.problem.operators._base import AbstractOperator, check_image_shape

__all__ = ["ImageDifferences", "difference_operator"]


class ImageDifferences(AbstractOperator):
    """All vertical, then all horizontal forward differences, 0 across the last row and column.

        (K x)[0, i, j] = x[i + 1, j] - x[i, j],    (K x)[1, i, j] = x[i, j + 1] - x[i, j]

    `n = height * width`, row by row; `m = 2 n`. It has no parameters to learn.

    **Arguments**:

    - `image_shape`: `(height, width)`.
    - `dtype`: defaults to JAX's default float.

    **Errors**: a `ValueError` if `image_shape` is not a pair of positive integers.

    **Cost**: 2 operations a pixel for a product of either side.

    >>> K = ImageDifferences((2, 2))
    >>> print(K.mv(jnp.array([1.0, 2.0, 4.0, 8.0])))
    [3. 6. 0. 0. 1. 0. 4. 0.]
    """

    image_shape: tuple[int, int] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def __init__(self, image_shape: tuple[int, int], dtype: Any = None):
        check_image_shape(image_shape)
        self.image_shape = image_shape
        self.dtype = jnp.zeros(()).dtype if dtype is None else jnp.dtype(dtype)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " m"]:
        image = vector.reshape(self.image_shape)
        down = jnp.diff(image, axis=0, append=image[-1:])
        right = jnp.diff(image, axis=1, append=image[:, -1:])
        return jnp.concatenate([down.ravel(), right.ravel()])

    def rmv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        """Return `K^T y`, minus the divergence of y."""
        down, right = vector.reshape(2, *self.image_shape)
        zero_row, zero_column = jnp.zeros_like(down[:1]), jnp.zeros_like(right[:, :1])
        from_rows = jnp.diff(down[:-1], axis=0, prepend=zero_row, append=zero_row)
        from_columns = jnp.diff(right[:, :-1], axis=1, prepend=zero_column, append=zero_column)
        return -(from_rows + from_columns).ravel()

    def astype(self, dtype: Any) -> ImageDifferences:
        return ImageDifferences(self.image_shape, dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((math.prod(self.image_shape),), self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2 * math.prod(self.image_shape),), self.dtype)


def difference_operator(shape: tuple[int, int], dtype: Any = None) -> ImageDifferences:
    """Return the 2-D differences of a whole image, matrix-free: `ImageDifferences(shape, dtype)`.

    With `GroupL1(weight, shape=(2, n))` they make isotropic total variation. `differences2` is a
    matrix of the differences inside a small patch.

    >>> difference_operator((2, 3)).as_matrix().shape
    (12, 6)
    """
    return ImageDifferences(shape, dtype)
