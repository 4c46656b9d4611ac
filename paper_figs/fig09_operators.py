"""What was learned: how good, how it looks, a photograph. Records of `operators.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import PRIMAL, Record, arrays, main, read, select
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from hypergrad._foundation.statistics import mean_interval, paired_interval
from hypergrad.plotting import (
    label_panels,
    legend_below,
    new_figure,
    plot_operator,
    plot_photograph,
    style_of,
    tidy,
)

SIDE = 8
NAMES = {"dct": "DCT, best weight", "differences": "total variation, best weight"}


def _decibels(loss: float) -> float:
    return 10 * math.log10(SIDE**2 / (2 * loss))


def _by_seed(records: Sequence[Record], column: str = "held_out_converged") -> list[float]:
    return [_decibels(r[column]) for r in sorted(records, key=lambda r: r["seed"])]


def _recipes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["recipe"] for r in select(records, kind="learned")))


def draw_gains(folder: Path) -> Figure:
    """Held-out PSNR of every recipe, where it starts and where it ends, and gains over the DCT."""
    records = read(folder)
    dct = _by_seed(select(records, kind="baseline", baseline="dct"))
    ends = {
        name: _by_seed(select(records, kind="baseline", baseline=key))
        for key, name in NAMES.items()
    }
    starts: dict[str, list[float]] = {}
    for recipe in _recipes(records):
        mine = select(records, recipe=recipe, kind="learned")
        name = f"{recipe} (m = {mine[0]['m']})"
        starts[name], ends[name] = _by_seed(mine, "held_out_start"), _by_seed(mine)
    names = list(ends)[::-1]
    figure = new_figure(9.0, 1.3 + 0.32 * len(names))
    panels = list(figure.subplots(1, 2, sharey=True))
    for panel, judge in zip(
        panels, (mean_interval, lambda values: paired_interval(values, dct)), strict=True
    ):
        fixed = [name for name in names if name not in starts]
        for group, values, label, style, fill in (
            (fixed, ends, "not learned", style_of("untrained"), "full"),
            (starts, starts, "where learning starts, best weight", PRIMAL, "none"),
            (starts, ends, "learned", PRIMAL, "full"),
        ):
            intervals = [judge(values[name]) for name in group]
            panel.errorbar(
                [interval.mean for interval in intervals],
                [names.index(name) + 0.12 * (fill == "none") for name in group],
                xerr=np.nan_to_num([interval.half for interval in intervals]),
                color=style.color, marker=style.marker, fillstyle=fill, label=label,
                linestyle="none", markersize=5, capsize=3, elinewidth=1.2,
            )  # fmt: skip
        level = judge(ends[NAMES["differences"]]).mean
        panel.axvline(level, color="0.45", linestyle=(0, (4, 2)), linewidth=1)
    panels[0].set_yticks(range(len(names)), names)
    tidy(panels[0], f"held-out PSNR, converged (dB; {len(dct)} seed{'s' * (len(dct) > 1)})")
    tidy(panels[1], "gain over the DCT on the same patches (dB)")
    panels[1].xaxis.set_major_locator(MultipleLocator(0.5))
    label_panels(panels, ("quality", "gain"))
    legend_below(figure, panels[0])
    return figure


def _best(records: Sequence[Record]) -> str:
    """The recipe of the largest mean PSNR on the photograph to choose on."""

    def psnr(recipe: str) -> float:
        learned = select(records, recipe=recipe, kind="learned")
        return float(np.mean(_by_seed(learned, "choose_converged")))

    return max(_recipes(records), key=psnr)


def _draw_operator(folder: Path, recipe: str) -> Figure:
    stored = arrays(folder, f"{_file_name(recipe)}-0")
    K = stored["K"].astype(float)
    return plot_operator(K, (SIDE, SIDE), title=f"{recipe}: rows of K", use=stored["use"])


def _file_name(recipe: str) -> str:
    """The words that a cell's files begin with."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", recipe)


def draw_alone(folder: Path) -> Figure:
    """The K that was learned alone, from the DCT."""
    return _draw_operator(folder, _recipes(read(folder))[0])


def draw_photograph(folder: Path) -> Figure:
    """A part of a photograph that was held out; PSNR and SSIM are those of the whole."""
    records = read(folder)
    stored = arrays(folder, "None-0")
    pictures = {"observed": stored["identity"]}
    pictures |= {name: stored[key] for key, name in NAMES.items()}
    whole = select(records, kind="photograph")
    metrics = {"observed": _metrics(select(whole, baseline="identity"))}
    metrics |= {name: _metrics(select(whole, baseline=key)) for key, name in NAMES.items()}
    # K alone, and what each strategy makes of the best start.
    m = {recipe: _rows(records, recipe) for recipe in _recipes(records)}
    best = m[_best(records)]
    shown = dict.fromkeys([*list(m)[:1], *(recipe for recipe in m if m[recipe] == best)])
    for recipe in shown:
        pictures[recipe] = arrays(folder, f"{_file_name(recipe)}-0")["picture"]
        metrics[recipe] = _metrics(select(whole, recipe=recipe))
    pictures["truth"] = stored["truth"]
    grey = {name: picture / 255 for name, picture in pictures.items()}
    return plot_photograph(grey, metrics=metrics, columns=4)


def _rows(records: Sequence[Record], recipe: str) -> int:
    return select(records, recipe=recipe, kind="learned")[0]["m"]


def _metrics(records: Sequence[Record]) -> dict[str, float]:
    return {key: records[0][key] for key in ("psnr", "ssim")}


EXPERIMENT = "operators"
FIGURES = {
    "fig09a_operators_gains": draw_gains,
    "fig09b_operators_alone": draw_alone,
    "fig09e_photograph": draw_photograph,
}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
