"""Interactive curves of runs, as what plotly.js draws: plain data and layout."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypergrad.comparison.result import not_unique
from hypergrad.plotting.styles import Style, styles_of
from hypergrad.workbench.studies.report_page.runs import Record, Run, say

__all__ = ["Curves", "comparison_curves", "loss_curves"]

_SYMBOLS = {
    "o": "circle", "^": "triangle-up", "s": "square", "D": "diamond", "*": "star", "P": "cross",
    "X": "x", "v": "triangle-down", "8": "octagon", "h": "hexagon2", "<": "triangle-left",
    ">": "triangle-right", "p": "pentagon", "d": "diamond-tall", "H": "hexagon",
}  # fmt: skip
# plotly.js has no half-filled markers: a dot stands for those.
_FILLS = {"full": "", "none": "-open", "left": "-dot", "top": "-open-dot"}

# Below this relative error a gradient counts as exact.
_EXACT = 1e-6

_BASELINE = "total variation, best weight"

_LOSSES = {"train_loss": "training", "validation_loss": "held-out"}


class Curves(NamedTuple):
    """One figure: its conclusions, one for each run, and what plotly.js draws."""

    heading: str
    conclusions: list[str]
    figure: dict[str, Any]


def comparison_curves(runs: Sequence[Run]) -> list[Curves]:
    """Return the figure of error against time, if there is anything to draw.

    Names in it are escaped: plotly.js reads tags.
    """
    figure = _comparison(runs, _styles(runs))
    heading = "Error of the hypergradient against its time"
    return [Curves(heading, say(runs, _cheapest), figure)] if figure["data"] else []


def loss_curves(runs: Sequence[Run]) -> list[Curves]:
    """Return the figures of the loss over epochs and over seconds, training and held-out."""
    styles, found = _styles(runs), []
    for x, over, conclude in ("epoch", "epochs", _lowest), ("seconds", "seconds", _fastest):
        conclusions = say(runs, conclude)
        for column, name in _LOSSES.items():
            figure = _losses(runs, styles, x, column)
            if figure["data"]:
                heading = f"Loss over {over}, {name}{_formula(runs)}"
                found.append(Curves(heading, conclusions, figure))
    return found


def _styles(runs: Sequence[Run]) -> dict[tuple[str, str], Style]:
    """Return the style of each strategy of each run: of several runs all differ."""
    pairs = [(run.name, label) for run in runs for label in run.strategies]
    texts = [label if len(runs) == 1 else f"{label}:{name}" for name, label in pairs]
    styles = styles_of(texts)
    return {pair: styles[text] for pair, text in zip(pairs, texts, strict=True)}


def _comparison(runs: Sequence[Run], styles: dict[tuple[str, str], Style]) -> dict[str, Any]:
    traces = []
    for run in runs:
        for record in filter(_drawable, run.comparison):
            label = str(record["strategy"])
            traces.append(
                _trace(run, label, len(runs), styles)
                | {
                    "x": [record["over_forward"]],
                    "y": [record["relative_error"]],
                    "mode": "markers",
                    "customdata": [record.get("milliseconds")],
                    "hovertemplate": "<b>%{fullData.name}</b><br>relative error %{y:.3g}<br>"
                    "%{x:.3g} forward solves (%{customdata:.3g} ms)<extra></extra>",
                }
            )
    layout = _layout(
        {"title": {"text": "time / time of a forward solve"}, "type": "log"},
        {"title": {"text": "relative error"}, "type": "log"},
        exponentformat="power",
    )
    return {"data": traces, "layout": layout}


def _drawable(record: Record) -> bool:
    values = [record.get("over_forward"), record.get("relative_error")]
    return all(isinstance(value, (int, float)) and value > 0 for value in values)


def _losses(
    runs: Sequence[Run], styles: dict[tuple[str, str], Style], x: str, column: str
) -> dict[str, Any]:
    traces = []
    for run in runs:
        for label in run.strategies:
            epochs = [
                record
                for record in run.training
                if record.get("strategy") == label and record.get(column) is not None
            ]
            if epochs:
                points = [[record.get("epoch"), record.get("seconds")] for record in epochs]
                traces.append(
                    _trace(run, label, len(runs), styles)
                    | {
                        "x": [record.get(x) for record in epochs],
                        "y": [record[column] for record in epochs],
                        "mode": "lines+markers",
                        "customdata": points,
                        "hovertemplate": "<b>%{fullData.name}</b><br>epoch %{customdata[0]}, "
                        "%{customdata[1]:.3g} s<br>loss %{y:.5g}<extra></extra>",
                    }
                )
    levels = [level for run in runs for level in _level(run, len(runs), x)]
    if traces and column == "validation_loss":
        traces += levels
    losses = [
        record[name]
        for run in runs
        for record in run.training
        for name in _LOSSES
        if record.get(name) is not None
    ]
    losses += [level["y"][0] for level in levels]
    axis: dict[str, Any] = {"title": {"text": "training time (s)"}}
    if x == "epoch":
        epochs = max((trace["x"][-1] for trace in traces), default=0)
        axis = {"title": {"text": "epoch"}, "dtick": max(1, math.ceil(epochs / 8))}
    vertical = {"title": {"text": "loss per sample"}} | _range(losses)
    return {"data": traces, "layout": _layout(axis, vertical)}


def _formula(runs: Sequence[Run]) -> str:
    """Return the loss in words, where all runs have the same one."""
    named = {str(run.config.get("loss") or "½‖x − x†‖²") for run in runs}
    return f" ({named.pop()})" if len(named) == 1 else ""


def _level(run: Run, runs: int, x: str) -> list[dict[str, Any]]:
    """Return a line for the best operator that is not learned, where the loss is the same one."""
    by_name = {row.get("operator"): row.get("held_out_converged") for row in run.evaluation}
    level = by_name.get(_BASELINE)
    if level is None or not run.training or run.config.get("loss") is not None:
        return []
    ends = [record.get(x) or 0 for record in run.training]
    return [
        {
            "name": html.escape(_BASELINE if runs == 1 else f"{_BASELINE} ({run.name})"),
            "type": "scatter",
            "mode": "lines",
            "line": {"color": "#666666", "dash": "dot", "width": 1.5},
            "x": [min(ends), max(ends)],
            "y": [level, level],
            "hovertemplate": "<b>%{fullData.name}</b><br>loss %{y:.5g}<extra></extra>",
        }
    ]


def _range(losses: list[float]) -> dict[str, Any]:
    """Return the axis that training and held-out loss share."""
    if not losses:
        return {}
    low, high = min(losses), max(losses)
    if 0 < 10 * low <= high:
        low, high = math.log10(low), math.log10(high)
        return {"type": "log", "range": [low - 0.05 * (high - low), high + 0.05 * (high - low)]}
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    return {"range": [low - margin, high + margin]}


def _trace(run: Run, label: str, runs: int, styles: dict[tuple[str, str], Style]) -> dict[str, Any]:
    style = styles[run.name, label]
    name = label if runs == 1 else f"{label} ({run.name})"
    dash = "solid"
    if style.linestyle != "solid":
        dash = ",".join(f"{2 * length:g}px" for length in style.linestyle[1])
    return {
        "name": html.escape(name),
        "type": "scatter",
        "line": {"color": style.color, "dash": dash, "width": 2},
        "marker": {
            "color": style.color,
            "symbol": _SYMBOLS[str(style.marker)] + _FILLS.get(style.fill, "-dot"),
            "size": 9,
            "line": {"width": 1.5},
        },
    }


def _layout(x: dict[str, Any], y: dict[str, Any], **axes: Any) -> dict[str, Any]:
    common = {"automargin": True, "gridcolor": "#e4e4e4", "zeroline": False, **axes}
    return {
        "xaxis": common | x,
        "yaxis": common | y,
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1, "align": "left"},
        "showlegend": True,
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }


# ------------------------------------------------------------------------------ conclusions


def _cheapest(run: Run) -> str:
    if warning := not_unique(run.reference):
        return warning
    records = list(filter(_drawable, run.comparison))
    exact = [record for record in records if record["relative_error"] < _EXACT]
    if exact:
        best = min(exact, key=lambda record: record["over_forward"])
        return (
            f"{best['strategy']}: the exact gradient for {best['over_forward']:.1f} forward solves"
        )
    if not records:
        return ""
    best = min(records, key=lambda record: record["relative_error"])
    return (
        f"{best['strategy']}: the smallest error, {best['relative_error']:.1g}, for "
        f"{best['over_forward']:.1f} forward solves"
    )


def _by_strategy(run: Run) -> dict[str, list[Record]]:
    """Return the epochs of each strategy that have a held-out loss."""
    found: dict[str, list[Record]] = {}
    for record in run.training:
        if record.get("validation_loss") is not None:
            found.setdefault(str(record.get("strategy")), []).append(record)
    return found


def _lowest(run: Run) -> str:
    best = {
        label: min(epochs, key=lambda record: record["validation_loss"])
        for label, epochs in _by_strategy(run).items()
    }
    if not best:
        return ""
    label = min(best, key=lambda label: best[label]["validation_loss"])
    start = _by_strategy(run)[label][0]["validation_loss"]
    if best[label]["validation_loss"] >= start:
        return f"no epoch has a lower held-out loss than the start, {start:.4g}"
    return (
        f"{label}: the lowest held-out loss, {best[label]['validation_loss']:.4g} in epoch "
        f"{best[label]['epoch']} (before learning {start:.4g})"
    )


def _fastest(run: Run) -> str:
    """Return who first reaches the loss that all strategies reach."""
    epochs = _by_strategy(run)
    if len(epochs) < 2:
        return ""
    goal = max(min(record["validation_loss"] for record in records) for records in epochs.values())
    if goal >= min(records[0]["validation_loss"] for records in epochs.values()):
        return ""
    reached = {
        label: next(r["seconds"] for r in records if r["validation_loss"] <= goal)
        for label, records in epochs.items()
    }
    first = min(reached, key=reached.__getitem__)
    return (
        f"{first}: first at a held-out loss of {goal:.4g}, which all strategies reach: after "
        f"{reached[first]:.2g} s"
    )
