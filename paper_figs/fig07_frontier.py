"""Which error of the hypergradient for which time. Records of `frontier.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import Record, main, read, select, values
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import Interval
from hypergrad.plotting import SMALL, draw_curve, label_panels, new_figure, styles_of, tidy

# Below it all is rounding; on a hard K nothing but the reference gets below the second.
LEAST, LEAST_HARD = 1e-15, 1e-5
# What is left out lies on what is drawn: truncation of 10 and 100 steps on as many of the limit's.
ROWS = {
    "strategies": (
        "full",
        "ergodic:uniform",
        "truncation:k=1",
        "limit:cgls",
        "limit:steps=10",
        "limit:steps=100",
        "limit:tolerance=1e-08",
        "piggyback",
        "exact:most=150",
    ),
    "other packages": (
        "limit:cgls",
        "jaxopt:normal_cg",
        "jaxopt:gmres",
        "jaxopt:bicgstab",
        "optimistix:autolinearsolver",
        "optimistix:bicgstab",
        "optimistix-checkpointed",
        "exact:most=150",
    ),
}


def draw(folder: Path) -> Figure:
    """Relative error against time: a column for each K, a curve over L for each strategy.

    The reference itself is a point: its time, at the error of a second run of it (rounding).
    """
    records = read(folder)
    names = list(dict.fromkeys(r["K"] for r in records))
    styles = styles_of(dict.fromkeys(label for row in ROWS.values() for label in row))
    figure = new_figure(10.0, 7.0)
    grid = figure.subplots(len(ROWS), len(names), sharex="col", sharey="col")
    titles = []
    for line, (row, shown) in zip(grid, ROWS.items(), strict=True):
        for panel, name in zip(line, names, strict=True):
            mine = select(records, K=name)
            for i, label in enumerate(shown):
                run = select(mine, strategy=label)
                look = {"style": styles[label], "place": (i, len(shown)), "width": 1.2}
                name_of = label.replace("1e-08", "1e-8").removesuffix(":most=150")
                _draw_one(panel, run, label=name_of, **look)
            panel.set(xscale="log", yscale="log")
            titles.append(f"{name}, {row}")
        tidy(line[0], "", "relative error of the gradient in K")
        tidy(line[1], "")
        look = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "frameon": False}
        line[1].legend(fontsize=SMALL, handlelength=3, **look)
    depths = ", ".join(str(L) for L in sorted({r["L"] for r in records if r["L"]}))
    for panel in grid[-1]:
        panel.set_xlabel(f"time (ms, 64 patches)\nL = {depths} along a curve")
    grid[0, 1].set_ylim(LEAST_HARD, 10)
    for panel in grid[:, 1]:
        _point_to_exact(panel, select(records, K=names[1], strategy="exact:most=150"))
    label_panels(grid.flat, titles)
    return figure


def _draw_one(panel: Axes, records: Sequence[Record], **look: Any) -> None:
    run = [r for r in records if _error(r) is not None]
    run.sort(key=lambda r: r["L"] or 0)  # the reference has no L
    errors = [Interval(max(_error(r) or 0.0, LEAST), np.nan, 1) for r in run]
    draw_curve(panel, [r["milliseconds"] for r in run], errors, **look)


def _point_to_exact(panel: Axes, records: Sequence[Record]) -> None:
    """The reference is ten decades below the others: an arrow instead of an empty axis."""
    (time,), (error,) = values(records, "milliseconds"), values(records, "relative_error")
    arrow = {"arrowstyle": "->", "lw": 0.8}
    place = {"ha": "right", "va": "center", "fontsize": SMALL, "arrowprops": arrow}
    panel.annotate(f"exact: {error:.0e}", (time, LEAST_HARD), (0.55 * time, 4e-5), **place)


def _error(record: Record) -> float | None:
    """On the samples that have one gradient: elsewhere strategies may differ and be right."""
    return record["relative_error_differentiable"]


EXPERIMENT = "frontier"
FIGURES = {"fig07_frontier": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
