"""Filtering of padded images: one trilinear form, its three products, two ways to compute them.

    T(filters, images, responses) = sum_{b,f,i,j} responses[b,f,i,j] sum_{p,q} filters[f,p,q]
                                                                       images[b,i+p,j+q]

The derivative of T in each of its arguments is a product of the other two. Each product is a JAX
primitive whose derivatives are the other products: whatever is differentiated, and how often, runs
at the speed of these. (Left to JAX, the transpose of a sum of shifted images is 25 sums over all
responses, and tens of times slower.)
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = [
    "FFT",
    "AbstractConvolution",
    "Direct",
    "correlate",
    "correlate_adjoint",
    "fastest_convolution",
    "filter_gradient",
]

# P = H + h - 1, Q = W + w - 1.
Filters = Float[Array, "filters h w"]
Images = Float[Array, "batch P Q"]
Responses = Float[Array, "batch filters H W"]


class AbstractConvolution(eqx.Module):
    """A way to compute the three products; all ways agree to rounding."""

    @abc.abstractmethod
    def correlate(self, filters: Filters, images: Images) -> Responses:
        """Return `dT / d responses`: every filter at every place where it lies in the image."""

    @abc.abstractmethod
    def correlate_adjoint(self, filters: Filters, responses: Responses) -> Images:
        """Return `dT / d images`."""

    @abc.abstractmethod
    def filter_gradient(self, images: Images, responses: Responses) -> Filters:
        """Return `dT / d filters`, summed over the batch."""


# -------------------------------------------------------------------------------------- direct

# Pixels of a strip of rows: its shifted copies and its responses stay in the cache.
_STRIP_PIXELS = 1024

# Taps up to which sums over them are faster than a product with their shifted copies.
_SUMMED_TAPS = 25


class Direct(AbstractConvolution):
    """Matrix products with shifted copies of the image, strip of rows by strip of rows.

    The filters are a matrix (filters, taps), the shifted copies of a strip one of (taps, pixels):
    the three products are those of a matrix, at nearly the speed of a matrix product. A strip is so
    small that its copies never leave the cache.

    **Cost**: `2 f h w` operations a pixel; memory for one strip. The program grows with `h w`.

    >>> fastest_convolution((5, 5))
    Direct()
    """

    def correlate(self, filters: Filters, images: Images) -> Responses:
        f, h, w = filters.shape
        batch, H, W = len(images), images.shape[-2] - h + 1, images.shape[-1] - w + 1
        matrix = filters.reshape(f, h * w)

        # What stands there first is written over. Of a constant XLA would make one array for all
        # products, keep it, and copy it for each.
        anything = jnp.broadcast_to(images[:, None, :1, :1], (batch, f, H, W))

        def put_filter(i: Array, responses: Array) -> Array:
            taps = jax.lax.dynamic_index_in_dim(filters, i, keepdims=False)
            response = sum(
                (taps[p, q] * images[:, p : p + H, q : q + W] for p in range(h) for q in range(w)),
                jnp.zeros((), images.dtype),
            )
            return jax.lax.dynamic_update_slice(responses, response[:, None], (0, i, 0, 0))

        def put_strip(b: Any, top: Any, rows: int, responses: Array) -> Array:
            strip = (matrix @ _shifted(images, b, top, rows, (h, w))).reshape(1, f, rows, W)
            return jax.lax.dynamic_update_slice(responses, strip, (b, 0, top, 0))

        if h * w <= _SUMMED_TAPS:
            return jax.lax.fori_loop(0, f, put_filter, anything)
        return _over_strips(batch, H, W, put_strip, anything)

    def correlate_adjoint(self, filters: Filters, responses: Responses) -> Images:
        f, h, w = filters.shape
        batch, _, H, W = responses.shape
        matrix = filters.reshape(f, h * w).T

        def add(b: Any, top: Any, rows: int, images: Array) -> Array:
            strip = jax.lax.dynamic_slice(responses, (b, 0, top, 0), (1, f, rows, W))
            copies = (matrix @ strip.reshape(f, rows * W)).reshape(h, w, rows, W)
            shape = (1, rows + h - 1, W + w - 1)
            here = jax.lax.dynamic_slice(images, (b, top, 0), shape)
            here = here + sum(
                jnp.pad(copies[p, q], ((p, h - 1 - p), (q, w - 1 - q)))
                for p in range(h)
                for q in range(w)
            )
            return jax.lax.dynamic_update_slice(images, here, (b, top, 0))

        images = jnp.zeros((batch, H + h - 1, W + w - 1), responses.dtype)
        return _over_strips(batch, H, W, add, images)

    def filter_gradient(self, images: Images, responses: Responses) -> Filters:
        batch, f, H, W = responses.shape
        h, w = images.shape[-2] - H + 1, images.shape[-1] - W + 1

        def add(b: Any, top: Any, rows: int, total: Array) -> Array:
            strip = jax.lax.dynamic_slice(responses, (b, 0, top, 0), (1, f, rows, W))
            copies = _shifted(images, b, top, rows, (h, w))
            return total + strip.reshape(f, rows * W) @ copies.T

        total = jnp.zeros((f, h * w), responses.dtype)
        return _over_strips(batch, H, W, add, total).reshape(f, h, w)


def _over_strips(
    batch: int, H: int, W: int, add: Callable[[Any, Any, int, Array], Array], total: Array
) -> Array:
    """Call `add(image, first row, rows, total)` for the strips of all images, one by one."""
    rows = min(H, max(1, _STRIP_PIXELS // W))
    strips, rest = divmod(H, rows)

    def add_strip(i: Array, total: Array) -> Array:
        return add(i // strips, (i % strips) * rows, rows, total)

    def add_rest(b: Array, total: Array) -> Array:
        return add(b, H - rest, rest, total)

    total = jax.lax.fori_loop(0, batch * strips, add_strip, total)
    return jax.lax.fori_loop(0, batch, add_rest, total) if rest else total


def _shifted(images: Images, b: Any, top: Any, rows: int, taps: tuple[int, int]) -> Array:
    """Return `(h w, rows W)`: for each tap, what it sees from each pixel of a strip."""
    (h, w), P = taps, images.shape[-1]
    W = P - w + 1
    strip = jax.lax.dynamic_slice(images, (b, top, 0), (1, rows + h - 1, P))[0]
    return jnp.stack([strip[p : p + rows, q : q + W].ravel() for p in range(h) for q in range(w)])


# ----------------------------------------------------------------------------------------- FFT


class FFT(AbstractConvolution):
    """Products of spectra.

    **Cost**: `2 f` transforms of the size of the image (half of them of the filters), whatever
    their size; memory for the spectra of all responses.

    >>> fastest_convolution((31, 31))
    FFT()
    """

    def correlate(self, filters: Filters, images: Images) -> Responses:
        _, h, w = filters.shape
        size = images.shape[-2:]
        spectra = _spectrum(images, size)[:, None] * jnp.conj(_spectrum(filters, size))
        return _inverse(spectra, size, (size[0] - h + 1, size[1] - w + 1))

    def correlate_adjoint(self, filters: Filters, responses: Responses) -> Images:
        _, h, w = filters.shape
        size = responses.shape[-2] + h - 1, responses.shape[-1] + w - 1
        spectra = jnp.sum(_spectrum(responses, size) * _spectrum(filters, size), axis=1)
        return _inverse(spectra, size, size)

    def filter_gradient(self, images: Images, responses: Responses) -> Filters:
        size = images.shape[-2:]
        h, w = size[0] - responses.shape[-2] + 1, size[1] - responses.shape[-1] + 1
        image_spectra, spectra = _spectrum(images, size), _spectrum(responses, size)
        products = jnp.sum(image_spectra[:, None] * jnp.conj(spectra), axis=0)
        return _inverse(products, size, (h, w))


def _fast(size: Sequence[int]) -> tuple[int, int]:
    """Return the next size that is fast to transform."""
    from scipy.fft import next_fast_len

    height, width = (int(next_fast_len(length, real=True) or length) for length in size)
    return height, width


def _spectrum(a: Array, size: Sequence[int]) -> Array:
    return jnp.fft.rfft2(a, _fast(size))


def _inverse(spectra: Array, size: Sequence[int], kept: tuple[int, int]) -> Array:
    return jnp.fft.irfft2(spectra, _fast(size))[..., : kept[0], : kept[1]]


# Taps up to which sums over them are faster than transforms: 24 filters, on images of 128 to 1024
# pixels a side, in float32 and in float64 (see hypergrad.workbench.benchmark.images).
_DIRECT_TAPS = 100


def fastest_convolution(filter_shape: tuple[int, int]) -> AbstractConvolution:
    """Return `Direct` for filters of up to 100 taps, else `FFT`.

    >>> fastest_convolution((5, 5)), fastest_convolution((31, 31))
    (Direct(), FFT())
    """
    return Direct() if filter_shape[0] * filter_shape[1] <= _DIRECT_TAPS else FFT()


# ---------------------------------------------------------------------------------- primitives


def _product(name: str, compute: Callable[..., Array]) -> Primitive:
    """Return a primitive of two arrays and a convolution, computed by `compute`."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(compute, static_argnames="convolution"))

    def abstract(a: Any, b: Any, *, convolution: AbstractConvolution) -> Any:
        run = functools.partial(compute, convolution=convolution)
        out = jax.eval_shape(run, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b)))
        return ShapedArray(out.shape, out.dtype)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


