"""Disks that are full or closed, two runs at once, no memory, kills: nothing finished is lost.

Everyday tests let the system call fail; `pytest -m slow tests/test_faults.py` has a real limit on
the size of files, a real limit on memory, and kills of `hypergrad train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import picture_of

from hypergrad._foundation import errors as cli_errors
from hypergrad._foundation import records
from hypergrad._foundation.checks import check_count
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.sweep import (
    AbstractSettings,
    Cell,
    Options,
    Result,
    run_experiment,
    run_sweep,
)

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


@dataclasses.dataclass(frozen=True)
class _NoSettings(AbstractSettings):
    """Of an experiment that has none."""

    def quick(self) -> _NoSettings:
        return self


def _cells(log: list[int]) -> list[Cell]:
    def compute(i: int) -> Result:
        log.append(i)
        return Result([{"third": i / 3}], {"square": np.full((2, 2), float(i))})

    return [Cell({"i": i}, lambda _, i=i: compute(i)) for i in range(4)]


def _fail_at(call: int, code: int, patch: pytest.MonkeyPatch) -> None:
    """The so-manieth file that is written meets the error, when its bytes go to the disk."""
    calls, fsync = iter(range(10**6)), os.fsync

    def failing(handle: int) -> None:
        if next(calls) == call:
            raise OSError(code, os.strerror(code))
        fsync(handle)

    patch.setattr(os, "fsync", failing)


# ------------------------------------------------------------------------------- disks


@pytest.mark.parametrize("code", REFUSED, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", range(11))
def test_a_disk_that_fails_loses_no_cell(call, code, tmp_path, monkeypatch) -> None:
    """Wherever in a sweep of 11 files it fails: whole files, and the same records in the end."""
    with monkeypatch.context() as patch:
        _fail_at(call, code, patch)
        with pytest.raises(OSError, match=os.strerror(code)):
            run_sweep(_cells([]), tmp_path, config={}, progress=False)
    assert not list(tmp_path.rglob(".*.part"))
    finished = len(list((tmp_path / "cells").glob("*.json")))
    log: list[int] = []
    expected = [{"i": i, "third": i / 3} for i in range(4)]
    assert run_sweep(_cells(log), tmp_path, config={}, progress=False) == expected
    assert log == list(range(finished, 4))


@pytest.mark.parametrize("code", REFUSED, ids=errno.errorcode.get)
def test_an_experiment_says_what_to_do(code, tmp_path, monkeypatch, capsys) -> None:
    options = Options(_NoSettings(), out=tmp_path / "run")
    with monkeypatch.context() as patch:
        _fail_at(4, code, patch)
        assert run_experiment("x", options, lambda _: _cells([])) == cli_errors.DATA
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path / "run" / "cells") in said
    assert "Errno" not in said
    assert any(words in said for words in ("make room", "name a folder", "ask for it"))
    assert said.endswith(f"the same command goes on in {tmp_path / 'run'}")


def test_a_report_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys) -> None:
    options = Options(_NoSettings(), out=tmp_path / "run")
    with monkeypatch.context() as patch:
        _fail_at(11, errno.ENOSPC, patch)
        given = run_experiment("x", options, lambda _: _cells([]), lambda *_: "report")
    assert given == cli_errors.DATA
    assert "make room" in capsys.readouterr().err
    assert len(records.read_jsonl(tmp_path / "run" / "records.jsonl")) == 4


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(tmp_path, monkeypatch) -> None:
    kept, start = Checkpoints(tmp_path, {"seed": "0"}), {"K": jnp.zeros(3)}
    kept.save(1, start, [{"epoch": 1}])
    before = picture_of(tmp_path)
    with monkeypatch.context() as patch:
        _fail_at(0, errno.ENOSPC, patch)
        with pytest.raises(OSError, match="No space left"):
            kept.save(2, start, [{"epoch": 2}])
    assert picture_of(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_told(capsys) -> None:
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        status = cli.main(["strategies"])
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it raises again
    assert status == cli_errors.DATA
    assert capsys.readouterr().err.endswith("make room, or name a folder on another disk\n")


# ------------------------------------------------------------------------------- damage


def test_damaged_checkpoints_do_not_push_out_the_new_ones(tmp_path) -> None:
    """Both that are kept are damaged: it starts anew, and what it saves then is there."""
    kept, start = Checkpoints(tmp_path, {"seed": "0"}), {"K": jnp.zeros(3)}
    for epoch in (8, 9):
        (tmp_path / f"checkpoint-{epoch:06d}.npz").write_bytes(b"damaged")
    assert kept.load(start) is None
    for epoch in (1, 2, 3):
        kept.save(epoch, start, [{"epoch": epoch}])
    found = kept.load(start)
    assert found is not None
    assert found[1] == [{"epoch": 3}]


def test_what_a_kill_left_half_written_is_taken_away(tmp_path) -> None:
    (tmp_path / ".checkpoint-000001.npz.abcdefgh.part").write_bytes(b"half")
    (tmp_path / ".mine").touch()
    Checkpoints(tmp_path, {"seed": "0"}).save(1, {"K": jnp.zeros(3)}, [])
    assert sorted(os.listdir(tmp_path)) == [".mine", "checkpoint-000001.npz"]


# ------------------------------------------------------------------------------- two at once


def test_a_folder_in_use_is_refused_and_free_again_after_it(tmp_path) -> None:
    records.claim_folder(tmp_path, {})
    with records.in_use(tmp_path):
        before = picture_of(tmp_path)
        with pytest.raises(ValueError, match="in use: wait for that run"):
            run_sweep(_cells([]), tmp_path, config={}, progress=False)
        assert picture_of(tmp_path) == before
    assert run_sweep(_cells([]), tmp_path, config={}, progress=False) is not None


def test_the_second_of_two_claims_at_once_sees_the_first(tmp_path, monkeypatch) -> None:
    """It has looked before the first one wrote."""
    records.claim_folder(tmp_path, {"seed": 0})
    before = picture_of(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))
    records.claim_folder(tmp_path, {"seed": 0})
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        records.claim_folder(tmp_path, {"seed": 1})
    monkeypatch.undo()
    assert picture_of(tmp_path) == before


def test_a_file_system_without_links_is_one_too(tmp_path, monkeypatch) -> None:
    def no_links(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    records.claim_folder(tmp_path, {"seed": 0})
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_folder_with_other_things_is_no_place_for_a_run(tmp_path) -> None:
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ValueError, match=r"new folder, an empty one .* got .*\(table\.md\)"):
        run_sweep(_cells([]), tmp_path, config={}, progress=False)
    assert os.listdir(tmp_path) == ["table.md"]


# ---------------------------------------------------------------- errors of a command


def _said(monkeypatch, error: Any, *, claimed: bool, out: Path) -> tuple[int, str]:
    """What the command line gives where a run ends in this error."""

    def run(config, folder: Path, *rest: object) -> None:
        if claimed:
            records.claim_folder(folder, {})
        raise error

    monkeypatch.setattr(image_study, "run_image_study", run)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = cli.main(["train", "--out", str(out)])
    jax.config.update("jax_enable_x64", True)
    return status, err.getvalue().strip()


FAULTS = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "make room"),
    "closed": (PermissionError(errno.EACCES, "Permission denied"), "that can be written to"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "that can be written to"),
    "memory": (MemoryError("Unable to allocate 9 TiB"), "smaller batch, a smaller patch"),
    "device": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "smaller batch"),
}


@pytest.mark.parametrize(("error", "advice"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("claimed", [True, False])
def test_faults_say_what_to_do(error, advice, claimed, tmp_path, monkeypatch) -> None:
    status, said = _said(monkeypatch, error, claimed=claimed, out=tmp_path / "run")
    assert status == cli_errors.DATA
    assert said.startswith("hypergrad: ")
    assert "\n" not in said
    assert advice in said
    assert (f"Give the same command with --out {tmp_path / 'run'} to go on." in said) == claimed


def _numpys_error() -> Exception:
    try:
        np.ones(3).reshape(2, 2)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), KeyError("a bug"), RuntimeError("a bug")], ids=type
)
def test_a_bug_shows_its_traceback(error, tmp_path, monkeypatch) -> None:
    with pytest.raises(type(error), match="a bug"):
        _said(monkeypatch, error, claimed=True, out=tmp_path / "run")


def test_a_value_error_is_told_where_it_is_a_rule_and_traced_where_it_is_a_librarys() -> None:
    assert cli_errors.user_message(_numpys_error()) is None
    with pytest.raises(ValueError, match="must be a whole number") as caught:
        check_count("k", 0)
    assert cli_errors.user_message(caught.value) == str(caught.value)


# ------------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """One's own data: 80 step signals of 16 entries."""
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, np.repeat(np.random.default_rng(0).uniform(size=(80, 4)), 4, axis=1))
    return path


