"""Quantised speech and what is restored of it. Records of `dequantization.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import DUAL, OTHER, PRIMAL, TRUTH, Record, arrays, main, read, select
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import paired_interval
from hypergrad.plotting import Style, draw_curve, label_panels, legend_below, new_figure, tidy

RATE = 8000  # Hz
HOP = 128  # samples between two columns of a spectrogram
TITLES = {"box": "box alone (linear programme)", "box+quadratic": "box and quadratic"}

# What is not learned is grey; the learned K of most rows is also drawn at the L of its training.
STYLES = {
    "affine": Style("#bfbfbf", (0, (9, 2, 1, 2, 1, 2)), "H"),
    "dct": Style("#8f8f8f", (0, (2, 1)), "d"),
    "dct, row weights": Style("#666666", (0, (4, 2)), ">"),
    "learned, m = n": OTHER,
    "learned, m = 2n": PRIMAL,
}
AT_L = replace(DUAL, fill="none")


def gains(
    records: list[Record], frame: int, kind: str | None, method: str, column: str
) -> tuple[list[Any], list[Any]]:
    """Bits, and the gain over the identity there, paired over seeds."""
    bits = sorted({r["bits"] for r in select(records, frame=frame, method=method, G=kind)})
    found = []
    for at in bits:
        mine = select(records, frame=frame, bits=at, method=method, G=kind)
        identity = [
            select(records, frame=frame, bits=at, method="identity", seed=r["seed"])[0]["snr"]
            for r in mine
        ]
        found.append(paired_interval([r[column] for r in mine], identity))
    return bits, found


def draw_gains(folder: Path) -> Figure:
    """Gain in SNR on held-out clips over bits, for both lower levels and frames."""
    records = [r for r in read(folder) if r["kind"] != "clip"]
    frames = sorted({r["frame"] for r in records})
    figure = new_figure(9.4, 2.9 * len(frames))
    panels = list(figure.subplots(len(frames), 2, sharex=True, squeeze=False).flat)
    titles = []
    for panel, (frame, kind) in zip(panels, [(f, k) for f in frames for k in TITLES], strict=True):
        panel.axhline(0, color="0.5", lw=0.8)
        for i, (method, style) in enumerate(STYLES.items()):
            of = None if method == "affine" else kind
            place = (i, 1 + len(STYLES))
            curve = gains(records, frame, of, method, "snr")
            label = method.replace("dct", "DCT")
            draw_curve(panel, *curve, label=label, style=style, place=place)
        longest = [m for m in STYLES if select(records, frame=frame, G=kind, method=m)][-1]
        curve = gains(records, frame, kind, longest, "snr_at_L")
        label = "learned, most rows, stopped at its L"
        draw_curve(panel, *curve, label=label, style=AT_L, place=(0, 1))
        titles.append(f"{TITLES[kind]}, {1000 * frame / RATE:g} ms")
        tidy(panel, "bits per sample", "gain in SNR over identity (dB)")
        panel.set_xticks(sorted({r["bits"] for r in records}))
    label_panels(panels, titles)
    legend_below(figure, panels[0])
    return figure


def draw_clip(folder: Path) -> Figure:
    """A part of a held-out clip, and spectrograms of the whole of it."""
    bits = 3
    found = arrays(folder, f"baselines-{bits}-160-0-") | arrays(
        folder, f"learned-{bits}-160-0-box-quadratic-2-"
    )
    figure = new_figure(9.4, 5.0)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15))[:, 0]
    panel = above.add_subplot()
    at = 1000 * np.arange(len(found["excerpt truth"])) / RATE
    for name, look in (
        ("truth", TRUTH),
        ("observed", {"color": "0.4", "lw": 0.7, "drawstyle": "steps-mid"}),
        ("dct", {"color": DUAL.color, "lw": 1.2, "ls": "--"}),
        ("learned", {"color": PRIMAL.color, "lw": 1.2}),
    ):
        panel.plot(at, found[f"excerpt {name}"], label=name.replace("dct", "DCT"), **look)
    tidy(panel, "time (ms)", "amplitude (peak 1)")
    label_panels([panel], [f"{bits} bits, the loudest part of a clip"])
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    names = ("truth", "observed", "dct", "learned")
    panels = list(below.subplots(1, len(names), sharey=True))
    look = {"cmap": "cividis", "vmin": -80, "vmax": -20, "origin": "lower", "aspect": "auto"}
    pictures = []
    for panel, name in zip(panels, names, strict=True):
        level = found[f"spectrogram {name}"]
        extent = (0, level.shape[1] * HOP / RATE, 0, RATE / 2000)
        pictures.append(panel.imshow(level, extent=extent, **look))
        tidy(panel, "time (s)", "frequency (kHz)" if name == "truth" else "")
        panel.grid(False)
    for letter, panel, name in zip("bcde", panels, names, strict=True):
        panel.set_title(f"({letter}) {name}".replace("dct", "DCT"), fontsize=9, loc="left")
    bar = below.colorbar(pictures[-1], ax=panels, pad=0.01, aspect=25)
    bar.set_label("level (dB, full scale 0)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


EXPERIMENT = "dequantization"
FIGURES = {"fig10a_dequantization": draw_gains, "fig10b_restored_clip": draw_clip}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
