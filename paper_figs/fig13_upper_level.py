"""Upper-level methods: the loss over iterations and time. Records of `upper_level.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import DUAL, OTHER, PRIMAL, Record, main, read, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import group
from hypergrad.plotting import Style, label_panels, legend_below, new_figure, style_of, tidy

ADAM = "Adam at its best rate"
STYLES = {
    "low accuracy": Style("#b8b8b8", "solid", "o"),
    "middle accuracy": Style("#868686", (0, (5, 1.5)), "s"),
    "high accuracy": Style("#404040", (0, (1.2, 1.2)), "D"),
    "HOAG": PRIMAL,
    "adaptive": DUAL,
    "L-BFGS": OTHER,
    ADAM: style_of("truncation"),
}
COSTS = {"iterations": "lower-level iterations", "seconds": "time (s)"}
FLOOR = 1e-5  # of the excess: stored losses have six digits


def draw(folder: Path) -> Figure:
    """The median excess over the seeds at each epoch, over the median cost of the epoch."""
    problems = group(read(folder), "problem")
    figure = new_figure(10.0, 5.4)
    grid = figure.subplots(len(COSTS), len(problems), squeeze=False, sharey="col")
    for column, runs in zip(grid.T, problems.values(), strict=True):
        for panel, (cost, name) in zip(column, COSTS.items(), strict=True):
            _draw_methods(panel, runs, cost)
            tidy(panel, name)
    for panel in grid[:, 0]:
        panel.set_ylabel("(loss − best) / (start − best)")
    label_panels([*grid.flat], [*problems] * len(COSTS))
    legend_below(figure, grid[0, 0])
    return figure


def _draw_methods(panel: Axes, runs: Sequence[Record], cost: str) -> None:
    """A line for each method, from its first step on; the best is that of all runs of a seed."""
    same = group(runs, "seed").items()
    best = {seed: min(min(run["true_loss"]) for run in mine) for seed, mine in same}
    least = []
    for name, style in STYLES.items():
        mine = _best_adam(runs) if name == ADAM else select(runs, method=name)
        losses, costs = _columns(mine, "true_loss"), _columns(mine, cost)
        floor = np.array([[best[run["seed"]]] for run in mine])
        excess = np.median((losses - floor) / (losses[:, :1] - floor), axis=0)
        line = np.maximum(excess, FLOOR)[1:]
        look = {"color": style.color, "ls": style.linestyle, "lw": 1.6, "label": name}
        panel.loglog(np.median(costs, axis=0)[1:], line, **look)
        least.append(min(line))
    # All but the best method end within the panel, which would else show little of them.
    panel.set_ylim(0.7 * sorted(least)[1], 2.0)


def _columns(runs: Sequence[Record], name: str) -> np.ndarray:
    """A column of several runs; one that ended by itself stays where it is."""
    columns = [run[name] for run in runs]
    epochs = max(map(len, columns))
    return np.array([[*column, *[column[-1]] * (epochs - len(column))] for column in columns])


def _best_adam(runs: Sequence[Record]) -> Sequence[Record]:
    """The runs of the rate whose last loss is the least on average."""
    rates = group([run for run in runs if run["method"].startswith("Adam")], "method")
    return min(rates.values(), key=lambda mine: np.mean([run["true_loss"][-1] for run in mine]))


EXPERIMENT = "upper_level"
FIGURES = {"fig13_upper_level": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
