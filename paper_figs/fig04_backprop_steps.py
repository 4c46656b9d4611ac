"""Second poster: is one step of backpropagation enough, and why? Records of `backprop_steps.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import Record, decibels_over, main, paired, read, select, values
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import FillStyleType

from hypergrad._foundation.statistics import Interval, group, mean_interval, recovered_share
from hypergrad.plotting import (
    draw_curve,
    draw_levels,
    label_curves,
    label_panels,
    legend_below,
    new_figure,
    style_of,
    styles_of,
    tidy,
)

# Drawn for all three kinds of k steps: the two of the limit formula lie on this one.
KIND, STYLE = "truncation:k", style_of("truncation")
ENOUGH = 0.95  # of the gain: "one step is enough"
PLACES: dict[str, FillStyleType] = {"start": "none", "end of k=1": "full"}


def steps_of(record: Record) -> int:
    """The k of a k-step strategy."""
    return int(record["strategy"].rpartition("=")[2])


def draw_curves(folder: Path) -> Figure:
    """Held-out loss of truncation over epochs and over seconds, beside what is not learned."""
    records = read(folder)
    epochs = select(records, kind="epoch")
    steps = sorted({steps_of(r) for r in epochs if r["strategy"].startswith("truncation")})
    labels = ["full", *(f"truncation:k={k}" for k in steps)]
    figure = new_figure(9.4, 4.0)
    panels = list(figure.subplots(1, 2, sharey=True))
    for i, (label, style) in enumerate(styles_of(labels).items()):
        run = select(epochs, strategy=label)
        at = sorted({r["epoch"] for r in run})
        losses = [mean_interval([r["validation_loss"] for r in select(run, epoch=e)]) for e in at]
        seconds = [np.mean([r["seconds"] for r in select(run, epoch=e)]) for e in at]
        for panel, x in zip(panels, (at, seconds), strict=True):
            place = (i, len(labels))
            draw_curve(panel, x, losses, label=label, style=style, place=place)
    baselines = {
        # What is iterated is judged at L, as the curves are; what is not has no L.
        name: mean_interval([r.get("held_out_at_L", r["held_out_converged"]) for r in same]).mean
        for name, same in group(select(records, kind="baseline"), "baseline").items()
    }
    exact = select(records, kind="more", method="exact")
    last = max(values(exact, "step"))
    after = mean_interval(values(select(exact, step=last), "loss"))
    baselines[f"k = 1, then {last:g} exact"] = after.mean
    tidy(panels[0], "epoch", "held-out loss at L, ½‖x − x†‖² per sample")
    tidy(panels[1], "training time (s)")
    panels[0].set_yscale("log")
    label_panels(panels, ("at equal epochs", "at equal seconds"))
    draw_levels(panels[1], baselines)
    legend_below(figure, panels[0])
    return figure


def _of_gradients(records: Sequence[Record], column: str) -> Interval:
    """Over seeds; a bias in units of the noise of one batch."""
    found = np.array(values(records, column))
    return mean_interval(found / values(records, "noise") if column == "scaled_bias" else found)


def _tick_steps(panel: Axes, records: Sequence[Record]) -> None:
    """A logarithmic axis of k, with a number at each k that was tried."""
    names = {str(r.get("strategy") or r.get("method")) for r in records}
    steps = sorted(int(name.rpartition("=")[2]) for name in names if name.startswith(KIND))
    panel.set_xscale("log")
    panel.set_xticks(steps, [str(k) for k in steps])
    panel.minorticks_off()


def draw_why(folder: Path) -> Figure:
    """Bias of the mean gradient against the noise of one batch, and its direction."""
    records = select(read(folder), kind="gradient")
    figure = new_figure(9.4, 3.4)
    panels = list(figure.subplots(1, 2))
    columns = {
        # At the best scale: that of a gradient is nothing to Adam.
        "scaled_bias": "bias at the best scale\n/ noise of a batch",
        "cosine": "cosine to the exact gradient",
    }
    for panel, (column, name) in zip(panels, columns.items(), strict=True):
        for place, fill in PLACES.items():
            at_place = group(select(records, place=place), "method")
            where = "untrained" if place == "start" else "after k = 1"
            found = {
                int(method.rpartition("=")[2]): _of_gradients(same, column)
                for method, same in at_place.items()
                if method.startswith(KIND)
            }
            look = {"label": f"k steps, {where}", "style": replace(STYLE, fill=fill)}
            steps = sorted(found)
            draw_curve(panel, steps, [found[k] for k in steps], **look)
            # What is left with all steps is the error of L iterations.
            level = [_of_gradients(at_place["full"], column)] * len(steps)
            style = replace(style_of("full"), fill=fill)
            draw_curve(panel, steps, level, label=f"full, {where}", style=style)
        _tick_steps(panel, records)
        tidy(panel, "k, backpropagated steps", name)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, 1.05)
    for panel in panels:
        label_curves(panel)
    titles = ("bias of truncation, limit:last and limit:steps (alike)", "their direction")
    label_panels(panels, titles)
    return figure


# ----------------------------------------------------------------------------- recovered share


def shares(records: Sequence[Record], mine: Sequence[Record], column: str) -> np.ndarray:
    """By seed: a gain over the untrained K, as a share of that of full unrolling."""
    start = select(records, baseline="untrained")
    full = select(records, kind="learned", strategy="full")
    return recovered_share(*paired(column, start, mine, full))


def over_full(records: Sequence[Record], mine: Sequence[Record], column: str) -> np.ndarray:
    """By seed: how much nearer to the truth than full unrolling, in dB."""
    full = select(records, kind="learned", strategy="full")
    return decibels_over(*paired(column, mine, full))


def draw_share(folder: Path) -> Figure:
    """Recovered share and dB over k at equal epochs; at equal seconds; more steps after k = 1."""
    records, column = read(folder), "held_out_converged"
    learned = select(records, kind="learned")
    figure = new_figure(9.4, 3.9)
    panels = list(figure.subplots(1, 3))
    found = {
        steps_of(same[0]): same
        for name, same in group(learned, "strategy").items()
        if name.startswith(KIND)
    }
    for panel, measure in zip(panels, (lambda *a: 100 * shares(*a), over_full), strict=False):
        gains = [mean_interval(measure(records, found[k], column)) for k in sorted(found)]
        draw_curve(panel, sorted(found), gains, label="k steps", style=STYLE)
        _tick_steps(panel, learned)
    levels = {
        name: mean_interval(100 * shares(records, select(records, baseline=name), column)).mean
        for name in ("dct", "differences")
    }
    draw_levels(panels[0], {"95 %": 100 * ENOUGH} | levels)
    short = over_full(records, select(records, kind="short"), column)
    draw_levels(panels[1], {"full, in the\ntime of k = 1": mean_interval(short).mean, "full": 0.0})
    more = select(records, kind="more")
    styles = styles_of(dict.fromkeys(r["method"] for r in more))
    for i, (label, style) in enumerate(styles.items()):
        by_step = group(select(more, method=label), "step")
        # Seeds differ by more than steps do: what counts is the change of each.
        changes = [
            mean_interval(np.subtract(*paired("loss", same, by_step[0])))
            for same in by_step.values()
        ]
        draw_curve(panels[2], list(by_step), changes, label=label, style=style, place=(i, 3))
    label_curves(panels[2])
    tidy(panels[0], "k, backpropagated steps", "share of the gain of full (%)")
    tidy(panels[1], "k, backpropagated steps", "held-out PSNR over full (dB)")
    tidy(panels[2], "further step", "change of the held-out loss, ½‖x − x†‖²")
    label_panels(panels, ("equal epochs, converged", "the same in dB", "more steps after k = 1"))
    return figure


EXPERIMENT = "backprop_steps"
FIGURES = {
    "fig04a_backprop_steps": draw_curves,
    "fig04b_why_one_step": draw_why,
    "fig04c_recovered_share": draw_share,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
