"""Operators, patches and photographs as they are drawn, and the files that figures become."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from legible import (
    LABELS,
    assert_legible,
    comparison_record,
    histories,
    lightness,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hypergrad import plotting

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
