"""Sweeps: cells once and whole, through interruptions, kills and damage."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import read_jsonl
from hypergrad.workbench.sweep import (
    AbstractSettings,
    Cell,
    Result,
    Workspace,
    main,
    run_sweep,
    store,
    workers,
)


def counting_cells(count: int, log: list[int]) -> list[Cell]:
    """Cells that say when they are computed."""

    def compute(i: int) -> Result:
        log.append(i)
        return Result([{"third": i / 3}, {"third": -i / 3}], {"square": np.full((2, 2), float(i))})

    return [Cell({"i": i}, lambda _, i=i: compute(i)) for i in range(count)]


def test_records_carry_their_keys_in_the_order_of_the_cells(tmp_path):
    records = run_sweep(counting_cells(3, []), tmp_path, config={}, progress=False)
    assert records == [{"i": i, "third": s * i / 3} for i in range(3) for s in (1, -1)]
    assert read_jsonl(tmp_path / "records.jsonl") == records


def test_a_finished_cell_is_not_computed_again(tmp_path):
    first, second = [], []
    run_sweep(counting_cells(2, first), tmp_path, config={}, progress=False)
    run_sweep(counting_cells(4, second), tmp_path, config={}, progress=False)
    assert (first, second) == ([0, 1], [2, 3])


def test_an_interruption_keeps_what_is_finished(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    log: list[int] = []
    cells = counting_cells(2, log)
    with pytest.raises(KeyboardInterrupt):
        run_sweep([cells[0], Cell({"i": 1}, interrupted)], tmp_path, config={}, progress=False)
    assert not (tmp_path / "records.jsonl").exists()
    run_sweep(cells, tmp_path, config={}, progress=False)
    assert log == [0, 1]


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("damage", ["truncated", "one byte", "gone"])
def test_a_damaged_cell_is_said_and_computed_again(tmp_path, capsys, suffix, damage):
    whole = run_sweep(counting_cells(3, []), tmp_path, config={}, progress=False)
    path = sorted((tmp_path / "cells").glob(f"*.{suffix}"))[1]
    content = bytearray(path.read_bytes())
    if damage == "one byte":
        place = content.index(b"0.3") if suffix == "json" else len(content) // 2
        content[place] ^= 1
    path.write_bytes(content if damage == "one byte" else content[:40])
    if damage == "gone":
        path.unlink()
    log: list[int] = []
    assert run_sweep(counting_cells(3, log), tmp_path, config={}, progress=False) == whole
    assert log == [1]
    said = capsys.readouterr().err
    assert ("is damaged" in said and "computed again" in said) or (damage, suffix) == (
        "gone",
        "json",
    )


def test_a_folder_holds_one_run(tmp_path):
    run_sweep(counting_cells(1, []), tmp_path, config={"seeds": 1}, progress=False)
    with pytest.raises(ValueError, match=r"other settings \(seeds\)"):
        run_sweep(counting_cells(1, []), tmp_path, config={"seeds": 2}, progress=False)


def test_two_cells_of_one_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="different keys"):
        run_sweep(2 * counting_cells(1, []), tmp_path, config={}, progress=False)


def test_workers_give_the_records_of_one_process_and_survive_kills(tmp_path):
    """Each first attempt at a cell kills its worker; another one continues from the checkpoint."""

    def compute(workspace: Workspace, i: int) -> Result:
        mark = workspace.checkpoints / "started"
        if not mark.exists():
            mark.parent.mkdir(parents=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        dtype = str(jnp.ones(1).dtype)
        return Result([{"process": os.getpid(), "dtype": dtype}], {"square": np.full(2, i)})

    cells = [Cell({"i": i}, functools.partial(compute, i=i)) for i in range(2)]
    records = run_sweep(cells, tmp_path, config={}, workers=2, progress=False)
    assert [record["i"] for record in records] == [0, 1]
    assert os.getpid() not in {record["process"] for record in records}
    assert {record["dtype"] for record in records} == {str(jnp.ones(1).dtype)}
    assert not any((tmp_path / "checkpoints").iterdir())
    # All are finished, so neither Dask nor this process computes them again.
    assert run_sweep(cells, tmp_path, config={}, progress=False) == records


def test_an_address_without_a_scheduler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.1)
    with pytest.raises(HypergradError, match="must be the address of a Dask scheduler"):
        run_sweep(
            counting_cells(1, []),
            tmp_path,
            config={},
            scheduler="tcp://localhost:1",
            progress=False,
        )


def test_checkpoints_are_there_for_the_next_run_and_gone_after_it(tmp_path):
    def step(workspace) -> Result:
        workspace.checkpoints.mkdir(parents=True, exist_ok=True)
        marks = workspace.checkpoints / "steps"
        steps = int(marks.read_text()) if marks.exists() else 0
        marks.write_text(str(steps + 1))
        if steps < 2:
            raise KeyboardInterrupt
        return Result([{"steps": steps}])

    cells = [Cell({"i": 0}, step)]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(cells, tmp_path, config={}, progress=False)
    assert run_sweep(cells, tmp_path, config={}, progress=False) == [{"i": 0, "steps": 2}]
    assert not any((tmp_path / "checkpoints").iterdir())


def test_files_stay_with_the_run_and_are_not_stored(tmp_path):
    def sing(workspace) -> Result:
        workspace.files.mkdir(parents=True)
        (workspace.files / "song.txt").write_text("la")
        return Result([{}])

    run_sweep([Cell({"i": 0}, sing)], tmp_path / "run", config={}, progress=False)
    store(tmp_path / "run", tmp_path / "stored")
    assert len(list((tmp_path / "run" / "files").rglob("song.txt"))) == 1
    assert not list((tmp_path / "stored").rglob("song.txt"))


def test_of_a_path_among_the_settings_its_last_part_is_recorded(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Settings(AbstractSettings):
        folder: Path | None = None

        def quick(self):
            return self

    out = tmp_path / "run"
    arguments = ["x", "--folder", "/somewhere/clips", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    main("x", Settings, lambda settings: counting_cells(1, []))
    assert json.loads((out / "config.json").read_text())["folder"] == "clips"


def test_stored_records_are_compact_and_complete(tmp_path):
    run_sweep(counting_cells(2, []), tmp_path / "run", config={"a": 1}, progress=False)
    store(tmp_path / "run", tmp_path / "stored")
    assert read_jsonl(tmp_path / "stored" / "records.jsonl")[2] == {"i": 1, "third": 0.333333}
    config = json.loads((tmp_path / "stored" / "config.json").read_text())
    assert config == {"a": 1}
    (path,) = (tmp_path / "stored").glob("1-*.npz")
    with np.load(path) as arrays:
        assert arrays["square"].dtype == np.float32
        assert np.all(arrays["square"] == 1.0)


PROGRAM = f"""
import sys, time, types
# Sweeps need no JAX: without it a process starts ten times as fast.
package = types.ModuleType("hypergrad")
package.__path__ = [{str(Path(hypergrad.__file__).parent)!r}]
sys.modules["hypergrad"] = package
import numpy as np
from hypergrad._foundation.records import write_npz
from hypergrad.workbench.sweep import Cell, Result, run_sweep

