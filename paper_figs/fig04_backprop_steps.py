"""Second poster: is one step of backpropagation enough, and why? Records of `backprop_steps.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import Record, main, read, select
from matplotlib.figure import Figure
from matplotlib.typing import FillStyleType

from hypergrad.plotting import (
    Style,
    draw_curve,
    draw_levels,
    label_panels,
    legend_below,
    new_figure,
    styles_of,
    tidy,
)
from hypergrad.statistics import mean_interval

KINDS = {"truncation:k": "truncation", "limit:last": "last iterates", "limit:steps": "last state"}


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
        r["baseline"]: r["held_out_converged"] for r in select(records, kind="baseline", seed=0)
    }
    exact = select(records, kind="exact step")
    last = max((r["step"] for r in exact), default=0)
    baselines[f"k = 1, then {last} exact"] = mean_interval(
        [r["loss"] for r in select(exact, step=last)]
    ).mean
    tidy(panels[0], "epoch", "held-out loss at L = 100, ½‖x − x†‖² per sample")
    tidy(panels[1], "training time (s)")
    panels[0].set_yscale("log")
    label_panels(panels, ("at equal epochs", "at equal seconds"))
    draw_levels(panels[1], baselines)
    legend_below(figure, panels[0])
    return figure


def draw_why(folder: Path) -> Figure:
    """Bias of the mean gradient against the noise of one batch, and batches that point uphill."""
    records = select(read(folder), kind="gradient")
    figure = new_figure(9.4, 3.6)
    panels = list(figure.subplots(1, 3))
    columns = {
        "bias": "bias / noise of a batch",
        "cosine": "cosine to the exact gradient",
        "uphill": "share of batches uphill",
    }
    styles = {
        "truncation:k": Style("#0080c8", (0, (1.2, 1.2)), "s"),
        "limit:last": Style("#f0a800", (0, (6, 1.5, 1, 1.5)), "^"),
        "limit:steps": Style("#821800", (0, (5, 3)), "D"),
    }
    for panel, (column, name) in zip(panels, columns.items(), strict=True):
        for place, fill in PLACES.items():
            for i, (kind, title) in enumerate(KINDS.items()):
                mine = [r for r in select(records, place=place) if r["method"].startswith(kind)]
                steps = sorted({int(r["method"].rpartition("=")[2]) for r in mine})
                values = [
                    mean_interval(
                        [
                            r[column] / (r["noise"] if column == "bias" else 1)
                            for r in select(mine, method=f"{kind}={k}")
                        ]
                    )
                    for k in steps
                ]
                style = replace(styles[kind], fill=fill)
                label = f"{title}, {'untrained' if place == 'start' else 'after k = 1'}"
                draw_curve(panel, steps, values, label=label, style=style, place=(i, 3))
        panel.set_xscale("log")
        tidy(panel, "k, backpropagated steps", name)
    panels[0].set_yscale("log")
    label_panels(panels, ("", "", ""))
    legend_below(figure, panels[0])
    return figure


EXPERIMENT = "backprop_steps"
FIGURES = {"fig04a_backprop_steps": draw_curves, "fig04b_why_one_step": draw_why}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
