"""Which error of the hypergradient for which time. Records of `frontier.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import Record, main, read, select
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import Interval
from hypergrad.plotting import (
    draw_curve,
    label_panels,
    legend_below,
    new_figure,
    styles_of,
    tidy,
)

# Below it all is rounding.
LEAST = 1e-15


def draw(folder: Path) -> Figure:
    """Relative error against time: a panel for each K, a curve over L for each strategy.

    The reference itself is a point: its time, at the error of a second run of it (rounding).
    """
    records = read(folder)
    names = list(dict.fromkeys(r["K"] for r in records))
    styles = styles_of(r["strategy"] for r in records)
    figure = new_figure(10.0, 5.2)
    panels = list(figure.subplots(1, len(names), sharey=True))
    titles = []
    for panel, name in zip(panels, names, strict=True):
        mine = select(records, K=name)
        for i, (label, style) in enumerate(styles.items()):
            run = sorted(
                (r for r in select(mine, strategy=label) if _error(r) is not None),
                key=lambda r: r["L"] or 0,  # the reference has no L
            )
            errors = [Interval(max(_error(r) or 0.0, LEAST), np.nan, 1) for r in run]
            times = [r["milliseconds"] for r in run]
            place = (i, len(styles))
            draw_curve(panel, times, errors, label=label, style=style, width=1.2, place=place)
        panel.set_xscale("log")
        panel.set_yscale("log")
        share = 100 * mine[0]["differentiable"]
        titles.append(f"{name} (on the {share:.3g} % differentiable samples)")
    depths = ", ".join(str(L) for L in sorted({r["L"] for r in records if r["L"]}))
    for panel, ylabel in zip(panels, ("relative error of the gradient in K", ""), strict=True):
        tidy(panel, f"time of a hypergradient (ms); L = {depths} along a curve", ylabel)
    label_panels(panels, titles)
    legend_below(figure, panels[0])
    return figure


def _error(record: Record) -> float | None:
    """On the samples that have one gradient: elsewhere strategies may differ and be right."""
    return record["relative_error_differentiable"]


EXPERIMENT = "frontier"
FIGURES = {"fig07_frontier": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
