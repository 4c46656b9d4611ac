"""Forward operators `A` of a data term, each with a fast basis in which `A^T A` is diagonal.

With `A^T A = V diag(gains) V^T`, everything a data term needs is a function of the gains: the
resolvent `(I + c A^T A)^{-1}`, the pseudo-inverse, the projection onto the range of `A^T`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from hypergrad._foundation.checks import as_inexact, check_finite, check_fraction, inexact
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import check_image_shape

__all__ = ["AbstractForward", "Blur", "DenseForward", "FourierSampling", "Mask", "pseudo_inverse"]

Vector = Float[Array, "*batch n"]


def _as_shape(shape: Any) -> tuple[int, int]:
    shape = tuple(shape)
    check_image_shape(shape)
    return shape


class AbstractForward(eqx.Module):
    """A forward operator `A` that acts on the last axis, with a basis that diagonalises `A^T A`.

    A subclass defines the two products, `__call__` (`A x`) and `transpose` (`A^T b`), `size`, and
    the basis by `analyse`, `synthesise` and `gains` (in the layout of the coefficients), with

        synthesise(gains * analyse(v)) = A^T A v,    synthesise(analyse(v)) = v,

    the latter up to the kernel of `A`, which the basis may leave out. `separable` says that the
    coefficients are the entries of v.
    """

    separable: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The length n of the vectors that `A` acts on."""

    @abc.abstractmethod
    def __call__(self, x: ArrayLike) -> Array:
        """Return the measurements `A x`."""

    @abc.abstractmethod
    def transpose(self, b: Array) -> Vector:
        """Return `A^T b`."""

    @abc.abstractmethod
    def analyse(self, v: Vector) -> Array:
        """Return the coefficients of v in the basis."""

    @abc.abstractmethod
    def synthesise(self, c: Array) -> Vector:
        """Return the vector with these coefficients."""

    @abc.abstractmethod
    def gains(self, dtype: Any) -> Float[Array, "..."]:
        """Return the eigenvalues of `A^T A`, all at least 0."""

    def filter(self, v: Vector, of_gains: Callable[[Array], Array]) -> Vector:
        """Return `V diag(f(gains)) V^T v` for a function with `f(0) = 0`."""
        coefficients = self.analyse(v)
        factors = of_gains(self.gains(v.dtype)).astype(coefficients.dtype)
        return self.synthesise(coefficients * _lifted(factors, coefficients))

    def is_measured(self, gains: Array, cutoff: float = 0.0) -> Bool[Array, "..."]:
        """Return which singular values exceed rounding and `cutoff` times the largest one."""
        rounding = self.size * float(jnp.finfo(gains.dtype).eps)
        return gains > max(rounding, cutoff) ** 2 * jnp.max(gains)


class Mask(AbstractForward):
    """Measure some entries: inpainting, or decimation with a regular mask; `A x = mask * x`.

    `mask` has any shape and holds 0 and 1 (or booleans); vectors are its entries in row-major
    order. Measurements have the same length, with 0 where nothing is measured.

    >>> print(Mask(jnp.array([1, 0, 1]))(jnp.array([1.0, 2.0, 3.0])))
    [1. 0. 3.]
    """

    mask: Bool[Array, "..."]
    separable: ClassVar[bool] = True

    def __init__(self, mask: Any):
        self.mask = _as_mask("Mask.mask", mask)

    @property
    def size(self) -> int:
        return self.mask.size

    def __call__(self, x: ArrayLike) -> Array:
        return self.filter(jnp.asarray(x), lambda gains: gains)

    def transpose(self, b: Array) -> Vector:
        return self(b)

    def analyse(self, v: Vector) -> Array:
        return v

    def synthesise(self, c: Array) -> Vector:
        return c

    def gains(self, dtype: Any) -> Float[Array, " n"]:
        return self.mask.reshape(-1).astype(dtype)