def slow(i):
    def compute(workspace):
        path, total, first = workspace.checkpoints / "state.npz", float(i), 0
        if path.exists():
            with np.load(path) as state:
                total, first = float(state["total"]), int(state["step"])
        for step in range(first, 8):
            total = np.sin(total + step)
            write_npz(path, {{"total": total, "step": step + 1}})
            time.sleep(0.01)
        return Result([{{"total": total}}], {{"total": np.array(total)}})
    return Cell({{"i": i}}, compute)

print("started", flush=True)
run_sweep([slow(i) for i in range(12)], sys.argv[1], config={{}}, progress=False)
"""


def test_five_kills_change_nothing(tmp_path):
    """SIGKILL at random moments: the records and arrays of an undisturbed run, bit for bit."""

    def run(out: Path, patience: float | None = None) -> int:
        """The exit status of a run that is killed so many seconds after its start."""
        command = [sys.executable, "-c", PROGRAM, str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if patience is not None:
                time.sleep(patience)
                process.send_signal(signal.SIGKILL)
            return process.wait()

    assert run(tmp_path / "whole") == 0
    rng, kills = random.Random(0), 0
    while kills < 5:
        kills += run(tmp_path / "killed", rng.uniform(0.0, 0.12)) == -signal.SIGKILL
    assert run(tmp_path / "killed") == 0

    def content(out: Path) -> dict[str, bytes]:
        files = [out / "records.jsonl", *sorted((out / "cells").iterdir())]
        return {path.name: path.read_bytes() for path in files if not path.name.startswith(".")}

    assert content(tmp_path / "killed") == content(tmp_path / "whole")
