"""Second poster: is one step of backpropagation enough, and why? Records of `backprop_steps.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import Record, decibels_over, main, paired, read, select, values
from matplotlib.figure import Figure
from matplotlib.typing import FillStyleType

from hypergrad._foundation.statistics import Interval, group, mean_interval, recovered_share
from hypergrad.plotting import (
    Style,
    draw_curve,
    draw_levels,
    label_panels,
    legend_below,
    new_figure,
    share_labels,
    style_of,
    styles_of,
    tidy,
)

# The three variants, as strategies are called and in words; one style each.
KINDS = {"truncation:k": "truncation", "limit:last": "last iterates", "limit:steps": "last state"}
STYLES = {
    "truncation:k": Style("#0080c8", (0, (1.2, 1.2)), "s"),
    "limit:last": Style("#f0a800", (0, (6, 1.5, 1, 1.5)), "^"),
    "limit:steps": Style("#821800", (0, (5, 3)), "D"),
}
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


def draw_why(folder: Path) -> Figure:
    """Bias of the mean gradient against the noise of one batch, and batches that point uphill."""
    records = select(read(folder), kind="gradient")
    figure = new_figure(9.4, 3.6)
    panels = list(figure.subplots(1, 3))
    columns = {
        # At the best scale: that of a gradient is nothing to Adam.
        "scaled_bias": "bias at the best scale\n/ noise of a batch",
        "cosine": "cosine to the exact gradient",
        "uphill": "share of batches uphill",
    }
    for panel, (column, name) in zip(panels, columns.items(), strict=True):
        for place, fill in PLACES.items():
            at_place = group(select(records, place=place), "method")
            where = "untrained" if place == "start" else "after k = 1"
            for i, (kind, title) in enumerate(KINDS.items()):
                found = {
                    int(method.rpartition("=")[2]): _of_gradients(same, column)
                    for method, same in at_place.items()
                    if method.startswith(kind)
                }
                look = {"label": f"{title}, {where}", "style": replace(STYLES[kind], fill=fill)}
                steps = sorted(found)
                draw_curve(panel, steps, [found[k] for k in steps], place=(i, 3), **look)
            # What is left with all steps is the error of L iterations.
            level = _of_gradients(at_place["full"], column).mean
            style = style_of("full")
            width = 1.6 if fill == "full" else 0.8
            panel.axhline(level, color=style.color, linewidth=width, label=f"full, {where}")
        panel.set_xscale("log")
        tidy(panel, "k, backpropagated steps", name)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, 1.05)
    panels[2].set_ylim(-0.02, 0.52)
    label_panels(panels, ("", "", ""))
    legend_below(figure, panels[0])
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
    for i, (kind, title) in enumerate(KINDS.items()):
        found = {
            steps_of(same[0]): same
            for name, same in group(learned, "strategy").items()
            if name.startswith(kind)
        }
        look = {"label": title, "style": STYLES[kind], "place": (i, 3)}
        for panel, measure in zip(panels, (lambda *a: 100 * shares(*a), over_full), strict=False):
            gains = [mean_interval(measure(records, found[k], column)) for k in sorted(found)]
            draw_curve(panel, sorted(found), gains, **look)
    levels = {
        name: mean_interval(100 * shares(records, select(records, baseline=name), column)).mean
        for name in ("dct", "differences")
    }
    draw_levels(panels[0], {"95 %": 100 * ENOUGH} | levels)
    short = over_full(records, select(records, kind="short"), column)
    draw_levels(panels[1], {"full, in the time of k = 1": mean_interval(short).mean, "full": 0.0})
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
    for panel in panels[:2]:
        panel.set_xscale("log")
    tidy(panels[0], "k, backpropagated steps", "share of full unrolling's gain (%)")
    tidy(panels[1], "k, backpropagated steps", "held-out PSNR over full unrolling (dB)")
    tidy(panels[2], "further step", "change of the held-out loss")
    label_panels(panels, ("equal epochs, converged", "the same in dB", "more steps after k = 1"))
    share_labels(panels[0], [panels[2]])
    legend_below(figure, panels[0])
    return figure


EXPERIMENT = "backprop_steps"
FIGURES = {
    "fig04a_backprop_steps": draw_curves,
    "fig04b_why_one_step": draw_why,
    "fig04c_recovered_share": draw_share,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
