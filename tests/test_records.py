"""Results on disk: whole files or the old ones, nothing left beside, errors that say where."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad._foundation import records

# Each writer as a call on a path.
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: records.write_text(path, "new"),
    "bytes": lambda path: records.write_bytes(path, lambda file: file.write(b"new")),
    "npz": lambda path: records.write_npz(path, {"a": np.arange(3)}),
    "json": lambda path: records.write_json(path, {"new": 1}),
    "jsonl": lambda path: records.write_jsonl(path, [{"new": 1}]),
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def _raise(error: BaseException) -> Callable:
    def fail(*args, **kwargs):
        raise error

    return fail


# ----------------------------------------------------------------------- whole files or none


@writers
def test_folders_are_made_and_nothing_is_left_beside(write, tmp_path) -> None:
    write(tmp_path / "a" / "b" / "file")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@writers
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=type)
def test_a_failure_at_the_end_leaves_the_old_file(write, error, tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", _raise(error))
    with pytest.raises(type(error)):
        write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fill(file) -> None:
        file.write(b"new, but")
        file.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_bytes(path, fill)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_written_leaves_no_file_at_all(tmp_path) -> None:
    with pytest.raises(TypeError):
        records.write_json(tmp_path / "file", {("a", "tuple"): "is no key in JSON"})
    assert os.listdir(tmp_path) == []


@writers
def test_the_new_file_takes_the_place_of_the_old_one(write, tmp_path) -> None:
    path, fresh = tmp_path / "file", tmp_path / "fresh"
    path.write_bytes(b"old and much longer than what comes after it" * 100)
    write(path)
    write(fresh)
    assert path.read_bytes() == fresh.read_bytes()


@writers
def test_permissions_are_those_of_an_ordinary_file(write, tmp_path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "file")
        (tmp_path / "ordinary").touch()
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "ordinary")]
    assert modes == [0o640, 0o640]


@writers
@pytest.mark.parametrize("place", ["is a file/name", "is a file/folder/name", "is a folder"])
def test_an_impossible_place_is_an_oserror(write, place, tmp_path) -> None:
    """Also for root, whom a read-only folder would not stop."""
    (tmp_path / "is a file").touch()
    (tmp_path / "is a folder").mkdir()
    with pytest.raises(OSError, match="is a f"):
        write(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["is a file", "is a folder"]
    assert os.listdir(tmp_path / "is a folder") == []


# ----------------------------------------------------------------------------- back and forth


def test_jsonl_gives_back_plain_records(tmp_path) -> None:
    written = [
        {"float": np.float64(0.1), "half": np.float32(0.5), "int": np.int64(3), "yes": np.True_},
        {"array": np.arange(2), "jax": jnp.asarray(1.5), "path": Path("a/b"), "none": None},
        {"text": "σ Δ, a \u2028 separator,\na line and \x85", "third": 1 / 3},
    ]
    records.write_jsonl(tmp_path / "r.jsonl", written)
    assert records.read_jsonl(tmp_path / "r.jsonl") == [
        {"float": 0.1, "half": 0.5, "int": 3, "yes": True},
        {"array": [0, 1], "jax": 1.5, "path": "a/b", "none": None},
        written[2],
    ]
    assert len((tmp_path / "r.jsonl").read_text(encoding="utf-8").split("\n")) == 3 + 1


def test_no_records_are_an_empty_file(tmp_path) -> None:
    records.write_jsonl(tmp_path / "r.jsonl", [])
    assert records.read_jsonl(tmp_path / "r.jsonl") == []


def test_json_is_one_document(tmp_path) -> None:
    records.write_json(tmp_path / "c.json", {"seed": np.int32(3), "out": Path("a")})
    assert json.loads((tmp_path / "c.json").read_bytes()) == {"seed": 3, "out": "a"}


def test_npz_gives_back_arrays(tmp_path) -> None:
    arrays = {"K": np.random.default_rng(0).normal(size=(3, 2)), "text": np.array("σ")}
    records.write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["K", "text"]
        assert all(np.array_equal(stored[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("line", ['{"a": 1', "", "not json", '{"a": 1} {"b": 2}'])
def test_a_damaged_line_is_named(line, tmp_path) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_text(f'{{"a": 0}}\n{line}\n{{"a": 2}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"damaged\.jsonl must hold .* in line 2: "):
        records.read_jsonl(path)


@pytest.mark.parametrize("line", ["3", "[1]", "null"])
def test_a_line_that_is_no_object_is_named(line, tmp_path) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_text(f'{{"a": 0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"damaged\.jsonl must hold .* in line 2"):
        records.read_jsonl(path)


def test_bytes_that_are_no_text_are_named(tmp_path) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b'{"a": 0}\n\xff\xfe\n')
    with pytest.raises(ValueError, match=r"damaged\.jsonl must hold"):
        records.read_jsonl(path)


# -------------------------------------------------------------------------------------- tables


def _cells(table: str) -> list[list[str]]:
    return [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in table.splitlines()]


def test_markdown_table() -> None:
    rows = [{"name": "a", "x": 1234.5678, "n": 12345678, "unused": 1}, {"name": "b", "x": None}]
    table = records.markdown_table(rows, {"name": "name", "x": "x (s)", "n": "n"})
    assert _cells(table) == [
        ["name", "x (s)", "n"],
        ["---", "---", "---"],
        ["a", "1235", "12345678"],
        ["b", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("value", "cell"),
    [(None, "-"), (0.0, "0"), (1e-7, "1e-07"), (float("nan"), "nan"), (7, "7"), ("text", "text")],
)
def test_cells(value, cell) -> None:
    assert records.format_cell(value) == cell


def test_a_bar_in_a_cell_does_not_make_a_column() -> None:
    row = records.markdown_table([{"error": "a | b"}], {"error": "error"}).splitlines()[2]
    assert row.replace("\\|", "").count("|") == 2


# --------------------------------------------------------------------------------- environment


def test_environment_can_be_written_and_names_versions(tmp_path) -> None:
    records.write_json(tmp_path / "environment.json", records.environment())
    found = json.loads((tmp_path / "environment.json").read_bytes())
    assert found["packages"]["numpy"] == np.__version__
    assert found["packages"]["hypergrad-jax"] is not None
    assert found["cores"] == os.cpu_count()
    assert found["processor"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch) -> None:
    monkeypatch.setattr(records, "_PACKAGES", ("numpy", "no-such-package"))
    assert records.environment()["packages"] == {"numpy": np.__version__, "no-such-package": None}
