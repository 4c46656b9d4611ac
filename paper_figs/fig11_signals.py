"""Rows of a disparity map, learned from total variation on. Records of `signals.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import DUAL, OTHER, PRIMAL, TRUTH, arrays, main
from matplotlib.figure import Figure

from hypergrad.plotting import (
    label_panels,
    legend_below,
    new_figure,
    tidy,
)

SHOWN = {"K": OTHER, "overcomplete": PRIMAL}
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
        panel.plot(at, PIXELS * found["observed"][i], ".", color="0.5", ms=3, label="observed")
        for name, x, look in (
            ("truth", found["truth"][i], TRUTH),
            ("total variation", found["total variation"][i], {"color": DUAL.color, "ls": "--"}),
            (f"learned ({BEST})", restored[i], {"color": PRIMAL.color, "lw": 1.2}),
        ):
            panel.plot(at, PIXELS * x, label=name, **look)
        tidy(panel, "position in the row (pixels)", "disparity (pixels)" if i == 0 else "")
    label_panels(panels, [f"held-out row {i + 1}" for i in range(len(panels))])
    legend_below(figure, panels[0])
    return figure


def draw_rows(folder: Path) -> Figure:
    """The learned rows that held-out signals use most."""
    figure = new_figure(7.0, 3.6)
    panels = list(figure.subplots(1, len(SHOWN)))
    for panel, (kind, style) in zip(panels, SHOWN.items(), strict=True):
        K = arrays(folder, f"learned-{kind}-0")["rows"][:ROWS]
        step = 1.1 * float(np.ptp(K, axis=1).max())
        for i, row in enumerate(K):
            panel.axhline(-i * step, color="0.85", lw=0.6)
            panel.plot(row - i * step, color=style.color, lw=1.0)
        panel.set_yticks([])
        tidy(panel, "position (pixels)", "rows times weight, most used first")
    label_panels(panels, (f"learned {kind}" for kind in SHOWN))
    return figure


EXPERIMENT = "signals"
FIGURES = {"fig11a_signals": draw_signals, "fig11b_learned_from_differences": draw_rows}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
