"""Whole clips of speech, restored by overlapping frames: how good they are, and their sound."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import scipy.signal

from hypergrad.workbench import data
from hypergrad.workbench.sweep import Result

RATE = 8000  # Hz
EXCERPT = 320  # samples of a clip that a figure shows

Rows = np.ndarray
Restorer = Callable[[Rows], Rows]


def si_sdr(x: Rows, x_true: Rows) -> float:
    """SNR in dB after the best scaling of the truth: scale-invariant signal-to-distortion ratio."""
    x, x_true = x.astype(float), x_true.astype(float)
    scaled = (x @ x_true) / (x_true @ x_true) * x_true
    return data.snr(x, scaled)


def _read_clips(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Held-out clips of 1.5 to 4 seconds by name, divided by their peak."""
    import soundfile

    clips = {}
    files = data.audio_files(folder, split="test")
    for i in np.random.default_rng(0).permutation(len(files)):
        sound, _ = soundfile.read(files[i], dtype="float64", always_2d=True)
        clip = sound.mean(axis=1)
        if 1.5 * RATE <= len(clip) <= 4 * RATE and len(clips) < count:
            clips[files[i].stem] = clip / np.abs(clip).max()
    return clips


def _restore_clip(observed: np.ndarray, frame: int, restore: Restorer) -> np.ndarray:
    """Frames that overlap by half, each restored by itself, faded into one another (Hann)."""
    hop, window = frame // 2, np.hanning(frame + 2)[1:-1]
    padded = np.pad(observed, (hop, hop + -len(observed) % hop), mode="edge")
    starts = range(0, len(padded) - frame + 1, hop)
    restored = restore(np.stack([padded[i : i + frame] for i in starts]).astype(np.float32))
    total, weights = np.zeros_like(padded), np.zeros_like(padded)
    for i, x in zip(starts, restored, strict=True):
        total[i : i + frame] += window * x
        weights[i : i + frame] += window
    return (total / weights)[hop : hop + len(observed)]


def _perceptual(x: np.ndarray, x_true: np.ndarray) -> dict[str, float | None]:
    """STOI (0 to 1, intelligibility) and PESQ (narrow band, about 1 to 4.5) where installed."""
    measures = {"stoi": ("pystoi", (x_true, x, RATE)), "pesq": ("pesq", (RATE, x_true, x, "nb"))}
    return {
        name: float(getattr(importlib.import_module(package), name)(*arguments))
        if importlib.util.find_spec(package) is not None
        else None
        for name, (package, arguments) in measures.items()
    }


def _decibels(clip: np.ndarray) -> np.ndarray:
    """A spectrogram, whole dB below full scale from -80 on, `(frequencies, times)`: small."""
    window = np.hanning(257)[:-1]
    spectrum = scipy.signal.ShortTimeFFT(window, hop=128, fs=RATE, scale_to="magnitude")
    level = 20 * np.log10(np.maximum(np.abs(spectrum.stft(clip)), 1e-4))
    return np.round(np.clip(level, -80, 0)).astype(np.int8)


def restore_clips(
    folder: Path, count: int, bits: int, frame: int, restorers: Mapping[str, Restorer], files: Path
) -> Result:
    """Records of every clip and restorer; sound of the first one, and what a figure shows of it."""
    import soundfile

    records, arrays = [], {}
    for number, (clip, x_true) in enumerate(_read_clips(folder, count).items()):
        observed = data.quantise(x_true, bits)
        loudest = int(np.argmax(np.convolve(x_true**2, np.ones(EXCERPT), "valid")))
        for name, restore in restorers.items():
            x = _restore_clip(observed, frame, restore)
            judged = {"snr": data.snr(x, x_true), "si_sdr": si_sdr(x, x_true)}
            record = {"kind": "clip", "clip": clip, "method": name, **judged}
            records.append({**record, **_perceptual(x, x_true)})
            if number == 0:
                sounds = {name: x, "truth": x_true, "observed": observed}
                files.mkdir(parents=True, exist_ok=True)
                for sound, samples in sounds.items():
                    soundfile.write(files / f"{clip} {sound}.wav", samples, RATE)
                    arrays[f"excerpt {sound}"] = samples[loudest : loudest + EXCERPT]
                    arrays[f"spectrogram {sound}"] = _decibels(samples)
    return Result(records, arrays)
