"""K and step sizes learned for one L and used at another. Records of `transfer.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from hypergrad._foundation.statistics import mean_interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_panels,
    legend_below,
    new_figure,
    style_of,
    tidy,
)

# By what the step sizes were learned for.
STEPS = {
    "default": ("default steps", style_of("full")),
    "truth": ("learned for the truth", Style("#0080c8", (0, (1.2, 1.2)), "s")),
    "solution": ("learned for the solution", Style("#f0a800", (0, (6, 1.5, 1, 1.5)), "^")),
}


def draw_matrix(folder: Path) -> Figure:
    """Held-out loss by L of learning (rows) and of testing (columns), a panel for each strategy."""
    records = select(read(folder), learned="K")
    strategies = list(dict.fromkeys(r["strategy"] for r in records))
    learned = sorted({r["L"] for r in records})
    tested = [*sorted({r["tested"] for r in records if r["tested"]}), None]
    means = {
        strategy: np.array(
            [[_interval(records, strategy, L, at).mean for at in tested] for L in learned]
        )
        for strategy in strategies
    }
    # What runs away (a K that was never run so long) must not wash out all others.
    everything = np.concatenate([values.ravel() for values in means.values()])
    low, high = float(everything.min()), float(np.quantile(everything, 0.9))
    figure = new_figure(10.0, 0.9 + 0.52 * len(learned))
    panels = list(figure.subplots(1, len(strategies), sharey=True))
    scale = Normalize(low, max(high, low * 1.01))
    for panel, strategy in zip(panels, strategies, strict=True):
        panel.imshow(means[strategy], cmap="Greys", norm=scale, aspect="auto")
        middle = (low + high) / 2
        for i, L in enumerate(learned):
            for j, at in enumerate(tested):
                interval = _interval(records, strategy, L, at)
                text = f"{interval.mean:.3f}"
                if math.isfinite(interval.half):
                    text += f"\n±{interval.half:.3f}"
                dark = interval.mean > middle
                where = {"ha": "center", "va": "center", "fontsize": 7}
                weight = "bold" if at == L else "normal"
                panel.text(j, i, text, color="w" if dark else "k", fontweight=weight, **where)
        panel.set_xticks(range(len(tested)), [str(at) if at else "conv." for at in tested])
        panel.set_yticks(range(len(learned)), [str(L) for L in learned])
        tidy(panel, "L it is tested at", "L it is learned at" if panel is panels[0] else "")
        panel.grid(False)
    bar = figure.colorbar(ScalarMappable(scale, "Greys"), ax=panels, pad=0.01, extend="max")
    bar.set_label("held-out loss,\n½‖x − x†‖² per sample", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    label_panels(panels, [f"K learned by {strategy}" for strategy in strategies])
    return figure


def _interval(records: Sequence[Record], strategy: str, L: int, at: int | None):
    return mean_interval([r["loss"] for r in select(records, strategy=strategy, L=L, tested=at)])


def draw_steps(folder: Path) -> Figure:
    """Distance to the solution and held-out loss over L, by default and by learned steps.

    Losses are divided by that at the solution, seed by seed: what is left is the steps' own.
    """
    records = [dict(r) for r in select(read(folder), learned="steps")]
    limits = {_case(r): r["loss"] for r in records if r["tested"] is None}
    for record in records:
        record["excess"] = 100 * (record["loss"] / limits[_case(record)] - 1)
    names = list(dict.fromkeys(r["operator"] for r in records))
    cases = [(name, L) for name in names for L in sorted({r["L"] for r in records})]
    figure = new_figure(10.0, 5.0)
    grid = figure.subplots(2, len(cases), sharex=True, sharey="row", squeeze=False)
    columns = {
        "distance": "distance to the solution,\n‖x[L] − x*‖ / ‖x* − x̃‖",
        "excess": "held-out loss above\nthat at the solution (%)",
    }
    for line, (column, name) in zip(grid, columns.items(), strict=True):
        for panel, (operator, L) in zip(line, cases, strict=True):
            _draw_steps(panel, select(records, operator=operator, L=L), column)
            bottom, first = column == "excess", panel is line[0]
            tidy(panel, "L, iterations" if bottom else "", name if first else "")
            panel.axvline(L, color="0.45", linestyle=(0, (4, 2)), linewidth=1)
    grid[0, 0].set_yscale("log")
    # Far from the solution all is the same; what matters is who is below 0, and where.
    grid[1, 0].set_yscale("symlog", linthresh=1.0, linscale=0.8)
    grid[1, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    titles = [f"{operator},\nlearned at L = {L}" for operator, L in cases]
    label_panels(list(grid[0]), titles)
    legend_below(figure, grid[0, 0])
    return figure


def _case(record: Record) -> tuple[Any, ...]:
    return record["operator"], record["L"], record["seed"]


def _draw_steps(panel: Axes, records: Sequence[Record], column: str) -> None:
    for i, (goal, (label, style)) in enumerate(STEPS.items()):
        mine = [r for r in select(records, goal=goal) if r["tested"]]
        tested = sorted({r["tested"] for r in mine})
        values = [mean_interval([r[column] for r in select(mine, tested=at)]) for at in tested]
        draw_curve(panel, tested, values, label=label, style=style, place=(i, len(STEPS)))
    if column == "excess":
        panel.axhline(0, color="0.45", linewidth=1)
    panel.set_xscale("log")
    ticks = sorted({r["tested"] for r in records if r["tested"]})
    panel.set_xticks(ticks, [str(L) for L in ticks])
    panel.minorticks_off()


EXPERIMENT = "transfer"
FIGURES = {"fig08a_transfer": draw_matrix, "fig08b_step_sizes": draw_steps}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
