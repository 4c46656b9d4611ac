"""First reason of both posters: how high L has to be, its cost. Records of `solver_depth.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from _common import DUAL, FORWARD, OTHER, PRIMAL, Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from matplotlib.typing import FillStyleType

from hypergrad._foundation.statistics import Interval, log_interval, mean_interval
from hypergrad.plotting import (
    TINY,
    Style,
    draw_curve,
    label_curves,
    label_panels,
    new_figure,
    style_of,
    tidy,
)

LEVELS: dict[str, FillStyleType] = {"median": "full", "worst": "none"}
# Kind of the records: its name and its style.
ERRORS = {
    "unrolled": ("full", style_of("full")),
    "adjoint": ("limit at x*", style_of("limit")),
    "predicted": ("rate^L", Style("#858585", (0, (7, 2, 1, 2)), "None")),
}


def over_depth(records: Sequence[Record], column: str) -> tuple[list[int], list[Interval]]:
    """Intervals over seeds of the decimal logarithm of a column, over L."""
    depths = sorted({r["L"] for r in records})
    return depths, [log_interval([r[column] for r in select(records, L=L)]) for L in depths]


def draw_levels_of(panel: Axes, records: Sequence[Record], name: str, style: Style) -> None:
    """One curve for each quantile over the samples."""
    for i, (level, fill) in enumerate(LEVELS.items()):
        look = replace(style, fill=fill)
        depths, intervals = over_depth(records, level)
        place = {"label": f"{name}, {level}", "style": look, "place": (i, 2)}
        draw_curve(panel, depths, intervals, exponents=True, width=1.6 - 0.4 * i, **place)


def draw_depth(folder: Path) -> Figure:
    """Errors over L for each problem, and time and memory."""
    records = read(folder)
    problems = list(dict.fromkeys(r["problem"] for r in records))
    figure = new_figure(9.8, 6.2)
    panels = figure.subplots(2, 3, sharex=True)
    for row, problem in zip(panels, problems, strict=True):
        mine = select(records, problem=problem)
        draw_levels_of(row[0], select(mine, kind="iterate"), "x[L]", PRIMAL)
        draw_levels_of(row[0], select(mine, kind="dual"), "y[L]", DUAL)
        depths, gaps = over_depth(select(mine, kind="loss"), "gap")
        gap = {"label": "loss, |loss[L] / loss* − 1|", "style": OTHER}
        draw_curve(row[0], depths, gaps, exponents=True, **gap)
        for kind, (name, style) in ERRORS.items():
            draw_levels_of(row[1], select(mine, kind=kind), name, style)
        tidy(row[0], "iterations L", "relative distance to x*, y*; loss gap")
        tidy(row[1], "iterations, or steps, L", "relative error of the gradient in K")
        for panel in row[:2]:
            panel.set(xscale="log", yscale="log", ylim=(1e-17, 30))
    draw_cost(panels[:, 2], select(records, kind="cost"))
    flat = list(panels.flat)
    what = ("{}: solution and loss", "{}: gradient in K", "time of a batch")
    titles = [text.format(problem) for problem in problems for text in what]
    label_panels(flat, [*titles[:5], "peak memory"])
    for panel in flat[:2]:  # below, what is drawn is the same
        panel.legend(loc="lower left", fontsize=TINY, frameon=False, handlelength=3)
    return figure


def draw_cost(panels: Sequence[Axes], costs: Sequence[Record]) -> None:
    """Time and memory of the forward solve and of full unrolling."""
    columns = {"milliseconds": "time (ms, 64 samples)", "megabytes": "memory (MB)"}
    names = {"forward": ("forward solve", FORWARD), "full": ("full", style_of("full"))}
    for panel, (column, axis) in zip(panels, columns.items(), strict=True):
        for what, (name, style) in names.items():
            mine = sorted(select(costs, what=what), key=lambda r: r["L"])
            values = [mean_interval([r[column]]) for r in mine]
            draw_curve(panel, [r["L"] for r in mine], values, label=name, style=style)
        panel.set(xscale="log", yscale="log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        tidy(panel, "iterations L", axis)
        label_curves(panel)


EXPERIMENT = "solver_depth"
FIGURES = {"fig01_solver_depth": draw_depth}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
