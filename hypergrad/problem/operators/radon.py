"""Parallel-beam tomography, matrix-free."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import AbstractOperator, check_image_shape

__all__ = ["Radon"]


class Radon(AbstractOperator):
    """Integrate an image over parallel lines at given angles: the Radon transform.

        (A x)[a, t] = sum_p hat(s_a(p) - t) x[p],    s_a(p) = column cos(angle_a) + row sin(angle_a)

    Row and column are counted from the middle of the image. Each pixel is shared between the two
    detector bins next to its centre's projection (`hat` is the linear interpolation); bins are one
    pixel wide, and there are enough of them for the diagonal. The adjoint reads the same shares
    back, so it is exact. It has no parameters to learn.

    **Arguments**:

    - `image_shape`: `(height, width)` in pixels.
    - `angles`: `(count,)`, in radians.
    - `dtype`: defaults to JAX's default float.

    **Returns**: an operator from `(height * width,)` to `(count * bins,)`, angle by angle.

    **Errors**: a `HypergradError` for angles that are no vector of finite numbers, or a shape that
    is no pair of positive integers.

    **Cost**: two additions for each pixel and angle, in a product of either side; nothing is stored
    but the angles.

    >>> A = Radon((2, 2), jnp.array([0.0]))
    >>> print(A.mv(jnp.array([1.0, 2.0, 3.0, 4.0])))  # the sums of the two columns, between bins
    [0. 2. 5. 3. 0.]
    """

    image_shape: tuple[int, int] = eqx.field(static=True)
    angles: tuple[float, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def __init__(self, image_shape: tuple[int, int], angles: Any, dtype: Any = None):
        check_image_shape(image_shape)
        values = np.asarray(angles, float)
        if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
            raise HypergradError(
                f"Radon.angles must be a vector of finite numbers; got shape {values.shape}: try "
                "jnp.linspace(0, jnp.pi, 60, endpoint=False)"
            )
        self.image_shape = image_shape
        self.angles = tuple(values.tolist())
        self.dtype = jnp.zeros(()).dtype if dtype is None else jnp.dtype(dtype)

    @property
    def bins(self) -> int:
        """The number of detector bins at each angle."""
        return math.ceil(math.hypot(*self.image_shape)) + 2

    def _shares(self, angle: Array) -> tuple[Array, Array]:
        """Return the lower of the two bins of each pixel, and the share of the upper one."""
        height, width = self.image_shape
        rows = jnp.arange(height, dtype=self.dtype)[:, None] - (height - 1) / 2
        columns = jnp.arange(width, dtype=self.dtype)[None] - (width - 1) / 2
        middle = (self.bins - 1) / 2
        position = (columns * jnp.cos(angle) + rows * jnp.sin(angle) + middle).ravel()
        lower = jnp.floor(position)
        return lower.astype(jnp.int32), position - lower

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " m"]:
        def at(angle: Array) -> Array:
            lower, share = self._shares(angle)
            bins = jnp.zeros(self.bins, vector.dtype)
            return bins.at[lower].add((1 - share) * vector).at[lower + 1].add(share * vector)

        return jax.lax.map(at, jnp.array(self.angles, self.dtype)).ravel()

    def rmv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        """Return `A^T y`, the back projection."""

        def add(image: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
            angle, bins = given
            lower, share = self._shares(angle)
            return image + (1 - share) * bins[lower] + share * bins[lower + 1], None

        start = jnp.zeros(math.prod(self.image_shape), vector.dtype)
        bins = vector.reshape(len(self.angles), self.bins)
        return jax.lax.scan(add, start, (jnp.array(self.angles, self.dtype), bins))[0]

    def astype(self, dtype: Any) -> Radon:
        return Radon(self.image_shape, self.angles, dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((math.prod(self.image_shape),), self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(self.angles) * self.bins,), self.dtype)
