"""Pictures of runs as data URIs that together stay below a size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad.workbench.studies.report_page.runs import Run

__all__ = ["Picture", "encode", "photographs", "still_pictures"]

Image = PIL.Image.Image


class Picture(NamedTuple):
    """A picture of a run; `group` is the same for pictures of one scene."""

    run: Run
    name: str
    group: bytes
    image: Image


def photographs(runs: Sequence[Run]) -> list[Picture]:
    """Return the noisy, the restored and the true photograph of each run that has stored them."""
    found = []
    for run in runs:
        for path in sorted(run.folder.glob("photograph_*.npz")):
            try:
                with np.load(path, allow_pickle=False) as stored:
                    levels = {name: np.asarray(stored[name]) for name in stored.files}
                scene = levels.get("truth", np.empty(0)).tobytes()
                found += [
                    Picture(run, name, scene, PIL.Image.fromarray(grey.astype(np.uint8)))
                    for name, grey in levels.items()
                ]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise HypergradError(
                    f"{path} must hold pictures of grey levels; got {reason_of(error)}: delete it"
                ) from None
    return found


def still_pictures(run: Run) -> list[Path]:
    """Return the pictures that are shown as they are: patches and rows of K."""
    stored = any(run.folder.glob("photograph_*.npz"))
    patterns = ["patches.png", "operator_*.png", *([] if stored else ["photograph_*.png"])]
    return [path for pattern in patterns for path in sorted(run.folder.glob(pattern))]


# WebP (quality, scale), until all pictures fit: without loss, then quality falls as far as losses
# stay below what is compared (at 70 the PSNR against the picture itself is 34 dB or more, that of
# the noise 20), and only then scale. A photograph of 512 x 512 takes 169, 86, 49, 31, 14, 6 and
# 1 kB; with noise 294, 212, 157, 120, 45, 17 and 2.
_STEPS = ((None, 1.0), (95, 1.0), (85, 1.0), (70, 1.0), (70, 0.7), (60, 0.5), (50, 0.25))


def encode(images: Sequence[Image], max_length: int) -> tuple[list[str], str]:
    """Return data URIs of at most `max_length` characters together, and in words what was lost.

    Pictures that do not fit even at the smallest step are larger than that.

    >>> uris, lost = encode([PIL.Image.new("L", (8, 8))], 1000)
    >>> uris[0][:23], lost
    ('data:image/webp;base64,', '')
    """
    uris, lost = [], ""
    for quality, scale in _STEPS:
        uris = [_data_uri(image, quality, scale) for image in images]
        if quality is not None:
            lost = f"compressed (WebP quality {quality}), at {scale:.0%} of their size"
        if sum(map(len, uris)) <= max_length:
            break
    return uris, lost


def _data_uri(image: Image, quality: int | None, scale: float) -> str:
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        )
    how = {"lossless": True} if quality is None else {"quality": quality}
    image.save(file := io.BytesIO(), "WEBP", **how)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
