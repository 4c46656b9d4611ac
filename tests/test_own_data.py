"""Arrays, pictures and sounds of a user: how they are split, and what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.io
import soundfile
import tifffile
from test_data import occurs_in

from hypergrad.workbench import data


def _picture(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: skimage.io.imsave(file, array, check_contrast=False)


def _sound(values: np.ndarray, rate: int = 8000) -> Callable[[Path], None]:
    return lambda file: soundfile.write(file, values, rate, subtype="FLOAT")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five 8-bit grey pictures, each filled with its own set of grey values."""
    for i in range(5):
        grey = np.random.default_rng(i).integers(50 * i, 50 * i + 50, (21, 17), dtype=np.uint8)
        _picture(grey)(tmp_path / f"{i}.png")
    return tmp_path


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
        _picture(image)(tmp_path / name)
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
    _sound(np.ones(800))(pictures / "clip.wav")
    with pytest.raises(ValueError, match="one kind of data; got 5 images and 1 audio files"):
        data.load_own(pictures, seed=0)
    (one := tmp_path / "one").mkdir()
    (pictures / "0.png").rename(one / "0.png")
    with pytest.raises(ValueError, match="split 'train' must get a file; got 1 in all: add files"):
        data.load_own(one, seed=0)


# --- files that cannot be used, and links ---------------------------------------------------------


def _cut(file: Path) -> None:
    _picture(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))(file)
    file.write_bytes(file.read_bytes()[:-2000])


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
            loud = 0.5 * np.random.default_rng(i).uniform(-1, 1, 1600)
            _sound(loud)(tmp_path / f"{i}.wav")
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
