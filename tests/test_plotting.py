"""Figures: what is drawn is what was given, styles can be told apart, no text on other text."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

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
LABELS = ["full", "truncation:k=1", "ergodic:tail=0.5", "limit:steps=10"]


# --- helpers --------------------------------------------------------------------------------------


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


# --- operators ------------------------------------------------------------------------------------


def test_operator_rows_are_sorted_by_use() -> None:
    rng = np.random.default_rng(0)
    K, use = rng.standard_normal((175, 64)), rng.uniform(size=175)
    figure: Any = plotting.plot_operator(K, (8, 8), title="K after 50 epochs", use=use)
    axes, bar = figure.axes
    mosaic = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert mosaic.shape == (11 * 9 - 1, 16 * 9 - 1)
    for place, row in enumerate(sorted(range(175), key=lambda i: -use[i])):
        top, left = 9 * (place // 16), 9 * (place % 16)
        shown = mosaic[top : top + 8, left : left + 8].ravel()
        np.testing.assert_array_equal(shown, K[row] / np.abs(K[row]).max())
    assert np.isfinite(mosaic).sum() == K.size  # gaps, and the one empty place, are blank
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    title, scale = "K after 50 epochs", "scaled entry"
    assert (axes.get_title(), bar.get_ylabel()) == (title, scale)
    sizes = np.abs(K).max(axis=1)
    below = " ".join(axes.get_xlabel().split())
    assert below == (
        f"175 rows, each on its own scale (largest entry {sizes.min():.2g} to {sizes.max():.2g}); "
        "sorted from the upper left by use, the mean of |Kx| over data"
    )
    assert_legible(figure)


def test_the_colours_of_an_operator_are_white_at_zero_and_darken_to_both_sides() -> None:
    figure: Any = plotting.plot_operator(np.eye(4), (2, 2), title="K")
    image = figure.axes[0].images[0]
    assert image.norm(0.0) == 0.5
    colors = image.get_cmap()(np.linspace(0, 1, 51))[:, :3]
    np.testing.assert_allclose(colors[25], 1.0, atol=0.01)
    light = np.array([lightness(tuple(color)) for color in colors])
    assert np.diff(light[:26]).min() > 0
    assert np.diff(light[25:]).max() < 0
    assert colors[0, 2] > colors[0, 0]  # blue below zero
    assert colors[-1, 0] > colors[-1, 2]  # red above


@pytest.mark.parametrize(
    ("m", "shape", "columns"), [(1, (8, 8), 16), (3, (2, 5), 16), (200, (1, 30), 1)]
)
def test_operators_of_other_shapes(m: int, shape: tuple[int, int], columns: int) -> None:
    K = np.random.default_rng(0).standard_normal((m, shape[0] * shape[1]))
    title = "K learned with limit:steps=10 on photographs for 50 epochs"
    figure: Any = plotting.plot_operator(K, shape, title=title, columns=columns)
    mosaic = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    shown = mosaic[: shape[0], : shape[1]].ravel()
    np.testing.assert_array_equal(shown, K[0] / np.abs(K[0]).max())  # unsorted
    assert_legible(figure)


def test_operator_says_what_is_wrong() -> None:
    K = np.ones((3, 4))
    for bad, message in [
        ({"shape": (3, 2)}, r"shape must be \(h, w\) with h w = 4; got \(3, 2\)"),
        ({"shape": (4,)}, r"a signal has \(1, 4\)"),
        ({"K": np.ones(4)}, r"K must be matrices of one shape, not empty; got {'K': \(4,\)}"),
        ({"K": np.ones((0, 4))}, "not empty"),
        ({"K": np.full((3, 4), np.nan)}, "NaN or inf in K"),
        ({"use": [1.0, 2.0]}, "for each of the 3 rows"),
        ({"columns": 0}, "columns must be at least 1; got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.plot_operator(**({"K": K, "shape": (2, 2), "title": "K"} | bad))
    plotting.plot_operator(0 * K, (2, 2), title="zero").canvas.draw()


# --- pictures -------------------------------------------------------------------------------------


def test_patches_with_their_psnr() -> None:
    truth = np.random.default_rng(0).uniform(size=(6, 64))
    rows = {"noisy": truth + 0.1, "limit:steps=10": truth - 0.01, "truth": truth}
    figure: Any = plotting.plot_patches(rows, (8, 8))
    for (key, i), axes in zip(itertools.product(rows, range(6)), figure.axes, strict=True):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), rows[key][i].reshape(8, 8))
        assert image.get_clim() == (0, 1)
        assert image.get_interpolation() == "nearest"
        assert axes.get_ylabel() == (key if i == 0 else "")
        expected = {"noisy": "20.0 dB", "limit:steps=10": "40.0 dB", "truth": ""}
        assert axes.get_xlabel() == expected[key]
    assert_legible(figure)


@pytest.mark.parametrize("count", [1, 14])
def test_patches_without_truth_and_of_another_shape(count: int) -> None:
    figure: Any = plotting.plot_patches({"noisy": np.ones((count, 12))}, (3, 4))
    assert all(axes.get_xlabel() == "" for axes in figure.axes)
    assert_legible(figure)
    assert_legible(plotting.plot_patches({k: np.ones((count, 12)) for k in ("a", "truth")}, (3, 4)))


def test_photographs_with_their_numbers() -> None:
    truth = np.random.default_rng(0).uniform(size=(256, 256))
    names = ["observed", *LABELS, "dct", "my_package.my_module:MyStrategy,momentum=0.9", "truth"]
    pictures = {name: truth + (name != "truth") * 0.1 / (i + 1) for i, name in enumerate(names)}
    metrics = {"full": {"psnr": 12.345, "ssim": 0.98765}, "dct": {"ssim": 0.5}, "another": {}}
    figure: Any = plotting.plot_photograph(pictures, metrics=metrics)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "observed\n20.00 dB"
    assert titles[1] == "full\n12.35 dB, SSIM 0.988"
    assert titles[2] == "truncation:k=1\n29.54 dB"
    assert titles[5] == "dct\n35.56 dB, SSIM 0.500"
    assert titles[7] == "truth"
    assert "".join(titles[6].split("\n")[:-1]) == names[6]
    for axes, picture in zip(figure.axes, pictures.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
        assert axes.images[0].get_clim() == (0, 1)
    assert_legible(figure)


@pytest.mark.parametrize(("shape", "columns"), [((256, 256), 4), ((120, 120), 6), ((90, 200), 3)])
def test_a_pixel_is_a_whole_number_of_dots(shape: tuple[int, int], columns: int) -> None:
    pictures = {name: np.eye(*shape) for name in "abcdefg"}
    metrics = {name: {"psnr": 23.45, "ssim": 0.5} for name in pictures}
    figure: Any = plotting.plot_photograph(pictures, metrics=metrics, columns=columns)
    for axes in figure.axes:
        box = axes.get_window_extent()
        times = box.width / shape[1]
        assert times == pytest.approx(round(times))
        assert box.height == pytest.approx(times * shape[0])
        assert axes.images[0].get_interpolation() == "nearest"
    assert_legible(figure)


def test_pictures_that_must_shrink_are_averaged() -> None:
    figure: Any = plotting.plot_photograph({name: np.ones((500, 512)) for name in "abcd"})
    assert {axes.images[0].get_interpolation() for axes in figure.axes} == {"antialiased"}
    assert_legible(figure)


def test_pictures_say_what_is_wrong() -> None:
    one = np.ones((4, 4))
    for pictures, options, message in [
        ({}, {}, "pictures must be matrices of one shape, not empty; got none"),
        ({"a": one, "b": np.ones((4, 5))}, {}, r"'b': \(4, 5\)"),
        ({"a": np.ones((4, 4, 3))}, {}, r"'a': \(4, 4, 3\)"),
        (
            {"a": one},
            {"truth": np.ones((5, 5))},
            "pictures and truth must be matrices of one shape",
        ),
        ({"a": one}, {"columns": 7}, "columns must be from 1 to 6"),
        ({"a": one * np.inf}, {}, "pictures must be finite; got NaN or inf in a"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.plot_photograph(pictures, **options)
    for rows, shape, message in [
        ({}, (2, 2), "rows must be matrices"),
        ({"a": one}, (2, 3), "h w = 4"),
        ({"a": one, "b": one[:3]}, (2, 2), "of one shape"),
        ({"a": np.ones((40, 4))}, (2, 2), "few enough patches for a page's width; got 40"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.plot_patches(rows, shape)


# --- files and global state -----------------------------------------------------------------------


def test_files_are_written_whole_and_alike(tmp_path: Path) -> None:
    figure: Any = plotting.plot_photograph({"a": np.eye(8)})
    paths = plotting.save_figure(figure, tmp_path / "new" / "fig1.v2")
    assert paths == [tmp_path / "new" / f"fig1.v2.{suffix}" for suffix in ("pdf", "png")]
    assert sorted((tmp_path / "new").iterdir()) == paths
    assert paths[0].read_bytes().startswith(b"%PDF")
    with Image.open(paths[1]) as image:
        assert image.size == tuple(np.floor(figure.get_size_inches() * 150 + 1e-6).astype(int))
    before = [path.read_bytes() for path in paths]
    again = plotting.save_figure(plotting.plot_photograph({"a": np.eye(8)}), tmp_path / "again")
    assert [path.read_bytes() for path in again] == before
    with pytest.raises(ValueError, match=r"no suffix; got .*\.png"):
        plotting.save_figure(figure, tmp_path / "figure.png")


def test_nothing_is_written_where_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure: Any = plotting.plot_photograph({"a": np.eye(8)})

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fails)
    with pytest.raises(RuntimeError, match="no ink"):
        plotting.save_figure(figure, tmp_path / "figure")
    assert list(tmp_path.iterdir()) == []


def test_global_settings_are_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures = [
        plotting.plot_comparison([comparison_record("full", 0.1, 1.0)]),
        plotting.plot_loss_curves(histories()),
        plotting.plot_operator(np.eye(4), (2, 2), title="K"),
        plotting.plot_patches({"a": np.eye(4)}, (2, 2)),
        plotting.plot_photograph({"a": np.eye(4)}),
    ]
    plotting.save_figure(figures[0], tmp_path / "figure")
    assert dict(matplotlib.rcParams) == before
    assert all(isinstance(figure.canvas, FigureCanvasAgg) for figure in figures)
