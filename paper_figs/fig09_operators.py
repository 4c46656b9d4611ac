"""What was learned: how good, how it looks, a photograph. Records of `operators.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import Record, arrays, main, read, select
from matplotlib.figure import Figure

from hypergrad.plotting import (
    label_panels,
    new_figure,
    plot_operator,
    plot_photograph,
    style_of,
    tidy,
)
from hypergrad.statistics import Interval, mean_interval, paired_interval

SIDE = 8
NAMES = {"dct": "DCT, best weight", "differences": "total variation, best weight"}


def _decibels(loss: float) -> float:
    return 10 * math.log10(SIDE**2 / (2 * loss))


def _by_seed(records: Sequence[Record], column: str = "held_out_converged") -> list[float]:
    return [_decibels(r[column]) for r in sorted(records, key=lambda r: r["seed"])]


def _recipes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["recipe"] for r in select(records, kind="learned")))


def draw_gains(folder: Path) -> Figure:
    """Held-out PSNR of every recipe, and its gain over the DCT, seed by seed."""
    records = read(folder)
    baselines = {name: _by_seed(select(records, kind="baseline", baseline=name)) for name in NAMES}
    values = {NAMES[name]: baselines[name] for name in reversed(NAMES)}
    for recipe in reversed(_recipes(records)):
        mine = select(records, recipe=recipe, kind="learned")
        values[f"{recipe} (m = {mine[0]['m']})"] = _by_seed(mine)
    names = list(values)
    order = [*names[2:], *names[:2]]
    figure = new_figure(8.6, 0.7 + 0.32 * len(order))
    panels = list(figure.subplots(1, 2, sharey=True))
    levels = [
        [mean_interval(values[name]) for name in order],
        [paired_interval(values[name], baselines["dct"]) for name in order],
    ]
    for panel, intervals in zip(panels, levels, strict=True):
        _draw_points(panel, order, intervals)
        level = intervals[order.index(NAMES["differences"])].mean
        panel.axvline(level, color="0.45", linestyle=(0, (4, 2)), linewidth=1)
    panels[0].set_yticks(range(len(order)), order)
    seeds = len(baselines["dct"])
    tidy(panels[0], f"held-out PSNR, converged (dB; {seeds} seeds)")
    tidy(panels[1], "gain over the DCT on the same patches (dB)")
    label_panels(panels, ("", ""))
    return figure


def _draw_points(panel, names: Sequence[str], intervals: Sequence[Interval]) -> None:
    for i, (name, interval) in enumerate(zip(names, intervals, strict=True)):
        style = style_of("untrained" if name in NAMES.values() else "full")
        half = None if math.isnan(interval.half) else interval.half
        look = {"color": style.color, "marker": style.marker, "markersize": 5, "capsize": 3}
        panel.errorbar(interval.mean, i, xerr=half, linestyle="none", **look)


def _best(records: Sequence[Record]) -> str:
    """The recipe of the largest mean PSNR."""
    return max(
        _recipes(records),
        key=lambda name: np.mean(_by_seed(select(records, recipe=name, kind="learned"))),
    )


def _draw_operator(folder: Path, recipe: str) -> Figure:
    stored = arrays(folder, f"{_file_name(recipe)}-0")
    title = f"{recipe}: rows of K, each scaled to norm 1"
    K = stored["K"].astype(float)
    size = np.linalg.norm(K, axis=1, keepdims=True)
    unit = K / np.where(size > 0, size, 1)
    return plot_operator(unit, (SIDE, SIDE), title=title, use=stored["use"])


def _file_name(recipe: str) -> str:
    """The words that a cell's files begin with."""
    import re

    return re.sub(r"[^A-Za-z0-9.]+", "-", recipe)


def draw_alone(folder: Path) -> Figure:
    """The K that was learned alone, from the DCT."""
    return _draw_operator(folder, _recipes(read(folder))[0])


def draw_best(folder: Path) -> Figure:
    """The K of the best recipe."""
    return _draw_operator(folder, _best(read(folder)))


def draw_photograph(folder: Path) -> Figure:
    """A part of a photograph that was held out; PSNR and SSIM are those of the whole."""
    records = read(folder)
    stored = arrays(folder, "None-0")
    pictures = {"observed": stored["identity"]}
    pictures |= {name: stored[key] for key, name in NAMES.items()}
    whole = select(records, kind="photograph")
    metrics = {"observed": _metrics(select(whole, baseline="identity"))}
    metrics |= {name: _metrics(select(whole, baseline=key)) for key, name in NAMES.items()}
    shown = list(dict.fromkeys([*_recipes(records)[:2], _best(records)]))
    for recipe in shown:
        pictures[recipe] = arrays(folder, f"{_file_name(recipe)}-0")["picture"]
        metrics[recipe] = _metrics(select(whole, recipe=recipe))
    pictures["truth"] = stored["truth"]
    grey = {name: picture / 255 for name, picture in pictures.items()}
    return plot_photograph(grey, metrics=metrics, columns=4)


def _metrics(records: Sequence[Record]) -> dict[str, float]:
    return {key: records[0][key] for key in ("psnr", "ssim")}


FIGURES = {
    "fig09a_operators_gains": draw_gains,
    "fig09b_operators_alone": draw_alone,
    "fig09c_operators_best": draw_best,
    "fig09d_photograph": draw_photograph,
}

if __name__ == "__main__":
    main("operators", FIGURES)
