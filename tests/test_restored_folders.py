"""Folders of pictures, sounds and rows that are restored, and the command `restore`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import tifffile
from restoring import LEVELS, PATCHES, ROWS, SOUND, another_rate

from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.restored_files import restore_file, restore_folder


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
    "another rate": (SOUND, "x.wav", another_rate, "16000 Hz"),
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
