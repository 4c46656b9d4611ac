"""Arrays, pictures and sounds that cannot be read or used, from seeds."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from fuzzing import Bomb, Case, damaged, npy_bytes, quick_run


def _npy(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "own.npy", array, allow_pickle=True)


def _raw(name: str, content: bytes) -> Callable[[Path], object]:
    def lay(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return lay


def _header(text: str, payload: bytes = bytes(640)) -> bytes:
    """A .npy with any text in the place of its header."""
    padded = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + payload


def _arrays() -> Iterator[tuple[str, np.ndarray]]:
    rows = np.random.default_rng(0).uniform(size=(40, 16))
    for spoilt in (np.nan, np.inf, -np.inf):
        for place in ((0, 0), (39, 15), (20, 3)):
            bad = rows.copy()
            bad[place] = spoilt
            yield f"{spoilt} at {place}", bad
    for shape in ((), (0,), (16,), (0, 16), (16, 0), (1, 16), (2, 3, 4), (0, 0), (1, 1), (1,) * 9):
        yield f"shape {shape}", np.ones(shape)
    for kind in ("complex128", "bool", "S3", "U3", "datetime64[s]", "timedelta64[s]", "V8", "O"):
        yield f"dtype {kind}", np.zeros((40, 16), kind)
    yield "records", np.zeros(40, [("a", "f8"), ("b", "i4")])
    yield "records in rows", np.zeros((40, 16), [("a", "f8")])


def _array_files(seed: int) -> Iterator[Case]:
    draw = random.Random(seed)
    rows = np.random.default_rng(0).uniform(size=(40, 16))
    whole = npy_bytes(rows)
    words = (*quick_run("train"), "--data", "own.npy")
    for name, array in _arrays():
        yield Case(f"npy: {name}", words, _npy(array))
    for name, text in {
        "no dict": "[1, 2]", "no Python": "{{{", "nothing": "", "a call": "__import__('os')",
        "endless": "{" * 5000, "no order": "{'descr': '<f8', 'shape': (5, 16)}",
        "no dtype": "{'descr': 'x9', 'fortran_order': False, 'shape': (5, 16), }",
        "a negative shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (-5, 16), }",
        "a shape beyond the file": "{'descr': '<f8', 'fortran_order': False, 'shape': (99, 16), }",
        "a huge shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 16), }",
        "an overflow": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 16), }}",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (5, 16), }",
        "more keys": "{'descr': '<f8', 'fortran_order': False, 'shape': (5, 16), 'x': 1, }",
    }.items():  # fmt: skip
        yield Case(f"npy: header with {name}", words, _raw("own.npy", _header(text)))
    yield Case("npy: text", words, _raw("own.npy", b"1, 2, 3\n4, 5, 6\n"))
    yield Case("npy: version 9", words, _raw("own.npy", b"\x93NUMPY\x09\x00" + whole[8:]))
    yield Case("npy: a folder", words, lambda folder: (folder / "own.npy").mkdir())
    yield Case("npy: a loop", words, lambda folder: (folder / "own.npy").symlink_to("own.npy"))
    yield Case("npy: a dead link", words, lambda folder: (folder / "own.npy").symlink_to("no"))
    yield Case("npy: a device", words, lambda folder: (folder / "own.npy").symlink_to("/dev/null"))

    def pickled(folder: Path) -> None:
        (folder / "own.npy").write_bytes(pickle.dumps(Bomb(folder / "exploded")))

    def objects(folder: Path) -> None:
        np.save(folder / "own.npy", np.array([[Bomb(folder / "exploded")]] * 5, object))

    def zipped(folder: Path) -> None:
        np.savez(folder / "own.npz", a=rows, b=np.array([Bomb(folder / "exploded")], object))
        (folder / "own.npz").rename(folder / "own.npy")

    yield Case("npy: a pickle", words, pickled)
    yield Case("npy: objects that are pickled", words, objects)
    yield Case("npy: an archive", words, zipped)
    for suffix in ("npz", "NPY.txt", "csv", "mat", "pkl", "h5"):
        named = (*quick_run("train"), "--data", f"own.{suffix}")
        yield Case(f"a file *.{suffix}", named, _raw(f"own.{suffix}", whole))
    for i in range(60):
        content = damaged(whole, draw)
        yield Case(f"npy: damaged {i}", words, _raw("own.npy", content), harmless=True)


def _png(grey: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A picture, or one whose head gives another size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = size or grey.shape
    lines = b"".join(b"\0" + row.tobytes() for row in grey.astype(np.uint8))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def _wav(samples: np.ndarray, rate: int = 8000, *, kind: int = 1, bits: int = 16) -> bytes:
    content = samples.astype("<i2").tobytes()
    head = struct.pack("<IHHIIHH", 16, kind, 1, rate, rate * bits // 8, bits // 8, bits)
    body = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _folders(seed: int) -> Iterator[Case]:
    """Folders named `own` with pictures and sounds that cannot be used."""
    draw = random.Random(seed)
    rng = np.random.default_rng(seed)
    picture = _png(rng.integers(0, 256, (24, 24)))
    sound = _wav(20000 * np.sin(0.3 * np.arange(1600)))
    words = (*quick_run("train"), "--data", "own")

    def files(**contents: bytes) -> Callable[[Path], None]:
        def lay(folder: Path) -> None:
            (folder / "own").mkdir(exist_ok=True)
            for name, content in contents.items():
                (folder / "own" / name.replace("_", ".")).write_bytes(content)

        return lay

    def then(lay: Callable[[Path], object], more: Callable[[Path], object]) -> Callable:
        return lambda folder: (lay(folder), more(folder))

    one = files(a_png=picture)
    for name, lay in {
        "nothing": files(), "text": files(a_txt=b"hello"), "a hidden one": files(_a_png=picture),
        "one picture": one, "one sound": files(a_wav=sound),
        "pictures and sounds": files(a_png=picture, b_png=picture, a_wav=sound),
        "text named png": files(a_png=b"hello", b_png=picture),
        "an empty png": files(a_png=b"", b_png=picture),
        "a sound named png": files(a_png=sound, b_png=picture),
        "a picture named wav": files(a_wav=picture, b_wav=sound),
        "text named flac": files(a_flac=b"fLaC\0\0", b_wav=sound),
        "an empty flac": files(a_flac=b"", b_wav=sound),
        "a small picture": files(a_png=_png(np.ones((7, 30))), b_png=picture),
        "a picture without pixels": files(a_png=_png(np.ones((0, 0))), b_png=picture),
        "a bomb of pixels": files(a_png=_png(np.ones((24, 24)), (60000, 60000)), b_png=picture),
        "a larger size": files(a_png=_png(np.ones((24, 24)), (24, 48)), b_png=picture),
        "another rate": files(a_wav=_wav(np.ones(1600), 44100), b_wav=sound),
        "no rate": files(a_wav=_wav(np.ones(1600), 0), b_wav=sound),
        "no bits": files(a_wav=_wav(np.ones(1600), bits=0), b_wav=sound),
        "an unknown codec": files(a_wav=_wav(np.ones(1600), kind=0x7777), b_wav=sound),
        "silence": files(a_wav=_wav(np.zeros(1600)), b_wav=_wav(np.zeros(1600))),
        "no samples": files(a_wav=_wav(np.zeros(0)), b_wav=_wav(np.zeros(0))),
        "clips that are too short": files(a_wav=_wav(np.ones(90)), b_wav=_wav(np.ones(90))),
        "an array": files(own_npy=npy_bytes(np.ones((4, 4)))),
        "a loop of folders": then(files(), lambda f: (f / "own" / "in").symlink_to("..")),
        "a loop named png": then(files(), lambda f: (f / "own" / "a.png").symlink_to("a.png")),
        "a dead link named png": then(files(), lambda f: (f / "own" / "a.png").symlink_to("no")),
        "a folder named png": then(files(), lambda f: (f / "own" / "a.png").mkdir()),
        "a pipe named png": then(one, lambda f: os.mkfifo(f / "own" / "b.png")),
        "a pickle named png": then(
            one, lambda f: (f / "own" / "b.png").write_bytes(pickle.dumps(Bomb(f / "exploded")))
        ),
        "a pickle named tif": then(
            one, lambda f: (f / "own" / "b.tif").write_bytes(pickle.dumps(Bomb(f / "exploded")))
        ),
    }.items():  # fmt: skip
        yield Case(f"folder: {name}", words, lay)
    for i in range(50):
        spoilt = {"a_png": damaged(picture, draw), "b_png": picture}
        yield Case(f"png: damaged {i}", words, files(**spoilt), harmless=True)
    for i in range(50):
        spoilt = {"a_wav": damaged(sound, draw), "b_wav": sound}
        yield Case(f"wav: damaged {i}", words, files(**spoilt), harmless=True)
    flac = _flac()
    for i in range(30):
        spoilt = {"a_flac": damaged(flac, draw), "b_wav": sound}
        yield Case(f"flac: damaged {i}", words, files(**spoilt), harmless=True)


def _flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.6 * np.sin(0.3 * np.arange(1600)), 8000, format="FLAC")
    return file.getvalue()


def data_files(seed: int) -> Iterator[Case]:
    """Arrays, pictures and sounds that cannot be read or used."""
    yield from _array_files(seed)
    yield from _folders(seed)
