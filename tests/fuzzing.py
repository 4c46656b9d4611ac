"""Malformed input of every kind, from seeds: command lines, checkpoints, records.

Everything but the last part is the standard library and NumPy: what a user might hand over, made
without the package. A `Case` lays out a user's folder and says which command meets it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """What a user hands over: the words of a command, and what lies in the folder it is run in.

    What is `harmless` may also be accepted: a flipped bit can leave numbers behind.
    """

    name: str
    words: tuple[str, ...]
    lay: Callable[[Path], object] = lambda folder: None
    harmless: bool = False


def picture_of(folder: Path) -> dict[str, str]:
    """Everything below a folder: kinds, permissions, contents and where links lead."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if path.is_symlink():
            content = os.readlink(path).encode()
        else:
            content = path.read_bytes() if path.is_file() else b""
        name = path.relative_to(folder).as_posix()
        seen[name] = f"{about.st_mode:o} {hashlib.sha256(content).hexdigest()}"
    return seen


# ------------------------------------------------------------------------------------------ words

_NO_WHOLE_NUMBER = (
    "", " ", "abc", "1.5", "1e3", "0x10", "∞", "nan", "inf", "½", "1,000", "--", "-", "+", "1 2",
    "none", "True", "９９.０", "٣٫٥", "\u202e12", "💥", "\udc80", "9" * 5000, "[1]", "'1'", "1;2",
)  # fmt: skip
_NO_NUMBER = (
    "", " ", "abc", "nan", "inf", "-inf", "1e999", "-1", "-1e-300", "0", "-0.0", "1e-400", "0x1p",
    "1,5", "∞", "½", "None", "++1", "1e", "💥", "\udc80", "[0.1]", "0.1;0.2", "1/3", "NaN(1)",
)  # fmt: skip
_NO_STRATEGY = (
    "", " ", ":", "::", "frobnicate", "FULL", "full ", " full", "full:k=1", "full:=",
    "truncation:k", "truncation:k=", "truncation:k=0", "truncation:k=-1", "truncation:k=1.5",
    "truncation:k=None", "truncation:k='1'", "truncation:k=[1]", "truncation:k=1,k=2",
    "truncation:k=99", "truncation:k=10**3", "truncation:k=nan", "truncation:k=True",
    "truncation:k=1e1", "truncation:q=1", "truncation:k=__import__('os').system('touch pwned')",
    "truncation:k=" + "(" * 300, "truncation:k=" + "9" * 5000, "truncation:k=" + "-" * 3000 + "1",
    "truncation:k={1:2}", "truncation:k=1j", "truncation:k=b'1'", "truncation:k=\u2028",
    "truncation:k=①", "truncation:K=1", "truncation,k=1", "truncation=1", "limit:steps=0",
    "limit:steps=-3", "limit:steps=x", "limit:last=0", "limit:last=99", "limit:tolerance=0",
    "limit:tolerance=-1", "limit:tolerance=nan", "limit:tolerance=1e999", "limit:tolerance=x",
    "limit:steps=1,last=1", "limit:nonsense", "limit:cgls=0", "limit:cg=0", "ergodic:tail=2.0",
    "ergodic:tail=0", "ergodic:tail=-1", "ergodic:tail=x", "ergodic:weights=3", "ergodic:even",
    "jaxopt:nonsense", "jaxopt:lu=1,2", "optimistix:nonsense", "optimistix-checkpointed:0",
    "optimistix-checkpointed:checkpoints=0", "optimistix-checkpointed:checkpoints=x",
    "full:checkpoints=0", "full:checkpoints=-1", "full:checkpoints=x", "exact:k=1", "piggyback:1",
    "forward:k=1", "no_such_module:Class", "json:JSONDecoder", "json:no_such_class", "json:", ":X",
    ".relative:Class", "..:Class", "os.path:join", "os:system", "json:loads:s='[]'", "a b:C",
    "hypergrad:AbstractStrategy", "hypergrad:Truncation:k=0", "hypergrad:L1", "hypergrad:__doc__",
    "hypergrad.no:Class", "💥:Class", "json.decoder:JSONDecoder:x=1", "1:2", "/etc/passwd:Class",
    "../evil:Class", "evil.py:Class", "hypergrad.strategies:", "hypergrad.strategies:STRATEGIES",
    "limit:tolerance=[1]", "limit:steps=[]", "limit:steps=1.0", "limit:steps=True", "limit:k=1",
    "limit:steps=()", "ergodic:tail=[]", "ergodic:tail=True", "jaxopt:gmres=0",
    "limit:" + "steps=1," * 50, "truncation:" + "k" * 3000, "x" * 3000, "full\nfull", "full,exact",
)  # fmt: skip

_WHOLE_NUMBERS = {
    "seed": ("-1",), "iterations": ("0", "-1", "9" * 30), "epochs": ("-1", "9" * 30),
    "batch-size": ("0", "-1"), "devices": ("0", "-1", "99999999"),
}  # fmt: skip
_NUMBERS = ("learning-rate", "noise")
_OPTIONS = (*_WHOLE_NUMBERS, *_NUMBERS, "out", "data", "dtype", "quick", "strategy", "strategies")


