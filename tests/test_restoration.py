"""What learned operators do to pictures, sounds and rows, in memory and file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import tifffile
from restoring import LEVELS, PATCHES, ROWS, SOUND, STRATEGY, another_rate

import hypergrad as hg
from hypergrad.workbench import data, restored_files
from hypergrad.workbench.restored_files import restore_file

RNG = np.random.default_rng(0)


def plain(operator: hg.SavedOperator, samples: np.ndarray) -> np.ndarray:
    """The oracle: all samples in one solve."""
    return np.asarray(
        hg.solve(operator.problem, samples, solver=operator.solver, strategy=STRATEGY).x
    )


def test_a_picture_is_its_patches_put_together() -> None:
    """By `all_patches` and `assemble`, all at once; the stride does not divide the sides."""
    picture = RNG.uniform(size=(11, 9))
    for stride in (2, 3):
        patches = data.all_patches(picture, size=4, stride=stride)
        expected = data.assemble(plain(PATCHES, patches), picture.shape, size=4, stride=stride)
        restored = hg.restore(PATCHES, picture, stride=stride)
        np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-14)


def test_a_large_picture_is_restored_in_groups(monkeypatch) -> None:
    picture = RNG.uniform(size=(11, 9))
    whole = hg.restore(PATCHES, picture)
    monkeypatch.setattr("hypergrad.learning.restoration._SAMPLES_AT_ONCE", 5)
    np.testing.assert_allclose(hg.restore(PATCHES, picture), whole, rtol=0, atol=1e-14)


def test_colours_are_restored_one_by_one() -> None:
    picture = RNG.uniform(size=(6, 7, 3))
    restored = hg.restore(PATCHES, picture)
    for channel in range(3):
        expected = hg.restore(PATCHES, picture[..., channel])
        np.testing.assert_allclose(restored[..., channel], expected, rtol=0, atol=1e-14)


def test_a_picture_smaller_than_a_patch_is_continued_by_its_mirror_image() -> None:
    picture = RNG.uniform(size=(3, 9))
    continued = np.concatenate([picture, picture[-1:]])
    expected = hg.restore(PATCHES, continued)[:3]
    np.testing.assert_allclose(hg.restore(PATCHES, picture), expected, rtol=0, atol=1e-14)
    assert hg.restore(PATCHES, np.ones((1, 1))).shape == (1, 1)


def test_a_sound_is_its_frames_put_together() -> None:
    sound = RNG.uniform(-1, 1, size=(10, 2))
    starts = np.array([0, 2, 4])
    expected, covered = np.zeros(10), np.zeros(10)
    frames = np.stack([sound[s : s + 6, 1] for s in starts])
    for start, frame in zip(starts, plain(SOUND, frames), strict=True):
        expected[start : start + 6] += frame
        covered[start : start + 6] += 1
    restored = hg.restore(SOUND, sound)
    assert restored.shape == (10, 2)
    np.testing.assert_allclose(restored[:, 1], expected / covered, rtol=0, atol=1e-14)


def test_rows_are_samples_already() -> None:
    rows = RNG.uniform(size=(5, 6))
    np.testing.assert_allclose(hg.restore(ROWS, rows), plain(ROWS, rows), rtol=0, atol=1e-14)


UNFIT = {
    "rows for patches": (PATCHES, np.ones(4), "a picture (h, w)"),
    "a picture for sound": (SOUND, np.ones((4, 4, 3)), "a sound (t,)"),
    "rows of another length": (ROWS, np.ones((4, 5)), "rows (samples, 6)"),
    "nothing": (PATCHES, np.ones((0, 4)), "a picture (h, w)"),
    "text": (PATCHES, np.array([["a"]]), "a picture (h, w)"),
    "NaN": (PATCHES, np.full((4, 4), np.nan), "must be finite"),
}


@pytest.mark.parametrize(("operator", "x", "words"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_operator(operator, x, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are looked at below
        hg.restore(operator, x)
    assert words in str(caught.value)


@pytest.mark.parametrize("stride", [0, 5])
def test_strides_that_leave_gaps(stride: int) -> None:
    with pytest.raises(ValueError, match="stride must be"):
        hg.restore(PATCHES, np.ones((8, 8)), stride=stride)


# ----------------------------------------------------------------------------------- files

SIDES = LEVELS.shape
COLOURS = RNG.integers(0, 256, (*SIDES, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, SIDES, dtype=np.uint8)

# name: the picture, its values in [0, 1], the file that is written, and its mode
PICTURES = {
    "grey": (PIL.Image.fromarray(LEVELS), LEVELS / 255, "p-restored.png", "L"),
    "colours": (PIL.Image.fromarray(COLOURS), COLOURS / 255, "p-restored.png", "RGB"),
    "transparent": (
        PIL.Image.fromarray(np.dstack([COLOURS, ALPHA])), COLOURS / 255, "p-restored.png", "RGBA",
    ),
    "grey and transparent": (
        PIL.Image.fromarray(np.dstack([LEVELS, ALPHA])), LEVELS / 255, "p-restored.png", "LA",
    ),
    "16 bits": (
        PIL.Image.fromarray(257 * LEVELS.astype(np.uint16)), LEVELS / 255, "p-restored.png", "I;16",
    ),
    "floats": (
        PIL.Image.fromarray((LEVELS / 256).astype(np.float32)), LEVELS / 256, "p-restored.tif", "F",
    ),
    "black and white": (
        PIL.Image.fromarray(LEVELS > 99), (LEVELS > 99) * 1.0, "p-restored.png", "L",
    ),
    "a palette": (
        PIL.Image.fromarray(LEVELS).convert("P"), np.dstack([LEVELS / 255] * 3), "p-restored.png",
        "RGB",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("picture", "values", "name", "mode"), PICTURES.values(), ids=PICTURES)
def test_pictures(picture, values, name: str, mode: str, tmp_path) -> None:
    path = tmp_path / ("p.tif" if mode == "F" else "p.png")
    picture.save(path)
    restored = restore_file(PATCHES, path)
    assert restored.out == tmp_path / name
    assert restored.restored is None
    with PIL.Image.open(restored.out) as written:
        assert written.mode == mode
        found = np.asarray(written)
    if mode in ("RGBA", "LA"):
        np.testing.assert_array_equal(found[..., -1], ALPHA)
        found = found[..., :-1].squeeze()
    peak = {"I;16": 65535, "F": 1}.get(mode, 255)
    expected = hg.restore(PATCHES, values)
    np.testing.assert_allclose(found / peak, np.clip(expected, 0, 1), rtol=0, atol=0.51 / 255)


def test_an_orientation_in_the_file_is_applied(tmp_path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    PIL.Image.fromarray(LEVELS).save(tmp_path / "p.jpg", exif=exif, quality=100)
    assert restore_file(PATCHES, tmp_path / "p.jpg").shape == SIDES[::-1]


def test_nothing_is_written_over(tmp_path) -> None:
    PIL.Image.fromarray(LEVELS).save(tmp_path / "p.png")
    (tmp_path / "p-restored.png").write_text("mine")
    with pytest.raises(FileExistsError, match="out must be a new file"):
        restore_file(PATCHES, tmp_path / "p.png")
    with pytest.raises(FileExistsError, match="out must be a new file"):
        restore_file(PATCHES, tmp_path / "p.png", out=tmp_path / "p.png")
    assert (tmp_path / "p-restored.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["q.png", "q.tif", "q.jpg"])
def test_the_psnr_is_that_of_the_file(name: str, tmp_path) -> None:
    PIL.Image.fromarray(LEVELS).save(tmp_path / "p.png")
    PIL.Image.fromarray(LEVELS // 2).save(tmp_path / "truth.png")
    out, truth = tmp_path / name, tmp_path / "truth.png"
    told = restore_file(PATCHES, tmp_path / "p.png", out=out, truth=truth)
    with PIL.Image.open(out) as picture:
        written = np.asarray(picture) / 255
    exact = (LEVELS // 2) / 255
    assert told.observed == pytest.approx(data.psnr(LEVELS / 255, exact), rel=1e-12)
    assert told.restored == pytest.approx(data.psnr(written, exact), rel=1e-12)


def test_what_the_file_cannot_hold_is_told(tmp_path) -> None:
    """This one gives x = -3 throughout."""
    below = hg.LowerLevel(K=-3.0 * np.eye(4), F=hg.Quadratic(1.0, center=9.0), G=hg.Zero())
    operator = hg.SavedOperator(below, hg.ChambollePock(50), STRATEGY, (2, 2), stride=2)
    PIL.Image.fromarray(LEVELS).save(tmp_path / "p.png")
    assert restore_file(operator, tmp_path / "p.png").clipped == 1.0


def test_sounds(tmp_path) -> None:
    sound = np.round(RNG.uniform(-1, 1, (20, 2)) * 4) / 4
    for name, subtype in (("s.wav", "PCM_16"), ("s.flac", "PCM_24"), ("f.wav", "DOUBLE")):
        soundfile.write(tmp_path / name, sound, 8000, subtype=subtype)
        told = restore_file(SOUND, tmp_path / name, truth=tmp_path / name)
        assert told.out == tmp_path / name.replace(".", "-restored.")
        found, rate = soundfile.read(told.out)
        assert (rate, soundfile.info(told.out).subtype) == (8000, subtype)
        np.testing.assert_allclose(found, hg.restore(SOUND, sound), rtol=0, atol=2.0**-15)
        assert told.observed == np.inf if subtype == "DOUBLE" else told.observed is not None


def test_rows(tmp_path) -> None:
    rows = RNG.uniform(size=(4, 6))
    np.save(tmp_path / "rows.npy", rows)
    told = restore_file(ROWS, tmp_path / "rows.npy", truth=tmp_path / "rows.npy")
    np.testing.assert_array_equal(np.load(told.out), hg.restore(ROWS, rows))
    assert told.out == tmp_path / "rows-restored.npy"


@pytest.mark.parametrize("dtype", ["u2", "f2", "f4", "f8"])
def test_a_tiff_is_the_same_in_both_byte_orders(dtype: str, tmp_path) -> None:
    stored = (LEVELS / 256).astype(dtype) if dtype[0] == "f" else 257 * LEVELS.astype(dtype)
    values = stored.astype(float) / (1 if dtype[0] == "f" else 65535)
    for order in "<>":
        path = tmp_path / f"{ord(order)}.tif"
        tifffile.imwrite(path, stored, byteorder=order)
        out = restore_file(PATCHES, path).out
        with PIL.Image.open(out) as written:
            found = np.asarray(written, float) / (1 if dtype[0] == "f" else 65535)
        expected = hg.restore(PATCHES, values).clip(0, 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.51 / 65535)


# how the sound was stored, the file that is written, and its subtype
SUBTYPES = [
    ("WAV", "PCM_U8", ".wav", "PCM_U8"),
    ("WAV", "PCM_U8", ".flac", "PCM_S8"),
    ("WAV", "PCM_16", ".flac", "PCM_16"),
    ("WAV", "PCM_32", ".wav", "PCM_32"),
    ("WAV", "PCM_32", ".flac", "PCM_24"),
    ("WAV", "FLOAT", ".wav", "FLOAT"),
    ("WAV", "FLOAT", ".flac", "PCM_24"),
    ("WAV", "DOUBLE", ".wav", "DOUBLE"),
    ("WAV", "DOUBLE", ".flac", "PCM_24"),
    ("WAV", "ULAW", ".wav", "FLOAT"),
    ("WAV", "ULAW", ".flac", "PCM_24"),
    ("WAV", "ALAW", ".wav", "FLOAT"),
    ("WAV", "IMA_ADPCM", ".wav", "FLOAT"),
    ("FLAC", "PCM_S8", ".wav", "PCM_U8"),
    ("FLAC", "PCM_16", ".wav", "PCM_16"),
    ("AIFF", "PCM_16", ".wav", "PCM_16"),
    ("OGG", "VORBIS", ".wav", "FLOAT"),
    ("OGG", "VORBIS", ".flac", "PCM_24"),
]


@pytest.mark.parametrize(("form", "stored", "suffix", "written"), SUBTYPES)
def test_what_is_told_of_a_sound_is_true_of_its_file(
    form: str, stored: str, suffix: str, written: str, tmp_path, monkeypatch
) -> None:
    """Restored three times as loud: three quarters lie beyond what whole numbers can hold."""
    monkeypatch.setattr(restored_files, "restore", lambda operator, x, stride: 3 * x)
    path, out = tmp_path / f"s.{form.lower()}", tmp_path / f"out{suffix}"
    sound = 0.9 * np.sin(np.arange(1000) / 5)
    soundfile.write(path, sound, 8000, format=form, subtype=stored)
    observed = soundfile.read(path)[0]
    told = restore_file(SOUND, path, out=out, truth=path)
    found = soundfile.read(out)[0]
    assert soundfile.info(out).subtype == written
    assert told.restored == pytest.approx(data.psnr(found, observed), abs=1e-9)
    bits = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(written, 22)
    expected = 3 * observed
    if written in ("FLOAT", "DOUBLE"):
        assert told.clipped == 0
    else:
        lost = sum(value > 1 or value < -1 for value in expected) / len(expected)
        assert 0.7 < lost < 0.8
        assert told.clipped == pytest.approx(lost, abs=0.01)
        expected = expected.clip(-1, 1 - 2.0 ** (1 - bits))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-bits * 1.001)


def test_a_format_that_cannot_hold_a_sound(tmp_path) -> None:
    soundfile.write(tmp_path / "s.wav", np.zeros((20, 9)), 8000)
    with pytest.raises(ValueError, match=r"out must be of a format that holds .*; got FLAC: "):
        restore_file(SOUND, tmp_path / "s.wav", out=tmp_path / "s.flac")
    assert [path.name for path in tmp_path.iterdir()] == ["s.wav"]


def _no_picture(path: Path) -> None:
    path.write_text("no picture")


def _pages(path: Path) -> None:
    pages = [PIL.Image.fromarray(LEVELS)] * 2
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])


def _objects(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([[{}]]))


UNREADABLE = {
    "no picture": (PATCHES, _no_picture, "must be a picture"),
    "two pages": (PATCHES, _pages, "more than one page"),
    "no sound": (SOUND, _no_picture, "must be a sound"),
    "another rate": (SOUND, another_rate, "16000 Hz, where 8000 Hz were learned on"),
    "no rows": (ROWS, _no_picture, "must be a .npy of rows"),
    "objects": (ROWS, _objects, "must be a .npy"),
}


@pytest.mark.parametrize(("operator", "make", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_files_that_cannot_be_used(operator, make, words: str, tmp_path) -> None:
    make(tmp_path / "file")
    with pytest.raises(ValueError, match="file must be") as caught:
        restore_file(operator, tmp_path / "file")
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("operator", [PATCHES, SOUND, ROWS], ids=["patches", "sound", "rows"])
def test_files_that_are_missing(operator, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        restore_file(operator, tmp_path / "nowhere")


def test_what_cannot_be_written_so(tmp_path) -> None:
    PIL.Image.fromarray(np.dstack([COLOURS, ALPHA])).save(tmp_path / "p.png")
    for name, words in (("q.jpg", "transparency must be"), ("q.gif", "out must end in one of")):
        with pytest.raises(ValueError, match=words):
            restore_file(PATCHES, tmp_path / "p.png", out=tmp_path / name)
    PIL.Image.fromarray(LEVELS).save(tmp_path / "truth.png")
    with pytest.raises(ValueError, match=r"truth must have the shape .*truth\.png"):
        restore_file(PATCHES, tmp_path / "p.png", truth=tmp_path / "truth.png")
    assert len(list(tmp_path.iterdir())) == 2
