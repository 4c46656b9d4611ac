"""Learned operators on disk, and what they do to pictures, sounds and rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import PIL.Image
import pytest
import soundfile
import tifffile

import hypergrad as hg
from hypergrad._foundation.records import write_npz
from hypergrad.workbench import data, restored_files
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.restored_files import restore_file, restore_folder

SOLVER = hg.ChambollePock(3)
STRATEGY = hg.Truncation(k=1)
RNG = np.random.default_rng(0)


def learned(shape: tuple[int, ...], **given: Any) -> hg.SavedOperator:
    """Total variation on samples of this shape, few iterations of it."""
    differences = {1: hg.operators.differences, 2: hg.operators.differences2}[len(shape)]
    K = differences(shape if len(shape) == 2 else shape[0])
    problem = hg.LowerLevel(K=K, F=hg.L1(0.1), G=hg.Quadratic(1.0))
    return hg.SavedOperator(problem, SOLVER, STRATEGY, shape, **{"stride": 2, **given})


def plain(operator: hg.SavedOperator, samples: np.ndarray) -> np.ndarray:
    """The oracle: all samples in one solve."""
    return np.asarray(
        hg.solve(operator.problem, samples, solver=operator.solver, strategy=STRATEGY).x
    )


PATCHES, SOUND, ROWS = learned((4, 4)), learned((6,), rate=8000), learned((6,))
READ = {"patches": PATCHES, "sound": SOUND, "rows": ROWS}


# ---------------------------------------------------------------------------------- on disk


class Scaled(hg.AbstractFunction):
    """A function of one's own."""

    weight: float = 1.0

    def __call__(self, v):
        return self.weight * jnp.sum(jnp.abs(v), axis=-1)

    def prox(self, z, step):
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * self.weight, 0.0)


class Mine(hg.AbstractDifferentiableStrategy):
    """A strategy of one's own."""

    k: int = eqx.field(static=True, default=2)
    name = "mine"

    def run(self, problem, x_tilde, solver, init):
        raise NotImplementedError


K = hg.operators.differences(6)
SAVED = {
    "as the command line does": learned((6,), rate=8000, settings={"epochs": 8, "data": None}),
    "a weight for each row": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K, F=hg.L1(jnp.arange(1.0, 6.0)), G=hg.BoxQuadratic(0.1, 2.0))
    ),
    "parts in parts": dataclasses.replace(
        ROWS,
        problem=hg.LowerLevel(
            K=K, F=hg.SeparableSum([hg.Huber(0.1, 0.2), hg.NonNegative()], (2, 3)), G=hg.Zero()
        ),
    ),
    "groups": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K[:4], F=hg.GroupL1(0.3, (2, 2)), G=hg.Quadratic(1.0))
    ),
    "another solver and strategy": dataclasses.replace(
        ROWS,
        solver=hg.ChambollePock(
            40, step_ratio=3.0, tolerance=1e-5, acceleration=hg.RestartedHalpern()
        ),
        strategy=hg.LimitFormula(hg.Steps(7)),
    ),
    "an average": dataclasses.replace(ROWS, strategy=hg.ErgodicUnrolling(hg.Tail(0.25))),
    "float32": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K.astype(jnp.float32), F=hg.L1(0.5), G=hg.Zero())
    ),
}


@pytest.mark.parametrize("operator", SAVED.values(), ids=SAVED)
def test_what_is_saved_is_what_is_loaded(operator, tmp_path) -> None:
    operator.save(tmp_path / "operator.npz")
    again = hg.load_operator(tmp_path / "operator.npz")
    for name in ("problem", "solver", "strategy"):
        assert eqx.tree_equal(getattr(again, name), getattr(operator, name)), name
    for name in ("shape", "stride", "rate", "settings"):
        assert getattr(again, name) == getattr(operator, name)


def test_what_is_ones_own_has_to_be_handed_over(tmp_path) -> None:
    path = tmp_path / "operator.npz"
    problem = hg.LowerLevel(K=K, F=Scaled(0.25), G=hg.Quadratic(1.0))
    operator = dataclasses.replace(ROWS, problem=problem, strategy=Mine(3))
    operator.save(path)
    with pytest.raises(ValueError, match=f"learned with {__name__}:Scaled.*--own {__name__}:Sca"):
        hg.load_operator(path)
    with pytest.raises(ValueError, match=f"learned with {__name__}:Mine"):
        hg.load_operator(path, own=[Scaled])
    again = hg.load_operator(path, own=[Scaled, Mine])
    assert isinstance(again.problem.F, Scaled)
    assert again.problem.F.weight == 0.25
    assert again.strategy == Mine(3)


