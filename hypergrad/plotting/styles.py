"""One table of styles keyed by strategy, and sizes that all figures share."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.typing import FillStyleType, LineStyleType

WIDTH, DPI = 10.0, 150  # inches, the most that a figure takes; dots per inch of a PNG
TEXT, SMALL, TINY = 9.0, 8.0, 7.0  # font sizes in points
LETTER = 0.6 / 72  # inches, the width of a letter on average, for each point of its size
FILLS: tuple[FillStyleType, ...] = ("full", "none", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Style:
    """The style of a strategy; `fill` is matplotlib's `fillstyle` of the marker."""

    color: str
    linestyle: LineStyleType
    marker: str
    fill: FillStyleType = "full"


# The lightness L* of any two strategies differs by 7 or more, and by 20 among the first four, which
# are seen together most often. Baselines are levels rather than curves: greys.
STYLES: dict[str, Style] = {
    "full": Style("#000000", "solid", "o"),
    "ergodic": Style("#f0a800", (0, (6, 1.5, 1, 1.5)), "^"),
    "truncation": Style("#0080c8", (0, (1.2, 1.2)), "s"),
    "limit": Style("#821800", (0, (5, 3)), "D"),
    "exact": Style("#4a1570", (0, (10, 2)), "*"),
    "jaxopt": Style("#006b4c", (0, (3, 1.5)), "P"),
    "optimistix": Style("#d37cae", (0, (3, 1.5, 1, 1.5, 1, 1.5)), "X"),
    "piggyback": Style("#1a1340", (0, (8, 1.5, 3, 1.5)), "v"),
    "truth": Style("#0d0d0d", (0, (20, 1)), "8"),
    "reference": Style("#2b2b2b", (0, (12, 2)), "h"),
    "identity": Style("#484848", (0, (1, 2)), "<"),
    "shrinkage": Style("#666666", (0, (4, 2)), ">"),
    "untrained": Style("#858585", (0, (7, 2, 1, 2)), "p"),
    "dct": Style("#a3a3a3", (0, (2, 1)), "d"),
    "differences": Style("#bfbfbf", (0, (9, 2, 1, 2, 1, 2)), "H"),
}


def style_of(label: str) -> Style:
    """The style of a label such as `truncation:k=5`: the name before the colon decides.

    A name that is not in `STYLES` gets a style from its checksum, the same in every process.

    >>> style_of("truncation:k=5") == STYLES["truncation"]
    True
    >>> style_of("mine") == style_of("mine:rate=2") != style_of("full")
    True
    """
    name = label.partition(":")[0]
    if name in STYLES:
        return STYLES[name]
    rest, hue = divmod(zlib.crc32(name.encode()), 24)
    rest, dash = divmod(rest, 5)
    red, green, blue = hsv_to_rgb((hue / 24, 0.8, 0.6))
    return Style(to_hex((red, green, blue)), (0, (dash + 2.5, 1, 1, 1)), "<>pdh8"[rest % 6])


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one plot, in the order given, all different.

    Labels that share a style (options of one strategy) differ in the fill of the marker and in
    lightness: from the first to the last, dark colours grow lighter and light ones darker.

    >>> styles = styles_of(["full", "truncation:k=1", "truncation:k=5"])
    >>> [style.fill for style in styles.values()]
    ['full', 'full', 'none']
    """
    labels = list(dict.fromkeys(labels))
    bases, styles = [style_of(label) for label in labels], {}
    for i, (label, base) in enumerate(zip(labels, bases, strict=True)):
        rank, last = bases[:i].count(base), max(1, bases.count(base) - 1)
        rgb = np.array(to_rgb(base.color))
        goal = 1.0 if rgb @ (0.21, 0.72, 0.07) < 0.5 else 0.0  # white or black
        red, green, blue = rgb + 0.45 * rank / last * (goal - rgb)
        color = to_hex((red, green, blue))
        styles[label] = replace(base, color=color, fill=FILLS[rank % len(FILLS)])
    return styles


def marker_of(style: Style, size: float, alpha: float = 1.0) -> dict[str, Any]:
    face = {"fillstyle": style.fill, "markerfacecolor": (*to_rgb(style.color), alpha)}
    edge = {"color": style.color, "marker": style.marker, "markersize": size}
    return face | edge | {"markeredgewidth": 1.1, "markerfacecoloralt": "white"}
