"""Training pairs of whole images: crops and noise that are drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hypergrad._foundation.checks import check_count, check_counts, check_finite, check_number
from hypergrad._foundation.errors import HypergradError
from hypergrad.learning.pairs import Pair

__all__ = ["RandomCrops"]


@dataclasses.dataclass(frozen=True, eq=False)
class RandomCrops:
    """Draw crops of images, turned and mirrored at random, with noise: the `data` of `train`.

        x_tilde = x_true + noise * epsilon,     epsilon standard normal

    Crops and noise of an epoch depend on `seed` and its round alone, so that a resumed run sees
    them again. All places of an image are equally likely, and all images.

    **Arguments**:

    - `images`: arrays `(h, w)`, or any sequence that gives them by index, such as
      `workbench.data.ImageFolder`; an image is read when a crop of it is drawn.
    - `shape`: `(height, width)` of a crop, at most the size of every image.
    - `noise`: a standard deviation in the unit of the images; or a function of `(x_true, rng)`, the
      crops `(count, n)` and a NumPy generator, that returns `x_tilde`.
    - `count`: crops in an epoch. Defaults to 256.
    - `rounds`: epochs that share their crops; more than 1 for warm starts. Defaults to 1.
    - `seed`: a whole number. Defaults to 0.
    - `dtype`: of the pairs, "float64" (default) or "float32".

    **Returns**: called with an epoch, `(x_tilde, x_true)`, each `(count, height * width)`.

    **Errors**: a `HypergradError` for a setting out of range, and for an image that is too small or
    not finite.

    **Cost**: memory for one epoch's crops.

    >>> crops = RandomCrops([np.eye(9), np.ones((8, 12))], (4, 4), noise=0.1, count=6)
    >>> x_tilde, x_true = crops(1)
    >>> x_tilde.shape, bool(np.all(crops(1)[1] == x_true)), bool(np.all(crops(2)[1] == x_true))
    ((6, 16), True, False)
    """

    images: Sequence[Any]
    shape: tuple[int, int]
    noise: float | Callable[[np.ndarray, np.random.Generator], np.ndarray]
    count: int = 256
    rounds: int = 1
    seed: int = 0
    dtype: str = "float64"

    def __post_init__(self) -> None:
        check_counts("shape", self.shape)
        check_count("count", self.count)
        check_count("rounds", self.rounds)
        check_count("seed", self.seed, least=0)
        if not callable(self.noise):
            check_number("noise", self.noise)
        if len(self.images) == 0:
            raise HypergradError("images must hold at least one image; got none: name a folder")

    def __call__(self, epoch: int) -> Pair:
        rng = np.random.default_rng([self.seed, (epoch - 1) // self.rounds])
        # Image by image, so that each is read once.
        chosen = np.sort(rng.integers(len(self.images), size=self.count))
        x_true = np.empty((self.count, self.shape[0] * self.shape[1]), self.dtype)
        image, last = np.empty(0), -1
        for row, index in zip(x_true, chosen, strict=True):
            if index != last:
                image, last = self._image(int(index)), index
            row[:] = _crop(image, self.shape, rng).ravel()
        if callable(self.noise):
            return np.asarray(self.noise(x_true, rng), self.dtype), x_true
        noise = self.noise * rng.standard_normal(x_true.shape)
        return x_true + noise.astype(self.dtype), x_true

    def _image(self, index: int) -> np.ndarray:
        image = np.asarray(self.images[index])
        if image.ndim != 2 or min(np.subtract(image.shape, self.shape)) < 0:
            raise HypergradError(
                f"an image must be (h, w) and at least as large as a crop, {self.shape}; got "
                f"{image.shape} for image {index}: leave it out, or take smaller crops"
            )
        check_finite(f"image {index}", image)
        return image


def _crop(image: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a random crop, turned and mirrored; a turn by 90 degrees only where it is square."""
    top, left = (rng.integers(s - c + 1) for s, c in zip(image.shape, shape, strict=True))
    crop = image[top : top + shape[0], left : left + shape[1]]
    if shape[0] == shape[1] and rng.integers(2):
        crop = crop.T
    return crop[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
