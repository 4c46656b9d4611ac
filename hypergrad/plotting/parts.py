"""The parts of custom figures: a white page, axes, curves, labels, a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from hypergrad.plotting.styles import DPI, LETTER, SMALL, TEXT, Style, marker_of, style_of

if TYPE_CHECKING:
    from hypergrad._foundation.statistics import Interval

Numbers = Mapping[str, float]


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """A white figure of so many inches, without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_curve(
    axes: Axes,
    x: ArrayLike,
    intervals: Sequence[Interval],
    *,
    label: str,
    style: Style,
    width: float = 1.6,
    place: tuple[int, int] = (0, 1),
    exponents: bool = False,
) -> None:
    """Means as a line with markers, their intervals as a band.

    `place`, number of the curve and how many there are: markers of different curves then sit at
    different points, so that curves that coincide are told apart. `exponents`: the intervals are
    those of decimal logarithms (see `log_interval`), and their powers of ten are drawn.
    """
    means = np.array([interval.mean for interval in intervals])
    halves = np.nan_to_num([interval.half for interval in intervals])
    low, high = means - halves, means + halves
    if exponents:
        means, low, high = (np.power(10.0, e) for e in (means, low, high))
    every = max(1, len(means) // 8)
    look = marker_of(style, 5.0) | {"linestyle": style.linestyle, "linewidth": width}
    axes.plot(x, means, label=label, markevery=(every * place[0] // place[1], every), **look)
    band = {"color": style.color, "alpha": 0.18, "linewidth": 0}
    axes.fill_between(np.asarray(x), low, high, **band)


def draw_levels(axes: Axes, levels: Numbers) -> None:
    """Thin lines with labels right of the axes, moved apart where they would touch."""
    names = sorted(levels, key=lambda name: levels[name])
    for name in names:
        style = style_of(name)
        axes.axhline(levels[name], color=style.color, linestyle=style.linestyle, linewidth=1)
    axes.get_ylim()  # limits are lazy: the next line needs them settled
    to_axes, pitch = axes.transScale + axes.transLimits, 0.055  # of the height: a line of text
    heights = [to_axes.transform((1.0, levels[name]))[1] for name in names]
    for i in range(1, len(names)):
        heights[i] = max(heights[i], heights[i - 1] + pitch)
    heights.append(1 + pitch)
    for i in reversed(range(len(names))):
        heights[i] = min(heights[i], heights[i + 1] - pitch)
        line = {"arrowstyle": "-", "color": style_of(names[i]).color, "relpos": (0, 0.5)}
        look = {"va": "center", "fontsize": SMALL, "arrowprops": line | {"shrinkA": 1, "lw": 0.6}}
        ends = (1, levels[names[i]]), (1.06, heights[i]), axes.get_yaxis_transform()
        axes.annotate(names[i], *ends, "axes fraction", **look)


def share_labels(target: Axes, others: Iterable[Axes]) -> None:
    """Labels of curves in other panels that the target lacks, for one legend of a whole figure."""
    _, known = target.get_legend_handles_labels()
    for axes in others:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in known and isinstance(handle, Line2D):
                (line,) = target.plot([], [])
                line.update_from(handle)
                line.set_label(label)
                known.append(label)


def label_panels(panels: Iterable[Axes], titles: Iterable[str]) -> None:
    """(a), (b), ... before the titles, for a caption to refer to."""
    for letter, panel, title in zip("abcdefgh", panels, titles, strict=False):
        panel.set_title(f"({letter}) {title}", fontsize=TEXT, loc="left")


def tidy(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Labels, a light grid, no frame above and right."""
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.grid(True, color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, axes: Axes) -> None:
    """All labels in as many columns as fit; the figure grows by what they need."""
    handles, labels = axes.get_legend_handles_labels()
    entry = 0.65 + SMALL * LETTER * max(map(len, labels))
    lines = math.ceil(len(labels) / max(1, int((figure.get_figwidth() - 0.2) / entry)))
    figure.set_figheight(figure.get_figheight() + 0.18 * lines)
    look = {"ncols": math.ceil(len(labels) / lines), "fontsize": SMALL, "handlelength": 3.2}
    figure.legend(handles, labels, loc="outside lower center", frameon=False, **look)
