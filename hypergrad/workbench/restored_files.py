"""Pictures, sounds and rows as files: read, restored, written beside what was read."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypergrad._foundation.arrays import native
from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad._foundation.records import write_bytes
from hypergrad.learning.restoration import check_observed, restore
from hypergrad.learning.saved_operator import SavedOperator
from hypergrad.workbench import data
from hypergrad.workbench.data._files import Skip, files_below, read_each, read_picture

__all__ = ["Restored", "restore_file", "restore_folder"]

Floats = NDArray[np.floating]
Write = Callable[[BinaryIO, Floats, str], None]

# What a restored picture may be written as: without loss, unless it is asked for by name.
_PICTURES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SOUNDS = {".wav": "WAV", ".flac": "FLAC"}
_ROWS = {".npy": "NPY"}


@dataclasses.dataclass(frozen=True)
class Restored:
    """The files that were written, and their quality.

    `out`, the file; `shape` of its values; `clipped`, the share of values that its format could not
    hold and that lie at the end of its range now; `observed` and `restored`, PSNR in dB (peak 1)
    against the truth, None without one. `restored` is that of the file as it is read again.
    """

    out: Path
    shape: tuple[int, ...]
    clipped: float
    observed: float | None = None
    restored: float | None = None


def restore_file(
    operator: SavedOperator,
    path: str | Path,
    *,
    out: str | Path | None = None,
    truth: str | Path | None = None,
    stride: int | None = None,
) -> Restored:
    """Restore a file by a learned operator, and write what comes out beside it, or to `out`.

    * **Pictures** (PNG, JPEG, TIFF; an operator of patches): grey ones, and colour ones channel by
      channel, of any size; transparency is kept, an orientation in the file applied, 16 bits grey
      stay 16 bits, floats in TIFF stay floats. Written as `name-restored.png` (`.tif` for floats).
    * **Sounds** (WAV, FLAC; an operator of speech): channel by channel, at the rate learned on and
      in the units of the quantiser, [-1, 1]. Written as `name-restored.wav`, or FLAC, with the bits
      that were read; what had none (floats, mu-law, Vorbis) as floats, in FLAC with 24 bits.
    * **Rows** (`.npy` of shape `(samples, n)`). Written as `name-restored.npy`.

    **Arguments**: `operator`, from `load_operator`; `truth`, a file of the same kind and size to
    tell the PSNR by; `stride`, as in `restore`.

    **Returns**: a `Restored`.

    **Errors**: FileExistsError where there is a file at `out` already (nothing is overwritten);
    FileNotFoundError for what is missing; a `ValueError`, naming the file, for what cannot be used.
    """
    path, kind = Path(path), _kind_for(operator)
    observed = _read(kind, path)
    out = path.with_name(f"{path.stem}-restored{observed.suffix}") if out is None else Path(out)
    if out.is_dir():
        raise HypergradError(f"out must be a file; got the folder {out}: name a file in it")
    if out.suffix.lower() not in kind.formats:
        raise HypergradError(
            f"out must end in one of {', '.join(kind.formats)}; got {out}: name it so"
        )
    if out.exists():
        raise FileExistsError(
            f"out must be a new file; got {out}, which exists: name another one by --out, or "
            "remove it"
        )
    form = kind.formats[out.suffix.lower()]
    holds = observed.holds(form)
    exact = None if truth is None else _truth(kind, Path(truth), observed)
    restored = restore(operator, observed.values, stride=stride)
    write_bytes(out, lambda file: observed.write(file, restored, form))  # pyright: ignore[reportArgumentType]
    clipped = 0.0 if holds is None else holds.share_outside(restored)
    if exact is None:
        return Restored(out, restored.shape, clipped)
    psnr = data.psnr(observed.values, exact), data.psnr(kind.read(out).values, exact)
    return Restored(out, restored.shape, clipped, *psnr)


def restore_folder(
    operator: SavedOperator,
    folder: str | Path,
    *,
    out: str | Path | None = None,
    truth: str | Path | None = None,
    stride: int | None = None,
    skip: Skip | None = None,
) -> Iterator[Restored]:
    """Restore all files of a folder that are of the operator's kind, each as `restore_file` does.

    Linked folders are followed. Files keep their names, with the suffix of what is written, in
    `out`, a new folder: `<folder>-restored` by default. All are read before the first one is
    written.

    **Arguments**: `truth`, a folder with a file of the same name for each; `skip`, a function such
    as `print`: a file that cannot be used is left out, and `skip` is called with the reason.

    **Returns**: an iterator; each step restores a file.

    **Errors**: as `restore_file`, at once; a `ValueError` where there is no such file.
    """
    folder, kind, out = Path(folder), _kind_for(operator), _new_folder(Path(folder), out)
    if truth is not None and not Path(truth).is_dir():
        raise HypergradError(
            f"truth must be a folder, since {folder} is one; got {truth}: name the folder with a "
            "true file of the same name for each"
        )
    files = files_below(folder, tuple(kind.formats), skip)
    if not files:
        raise HypergradError(
            f"{folder} must hold {', '.join(kind.formats)} for this operator; got none: name "
            "another folder or operator"
        )

    def suffix_of(file: Path) -> str:
        try:
            observed = _read(kind, file)
            if truth is not None:
                _truth(kind, Path(truth) / file.relative_to(folder), observed)
        except OSError as error:
            raise HypergradError(f"{file} must be readable; got {reason_of(error)}") from None
        return observed.suffix

    names = _names_written(read_each(files, folder, suffix_of, skip))
    return (
        restore_file(
            operator,
            folder / name,
            out=out / written,
            truth=None if truth is None else Path(truth) / name,
            stride=stride,
        )
        for name, written in names.items()
    )


def _new_folder(folder: Path, out: str | Path | None) -> Path:
    """Return the folder for restored files: a new one or an empty one."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    out = named.with_name(f"{named.name}-restored") if out is None else Path(out)
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise FileExistsError(
            f"out must be a new folder, or an empty one; got {out}, which exists: name another one "
            "by --out, or remove it"
        )
    return out