_correlate = _product("correlate", lambda a, b, *, convolution: convolution.correlate(a, b))
_correlate_adjoint = _product(
    "correlate_adjoint", lambda a, b, *, convolution: convolution.correlate_adjoint(a, b)
)
_filter_gradient = _product(
    "filter_gradient", lambda a, b, *, convolution: convolution.filter_gradient(a, b)
)


def correlate(filters: Filters, images: Images, convolution: AbstractConvolution) -> Responses:
    """Return `dT / d responses`, differentiable."""
    return _correlate.bind(filters, images, convolution=convolution)


def correlate_adjoint(
    filters: Filters, responses: Responses, convolution: AbstractConvolution
) -> Images:
    """Return `dT / d images`, differentiable."""
    return _correlate_adjoint.bind(filters, responses, convolution=convolution)


def filter_gradient(
    images: Images, responses: Responses, convolution: AbstractConvolution
) -> Filters:
    """Return `dT / d filters`, differentiable."""
    return _filter_gradient.bind(images, responses, convolution=convolution)


# Each is linear in both of its arguments; a rule gives the cotangent of one from the other.
ad.defbilinear(
    _correlate,
    lambda ct, _, images, **how: filter_gradient(images, ct, **how),
    lambda ct, filters, _, **how: correlate_adjoint(filters, ct, **how),
)
ad.defbilinear(
    _correlate_adjoint,
    lambda ct, _, responses, **how: filter_gradient(ct, responses, **how),
    lambda ct, filters, _, **how: correlate(filters, ct, **how),
)
ad.defbilinear(
    _filter_gradient,
    lambda ct, _, responses, **how: correlate_adjoint(ct, responses, **how),
    lambda ct, images, _, **how: correlate(ct, images, **how),
)


