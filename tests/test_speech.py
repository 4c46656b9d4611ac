"""Speech: clips are split by file, and frames are those of the clip; errors that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hypergrad.workbench import data


def write_clip(path: Path, seed: int = 0, *, rate: int = 8000, length: int = 1600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.5 * np.random.default_rng(seed).uniform(-1, 1, length)
    soundfile.write(path, sound, rate, subtype="PCM_16")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Ten clips of ten loud frames each, in WAV and FLAC, some in a subfolder."""
    for i in range(10):
        suffix = "flac" if i % 3 == 0 else "wav"
        write_clip(tmp_path / ("sub" if i % 2 else ".") / f"clip{i}.{suffix}", seed=i)
    return tmp_path


def test_audio_files_finds_speech_only(tmp_path: Path) -> None:
    kept = ["a.wav", "digits/1.WAV", "z.flac", "confbridge-joined.wav", "tt-monkeysintro.wav"]
    left_out = ["silence/1.wav", "beep.wav", "beeperr.wav", "2tone.wav", "at-tone-now.flac"]
    left_out += ["confbridge-join.wav", "confbridge-leave.wav", "tt-monkeys.wav", ".a.wav", "b.mp3"]
    left_out += ["en/silence/2.wav", "en/beep.wav", ".hidden/c.wav"]
    for name in kept + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in data.audio_files(tmp_path)]
    assert found == sorted(kept)


@pytest.mark.parametrize("number", [3, 10, 57])
def test_splits_share_no_file_and_lose_none(tmp_path: Path, number: int) -> None:
    for i in range(number):
        (tmp_path / f"{i}.wav").touch()
    splits = ("train", "choose", "test") if number > 5 else ("train", "test")
    parts = {split: data.audio_files(tmp_path, split=split) for split in splits}
    assert sorted(file for part in parts.values() for file in part) == sorted(tmp_path.iterdir())
    assert len(parts["test"]) == max(1, round(number / 5))
    assert parts == {split: data.audio_files(tmp_path, split=split) for split in splits}
    if number == 57:
        assert parts["test"] != data.audio_files(tmp_path, split="test", split_seed=1)


def test_audio_is_split_by_clip_whatever_the_seed(clips: Path) -> None:
    of = {
        (split, seed): set(data.speech_frames(clips, split=split, count=9, seed=seed).source)
        for split in ("train", "choose", "test")
        for seed in range(3)
    }
    assert not any(of[a] & of[b] for a in of for b in of if a[0] != b[0]), (
        "a clip is in two splits for some pair of seeds"
    )


def test_speech_frames_are_frames_of_the_normalised_clip(clips: Path) -> None:
    samples = data.speech_frames(clips, frame=160, bits=4, split="test", seed=0)
    assert samples.shape == (160,)
    assert len(samples) == 2 * 10
    for i, x_true in enumerate(samples.x_true):
        clip, _ = soundfile.read(clips / samples.source[samples.source_index[i]])
        np.testing.assert_array_equal(x_true, (clip / abs(clip).max())[160 * (i % 10) :][:160])
    assert np.abs(samples.x_tilde - samples.x_true).max() <= 2.0**-4
    assert len(np.unique(samples.x_tilde)) == 16


def test_quiet_frames_are_dropped_after_normalisation(tmp_path: Path) -> None:
    peak, loudness = 0.25, np.array([1.0, 0.06, 0.04, 0.0, 0.051, 0.049])
    clip = np.repeat(peak * loudness, 40)  # of constant frames the rms is the value
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.append(clip, [peak] * 39), 8000, subtype="DOUBLE")
    samples = data.speech_frames(tmp_path, frame=40, split="train", seed=0)
    np.testing.assert_allclose(samples.x_true[:, 0], [1.0, 0.06, 0.051], rtol=1e-14)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).uniform(-1, 1, (2, 320))
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 8000, subtype="DOUBLE")
    samples = data.speech_frames(tmp_path, split="train", seed=0)
    mono = (left + right) / 2
    np.testing.assert_allclose(samples.x_true.ravel(), mono / np.abs(mono).max(), rtol=1e-14)