def test_a_file_gets_nothing_imported(tmp_path, monkeypatch) -> None:
    """Not even what could be: a module in this folder that leaves a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("trap.py").write_text("open('sprung', 'w')\nclass Trap: pass\n")
    ROWS.save("operator.npz")
    with np.load("operator.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(str(arrays["about"]))
    for changed in (
        {"strategy": {"class": "trap:Trap", "options": ""}},
        {"F": {"class": "trap:Trap", "fields": {}}},
        {"solver": {"class": "os:system", "fields": {"command": "touch sprung"}}},
    ):
        write_npz("bad.npz", {**arrays, "about": np.array(json.dumps(about | changed))})
        with pytest.raises(ValueError, match="which a file may name but not import"):
            hg.load_operator("bad.npz")
    assert not Path("sprung").exists()


UNSAVABLE = {
    "no matrix": (
        {
            "problem": hg.LowerLevel(
                K=lx.DiagonalLinearOperator(jnp.ones(6)), F=hg.L1(0.1), G=hg.Zero()
            )
        },
        "K must be a matrix to be saved",
    ),
    "weights that no word makes": (
        {"strategy": hg.ErgodicUnrolling(jnp.array([0.0, 0.5, 0.5]))},
        "strategy|option",
    ),
}


@pytest.mark.parametrize(("changed", "words"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_cannot_be_saved_is_said(changed, words: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(ROWS, **changed).save(tmp_path / "operator.npz")
    assert not list(tmp_path.iterdir())


def _archive(**arrays: Any):
    return lambda path: write_npz(path, {name: np.asarray(a) for name, a in arrays.items()})


FOREIGN = {
    "text": lambda path: path.write_text("no operator"),
    "empty": Path.touch,
    "arrays alone": _archive(K=np.ones((2, 3))),
    "half of it": lambda path: (ROWS.save(path), path.write_bytes(path.read_bytes()[:-200])),
    "no JSON": _archive(K=np.ones((2, 3)), about="{"),
    "a list": _archive(K=np.ones((2, 3)), about="[]"),
    "another's": _archive(K=np.ones((2, 3)), about='{"F": 3}'),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_refused_by_name(make, tmp_path) -> None:
    path = tmp_path / "operator.npz"
    make(path)
    with pytest.raises(ValueError, match=r"operator\.npz must be an operator that") as caught:
        hg.load_operator(path)
    assert "\n" not in str(caught.value)


WRONG = {
    "another size": {"shape": (5,)},
    "three axes": {"shape": (3, 2, 1)},
    "gaps": {"stride": 7},
    "no step": {"stride": 0},
    "no rate": {"rate": 0},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_settings_that_do_not_fit(changed) -> None:
    with pytest.raises(ValueError, match="; got "):
        dataclasses.replace(ROWS, **changed)


# ---------------------------------------------------------------------------------- arrays


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

SIDES = (9, 10)
LEVELS = RNG.integers(0, 256, SIDES, dtype=np.uint8)
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


# --------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, one below another folder, one of another format of the same name."""
    (tmp_path / "p" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "a.jpg", "b.jpg", "sub/c.tif")):
        PIL.Image.fromarray(np.roll(LEVELS, i)).save(tmp_path / "p" / name, quality=95)
    (tmp_path / "p" / "notes.txt").write_text("mine")
    return tmp_path / "p"


