"""Frames of recorded speech, quantised."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from hypergrad._foundation.arrays import unmasked
from hypergrad.workbench.data._checks import at_least_one, require
from hypergrad.workbench.data._files import (
    AUDIO,
    Skip,
    files_below,
    finite,
    name_in,
    part_of,
    read_each,
    read_with,
)
from hypergrad.workbench.data.samples import Floats, Samples, Split, stacked

ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
NOT_SPEECH = ("silence/*", "beep*", "*tone*", "confbridge-join", "confbridge-leave", "tt-monkeys")
QUIET = 0.05  # rms after peak normalisation; only louder frames are kept
_DEBIAN = "asterisk-core-sounds-en-wav"
_GET_SPEECH = (
    f"install the Debian package, `apt-get install {_DEBIAN}` (without root: `apt-get download "
    f"{_DEBIAN} && dpkg-deb -x {_DEBIAN}_*.deb speech`, then name the folder speech{ASTERISK}), "
    "or name any folder of WAV or FLAC files"
)


def quantise(x: ArrayLike, bits: int) -> Floats:
    """The nearest of the `2^bits` mid-riser levels, odd multiples of half a step, in [-1, 1].

    The step is `2^(1 - bits)` and the error at most half of it, so that `Box(2.0**-bits)` fits.
    ValueError where `x` leaves [-1, 1].

    >>> quantise([-1.0, 0.0, 0.3, 1.0], bits=2)
    array([-0.75,  0.25,  0.25,  0.75])
    """
    at_least_one(bits=bits)
    step, x = 2.0 ** (1 - bits), unmasked(x, "x").astype(float)
    inside = bool(np.all(np.abs(x) <= 1))
    require(inside, "x must lie in [-1, 1]", "values outside, or NaN", "divide by the peak")
    # The cell of x = 1 would lie above 1; it belongs to the last one instead.
    return np.minimum(step * (np.floor(x / step) + 0.5), 1 - step / 2)


def audio_files(
    folder: str | Path = ASTERISK,
    *,
    split: Split | None = None,
    split_seed: int = 0,
    skip: Skip | None = None,
) -> list[Path]:
    """The WAV and FLAC files of speech below `folder`, sorted by name, or those of one split.

    Left out is what is no speech in the Debian package, `NOT_SPEECH`. A fifth of the files tests, a
    tenth is to choose on, shuffled by `split_seed`: not the seed of the samples, lest another seed
    train on test clips. `skip`, as for `load_own`. FileNotFoundError, saying how to get speech,
    where there is none.

    >>> audio_files("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: folder must hold WAV or FLAC files; got none in nowhere: install ...
    """

    def is_speech(file: Path) -> bool:
        name = "/" + name_in(file.with_suffix(""), folder)
        return not any(fnmatchcase(name, f"*/{pattern}") for pattern in NOT_SPEECH)

    files = [file for file in files_below(folder, AUDIO, skip) if is_speech(file)]
    rule, got = "folder must hold WAV or FLAC files", f"none in {folder}"
    require(bool(files), rule, got, _GET_SPEECH, FileNotFoundError)
    return files if split is None else part_of(files, split, split_seed)


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
    skip: Skip | None = None,
) -> Samples:
    """Frames of `frame` samples of speech (160 are 20 ms at 8 kHz), quantised to `bits` bits.

    Each clip of `audio_files` is averaged to mono, divided by its peak and cut side by side; frames
    of rms 0.05 or less are dropped, and `count` of the rest drawn with `seed` (None: all). Nothing
    is resampled: ValueError, naming the file, for another rate than `rate` Hz. `skip`, as for
    `load_own`.

    >>> import soundfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("one.wav", "two.wav"):
    ...         soundfile.write(f"{folder}/{name}", np.sin(np.arange(800.0)), 8000)
    ...     speech_frames(folder, split="test", seed=0).x_tilde.shape
    (5, 160)
    """
    files = audio_files(folder, split=split, split_seed=split_seed, skip=skip)
    samples = quantised(folder, files, frame, bits, rate, skip)
    if count is None:
        return samples
    rule = f"count must be from 1 to {len(samples)}, the frames there are"
    require(1 <= count <= len(samples), rule, count, "choose another, or None for all")
    return samples.take(np.random.default_rng(seed).choice(len(samples), count, replace=False))


def quantised(
    folder: str | Path,
    files: Sequence[Path],
    frame: int,
    bits: int,
    rate: int,
    skip: Skip | None = None,
) -> Samples:
    at_least_one(frame=frame)
    frames = read_each(files, folder, lambda file: _loud_frames(file, frame, rate), skip)
    rule = f"a file must have {frame} samples in a row louder than rms {QUIET} of its peak"
    got = f"none such in {len(files)} files: {', '.join(list(frames)[:3])}, ..."
    require(any(map(len, frames.values())), rule, got, "take a shorter frame or other files")
    return stacked(frames, (frame,), lambda x_true: quantise(x_true, bits))


def _loud_frames(file: Path, frame: int, rate: int) -> Floats:
    import soundfile

    sound, found = read_with(
        file, lambda file: soundfile.read(file, dtype="float64", always_2d=True)
    )
    got = f"{found} Hz in {file}"
    require(found == rate, f"a clip must have {rate} Hz", got, "resample it, or pass rate")
    clip = finite(sound, file).mean(axis=1)
    clip = clip / (np.abs(clip).max(initial=0) or 1)
    frames = clip[: len(clip) // frame * frame].reshape(-1, frame)
    return frames[np.mean(frames**2, axis=1) > QUIET**2]
