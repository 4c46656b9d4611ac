"""Pictures, sounds and rows as files: read, restored, written beside the one that was read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hypergrad import data
from hypergrad.records import write_bytes
from hypergrad.restoration import restore
from hypergrad.saved_operator import SavedOperator

__all__ = ["Restored", "restore_file"]

Floats = NDArray[np.floating]
Write = Callable[[BinaryIO, Floats, str], None]

# What a restored picture may be written as: without loss, unless it is asked for by name.
_PICTURES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SOUNDS = {".wav": "WAV", ".flac": "FLAC"}
_ROWS = {".npy": "NPY"}
_LOSSY = ("JPEG",)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What was written, and how good it is.

    `out`, the file; `shape` of its values; `clipped`, the share of values that the format could not
    hold and that lie at the end of its range now; `observed` and `restored`, PSNR in dB (peak 1)
    against the truth, None without one. `restored` is that of the file: rounded, clipped, and what
    JPEG leaves of it.
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
      in the units of the quantiser, [-1, 1]. Written as `name-restored.wav`, or FLAC.
    * **Rows** (`.npy` of shape `(samples, n)`). Written as `name-restored.npy`.

    **Arguments**: `operator`, from `load_operator`; `truth`, a file of the same kind and size to
    tell the PSNR by; `stride`, as in `restore`.

    **Returns**: a `Restored`.

    **Errors**: FileExistsError where there is a file at `out` already (nothing is overwritten);
    FileNotFoundError for what is missing; a `ValueError`, naming the file, for what cannot be used.
    """
    path, kind = Path(path), _kind_for(operator)
    observed = kind.read(path)
    out = path.with_name(f"{path.stem}-restored{observed.suffix}") if out is None else Path(out)
    if out.suffix.lower() not in kind.formats:
        raise ValueError(f"out must end in one of {', '.join(kind.formats)}; got {out}: name it so")
    if out.exists():
        raise FileExistsError(
            f"out must be a new file; got {out}, which exists: name another one by --out, or "
            "remove it"
        )
    exact = None if truth is None else _truth(kind, Path(truth), observed)
    restored = restore(operator, observed.values, stride=stride)
    written, clipped = observed.as_written(restored)
    form = kind.formats[out.suffix.lower()]
    write_bytes(out, lambda file: observed.write(file, written, form))  # pyright: ignore[reportArgumentType]
    if exact is None:
        return Restored(out, restored.shape, clipped)
    if form in _LOSSY:
        written = kind.read(out).values
    psnr = data.psnr(observed.values, exact), data.psnr(written, exact)
    return Restored(out, restored.shape, clipped, *psnr)