def _one_by_one(primitive: Primitive) -> Callable[..., tuple[Array, int]]:
    """vmap as a loop: an image is large enough to be worth an iteration."""

    def batched(arguments: Sequence[Array], axes: Sequence[Any], **how: Any) -> tuple[Array, int]:
        mapped = [jnp.moveaxis(a, axis, 0) for a, axis in _batched(arguments, axes)]

        def one(items: list[Array]) -> Array:
            rest = iter(items)
            both = [a if x is None else next(rest) for a, x in zip(arguments, axes, strict=True)]
            return primitive.bind(*both, **how)

        return jax.lax.map(one, mapped), 0

    return batched


def _batched(arguments: Sequence[Array], axes: Sequence[Any]) -> list[tuple[Array, int]]:
    return [(a, axis) for a, axis in zip(arguments, axes, strict=True) if axis is not None]


def _as_larger_batch(primitive: Primitive) -> Callable[..., tuple[Array, int]]:
    """vmap over images or responses alone: more of them in the batch that there is anyway."""
    one_by_one = _one_by_one(primitive)

    def batched(arguments: Sequence[Array], axes: Sequence[Any], **how: Any) -> tuple[Array, int]:
        filters, stacks = arguments
        if axes[0] is not None:
            return one_by_one(arguments, axes, **how)
        stacks = jnp.moveaxis(stacks, axes[1], 0)
        out = primitive.bind(filters, stacks.reshape(-1, *stacks.shape[2:]), **how)
        return out.reshape(*stacks.shape[:2], *out.shape[1:]), 0

    return batched


batching.primitive_batchers[_correlate] = _as_larger_batch(_correlate)
batching.primitive_batchers[_correlate_adjoint] = _as_larger_batch(_correlate_adjoint)
batching.primitive_batchers[_filter_gradient] = _one_by_one(_filter_gradient)
