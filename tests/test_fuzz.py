"""The faces that meet a user's files and words: one line and a status, never a traceback.

Every day a share of the cases; `pytest -m slow tests/test_fuzz.py` takes all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import (
    Case,
    archives,
    clear,
    command_lines,
    documents,
    exploded,
    picture_of,
    settings_lines,
    tables,
)
from fuzzing_files import data_files

from hypergrad._foundation import records
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.workbench import sweep
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.studies import baselines

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(
    path.stem for path in (ROOT / "experiments").glob("[a-z]*.py") if path.stem != "bench"
)


class _AcceptedError(BaseException):
    """The input was taken: what would be computed now is left out."""


@pytest.fixture(autouse=True)
def _no_work(tmp_path, monkeypatch) -> Iterator[None]:
    def accepted(*args, **kwargs):
        raise _AcceptedError

    monkeypatch.setattr(baselines, "best_weight", accepted)
    monkeypatch.chdir(tmp_path)
    yield
    jax.config.update("jax_enable_x64", True)  # the command line may have chosen another one


def _share(cases: Iterator, every: int) -> list:
    return [case for i, case in enumerate(cases) if i % every == 0]


def everyday(every: int) -> Any:
    """One case in so many, and all of them behind `-m slow`."""
    return pytest.mark.parametrize("every", [every, pytest.param(1, marks=pytest.mark.slow)])


def _wrong(case: Case, folder: Path, command: Callable[[list[str]], int | None]) -> str | None:
    """What is wrong with how a command meets a case; None where it is right."""
    clear(folder)
    case.lay(folder)
    before, out, err = picture_of(folder), io.StringIO(), io.StringIO()
    status: Any = None
    from_parser = False
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = command(list(case.words))
    except SystemExit as end:
        status = end.code
        from_parser = status == 2 and "--help" in err.getvalue()  # a frame of several lines
    except _AcceptedError:
        return None if case.harmless and not exploded(folder) else "accepted"
    except Exception as error:
        return f"a traceback: {error!r}"
    if status not in (1, 2) or not (from_parser or err.getvalue().count("\n") == 1):
        return f"status {status}, and said: {err.getvalue()!r}"
    return None if picture_of(folder) == before else "files were changed"


def _all_right(cases: list[Case], folder: Path, command: Callable[[list[str]], Any]) -> None:
    assert len(cases) > 3
    wrong = {case.name: _wrong(case, folder, command) for case in cases}
    assert not {name: what for name, what in wrong.items() if what is not None}


@everyday(24)
def test_command_lines(every: int, tmp_path) -> None:
    _all_right(_share(command_lines(0), every), tmp_path, cli.main)


@everyday(8)
def test_data_files(every: int, tmp_path) -> None:
    _all_right(_share(data_files(0), every), tmp_path, cli.main)


@everyday(10)
def test_words_of_experiments(every: int, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))

    def accepted(*args, **kwargs):
        raise _AcceptedError

    monkeypatch.setattr(sweep.running, "_compute_here", accepted)
    for name in EXPERIMENTS[:: 1 if every == 1 else 4]:
        module = importlib.import_module(name)

        def command(words: list[str], module=module, name=name) -> None:
            monkeypatch.setattr(sys, "argv", [name, *words])
            sweep.main(name, module.Config, module.cells)

        cases = _share(settings_lines(module.Config().quick(), 0, 24), every)
        _all_right(cases, tmp_path, command)


# ---------------------------------------------------------------------------- what a run left


def _outcome(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """What it gives, or how it refuses; any other error is a traceback."""
    try:
        return call(*args, **kwargs)
    except (ValueError, OSError, SystemExit) as refusal:
        return refusal


@everyday(6)
def test_checkpoints(every: int, tmp_path, capsys) -> None:
    """A damaged one is passed over; one that only looks damaged may be read; none is changed."""
    start = {"K": jnp.zeros((3, 4)), "steps": jnp.zeros((), jnp.int32)}
    kept = Checkpoints(tmp_path / "whole", {"seed": "0"})
    for epoch in (1, 2):
        kept.save(epoch, {"K": start["K"] + epoch, "steps": start["steps"]}, [{"epoch": epoch}])
    newest = "checkpoint-000002.npz"
    run = tmp_path / "run"
    for name, spoil in _share(archives(tmp_path / "whole" / newest, 0, 120), every):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", run)
        spoil(run / newest)
        before = picture_of(run)
        found = _outcome(Checkpoints(run, {"seed": "0"}).load, start)
        if isinstance(found, Exception):
            assert "must come from the same run" in str(found), name
        else:
            state, said = found
            epoch = said[-1]["epoch"]
            assert epoch == 2 or "is damaged" in capsys.readouterr().out, name
            np.testing.assert_array_equal(state["K"], np.full((3, 4), float(epoch)), name)
        assert picture_of(run) == before, name
        assert not exploded(run), name


def _cells() -> list[sweep.Cell]:
    def compute(i: int) -> sweep.Result:
        return sweep.Result([{"third": i / 3}], {"square": np.full((2, 2), float(i))})

    return [sweep.Cell({"i": i}, lambda _, i=i: compute(i)) for i in range(2)]


@everyday(6)
def test_cells_and_settings_of_a_sweep(every: int, tmp_path) -> None:
    """What cannot be read is computed again, and ends as it was; settings are refused."""
    whole = sweep.run_sweep(_cells(), tmp_path / "whole", config={"a": 1}, progress=False)
    (cell, *_), (arrays, *_) = (
        sorted((tmp_path / "whole" / "cells").glob(f"*.{suffix}")) for suffix in ("json", "npz")
    )
    spoilt: list[tuple[Path, Any]] = [
        (cell, content) for _, content in documents(cell.read_bytes(), 0, 60)
    ]
    config = tmp_path / "whole" / "config.json"
    spoilt += [(config, content) for _, content in documents(config.read_bytes(), 1, 20)]
    spoilt += [(arrays, spoil) for _, spoil in archives(arrays, 0, 40)]
    run = tmp_path / "run"
    for path, spoil in _share(iter(spoilt), every):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", run)
        place = run / path.relative_to(tmp_path / "whole")
        if callable(spoil):
            spoil(place)
        else:
            place.write_bytes(spoil)
        before = picture_of(run)
        found = _outcome(sweep.run_sweep, _cells(), run, config={"a": 1}, progress=False)
        if isinstance(found, Exception):
            assert str(run) in str(found), (place, spoil)
            assert picture_of(run) == before
        else:
            assert found == whole, (place, spoil)
        assert not exploded(run / "cells"), (place, spoil)


@everyday(6)
def test_records(every: int, tmp_path) -> None:
    path = tmp_path / "records.jsonl"
    records.write_jsonl(path, [{"seed": i, "loss": i / 3, "method": "x"} for i in range(20)])
    for name, content in _share(tables(path.read_bytes(), 0, 60), every):
        path.write_bytes(content)
        found = _outcome(records.read_jsonl, path)
        if isinstance(found, Exception):
            assert str(path) in str(found), name
        else:
            assert all(isinstance(record, dict) for record in found), name
        assert path.read_bytes() == content


# ------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("fig07_frontier", 80),
        *(
            pytest.param(name, every, marks=pytest.mark.slow)
            for name, every in (("fig07_frontier", 3), ("fig06_cost", 6), ("fig11_signals", 12))
        ),
    ],
)
def test_records_of_figures(name: str, every: int, tmp_path, monkeypatch, capsys) -> None:
    """A figure, or one line."""
    monkeypatch.syspath_prepend(str(ROOT / "paper_figs"))
    common, figure = importlib.import_module("_common"), importlib.import_module(name)
    monkeypatch.setattr(common, "save_figure", lambda figure, path: [])
    stored, run = common.STORED / figure.EXPERIMENT, tmp_path / figure.EXPERIMENT
    monkeypatch.setattr(sys, "argv", [name, "--records", str(run), "--out", str(tmp_path)])
    for about, content in _share(tables((stored / "records.jsonl").read_bytes(), 0, 20), every):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(stored, run)
        (run / "records.jsonl").write_bytes(content)
        ended = _outcome(common.main, figure.EXPERIMENT, figure.FIGURES)
        said = capsys.readouterr().err
        assert (ended is None and said == "") or (ended.code, said.count("\n")) == (1, 1), about