def _misspelt(word: str, draw: random.Random) -> str:
    """A letter doubled, lost, replaced, or in capitals."""
    at = draw.randrange(len(word))
    other = draw.choice("qxzQ_ß∂0-")
    return draw.choice(
        [
            word[:at] + 2 * word[at] + word[at + 1 :],
            word[:at] + other + word[at + 1 :],
            word[: at + 1] + other + word[at + 1 :],
            word.upper(),
        ]
    )


def quick_run(command: str) -> tuple[str, ...]:
    return (command, "--quick", "--iterations", "5", "--out", "out")


def command_lines(seed: int) -> Iterator[Case]:
    """Words that make no sense, for every command and option."""
    draw = random.Random(seed)
    for command in ("compare", "train"):
        base = quick_run(command)
        for option, out_of_range in _WHOLE_NUMBERS.items():
            for value in _NO_WHOLE_NUMBER + out_of_range:
                yield Case(f"{command} {option} {value[:20]!r}", (*base, f"--{option}", value))
        for option in _NUMBERS:
            for value in _NO_NUMBER:
                yield Case(f"{command} {option} {value[:20]!r}", (*base, f"--{option}", value))
        for value in ("", "float16", "FLOAT64", "float64 ", "64", "💥"):
            yield Case(f"{command} dtype {value!r}", (*base, "--dtype", value))
        strategies = "--strategies" if command == "compare" else "--strategy"
        for value in _NO_STRATEGY:
            yield Case(f"{command} {value[:30]!r}", (*base, strategies, value))
        for value in ("", "missing", "missing.npy", "./..", "missing/own.npy", "x" * 300, "\udcff"):
            yield Case(f"{command} data {value[:20]!r}", (*base, "--data", value))
        for option in _OPTIONS:
            yield Case(f"{command} {option} lacks its value", (command, f"--{option}", "--seed"))
        for words in (
            ("--coordinator", "a:1"), ("--processes", "2"), ("--process", "0"),
            ("--coordinator", "a:1", "--processes", "2"), ("--cluster", "--process", "0"),
            ("--coordinator", "a:1", "--processes", "2", "--process", "x"),
            ("--coordinator", "a", "--processes", "1", "--process", "0"),
            ("--coordinator", ":1", "--processes", "1", "--process", "0"),
            ("--coordinator", "a:b", "--processes", "1", "--process", "0"),
        ):  # fmt: skip
            yield Case(f"{command} {' '.join(words)}", (*base, *words))
    for option in [*_OPTIONS, "only"] * 4:
        command = draw.choice(["compare", "train", "bench"])
        word = _misspelt(option, draw)
        yield Case(f"{command} --{word}", (command, "--seed", "1", f"--{word}", "1"))
    for word in ("compare", "train", "bench", "strategies") * 3:
        wrong = _misspelt(word, draw)
        yield Case(f"command {wrong}", (wrong,))
    for word in ("", "-", "-x", "--versions", "💥", "compare train", "\udcff", "-1", "..", "="):
        yield Case(f"command {word!r}", (word,))
        yield Case(f"strategies {word!r}", ("strategies", word or "more"))
    for name in ("", "frobnicate", "Floors", "floors,images", "💥", "floors ", "floors\n", "0"):
        yield Case(f"bench only {name!r}", ("bench", "--quick", "--only", name))


