"""Second poster: is one step of backpropagation enough, and why? Records of `backprop_steps.py`."""

from __future__ import annotations

from collections.abc import Sequence
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
    share_labels,
    style_of,
    styles_of,
    tidy,
)
from hypergrad.statistics import group, mean_interval, recovered_share

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
        name: mean_interval([r["held_out_converged"] for r in same]).mean
        for name, same in group(select(records, kind="baseline"), "baseline").items()
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
                style = replace(STYLES[kind], fill=fill)
                label = f"{title}, {'untrained' if place == 'start' else 'after k = 1'}"
                draw_curve(panel, steps, values, label=label, style=style, place=(i, 3))
        panel.set_xscale("log")
        tidy(panel, "k, backpropagated steps", name)
    panels[0].set_yscale("log")
    label_panels(panels, ("", "", ""))
    legend_below(figure, panels[0])
    return figure


# ----------------------------------------------------------------------------- recovered share


def shares_at_equal_epochs(
    records: Sequence[Record], strategy: str, column: str = "held_out_converged"
) -> np.ndarray:
    """By seed: the gain over the untrained K, as a share of that of full unrolling."""

    def losses(rows: Sequence[Record]) -> list[float]:
        return [r[column] for r in sorted(rows, key=lambda r: r["seed"])]

    learned = select(records, kind="learned")
    start = losses(select(records, baseline="untrained"))
    return recovered_share(
        start, *(losses(select(learned, strategy=name)) for name in (strategy, "full"))
    )


def shares_at_equal_seconds(records: Sequence[Record], strategy: str) -> np.ndarray:
    """By seed: the gain at L, as a share of what full unrolling has gained in the same seconds."""
    epochs, losses = select(records, kind="epoch"), []
    for seed in sorted({r["seed"] for r in epochs}):
        mine = select(epochs, strategy=strategy, seed=seed)
        full = select(epochs, strategy="full", seed=seed)
        # Between two epochs its loss is interpolated; after the last it stays what it is.
        seconds, curve = ([r[c] for r in full] for c in ("seconds", "validation_loss"))
        reached = np.interp(mine[-1]["seconds"], seconds, curve)
        losses.append((mine[0]["validation_loss"], mine[-1]["validation_loss"], reached))
    return recovered_share(*np.transpose(losses))


def draw_share(folder: Path) -> Figure:
    """The recovered share over k, at equal epochs and seconds; what exact steps add to k = 1."""
    records = read(folder)
    labels = dict.fromkeys(r["strategy"] for r in select(records, kind="learned"))
    figure = new_figure(9.4, 3.6)
    panels = list(figure.subplots(1, 3))
    for panel, shares in zip(
        panels, (shares_at_equal_epochs, shares_at_equal_seconds), strict=False
    ):
        for i, (kind, title) in enumerate(KINDS.items()):
            steps = sorted(int(s.rpartition("=")[2]) for s in labels if s.startswith(kind))
            values = [mean_interval(100 * shares(records, f"{kind}={k}")) for k in steps]
            draw_curve(panel, steps, values, label=title, style=STYLES[kind], place=(i, 3))
        panel.axhline(100 * ENOUGH, color="0.4", linewidth=0.8)
        panel.set_xscale("log")
    tidy(panels[0], "k, backpropagated steps", "share of full unrolling's gain,\nconverged (%)")
    tidy(panels[1], "k, backpropagated steps", "share of its gain in the same time,\nat L (%)")
    exact = group(select(records, kind="exact step"), "step")
    losses = [mean_interval([r["loss"] for r in same]) for same in exact.values()]
    style = style_of("exact")
    draw_curve(panels[2], list(exact), losses, label="exact steps after k = 1", style=style)
    tidy(panels[2], "exact step after training with k = 1", "held-out loss, converged")
    label_panels(panels, ("equal epochs", "equal seconds", "is k = 1 at an optimum?"))
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