def _start(rows: Path, out: Path, *more: str, limit: str = "") -> subprocess.Popen[str]:
    """`hypergrad train`, under a limit of the system where there is one."""
    code = "import resource, sys; from hypergrad.workbench.command_line.main import main; "
    code += f"resource.setrlimit(resource.{limit}); " if limit else ""
    words = ["train", "--quick", "--iterations", "10", "--epochs", "6", "--batch-size", "8"]
    # What is compiled once is kept: kills shall meet the work, not the compiler.
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(rows.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.exit(main())", *words, "--data", str(rows),
         "--out", str(out), *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | kept,
    )  # fmt: skip


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    err = process.communicate()[1]
    return process.returncode, err


def _results(out: Path) -> dict[str, Any]:
    """The records but for times, and the learned operator."""
    lines = (out / "records.jsonl").read_text().splitlines()
    with np.load(out / "operator_truncation_k-1.npz") as stored:
        K = stored["K"].tolist()
    return {"records": [json.loads(line) | {"seconds": None} for line in lines], "K": K}


def _visible(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("[!.]*")}


@pytest.mark.slow
def test_kills_of_train_change_nothing(rows, tmp_path) -> None:
    """SIGKILL soon after a new file is there, then to the end: the same results."""
    status, said = _ended(_start(rows, tmp_path / "whole"))
    assert status == 0, said
    rng, killed, kills = random.Random(0), tmp_path / "killed", 0
    for _ in range(8):
        before, process = _visible(killed), _start(rows, killed)
        while process.poll() is None and _visible(killed) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        status, _ = _ended(process)
        kills += status == -signal.SIGKILL
        print(f"status {status}: {sorted(_visible(killed) - before)}")
    assert kills >= 4
    status, said = _ended(_start(rows, killed))
    assert status == 0, said
    assert _results(killed) == _results(tmp_path / "whole")


@pytest.mark.slow
def test_a_real_limit_on_files_and_the_run_goes_on_without_it(rows, tmp_path) -> None:
    """As a full disk: what is larger than 16 kB (a picture, a checkpoint) cannot be written."""
    out, limit = tmp_path / "run", "RLIMIT_FSIZE, (16_384, 16_384)"
    status, said = _ended(_start(rows, out, limit=limit))
    assert (status, "Traceback" in said) == (cli_errors.DATA, False), said
    last = said.splitlines()[-1]
    assert "make room" in last
    assert f"--out {out} to go on" in last
    assert _ended(_start(rows, out))[0] == 0


@pytest.mark.slow
def test_what_is_beyond_the_memory_is_told(tmp_path) -> None:
    """Samples so long that K takes 12.8 GB, in 8 GB of address space."""
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).uniform(size=(8, 40_000)))
    limit = f"RLIMIT_AS, ({8 * 2**30}, {8 * 2**30})"
    status, said = _ended(_start(tmp_path / "wide.npy", tmp_path / "run", limit=limit))
    assert (status, "Traceback" in said) == (cli_errors.DATA, False), said
    assert "smaller batch" in said.splitlines()[-1]
