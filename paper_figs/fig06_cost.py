"""What every strategy costs over L, k, the batch and n. Records of `cost.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hypergrad._foundation.records import read_json
from hypergrad._foundation.statistics import Interval
from hypergrad.plotting import (
    Style,
    draw_curve,
    label_panels,
    legend_below,
    new_figure,
    style_of,
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


def draw(folder: Path) -> Figure:
    """Time over the floor (above) and memory (below), one parameter varied in each column."""
    base: dict[str, Any] = read_json(folder / "config.json")["base"]
    records = [{**r, "kind": _kind(r)} for r in read(folder) if r["strategy"] != "floor"]
    kinds = [k for k in dict.fromkeys(r["kind"] for r in records) if k != "forward solve"]
    styles = styles_of(kinds)
    figure = new_figure(10.0, 5.6)
    grid = figure.subplots(2, len(AXES), sharex="col", sharey="row")
    for line, (column, name) in zip(grid, ROWS.items(), strict=True):
        for panel, (axis, xlabel) in zip(line, AXES.items(), strict=True):
            fixed = {key: value for key, value in base.items() if key != axis}
            mine = select(records, **fixed)
            for i, (kind, style) in enumerate(styles.items()):
                _draw(panel, select(mine, kind=kind), axis, column, kind, style, (i, len(styles)))
            alone = select(mine, kind="forward solve")
            style = style_of("identity")
            _draw(panel, alone, axis, column, "forward solve alone", style, (0, 1))
            tidy(panel, xlabel if column == "megabytes" else "", name if panel is line[0] else "")
            panel.set_xscale("log")
            panel.set_yscale("log")
            values = sorted({r[axis] for r in mine})
            names = [str(v * v if axis == "side" else v) for v in values]
            panel.set_xticks(values, names)
            panel.xaxis.set_minor_locator(NullLocator())
    given = {key: f"n = {v**2}" if key == "side" else f"{key} = {v}" for key, v in base.items()}
    titles = [", ".join(text for key, text in given.items() if key != axis) for axis in AXES]
    label_panels(list(grid[0]), titles)
    for panel in grid[0]:
        panel.set_title(panel.get_title(loc="left"), loc="left", fontsize=7.5)
    legend_below(figure, grid[1, 0])
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
FIGURES = {"fig06_cost": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
