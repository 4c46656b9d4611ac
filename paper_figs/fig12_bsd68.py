"""Photographs of BSD68, restored by banks of filters. Records of `bsd68.py`."""

from __future__ import annotations

from pathlib import Path

from _common import Record, main, read, select, style_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import Interval, mean_interval
from hypergrad.plotting import SMALL, label_panels, legend_below, new_figure, tidy

COMPARED = "l1 24x5x5"
LEVEL = 25

# Mean PSNR in dB on BSD68 at noise 25/255. The first two on the noise of the experiment, measured
# (experiments/bsd68.md says how); the last as its authors' successors list it (Zhang et al. 2017).
PEERS = {"CRR-NN": 28.10, "PyLOpt, not convex": 28.46, "BM3D, published": 28.57}


def draw(folder: Path) -> Figure:
    """What the models reach on the test photographs; how each strategy learns the compared one."""
    records = select(read(folder), level=LEVEL)
    figure = new_figure(10.0, 3.9)
    panels = list(figure.subplots(1, 2, width_ratios=(1.15, 1)))
    _draw_models(panels[0], records)
    _draw_learning(panels[1], select(records, kind="epoch", model=COMPARED))
    label_panels(panels, ["68 photographs, noise 25/255", f"learning {COMPARED}"])
    legend_below(figure, panels[1])
    return figure


def _draw_models(panel: Axes, records: list[Record]) -> None:
    """The mean PSNR with its interval over seeds, best above."""
    found = {**_reached(records), **{name: Interval(psnr, 0.0, 1) for name, psnr in PEERS.items()}}
    bars = sorted(found.items(), key=lambda bar: bar[1].mean)
    for i, (name, psnr) in enumerate(bars):
        strategy = name.partition(", ")[2]
        color = "0.8" if name in PEERS else style_of(strategy).color if strategy else "0.55"
        panel.barh(i, psnr.mean, color=color, height=0.62)
        panel.text(psnr.mean, i, f" {psnr.mean:.2f}", va="center", fontsize=SMALL)
    panel.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=SMALL)
    panel.set_xlim(bars[0][1].mean - 0.4, bars[-1][1].mean + 0.25)
    tidy(panel, "PSNR (dB)", "")


def _reached(records: list[Record]) -> dict[str, Interval]:
    found: dict[str, list[float]] = {}
    for r in select(records, kind="result"):
        name = f"{r['model']}, {r['strategy']}" if "strategy" in r else r["model"]
        found.setdefault(name, []).append(r["psnr"])
    del found["noisy"]  # far below the others
    return {name: mean_interval(psnr) for name, psnr in found.items()}


def _draw_learning(panel: Axes, records: list[Record]) -> None:
    """PSNR held out of training over the seconds of updates, a line for each seed."""
    runs = dict.fromkeys((r["strategy"], r["seed"]) for r in records)
    for strategy, seed in runs:
        curve = select(records, strategy=strategy, seed=seed)
        style = style_of(strategy)
        panel.plot(
            [r["seconds"] for r in curve],
            [r["validation_psnr"] for r in curve],
            color=style.color,
            ls=style.linestyle,
            lw=1.2,
            label=strategy if seed == 0 else None,
        )
    tidy(panel, "time of the updates (s)", "PSNR held out of training (dB)")


EXPERIMENT = "bsd68"
FIGURES = {"fig12_bsd68": draw}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