@dataclasses.dataclass(frozen=True)
class _Observed:
    """The values of a file, and how such values are written.

    `suffix` of the file that is written where none is named; `steps` between `least` and 1 that its
    format can hold, None for floats.
    """

    values: Floats
    suffix: str
    write: Write
    least: float = 0.0
    steps: int | None = None

    def as_written(self, values: Floats) -> tuple[Floats, float]:
        """What the format can hold of them, and the share that it cannot."""
        if self.steps is None:
            return values, 0.0
        held = np.clip(values, self.least, 1.0)
        step = (1 - self.least) / self.steps
        rounded = self.least + step * np.round((held - self.least) / step)
        outside = (values < self.least - step / 2) | (values > 1 + step / 2)
        return rounded, float(np.mean(outside))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of files: what it may be written as, and how one is read."""

    formats: dict[str, str]
    read: Callable[[Path], _Observed]


def _kind_for(operator: SavedOperator) -> _Kind:
    if len(operator.shape) == 2:
        return _Kind(_PICTURES, _read_picture)
    if operator.rate is not None:
        return _Kind(_SOUNDS, functools.partial(_read_sound, rate=operator.rate))
    return _Kind(_ROWS, _read_rows)


def _truth(kind: _Kind, path: Path, observed: _Observed) -> Floats:
    exact = kind.read(path).values
    if exact.shape != observed.values.shape:
        raise ValueError(
            f"truth must have the shape of what was observed, {observed.values.shape}; got "
            f"{exact.shape} in {path}: name the file that belongs to it"
        )
    return exact


def _opened(path: Path, what: str, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except OSError as error:
        if error.errno is not None:  # of the system, which names the file itself
            raise
        reason = error
    except Exception as error:  # whatever the many formats and their libraries come up with
        reason = error
    raise ValueError(
        f"{path} must be {what} for this operator; got {type(reason).__name__}: {reason}: name "
        "another file or operator"
    ) from None


# ------------------------------------------------------------------------------------ pictures


def _read_picture(path: Path) -> _Observed:
    return _opened(path, "a picture (PNG, JPEG or TIFF)", _open_picture)


def _open_picture(path: Path) -> _Observed:
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(path) as stored:
        if getattr(stored, "n_frames", 1) > 1:
            raise ValueError("more than one page")
        picture = PIL.ImageOps.exif_transpose(stored)
        if picture.mode == "F":
            return _Observed(_in_range(np.asarray(picture, float)), ".tif", _write_floats)
        if picture.mode.startswith("I"):
            grey = np.asarray(picture)
            if grey.dtype != np.uint16:
                raise ValueError(f"grey values of {grey.dtype}, where 8 or 16 bits are known")
            return _Observed(grey / 65535, ".png", _write_16_bits, steps=65535)
        transparent = picture.has_transparency_data
        if picture.mode in ("1", "L", "LA"):
            picture = picture.convert("LA" if transparent else "L")
        else:
            picture = picture.convert("RGBA" if transparent else "RGB")
        values = np.asarray(picture) / 255
    if not transparent:
        return _Observed(values, ".png", functools.partial(_write_8_bits, alpha=None), steps=255)
    colours, alpha = values[..., :-1], values[..., -1]
    colours = colours[..., 0] if colours.shape[-1] == 1 else colours
    return _Observed(colours, ".png", functools.partial(_write_8_bits, alpha=alpha), steps=255)


def _in_range(values: Floats) -> Floats:
    if not np.all(np.abs(values - 0.5) <= 0.5):
        raise ValueError("floats outside [0, 1]")
    return values


def _write_8_bits(file: BinaryIO, values: Floats, form: str, *, alpha: Floats | None) -> None:
    import PIL.Image

    if alpha is not None:
        _no_jpeg(form, "transparency")
        values = np.dstack([values, alpha])
    levels = np.round(255 * values).astype(np.uint8)
    PIL.Image.fromarray(levels).save(file, form, **_FINE.get(form, {}))


def _write_16_bits(file: BinaryIO, values: Floats, form: str) -> None:
    import PIL.Image

    _no_jpeg(form, "16 bits")
    PIL.Image.fromarray(np.round(65535 * values).astype(np.uint16)).save(file, form)


def _write_floats(file: BinaryIO, values: Floats, form: str) -> None:
    import PIL.Image

    if form != "TIFF":
        raise ValueError(f"floats must be written as TIFF; got {form}: let out end in .tif")
    PIL.Image.fromarray(values.astype(np.float32)).save(file, form)


def _no_jpeg(form: str, what: str) -> None:
    if form == "JPEG":
        raise ValueError(f"{what} must be written as PNG or TIFF; got JPEG: let out end in .png")


_FINE = {"JPEG": {"quality": 95}}


# -------------------------------------------------------------------------------- sounds and rows


def _read_sound(path: Path, rate: int) -> _Observed:
    import soundfile

    def opened(path: Path) -> _Observed:
        with soundfile.SoundFile(path) as stored:
            if stored.samplerate != rate:
                raise ValueError(f"{stored.samplerate} Hz, where {rate} Hz were learned on")
            values, subtype = np.asarray(stored.read(dtype="float64"), float), stored.subtype
        if not np.all(np.isfinite(values)):
            raise ValueError("NaN or inf")
        bits = {"PCM_16": 16, "PCM_24": 24, "PCM_U8": 8, "PCM_S8": 8, "PCM_32": 32}.get(subtype)
        steps = None if bits is None else 2**bits
        suffix = path.suffix.lower() if path.suffix.lower() in _SOUNDS else ".wav"
        write = functools.partial(_write_sound, rate=rate, subtype=subtype)
        return _Observed(values, suffix, write, least=-1.0, steps=steps)

    if not path.exists():
        raise FileNotFoundError(f"{path} must exist; got no such file: name one that does")
    return _opened(path, "a sound (WAV or FLAC)", opened)


def _write_sound(file: BinaryIO, values: Floats, form: str, *, rate: int, subtype: str) -> None:
    import soundfile

    fits = soundfile.check_format(form, subtype)
    soundfile.write(file, values, rate, format=form, subtype=subtype if fits else None)


def _read_rows(path: Path) -> _Observed:
    # np.load would unpickle and unzip as well.
    def opened(path: Path) -> _Observed:
        rows = np.lib.format.open_memmap(path, mode="r")
        return _Observed(np.asarray(rows), ".npy", _write_rows)

    return _opened(path, "a .npy of rows (samples, n)", opened)


def _write_rows(file: BinaryIO, values: Floats, form: str) -> None:
    np.lib.format.write_array(file, values, allow_pickle=False)
