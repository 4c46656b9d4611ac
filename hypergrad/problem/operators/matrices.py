"""Analysis operators as matrices: transforms, differences, random matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = [
    "dct",
    "dct2",
    "differences",
    "differences2",
    "random",
]


def dct(n: int, *, constant: bool = True) -> Float[Array, "m n"]:
    """Return the orthonormal DCT-II matrix; `constant=False` drops its constant row (`m = n - 1`).

    >>> dct(4, constant=False).shape
    (3, 4)
    """
    matrix = _dct_matrix(n)
    return jnp.asarray(matrix if constant else matrix[1:])


def dct2(shape: tuple[int, int], *, constant: bool = True) -> Float[Array, "m n"]:
    """Return the orthonormal 2-D DCT-II of patches in row-major order, `n = height * width`.

    `shape` is `(height, width)`; `constant=False` drops the constant row.

    >>> dct2((2, 3), constant=False).shape
    (5, 6)
    """
    matrix = np.kron(_dct_matrix(shape[0]), _dct_matrix(shape[1]))
    return jnp.asarray(matrix if constant else matrix[1:])


def _dct_matrix(n: int) -> np.ndarray:
    from scipy.fft import dct

    return np.asarray(dct(np.eye(n), axis=0, norm="ortho"))


def differences(n: int) -> Float[Array, "m n"]:
    """Return forward differences `x[i+1] - x[i]`, `m = n - 1`: total variation in 1-D.

    >>> print(differences(3))
    [[-1.  1.  0.]
     [ 0. -1.  1.]]
    """
    return jnp.asarray(np.diff(np.eye(n), axis=0))


def differences2(shape: tuple[int, int]) -> Float[Array, "m n"]:
    """Return the vertical, then the horizontal differences in a patch (anisotropic TV).

    `shape` is `(height, width)`, `m = (height - 1) width + height (width - 1)`; no difference
    crosses the border.

    >>> differences2((2, 3)).shape
    (7, 6)
    """
    height, width = shape
    down = np.kron(np.diff(np.eye(height), axis=0), np.eye(width))
    right = np.kron(np.eye(height), np.diff(np.eye(width), axis=0))
    return jnp.asarray(np.concatenate([down, right]))


def random(m: int, n: int, *, key: PRNGKeyArray) -> Float[Array, "m n"]:
    """Return an `(m, n)` matrix of independent normal entries, scaled to norm 1.

    >>> random(3, 2, key=jax.random.key(0)).shape
    (3, 2)
    """
    matrix = jax.random.normal(key, (m, n))
    return matrix / jnp.linalg.norm(matrix, 2)
