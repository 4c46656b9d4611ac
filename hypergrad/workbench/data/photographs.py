"""Patches of photographs, with noise added, and images put together of patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from hypergrad._foundation.arrays import unmasked
from hypergrad.workbench.data._checks import at_least_one, one_of, require
from hypergrad.workbench.data.samples import Floats, Samples, noisy

# Chosen so that training and held-out photographs are equally hard.
PHOTOGRAPHS_TRAIN = ("astronaut", "chelsea", "coins", "brick")
PHOTOGRAPHS_CHOOSE = ("rocket",)
PHOTOGRAPHS_HELD_OUT = ("camera", "coffee")
# More than 1024 pixels a side. Of another kind than the others: to measure time and memory with.
PHOTOGRAPHS_LARGE = ("retina",)


def photograph(name: str) -> Floats:
    """One of scikit-image's photographs, `(h, w)`, grey in [0, 1]; ValueError for another name.

    >>> photograph("camera").shape
    (512, 512)
    """
    small = PHOTOGRAPHS_TRAIN + PHOTOGRAPHS_CHOOSE + PHOTOGRAPHS_HELD_OUT
    one_of("name", name, small + PHOTOGRAPHS_LARGE)
    import skimage.data

    return grey_of(getattr(skimage.data, name)(), name)


def random_patches(
    images: Mapping[str, ArrayLike], count: int, *, size: int = 8, rng: np.random.Generator
) -> Floats:
    """`(count, size * size)` patches at uniformly random places, equally many from each image.

    Row `i` comes from image `i % len(images)`, so that the first rows are a fair mixture too.
    Places may repeat. ValueError where an image is smaller than a patch.

    >>> random_patches({"flat": np.ones((9, 9))}, 5, size=3, rng=np.random.default_rng(0)).shape
    (5, 9)
    """
    at_least_one(count=count, size=size, images=len(images))
    patches = np.empty((count, size * size))
    for first, (name, image) in enumerate(images.items()):
        windows, rows = windows_of(image, size, name), patches[first :: len(images)]
        top, left = (rng.integers(places, size=len(rows)) for places in windows.shape[:2])
        rows[:] = windows[top, left].reshape(rows.shape)
    return patches


def noisy_patches(
    images: Iterable[str] | Mapping[str, ArrayLike],
    count: int,
    *,
    size: int = 8,
    noise: float = 0.1,
    seed: int,
) -> Samples:
    """`random_patches` of images, or of photographs by name, with Gaussian noise added.

    `noise` is its standard deviation in the units of the images (grey in [0, 1]); another one with
    the same seed keeps the places and only scales the noise.

    >>> noisy_patches(PHOTOGRAPHS_TRAIN, 10, seed=0).x_tilde.shape
    (10, 64)
    """
    if not isinstance(images, Mapping):
        names = (images,) if isinstance(images, str) else images
        images = {name: photograph(name) for name in names}
    rng = np.random.default_rng(seed)
    x_true = random_patches(images, count, size=size, rng=rng)
    index = np.arange(count) % len(images)
    return Samples(noisy(x_true, noise, rng), x_true, (size, size), tuple(images), index)


def all_patches(image: ArrayLike, *, size: int = 8, stride: int = 4) -> Floats:
    """The patches of `image` `(h, w)` every `stride` pixels, row by row: `(N, size * size)`.

    Where `stride` does not divide, one more patch reaches the last row or column, so that the image
    is covered. ValueError unless `1 <= stride <= size <= min(h, w)`.

    >>> all_patches(np.ones((3, 5)), size=2, stride=2).shape
    (6, 4)
    """
    windows = windows_of(image, size, "image")
    rows, columns = (_starts(extent, size, stride) for extent in np.shape(image))
    return windows[np.ix_(rows, columns)].reshape(-1, size * size)


def assemble(
    patches: ArrayLike, shape: tuple[int, int], *, size: int = 8, stride: int = 4
) -> Floats:
    """The image of `shape` `(h, w)` from the patches of `all_patches`, overlaps averaged.

    Unchanged patches give the image back to rounding. ValueError where there are not as many as
    `all_patches` cuts with this `size` and `stride`.

    >>> image = np.eye(3, 5)
    >>> np.allclose(assemble(all_patches(image, size=2, stride=1), (3, 5), size=2, stride=1), image)
    True
    """
    rows, columns = (_starts(extent, size, stride) for extent in shape)
    expected, got = (len(rows) * len(columns), size * size), np.shape(patches)
    rule = f"patches must have shape {expected} for an image of shape {tuple(shape)}"
    require(got == expected, rule, got, "use the size and stride that all_patches had")
    grid = unmasked(patches, "patches").astype(float).reshape(len(rows), len(columns), size, size)
    total, covered = np.zeros(shape), np.zeros(shape)
    for i, j in np.ndindex(size, size):  # one pixel of every patch: no place occurs twice
        place = np.ix_(rows + i, columns + j)
        total[place] += grid[:, :, i, j]
        covered[place] += 1
    return total / covered


def windows_of(image: ArrayLike, size: int, name: str | Path) -> Floats:
    """Every patch of an image, a view of shape `(h - size + 1, w - size + 1, size, size)`."""
    image = unmasked(image, f"image {name}").astype(float)
    fits, got = image.ndim == 2 and 1 <= size <= min(image.shape), f"{image.shape} for {name}"
    require(fits, f"an image must be (h, w), both at least size={size}", got, "choose another")
    return sliding_window_view(image, (size, size))


def _starts(extent: int, size: int, stride: int) -> NDArray[np.intp]:
    rule, got = "1 <= stride <= size <= extent must hold", f"{stride}, {size} and {extent}"
    require(1 <= stride <= size <= extent, rule, got, "choose another stride or size")
    return np.unique(np.append(np.arange(0, extent - size, stride), extent - size))


def grey_of(image: NDArray[Any], name: str | Path) -> Floats:
    from skimage import color, util

    got = f"{image.dtype} of shape {image.shape} in {name}"
    colours = image.shape[2:]
    usable = image.ndim in (2, 3) and colours in ((), (3,), (4,)) and image.dtype.kind in "buf"
    require(usable, "an image must be grey, RGB or RGBA, unsigned or float", got, "convert it")
    image = util.img_as_float64(image)
    require(bool(np.all(abs(image - 0.5) <= 0.5)), "grey must lie in [0, 1]", got, "rescale it")
    image = color.rgba2rgb(image) if colours == (4,) else image
    return color.rgb2gray(image) if colours else image
