"""What every strategy costs over L, k, the batch and n. Records of `cost.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import FORWARD, Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hypergrad._foundation.records import read_json
from hypergrad._foundation.statistics import Interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_curves,
    label_panels,
    new_figure,
    styles_of,
    tidy,
)

AXES = {
    "L": "L, iterations",
    "k": "k, backpropagated steps",
    "batch": "samples at a time",
    "side": "n, entries of a sample (m = 2 n)",
}
ROWS = {
    "over_floor": "time / time of the\n2 L matrix products",
    "megabytes": "memory of the compiled\nprogram (MB)",
}


def _kind(record: Record) -> str:
    """The strategy without its k, so that one curve is one strategy."""
    name, _, option = record["strategy"].partition(":")
    word, equals, _ = option.partition("=")
    varied = equals and name in ("truncation", "limit")
    return f"{name}:{word}" if varied else record["strategy"]


# What is left out costs what is drawn: averages as full, limit:last as limit:steps in time.
OURS = ("full", "truncation:k", "limit:cgls", "limit:steps", "piggyback", "exact", "forward")
OTHERS = (
    "full",
    "jaxopt:normal_cg",
    "jaxopt:bicgstab",
    "optimistix:autolinearsolver",
    "optimistix:bicgstab",
    "optimistix-checkpointed",
)


def draw_ours(folder: Path) -> Figure:
    return draw(folder, OURS, tuple(AXES))


def draw_others(folder: Path) -> Figure:
    return draw(folder, OTHERS, ("L", "batch", "side"))  # none has a k


def draw(folder: Path, kinds: Sequence[str], axes: Sequence[str]) -> Figure:
    """Time over the floor (above) and memory (below), one parameter varied in each column."""
    base: dict[str, Any] = read_json(folder / "config.json")["base"]
    records = [{**r, "kind": _kind(r)} for r in read(folder) if r["strategy"] != "floor"]
    styles = styles_of(kinds)
    figure = new_figure(10.0, 5.6)
    grid = figure.subplots(2, len(axes), sharex="col", sharey="row")
    for line, (column, name) in zip(grid, ROWS.items(), strict=True):
        for panel, axis in zip(line, axes, strict=True):
            fixed = {key: value for key, value in base.items() if key != axis}
            mine = select(records, **fixed)
            for i, (kind, style) in enumerate(styles.items()):
                run = select(mine, kind=kind)
                if len({r[axis] for r in run}) > 1:
                    _draw(panel, run, axis, column, kind, style, (i, len(styles)))
            alone = select(mine, kind="forward solve")
            _draw(panel, alone, axis, column, "forward solve", FORWARD, (0, 1))
            xlabel = AXES[axis] if column == "megabytes" else ""
            tidy(panel, xlabel, name if panel is line[0] else "")
            panel.set_xscale("log")
            panel.set_yscale("log")
            values = sorted({r[axis] for r in mine})
            names = [str(v * v if axis == "side" else v) for v in values]
            panel.set_xticks(values, names)
            panel.xaxis.set_minor_locator(NullLocator())
    given = {key: f"n = {v**2}" if key == "side" else f"{key} = {v}" for key, v in base.items()}
    titles = [", ".join(text for key, text in given.items() if key != axis) for axis in axes]
    grid[0, 0].set_ylim(0.8, min(500, grid[0, 0].get_ylim()[1]))  # forward is far above
    for panel in grid[:, -1]:
        label_curves(panel)
    label_panels(list(grid[0]), titles)
    for panel in grid[0]:
        panel.set_title(panel.get_title(loc="left"), loc="left", fontsize=7.5)
    return figure


def _draw(
    panel: Axes,
    records: Sequence[Record],
    axis: str,
    column: str,
    label: str,
    style: Style,
    place: tuple[int, int],
) -> None:
    points = sorted((r[axis], r[column]) for r in records if r[column] is not None)
    intervals = [Interval(value, float("nan"), 1) for _, value in points]
    # Also without a point: the legend, which one panel makes, is that of all.
    draw_curve(panel, [x for x, _ in points], intervals, label=label, style=style, place=place)


EXPERIMENT = "cost"
FIGURES = {"fig06a_cost": draw_ours, "fig06b_cost_of_other_packages": draw_others}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