def _names(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def test_a_folder_is_restored_file_by_file(folder) -> None:
    before = _names(folder)
    told = list(restore_folder(PATCHES, folder, truth=folder))
    out = folder.parent / "p-restored"
    assert _names(out) == ["a.jpg.png", "a.png", "b.png", "sub/c.png"]
    assert _names(folder) == before
    for name, one in zip(("a.jpg", "a.png", "b.jpg", "sub/c.tif"), told, strict=True):
        alone = restore_file(PATCHES, folder / name, out=out / "alone.png", truth=folder / name)
        assert one.out.read_bytes() == alone.out.read_bytes()
        assert (one.clipped, one.observed, one.restored) == (
            alone.clipped, alone.observed, alone.restored,
        )  # fmt: skip
        alone.out.unlink()


def test_folders_of_sound_and_of_rows(tmp_path) -> None:
    for name in ("sound", "rows"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "sound" / "s.flac", np.zeros(20), 8000)
    np.save(tmp_path / "rows" / "r.npy", np.zeros((3, 6)))
    for operator, name, file in ((SOUND, "sound", "s.flac"), (ROWS, "rows", "r.npy")):
        (told,) = restore_folder(operator, tmp_path / name)
        assert told.out == tmp_path / f"{name}-restored" / file
        assert told.out.exists()


def _another_length(path: Path) -> None:
    np.save(path, np.zeros((3, 5)))


def _a_link(path: Path) -> None:
    path.symlink_to("gone")


IN_FOLDERS = {
    "no picture": (PATCHES, "x.png", lambda path: path.write_text("no"), "must be a picture"),
    "floats beyond 1": (
        PATCHES, "x.tif", lambda path: tifffile.imwrite(path, 9 * np.ones((9, 9))), "must lie in",
    ),
    "a broken link": (PATCHES, "x.png", _a_link, "a broken link"),
    "another rate": (SOUND, "x.wav", lambda path: _another_rate(path), "16000 Hz"),
    "rows of another length": (ROWS, "x.npy", _another_length, r"rows \(samples, 6\)"),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "name", "make", "words"), IN_FOLDERS.values(), ids=IN_FOLDERS)
def test_a_file_that_cannot_be_used_is_named_or_skipped(
    operator, name: str, make, words: str, tmp_path
) -> None:
    (folder := tmp_path / "f").mkdir()
    if operator is PATCHES:
        PIL.Image.fromarray(LEVELS).save(folder / "good.png")
    elif operator is SOUND:
        soundfile.write(folder / "good.wav", np.zeros(20), 8000)
    else:
        np.save(folder / "good.npy", np.zeros((3, 6)))
    make(folder / name)
    with pytest.raises(ValueError, match=rf"{words}.*--skip-unreadable") as caught:
        restore_folder(operator, folder)
    assert str(folder / name) in str(caught.value)
    assert not (tmp_path / "f-restored").exists()
    told: list[str] = []
    (restored,) = restore_folder(operator, folder, skip=told.append)
    assert restored.out.stem == "good"
    assert [str(folder / name) in why for why in told] == [True]


def test_folders_that_cannot_be_used(folder, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "none").mkdir()
    for given, error, words in (
        ({"out": tmp_path / "full"}, FileExistsError, "out must be a new folder, or an empty one"),
        ({"out": folder / "a.png"}, FileExistsError, "out must be a new folder, or an empty one"),
        ({"truth": folder / "a.png"}, ValueError, "truth must be a folder"),
        (
            {"truth": tmp_path / "none"},
            ValueError,
            r"a\.jpg must be readable; got .*there is no fi",
        ),
    ):
        with pytest.raises(error, match=words):
            restore_folder(PATCHES, folder, **given)
    with pytest.raises(ValueError, match=r"must hold \.wav, \.flac for this operator; got none"):
        restore_folder(SOUND, folder)


def _no_picture(path: Path) -> None:
    path.write_text("no picture")


def _pages(path: Path) -> None:
    pages = [PIL.Image.fromarray(LEVELS)] * 2
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])


def _another_rate(path: Path) -> None:
    soundfile.write(path, np.zeros(9), 16000, format="WAV")


def _objects(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([[{}]]))


