"""Custom data: rows of a `.npy`, images, or sound."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypergrad._foundation.arrays import native
from hypergrad.workbench.data._checks import require
from hypergrad.workbench.data._files import (
    AUDIO,
    IMAGES,
    Skip,
    files_below,
    finite,
    name_in,
    part_of,
    read_each,
    read_picture,
    read_with,
)
from hypergrad.workbench.data.photographs import grey_of, windows_of
from hypergrad.workbench.data.samples import Floats, Samples, Split, noisy, stacked
from hypergrad.workbench.data.speech import quantised

_NAME_OWN = "name a .npy of shape (samples, n), a folder of images, or a folder of WAV or FLAC"


def load_own(
    path: str | Path,
    *,
    noise: float = 0.1,
    size: int = 8,
    frame: int = 160,
    bits: int = 3,
    rate: int = 8000,
    seed: int,
    split_seed: int = 0,
    most: Mapping[Split, int] | None = None,
    skip: Skip | None = None,
) -> dict[str, Samples]:
    """Return custom data as `{"train": Samples, "test": Samples}`, a fifth of it held out.

    * A `.npy` of shape `(samples, n)`: `noise`, in its units, is added, and the last fifth of the
      rows tests (so keep rows that are alike together). Of a split with a `most`, so many rows are
      drawn with `seed` where there are more: the file may be larger than the memory.
    * A folder of PNG, JPEG or TIFF: grey in [0, 1], patches side by side, `noise` added.
    * A folder of WAV or FLAC: as `speech_frames`, all frames, no file left out.

    Folders are split by file, and linked folders are followed. FileNotFoundError where `path` is
    missing; ValueError, naming the file, for what cannot be used. With `skip`, a function such as
    `print` or `warnings.warn`, a file of a folder that cannot be used is left out instead, and
    `skip` is called with the reason.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/own.npy", np.zeros((10, 3)))
    ...     {split: len(own) for split, own in load_own(f"{folder}/own.npy", seed=0).items()}
    {'train': 8, 'test': 2}
    """
    path, rng = Path(path), np.random.default_rng(seed)
    require(path.exists(), "path must exist", path, _NAME_OWN, FileNotFoundError)
    is_rows = path.suffix.lower() == ".npy" and not path.is_dir()
    require(is_rows or path.is_dir(), "path must be a .npy or a folder", path, _NAME_OWN)
    files = [] if is_rows else files_below(path, IMAGES + AUDIO, skip)
    audio = [file for file in files if file.suffix.lower() in AUDIO]
    found = f"{len(files) - len(audio)} images and {len(audio)} audio files in {path}"
    one_kind = is_rows or (len(files) > 0 and len(audio) in (0, len(files)))
    require(one_kind, "path must hold one kind of data", found, _NAME_OWN)

    def load(split: Split) -> Samples:
        if is_rows:
            rows = _npy_rows(path, split, (most or {}).get(split), rng)
            return stacked({path.name: rows}, rows.shape[1:], lambda x: noisy(x, noise, rng))
        part = part_of(files, split, split_seed, choose=0.0)
        if audio:
            return quantised(path, part, frame, bits, rate, skip)
        patches = read_each(part, path, lambda file: _patches_of(file, size), skip)
        return stacked(patches, (size, size), lambda x: noisy(x, noise, rng))

    return {"train": load("train"), "test": load("test")}


def _npy_rows(file: Path, split: Split, most: int | None, rng: np.random.Generator) -> Floats:
    # np.load would unpickle and unzip as well.
    rows = read_with(file, lambda file: np.lib.format.open_memmap(file, mode="r"))
    usable = rows.ndim == 2 and len(rows) > 1 and rows.size > 0 and rows.dtype.kind in "fiu"
    rule = "a .npy must hold real numbers of shape (samples, n), two samples at least"
    got = f"{rows.dtype} of shape {rows.shape} in {file}"
    require(usable, rule, got, "save one flattened sample a row")
    held_out = max(1, round(len(rows) / 5))
    rows = rows[-held_out:] if split == "test" else rows[:-held_out]
    if most is not None and len(rows) > most:
        rows = rows[np.sort(rng.choice(len(rows), most, replace=False))]
    return finite(np.array(rows, float), file)


@dataclasses.dataclass(frozen=True)
class ImageFolder(Sequence[Floats]):
    """The images of a folder, grey in [0, 1], each read when it is asked for.

    **Arguments**: `folder`, with PNG, JPEG or TIFF in it or below; `skip`, a function such as
    `print`: every file is read once, what cannot be used is left out, and `skip` is called with the
    reason.

    **Errors**: FileNotFoundError where the folder is missing; a `HypergradError`, naming the file,
    for one that cannot be used.

    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("L", (3, 2), 255).save(f"{folder}/white.png")
    ...     images = ImageFolder(folder)
    ...     print(len(images), images.names, images[0].shape)
    1 ['white.png'] (2, 3)
    """

    folder: str | Path
    skip: dataclasses.InitVar[Skip | None] = None
    names: list[str] = dataclasses.field(init=False)

    def __post_init__(self, skip: Skip | None) -> None:
        folder = Path(self.folder)
        require(
            folder.is_dir(), "path must exist", folder, "name a folder of images", FileNotFoundError
        )
        files = files_below(folder, IMAGES, skip)
        require(bool(files), "a folder must hold images", f"none in {folder}", "name another")
        if skip is not None:
            usable = read_each(files, folder, lambda file: _grey_image(file).shape, skip)
            files = [folder / name for name in usable]
        object.__setattr__(self, "names", [name_in(file, folder) for file in files])
        # However it is spelled: the settings of a run on this folder are then the same.
        object.__setattr__(self, "folder", str(folder.resolve()))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # no image is read
            part = copy.copy(self)
            object.__setattr__(part, "names", self.names[index])
            return part
        folder = Path(self.folder)
        return read_each([folder / self.names[index]], folder, _grey_image, None).popitem()[1]


def _grey_image(file: Path) -> Floats:
    def values_of(picture: Any) -> NDArray[Any]:
        is_grey = picture.mode in ("1", "L", "F") or picture.mode.startswith("I")
        return native(np.asarray(picture if is_grey else picture.convert("RGBA")))

    read = functools.partial(read_picture, from_pillow=values_of, from_array=np.asarray)
    return grey_of(read_with(file, read), file)


def _patches_of(file: Path, size: int) -> Floats:
    windows = windows_of(_grey_image(file), size, file)
    return windows[::size, ::size].reshape(-1, size * size)
