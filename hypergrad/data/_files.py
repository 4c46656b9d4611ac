"""Files in folders: which there are, which split each is in, and reading one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypergrad.data._checks import one_of, require
from hypergrad.data.samples import Split

AUDIO, IMAGES = (".wav", ".flac"), (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def files_below(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files below `folder` with one of the suffixes, sorted by name, hidden ones left out."""
    files = (file for file in Path(folder).rglob("*") if file.suffix.lower() in suffixes)
    seen = (file for file in files if file.is_file() and "/." not in "/" + name_in(file, folder))
    return sorted(seen, key=lambda file: name_in(file, folder))


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


def read_with(file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except Exception as error:  # whatever the many formats and their libraries come up with
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"file must be readable; got {file} ({reason}): repair it") from None


def finite(values: NDArray[Any], file: Path) -> NDArray[Any]:
    usable = bool(np.all(np.isfinite(values)))
    require(usable, "values must be finite", f"NaN or inf in {file}", "remove them")
    return values