UNREADABLE = {
    "no picture": (PATCHES, _no_picture, "must be a picture"),
    "two pages": (PATCHES, _pages, "more than one page"),
    "no sound": (SOUND, _no_picture, "must be a sound"),
    "another rate": (SOUND, _another_rate, "16000 Hz, where 8000 Hz were learned on"),
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


@pytest.mark.parametrize("operator", READ.values(), ids=READ)
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


# ------------------------------------------------------------------------- the command line


def test_the_command(tmp_path, capsys) -> None:
    PATCHES.save(tmp_path / "operator.npz")
    PIL.Image.fromarray(LEVELS).save(tmp_path / "p.png")
    words = ["restore", "--operator", tmp_path / "operator.npz", tmp_path / "p.png"]
    assert cli.main([*map(str, words), "--truth", str(tmp_path / "p.png")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("PSNR inf dB observed, ")
    assert said.endswith(f"written to {tmp_path / 'p-restored.png'}\n")

    assert cli.main([*map(str, words)]) == 1
    assert "out must be a new file" in capsys.readouterr().err
    assert cli.main([*map(str, words), "--own", "no_such_module:Class"]) == 2
    assert "no_such_module:Class must be importable" in capsys.readouterr().err


def test_the_command_on_a_folder(folder, tmp_path, capsys) -> None:
    PATCHES.save(tmp_path / "operator.npz")
    words = ["restore", "--operator", str(tmp_path / "operator.npz"), str(folder)]
    (folder / "bad.png").write_text("no picture")
    assert cli.main(words) == 1
    assert "bad.png must be a picture" in (said := capsys.readouterr().err)
    assert "--skip-unreadable" in said
    assert cli.main([*words, "--skip-unreadable", "--truth", str(folder)]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"skipped: {folder / 'bad.png'} must be a picture")
    assert last == "restored: 4, skipped: 1"
    out = tmp_path / "p-restored"
    for line, name in zip(lines, ("a.jpg.png", "a.png", "b.png", "sub/c.png"), strict=True):
        assert line.startswith(f"written to {out / name}; PSNR inf dB observed, ")


# what is given in place of a file, and what is said
MISTAKEN = {
    "no file": (["no.png"], "there is no file {}/no.png"),
    "no operator": (["p/a.png", "--operator", "no.npz"], "there is no file {}/no.npz"),
    "a folder for the operator": (["p/a.png", "--operator", "p"], "{}/p is a folder, pass a file"),
    "a folder for the truth": (["p/a.png", "--truth", "p"], "{}/p is a folder, pass a file"),
    "no truth": (["p/a.png", "--truth", "no.png"], "there is no file {}/no.png"),
    "below a file": (["p/a.png/b.png"], "{}/p/a.png is a file, pass a folder"),
    "out a folder": (["p/a.png", "--out", "p"], "out must be a file; got the folder {}/p"),
    "out there": (["p/a.png", "--out", "p/b.jpg"], "out must be a new file; got {}/p/b.jpg"),
    "out below a file": (["p/a.png", "--out", "p/b.jpg/x/y.png"], "{}/p/b.jpg is a file"),
    "too long": (["x" * 300], "is too long: choose a shorter one"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKEN.values(), ids=MISTAKEN)
def test_what_the_system_refuses_is_told_in_words(
    words: list[str], message: str, folder, tmp_path, capsys
) -> None:
    PATCHES.save(tmp_path / "operator.npz")
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    if "--operator" not in words:
        words += ["--operator", str(tmp_path / "operator.npz")]
    before = _names(tmp_path)
    assert cli.main(["restore", *words]) == 1
    said = capsys.readouterr().err
    assert message.format(tmp_path) in said
    assert said.count("\n") == 1
    assert "Errno" not in said
    assert _names(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "p.png"), "no permission for p.png: ask for it"),
        (OSError(30, "Read-only file system", "p.png"), "p.png is read-only: name a folder"),
        (OSError(40, "Too many levels of symbolic links", "p.png"), "leads back to itself"),
        (OSError(24, "Too many open files", "p.png"), "Too many open files: p.png"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe: what was asked for"),
    ],
)
def test_what_else_the_system_refuses(error, words: str, tmp_path, capsys, monkeypatch) -> None:
    def refusing(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("hypergrad.learning.saved_operator.load_operator", refusing)
    assert cli.main(["restore", "p.png", "--operator", "o.npz"]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Errno" not in said


def test_an_interruption_of_restoring(monkeypatch, capsys) -> None:
    def stop(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hypergrad.learning.saved_operator.load_operator", stop)
    assert cli.main(["restore", "p.png", "--operator", "o.npz"]) == 130
    assert capsys.readouterr().err == "\nhypergrad: interrupted; what is written is whole\n"
