"""The figure of the README: how good a hypergradient is, what it costs, and what it learns.

python paper_figs/fig00_main.py --out paper_figs

Records of `gradient_quality.py`, `cost.py` and `backprop_steps.py`: the same as in fig05, fig06 and
fig04, one panel of each.
"""

from __future__ import annotations

import json
from pathlib import Path

from _common import main, read, select
from fig04_backprop_steps import STYLES, over_full, steps_of
from fig05_gradient_quality import SHOWN, draw_one, over_depths
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hypergrad._foundation.statistics import Interval, group, mean_interval
from hypergrad.plotting import (
    draw_curve,
    draw_levels,
    label_panels,
    legend_below,
    new_figure,
    styles_of,
    tidy,
)

KIND = "truncation:k"


def draw(folder: Path) -> Figure:
    """Error over L, time over L, and what K is worth that was learned with k steps."""
    figure = new_figure(10.0, 3.7)
    panels = list(figure.subplots(1, 3))
    _draw_errors(panels[0], folder)
    _draw_times(panels[1], folder.parent / "cost")
    _draw_learned(panels[2], folder.parent / "backprop_steps")
    label_panels(panels, ("error of one gradient", "its time", "what learning by it gives"))
    legend_below(figure, panels[0])
    return figure


def _draw_errors(panel: Axes, folder: Path) -> None:
    mine = select(read(folder), kind="errors", problem="L1 + Quadratic", place="start")
    for i, (label, style) in enumerate(styles_of(SHOWN).items()):
        points = over_depths(label)(mine)
        draw_one(panel, points, "error", place=(i, len(SHOWN)), label=label, style=style)
    panel.set(xscale="log", yscale="log")
    tidy(panel, "iterations L", "relative error of a gradient,\nmedian and 10 % to 90 %")


def _draw_times(panel: Axes, folder: Path) -> None:
    base = json.loads((folder / "config.json").read_text(encoding="utf-8"))["base"]
    others = {name: value for name, value in base.items() if name not in ("L", "k")}
    records = select(read(folder), **others)
    for i, (label, style) in enumerate(styles_of(SHOWN).items()):
        # Those with a k have it in their name, and in a column of its own.
        mine = [r for r in records if r["strategy"] == label and r["over_floor"] is not None]
        points = sorted({r["L"]: r["over_floor"] for r in mine}.items())
        times = [Interval(time, float("nan"), 1) for _, time in points]
        place = (i, len(SHOWN))
        draw_curve(panel, [L for L, _ in points], times, label=label, style=style, place=place)
    depths = sorted({r["L"] for r in records})
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(depths, [str(L) for L in depths])
    times = (1, 2, 5, 10, 20, 50)
    panel.set_yticks(times, [str(time) for time in times])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
    tidy(panel, "iterations L", "time / time of the 2 L products with K")


def _draw_learned(panel: Axes, folder: Path) -> None:
    records, column = read(folder), "held_out_converged"
    learned = group(select(records, kind="learned"), "strategy")
    found = {steps_of(r[0]): r for name, r in learned.items() if name.startswith(KIND)}
    gains = [mean_interval(over_full(records, found[k], column)) for k in sorted(found)]
    draw_curve(panel, sorted(found), gains, label="truncation", style=STYLES[KIND], place=(0, 1))
    short = mean_interval(over_full(records, select(records, kind="short"), column)).mean
    draw_levels(panel, {"full, in the\ntime of k = 1": short, "full": 0.0})
    panel.set_xscale("log")
    tidy(panel, "k, backpropagated steps (L = 100)", "held-out PSNR over full unrolling (dB)")


EXPERIMENT = "gradient_quality"
FIGURES = {"fig00_main": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
