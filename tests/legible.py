"""Records to draw, and whether a figure can be read: no text on other text."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

LABELS = ["full", "truncation:k=1", "ergodic:tail=0.5", "limit:steps=10"]


def lightness(color: Any) -> float:
    """CIE L* from its definition."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ (0.2126, 0.7152, 0.0722)
    return float(116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y)


def comparison_record(strategy: str, error: float | None, time: float | None) -> dict[str, Any]:
    return {"strategy": strategy, "relative_error": error, "milliseconds": time}


def history(strategy: str, epochs: int = 20, *, level: float = 0.1) -> list[dict[str, Any]]:
    losses = level + 0.2 * np.exp(-np.arange(epochs + 1) / 4)
    return [
        {"strategy": strategy, "epoch": i, "seconds": 1.5 * i, "train_loss": float(loss),
         "validation_loss": 1.1 * float(loss)}
        for i, loss in enumerate(losses)
    ]  # fmt: skip


def histories(labels: list[str] = LABELS, epochs: int = 20) -> list[dict[str, Any]]:
    return [r for i, s in enumerate(labels) for r in history(s, epochs, level=0.1 + 0.01 * i)]


def shown_texts(figure: Figure) -> list[Text]:
    """All texts that are drawn: not empty, and no tick labels outside the view."""
    figure.draw_without_rendering()
    outside = set()
    for axes, name in itertools.product(figure.axes, ("xaxis", "yaxis")):
        axis = getattr(axes, name)
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            # The labels of ticks outside are not drawn, nor those of a picture's axes.
            if not low <= tick.get_loc() <= high or not axes.axison:
                outside |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [t for t in texts if t.get_visible() and t.get_text().strip() and t not in outside]


def assert_legible(figure: Figure) -> None:
    """No text touches another or leaves the figure, none is tiny, and the page is wide enough."""
    assert figure.get_figwidth() <= 10 + 1e-9
    texts = shown_texts(figure)
    assert all(float(text.get_fontsize()) >= 7 for text in texts)
    # An annotation's own extent would count its arrow too.
    boxes = [(text.get_text(), Text.get_window_extent(text).padded(-0.5)) for text in texts]
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), (name, other)


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]