def test_count_draws_without_repetition(clips: Path) -> None:
    every, some, again, other = (
        data.speech_frames(clips, split="train", count=count, seed=seed)
        for count, seed in ((None, 0), (50, 0), (50, 0), (50, 1))
    )
    rows = {row.tobytes() for row in every.x_true}
    drawn = {row.tobytes() for row in some.x_true}
    assert len(drawn) == 50
    assert drawn < rows
    np.testing.assert_array_equal(some.x_true, again.x_true)
    assert not np.array_equal(some.x_true, other.x_true)
    for count in (0, len(every) + 1):
        with pytest.raises(ValueError, match=f"from 1 to {len(every)}, .*; got {count}: .*None"):
            data.speech_frames(clips, split="train", count=count, seed=0)


def test_another_rate_is_refused_unless_asked_for(clips: Path) -> None:
    for i in range(10, 40):  # so many that every split has one
        write_clip(clips / f"fast{i}.wav", rate=16000)
    with pytest.raises(ValueError, match=r"8000 Hz; got 16000 Hz in .*fast\d+\.wav: resample it"):
        data.speech_frames(clips, split="test", seed=0)
    with pytest.raises(ValueError, match=r"16000 Hz; got 8000 Hz in .*clip\d"):
        data.speech_frames(clips, split="train", seed=0, rate=16000)


def test_missing_speech_says_how_to_get_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            data.speech_frames(folder, split="train", seed=0)
        for part in ("apt-get install asterisk-core-sounds-en-wav", "apt-get download", "dpkg-deb"):
            assert part in str(error.value)
        assert "any folder of WAV or FLAC" in str(error.value)
        assert str(folder) in str(error.value)


def test_the_default_folder_is_that_of_the_debian_package() -> None:
    assert Path("/usr/share/asterisk/sounds/en_US_f_Allison") == data.ASTERISK
    assert data.audio_files.__defaults__ == (data.ASTERISK,)
    assert data.speech_frames.__defaults__ == (data.ASTERISK,)


def test_audio_that_cannot_be_used(tmp_path: Path) -> None:
    write_clip(tmp_path / "only.wav")
    with pytest.raises(ValueError, match="split 'train' must get a file; got 1 in all: add"):
        data.speech_frames(tmp_path, split="train", seed=0)
    with pytest.raises(ValueError, match=r"split must be one of .*; got 'valid'"):
        data.speech_frames(tmp_path, split="valid", seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="frame must be at least 1; got 0"):
        data.speech_frames(tmp_path, frame=0, split="test", seed=0)
    with pytest.raises(
        ValueError, match=r"1601 samples in a row .*; got none such in 1 files: only"
    ):
        data.speech_frames(tmp_path, frame=1601, split="test", seed=0)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(800), "louder than rms 0.05 .*; got none such in 1 files: a.wav"),
        (np.zeros(0), "louder than rms 0.05 .*; got none such in 1 files: a.wav"),
        (np.full(800, np.nan), r"must be finite; got .*inf in .*a\.wav: remove"),
    ],
)
def test_silent_empty_or_broken_sound(tmp_path: Path, sound: np.ndarray, message: str) -> None:
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="DOUBLE")
    with pytest.raises(ValueError, match=message):
        data.speech_frames(tmp_path, split="test", seed=0)


def test_own_audio_keeps_every_file(clips: Path) -> None:
    write_clip(clips / "milestone.wav", seed=99)  # "tone" is no speech in the Debian package only
    own = data.load_own(clips, bits=2, frame=100, seed=0)
    assert {split: len(s.source) for split, s in own.items()} == {"train": 9, "test": 2}
    assert "milestone.wav" in own["train"].source + own["test"].source
    assert not set(own["train"].source) & set(own["test"].source)
    for samples in own.values():
        assert samples.shape == (100,)
        np.testing.assert_array_equal(np.unique(samples.x_tilde), [-0.75, -0.25, 0.25, 0.75])
        assert (np.sqrt((samples.x_true**2).mean(axis=1)) > 0.05).all()
