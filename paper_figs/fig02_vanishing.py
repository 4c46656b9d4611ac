"""First poster: vanishing gradients, and averages instead. Records of `vanishing.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import DUAL, OTHER, PRIMAL, Record, main, read, select
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import log_interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_panels,
    legend_below,
    new_figure,
    share_labels,
    styles_of,
    tidy,
)

# Column of the records: its name, its style.
IN_THE_MIDDLE = {
    "primal_middle": ("‖δ_P‖", PRIMAL),
    "to_kernel_middle": ("δ_P from ker K", replace(PRIMAL, fill="none", linestyle="dotted")),
    "to_reduced_middle": ("δ_P from its reduced limit", OTHER),
    "dual_middle": ("‖δ_D‖", DUAL),
    "to_dual_kernel_middle": ("δ_D from ker Kᵀ", replace(DUAL, fill="none", linestyle="dotted")),
}
FLOOR = 1e-12  # below it there is rounding only


def problems_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["problem"] for r in records))


def strategies_of(records: Sequence[Record]) -> dict[str, Style]:
    return styles_of(dict.fromkeys(r["strategy"] for r in records))


def over_depth(panel: Any, records: Sequence[Record], column: str, place: Any, **look: Any) -> None:
    """One column over L, with intervals over seeds."""
    depths = sorted({r["L"] for r in records})
    values = [[r[column] for r in select(records, L=L) if r[column] is not None] for L in depths]
    kept = [(L, log_interval(v, FLOOR)) for L, v in zip(depths, values, strict=True) if v]
    draw_curve(panel, *zip(*kept, strict=True), exponents=True, place=place, **look)


def over_layers(
    panel: Any, records: Sequence[Record], column: str, place: Any, **look: Any
) -> None:
    """One column over the distance of a layer from the output, from 1."""
    lags = np.array(records[0]["lag"]) + 1
    by_seed = np.array([r[column] for r in records], float)
    intervals = [log_interval(values, FLOOR) for values in by_seed.T]
    draw_curve(panel, lags, intervals, exponents=True, place=place, **look)


def draw_statement(folder: Path) -> Figure:
    """Where the layers of the last iterate go as L grows, and the norms of the gradients."""
    records = select(read(folder), kind="depth")
    problems, styles = problems_of(records), strategies_of(records)
    figure = new_figure(9.8, 5.6)
    panels = figure.subplots(2, len(problems), sharex=True, sharey="row")
    for (upper, lower), problem in zip(panels.T, problems, strict=True):
        mine = select(records, problem=problem)
        last = select(mine, strategy="full")
        for i, (column, (name, style)) in enumerate(IN_THE_MIDDLE.items()):
            over_depth(upper, last, column, (i, 5), label=f"{name}, layer L/2", style=style)
        for i, (strategy, style) in enumerate(styles.items()):
            of_one = select(mine, strategy=strategy)
            over_depth(lower, of_one, "gradient", (i, len(styles)), label=strategy, style=style)
        upper.set(xscale="log", yscale="log", ylim=(FLOOR / 3, 10))
        lower.set(xscale="log", yscale="log")
        tidy(upper, "iterations L")
        tidy(lower, "iterations L")
    panels[0, 0].set_ylabel("size relative to ‖g‖")
    panels[1, 0].set_ylabel("norm of the gradient in K")
    names = [f"{what}: {p}" for what in ("layer L/2", "gradient") for p in problems]
    label_panels(panels.flat, names)
    share_labels(panels[0, 0], [panels[1, 0]])
    legend_below(figure, panels[0, 0])
    return figure


def draw_layers(folder: Path) -> Figure:
    """Adjoint variables and contributions to the gradient, layer by layer."""
    records = select(read(folder), kind="layers")
    problems, styles = problems_of(records), strategies_of(records)
    L = records[0]["L"]
    rows = {
        "primal": "‖δ_P[l]‖ / ‖g‖",
        "dual": "‖δ_D[l]‖ √(σ/τ) / ‖g‖",
        "share": "layer's part of the gradient\n(norm, relative)",
    }
    figure = new_figure(9.8, 7.4)
    panels = figure.subplots(len(rows), len(problems), sharex=True, sharey="row")
    for bottom, row, (column, name) in zip((False, False, True), panels, rows.items(), strict=True):
        for panel, problem in zip(row, problems, strict=True):
            for i, (strategy, style) in enumerate(styles.items()):
                mine = select(records, problem=problem, strategy=strategy)
                place = (i, len(styles))
                over_layers(panel, mine, column, place, label=strategy, style=style)
            panel.set(xscale="log", yscale="log", ylim=(FLOOR / 3, 10))
            tidy(panel, f"layer from the output, L = {L}" if bottom else "")
        row[0].set_ylabel(name)
    label_panels(panels[0], problems)
    legend_below(figure, panels[0, 0])
    return figure


EXPERIMENT = "vanishing"
FIGURES = {"fig02a_vanishing": draw_statement, "fig02b_layers": draw_layers}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
