"""Filters of a whole image as an operator, matrix-free."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import (
    as_inexact,
    check_count,
    check_finite,
    describe,
    is_concrete,
)
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import AbstractOperator, check_image_shape
from hypergrad.problem.operators.boundaries import AbstractBoundary, Margins, Symmetric
from hypergrad.problem.operators.convolutions import (
    AbstractConvolution,
    correlate,
    correlate_adjoint,
    fastest_convolution,
)
from hypergrad.problem.operators.matrices import dct2
from hypergrad.problem.operators.norm import LANCZOS_MARGIN, operator_norm

__all__ = ["FilterBank", "dct_bank", "zero_mean"]


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
        size = 2 * h - 1, 2 * w - 1  # on which an autocorrelation does not overlap itself
        power = jnp.sum(jnp.abs(jnp.fft.rfft2(filters, size)) ** 2, axis=0)
        kernel = jnp.fft.fftshift(jnp.fft.irfft2(power, size))
        # As an image on the torus; where it is longer than the torus it overlaps itself.
        rows, columns = jnp.arange(2 * h - 1) % torus[0], jnp.arange(2 * w - 1) % torus[1]
        image = jnp.zeros(torus, kernel.dtype).at[rows[:, None], columns].add(kernel)
        power = jnp.max(jnp.abs(jnp.fft.rfft2(image)))
        rounding = 100 * jnp.finfo(kernel.dtype).eps
        return unit * jnp.sqrt(power) * (1 + rounding)


def dct_bank(
    size: int,
    image_shape: tuple[int, int],
    *,
    count: int | None = None,
    boundary: AbstractBoundary | None = None,
    convolution: AbstractConvolution | None = None,
) -> FilterBank:
    """Return a bank of the orthonormal DCT-II filters of one size, without the constant one.

        filter[p, q] = c_u c_v cos(pi (2p + 1) u / (2 size)) cos(pi (2q + 1) v / (2 size))

    for all frequencies `(u, v)` but (0, 0), by increasing `u^2 + v^2` (of two that are equal, the
    one with the smaller u first). Their norm is 1 each and their mean 0: the usual start to learn
    from.

    **Arguments**:

    - `size`: a filter has `size x size` taps; at least 2.
    - `image_shape`: `(height, width)`.
    - `count`: how many filters, the ones of lowest frequency. Defaults to all `size^2 - 1`.
    - `boundary`, `convolution`: as in `FilterBank`.

    **Returns**: a `FilterBank`.

    **Errors**: a `HypergradError` for a size below 2, a count out of range, and an image smaller
    than the filters.

    >>> dct_bank(5, (64, 64)).filters.shape, dct_bank(7, (64, 64), count=20).filters.shape
    ((24, 5, 5), (20, 7, 7))
    """
    check_count("size", size, least=2)
    if count is not None:
        check_count("count", count, most=size**2 - 1)
    u, v = np.divmod(np.arange(1, size**2), size)
    order = np.argsort(u**2 + v**2, kind="stable")[:count]
    filters = dct2((size, size), constant=False)[order].reshape(-1, size, size)
    return FilterBank(filters, image_shape, boundary, convolution)


def zero_mean(bank: Any) -> FilterBank:
    """Return a bank with the mean of each filter subtracted: the nearest with means of 0.

    Such filters do not respond to a constant (but at a border with `ZeroOutside()`), so that the
    mean of an image is kept. It is a projection for learning:

        hg.train(..., project=lambda p: dataclasses.replace(p, K=zero_mean(p.K)))

    **Arguments**: `bank`, a `FilterBank` of filters with at least two taps.

    **Returns**: a `FilterBank` for the same images.

    **Errors**: a `HypergradError` for another operator, and for filters of one tap.

    >>> print(zero_mean(FilterBank([[[1.0, 2.0]]], (4, 4))).filters)
    [[[-0.5  0.5]]]
    """
    if not isinstance(bank, FilterBank):
        raise HypergradError(
            f"bank must be a FilterBank; got {describe(bank)}: for a matrix K, subtract the mean "
            "of each row, K - K.mean(1, keepdims=True)"
        )
    if bank.filters[0].size < 2:
        raise HypergradError(
            "filters must have at least two taps to have a mean of 0; got filters of one tap: use "
            "larger ones"
        )
    filters = bank.filters - jnp.mean(bank.filters, axis=(1, 2), keepdims=True)
    return FilterBank(filters, bank.image_shape, bank.boundary, bank.convolution)


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
