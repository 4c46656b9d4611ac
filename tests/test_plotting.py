"""Curves and comparisons: what is drawn is what was given, and styles can be told apart."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legible import (
    LABELS,
    assert_legible,
    comparison_record,
    histories,
    history,
    legend_labels,
    lightness,
    shown_texts,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

from hypergrad import plotting
from hypergrad.plotting import STYLES, style_of, styles_of

STRATEGIES = (
    "full",
    "truncation",
    "ergodic",
    "limit",
    "exact",
    "jaxopt",
    "optimistix",
    "piggyback",
)
BASELINES = ("identity", "shrinkage", "untrained", "dct", "differences", "reference", "truth")


# --- styles ---------------------------------------------------------------------------------------


def test_every_strategy_and_baseline_has_a_style() -> None:
    assert set(STYLES) == {*STRATEGIES, *BASELINES}


@pytest.mark.parametrize("field", ["color", "linestyle", "marker"])
def test_styles_differ_pairwise_in_every_respect(field: str) -> None:
    assert len({getattr(style, field) for style in STYLES.values()}) == len(STYLES)


@pytest.mark.parametrize(
    ("names", "least"), [(STRATEGIES, 7), (STRATEGIES[:4], 20), (BASELINES, 7)]
)
def test_styles_differ_in_lightness(names: tuple[str, ...], least: float) -> None:
    values = sorted(lightness(STYLES[name].color) for name in names)
    assert np.diff(values).min() >= least
    assert values[-1] < 80  # seen on white paper


def test_the_name_before_the_colon_decides() -> None:
    for label, name in (("truncation:k=5", "truncation"), ("limit", "limit"), ("dct:n=8", "dct")):
        assert style_of(label) == STYLES[name]
    assert style_of("mine:rate=1") == style_of("mine:rate=2") == style_of("mine")
    assert len({style_of(f"strategy{i}") for i in range(30)}) > 25


def test_alone_it_imports_no_jax_no_pyplot_and_fallbacks_are_stable() -> None:
    package = [str(Path(plotting.__file__).parents[1])]
    code = (
        # The package without its face, which would import JAX.
        "import sys, types; bare = types.ModuleType('hypergrad')\n"
        f"bare.__path__ = {package}; sys.modules['hypergrad'] = bare\n"
        "from hypergrad import plotting\n"
        "print(plotting.style_of('mine:a=1'))\n"
        "print(sorted({'jax', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    environment = {"PYTHONHASHSEED": "1", "HOME": str(Path.home()), "PATH": ""}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(style_of("mine")), "[]"]


def test_options_of_one_strategy_are_told_apart() -> None:
    options = [f"{name}:k={k}" for name in ("full", "ergodic", "truncation") for k in range(8)]
    styles = styles_of([*options, "limit", options[0]])
    assert list(styles) == [*options, "limit"]
    assert len(set(styles.values())) == len(styles)
    assert styles["limit"] == STYLES["limit"]
    assert styles["full:k=0"] == STYLES["full"]
    for name in ("full", "ergodic", "truncation"):
        family = [styles[f"{name}:k={k}"] for k in range(8)]
        assert {style.marker for style in family} == {STYLES[name].marker}
        assert all(a.fill != b.fill for a, b in itertools.pairwise(family))
        steps = np.diff([lightness(style.color) for style in family])
        assert np.all(steps > 1) or np.all(steps < -1)


# --- the comparison -------------------------------------------------------------------------------


def drawn_points(figure: Figure) -> dict[str, Any]:
    """The marker of each label; lines from a far label to its point have no label."""
    lines: Any = figure.axes[0].lines
    return {line.get_label(): line for line in lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize("column", ["over_forward", "milliseconds"])
def test_comparison_draws_and_names_each_record_once(column: str) -> None:
    numbers = {"full": (1e-3, 40.0), "truncation:k=1": (0.3, 2.0), "limit:steps=1": (0.3, 2.0)}
    records = [
        {"strategy": s, "relative_error": error, "milliseconds": 7.0} | {column: time}
        for s, (error, time) in numbers.items()
    ]
    figure: Any = plotting.plot_comparison(records)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    unit = {"over_forward": "forward solves", "milliseconds": "ms"}[column]
    assert axes.get_xlabel() == f"time per hypergradient ({unit})"
    assert axes.get_ylabel() == "relative error of the hypergradient"
    drawn = drawn_points(figure)
    assert list(drawn) == [text.get_text() for text in axes.texts] == list(numbers)
    for label, (error, time) in numbers.items():
        assert drawn[label].get_xydata().tolist() == [[time, error]]
        assert drawn[label].get_marker() == style_of(label).marker
        assert drawn[label].get_color() == style_of(label).color
    assert axes.get_title() == ""
    assert not figure.legends
    assert_legible(figure)


def test_comparison_is_in_milliseconds_where_one_record_has_nothing_else() -> None:
    records = [comparison_record("full", 0.1, 3.0), comparison_record("limit", 0.1, 4.0)]
    records[0]["over_forward"] = 1.5
    figure: Any = plotting.plot_comparison(records)
    assert figure.axes[0].get_xlabel() == "time per hypergradient (ms)"
    assert drawn_points(figure)["full"].get_xydata().tolist() == [[3.0, 0.1]]


def test_the_title_is_the_fastest_of_the_accurate() -> None:
    records = [
        comparison_record(*given)
        for given in (("truncation", 0.3, 1.0), ("limit:cgls", 9.9e-15, 16.04), ("full", 1e-14, 49))
    ]
    figure: Any = plotting.plot_comparison(records)
    assert figure.axes[0].get_title() == "limit:cgls: error 1e-14 in 16 ms"
    relative = [r | {"over_forward": 1.179} for r in records[:2]]
    failed = [{"strategy": "jaxopt", "error": "ImportError: no"}]
    figure = plotting.plot_comparison([*relative, *failed])
    title = "limit:cgls: error 1e-14 for 1.2 forward solves\nnot drawn: jaxopt"
    assert figure.axes[0].get_title() == title
    assert_legible(figure)


def test_comparison_names_what_it_cannot_draw() -> None:
    nothing = [
        {"strategy": "jaxopt", "error": "ImportError: no"},
        comparison_record("ergodic", None, 1.0),
        comparison_record("exact", 0.0, 1.0),
        comparison_record("limit", float("nan"), 1.0),
    ]
    figure: Any = plotting.plot_comparison([comparison_record("full", 0.1, 3.0), *nothing])
    assert list(drawn_points(figure)) == ["full"]
    assert figure.axes[0].get_title() == "not drawn: jaxopt, ergodic, exact, limit"
    assert_legible(figure)
    with pytest.raises(ValueError, match="none such among 4"):
        plotting.plot_comparison(nothing)


@pytest.mark.parametrize(("spread", "scale"), [(0, 1e-3), (1, 1e-9), (1, 300), (3, 0.1), (9, 1e-9)])
def test_comparison_has_tick_numbers_at_any_scale(spread: int, scale: float) -> None:
    records = [comparison_record(s, scale * 10 ** (spread * i / 3), 2.0 + i)
               for i, s in enumerate(LABELS)]  # fmt: skip
    figure: Any = plotting.plot_comparison(records)
    texts = shown_texts(figure)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(ticks) >= 2
        assert all(tick.label1 in texts for tick in ticks)
        powers = [re.search(r"\^\{(.*?)\}", tick.label1.get_text()) for tick in ticks]
        assert not any(power and "." in power[1] for power in powers)
    assert_legible(figure)


def test_comparison_of_many_long_labels_is_legible() -> None:
    labels = [f"{name}={k}" for name in ("truncation:k", "limit:steps") for k in (1, 2, 5, 10, 50)]
    labels += ["my_package.my_module:momentum=0.9,warm=True", "mmmmmmmm:wwwwww=5"]
    failed = [{"strategy": f"optimistix:rtol=1e-{i}", "error": "no"} for i in range(9)]
    records = [comparison_record(s, 0.5 / (i + 1), i + 1.0) for i, s in enumerate(labels)]
    figure: Any = plotting.plot_comparison([*records, *failed])
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert list(drawn_points(figure)) == shown == labels
    axes = figure.axes[0]
    for line, text in itertools.product(drawn_points(figure).values(), axes.texts):
        marker = axes.transData.transform(line.get_xydata()[0])
        assert not Text.get_window_extent(text).contains(*marker), text.get_text()
    assert_legible(figure)


def test_curves_are_named_where_they_end() -> None:
    """Two that end at one point, one far below, and one that leaves the axes before its end."""
    figure: Any = plotting.new_figure(5.0, 3.0)
    axes = figure.add_subplot()
    ends = {"full": 1.0, "limit": 1.0, "exact": 0.1}
    for name, end in ends.items():
        axes.plot([0, 1], [0.5, end], label=name)
    axes.plot([0, 1, 2], [0.5, 0.6, 9.0], label="leaves")
    axes.plot([0, 1], [0.2, 0.2])  # has no name
    axes.set_ylim(0, 1.1)
    plotting.label_curves(axes)
    assert {text.get_text(): text.xy[1] for text in axes.texts} == ends | {"leaves": 0.6}
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["exact"] < heights["leaves"] < min(heights["full"], heights["limit"])
    assert_legible(figure)


# --- loss curves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "label"), [("epoch", "epoch"), ("seconds", "training time (s)")])
def test_loss_curves_draw_the_records(x: Any, label: str) -> None:
    records = histories()
    figure: Any = plotting.plot_loss_curves(list(reversed(records)), x=x)
    training, held_out = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["training", "held-out"]
    assert [axes.get_xlabel() for axes in figure.axes] == [label, label]
    assert training.get_ylabel() == "loss, ½‖x − x†‖² per sample"
    for axes, column in ((training, "train_loss"), (held_out, "validation_loss")):
        assert {line.get_label() for line in axes.lines} == set(LABELS)
        for line in axes.lines:
            run = [record for record in records if record["strategy"] == line.get_label()]
            expected = [[record[x], record[column]] for record in run]
            np.testing.assert_array_equal(line.get_xydata(), expected)
            assert line.get_marker() == style_of(str(line.get_label())).marker
    assert sorted(legend_labels(figure)) == sorted(LABELS)
    assert_legible(figure)


def test_coinciding_curves_have_markers_at_different_places_and_other_widths() -> None:
    records = [r for s in ("truncation:k=1", "limit:steps=1") for r in history(s, 50)]
    lines: list[Any] = list(plotting.plot_loss_curves(records).axes[0].lines)
    places = []
    for start, step in (line.get_markevery() for line in lines):
        places.append(set(range(start, 51, step)))
    assert places[0]
    assert places[1]
    assert not places[0] & places[1]
    assert lines[0].get_linewidth() > lines[1].get_linewidth() + 1  # the one below looks out


@pytest.mark.parametrize("span", [1e-4, 0.1, 10.0])
def test_baselines_are_labelled_levels(span: float) -> None:
    baselines = {name: 0.12 + span * i for i, name in enumerate(BASELINES)}
    figure: Any = plotting.plot_loss_curves(histories(), baselines=baselines)
    training, held_out = figure.axes
    assert len(training.lines) == len(LABELS)
    levels = held_out.lines[len(LABELS) :]
    assert [line.get_ydata()[0] for line in levels] == list(baselines.values())
    assert [line.get_linestyle() for line in levels] == ["--"] * len(levels)
    assert {text.get_text(): text.xy[1] for text in held_out.texts} == baselines
    heights = [text.get_position()[1] for text in held_out.texts]
    assert heights == sorted(heights, reverse=True)  # drawn from the highest down
    assert held_out.get_yscale() == ("log" if span == 10 else "linear")
    assert_legible(figure)


def test_loss_curves_cope_with_little() -> None:
    records = [record | {"validation_loss": None} for record in histories(epochs=0)]
    figure: Any = plotting.plot_loss_curves(records)
    assert figure.axes[1].get_title() == "held-out (none recorded)"
    assert np.isnan(figure.axes[1].lines[0].get_ydata()).all()
    assert_legible(figure)
    diverged = history("full")
    diverged[5]["train_loss"] = float("inf")
    assert_legible(plotting.plot_loss_curves(diverged))


def test_loss_curves_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="x must be one of epoch, seconds; got 'time'"):
        plotting.plot_loss_curves(histories(), x="time")  # pyright: ignore[reportArgumentType]
    for plot in (plotting.plot_comparison, plotting.plot_loss_curves):
        with pytest.raises(ValueError, match="records must not be empty"):
            plot([])
    with pytest.raises(ValueError, match="each epoch of a strategy once"):
        plotting.plot_loss_curves([*history("full"), *history("full")])
    with pytest.raises(ValueError, match="baselines must be finite"):
        plotting.plot_loss_curves(histories(), baselines={"dct": float("nan")})
    for key in ("strategy", "epoch", "train_loss"):
        with pytest.raises(ValueError, match=f"got one without .*{key}"):
            plotting.plot_loss_curves(
                [{k: v for k, v in r.items() if k != key} for r in histories()]
            )
