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
Label = tuple[str, float, float, Any]  # a name, the point it belongs to, a colour


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
    """Draw thin lines, named right of the axes."""
    for name, level in levels.items():
        style = style_of(name)
        axes.axhline(level, color=style.color, linestyle=style.linestyle, linewidth=1)
    label_right(axes, [(name, 1.0, y, style_of(name).color) for name, y in levels.items()])


def label_curves(axes: Axes) -> None:
    """Name every curve beside its right end, instead of in a legend; call it last."""
    low, high = sorted(axes.get_ylim())
    labels = []
    for line in axes.get_lines():
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        name, drawn = str(line.get_label()), np.flatnonzero((y >= low) & (y <= high))
        if len(drawn) and not name.startswith("_"):
            last = drawn[-1]
            across = (axes.transScale + axes.transLimits).transform((x[last], y[last]))[0]
            labels.append((name, across, y[last], line.get_color()))
    label_right(axes, labels)


def label_right(axes: Axes, labels: Iterable[Label]) -> None:
    """Write names right of the axes, moved apart where they would touch.

    A label is a name, the point it belongs to (x as a fraction of the axes, y of the data), and a
    colour for the line between them.
    """
    ordered = sorted(labels, key=lambda label: label[2])
    axes.get_ylim()  # limits are lazy: the next line needs them settled
    to_axes = axes.transScale + axes.transLimits
    pitch = 1.4 * SMALL / 72 * DPI / axes.get_window_extent().height  # of the height: a line
    heights = [to_axes.transform((1.0, y))[1] for _, _, y, _ in ordered]
    for i in range(1, len(ordered)):
        heights[i] = max(heights[i], heights[i - 1] + pitch)
    heights.append(1 + pitch)
    for i in reversed(range(len(ordered))):
        heights[i] = min(heights[i], heights[i + 1] - pitch)
        name, x, y, color = ordered[i]
        line = {"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkA": 1, "lw": 0.6}
        look = {"va": "center", "fontsize": SMALL, "arrowprops": line}
        ends = (x, y), (1.06, heights[i]), axes.get_yaxis_transform()
        axes.annotate(name, *ends, "axes fraction", **look)


def label_points(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Name points at the nearest place that no point and no other name takes; call it last.

    A label is a name, its point (x, y), and the colour of a line to the point where it is far.
    """
    figure.draw_without_rendering()  # settles the layout
    frame, radius = axes.get_window_extent(), 0.07 * figure.dpi
    at = axes.transData.transform([(x, y) for _, x, y, _ in labels])
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in at]
    for (name, *point, color), (px, py) in zip(labels, at, strict=True):
        look = {"fontsize": SMALL, "va": "bottom", "color": "0.15", "zorder": 4}
        text = axes.text(0, 0, name, transform=axes.transAxes, **look)
        text.set_in_layout(False)
        box = text.get_window_extent()
        across = np.arange(frame.x0, max(frame.x1 - box.width, frame.x0 + 1), 4)
        x, y = np.meshgrid(across, np.arange(frame.y0 + 4, frame.y1 - box.height, 4))
        right, top = x + box.width, y + box.height
        away = np.maximum(x - px, px - right), np.maximum(y - py, py - top)
        distance = np.hypot(*np.maximum(away, 0))
        for x0, y0, x1, y1 in taken:
            distance[(x < x1 + 3) & (right > x0 - 3) & (y < y1) & (top > y0)] = np.inf
        # Beside a point rather than above or below, on the right rather than on the left.
        best = np.argmin(distance + 0.3 * np.abs(y + box.height / 2 - py) + (x < px))
        x, y, right, top = (float(values.flat[best]) for values in (x, y, right, top))
        taken.append((x, y, right, top))
        text.set_position(axes.transAxes.inverted().transform((x, y)))
        if distance.flat[best] > 2 * radius:
            near = axes.transData.inverted().transform(np.clip((px, py), (x, y), (right, top)))
            axes.plot(*zip(near, point, strict=True), color=color, linewidth=0.6, label="_")


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
