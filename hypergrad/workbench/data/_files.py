"""Files in folders: which there are, which split each is in, and reading one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hypergrad._foundation.arrays import native
from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad.workbench.data._checks import one_of, require
from hypergrad.workbench.data.samples import Split

T = TypeVar("T")

# Called with the words that say which file is left out, and why.
Skip = Callable[[str], object]

AUDIO, IMAGES = (".wav", ".flac"), (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_LEAVE_OUT = "leave such files out by --skip-unreadable (skip= in Python)"


def files_below(
    folder: str | Path, suffixes: Sequence[str], skip: Skip | None = None
) -> list[Path]:
    """Return the files below `folder` with one of the suffixes, sorted by name.

    Linked folders are followed, each folder and each file is found once (a second name for one
    would put it into both splits), hidden ones are left out. A link that leads nowhere is skipped,
    or an error.
    """
    found: dict[Path, Path] = {}
    for file in _walk(Path(folder)):
        if file.is_dir():
            _refuse(file, "a folder must be readable", "a closed one", skip)
        elif not file.exists():
            _refuse(file, "a link must lead to a file or a folder", "a broken link", skip)
        elif file.is_file() and file.suffix.lower() in suffixes:
            found.setdefault(file.resolve(), file)
    return sorted(found.values(), key=lambda file: name_in(file, folder))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, those below links last: each folder is entered once, by its real place."""
    folders, linked, entered = [folder], [], set()
    while folders or linked:
        here = folders.pop() if folders else linked.pop()
        if (real := here.resolve()) in entered or not here.is_dir():
            continue
        entered.add(real)
        files = []
        try:
            entries = sorted(here.iterdir())
        except OSError:  # closed to this user
            yield here
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else folders).append(entry)
            else:
                files.append(entry)
        yield from sorted(files, key=Path.is_symlink)


def name_in(file: Path, folder: str | Path) -> str:
    return file.relative_to(folder).as_posix()


def part_of(files: list[Path], split: Split, split_seed: int, choose: float = 0.1) -> list[Path]:
    """The files of one split: a fifth tests, the share `choose` is to choose on, the rest train."""
    tests, chosen = max(1, round(len(files) / 5)), round(choose * len(files))
    shuffled = np.random.default_rng(split_seed).permutation(len(files))
    test, for_choice, train = np.split(shuffled, [tests, tests + chosen])
    parts = {"test": test, "choose": for_choice, "train": train}
    one_of("split", split, parts)
    part = [files[i] for i in sorted(parts[split])]
    require(bool(part), f"split {split!r} must get a file", f"{len(files)} in all", "add files")
    return part


def read_each(
    files: Sequence[Path], folder: str | Path, read: Callable[[Path], T], skip: Skip | None
) -> dict[str, T]:
    """Return the contents of each file, by its name in the folder, without skipped ones.

    **Errors**: the `ValueError` of `read`, which names the file, where there is no `skip`; and one
    where all were skipped.
    """
    found = {}
    for file in files:
        try:
            found[name_in(file, folder)] = read(file)
        except ValueError as error:
            if skip is None:
                raise HypergradError(f"{error}, or {_LEAVE_OUT}") from None
            skip(str(error))
    got = f"none of {len(files)} in {folder}"
    require(bool(found), "a file must be usable", got, "repair them, or add others")
    return found


def _refuse(file: Path, rule: str, got: str, skip: Skip | None) -> None:
    if skip is None:
        raise HypergradError(f"{rule}; got {got}, {file}: remove it, or {_LEAVE_OUT}")
    skip(f"{rule}; got {got}, {file}")


def read_with(file: Path, reader: Callable[[Path], Any]) -> Any:
    """Read a file.

    **Errors**: a `ValueError` that names the file, whatever is wrong with it.
    """
    try:
        with file.open("rb"):  # what the system refuses, libraries call an error of theirs
            return reader(file)
    except Exception as error:  # whatever the many formats and their libraries come up with
        refused = error.strerror if isinstance(error, OSError) else None
        reason = refused or reason_of(error)
        raise HypergradError(f"file must be readable; got {file} ({reason}): repair it") from None


def read_picture(file: Path, from_pillow: Callable[[Any], T], from_array: Callable[[Any], T]) -> T:
    """Return the pixels of a picture of one page, from Pillow or from the array of another TIFF.

    Pillow knows no TIFF of 16 or 64 bit floats, say, and takes all whole numbers for signed ones.
    """
    import PIL.Image  # skimage.io would take CMYK for RGBA, and leave a broken file open

    is_tiff = file.suffix.lower() in (".tif", ".tiff")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about metadata, which is not used
            with PIL.Image.open(file) as picture:
                if getattr(picture, "n_frames", 1) > 1:
                    raise HypergradError("more than one page")
                if not (is_tiff and picture.mode == "I"):
                    return from_pillow(picture)
    except PIL.UnidentifiedImageError:
        if not is_tiff:
            raise
    return from_array(_tiff_array(file))


def _tiff_array(file: Path) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(file) as stored:
        if len(stored.pages) > 1:
            raise HypergradError("more than one page")
        return native(stored.asarray())


def finite(values: NDArray[Any], file: Path) -> NDArray[Any]:
    usable = bool(np.all(np.isfinite(values)))
    require(usable, "values must be finite", f"NaN or inf in {file}", "remove them")
    return values
