"""Real data as float64 NumPy arrays: photographs, disparity rows, speech, and one's own.

Training and held-out samples never share a photograph, a band of rows, a clip or a file. Nothing
is downloaded, and every draw comes from the seed given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Split = Literal["train", "choose", "test"]

# Chosen so that training and held-out photographs are equally hard.
PHOTOGRAPHS_TRAIN = ("astronaut", "chelsea", "coins", "brick")
PHOTOGRAPHS_CHOOSE = ("rocket",)
PHOTOGRAPHS_HELD_OUT = ("camera", "coffee")
# More than 1024 pixels a side. Of another kind than the others: to measure time and memory with.
PHOTOGRAPHS_LARGE = ("retina",)

DISPARITY_ROWS = {"train": (0, 300), "test": (350, 500)}  # a gap, since neighbouring rows are alike
DISPARITY_PEAK = 60.0  # pixels; the largest measured disparity is 59.9
MEASURED = 0.9  # of the pixels of a window, at least; the others are filled in

ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
NOT_SPEECH = ("silence/*", "beep*", "*tone*", "confbridge-join", "confbridge-leave", "tt-monkeys")
QUIET = 0.05  # rms after peak normalisation; only louder frames are kept
AUDIO, IMAGES = (".wav", ".flac"), (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_DEBIAN = "asterisk-core-sounds-en-wav"
_GET_SPEECH = (
    f"install the Debian package, `apt-get install {_DEBIAN}` (without root: `apt-get download "
    f"{_DEBIAN} && dpkg-deb -x {_DEBIAN}_*.deb speech`, then name the folder speech{ASTERISK}), "
    "or name any folder of WAV or FLAC files"
)
_NAME_OWN = "name a .npy of shape (samples, n), a folder of images, or a folder of WAV or FLAC"


@dataclass(frozen=True, eq=False)
class Samples:
    """Observations `x_tilde` of ground truths `x_true`, both `(N, n)`, float64.

    `shape` is that of one sample before flattening, `(8, 8)` or `(160,)`. Sample `i` comes from
    `source[source_index[i]]`: a photograph, a row or a file. ValueError where the shapes disagree.

    >>> pair = Samples(np.zeros((2, 4)), np.ones((2, 4)), (2, 2), ("a", "b"), np.array([0, 1]))
    >>> len(pair), pair.take([1]).x_true.shape
    (2, (1, 4))
    """

    x_tilde: Floats
    x_true: Floats
    shape: tuple[int, ...]
    source: tuple[str, ...]
    source_index: NDArray[np.intp]

    def __post_init__(self) -> None:
        expected = (len(self.source_index), math.prod(self.shape))
        got = self.x_tilde.shape, self.x_true.shape
        rule = f"x_tilde and x_true must be (len(source_index), prod(shape)) = {expected}"
        _require(got == (expected, expected), rule, got, "flatten each sample to one row")

    def __len__(self) -> int:
        return len(self.x_true)

    def astype(self, dtype: Any) -> Samples:
        """The same samples in another precision.

        >>> pair = Samples(np.zeros((1, 2)), np.ones((1, 2)), (2,), ("a",), np.array([0]))
        >>> pair.astype(np.float32).x_true.dtype
        dtype('float32')
        """
        return replace(self, x_tilde=self.x_tilde.astype(dtype), x_true=self.x_true.astype(dtype))

    def take(self, indices: slice | Sequence[int] | NDArray[Any]) -> Samples:
        """The samples at `indices`: a slice, integers or a mask, as NumPy reads them."""
        rows = self.x_tilde[indices], self.x_true[indices]
        return Samples(*rows, self.shape, self.source, self.source_index[indices])


def photograph(name: str) -> Floats:
    """One of scikit-image's photographs, `(h, w)`, grey in [0, 1]; ValueError for another name.

    >>> photograph("camera").shape
    (512, 512)
    """
    small = PHOTOGRAPHS_TRAIN + PHOTOGRAPHS_CHOOSE + PHOTOGRAPHS_HELD_OUT
    _one_of("name", name, small + PHOTOGRAPHS_LARGE)
    import skimage.data

    return _grey(getattr(skimage.data, name)(), name)


def random_patches(
    images: Mapping[str, ArrayLike], count: int, *, size: int = 8, rng: np.random.Generator
) -> Floats:
    """`(count, size * size)` patches at uniformly random places, equally many from each image.

    Row `i` comes from image `i % len(images)`, so that the first rows are a fair mixture too.
    Places may repeat. ValueError where an image is smaller than a patch.

    >>> random_patches({"flat": np.ones((9, 9))}, 5, size=3, rng=np.random.default_rng(0)).shape
    (5, 9)
    """
    _at_least_one(count=count, size=size, images=len(images))
    patches = np.empty((count, size * size))
    for first, (name, image) in enumerate(images.items()):
        windows, rows = _windows(image, size, name), patches[first :: len(images)]
        top, left = (rng.integers(places, size=len(rows)) for places in windows.shape[:2])
        rows[:] = windows[top, left].reshape(rows.shape)
    return patches


def noisy_patches(
    images: Iterable[str] | Mapping[str, ArrayLike],
    count: int,
    *,
    size: int = 8,
    noise: float = 0.1,
    seed: int,
) -> Samples:
    """`random_patches` of images, or of photographs by name, with Gaussian noise added.

    `noise` is its standard deviation in the units of the images (grey in [0, 1]); another one with
    the same seed keeps the places and only scales the noise.

    >>> noisy_patches(PHOTOGRAPHS_TRAIN, 10, seed=0).x_tilde.shape
    (10, 64)
    """
    if not isinstance(images, Mapping):
        names = (images,) if isinstance(images, str) else images
        images = {name: photograph(name) for name in names}
    rng = np.random.default_rng(seed)
    x_true = random_patches(images, count, size=size, rng=rng)
    index = np.arange(count) % len(images)
    return Samples(_noisy(x_true, noise, rng), x_true, (size, size), tuple(images), index)


def all_patches(image: ArrayLike, *, size: int = 8, stride: int = 4) -> Floats:
    """The patches of `image` `(h, w)` every `stride` pixels, row by row: `(N, size * size)`.

    Where `stride` does not divide, one more patch reaches the last row or column, so that the image
    is covered. ValueError unless `1 <= stride <= size <= min(h, w)`.

    >>> all_patches(np.ones((3, 5)), size=2, stride=2).shape
    (6, 4)
    """
    windows = _windows(image, size, "image")
    rows, columns = (_starts(extent, size, stride) for extent in np.shape(image))
    return windows[np.ix_(rows, columns)].reshape(-1, size * size)


def assemble(
    patches: ArrayLike, shape: tuple[int, int], *, size: int = 8, stride: int = 4
) -> Floats:
    """The image of `shape` `(h, w)` from the patches of `all_patches`, overlaps averaged.

    Unchanged patches give the image back to rounding. ValueError where there are not as many as
    `all_patches` cuts with this `size` and `stride`.

    >>> image = np.eye(3, 5)
    >>> np.allclose(assemble(all_patches(image, size=2, stride=1), (3, 5), size=2, stride=1), image)
    True
    """
    rows, columns = (_starts(extent, size, stride) for extent in shape)
    expected, got = (len(rows) * len(columns), size * size), np.shape(patches)
    rule = f"patches must have shape {expected} for an image of shape {tuple(shape)}"
    _require(got == expected, rule, got, "use the size and stride that all_patches had")
    grid = np.asarray(patches, float).reshape(len(rows), len(columns), size, size)
    total, covered = np.zeros(shape), np.zeros(shape)
    for i, j in np.ndindex(size, size):  # one pixel of every patch: no place occurs twice
        place = np.ix_(rows + i, columns + j)
        total[place] += grid[:, :, i, j]
        covered[place] += 1
    return total / covered


def disparity_rows(
    split: Literal["train", "test"], *, length: int | None = None, noise: float = 0.1, seed: int
) -> Samples:
    """Rows of a measured disparity map, piecewise smooth with jumps, with Gaussian noise added.

    Rows 0-299 train, 350-499 test, cut side by side to `length` pixels (None: the whole row, 741)
    and divided by 60 pixels: `x_true` in [0.1, 1], `noise` in the same units. A pixel without a
    measurement (+inf in the map) takes the smaller, that is the farther, of the nearest measured
    ones left and right of it: a jump stays one jump. Windows more than a tenth unmeasured are left
    out, so up to a tenth of `x_true` is a guess. The test rows have far fewer jumps than the
    training rows. The map: `skimage.data.stereo_motorcycle`, Scharstein et al., GCPR 2014.

    >>> disparity_rows("test", length=128, seed=0).shape
    (128,)
    """
    _one_of("split", split, DISPARITY_ROWS)
    import skimage.data

    first, last = DISPARITY_ROWS[split]
    rows = skimage.data.stereo_motorcycle()[2][first:last].astype(float)
    width = rows.shape[1]
    n = width if length is None else length
    _require(1 <= n <= width, f"length must be from 1 to {width}", length, "choose another")
    across = width // n
    filled, measured = (a[:, : across * n].reshape(-1, n) for a in (_fill(rows), np.isfinite(rows)))
    kept = np.flatnonzero(measured.mean(axis=1) >= MEASURED)
    x_true, source = filled[kept] / DISPARITY_PEAK, tuple(f"row {i}" for i in range(first, last))
    x_tilde = _noisy(x_true, noise, np.random.default_rng(seed))
    return Samples(x_tilde, x_true, (n,), source, kept // across)


def _fill(rows: Floats) -> Floats:
    """Each unmeasured pixel replaced by the smaller of its nearest measured ones in the row."""

    def carried_right(rows: Floats) -> Floats:
        columns = np.where(np.isfinite(rows), np.arange(rows.shape[1]), 0)
        return np.take_along_axis(rows, np.maximum.accumulate(columns, axis=1), axis=1)

    # fmin prefers a number to NaN: the map has +inf, its documentation says NaN.
    return np.fmin(carried_right(rows), carried_right(rows[:, ::-1])[:, ::-1])


def quantise(x: ArrayLike, bits: int) -> Floats:
    """The nearest of the `2^bits` mid-riser levels, odd multiples of half a step, in [-1, 1].

    The step is `2^(1 - bits)` and the error at most half of it, so that `Box(2.0**-bits)` fits.
    ValueError where `x` leaves [-1, 1].

    >>> quantise([-1.0, 0.0, 0.3, 1.0], bits=2)
    array([-0.75,  0.25,  0.25,  0.75])
    """
    _at_least_one(bits=bits)
    step, x = 2.0 ** (1 - bits), np.asarray(x, float)
    inside = bool(np.all(np.abs(x) <= 1))
    _require(inside, "x must lie in [-1, 1]", "values outside, or NaN", "divide by the peak")
    # The cell of x = 1 would lie above 1; it belongs to the last one instead.
    return np.minimum(step * (np.floor(x / step) + 0.5), 1 - step / 2)


def audio_files(
    folder: str | Path = ASTERISK, *, split: Split | None = None, split_seed: int = 0
) -> list[Path]:
    """The WAV and FLAC files of speech below `folder`, sorted by name, or those of one split.

    Left out is what is no speech in the Debian package, `NOT_SPEECH`. A fifth of the files tests, a
    tenth is to choose on, shuffled by `split_seed`: not the seed of the samples, lest another seed
    train on test clips. FileNotFoundError, saying how to get speech, where there is none.

    >>> audio_files("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: folder must hold WAV or FLAC files; got none in nowhere: install ...
    """

    def is_speech(file: Path) -> bool:
        name = "/" + _name(file.with_suffix(""), folder)
        return not any(fnmatchcase(name, f"*/{pattern}") for pattern in NOT_SPEECH)

    files = [file for file in _files(folder, AUDIO) if is_speech(file)]
    rule, got = "folder must hold WAV or FLAC files", f"none in {folder}"
    _require(bool(files), rule, got, _GET_SPEECH, FileNotFoundError)
    return files if split is None else _part(files, split, split_seed)


def speech_frames(
    folder: str | Path = ASTERISK,
    *,
    frame: int = 160,
    bits: int = 3,
    split: Split,
    count: int | None = None,
    seed: int,
    split_seed: int = 0,
    rate: int = 8000,
) -> Samples:
    """Frames of `frame` samples of speech (160 are 20 ms at 8 kHz), quantised to `bits` bits.

    Each clip of `audio_files` is averaged to mono, divided by its peak and cut side by side; frames
    of rms 0.05 or less are dropped, and `count` of the rest drawn with `seed` (None: all). Nothing
    is resampled: ValueError, naming the file, for another rate than `rate` Hz.

    >>> import soundfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("one.wav", "two.wav"):
    ...         soundfile.write(f"{folder}/{name}", np.sin(np.arange(800.0)), 8000)
    ...     speech_frames(folder, split="test", seed=0).x_tilde.shape
    (5, 160)
    """
    files = audio_files(folder, split=split, split_seed=split_seed)
    samples = _quantised(folder, files, frame, bits, rate)
    if count is None:
        return samples
    rule = f"count must be from 1 to {len(samples)}, the frames there are"
    _require(1 <= count <= len(samples), rule, count, "choose another, or None for all")
    return samples.take(np.random.default_rng(seed).choice(len(samples), count, replace=False))


def _quantised(
    folder: str | Path, files: Sequence[Path], frame: int, bits: int, rate: int
) -> Samples:
    frames = {_name(file, folder): _loud_frames(file, frame, rate) for file in files}
    rule = f"a file must have {frame} samples in a row louder than rms {QUIET} of its peak"
    got = f"none such in {len(files)} files: {', '.join(list(frames)[:3])}, ..."
    _require(any(map(len, frames.values())), rule, got, "take a shorter frame or other files")
    return _samples(frames, (frame,), lambda x_true: quantise(x_true, bits))


def _loud_frames(file: Path, frame: int, rate: int) -> Floats:
    import soundfile

    _at_least_one(frame=frame)
    sound, found = _read(file, lambda file: soundfile.read(file, dtype="float64", always_2d=True))
    got = f"{found} Hz in {file}"
    _require(found == rate, f"a clip must have {rate} Hz", got, "resample it, or pass rate")
    clip = _finite(sound, file).mean(axis=1)
    clip = clip / (np.abs(clip).max(initial=0) or 1)
    frames = clip[: len(clip) // frame * frame].reshape(-1, frame)
    return frames[np.mean(frames**2, axis=1) > QUIET**2]


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
) -> dict[str, Samples]:
    """One's own data as `{"train": Samples, "test": Samples}`, a fifth of it held out.

    * A `.npy` of shape `(samples, n)`: `noise`, in its units, is added, and the last fifth of the
      rows tests (so keep rows that are alike together). Of a split with a `most`, so many rows are
      drawn with `seed` where there are more: the file may be larger than the memory.
    * A folder of PNG, JPEG or TIFF: grey in [0, 1], patches side by side, `noise` added.
    * A folder of WAV or FLAC: as `speech_frames`, all frames, no file left out.

    Folders are split by file. FileNotFoundError where `path` is missing; ValueError, naming the
    file, for what cannot be used.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/own.npy", np.zeros((10, 3)))
    ...     {split: len(own) for split, own in load_own(f"{folder}/own.npy", seed=0).items()}
    {'train': 8, 'test': 2}
    """
    path, rng = Path(path), np.random.default_rng(seed)
    _require(path.exists(), "path must exist", path, _NAME_OWN, FileNotFoundError)
    is_rows = path.suffix.lower() == ".npy"
    images, audio = _files(path, IMAGES), _files(path, AUDIO)
    found = f"{len(images)} images and {len(audio)} audio files in {path}"
    one_kind = is_rows or bool(images) != bool(audio)
    _require(one_kind, "path must hold one kind of data", found, _NAME_OWN)

    def load(split: Split) -> Samples:
        if is_rows:
            rows = _npy_rows(path, split, (most or {}).get(split), rng)
            return _samples({path.name: rows}, rows.shape[1:], lambda x: _noisy(x, noise, rng))
        files = _part(images or audio, split, split_seed, choose=0.0)
        if audio:
            return _quantised(path, files, frame, bits, rate)
        patches = {_name(file, path): _patches_of(file, size) for file in files}
        return _samples(patches, (size, size), lambda x: _noisy(x, noise, rng))

    return {"train": load("train"), "test": load("test")}


def _npy_rows(file: Path, split: Split, most: int | None, rng: np.random.Generator) -> Floats:
    # np.load would unpickle and unzip as well.
    rows = _read(file, lambda file: np.lib.format.open_memmap(file, mode="r"))
    usable = rows.ndim == 2 and len(rows) > 1 and rows.size > 0 and rows.dtype.kind in "fiu"
    rule = "a .npy must hold real numbers of shape (samples, n), two samples at least"
    got = f"{rows.dtype} of shape {rows.shape} in {file}"
    _require(usable, rule, got, "save one flattened sample a row")
    held_out = max(1, round(len(rows) / 5))
    rows = rows[-held_out:] if split == "test" else rows[:-held_out]
    if most is not None and len(rows) > most:
        rows = rows[np.sort(rng.choice(len(rows), most, replace=False))]
    return _finite(np.array(rows, float), file)


def _patches_of(file: Path, size: int) -> Floats:
    import PIL.Image  # skimage.io would take CMYK for RGBA, and leave a broken file open

    def read(file: Path) -> NDArray[Any]:
        with PIL.Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise ValueError("more than one page")
            is_grey = picture.mode in ("1", "L", "F") or picture.mode.startswith("I")
            return np.asarray(picture if is_grey else picture.convert("RGBA"))

    image = _grey(_read(file, read), file)
    return _windows(image, size, file)[::size, ::size].reshape(-1, size * size)


def psnr(x: ArrayLike, x_true: ArrayLike, peak: float = 1.0) -> float:
    """`10 log10(peak^2 / mean((x - x_true)^2))` in dB, the mean over all entries of all samples.

    Infinite where `x` equals `x_true`. ValueError where the shapes differ.

    >>> round(psnr([0.1, 0.0], [0.0, 0.1]), 9)
    20.0
    """
    return _decibels(np.full(np.shape(x_true), peak), x, x_true)


def snr(x: ArrayLike, x_true: ArrayLike) -> float:
    """`10 log10(sum(x_true^2) / sum((x - x_true)^2))` in dB, the sums over all samples.

    Infinite where `x` equals `x_true`. ValueError where the shapes differ.

    >>> round(snr([1.1, 0.0], [1.0, 0.0]), 9)
    20.0
    """
    return _decibels(x_true, x, x_true)


def _decibels(signal: ArrayLike, x: ArrayLike, x_true: ArrayLike) -> float:
    same, got = np.shape(x) == np.shape(x_true), f"{np.shape(x)} and {np.shape(x_true)}"
    _require(same, "x and x_true must have the same shape", got, "compare like with like")
    signal, x, x_true = (np.asarray(a, float) for a in (signal, x, x_true))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10(np.sum(signal**2) / np.sum((x - x_true) ** 2)))


def _samples(
    truths: Mapping[str, Floats], shape: tuple[int, ...], observe: Callable[[Floats], Floats]
) -> Samples:
    """The ground truths by name, one below the other, and what is observed of them."""
    x_true = np.concatenate(list(truths.values()))
    index = np.repeat(np.arange(len(truths)), [len(rows) for rows in truths.values()])
    return Samples(observe(x_true), x_true, shape, tuple(truths), index)


def _noisy(x_true: Floats, noise: float, rng: np.random.Generator) -> Floats:
    usable = 0 <= noise < math.inf
    _require(usable, "noise must be a standard deviation, 0 or more", noise, "choose another")
    return x_true + noise * rng.standard_normal(x_true.shape)


def _windows(image: ArrayLike, size: int, name: str | Path) -> Floats:
    """Every patch of an image, a view of shape `(h - size + 1, w - size + 1, size, size)`."""
    image = np.asarray(image, float)
    fits, got = image.ndim == 2 and 1 <= size <= min(image.shape), f"{image.shape} for {name}"
    _require(fits, f"an image must be (h, w), both at least size={size}", got, "choose another")
    return sliding_window_view(image, (size, size))


def _starts(extent: int, size: int, stride: int) -> NDArray[np.intp]:
    rule, got = "1 <= stride <= size <= extent must hold", f"{stride}, {size} and {extent}"
    _require(1 <= stride <= size <= extent, rule, got, "choose another stride or size")
    return np.unique(np.append(np.arange(0, extent - size, stride), extent - size))


def _grey(image: NDArray[Any], name: str | Path) -> Floats:
    from skimage import color, util

    got = f"{image.dtype} of shape {image.shape} in {name}"
    colours = image.shape[2:]
    usable = image.ndim in (2, 3) and colours in ((), (3,), (4,)) and image.dtype.kind in "buf"
    _require(usable, "an image must be grey, RGB or RGBA, unsigned or float", got, "convert it")
    image = util.img_as_float64(image)
    _require(bool(np.all(abs(image - 0.5) <= 0.5)), "grey must lie in [0, 1]", got, "rescale it")
    image = color.rgba2rgb(image) if colours == (4,) else image
    return color.rgb2gray(image) if colours else image


def _files(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files below `folder` with one of the suffixes, sorted by name, hidden ones left out."""
    files = (file for file in Path(folder).rglob("*") if file.suffix.lower() in suffixes)
    seen = (file for file in files if file.is_file() and "/." not in "/" + _name(file, folder))
    return sorted(seen, key=lambda file: _name(file, folder))


def _name(file: Path, folder: str | Path) -> str:
    return file.relative_to(folder).as_posix()


def _part(files: list[Path], split: Split, split_seed: int, choose: float = 0.1) -> list[Path]:
    """The files of one split: a fifth tests, the share `choose` is to choose on, the rest train."""
    tests, chosen = max(1, round(len(files) / 5)), round(choose * len(files))
    shuffled = np.random.default_rng(split_seed).permutation(len(files))
    test, for_choice, train = np.split(shuffled, [tests, tests + chosen])
    parts = {"test": test, "choose": for_choice, "train": train}
    _one_of("split", split, parts)
    part = [files[i] for i in sorted(parts[split])]
    _require(bool(part), f"split {split!r} must get a file", f"{len(files)} in all", "add files")
    return part


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except Exception as error:  # whatever the many formats and their libraries come up with
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"file must be readable; got {file} ({reason}): repair it") from None


def _finite(values: NDArray[Any], file: Path) -> NDArray[Any]:
    finite = bool(np.all(np.isfinite(values)))
    _require(finite, "values must be finite", f"NaN or inf in {file}", "remove them")
    return values


def _one_of(what: str, got: str, names: Iterable[str]) -> None:
    _require(got in names, f"{what} must be one of {', '.join(names)}", repr(got), "choose one")


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        _require(number >= 1, f"{name} must be at least 1", number, f"pass {name}=1 or more")


def _require(
    holds: bool, rule: str, got: object, to_do: str, error: type[Exception] = ValueError
) -> None:
    """Raise the error that says the rule, what was got and what to do, unless the rule holds."""
    if not holds:
        raise error(f"{rule}; got {got}: {to_do}")
