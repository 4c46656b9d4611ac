"""Filters of a whole image as an operator, matrix-free."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import as_inexact, check_finite, is_concrete
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import AbstractOperator, check_image_shape
from hypergrad.problem.operators.boundaries import AbstractBoundary, Margins, Symmetric
from hypergrad.problem.operators.convolutions import (
    AbstractConvolution,
    correlate,
    correlate_adjoint,
    fastest_convolution,
)
from hypergrad.problem.operators.norm import LANCZOS_MARGIN, operator_norm

__all__ = ["FilterBank"]


class FilterBank(AbstractOperator):
    """A bank of filters on a whole image, matrix-free; its filters can be learned.

        (K x)[f, i, j] = sum_{p,q} filters[f, p, q] x[i + p - (h-1)//2, j + q - (w-1)//2]

    `n = height * width`, row by row; `m = f n`, filter by filter (with `Valid()` fewer, see there).
    The learned leaf is `filters` (`trainable=lambda p: p.K.filters`).

    **Arguments**:

    - `filters`: an `(f, h, w)` array.
    - `image_shape`: `(height, width)`.
    - `boundary`: the image's extension outside, `Symmetric()` (default), `Reflect()`,
      `ZeroOutside()` or `Periodic()`; with `Valid()` none, and no responses at the border.
    - `convolution`: `Direct()` or `FFT()`, which agree to rounding. Defaults to `Direct` for
      filters of up to 100 taps.

    **Errors**: a `ValueError` if the filters are not a finite `(f, h, w)` array, are all zero, or
    are larger than the image.

    **Cost**: `2 f h w` operations per pixel or `2 f` transforms for a product with K or `K^T` and
    for the derivative in the filters; memory for the image and the responses.

    **Caveat**: `as_matrix` stores `m n` numbers; use it for small images only.

    >>> bank = FilterBank(jnp.array([[[-1.0, 1.0]], [[0.5, 0.5]]]), (1, 4))
    >>> print(bank.mv(jnp.array([1.0, 2.0, 4.0, 4.0])).reshape(2, 4))
    [[1.  2.  0.  0. ]
     [1.5 3.  4.  4. ]]
    """

    filters: Float[Array, "f h w"]
    image_shape: tuple[int, int] = eqx.field(static=True)
    boundary: AbstractBoundary = eqx.field(static=True)
    convolution: AbstractConvolution = eqx.field(static=True)

    def __init__(
        self,
        filters: Any,
        image_shape: Any,
        boundary: Any = None,
        convolution: Any = None,
    ):
        filters = as_inexact(filters, "filters", rule="an (f, h, w) array")
        _check_filters(filters, image_shape)
        boundary = Symmetric() if boundary is None else boundary
        convolution = fastest_convolution(filters.shape[1:]) if convolution is None else convolution
        _check_choice("boundary", boundary, AbstractBoundary, "Symmetric()")
        _check_choice("convolution", convolution, AbstractConvolution, "Direct()")
        self.filters = filters
        self.image_shape = image_shape
        self.boundary = boundary
        self.convolution = convolution

    def with_image_shape(self, image_shape: tuple[int, int]) -> FilterBank:
        """Return the same filters for images `(height, width)` of another shape.

        >>> bank = FilterBank(jnp.ones((1, 2, 2)), (8, 8))
        >>> bank.with_image_shape((481, 321)).image_shape
        (481, 321)
        """
        return FilterBank(self.filters, image_shape, self.boundary, self.convolution)

    @property
    def margins(self) -> Margins:
        """The number of pixels that a filter reaches over each border."""
        _, h, w = self.filters.shape
        return ((h - 1) // 2, h // 2), ((w - 1) // 2, w // 2)

    @property
    def response_shape(self) -> tuple[int, int]:
        """The number of rows and columns of the responses to one filter."""
        return self.boundary.response_shape(self.image_shape, self.margins)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " m"]:
        padded = self.boundary.pad(vector.reshape(self.image_shape), self.margins)
        return correlate(self.filters, padded[None], self.convolution).ravel()

    def rmv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        """Return `K^T y`."""
        responses = vector.reshape(1, len(self.filters), *self.response_shape)
        padded = correlate_adjoint(self.filters, responses, self.convolution)
        return self.boundary.fold(padded[0], self.margins).ravel()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        height, width = self.image_shape
        return jax.ShapeDtypeStruct((height * width,), self.filters.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        height, width = self.response_shape
        return jax.ShapeDtypeStruct((len(self.filters) * height * width,), self.filters.dtype)

    def norm_bound(self) -> Float[Array, ""] | None:
        """Return the norm on a torus that contains the image, by the spectrum; None if not close.

            ||K||^2 <= max_omega sum_f |F filters_f|^2 = max_omega F(sum_f autocorrelation of f)

        With equality for `Periodic()`. One transform of the size of the image. A mirrored image
        lies on no such torus: away from the border its norm is that on a torus of its size, and
        what a border adds falls off within a few margins, so that it shows on a small image; the
        larger of the two, with a margin of 1 %.
        """
        torus = self.boundary.torus(self.image_shape, self.margins)
        if torus is not None:
            return self._norm_on(torus)
        if not self.boundary.mirrors:
            return None
        around = [max(8, 4 * sum(margins)) for margins in self.margins]
        small = min(self.image_shape[0], around[0]), min(self.image_shape[1], around[1])
        if small == self.image_shape:
            return None
        inside = self._norm_on(self.image_shape) * (1 + LANCZOS_MARGIN)
        return jnp.maximum(inside, operator_norm(self.with_image_shape(small)))

    def _norm_on(self, torus: tuple[int, int]) -> Float[Array, ""]:
        _, h, w = self.filters.shape
        largest = jnp.max(jnp.abs(self.filters))
        unit = jnp.where(largest > 0, largest, 1.0)  # squares must neither overflow nor vanish
        filters = self.filters / unit
        frame = jnp.pad(filters, ((0, 0), (h - 1, h - 1), (w - 1, w - 1)))
        autocorrelation = correlate(filters, frame, self.convolution)
        kernel = jnp.einsum("ffpq->pq", autocorrelation)
        # As an image on the torus; where it is longer than the torus it overlaps itself.
        rows, columns = jnp.arange(2 * h - 1) % torus[0], jnp.arange(2 * w - 1) % torus[1]
        image = jnp.zeros(torus, kernel.dtype).at[rows[:, None], columns].add(kernel)
        power = jnp.max(jnp.abs(jnp.fft.rfft2(image)))
        rounding = 100 * jnp.finfo(kernel.dtype).eps
        return unit * jnp.sqrt(power) * (1 + rounding)


def _check_filters(filters: Array, image_shape: Any) -> None:
    check_image_shape(image_shape)
    if filters.ndim != 3 or 0 in filters.shape:
        raise HypergradError(
            f"filters must have shape (f, h, w); got {filters.shape}: a single one is filters[None]"
        )
    check_finite("filters", filters)
    if is_concrete(filters) and not np.any(np.asarray(filters)):
        raise HypergradError(
            "filters must not be zero (their norm sets the step sizes); got only zeros: start from "
            "differences, a DCT or random filters"
        )
    if filters.shape[1] > image_shape[0] or filters.shape[2] > image_shape[1]:
        raise HypergradError(
            f"filters must not be larger than the image; got {filters.shape[1:]} on an image of "
            f"{image_shape}: crop the filters"
        )


def _check_choice(name: str, value: Any, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        raise HypergradError(
            f"{name} must be an object of hypergrad.operators; got {value!r}: take "
            f"hypergrad.operators.{example}"
        )