# ------------------------------------------------------------------------------------ bytes, files


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut off, emptied, padded, bits flipped, a stretch overwritten or lost, or all of it noise."""
    at = draw.randrange(max(len(content), 1))
    some = draw.randbytes(draw.randrange(1, 40))
    flipped = bytearray(content)
    for _ in range(draw.choice([1, 3, 30])):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return draw.choice(
        [
            content[:at],
            b"",
            content + some,
            some + content,
            bytes(flipped),
            content[:at] + some + content[at + len(some) :],
            content[:at] + content[at + len(some) :],
            draw.randbytes(len(content)),
            bytes(len(content)),
        ]
    )


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def exploded(folder: Path) -> bool:
    """Whether one was unpickled (or a word of the command line executed) there."""
    return (folder / "exploded").exists() or (folder / "pwned").exists()


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# -------------------------------------------------------------------------------- archives, records


def archives(whole: Path, seed: int, count: int) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Ways to spoil an archive of named arrays that lies at the path they are called with."""
    draw = random.Random(seed)
    content = whole.read_bytes()
    with np.load(whole, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    first, *others = arrays

    def with_arrays(**changed: Any) -> Callable[[Path], None]:
        return lambda path: np.savez(path, **arrays | changed)

    def bomb(path: Path) -> None:
        np.savez(path, **arrays | {first: np.array([Bomb(path.parent / "exploded")], object)})

    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded")))

    def without(name: str) -> Callable[[Path], None]:
        return lambda path: np.savez(path, **{n: a for n, a in arrays.items() if n != name})

    def text_inside(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in arrays:
                archive.writestr(f"{name}.npy", "hello")

    def a_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def a_loop(path: Path) -> None:
        path.unlink()
        path.symlink_to(path.name)

    yield "a pickle", pickled
    yield "objects that are pickled", bomb
    yield "a bare array", lambda path: path.write_bytes(npy_bytes(np.zeros(3)))
    yield "text inside", text_inside
    yield "a folder", a_folder
    yield "a loop", a_loop
    for name in dict.fromkeys((first, [first, *others][-1])):
        yield f"without {name}", without(name)
    for kind in ("U3", "complex128", "datetime64[s]", "V4"):
        yield f"{first} as {kind}", with_arrays(**{first: np.zeros(np.shape(arrays[first]), kind)})
    for shape in ((), (0,), (1, 1, 1), (3, 5)):
        yield f"{first} of shape {shape}", with_arrays(**{first: np.zeros(shape)})
    for i in range(count):
        spoilt = damaged(content, draw)
        yield f"damaged {i}", lambda path, spoilt=spoilt: path.write_bytes(spoilt)


_NO_JSON = (
    b"", b"\0", b"{", b"}", b"[]", b"3", b"null", b'"text"', b"{'a': 1}", b'{"a": NaN', b"\xff\xfe",
    b'{"a": 1}{"b": 2}', b'{"a": \xed\xa0\x80}', b"[" * 20000, b'{"a":' * 20000, b"1" * 5000,
    b'{"a": 1e999}', b"true", b"\xef\xbb\xbf{}", b'{"a": 1,}',
)  # fmt: skip


def documents(whole: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """What might stand in the place of a JSON document."""
    draw = random.Random(seed)
    for content in _NO_JSON:
        yield repr(content[:20]), content
    for i in range(count):
        yield f"damaged {i}", damaged(whole, draw)


def tables(whole: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """What might stand in the place of records, one JSON object a line."""
    draw = random.Random(seed)
    lines = whole.splitlines()
    yield "no record", b""
    for i, content in enumerate(_NO_JSON[1:]):
        at = draw.randrange(len(lines))
        yield f"no object {i}", b"\n".join([*lines[:at], content, *lines[at + 1 :]])
    records = [json.loads(line) for line in lines]
    columns = sorted({key for record in records for key in record})
    for column in columns:
        lost = [{k: v for k, v in record.items() if k != column} for record in records]
        yield f"without {column}", _lines(lost)
        for value in ("text", None, [1, 2], {"a": 1}, True, -1e308):
            at = draw.randrange(len(records))
            spoilt = [dict(record) for record in records]
            spoilt[at][column] = value
            yield f"{column} once {value!r}", _lines(spoilt)
            yield f"{column} always {value!r}", _lines([{**r, column: value} for r in records])
    for i in range(count):
        yield f"damaged {i}", damaged(whole, draw)
    for i in range(count):
        kept = [record for record in records if draw.random() < draw.choice([0.02, 0.3, 0.9])]
        yield f"{len(kept)} of the records {i}", _lines(kept)


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def clear(folder: Path) -> None:
    """Empty a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# -------------------------------------------------------------------------------- own settings


def settings_lines(settings: Any, seed: int, count: int) -> Iterator[Case]:
    """Words that make no sense for an experiment with these settings (a dataclass)."""
    draw = random.Random(seed)
    numbers = [*_numbers(settings, "")]
    for i in range(count):
        option, value = numbers[i % len(numbers)]
        wrong = _NO_WHOLE_NUMBER if isinstance(value, int) else _NO_NUMBER
        text = draw.choice([*wrong, "-1", "-7"])
        yield Case(f"{option} {text[:20]!r}", ("--quick", "--out", "out", f"--{option}", text))
    for option, _ in numbers[:: max(len(numbers) // 4, 1)]:
        word = _misspelt(option, draw)
        yield Case(f"--{word}", (f"--{word}", "1"))
    for workers in ("", "0", "-1", "x", "1.5"):
        yield Case(f"workers {workers!r}", ("--quick", "--out", "out", "--workers", workers))
    yield Case("no scheduler", ("--quick", "--out", "out", "--scheduler", "nowhere"))
    yield Case("out lacks its value", ("--quick", "--out"))
    yield Case("a word too many", ("--quick", "--out", "out", "more"))


def _numbers(settings: Any, prefix: str) -> Iterator[tuple[str, int | float]]:
    """Names and values of all numbers among the settings, nested ones with a dot."""
    for name, value in vars(settings).items():
        option = prefix + name.replace("_", "-")
        if isinstance(value, tuple) and value and isinstance(value[0], int | float):
            yield option, value[0]
        elif isinstance(value, int | float):
            yield option, value
        elif hasattr(value, "__dataclass_fields__"):
            yield from _numbers(value, f"{option}.")
