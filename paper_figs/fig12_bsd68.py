"""Whole photographs of BSD68, restored by learned banks of filters. Records of `bsd68.py`."""

from __future__ import annotations

from pathlib import Path

from _common import Record, main, read, select, style_of
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import mean_interval
from hypergrad.plotting import label_panels, legend_below, new_figure, tidy


def draw_learning(folder: Path) -> Figure:
    """PSNR on held-out training photographs over the seconds of updates, a panel for each model."""
    records = select(read(folder), kind="epoch", seed=0)
    models = list(dict.fromkeys((r["level"], r["model"]) for r in records))
    figure = new_figure(4.4 * len(models), 3.2)
    panels = list(figure.subplots(1, len(models), sharey=True, squeeze=False)[0])
    for panel, (level, model) in zip(panels, models, strict=True):
        mine = select(records, level=level, model=model)
        for strategy in dict.fromkeys(r["strategy"] for r in mine):
            curve = select(mine, strategy=strategy)
            style = style_of(strategy)
            panel.plot(
                [r["seconds"] for r in curve],
                [r["validation_psnr"] for r in curve],
                color=style.color,
                ls=style.linestyle,
                label=strategy,
            )
        first = panel is panels[0]
        tidy(panel, "time of the updates (s)", "PSNR, held out of training (dB)" if first else "")
    label_panels(panels, [f"{model}, noise {level}/255" for level, model in models])
    legend_below(figure, panels[0])
    return figure


def draw_gains(folder: Path) -> Figure:
    """The mean PSNR on the test photographs, best first."""
    records = read(folder)
    figure = new_figure(7.0, 3.4)
    levels = sorted({r["level"] for r in records})
    for panel, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        bars = sorted(_means(select(records, level=level)).items(), key=lambda bar: bar[1])
        names, psnr = zip(*bars, strict=True)
        panel.barh(names, psnr, color="0.6", height=0.6)
        for i, value in enumerate(psnr):
            panel.text(value, i, f" {value:.2f}", va="center", fontsize=8)
        panel.set_xlim(min(psnr[1:]) - 0.5, max(psnr) + 0.3)
        tidy(panel, f"PSNR at noise {level}/255 (dB)", "")
    return figure


def _means(records: list[Record]) -> dict[str, float]:
    """The mean of each method over its seeds; what restores nothing is left out."""
    found = {r["method"]: r["psnr"] for r in select(records, part="baselines")}
    found.pop("noisy", None)
    for r in select(records, kind="result"):
        name = f"{r['model']}, {r['strategy']}"
        seeds = select(records, kind="result", model=r["model"], strategy=r["strategy"])
        found[name] = mean_interval([other["psnr"] for other in seeds]).mean
    return found


EXPERIMENT = "bsd68"
FIGURES = {"fig12a_bsd68": draw_gains, "fig12b_learning": draw_learning}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
