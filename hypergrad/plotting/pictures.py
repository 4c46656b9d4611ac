"""Operators, patches and photographs as pictures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hypergrad.plotting._checks import Arrays, Floats, arrays_of, require
from hypergrad.plotting.parts import Numbers, new_figure
from hypergrad.plotting.styles import DPI, LETTER, SMALL, TEXT, TINY, WIDTH

# Signed entries: white at 0; the places between rows are grey.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ("#08306b", "#4a90c8", "#ffffff", "#d9604c", "#67000d"), 255
).with_extremes(bad="0.8")


def plot_operator(
    K: ArrayLike,
    shape: tuple[int, int],
    *,
    title: str,
    use: ArrayLike | None = None,
    columns: int = 16,
) -> Figure:
    """The rows of an operator as small pictures, each on its own scale, symmetric about zero.

    Rows of one operator differ in size: on one scale the smaller ones would be grey. The largest
    entry of the smallest and of the largest row is written below.

    **Arguments**: `K` `(m, n)`; `shape` `(h, w)` with `h w = n`, for signals `(1, n)`; `use`
    `(m,)`, the mean of `|K x|` over data: rows are then sorted by it, the largest first, line by
    line; `columns`: pictures in a line.

    **Errors**: a `ValueError` for other shapes, no rows, numbers that are not finite.
    """
    (K,) = arrays_of("K", {"K": K}, shape).values()
    m, (h, w) = len(K), shape
    require(columns >= 1, f"columns must be at least 1; got {columns}: pass a positive number")
    if use is not None:
        use = np.asarray(use, float)
        ok = use.shape == (m,) and bool(np.isfinite(use).all())
        require(ok, f"use must be a finite number for each of the {m} rows; got {use.shape}")
        K = K[np.argsort(-use, kind="stable")]
    largest = np.abs(K).max(axis=1)
    scaled = K / np.where(largest > 0, largest, 1.0)[:, None]
    columns, gap = min(columns, m), min(h, w, 2) - 1  # an entry apart; rows of signals touch
    lines = math.ceil(m / columns)
    mosaic = np.full((lines * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
    for i, row in enumerate(scaled):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        mosaic[top : top + h, left : left + w] = row.reshape(h, w)
    ratio = mosaic.shape[0] / mosaic.shape[1]
    width = min(7.5, max(2.5, 0.7 * columns), 9 / ratio)
    about = f"{m} rows, each on its own scale (largest entry {largest.min():.2g} to "
    about += f"{largest.max():.2g})"
    if use is not None:
        about += "; sorted from the upper left by use, the mean of |Kx| over data"
    about = textwrap.wrap(about, int(max(width, 3) / (SMALL * LETTER)))
    height = width * ratio + 0.75 + 0.15 * len(about)
    figure = new_figure(max(width, 3) + 1.2, height, "compressed")
    axes = figure.add_subplot(xticks=[], yticks=[], frame_on=False)
    look = {"cmap": SIGNED, "vmin": -1.0, "vmax": 1.0, "interpolation": "antialiased"}
    bar = figure.colorbar(axes.imshow(mosaic, **look), pad=0.02, aspect=30)
    bar.set_label("scaled entry", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    axes.set_title(textwrap.fill(title, int(max(width, 3) / (TEXT * LETTER))), fontsize=TEXT)
    axes.set_xlabel("\n".join(about), fontsize=SMALL)
    return figure


def plot_patches(rows: Arrays, shape: tuple[int, int]) -> Figure:
    """Patches side by side, a line for each key, grey in [0, 1]; below each its PSNR in dB.

    **Arguments**: `rows`: `{"noisy": …, "full": …, "truth": …}`, each `(count, n)`, and a PSNR
    (peak 1) where there is a `truth`; `shape` `(h, w)` with `h w = n`. Values outside [0, 1] look
    black or white, but count as they are.

    **Errors**: a `ValueError` for other shapes, no rows, or more patches than fit on a page.
    """
    patches = arrays_of("rows", rows, shape)
    count = len(next(iter(patches.values())))
    left = 0.25 + TEXT * LETTER * max(map(len, patches))
    width = min(0.8, (WIDTH - left) / count - 0.06)
    require(width > 0.45, f"rows must have few enough patches for a page's width; got {count}")
    pictures = [patch.reshape(shape) for row in patches.values() for patch in row]
    figure = _gallery(pictures, count, width, (0.06, 0.22), (left, 0.06, 0.22))
    for i, key in enumerate(patches):
        line = figure.axes[i * count : (i + 1) * count]
        line[0].set_ylabel(key, fontsize=TEXT, rotation=0, ha="right", va="center")
        if "truth" in patches and key != "truth":
            for axes, patch, truth in zip(line, patches[key], patches["truth"], strict=True):
                axes.set_xlabel(f"{_psnr(patch, truth):.1f} dB", fontsize=TINY, labelpad=2)
    return figure


def plot_photograph(
    pictures: Arrays,
    *,
    truth: ArrayLike | None = None,
    metrics: Mapping[str, Numbers] | None = None,
    columns: int = 4,
) -> Figure:
    """Photographs side by side, grey in [0, 1]; above each its PSNR (dB, peak 1) and SSIM.

    **Arguments**: `pictures`, each `(h, w)`; `truth` `(h, w)`, by default `pictures["truth"]` if it
    is there; `metrics`, `{name: {"psnr": …, "ssim": …}}`, goes before a PSNR computed here. At 150
    dpi a pixel is a whole number of dots wherever the page is wide enough.

    **Errors**: a `ValueError` for other shapes, no pictures, or more than 6 columns.
    """
    images = arrays_of("pictures", pictures)
    truth = images.get("truth") if truth is None else np.asarray(truth, float)
    if truth is not None:
        arrays_of("pictures and truth", images | {"truth": truth})
    require(1 <= columns <= 6, f"columns must be from 1 to 6, lest titles touch; got {columns}")
    titles, columns = [], min(columns, len(images))
    w = next(iter(images.values())).shape[1]
    most = min(3.0, (WIDTH - 0.1) / columns - 0.1) * DPI
    width = (w * int(most / w) or most) / DPI
    gap = max(0.1, 1.5 - width)
    letters = int((width + gap) / (TINY * LETTER))
    for name, image in images.items():
        numbers = dict((metrics or {}).get(name, {}))
        if truth is not None and name != "truth":
            numbers.setdefault("psnr", _psnr(image, truth))
        texts = {"psnr": "{:.2f} dB", "ssim": "SSIM {:.3f}"}
        below = ", ".join(texts[key].format(numbers[key]) for key in texts if key in numbers)
        titles.append("\n".join(filter(None, [textwrap.fill(name, letters), below])))
    head = 0.1 + 0.15 * max(1 + title.count("\n") for title in titles)
    figure = _gallery(list(images.values()), columns, width, (gap, head), (gap, head, 0.1))
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, fontsize=TINY, pad=3)
    return figure


def _gallery(
    pictures: list[Floats], columns: int, width: float, gaps: tuple[float, float], margins: Any
) -> Figure:
    """Grey pictures at exact places; `margins` are left, top and bottom, all lengths in inches."""
    (h, w), (left, top, bottom) = pictures[0].shape, margins
    right, down = width + gaps[0], width * h / w + gaps[1]  # from one picture to the next
    lines = math.ceil(len(pictures) / columns)
    size = np.array([left + columns * right, top + lines * down - gaps[1] + bottom])
    figure = new_figure(size[0], size[1], None)
    # Enlarged pixels stay sharp; only a picture that has to shrink is averaged.
    way = "nearest" if width * DPI > w - 0.5 else "antialiased"
    for i, picture in enumerate(pictures):
        line, column = divmod(i, columns)
        corner = left + column * right, size[1] - top - line * down - width * h / w
        x, y, across, along = np.divide((*corner, width, width * h / w), (*size, *size))
        axes = figure.add_axes((x, y, across, along), xticks=[], yticks=[])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation=way, aspect="auto")
        axes.spines[:].set_linewidth(0.4)
    return figure


def _psnr(picture: Floats, truth: Floats) -> float:
    error = float(np.mean((picture - truth) ** 2))
    return -10 * math.log10(error) if error else math.inf