def _names_written(suffixes: Mapping[str, str]) -> dict[str, str]:
    """Return the name under which each file is written: its own, with the suffix of the output.

    >>> _names_written({"a.png": ".png", "a.jpg": ".png", "b.jpg": ".png"})
    {'a.png': 'a.png', 'a.jpg': 'a.jpg.png', 'b.jpg': 'b.png'}
    """
    stems = {name: str(Path(name).with_suffix("")) for name in suffixes}
    counts = collections.Counter(stems.values())
    return {
        name: name
        if name.lower().endswith(suffix)
        else (stems[name] if counts[stems[name]] == 1 else name) + suffix
        for name, suffix in suffixes.items()
    }


class _Range(NamedTuple):
    """The range of a file of whole numbers: from `least` to `most`, in steps."""

    least: float
    most: float
    step: float

    def share_outside(self, values: Floats) -> float:
        """The share of values that are moved by more than rounding."""
        below, above = self.least - self.step / 2, self.most + self.step / 2
        return float(np.mean((values < below) | (values > above)))


@dataclasses.dataclass(frozen=True)
class _Observed:
    """The values of a file, and how such values are written.

    `suffix` of the file that is written where none is named; `holds(form)`, what a file of a format
    can hold of them, None where all: a `ValueError` for a format that is no choice.
    """

    values: Floats
    suffix: str
    write: Write
    holds: Callable[[str], _Range | None]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of files: what it may be written as, how one is read, what refuses its values."""

    formats: dict[str, str]
    read: Callable[[Path], _Observed]
    check: Callable[[Floats], None]


def _kind_for(operator: SavedOperator) -> _Kind:
    check = functools.partial(check_observed, operator)
    if len(operator.shape) == 2:
        return _Kind(_PICTURES, _read_picture, functools.partial(_check_picture, operator))
    if operator.rate is not None:
        return _Kind(_SOUNDS, functools.partial(_read_sound, rate=operator.rate), check)
    return _Kind(_ROWS, _read_rows, check)


def _check_picture(operator: SavedOperator, values: Floats) -> None:
    check_observed(operator, values)
    if np.any(np.abs(values - 0.5) > 0.5):
        raise HypergradError("grey must lie in [0, 1]; got floats outside: rescale them")


def _read(kind: _Kind, path: Path) -> _Observed:
    """Read a file that is to be restored, or a ground truth."""
    observed = kind.read(path)
    try:
        kind.check(observed.values)
    except ValueError as error:
        raise HypergradError(f"{path}: {error}") from None
    return observed


def _truth(kind: _Kind, path: Path, observed: _Observed) -> Floats:
    exact = _read(kind, path).values
    if exact.shape != observed.values.shape:
        raise HypergradError(
            f"truth must have the shape of what was observed, {observed.values.shape}; got "
            f"{exact.shape} in {path}: name the file that belongs to it"
        )
    return exact


def _opened(path: Path, what: str, reader: Callable[[Path], Any]) -> Any:
    with path.open("rb"):  # what the system refuses, libraries call an error of theirs
        pass
    try:
        return reader(path)
    except Exception as error:  # whatever the many formats and their libraries come up with
        reason = reason_of(error)
    raise HypergradError(
        f"{path} must be {what} for this operator; got {reason}: name another file or operator"
    ) from None


# ------------------------------------------------------------------------------------ pictures


def _read_picture(path: Path) -> _Observed:
    read = functools.partial(read_picture, from_pillow=_of_picture, from_array=_of_numbers)
    return _opened(path, "a picture (PNG, JPEG or TIFF)", read)


def _of_picture(stored: Any) -> _Observed:
    import PIL.ImageOps

    picture = PIL.ImageOps.exif_transpose(stored)
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _of_numbers(native(np.asarray(picture)))
    transparent = picture.has_transparency_data
    if picture.mode in ("1", "L", "LA"):
        picture = picture.convert("LA" if transparent else "L")
    else:
        picture = picture.convert("RGBA" if transparent else "RGB")
    values = np.asarray(picture) / 255
    if not transparent:
        return _Observed(values, ".png", _write_8_bits, lambda form: _Range(0, 1, 1 / 255))
    colours, alpha = values[..., :-1], values[..., -1]
    colours = colours[..., 0] if colours.shape[-1] == 1 else colours
    write = functools.partial(_write_8_bits, alpha=alpha)
    return _Observed(colours, ".png", write, functools.partial(_lossless, "transparency", 255))


def _of_numbers(grey: NDArray[Any]) -> _Observed:
    """Grey values of more than 8 bits, or floats."""
    if grey.ndim == 2 and grey.dtype.kind == "f":
        return _Observed(grey.astype(float), ".tif", _write_floats, _only_tiff)
    if grey.ndim == 2 and grey.dtype == np.uint16:
        holds = functools.partial(_lossless, "16 bits", 65535)
        return _Observed(grey / 65535, ".png", _write_16_bits, holds)
    raise HypergradError(
        f"{grey.dtype} of shape {grey.shape}, where 8 bits, 16 bits grey and floats grey are known"
    )


def _lossless(what: str, steps: int, form: str) -> _Range:
    if form == "JPEG":
        raise HypergradError(
            f"{what} must be written as PNG or TIFF; got JPEG: let out end in .png"
        )
    return _Range(0, 1, 1 / steps)


def _only_tiff(form: str) -> None:
    if form != "TIFF":
        raise HypergradError(f"floats must be written as TIFF; got {form}: let out end in .tif")


def _write_8_bits(file: BinaryIO, values: Floats, form: str, alpha: Floats | None = None) -> None:
    import PIL.Image

    values = values if alpha is None else np.dstack([values, alpha])
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    PIL.Image.fromarray(levels).save(file, form, **_FINE.get(form, {}))


def _write_16_bits(file: BinaryIO, values: Floats, form: str) -> None:
    import PIL.Image

    levels = np.round(65535 * np.clip(values, 0, 1)).astype(np.uint16)
    PIL.Image.fromarray(levels).save(file, form)


def _write_floats(file: BinaryIO, values: Floats, form: str) -> None:
    import PIL.Image

    PIL.Image.fromarray(values.astype(np.float32)).save(file, form)


_FINE = {"JPEG": {"quality": 95}}


# -------------------------------------------------------------------------------- sounds and rows

# Whole numbers of so many bits. All others are floats, or come from floats (mu-law, Vorbis, …).
_BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


def _read_sound(path: Path, rate: int) -> _Observed:
    import soundfile

    def opened(path: Path) -> _Observed:
        with soundfile.SoundFile(path) as stored:
            if stored.samplerate != rate:
                raise HypergradError(f"{stored.samplerate} Hz, where {rate} Hz were learned on")
            values, subtype = np.asarray(stored.read(dtype="float64"), float), stored.subtype
        suffix = path.suffix.lower() if path.suffix.lower() in _SOUNDS else ".wav"
        write = functools.partial(_write_sound, rate=rate, subtype=subtype)
        return _Observed(values, suffix, write, lambda form: _range_of(_subtype_for(form, subtype)))

    return _opened(path, "a sound (WAV or FLAC)", opened)


def _subtype_for(form: str, subtype: str) -> str:
    """The subtype to write in: as many bits as were read, or more; floats where no bits were read.

    Floats in FLAC, which has none, get its 24 bits.
    """
    import soundfile

    bits = _BITS.get(subtype)
    wanted = [subtype, *(s for s, n in _BITS.items() if n >= bits)] if bits else []
    floats = [subtype if subtype == "DOUBLE" else "FLOAT"] if not bits else []
    return next(s for s in (*wanted, *floats, "PCM_24") if soundfile.check_format(form, s))


def _range_of(subtype: str) -> _Range | None:
    if subtype not in _BITS:
        return None
    step = 2.0 ** (1 - _BITS[subtype])
    return _Range(-1.0, 1.0 - step, step)


def _write_sound(file: BinaryIO, values: Floats, form: str, *, rate: int, subtype: str) -> None:
    import soundfile

    subtype, stored = _subtype_for(form, subtype), values
    if (holds := _range_of(subtype)) is not None:
        # libsndfile, which takes 32 bits, would round floats down.
        levels = np.round(np.clip(values, holds.least, holds.most) / holds.step)
        stored = (levels * (holds.step * 2.0**31)).astype(np.int32)
    try:
        soundfile.write(file, stored, rate, format=form, subtype=subtype)
    except soundfile.LibsndfileError as error:  # 9 channels in FLAC, say
        raise HypergradError(
            f"out must be of a format that holds such a sound; got {form}: {error}: let out end in "
            ".wav"
        ) from None


def _read_rows(path: Path) -> _Observed:
    # np.load would unpickle and unzip as well.
    def opened(path: Path) -> _Observed:
        rows = np.lib.format.open_memmap(path, mode="r")
        return _Observed(np.asarray(rows), ".npy", _write_rows, lambda form: None)

    return _opened(path, "a .npy of rows (samples, n)", opened)


def _write_rows(file: BinaryIO, values: Floats, form: str) -> None:
    np.lib.format.write_array(file, values, allow_pickle=False)
