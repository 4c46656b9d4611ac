"""Strategies as markers and curves: error against time, loss over epochs."""

from __future__ import annotations

import math
import textwrap
from typing import Literal

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad.plotting._checks import Floats, Records, check_records, require
from hypergrad.plotting.parts import (
    Numbers,
    draw_levels,
    label_points,
    legend_below,
    new_figure,
    tidy,
)
from hypergrad.plotting.styles import SMALL, TEXT, marker_of, styles_of

# Columns of time: the unit, and how a title states it.
TIMES = {
    "over_forward": ("forward solves", "for {:.1f} forward solves"),
    "milliseconds": ("ms", "in {:.3g} ms"),
}
ACCURATE = 1e-6  # the relative error below which a gradient counts as exact in a title


def plot_comparison(records: Records, *, warning: str = "") -> Figure:
    """Draw the relative error of each hypergradient against its time, both logarithmic.

    The title names the fastest strategy with an error below 1e-6, if there is one.

    **Arguments**: `records` of `strategy`, `relative_error` and `over_forward`, as `compare` gives
    them; `milliseconds` replace `over_forward` where a record has none. A record with an `error`,
    or without positive numbers to draw, is named above the axes. A `warning` stands there in place
    of the fastest strategy.

    **Errors**: a `ValueError` where nothing is left to draw.
    """
    check_records(records, "strategy")
    failed = np.array([record.get("error") is not None for record in records])
    timed = [record for record in records if record.get("error") is None]
    relative = all(record.get("over_forward") is not None for record in timed)
    column = "over_forward" if relative else "milliseconds"
    pairs = [(record.get(column), record.get("relative_error")) for record in records]
    points = np.array(pairs, float)  # None becomes NaN
    good = np.all((points > 0) & (points < np.inf), axis=1) & ~failed
    rule = "a record must have positive milliseconds and relative_error, and no error"
    require(bool(good.any()), f"{rule}; got none such among {len(good)}: look at their errors")
    labels = np.array([record["strategy"] for record in records])
    figure = new_figure(7.0, 4.4)
    axes = figure.add_subplot(xscale="log", yscale="log")
    styles = styles_of(labels.tolist())
    for label, style in styles.items():
        if (mine := good & (labels == label)).any():
            # With translucent faces, two markers at one place are both seen.
            look = marker_of(style, 7.5, alpha=0.65) | {"linestyle": "none", "zorder": 3}
            axes.plot(*points[mine].T, label=label, **look)
    _fit_decades(axes, points[good])
    unit, time = TIMES[column]
    tidy(axes, f"time per hypergradient ({unit})", "relative error of the hypergradient")
    left_out = ", ".join(dict.fromkeys(labels[~good].tolist()))
    lines = [textwrap.fill(f"not drawn: {left_out}", 85)] if left_out else []
    exact = [i for i in np.flatnonzero(good) if points[i, 1] < ACCURATE]
    if warning:
        lines.insert(0, textwrap.fill(warning, 85))
    elif exact:
        best = min(exact, key=lambda i: points[i, 0])
        spent, error = points[best]
        lines.insert(0, f"{labels[best]}: error {error:.0e} {time.format(spent)}")
    axes.set_title("\n".join(lines), fontsize=TEXT if exact and not warning else SMALL)
    named = zip(labels[good].tolist(), *points[good].T.tolist(), strict=True)
    label_points(figure, axes, [(name, x, y, styles[name].color) for name, x, y in named])
    return figure


def _fit_decades(axes: Axes, points: Floats) -> None:
    """Logarithmic limits of at least a decade, so that each axis has two numbers or more."""
    for axis, values in zip((axes.xaxis, axes.yaxis), np.log10(points).T, strict=True):
        middle, half = (values.max() + values.min()) / 2, max(0.56 * np.ptp(values), 0.5)
        low, high = 10 ** (middle - half), 10 ** (middle + half)
        axes.set(**{f"{axis.axis_name}lim": (low, high)})
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if half < 1 else (1,)))
        axis.set_minor_formatter(ticker.NullFormatter())
        plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
        powers = ticker.LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))
        axis.set_major_formatter(plain if low >= 1e-3 and high < 1e5 else powers)


def plot_loss_curves(
    records: Records,
    *,
    x: Literal["epoch", "seconds"] = "epoch",
    baselines: Numbers | None = None,
    loss: str = "½‖x − x†‖² per sample",
) -> Figure:
    """Training loss (left) and held-out loss (right) on one scale, a curve for each strategy.

    **Arguments**: `records` of `strategy`, `epoch`, `seconds`, `train_loss` and `validation_loss`
    (None: not drawn); `x`: what the losses are drawn against; `baselines`: held-out losses by name,
    drawn as labelled levels; `loss`, in words. The scale is logarithmic where losses differ by a
    factor of 10.

    **Errors**: a `ValueError` for no records, another `x`, two records of one strategy and epoch,
    or a baseline that is not finite.
    """
    names = {"epoch": "epoch", "seconds": "training time (s)"}
    require(x in names, f"x must be one of {', '.join(names)}; got {x!r}: choose one")
    check_records(records, "strategy", "epoch", x, "train_loss", "validation_loss")
    once = len({(record["strategy"], record["epoch"]) for record in records}) == len(records)
    rule = "records must have each epoch of a strategy once; got one twice"
    require(once, f"{rule}: average seeds, or label them as strategies")
    levels = dict(baselines or {})
    finite = all(math.isfinite(level) for level in levels.values())
    require(finite, f"baselines must be finite; got {levels}: leave out what is not")
    figure = new_figure(9.4, 3.9)
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    styles, losses = styles_of(record["strategy"] for record in records), [*levels.values()]
    for panel, column in zip(panels, ("train_loss", "validation_loss"), strict=True):
        for i, (label, style) in enumerate(styles.items()):
            run = [record for record in records if record["strategy"] == label]
            run.sort(key=lambda record: record["epoch"])
            drawn = np.array([record[column] for record in run], float)  # None becomes NaN
            losses += drawn[np.isfinite(drawn)].tolist()
            # Curves that coincide are told apart by width, and by markers at different places.
            every, width = max(1, len(run) // 8), 2.8 - 1.4 * i / max(1, len(styles) - 1)
            look = marker_of(style, 5.5) | {"linestyle": style.linestyle, "linewidth": width}
            look["markevery"] = (every * i // len(styles), every)
            panel.plot([record[x] for record in run], drawn, label=label, **look)
        tidy(panel, names[x])
    panels[0].set_ylabel(f"loss, {loss}", fontsize=TEXT)
    panels[0].set_title("training", fontsize=TEXT)
    nothing = all(record["validation_loss"] is None for record in records)
    panels[1].set_title("held-out (none recorded)" if nothing else "held-out", fontsize=TEXT)
    if losses and 0 < 10 * min(losses) <= max(losses):
        panels[0].set_yscale("log")
    if x == "epoch":
        panels[0].xaxis.set_major_locator(ticker.MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    draw_levels(panels[1], levels)
    legend_below(figure, panels[0])
    return figure
