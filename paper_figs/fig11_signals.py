"""Rows of a disparity map, learned from total variation on. Records of `signals.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import Record, arrays, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from hypergrad._foundation.statistics import mean_interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    draw_levels,
    label_panels,
    legend_below,
    new_figure,
    tidy,
)

STYLES = {
    "K": Style("#0080c8", (0, (1.2, 1.2)), "s"),
    "K and row weights": Style("#821800", (0, (5, 3)), "D"),
    "overcomplete": Style("#000000", "solid", "o"),
}
BEST = "overcomplete"
PIXELS = 60  # of disparity are 1
ROWS = 8  # of K, drawn


def draw_signals(folder: Path) -> Figure:
    """Held-out signals: what was measured, observed, and restored with and without learning."""
    found = arrays(folder, "baselines-0")
    restored = arrays(folder, f"learned-{BEST}-0")["restored"]
    figure = new_figure(9.4, 3.0)
    panels = list(figure.subplots(1, len(restored)))
    for i, panel in enumerate(panels):
        at = np.arange(restored.shape[1])
        panel.plot(at, PIXELS * found["observed"][i], ".", color="0.72", ms=3, label="observed")
        for name, x, look in (
            ("truth", found["truth"][i], {"color": "#f0a800", "lw": 3.2, "alpha": 0.8}),
            ("total variation", found["total variation"][i], {"color": "#0080c8", "ls": "--"}),
            (f"learned ({BEST})", restored[i], {"color": "#000000", "lw": 1.2}),
        ):
            panel.plot(at, PIXELS * x, label=name, **look)
        tidy(panel, "position in the row (pixels)", "disparity (pixels)" if i == 0 else "")
    label_panels(panels, [""] * len(panels))
    legend_below(figure, panels[0])
    return figure


def draw_learning(folder: Path) -> Figure:
    """Held-out loss over epochs, and the learned rows that held-out signals use most."""
    records = read(folder)
    figure = new_figure(9.4, 4.0)
    curves, *rows = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    draw_losses(curves, records)
    for panel, kind in zip(rows, ("K", BEST), strict=True):
        K = arrays(folder, f"learned-{kind}-0")["rows"][:ROWS]
        step = 1.1 * float(np.ptp(K, axis=1).max())
        for i, row in enumerate(K):
            panel.axhline(-i * step, color="0.85", lw=0.6)
            panel.plot(row - i * step, color=STYLES[kind].color, lw=1.0)
        panel.set_yticks([])
        tidy(panel, "position (pixels)", "rows times weight, most used first")
    label_panels([curves, *rows], ("", "learned K", f"learned K, {BEST}"))
    legend_below(figure, curves)
    return figure


def draw_losses(panel: Axes, records: list[Record]) -> None:
    epochs = select(records, kind="epoch")
    for i, (kind, style) in enumerate(STYLES.items()):
        run = select(epochs, method=kind)
        at = sorted({r["epoch"] for r in run})
        losses = [mean_interval([r["validation_loss"] for r in select(run, epoch=e)]) for e in at]
        draw_curve(panel, at, losses, label=kind, style=style, place=(i, len(STYLES)))
    levels = {
        name: mean_interval([r["loss"] for r in select(records, kind="baseline", method=name)]).mean
        for name in ("affine", "total variation")
    }
    tidy(panel, "epoch", "held-out loss at L, ½‖x − x†‖² per signal")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_minor_formatter(ScalarFormatter())
    panel.yaxis.set_major_formatter(ScalarFormatter())
    draw_levels(panel, levels)


EXPERIMENT = "signals"
FIGURES = {"fig11a_signals": draw_signals, "fig11b_learned_from_differences": draw_learning}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
