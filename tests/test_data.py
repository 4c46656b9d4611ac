"""Real data: splits that do not leak, samples that are what they claim, errors that help."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data
import skimage.io
import soundfile
import tifffile

from hypergrad.workbench import data

# --- helpers: synthetic files, and plain loops as oracles -----------------------------------------


def write_clip(path: Path, seed: int = 0, *, rate: int = 8000, length: int = 1600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.5 * np.random.default_rng(seed).uniform(-1, 1, length)
    soundfile.write(path, sound, rate, subtype="PCM_16")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Ten clips of ten loud frames each, in WAV and FLAC, some in a subfolder."""
    for i in range(10):
        suffix = "flac" if i % 3 == 0 else "wav"
        write_clip(tmp_path / ("sub" if i % 2 else ".") / f"clip{i}.{suffix}", seed=i)
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five 8-bit grey pictures, each filled with its own set of grey values."""
    for i in range(5):
        grey = np.random.default_rng(i).integers(50 * i, 50 * i + 50, (21, 17), dtype=np.uint8)
        skimage.io.imsave(tmp_path / f"{i}.png", grey, check_contrast=False)
    return tmp_path


def occurs_in(patch: np.ndarray, image: np.ndarray, size: int) -> bool:
    patch = patch.reshape(size, size)
    corners = np.argwhere(image[: 1 - size or None, : 1 - size or None] == patch[0, 0])
    return any(np.array_equal(image[i : i + size, j : j + size], patch) for i, j in corners)


def nearest_level(x: float, bits: int) -> float:
    """A mid-riser quantiser by exhaustive search over its levels."""
    step = 2 / 2**bits
    levels = [-1 + step / 2 + k * step for k in range(2**bits)]
    return min(levels, key=lambda level: abs(level - x))


# --- the module -----------------------------------------------------------------------------------


def test_imports_no_jax_and_no_matplotlib() -> None:
    for path in Path(data.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        walked = list(ast.walk(tree))
        names = [alias.name for n in walked if isinstance(n, ast.Import) for alias in n.names]
        names += [n.module or "" for n in walked if isinstance(n, ast.ImportFrom)]
        foundation = ("hypergrad._foundation.arrays", "hypergrad._foundation.errors")
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


# --- speech ---------------------------------------------------------------------------------------


def test_audio_files_finds_speech_only(tmp_path: Path) -> None:
    kept = ["a.wav", "digits/1.WAV", "z.flac", "confbridge-joined.wav", "tt-monkeysintro.wav"]
    left_out = ["silence/1.wav", "beep.wav", "beeperr.wav", "2tone.wav", "at-tone-now.flac"]
    left_out += ["confbridge-join.wav", "confbridge-leave.wav", "tt-monkeys.wav", ".a.wav", "b.mp3"]
    left_out += ["en/silence/2.wav", "en/beep.wav", ".hidden/c.wav"]
    for name in kept + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in data.audio_files(tmp_path)]
    assert found == sorted(kept)


@pytest.mark.parametrize("number", [3, 10, 57])
def test_splits_share_no_file_and_lose_none(tmp_path: Path, number: int) -> None:
    for i in range(number):
        (tmp_path / f"{i}.wav").touch()
    splits = ("train", "choose", "test") if number > 5 else ("train", "test")
    parts = {split: data.audio_files(tmp_path, split=split) for split in splits}
    assert sorted(file for part in parts.values() for file in part) == sorted(tmp_path.iterdir())
    assert len(parts["test"]) == max(1, round(number / 5))
    assert parts == {split: data.audio_files(tmp_path, split=split) for split in splits}
    if number == 57:
        assert parts["test"] != data.audio_files(tmp_path, split="test", split_seed=1)


def test_audio_is_split_by_clip_whatever_the_seed(clips: Path) -> None:
    of = {
        (split, seed): set(data.speech_frames(clips, split=split, count=9, seed=seed).source)
        for split in ("train", "choose", "test")
        for seed in range(3)
    }
    assert not any(of[a] & of[b] for a in of for b in of if a[0] != b[0]), (
        "a clip is in two splits for some pair of seeds"
    )


def test_speech_frames_are_frames_of_the_normalised_clip(clips: Path) -> None:
    samples = data.speech_frames(clips, frame=160, bits=4, split="test", seed=0)
    assert samples.shape == (160,)
    assert len(samples) == 2 * 10
    for i, x_true in enumerate(samples.x_true):
        clip, _ = soundfile.read(clips / samples.source[samples.source_index[i]])
        np.testing.assert_array_equal(x_true, (clip / abs(clip).max())[160 * (i % 10) :][:160])
    assert np.abs(samples.x_tilde - samples.x_true).max() <= 2.0**-4
    assert len(np.unique(samples.x_tilde)) == 16


def test_quiet_frames_are_dropped_after_normalisation(tmp_path: Path) -> None:
    peak, loudness = 0.25, np.array([1.0, 0.06, 0.04, 0.0, 0.051, 0.049])
    clip = np.repeat(peak * loudness, 40)  # of constant frames the rms is the value
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.append(clip, [peak] * 39), 8000, subtype="DOUBLE")
    samples = data.speech_frames(tmp_path, frame=40, split="train", seed=0)
    np.testing.assert_allclose(samples.x_true[:, 0], [1.0, 0.06, 0.051], rtol=1e-14)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).uniform(-1, 1, (2, 320))
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 8000, subtype="DOUBLE")
    samples = data.speech_frames(tmp_path, split="train", seed=0)
    mono = (left + right) / 2
    np.testing.assert_allclose(samples.x_true.ravel(), mono / np.abs(mono).max(), rtol=1e-14)


def test_count_draws_without_repetition(clips: Path) -> None:
    every, some, again, other = (
        data.speech_frames(clips, split="train", count=count, seed=seed)
        for count, seed in ((None, 0), (50, 0), (50, 0), (50, 1))
    )
    rows = {row.tobytes() for row in every.x_true}
    drawn = {row.tobytes() for row in some.x_true}
    assert len(drawn) == 50
    assert drawn < rows
    np.testing.assert_array_equal(some.x_true, again.x_true)
    assert not np.array_equal(some.x_true, other.x_true)
    for count in (0, len(every) + 1):
        with pytest.raises(ValueError, match=f"from 1 to {len(every)}, .*; got {count}: .*None"):
            data.speech_frames(clips, split="train", count=count, seed=0)


def test_another_rate_is_refused_unless_asked_for(clips: Path) -> None:
    for i in range(10, 40):  # so many that every split has one
        write_clip(clips / f"fast{i}.wav", rate=16000)
    with pytest.raises(ValueError, match=r"8000 Hz; got 16000 Hz in .*fast\d+\.wav: resample it"):
        data.speech_frames(clips, split="test", seed=0)
    with pytest.raises(ValueError, match=r"16000 Hz; got 8000 Hz in .*clip\d"):
        data.speech_frames(clips, split="train", seed=0, rate=16000)


def test_missing_speech_says_how_to_get_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            data.speech_frames(folder, split="train", seed=0)
        for part in ("apt-get install asterisk-core-sounds-en-wav", "apt-get download", "dpkg-deb"):
            assert part in str(error.value)
        assert "any folder of WAV or FLAC" in str(error.value)
        assert str(folder) in str(error.value)


def test_the_default_folder_is_that_of_the_debian_package() -> None:
    assert Path("/usr/share/asterisk/sounds/en_US_f_Allison") == data.ASTERISK
    assert data.audio_files.__defaults__ == (data.ASTERISK,)
    assert data.speech_frames.__defaults__ == (data.ASTERISK,)


def test_audio_that_cannot_be_used(tmp_path: Path) -> None:
    write_clip(tmp_path / "only.wav")
    with pytest.raises(ValueError, match="split 'train' must get a file; got 1 in all: add"):
        data.speech_frames(tmp_path, split="train", seed=0)
    with pytest.raises(ValueError, match=r"split must be one of .*; got 'valid'"):
        data.speech_frames(tmp_path, split="valid", seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="frame must be at least 1; got 0"):
        data.speech_frames(tmp_path, frame=0, split="test", seed=0)
    with pytest.raises(
        ValueError, match=r"1601 samples in a row .*; got none such in 1 files: only"
    ):
        data.speech_frames(tmp_path, frame=1601, split="test", seed=0)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(800), "louder than rms 0.05 .*; got none such in 1 files: a.wav"),
        (np.zeros(0), "louder than rms 0.05 .*; got none such in 1 files: a.wav"),
        (np.full(800, np.nan), r"must be finite; got .*inf in .*a\.wav: remove"),
    ],
)
def test_silent_empty_or_broken_sound(tmp_path: Path, sound: np.ndarray, message: str) -> None:
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="DOUBLE")
    with pytest.raises(ValueError, match=message):
        data.speech_frames(tmp_path, split="test", seed=0)


# --- one's own data -------------------------------------------------------------------------------


def test_own_rows_are_split_in_order(tmp_path: Path) -> None:
    rows = np.arange(33).reshape(11, 3)
    np.save(tmp_path / "own.npy", rows)
    own = data.load_own(tmp_path / "own.npy", noise=0.0, seed=0)
    np.testing.assert_array_equal(own["train"].x_true, rows[:9])
    np.testing.assert_array_equal(own["test"].x_true, rows[9:])
    np.testing.assert_array_equal(own["test"].x_tilde, rows[9:])
    assert own["train"].x_true.dtype == np.float64
    assert (own["train"].shape, own["train"].source) == ((3,), ("own.npy",))


def test_of_a_long_file_so_many_rows_are_drawn_as_are_wanted(tmp_path: Path) -> None:
    rows = np.arange(300).reshape(100, 3)
    np.save(tmp_path / "own.npy", rows)
    most = {"train": 7, "test": 50}
    draws = [
        data.load_own(tmp_path / "own.npy", noise=0.0, seed=seed, most=most) for seed in (0, 0, 1)
    ]
    for own in draws:
        assert (len(own["train"]), len(own["test"])) == (7, 20)
        assert set(own["train"].x_true[:, 0]) < set(rows[:80, 0])
        np.testing.assert_array_equal(own["test"].x_true, rows[80:])
    np.testing.assert_array_equal(draws[0]["train"].x_true, draws[1]["train"].x_true)
    assert not np.array_equal(draws[0]["train"].x_true, draws[2]["train"].x_true)


def test_own_rows_have_noise_that_differs_between_splits(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros((1000, 50), np.float32))
    own = data.load_own(tmp_path / "own.npy", noise=2.0, seed=0)
    assert own["train"].x_tilde.std() == pytest.approx(2, rel=0.02)
    assert own["test"].x_tilde.std() == pytest.approx(2, rel=0.03)
    assert not np.isin(own["test"].x_tilde, own["train"].x_tilde).any()
    again = data.load_own(str(tmp_path / "own.npy"), noise=2.0, seed=0)
    np.testing.assert_array_equal(own["train"].x_tilde, again["train"].x_tilde)


def test_own_pictures_are_split_by_file(pictures: Path) -> None:
    own = data.load_own(pictures, size=5, noise=0.3, seed=0)
    assert {split: len(s.source) for split, s in own.items()} == {"train": 4, "test": 1}
    assert not set(own["train"].source) & set(own["test"].source)
    for samples in own.values():
        assert samples.shape == (5, 5)
        assert len(samples) == (21 // 5) * (17 // 5) * len(samples.source)
        assert (samples.x_tilde - samples.x_true).std() == pytest.approx(0.3, rel=0.1)
        for i, patch in enumerate(samples.x_true):
            name = samples.source[samples.source_index[i]]
            assert occurs_in(np.rint(255 * patch), skimage.io.imread(pictures / name), 5)


def test_own_pictures_of_every_kind_become_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    eight, sixteen = PIL.Image.fromarray(grey), PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    # The palette runs backwards, so that its indices are not taken for grey values.
    palette = PIL.Image.fromarray(255 - grey)
    palette = palette.convert("P")
    palette.putpalette([255 - i // 3 for i in range(768)])
    pictures = {
        "8bit.png": eight,
        "16bit.png": sixteen,
        "16bit.tiff": sixteen,
        "rgb.PNG": eight.convert("RGB"),
        "rgba.png": eight.convert("RGBA"),
        "grey and alpha.png": eight.convert("LA"),
        "palette.png": palette,
        "cmyk.tif": eight.convert("CMYK"),
        "float.tif": PIL.Image.fromarray((grey / 255).astype(np.float32)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    PIL.Image.new("RGB", (8, 8), "white").save(tmp_path / "white.jpeg")
    PIL.Image.new("1", (8, 8), 1).save(tmp_path / "black and white.png")
    own = data.load_own(tmp_path, noise=0.0, seed=0)
    found = {name: s.x_true[i] for s in own.values() for i, name in enumerate(s.source)}
    assert set(found) == {*pictures, "white.jpeg", "black and white.png"}
    for name in pictures:
        np.testing.assert_allclose(found[name], grey.ravel() / 255, atol=1e-7, err_msg=name)
    for name in ("white.jpeg", "black and white.png"):
        np.testing.assert_allclose(found[name], 1, atol=1e-12)
        assert found[name].max() <= 1


def test_own_audio_keeps_every_file(clips: Path) -> None:
    write_clip(clips / "milestone.wav", seed=99)  # "tone" is no speech in the Debian package only
    own = data.load_own(clips, bits=2, frame=100, seed=0)
    assert {split: len(s.source) for split, s in own.items()} == {"train": 9, "test": 2}
    assert "milestone.wav" in own["train"].source + own["test"].source
    assert not set(own["train"].source) & set(own["test"].source)
    for samples in own.values():
        assert samples.shape == (100,)
        np.testing.assert_array_equal(np.unique(samples.x_tilde), [-0.75, -0.25, 0.25, 0.75])
        assert (np.sqrt((samples.x_true**2).mean(axis=1)) > 0.05).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"\(samples, n\).*; got float64 of shape \(5,\)"),
        (np.zeros((5, 2, 2)), r"\(samples, n\).*; got float64 of shape \(5, 2, 2\)"),
        (np.zeros((0, 3)), r"got float64 of shape \(0, 3\)"),
        (np.zeros((3, 0)), r"got float64 of shape \(3, 0\)"),
        (np.zeros((1, 3)), r"two samples at least; got float64 of shape \(1, 3\)"),
        (np.zeros((5, 2), complex), "real numbers .*; got complex128"),
        (np.full((5, 2), "a"), "real numbers .*; got <U1"),
        (np.zeros((5, 2), bool), "real numbers .*; got bool"),
        (np.array([[1.0, np.nan], [0, 0]]), r"must be finite; got .*inf in .*own\.npy: remove"),
        (np.array([[1.0, np.inf], [0, 0]]), r"must be finite; got .*inf in .*own\.npy: remove"),
        (
            np.array([[None, 1], [2, 3]]),
            r"readable; got .*own\.npy \(ValueError: .*objects in dtype",
        ),
    ],
)
def test_own_array_that_cannot_be_used(tmp_path: Path, array, message: str) -> None:
    np.save(tmp_path / "own.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        data.load_own(tmp_path / "own.npy", seed=0)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".npy", b""),
        (".npy", b"PK\x03\x04 no npy"),
        (".npy", b"\x80\x04K\x01."),
        (".png", b""),
        (".png", b"no"),
        (".jpg", b"no"),
        (".tif", b"II*\x00no"),
        (".wav", b"RIFF"),
        (".flac", b""),
    ],
)
def test_unreadable_file_is_named_in_one_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    for name in ("a", "b"):
        (tmp_path / (name + suffix)).write_bytes(content)
    path = tmp_path / ("a" + suffix) if suffix == ".npy" else tmp_path
    with pytest.raises(ValueError, match=rf"file must be readable; got .*[ab]\{suffix}") as error:
        data.load_own(path, seed=0)
    assert error.value.__suppress_context__
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8), 1.5, np.float32), r"grey must lie in \[0, 1\]; got float32 .*\.tif: resc"),
        (np.full((8, 8), np.nan, np.float32), r"grey must lie in \[0, 1\]; got float32 .*\.tif"),
        (np.zeros((8, 8), np.int32), r"unsigned or float; got int32 of shape \(8, 8\) in .*\.tif"),
        (
            np.zeros((5, 8, 8), np.uint8),
            r"readable; got .*\.tif \(more than one page\)",
        ),
        (np.zeros((8, 7), np.uint8), r"both at least size=8; got \(8, 7\) for .*\.tif"),
    ],
)
def test_own_picture_that_cannot_be_used(tmp_path: Path, image, message: str) -> None:
    for name in ("a.tif", "b.tif"):
        skimage.io.imsave(tmp_path / name, image, check_contrast=False)
    with pytest.raises(ValueError, match=message):
        data.load_own(tmp_path, seed=0)


def test_own_path_that_cannot_be_used(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must exist; got .*nowhere: name a \.npy of"):
        data.load_own(tmp_path / "nowhere", seed=0)
    (empty := tmp_path / "empty").mkdir()
    (note := empty / "note.txt").touch()
    with pytest.raises(ValueError, match=r"one kind.*; got 0 images and 0 audio files in .*name"):
        data.load_own(empty, seed=0)
    with pytest.raises(
        ValueError, match=r"path must be a \.npy or a folder; got .*note\.txt: name"
    ):
        data.load_own(note, seed=0)
    write_clip(pictures / "clip.wav")
    with pytest.raises(ValueError, match="one kind of data; got 5 images and 1 audio files"):
        data.load_own(pictures, seed=0)
    (one := tmp_path / "one").mkdir()
    (pictures / "0.png").rename(one / "0.png")
    with pytest.raises(ValueError, match="split 'train' must get a file; got 1 in all: add files"):
        data.load_own(one, seed=0)


# --- files that cannot be used, and links ---------------------------------------------------------


def _picture(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: skimage.io.imsave(file, array, check_contrast=False)


def _cut(file: Path) -> None:
    _picture(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))(file)
    file.write_bytes(file.read_bytes()[:-2000])


def _sound(values: np.ndarray, rate: int = 8000) -> Callable[[Path], None]:
    return lambda file: soundfile.write(file, values, rate, subtype="FLOAT")


# name: the file, how it is made, and what is said of it
SPOILT = {
    "no picture": ("x.png", lambda file: file.write_bytes(b"no"), "must be readable; got"),
    "empty": ("x.jpg", Path.touch, "must be readable; got"),
    "half a picture": ("x.png", _cut, "must be readable; got"),
    "too small": ("x.png", _picture(np.zeros((3, 9), np.uint8)), r"\(3, 9\) for"),
    "floats beyond 1": ("x.tif", _picture(np.full((9, 9), 2.0, np.float32)), "must lie in"),
    "a broken link": ("x.png", lambda file: file.symlink_to("gone.png"), "a broken link"),
    "a broken link to a folder": ("x", lambda file: file.symlink_to("gone"), "a broken link"),
    "a link to itself": ("x.png", lambda file: file.symlink_to(file), "a broken link"),
    "no sound": ("x.wav", lambda file: file.write_bytes(b"RIFF"), "must be readable; got"),
    "another rate": ("x.wav", _sound(np.ones(800), 16000), "16000 Hz in"),
    "NaN": ("x.wav", _sound(np.full(800, np.nan)), "NaN or inf in"),
}


@pytest.mark.parametrize(("name", "make", "words"), SPOILT.values(), ids=SPOILT)
def test_a_file_that_cannot_be_used_is_named_or_skipped(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    for i in range(9):
        if name.endswith("wav"):
            write_clip(tmp_path / f"{i}.wav", seed=i)
        else:
            grey = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
            _picture(grey)(tmp_path / f"{i}.png")
    usable = {file.name for file in tmp_path.iterdir()}
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"(?s){words}.*--skip-unreadable") as error:
        data.load_own(tmp_path, seed=0)
    assert str(tmp_path / name) in str(error.value)
    assert "Errno" not in str(error.value)
    told: list[str] = []
    own = data.load_own(tmp_path, seed=0, skip=told.append)
    assert len(told) == 1
    assert str(tmp_path / name) in told[0]
    assert {file for samples in own.values() for file in samples.source} == usable


def test_a_file_that_the_system_refuses(pictures: Path, monkeypatch) -> None:
    def refusing(path: Path, *mode: str) -> Any:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *mode)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(ValueError, match=r"3\.png \(Permission denied\).*--skip-unreadable"):
        data.load_own(pictures, size=5, seed=0)
    told: list[str] = []
    data.load_own(pictures, size=5, seed=0, skip=told.append)
    assert ["3.png (Permission denied)" in why for why in told] == [True]


def test_a_folder_that_the_system_refuses(pictures: Path, monkeypatch) -> None:
    (pictures / "sub").mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path) -> Any:
        if path.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(ValueError, match=r"readable; got a closed one, .*sub: .*--skip-unreadable"):
        data.load_own(pictures, size=5, seed=0)


def test_files_of_which_none_can_be_used(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"usable; got none of 1 in .*: repair them"):
        data.load_own(tmp_path, seed=0, skip=lambda why: None)


def test_links_are_followed_and_nothing_is_found_twice(tmp_path: Path) -> None:
    """A file with two names could be in both splits."""
    (data_folder := tmp_path / "data").mkdir()
    (elsewhere := tmp_path / "elsewhere" / "below").mkdir(parents=True)
    for folder in (data_folder, data_folder / "z", elsewhere):
        folder.mkdir(exist_ok=True)
        for name in ("1.png", "2.png"):
            _picture(np.zeros((9, 9), np.uint8))(folder / name)
    (data_folder / "linked").symlink_to(elsewhere.parent)
    (data_folder / "a").symlink_to(data_folder / "z")  # what is found there is in z
    (data_folder / "z" / "up").symlink_to(data_folder)  # a cycle
    (elsewhere / "back").symlink_to(data_folder)
    (data_folder / "0.png").symlink_to(data_folder / "1.png")
    (data_folder / "3.png").symlink_to(tmp_path / "other.png")
    (data_folder / ".hidden.png").symlink_to("nowhere")
    _picture(np.zeros((9, 9), np.uint8))(tmp_path / "other.png")
    own = data.load_own(data_folder, seed=0)
    assert sorted(name for samples in own.values() for name in samples.source) == [
        "1.png", "2.png", "3.png", "linked/below/1.png", "linked/below/2.png", "z/1.png", "z/2.png",
    ]  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4", "f8"])
def test_a_tiff_is_the_same_in_both_byte_orders(tmp_path: Path, order: str, dtype: str) -> None:
    values = np.random.default_rng(0).uniform(size=(9, 10))
    peak = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    stored = (peak * values).astype(dtype)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, stored, byteorder=order)
    own = data.load_own(tmp_path, size=9, noise=0.0, seed=0)
    expected = stored[:, :9].astype(float).ravel() / peak
    np.testing.assert_allclose(own["train"].x_true[0], expected, rtol=0, atol=1e-15)


def test_rows_of_foreign_bytes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(size=(10, 3)).astype(">f4")
    np.save(tmp_path / "own.npy", rows)
    own = data.load_own(tmp_path / "own.npy", noise=0.0, seed=0)
    np.testing.assert_array_equal(own["train"].x_true, rows[:8].astype(float))


def test_a_folder_that_is_called_like_an_array(pictures: Path) -> None:
    named = pictures.rename(pictures.parent / "pictures.npy")
    assert len(data.load_own(named, size=5, seed=0)["train"].source) == 4


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