class Blur(AbstractForward):
    """Convolve images with a kernel, with periodic boundaries.

    `kernel (a, b)` is centred at `kernel.shape // 2` and can be learned; `shape` is that of the
    image, `(height, width)`, at least as large as the kernel. Vectors are images in row-major
    order.

    **Cost**: two real FFTs per product or prox, and one of the kernel.

    >>> identity = Blur(jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), (4, 4))
    >>> bool(jnp.allclose(identity(jnp.arange(16.0)), jnp.arange(16.0), atol=1e-5))
    True
    """

    kernel: Float[Array, "a b"] = eqx.field(converter=inexact("Blur.kernel"))
    shape: tuple[int, int] = eqx.field(static=True, converter=_as_shape)

    def __check_init__(self) -> None:
        got = jnp.shape(self.kernel)
        if len(got) != 2 or got[0] > self.shape[0] or got[1] > self.shape[1]:
            raise HypergradError(
                f"Blur.kernel must be a matrix no larger than the image, {self.shape}; got shape "
                f"{got}: crop the kernel, or take a larger image"
            )
        check_finite("Blur.kernel", self.kernel)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def _transfer(self, dtype: Any) -> Array:
        a, b = self.kernel.shape
        padded = jnp.zeros(self.shape, dtype).at[:a, :b].set(self.kernel.astype(dtype))
        return jnp.fft.rfft2(jnp.roll(padded, (-(a // 2), -(b // 2)), (0, 1)))

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        return self.synthesise(self._times(self._transfer(x.dtype), x))

    def transpose(self, b: Array) -> Vector:
        return self.synthesise(self._times(jnp.conj(self._transfer(b.dtype)), b))

    def _times(self, transfer: Array, v: Vector) -> Array:
        coefficients = self.analyse(v)
        return coefficients * _lifted(transfer, coefficients)

    def analyse(self, v: Vector) -> Array:
        return _rfft2(v, self.shape)

    def synthesise(self, c: Array) -> Vector:
        return _irfft2(c, self.shape)

    def gains(self, dtype: Any) -> Float[Array, "h half"]:
        transfer = self._transfer(dtype)
        return transfer.real**2 + transfer.imag**2


class FourierSampling(AbstractForward):
    """Measure some Fourier coefficients of real images (orthonormal FFT): `A x = mask * FFT(x)`.

    `mask (height, width)` holds 0 and 1 (or booleans) in the order of `numpy.fft.fft2`; `shape` is
    that of the image. Measurements are complex vectors of length n, with 0 where nothing is
    measured. (The images are real: a coefficient also determines the one of opposite frequency.)

    **Cost**: two real FFTs per prox.

    >>> everything = FourierSampling(jnp.ones((2, 2)), (2, 2))
    >>> print(everything(jnp.ones(4)).real)
    [2. 0. 0. 0.]
    """

    mask: Bool[Array, "h w"]
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, mask: Any, shape: tuple[int, int]):
        self.mask, self.shape = _as_mask("FourierSampling.mask", mask), _as_shape(shape)
        if self.mask.shape != self.shape:
            raise HypergradError(
                f"FourierSampling.mask must have the shape of the image, {shape}; got "
                f"{self.mask.shape}: one entry for each coefficient of numpy.fft.fft2"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        coefficients = jnp.fft.fft2(x.reshape(*x.shape[:-1], *self.shape), norm="ortho")
        return self._masked(coefficients).reshape(x.shape)

    def transpose(self, b: Array) -> Vector:
        coefficients = self._masked(b.reshape(*b.shape[:-1], *self.shape))
        return jnp.fft.ifft2(coefficients, norm="ortho").real.reshape(b.shape)

    def _masked(self, coefficients: Array) -> Array:
        return jnp.where(_lifted(self.mask, coefficients), coefficients, 0)

    def analyse(self, v: Vector) -> Array:
        return _rfft2(v, self.shape)

    def synthesise(self, c: Array) -> Vector:
        return _irfft2(c, self.shape)

    def gains(self, dtype: Any) -> Float[Array, "h half"]:
        mask = self.mask.astype(dtype)
        opposite = jnp.roll(mask[::-1, ::-1], (1, 1), (0, 1))  # the mask at minus the frequency
        return ((mask + opposite) / 2)[:, : self.shape[1] // 2 + 1]


class DenseForward(AbstractForward):
    """A matrix `A = left diag(singular) right`, by its singular value decomposition.

    The factors are `left (p, rank)`, `singular (rank,)` and `right (rank, n)`. Only the singular
    values have a derivative: the other two must keep orthonormal columns and rows. To learn the
    matrix itself, call `DenseForward.of(matrix)` inside your loss.

    **Cost**: two products with the factors per prox.

    >>> print(DenseForward.of(jnp.array([[3.0, 4.0]])).gains(jnp.float32))
    [25.]
    """

    left: Float[Array, "p rank"]
    singular: Float[Array, " rank"]
    right: Float[Array, "rank n"]

    @classmethod
    def of(cls, matrix: Any) -> DenseForward:
        """Decompose a matrix `(p, n)`, once; `O(p n min(p, n))` operations."""
        matrix = as_inexact(matrix, "A", rule="a matrix (p, n)", advice="pass an array")
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise HypergradError(
                f"A must be a matrix (p, n); got shape {matrix.shape}: one row per measurement"
            )
        check_finite("A", matrix)
        # Factors of single precision would not be orthogonal to double precision.
        matrix = matrix.astype(jnp.result_type(float))
        return cls(*jnp.linalg.svd(matrix, full_matrices=False))

    @property
    def size(self) -> int:
        return self.right.shape[1]

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        left = jax.lax.stop_gradient(self.left)
        return (self.analyse(x) * _lifted(self.singular, x)) @ left.T

    def transpose(self, b: Array) -> Vector:
        left = jax.lax.stop_gradient(self.left)
        return self.synthesise((b @ left) * _lifted(self.singular, b))

    def analyse(self, v: Vector) -> Array:
        return v @ jax.lax.stop_gradient(self.right).T

    def synthesise(self, c: Array) -> Vector:
        return c @ jax.lax.stop_gradient(self.right)

    def gains(self, dtype: Any) -> Float[Array, " rank"]:
        return self.singular.astype(dtype) ** 2


def pseudo_inverse(A: AbstractForward | Any, b: Any, *, cutoff: float = 0.0) -> Vector:
    """Return `A^+ b`, the least-norm least-squares solution: the `x_tilde` of measurements.

        ||A x - b||^2 = ||A (x - A^+ b)||^2 + constant

    **Arguments**:

    - `A`: a forward operator, or a matrix `(p, n)`.
    - `b`: measurements `(..., p)`, as `A(x)` gives them; leading axes are a batch.
    - `cutoff`: singular values below this share of the largest one count as 0. Defaults to 0: all
      above rounding are inverted.

    **Returns**: `(..., n)`.

    **Raises**: `HypergradError` for measurements of another length, or a cutoff outside [0, 1).

    **Caveat**: small singular values amplify noise, and iterations that start at such an `x_tilde`
    need very long to come back. For a smooth blur take a cutoff near the noise relative to the
    image (0.01, say): where less of the image than noise is measured, the data term then asks for
    `A x = 0` in place of `A x = b`.

    >>> print(pseudo_inverse(jnp.array([[2.0, 0.0]]), jnp.array([6.0])))
    [3. 0.]
    """
    A = as_forward(A)
    check_fraction("cutoff", cutoff, "try 0.01", zero_allowed=True)
    b = jnp.asarray(b)
    b = b if jnp.issubdtype(b.dtype, jnp.inexact) else b.astype(jnp.result_type(float))
    expected = jax.eval_shape(A, jax.ShapeDtypeStruct((A.size,), b.real.dtype)).shape[-1]
    if b.ndim == 0 or b.shape[-1] != expected:
        raise HypergradError(
            f"measurements must have {expected} entries each; got shape {b.shape}: flatten images, "
            "and put 0 where nothing is measured"
        )

    def inverse(gains: Array) -> Array:
        measured = A.is_measured(gains, cutoff)
        return jnp.where(measured, 1 / jnp.where(measured, gains, 1), 0)

    return A.filter(A.transpose(b), inverse)


def as_forward(A: Any) -> AbstractForward:
    """Return a forward operator as it is, and the `DenseForward` of a matrix."""
    return A if isinstance(A, AbstractForward) else DenseForward.of(A)


def _as_mask(name: str, mask: Any) -> Bool[Array, "..."]:
    values = np.asarray(mask)
    if values.size == 0 or not np.all((values == 0) | (values == 1)):
        raise HypergradError(
            f"{name} must hold 0 and 1; got others, or nothing: compare a soft mask with a "
            "threshold first"
        )
    return jnp.asarray(values == 1)


def _lifted(parameter: Array, v: Array) -> Array:
    """Return a parameter with leading axes for the batch of v, as rank promotion would."""
    return parameter.reshape((1,) * (v.ndim - parameter.ndim) + parameter.shape)


def _rfft2(v: Vector, shape: tuple[int, int]) -> Array:
    return jnp.fft.rfft2(v.reshape(*v.shape[:-1], *shape))


def _irfft2(c: Array, shape: tuple[int, int]) -> Vector:
    images = jnp.fft.irfft2(c, s=shape)
    return images.reshape(*c.shape[:-2], math.prod(shape))
