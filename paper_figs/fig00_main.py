"""The figure of the README: how good a hypergradient is, what it costs, and what it learns.

Records of `frontier.py` (error and time of one gradient, at one step ratio, as in fig07) and of
`backprop_steps.py` (as in fig04c).
"""

from __future__ import annotations

from pathlib import Path

from _common import main, read, select
from fig04_backprop_steps import KIND, STYLE, over_full, steps_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import Interval, group, mean_interval
from hypergrad.plotting import (
    draw_curve,
    draw_levels,
    label_curves,
    label_panels,
    new_figure,
    styles_of,
    tidy,
)

SHOWN = ("truncation:k=1", "truncation:k=10", "limit:cgls", "full", "ergodic:uniform")


def draw(folder: Path) -> Figure:
    """Error over L, time over L, and what K is worth that was learned with k steps."""
    figure = new_figure(10.0, 3.4)
    panels = list(figure.subplots(1, 3))
    _draw_over_depth(panels[0], folder, "relative_error_differentiable", named=False)
    _draw_over_depth(panels[1], folder, "milliseconds", named=True)
    _draw_learned(panels[2], folder.parent / "backprop_steps")
    tidy(panels[0], "iterations L", "relative error of a gradient in K")
    tidy(panels[1], "iterations L", "time of a gradient (ms, 64 patches)")
    titles = ("error: K the DCT", "time: K the DCT", "learning: from a random K")
    label_panels(panels, titles)
    return figure


def _draw_over_depth(panel: Axes, folder: Path, column: str, *, named: bool) -> None:
    records = select(read(folder), K="easy: DCT")
    for i, (label, style) in enumerate(styles_of(SHOWN).items()):
        run = sorted(select(records, strategy=label), key=lambda r: r["L"])
        values = [Interval(r[column], float("nan"), 1) for r in run]
        place = (i, len(SHOWN))
        draw_curve(panel, [r["L"] for r in run], values, label=label, style=style, place=place)
    panel.set(xscale="log", yscale="log")
    depths = sorted({r["L"] for r in records if r["L"]})
    panel.set_xticks(depths, [str(L) for L in depths])
    panel.minorticks_off()
    if named:
        label_curves(panel)


def _draw_learned(panel: Axes, folder: Path) -> None:
    records, column = read(folder), "held_out_converged"
    learned = group(select(records, kind="learned"), "strategy")
    found = {steps_of(r[0]): r for name, r in learned.items() if name.startswith(KIND)}
    gains = [mean_interval(over_full(records, found[k], column)) for k in sorted(found)]
    draw_curve(panel, sorted(found), gains, label="truncation", style=STYLE, place=(0, 1))
    short = mean_interval(over_full(records, select(records, kind="short"), column)).mean
    draw_levels(panel, {"full, in the\ntime of k = 1": short, "full": 0.0})
    panel.set_xscale("log")
    panel.set_xticks(sorted(found), [str(k) for k in sorted(found)])
    panel.minorticks_off()
    tidy(panel, "k, backpropagated steps (L = 100)", "held-out PSNR over full (dB)")


EXPERIMENT = "frontier"
FIGURES = {"fig00_main": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
