"""First poster: do averages yield lower losses at large L? Records of `ergodic_depth.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from _common import Record, decibels_over, main, paired, read, select, values
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hypergrad._foundation.statistics import group, mean_interval
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

LOSS = "½‖x − x†‖² per sample"


def _depths(records: Sequence[Record]) -> list[int]:
    return sorted({r["L"] for r in records if r["L"]})


def _strategies(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["strategy"] for r in records))


def _seeds(records: Sequence[Record]) -> str:
    """How many seeds there are; at the largest L there may be fewer."""
    counts = {L: len({r["seed"] for r in select(records, L=L)}) for L in _depths(records)}
    most, (deepest, fewer) = max(counts.values()), max(counts.items())
    text = f"{most} seed{'s' * (most > 1)}"
    return text if fewer == most else f"{text}, {fewer} at L = {deepest}"


def _fit_to_curves(panels: Sequence[Axes], levels: Iterable[float] = ()) -> None:
    """Logarithmic limits by means and levels: an interval of few seeds may reach to 0."""
    drawn = [np.asarray(line.get_ydata(), float) for panel in panels for line in panel.get_lines()]
    values = np.concatenate([*drawn, np.array(list(levels))])
    panels[0].set_ylim(0.85 * values.min(), 1.2 * values.max())


def draw_epochs(folder: Path) -> Figure:
    """Loss over epochs: a column for each L, training above, held-out below; Adam."""
    records = read(folder)
    epochs = select(records, run="adam", kind="epoch")
    depths, styles = _depths(epochs), styles_of(_strategies(epochs))
    figure = new_figure(10.0, 4.6)
    grid = figure.subplots(2, len(depths), sharex=True, sharey=True, squeeze=False)
    for line, (column, name) in zip(
        grid, {"train_loss": "training", "validation_loss": "held-out"}.items(), strict=True
    ):
        for panel, L in zip(line, depths, strict=True):
            mine = select(epochs, L=L)
            _draw_epochs(panel, mine, column, styles)
            bottom = column == "validation_loss"
            tidy(
                panel, "epoch" if bottom else "", f"{name} loss,\n{LOSS}" if depths[0] == L else ""
            )
            if not bottom:
                seeds = len({r["seed"] for r in mine})
                panel.set_title(f"L = {L} ({seeds} seed{'s' * (seeds > 1)})", fontsize=9)
    grid[0, 0].set_yscale("log")
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _fit_to_curves(list(grid.flat))
    legend_below(figure, grid[0, 0])
    return figure


def _draw_epochs(
    panel: Axes, records: Sequence[Record], column: str, styles: Mapping[str, Style]
) -> None:
    for i, (label, style) in enumerate(styles.items()):
        run = select(records, strategy=label)
        at = sorted({r["epoch"] for r in run})
        losses = [mean_interval([r[column] for r in select(run, epoch=e)]) for e in at]
        draw_curve(panel, at, losses, label=label, style=style, place=(i, len(styles)))


# What a figure over L shows in its panels: the run, and how the K that it learned is judged.
PANELS = {
    "descent, as returned": ("descent", "held_out_returned"),
    "Adam, as returned": ("adam", "held_out_returned"),
    "Adam, converged": ("adam", "held_out_converged"),
    "Adam, conv. and shrunk": ("adam", "held_out_shrunk"),
}


def draw_depths(folder: Path) -> Figure:
    """Held-out loss at the end over L: descent and Adam as returned, Adam converged."""
    records = read(folder)
    figure, panels, styles = _panels_over_depth(records)
    for panel, (run, column) in zip(panels, PANELS.values(), strict=True):
        learned = select(records, run=run, kind="learned")
        for i, (label, style) in enumerate(styles.items()):
            mine = group(select(learned, strategy=label), "L")
            losses = [mean_interval(values(same, column)) for same in mine.values()]
            if mine:
                place = {"label": label, "style": style, "place": (i, 4)}
                draw_curve(panel, list(mine), losses, **place)
    panels[0].set_yscale("log")
    panels[0].set_ylabel(f"held-out loss, {LOSS}")
    levels = {
        name: mean_interval(values(select(records, baseline=name), "held_out_converged")).mean
        for name in ("dct", "differences")
    }
    _fit_to_curves(panels, levels.values())
    draw_levels(panels[-1], levels)
    legend_below(figure, panels[1])
    return figure


def draw_differences(folder: Path) -> Figure:
    """The same as PSNR over that of the last iterate at the same L, paired over seeds."""
    records = read(folder)
    figure, panels, styles = _panels_over_depth(records)
    for panel, (run, column) in zip(panels, PANELS.values(), strict=True):
        learned = group(select(records, run=run, kind="learned"), "L")
        for i, (label, style) in enumerate(styles.items()):
            pairs = {
                L: [select(same, strategy=s) for s in (label, "full")]
                for L, same in learned.items()
            }
            if label == "full" or not all(all(pair) for pair in pairs.values()):
                continue
            gains = [
                mean_interval(decibels_over(*paired(column, *pair))) for pair in pairs.values()
            ]
            place = {"label": label, "style": style, "place": (i, 4)}
            draw_curve(panel, list(pairs), gains, **place)
        panel.axhline(0, color="k", linewidth=0.8)
    panels[0].set_ylabel("held-out PSNR over the last iterate's (dB)")
    legend_below(figure, panels[1])
    return figure


def _panels_over_depth(records: Sequence[Record]) -> tuple[Figure, list[Axes], dict[str, Style]]:
    """Four panels over L with one scale, and the styles of the strategies."""
    learned = select(records, run="adam", kind="learned")
    depths = _depths(learned)
    figure = new_figure(10.0, 3.9)
    panels = list(figure.subplots(1, len(PANELS), sharey=True))
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xticks(depths, [str(L) for L in depths])
        panel.minorticks_off()
        tidy(panel, f"L, iterations\n({_seeds(learned)})")
    label_panels(panels, PANELS)
    return figure, panels, styles_of(_strategies(learned))


EXPERIMENT = "ergodic_depth"
FIGURES = {
    "fig03a_ergodic_epochs": draw_epochs,
    "fig03b_ergodic_depth": draw_depths,
    "fig03c_over_the_last_iterate": draw_differences,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
