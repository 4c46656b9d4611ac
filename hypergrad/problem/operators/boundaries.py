"""Extensions of an image beyond its border, for filters that reach over it."""

from __future__ import annotations

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "AbstractBoundary",
    "Margins",
    "Periodic",
    "Reflect",
    "Symmetric",
    "Valid",
    "ZeroOutside",
]

# With zeros outside, the norm falls short of that on the torus by up to `sin^2(pi / (s + 1))`,
# where the image is s margins wide (two taps, one at each end of the filter), without responses at
# the border by up to `sin^2(pi / s)`. Here 2 %.
_MARGINS_ACROSS = 20

# Rows above and below, columns left and right.
Margins = tuple[tuple[int, int], tuple[int, int]]
Images = Float[Array, "*batch height width"]
Padded = Float[Array, "*batch P Q"]


class AbstractBoundary(eqx.Module):
    """The continuation of an image: linear in the image, so that a filter has an adjoint.

    A subclass defines `pad` and `torus`; `fold` and `response_shape` where the padded image is not
    the image with its margins. Class variable `mirrors`: pixels near the border are repeated
    outside, so that the norm may be larger than that of the same filters on a torus; False by
    default.
    """

    mirrors: ClassVar[bool] = False

    @abc.abstractmethod
    def pad(self, images: Images, margins: Margins) -> Padded:
        """Return the images with margins around them."""

    def fold(self, padded: Padded, margins: Margins) -> Images:
        """Apply the adjoint of `pad`, which adds the margins to the pixels they came from."""
        *batch, height, width = padded.shape
        shape = (*batch, height - sum(margins[0]), width - sum(margins[1]))
        unpadded = jax.ShapeDtypeStruct(shape, padded.dtype)
        return jax.linear_transpose(lambda images: self.pad(images, margins), unpadded)(padded)[0]

    def response_shape(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int]:
        """Return the number of rows and columns of the responses; by default those of the image."""
        del margins
        return image_shape

    @abc.abstractmethod
    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        """Return the size of a torus whose filtering contains this one, with nearly its norm.

        The spectrum gives the norm there, which is an upper bound. None where there is no such
        image, or where the norm on it is more than 2 % larger.
        """


class Symmetric(AbstractBoundary):
    """Mirrored at the border, which is repeated: `… b a | a b c | c b …`. No edge arises.

    The common choice for photographs. Differences across the border are 0.

    >>> print(Symmetric().pad(jnp.array([[1.0, 2.0]]), ((0, 0), (1, 1))))
    [[1. 1. 2. 2.]]
    """

    mirrors: ClassVar[bool] = True

    def pad(self, images: Images, margins: Margins) -> Padded:
        return _pad(images, margins, mode="symmetric")

    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        del image_shape, margins
        return None


class Reflect(AbstractBoundary):
    """Mirrored at the border pixel, which is not repeated: `… c b | a b c | b a …`.

    The mode "reflect" of NumPy and of most deep learning packages.

    >>> print(Reflect().pad(jnp.array([[1.0, 2.0, 3.0]]), ((0, 0), (1, 1))))
    [[2. 1. 2. 3. 2.]]
    """

    mirrors: ClassVar[bool] = True

    def pad(self, images: Images, margins: Margins) -> Padded:
        return _pad(images, margins, mode="reflect")

    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        del image_shape, margins
        return None


class Valid(AbstractBoundary):
    """No continuation: a filter responds only where all of it lies inside the image.

    An image `(H, W)` has `(H - h + 1) (W - w + 1)` responses to a filter `(h, w)`. Nothing outside
    is assumed; pixels at the border count in fewer responses than others.

    >>> import hypergrad as hg
    >>> bank = hg.operators.FilterBank(jnp.array([[[-1.0, 1.0]]]), (1, 4), Valid())
    >>> print(bank.mv(jnp.array([1.0, 2.0, 4.0, 4.0])))
    [1. 2. 0.]
    """

    def pad(self, images: Images, margins: Margins) -> Padded:
        del margins
        return images

    def fold(self, padded: Padded, margins: Margins) -> Images:
        """Return the images as they are."""
        del margins
        return padded

    def response_shape(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int]:
        """Return the number of places where a filter lies inside the image."""
        (height, width), (rows, columns) = image_shape, margins
        return height - sum(rows), width - sum(columns)

    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        return image_shape if _are_far_apart(image_shape, margins) else None


class ZeroOutside(AbstractBoundary):
    """Zeros: `… 0 0 | a b c | 0 0 …`. For images that are 0 at their border.

    >>> print(ZeroOutside().pad(jnp.array([[1.0, 2.0]]), ((0, 0), (1, 1))))
    [[0. 1. 2. 0.]]
    """

    def pad(self, images: Images, margins: Margins) -> Padded:
        return _pad(images, margins, mode="constant")

    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        if not _are_far_apart(image_shape, margins):
            return None
        (height, width), ((top, bottom), (left, right)) = image_shape, margins
        return height + top + bottom, width + left + right


class Periodic(AbstractBoundary):
    """Periodic: `… b c | a b c | a b …`. K is diagonal in the Fourier basis, its norm known.

    >>> print(Periodic().pad(jnp.array([[1.0, 2.0]]), ((0, 0), (1, 1))))
    [[2. 1. 2. 1.]]
    """

    def pad(self, images: Images, margins: Margins) -> Padded:
        return _pad(images, margins, mode="wrap")

    def torus(self, image_shape: tuple[int, int], margins: Margins) -> tuple[int, int] | None:
        del margins
        return image_shape


def _are_far_apart(image_shape: tuple[int, int], margins: Margins) -> bool:
    """Return whether opposite borders are so far apart that they hardly change the norm."""
    return all(n >= _MARGINS_ACROSS * max(m) for n, m in zip(image_shape, margins, strict=True))


def _pad(images: Array, margins: Margins, *, mode: str) -> Array:
    kept = [(0, 0)] * (images.ndim - 2)
    return jnp.pad(images, [*kept, *margins], mode=mode)
