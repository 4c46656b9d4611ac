"""How good hypergradients are over L, k and the step ratio. Records of `gradient_quality.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from hypergrad._foundation.statistics import log_interval, mean_interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_panels,
    legend_below,
    new_figure,
    style_of,
    styles_of,
    tidy,
)

SHOWN = ("truncation:k=1", "truncation:k=10", "limit:cgls", "full", "ergodic:uniform")
AXES = {"error": "relative error", "cosine": "cosine to the exact gradient"}
TYPICAL = 100  # the L of the figures over k and the step ratio

# Over x: the records of each, and where in their lists to look.
Points = Mapping[float, tuple[Sequence[Record], int]]
Curves = Sequence[tuple[str, Style, Callable[[Sequence[Record]], Points]]]


def at_depth(records: Sequence[Record], L: int) -> tuple[Sequence[Record], int]:
    return records, records[0]["L"].index(L)


def over_depths(strategy: str) -> Callable[[Sequence[Record]], Points]:
    def points(records: Sequence[Record]) -> Points:
        mine = select(records, strategy=strategy, ratio=1.0)
        return {L: at_depth(mine, L) for L in mine[0]["L"]} if mine else {}

    return points


def over_ratios(strategy: str) -> Callable[[Sequence[Record]], Points]:
    def points(records: Sequence[Record]) -> Points:
        mine = select(records, strategy=strategy)
        ratios = sorted({r["ratio"] for r in mine})
        return {ratio: at_depth(select(mine, ratio=ratio), TYPICAL) for ratio in ratios}

    return points


def over_steps(kind: str) -> Callable[[Sequence[Record]], Points]:
    def points(records: Sequence[Record]) -> Points:
        mine = select(records, ratio=1.0)
        steps = {r["strategy"].rpartition("=")[2] for r in mine if r["strategy"].startswith(kind)}
        found = {int(k): select(mine, strategy=f"{kind}={k}") for k in steps}
        return {k: at_depth(found[k], TYPICAL) for k in sorted(found)}

    return points


def draw_one(
    panel: Axes, points: Points, quantity: str, *, place: tuple[int, int], **look: Any
) -> None:
    """The median of the samples with its interval over seeds; 10 % to 90 % as bars."""
    logarithmic = quantity == "error"
    interval = log_interval if logarithmic else mean_interval
    x, middle, bars = [], [], []
    for at, (records, i) in points.items():
        levels = [
            [
                r[f"{quantity}_{level}"][i]
                for r in records
                if r[f"{quantity}_{level}"][i] is not None
            ]
            for level in ("10", "50", "90")
        ]
        if not all(levels):
            continue
        low, median, high = (interval(values) for values in levels)
        x.append(at)
        middle.append(median)
        bars.append((low.mean, high.mean))
    if not x:
        return
    # A little apart, so that curves that coincide are told apart.
    shifted = np.array(x) * 1.05 ** (place[0] - (place[1] - 1) / 2)
    draw_curve(panel, shifted, middle, exponents=logarithmic, **look)
    ends = np.array(bars).T
    low, high = np.power(10.0, ends) if logarithmic else ends
    panel.vlines(shifted, low, high, color=look["style"].color, linewidth=1.0)


def draw_grid(folder: Path, curves: Curves, xlabel: str) -> Figure:
    """Errors above, cosines below, a column for each problem and K."""
    records = select(read(folder), kind="errors")
    columns = list(dict.fromkeys((r["problem"], r["place"]) for r in records))
    figure = new_figure(9.8, 5.6)
    panels = figure.subplots(2, len(columns), sharex=True)
    _share_scales(panels, [problem for problem, _ in columns])
    for (upper, lower), (problem, place) in zip(panels.T, columns, strict=True):
        mine = select(records, problem=problem, place=place)
        for i, (label, style, points) in enumerate(curves):
            found, at = points(mine), (i, len(curves))
            draw_one(upper, found, "error", place=at, label=label, style=style)
            draw_one(lower, found, "cosine", place=at, label=label, style=style)
        lower.axhline(0.0, color="0.5", linewidth=0.8)
        upper.set(xscale="log", yscale="log")
        lower.set(xscale="log", ylim=(-0.45, 1.05))
        tidy(upper, "")
        tidy(lower, xlabel)
    for panel in panels[0]:
        low, high = panel.get_ylim()
        if high < 4 * low:
            panel.set_ylim(0.45, 2.2)
        if high < 50 * low:  # powers of ten are too few
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
    for panel, name in zip(panels[:, 0], AXES.values(), strict=True):
        panel.set_ylabel(f"{name},\nmedian and 10 % to 90 %")
    label_panels(panels.flat, [f"{problem}, {place}" for problem, place in columns] + [""] * 8)
    legend_below(figure, panels[0, 0])
    return figure


def _share_scales(panels: np.ndarray, problems: Sequence[str]) -> None:
    """One scale of cosines, and one of errors for each problem: others differ by decades."""
    for panel in panels[1, 1:]:
        panel.sharey(panels[1, 0])
    for panel, problem in zip(panels[0], problems, strict=True):
        first = panels[0, problems.index(problem)]
        if panel is not first:
            panel.sharey(first)


def draw_over_depths(folder: Path) -> Figure:
    styles = styles_of(SHOWN)
    curves = [(label, style, over_depths(label)) for label, style in styles.items()]
    return draw_grid(folder, curves, "iterations L (step ratio 1)")


def draw_over_steps(folder: Path) -> Figure:
    # The two kinds of the limit formula lie on the curve of truncation.
    label = "truncation, limit:last and limit:steps, which lie on each other"
    curves = [(label, style_of("truncation"), over_steps("truncation:k"))]
    return draw_grid(folder, curves, f"steps k (L = {TYPICAL})")


def draw_over_ratios(folder: Path) -> Figure:
    styles = styles_of(SHOWN)
    curves = [(label, style, over_ratios(label)) for label, style in styles.items()]
    return draw_grid(folder, curves, f"step ratio (L = {TYPICAL})")


EXPERIMENT = "gradient_quality"
FIGURES = {
    "fig05a_quality_over_depth": draw_over_depths,
    "fig05b_quality_over_steps": draw_over_steps,
    "fig05c_quality_over_ratio": draw_over_ratios,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
