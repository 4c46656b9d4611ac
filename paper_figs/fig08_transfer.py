"""K and step sizes learned for one L and used at another. Records of `transfer.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import Record, main, read, select
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hypergrad._foundation.statistics import mean_interval
from hypergrad.plotting import (
    label_panels,
    new_figure,
    tidy,
)


def draw_matrix(folder: Path) -> Figure:
    """Held-out loss by L of learning (rows) and of testing (columns), a panel for each strategy."""
    records = select(read(folder), learned="K")
    strategies = list(dict.fromkeys(r["strategy"] for r in records))
    learned = sorted({r["L"] for r in records})
    tested = [*sorted({r["tested"] for r in records if r["tested"]}), None]
    means = {
        strategy: np.array(
            [[_interval(records, strategy, L, at).mean for at in tested] for L in learned]
        )
        for strategy in strategies
    }
    # What runs away (a K that was never run so long) must not wash out all others.
    everything = np.concatenate([values.ravel() for values in means.values()])
    low, high = float(everything.min()), float(np.quantile(everything, 0.9))
    figure = new_figure(10.0, 0.9 + 0.52 * len(learned))
    panels = list(figure.subplots(1, len(strategies), sharey=True))
    scale = Normalize(low, max(high, low * 1.01))
    for panel, strategy in zip(panels, strategies, strict=True):
        panel.imshow(means[strategy], cmap="Greys", norm=scale, aspect="auto")
        middle = (low + high) / 2
        for i, L in enumerate(learned):
            for j, at in enumerate(tested):
                interval = _interval(records, strategy, L, at)
                text = f"{interval.mean:.3f}"
                if math.isfinite(interval.half):
                    text += f"\n±{interval.half:.3f}"
                dark = interval.mean > middle
                where = {"ha": "center", "va": "center", "fontsize": 7}
                weight = "bold" if at == L else "normal"
                panel.text(j, i, text, color="w" if dark else "k", fontweight=weight, **where)
        panel.set_xticks(range(len(tested)), [str(at) if at else "conv." for at in tested])
        panel.set_yticks(range(len(learned)), [str(L) for L in learned])
        tidy(panel, "L it is tested at", "L it is learned at" if panel is panels[0] else "")
        panel.grid(False)
    bar = figure.colorbar(ScalarMappable(scale, "Greys"), ax=panels, pad=0.01, extend="max")
    bar.set_label("held-out loss,\n½‖x − x†‖² per sample", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    label_panels(panels, [f"K learned by {strategy}" for strategy in strategies])
    return figure


def _interval(records: Sequence[Record], strategy: str, L: int, at: int | None):
    return mean_interval([r["loss"] for r in select(records, strategy=strategy, L=L, tested=at)])


EXPERIMENT = "transfer"
FIGURES = {"fig08a_transfer": draw_matrix}

if __name__ == "__main__":
    main(EXPERIMENT, FIGURES)
