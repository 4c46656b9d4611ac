"""Data of the package: splits that do not leak, samples that are what they claim."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from hypergrad.workbench import data


def occurs_in(patch: np.ndarray, image: np.ndarray, size: int) -> bool:
    patch = patch.reshape(size, size)
    corners = np.argwhere(image[: 1 - size or None, : 1 - size or None] == patch[0, 0])
    return any(np.array_equal(image[i : i + size, j : j + size], patch) for i, j in corners)


# --- the module -----------------------------------------------------------------------------------


def test_imports_no_jax_and_no_matplotlib() -> None:
    for path in Path(data.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        walked = list(ast.walk(tree))
        names = [alias.name for n in walked if isinstance(n, ast.Import) for alias in n.names]
        names += [n.module or "" for n in walked if isinstance(n, ast.ImportFrom)]
        foundation = tuple(
            f"hypergrad._foundation.{name}" for name in ("arrays", "errors", "quality")
        )
        names = [n for n in names if not n.startswith(("hypergrad.workbench.data", *foundation))]
        assert not {name.split(".")[0] for name in names} & {"jax", "matplotlib", "hypergrad"}
        at_the_top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not any("skimage" in ast.dump(n) or "soundfile" in ast.dump(n) for n in at_the_top)


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "indices",
    [slice(1, 4), [4, 0], np.array([3]), np.array([True, False, True, False, False]), slice(0, 0)],
)
def test_take_keeps_rows_together(indices) -> None:
    x = np.arange(20.0).reshape(5, 4)
    samples = data.Samples(x + 100, x, (2, 2), ("a", "b"), np.array([0, 1, 0, 1, 0]))
    taken = samples.take(indices)
    expected = np.arange(5)[indices]
    assert len(taken) == len(expected)
    np.testing.assert_array_equal(taken.x_true[:, 0], 4.0 * expected)
    np.testing.assert_array_equal(taken.x_tilde, taken.x_true + 100)
    np.testing.assert_array_equal(taken.source_index, expected % 2)
    assert (taken.shape, taken.source) == ((2, 2), ("a", "b"))


@pytest.mark.parametrize(
    ("x_tilde", "shape", "index"),
    [((3, 4), (2, 2), 3), ((2, 4), (2, 3), 2), ((2, 4), (2, 2), 3), ((2, 2, 2), (2, 2), 2)],
)
def test_samples_refuse_shapes_that_disagree(x_tilde, shape, index) -> None:
    with pytest.raises(ValueError, match=r"must be .*prod\(shape\).*; got .*flatten"):
        data.Samples(np.zeros(x_tilde), np.zeros((2, 4)), shape, ("a",), np.zeros(index, int))


# --- photographs and patches ----------------------------------------------------------------------


def test_photographs_are_split_without_overlap() -> None:
    splits = data.PHOTOGRAPHS_TRAIN, data.PHOTOGRAPHS_CHOOSE, data.PHOTOGRAPHS_HELD_OUT
    names = [name for split in (*splits, data.PHOTOGRAPHS_LARGE) for name in split]
    assert len(set(names)) == len(names) == 8


ALL_PHOTOGRAPHS = (
    *data.PHOTOGRAPHS_TRAIN,
    *data.PHOTOGRAPHS_CHOOSE,
    *data.PHOTOGRAPHS_HELD_OUT,
    *data.PHOTOGRAPHS_LARGE,
)


@pytest.mark.parametrize("name", ALL_PHOTOGRAPHS)
def test_photograph_is_grey_in_the_unit_interval(name: str) -> None:
    original = getattr(skimage.data, name)() / 255.0
    if original.ndim == 3:  # the luma of ITU-R BT.709
        original = original @ np.array([0.2125, 0.7154, 0.0721])
    image = data.photograph(name)
    assert image.dtype == np.float64
    assert 0 <= image.min() < image.max() <= 1
    np.testing.assert_allclose(image, original, atol=1e-12)


@pytest.mark.parametrize("name", ["moon", "", "Camera"])
def test_unknown_photograph_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"one of astronaut, .*retina; got '{name}': choose"):
        data.photograph(name)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_random_patches_occur_in_their_image_in_turn(size: int) -> None:
    images = {name: data.photograph(name) for name in ("coins", "camera", "chelsea")}
    patches = data.random_patches(images, 20, size=size, rng=np.random.default_rng(3))
    assert patches.shape == (20, size * size)
    for i, patch in enumerate(patches):
        assert occurs_in(patch, list(images.values())[i % 3], size)


def test_random_patches_reach_every_place() -> None:
    image = np.arange(12.0).reshape(3, 4)
    patches = data.random_patches({"a": image}, 400, size=2, rng=np.random.default_rng(0))
    counts = {corner: np.sum(patches[:, 0] == corner) for corner in (0, 1, 2, 4, 5, 6)}
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 400 / 6 / 2


def test_random_patches_are_determined_by_the_generator() -> None:
    images = {"rocket": data.photograph("rocket")}
    first, again, other = (
        data.random_patches(images, 5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_noisy_patches_have_the_noise_asked_for(noise: float) -> None:
    samples = data.noisy_patches(data.PHOTOGRAPHS_TRAIN, 1000, noise=noise, seed=5)
    residual = samples.x_tilde - samples.x_true
    assert residual.std() == pytest.approx(noise, rel=0.02)
    assert abs(residual.mean()) <= 4 * noise / math.sqrt(residual.size)
    assert (len(samples), samples.shape, samples.x_tilde.dtype) == (1000, (8, 8), np.float64)
    assert samples.source == data.PHOTOGRAPHS_TRAIN
    np.testing.assert_array_equal(np.bincount(samples.source_index), 250)


def test_noise_scales_with_the_seed_fixed() -> None:
    weak, strong = (data.noisy_patches("camera", 50, noise=n, seed=9) for n in (0.1, 0.2))
    np.testing.assert_array_equal(weak.x_true, strong.x_true)
    np.testing.assert_allclose(2 * (weak.x_tilde - weak.x_true), strong.x_tilde - strong.x_true)
    assert weak.source == ("camera",)


def test_noisy_patches_name_the_image_a_patch_comes_from() -> None:
    images = {"zeros": np.zeros((9, 9)), "ones": np.ones((9, 9))}
    samples = data.noisy_patches(images, 7, size=3, seed=0)
    named = np.array(samples.source)[samples.source_index]
    np.testing.assert_array_equal(named == "ones", samples.x_true[:, 0] == 1)


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_noise_must_be_a_standard_deviation(noise: float) -> None:
    with pytest.raises(ValueError, match=rf"noise must be .*; got {noise}: "):
        data.noisy_patches("camera", 2, noise=noise, seed=0)


@pytest.mark.parametrize(
    ("images", "count", "size", "message"),
    [
        ({"a": np.ones((9, 9))}, 0, 8, "count must be at least 1; got 0"),
        ({"a": np.ones((9, 9))}, 4, 0, "size must be at least 1; got 0"),
        ({}, 4, 8, "images must be at least 1; got 0"),
        ({"a": np.ones((9, 9)), "b": np.ones((9, 7))}, 4, 8, r"least size=8; got \(9, 7\) for b"),
        ({"a": np.ones((9, 9, 3))}, 4, 8, r"must be \(h, w\).*; got \(9, 9, 3\) for a"),
    ],
)
def test_random_patches_refuse(images, count: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.random_patches(images, count, size=size, rng=np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (13, 17), (30, 11), (31, 64)])
@pytest.mark.parametrize(
    ("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 3), (8, 3), (8, 4), (8, 8)]
)
def test_all_patches_assemble_to_the_image(shape, size: int, stride: int) -> None:
    image = np.random.default_rng(0).standard_normal(shape)
    patches = data.all_patches(image, size=size, stride=stride)
    per_axis = [math.ceil((extent - size) / stride) + 1 for extent in shape]
    assert patches.shape == (math.prod(per_axis), size * size)
    back = data.assemble(patches, shape, size=size, stride=stride)
    np.testing.assert_allclose(back, image, rtol=1e-13, atol=1e-13)


def test_all_patches_are_ordered_row_by_row() -> None:
    image = np.arange(35.0).reshape(5, 7)
    patches = data.all_patches(image, size=3, stride=2)
    corners = [image[i, j] for i in (0, 2) for j in (0, 2, 4)]
    np.testing.assert_array_equal(patches[:, 0], corners)
    np.testing.assert_array_equal(patches[-1].reshape(3, 3), image[2:5, 4:7])


def test_assemble_averages_what_overlaps() -> None:
    corners = [(i, j) for i in (0, 2, 3) for j in (0, 2, 4)]
    patches = np.random.default_rng(1).standard_normal((9, 9))
    total, count = np.zeros((6, 7)), np.zeros((6, 7))
    for patch, (i, j) in zip(patches, corners, strict=True):
        total[i : i + 3, j : j + 3] += patch.reshape(3, 3)
        count[i : i + 3, j : j + 3] += 1
    image = data.assemble(patches, (6, 7), size=3, stride=2)
    np.testing.assert_allclose(image, total / count, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "stride"), [(4, 5), (4, 0), (11, 1), (0, 1)])
def test_patches_refuse_to_leave_gaps(size: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"must (hold|be).*; got "):
        data.all_patches(np.ones((10, 10)), size=size, stride=stride)
    with pytest.raises(ValueError, match=f"must hold; got {stride}, {size} and 10: choose"):
        data.assemble(np.ones((4, 16)), (10, 10), size=size, stride=stride)


def test_assemble_refuses_another_number_of_patches() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 64\) for .*\(12, 12\); got \(3, 64\): use"):
        data.assemble(np.ones((3, 64)), (12, 12))


# --- disparity ------------------------------------------------------------------------------------


def filled_by_loop(row: np.ndarray) -> np.ndarray:
    measured = np.flatnonzero(np.isfinite(row))
    filled = row.copy()
    for i in np.flatnonzero(~np.isfinite(row)):
        left, right = measured[measured < i], measured[measured > i]
        filled[i] = min([*row[left[-1:]], *row[right[:1]]])
    return filled


@pytest.mark.parametrize("length", [None, 64, 160])
@pytest.mark.parametrize(("split", "rows"), [("train", (0, 300)), ("test", (350, 500))])
def test_disparity_windows_are_those_of_their_row(split, rows, length) -> None:
    samples = data.disparity_rows(split, length=length, noise=0.05, seed=2)
    n = length or 741
    assert samples.shape == (n,)
    assert 0 < samples.x_true.min() <= samples.x_true.max() <= 1
    assert (samples.x_tilde - samples.x_true).std() == pytest.approx(0.05, rel=0.02)
    band = {int(samples.source[i].removeprefix("row ")) for i in np.unique(samples.source_index)}
    assert band <= set(range(*rows))
    disparity = skimage.data.stereo_motorcycle()[2].astype(float)
    for i in range(0, len(samples), 29):
        row = disparity[int(samples.source[samples.source_index[i]].removeprefix("row "))]
        cuts = filled_by_loop(row)[: 741 // n * n].reshape(-1, n) / 60
        (place,) = np.flatnonzero((np.abs(cuts - samples.x_true[i]) < 1e-12).all(axis=1))
        assert np.isfinite(row[place * n : (place + 1) * n]).mean() >= 0.9


def test_fill_takes_the_farther_neighbour() -> None:
    bad = np.inf
    rows = np.array([[bad, 1, bad, bad, 3, bad], [bad, 5, bad, 2, 2, 2], [np.nan, 4, 4, bad, 6, 6]])
    expected = [[1, 1, 1, 1, 3, 3], [5, 5, 2, 2, 2, 2], [4, 4, 4, 4, 6, 6]]
    np.testing.assert_array_equal(data.disparity._fill(rows), expected)


def test_disparity_refuses() -> None:
    with pytest.raises(ValueError, match="split must be one of train, test; got 'choose'"):
        data.disparity_rows("choose", seed=0)  # pyright: ignore[reportArgumentType]
    for length in (0, 742):
        with pytest.raises(ValueError, match=f"length must be from 1 to 741; got {length}"):
            data.disparity_rows("train", length=length, seed=0)


# --- the quantiser --------------------------------------------------------------------------------


def nearest_level(x: float, bits: int) -> float:
    """A mid-riser quantiser by exhaustive search over its levels."""
    step = 2 / 2**bits
    levels = [-1 + step / 2 + k * step for k in range(2**bits)]
    return min(levels, key=lambda level: abs(level - x))


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_quantise_gives_the_nearest_mid_riser_level(bits: int) -> None:
    x = np.concatenate([np.random.default_rng(bits).uniform(-1, 1, 1000), [-1, 0, 1]])
    q, step = data.quantise(x, bits), 2.0 ** (1 - bits)
    assert np.abs(q - x).max() <= step / 2
    np.testing.assert_array_equal(q[:-3], [nearest_level(value, bits) for value in x[:-3]])
    levels = np.unique(data.quantise(np.linspace(-1, 1, 2000), bits))
    np.testing.assert_array_equal(levels, step * (np.arange(2**bits) - 2 ** (bits - 1) + 0.5))
    np.testing.assert_array_equal(q[-3:], [-1 + step / 2, step / 2, 1 - step / 2])


@pytest.mark.parametrize("bad", [1.0001, -1.5, np.nan, np.inf])
def test_quantise_refuses_what_is_not_normalised(bad: float) -> None:
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]; got .*: divide by the peak"):
        data.quantise([0.0, bad], 3)
    with pytest.raises(ValueError, match="bits must be at least 1; got 0"):
        data.quantise([0.0], 0)


# --- decibels -------------------------------------------------------------------------------------


def test_decibels_against_a_plain_loop() -> None:
    x, x_true = np.random.default_rng(0).standard_normal((2, 4, 5))
    error = sum((a - b) ** 2 for a, b in zip(x.flat, x_true.flat, strict=True))
    power = sum(b**2 for b in x_true.flat)
    assert data.psnr(x, x_true, peak=3.0) == pytest.approx(10 * math.log10(9 / (error / 20)))
    assert data.snr(x, x_true) == pytest.approx(10 * math.log10(power / error))
    each = [data.psnr(*pair) for pair in zip(x, x_true, strict=True)]
    assert data.psnr(x, x_true) != pytest.approx(np.mean(each))  # pooled, not averaged in dB


def test_noise_of_a_tenth_has_twenty_decibels() -> None:
    samples = data.noisy_patches(data.PHOTOGRAPHS_HELD_OUT, 2000, noise=0.1, seed=0)
    assert data.psnr(samples.x_tilde, samples.x_true) == pytest.approx(20, abs=0.05)


def test_decibels_at_the_ends() -> None:
    ones = np.ones((2, 3), np.float32)
    assert data.psnr(ones, ones) == data.snr(ones, ones) == math.inf
    assert data.snr(ones, 0 * ones) == -math.inf
    # Broadcasting would give a number, and a wrong one.
    for decibels in (data.psnr, data.snr):
        with pytest.raises(ValueError, match=r"same shape; got \(2, 3\) and \(3,\): compare"):
            decibels(ones, ones[0])
