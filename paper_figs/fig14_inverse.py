"""Inverse problems: the PSNR of every method, and a photograph. Records of `inverse.py`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from _common import OTHER, Record, arrays, main, read, select
from matplotlib.figure import Figure

from hypergrad.plotting import Style, label_panels, new_figure, plot_photograph, style_of, tidy
from hypergrad.plotting.styles import marker_of

NOT_LEARNED = {"total variation": style_of("differences"), "DCT": style_of("dct")}


def _style(record: Record) -> Style:
    """What is learned for the problem has the style of its strategy."""
    if record["part"] == "learned":
        return style_of(record["strategy"])
    return NOT_LEARNED.get(record["method"], OTHER)


def _label(method: str) -> str:
    """A method as a picture names it; a small l looks like a 1."""
    return method.replace(", l1 ", ", L1 ")


def _problems(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(r["problem"] for r in records))


def draw_psnr(folder: Path) -> Figure:
    """The mean PSNR of the test photographs by every method; a line at total variation."""
    records = [r for r in read(folder) if r["method"] != "observed"]
    methods, problems = list(dict.fromkeys(r["method"] for r in records)), _problems(records)
    figure = new_figure(10.0, 0.8 + 0.22 * len(methods))
    panels = list(figure.subplots(1, len(problems), sharey=True, squeeze=False).flat)
    for panel, problem in zip(panels, problems, strict=True):
        for r in select(records, problem=problem):
            look = marker_of(_style(r), 6.0)
            panel.plot(r["psnr"], methods.index(r["method"]), linestyle="none", **look)
        (level,) = select(records, problem=problem, method="total variation")
        panel.axvline(level["psnr"], color="0.45", linestyle=(0, (4, 2)), linewidth=1)
        tidy(panel, "PSNR (dB)")
        panel.margins(x=0.12)
    names = [_label(m).replace("learned for the problem, ", "learned: ") for m in methods]
    panels[0].set_yticks(range(len(methods)), names)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    label_panels(panels, problems)
    return figure


def draw_photograph(folder: Path) -> Figure:
    """One photograph: a line for each problem, by the best of each kind of method."""
    records, pictures = read(folder), {}
    for problem in _problems(records):
        mine = select(records, problem=problem)
        stored = arrays(folder, f"baselines-{problem.replace(' ', '-')}")
        shown = {name: stored[name] for name in ("truth", "observed", "total variation")}
        for part in ("denoising", "learned"):
            best = max(select(mine, part=part), key=lambda r: r["psnr"])
            words = [best["model"], best["strategy"]]
            if part == "learned":
                words.insert(0, problem)
            prefix = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([part, *words]))
            found = arrays(folder, prefix)
            name = best["method"].rpartition(", ")[0] if part == "learned" else best["method"]
            shown[_label(name)] = found["picture" if part == "learned" else problem]
        pictures |= {f"{problem}: {name}": picture / 255 for name, picture in shown.items()}
    return plot_photograph(pictures, metrics=_psnr(pictures), columns=5)


def _psnr(pictures: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of the pictures that are shown, each against the truth of its problem."""
    found = {}
    for name, picture in pictures.items():
        problem, _, method = name.partition(": ")
        if method != "truth":
            error = float(np.mean((picture - pictures[f"{problem}: truth"]) ** 2))
            found[name] = {"psnr": -10 * np.log10(error)}
    return found


EXPERIMENT = "inverse"
FIGURES = {"fig14a_inverse": draw_psnr, "fig14b_restored": draw_photograph}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
