"""Results on disk: whole files or none, plain text, and the environment they were made in.

A record is a flat dict of numbers and strings; a run's records are one JSON object a line. Files
are written beside their place and renamed, so that an interruption leaves the old or the new one.
What a kill leaves beside it is called `.<name>.<letters>.part`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from hypergrad._foundation.errors import HypergradError

_PACKAGES = ("hypergrad-jax", "jax", "jaxlib", "equinox", "lineax", "optax", "numpy")


def _rename(name: str, path: Path) -> None:
    os.replace(name, path)


def _write(
    path: Path,
    mode: str,
    fill: Callable[[IO[Any]], object],
    place: Callable[[str, Path], None] = _rename,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_beside(path, mode, fill, place)
    except OSError as error:
        if error.errno is None:  # of a library
            raise
        # The system names the file beside it, or none.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_beside(
    path: Path, mode: str, fill: Callable[[IO[Any]], object], place: Callable[[str, Path], None]
) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are ordinary files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        place(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _write(Path(path), "w", lambda file: file.write(text))


def write_bytes(path: str | Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a binary file, whole or not at all; `fill` gets the open file."""
    _write(Path(path), "wb", fill)


def write_npz(
    path: str | Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> None:
    """Write arrays of numbers or text; `numpy.load(path, allow_pickle=False)` reads them."""
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise TypeError(f"arrays must hold numbers or text; got Python objects in {objects}")
    save = np.savez_compressed if compress else np.savez
    write_bytes(path, lambda file: save(file, **dict(arrays)))  # pyright: ignore[reportArgumentType]


def _without_nan(value: Any) -> Any:
    """NaN and infinity are no JSON: null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def to_json(value: Any, **layout: Any) -> str:
    """A value as JSON; NumPy numbers and arrays are plain ones, what is not finite is null.

    >>> to_json({"x": np.float64(0.5), "y": float("nan")})
    '{"x": 0.5, "y": null}'
    """
    return json.dumps(_without_nan(value), default=_plain, allow_nan=False, **layout)


def _plain(value: Any) -> Any:
    """Return a plain value for what JSON does not know: NumPy numbers, arrays, paths."""
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        return _without_nan(value.tolist())
    return str(value)


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document."""
    write_text(path, to_json(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON document.

    **Errors**: a `ValueError` that names the file where it is none.
    """
    try:
        return _parsed(Path(path).read_bytes())
    except ValueError as error:
        raise HypergradError(
            f"{path} must be JSON; got {error}: repair it, or name another folder"
        ) from None


def _parsed(text: bytes) -> Any:
    """A JSON document; a ValueError for what is none, brackets without end among it."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise HypergradError("too many brackets in each other") from None


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(to_json(record) + "\n" for record in records))


def round_numbers(records: Iterable[Mapping[str, Any]], digits: int = 6) -> list[dict[str, Any]]:
    """Records with `digits` significant digits, lists in them too: what a figure can show.

    >>> round_numbers([{"a": 1 / 3, "b": [2 / 3], "c": "x"}], digits=3)
    [{'a': 0.333, 'b': [0.667], 'c': 'x'}]
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(entry) for entry in value]
        return float(f"{value:.{digits}g}") if isinstance(value, float) else value

    return [{key: rounded(value) for key, value in record.items()} for record in records]


def claim_folder(out: str | Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`, or find the same one: a folder holds one run.

    Of several processes that come at once, the first one writes it.

    **Errors**: a `ValueError` where the folder holds a run with other settings, a `config.json`
    that cannot be read, or files of which none is one.
    """
    path, ours = Path(out) / "config.json", json.loads(to_json(config))
    # Looked at before the claim: what another process of this run adds comes after its claim.
    held = [held.name for held in Path(out).glob("[!.]*")]
    if not path.exists():
        if held:
            raise HypergradError(
                f"{out} must be a new folder, an empty one or one of the same run; got one with "
                f"other files ({', '.join(sorted(held)[:3])}): name another folder"
            )
        text = to_json(config, indent=2) + "\n"
        with contextlib.suppress(FileExistsError):  # then another process was first
            _write(path, "w", lambda file: file.write(text), _place_where_none_is)
    stored = read_json(path)
    if stored != ours:
        stored = stored if isinstance(stored, dict) else {}
        other = [key for key in {**ours, **stored} if stored.get(key) != ours.get(key)]
        raise HypergradError(
            f"{out} must be a new folder or one of the same run; got one with other settings "
            f"({', '.join(other)}): name another folder"
        )


def _place_where_none_is(name: str, path: Path) -> None:
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        _rename(name, path)
    else:
        os.unlink(name)


@contextlib.contextmanager
def in_use(out: str | Path) -> Generator[None]:
    """Hold a claimed folder for this process; it is free again however the process ends.

    **Raises**: `HypergradError` if another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            # A folder with this file alone still counts as empty: its name begins with a dot.
            lock = FileLock(Path(out) / ".lock", timeout=0, fallback_to_soft=False)
            stack.enter_context(lock)
        except Timeout:
            raise HypergradError(
                f"{out} must be a folder that no other run uses; got one in use: wait for that "
                "run, stop it, or name another folder"
            ) from None
        except NotImplementedError:  # a file system without locks: only whole files protect there
            pass
        yield


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote.

    **Errors**: a `ValueError` that names the file and the line that is no JSON object.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            record = _parsed(line)
        except ValueError as error:
            record, reason = None, str(error)
        else:
            reason = type(record).__name__
        if not isinstance(record, dict):
            raise HypergradError(
                f"{path} must hold one JSON object a line; got something else in line {number}: "
                f"{reason}"
            )
        records.append(record)
    return records


def markdown_table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Records as a Markdown table; `columns` maps keys to headings with units.

    >>> print(markdown_table([{"a": 1.5}, {"a": None}], {"a": "A (s)"}))
    | A (s) |
    | --- |
    | 1.5 |
    | - |
    """
    rows = [list(columns.values()), ["---"] * len(columns)]
    # A bar in a cell (in an error's text, say) would end it.
    rows += [
        [format_cell(record.get(key)).replace("|", "\\|") for key in columns] for record in records
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def latex_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a LaTeX `tabular` with rules of booktabs; the first column is on the left.

    >>> print(latex_table(["a_1", "b"], [["x", "2.5e-3"]]))
    \\begin{tabular}{lr}
    \\toprule
    a\\_1 & b \\\\
    \\midrule
    x & $2.5 \\cdot 10^{-3}$ \\\\
    \\bottomrule
    \\end{tabular}
    """
    head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in [headings, *rows])
    columns = "l" + "r" * (len(headings) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex(text: str) -> str:
    """Escape the characters that LaTeX interprets; numbers get their power of ten."""
    if (number := re.fullmatch(r"(\d\.\d)e([+-]?)(\d+)", text)) is not None:
        sign = number[2].replace("+", "")
        return rf"${number[1]} \cdot 10^{{{sign}{number[3]}}}$"
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"|": r"\textbar{}"} | {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return text.translate(str.maketrans(special))


def format_cell(value: Any) -> str:
    """A number with four significant digits; a dash for what is not there."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    """The processor's name; `platform` does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment() -> dict[str, Any]:
    """Versions and machine: what a record needs to be compared with another."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
    }
