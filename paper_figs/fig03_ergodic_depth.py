"""First poster: do averages yield lower losses at large L? Records of `ergodic_depth.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _common import Record, decibels_over, main, paired, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import group, mean_interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_curves,
    label_panels,
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


# What a figure over L shows in its panels: the run, and how the K that it learned is judged.
PANELS = {
    "descent, as returned": ("descent", "held_out_returned"),
    "Adam, as returned": ("adam", "held_out_returned"),
    "Adam, converged": ("adam", "held_out_converged"),
    "Adam, conv. and shrunk": ("adam", "held_out_shrunk"),
}


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
    label_curves(panels[-1])
    return figure


def _panels_over_depth(records: Sequence[Record]) -> tuple[Figure, list[Axes], dict[str, Style]]:
    """Four panels over L with one scale, and the styles of the strategies."""
    learned = select(records, run="adam", kind="learned")
    depths = _depths(learned)
    figure = new_figure(10.0, 3.9)
    panels = list(figure.subplots(1, len(PANELS)))
    for panel in panels[2:]:  # gains by Adam are a tenth of those by descent
        panel.sharey(panels[1])
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xticks(depths, [str(L) for L in depths])
        panel.minorticks_off()
        tidy(panel, f"L, iterations\n({_seeds(learned)})")
    label_panels(panels, PANELS)
    return figure, panels, styles_of(_strategies(learned))


EXPERIMENT = "ergodic_depth"
FIGURES = {
    "fig03c_over_the_last_iterate": draw_differences,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
