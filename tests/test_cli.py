"""The command line: its words, what it refuses, and what it does in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from commands import assert_one_line, files_in, run

import hypergrad as hg
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import commands
from hypergrad.workbench.studies import ImageStudy

# ------------------------------------------------------------------------------------- words


def test_strategies_lists_the_one_list() -> None:
    ran = run("strategies")
    assert (ran.status, ran.err) == (0, "")
    widest = max(map(len, hg.STRATEGIES))
    for name, strategy in hg.STRATEGIES.items():
        assert f"{name:<{widest}} {strategy.formula}\n" in ran.out
        assert f"\n{'':<{widest}} cost: {strategy.cost}\n" in ran.out
        assert f"\n{'':<{widest}} caveat: {strategy.caveat}\n" in ran.out
        for word in strategy.choices:
            assert word in ran.out
    assert "k=…" in ran.out
    guide = ran.out.splitlines()[-1].rpartition(": ")[2]
    assert Path(guide).read_text("utf-8").startswith("#")


@pytest.mark.parametrize("command", [(), ("compare",), ("train",), ("strategies",)])
def test_help(command: tuple[str, ...]) -> None:
    ran = run(*command, "--help")
    assert (ran.status, ran.err) == (0, "")
    expected = {
        (): ["compare", "train", "strategies"],
        ("compare",): ["--quick", "--out", "--seed", "--dtype", "--data", "--strategies"],
        ("train",): ["--quick", "--out", "--seed", "--dtype", "--data", "--strategy"],
        ("strategies",): ["List the strategies"],
    }
    for word in expected[command]:
        assert word in ran.out


@pytest.mark.parametrize("command", ["compare", "train", "restore", "report"])
def test_help_fits_a_terminal_and_says_each_default_once(command: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run(command, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(re.sub("[│|]", " ", text).split())  # without UTF-8 the frame is of ASCII
    assert "None" not in words
    assert not re.search(r"\(default: [^)]*\) \(default", words)
    if command in ("compare", "train"):
        assert "(default: 8, quick: 2)" in words
        for box in ("data and learning", "problem", "device"):
            assert f" {box} options " in text


def test_a_command_that_is_misspelt() -> None:
    for words in (["comparee"], ["comparee", "--quick"]):
        assert_one_line(
            run(*words), 2, "compare, train, restore, report, bench, strategies; got 'comparee'",
            "perhaps you meant compare;",
        )  # fmt: skip
    assert "perhaps" not in run("frobnicate").err


def test_every_command_is_one() -> None:
    for command in commands.COMMANDS:
        assert run(command, "--help").status == 0


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == (
        0,
        f"hypergrad {importlib.metadata.version('hypergrad-jax')}\n",
        "",
    )


UNPARSED = {
    "no command": ((), "subcommand"),
    "unknown option": (("compare", "--frobnicate", "3"), "frobnicate"),
    "no number": (("compare", "--seed", "three"), "three"),
    "no precision": (("compare", "--dtype", "float16"), "float16"),
    "a value is missing": (("train", "--out"), "--out"),
}


@pytest.mark.parametrize(("arguments", "word"), UNPARSED.values(), ids=UNPARSED)
def test_words_that_cannot_be_parsed(arguments, word: str) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert word in ran.err
    assert "--help" in ran.err


MEANINGLESS = {
    "unknown strategy": (("--strategies", "frobnicate"), ("frobnicate", *hg.STRATEGIES)),
    "k > L": (("--strategies", "truncation:k=6"), ("k must be at most", "k=6", "iterations=5")),
    "last > L": (("--strategies", "limit:last=6"), ("k=6", "iterations=5")),
    "no k": (("--strategies", "truncation:k=0"), ("k must be a whole number", "0")),
    "unknown option": (("--strategies", "truncation:q=1"), ("'q'", "choose k")),
    "the second one": (("--strategies", "full", "ergodic:tail=2.0"), ("tail=2.0",)),
    "unknown module": (("--strategies", "no_such_module:Class"), ("no_such_module",)),
    "no strategy": (("--strategies", "json:JSONDecoder"), ("hypergrad.AbstractStrategy",)),
    "no iterations": (("--iterations", "0"), ("iterations must be a whole number",)),
}


@pytest.mark.parametrize(("arguments", "words"), MEANINGLESS.values(), ids=MEANINGLESS)
def test_words_that_make_no_sense(arguments, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("compare", "--iterations", "5", *arguments)
    assert_one_line(ran, 2, *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--epochs", "-1"),
        ("--batch-size", "0"),
        ("--batch-size", "-3"),
        ("--learning-rate", "nan"),
        ("--noise", "-0.1"),
        ("--noise", "0"),
        ("--seed", "-1"),
    ],
    ids=" ".join,
)
def test_settings_out_of_range_are_refused_before_the_work(arguments, monkeypatch) -> None:
    monkeypatch.setattr(image_study, "run_image_study", lambda *settings: None)
    assert_one_line(run("compare", *arguments), 2, arguments[0].strip("-").replace("-", "_"))


# ------------------------------------------------------------------------- data and folders


def _save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "path must exist"),
    "one-dimensional": (_save(np.ones(9)), "shape (samples, n)"),
    "NaN": (_save(np.full((9, 4), np.nan)), "NaN"),
    "one sample": (_save(np.ones((1, 4))), "two samples"),
    "objects": (_save(np.array([[{}]])), "readable"),
    "no array": (lambda path: path.write_text("1, 2, 3"), "readable"),
    "an empty folder": (Path.mkdir, "must hold one kind of data"),
}


@pytest.mark.parametrize(("make", "word"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_cannot_be_used(make, word: str, tmp_path) -> None:
    name = "own" if make is Path.mkdir else "own.npy"
    make(tmp_path / name)
    ran = run("train", "--quick", "--data", tmp_path / name, "--out", tmp_path / "out")
    assert_one_line(ran, 1, word, str(tmp_path / name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_results_cannot_lie_below_a_file(place: str, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = run("compare", "--quick", "--out", tmp_path / place)
    assert_one_line(ran, 1, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def test_the_settings_reach_the_run(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(image_study, "run_image_study", lambda *given: seen.append(given[:2]))
    settings = {"seed": 7, "epochs": 3, "batch_size": 5, "learning_rate": 0.5, "noise": 0.2}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    run("train", *words, "--data", "own", "--iterations", 9, "--out", tmp_path / "a")
    run("compare", "--quick", "--strategies", "full", "limit:steps=2")
    (given, out), (quick, _) = seen
    assert out == tmp_path / "a"
    expected = settings | {"data": "own", "iterations": 9, "strategies": ("truncation:k=1",)}
    assert given == dataclasses.replace(ImageStudy(), **expected)
    strategies = ("full", "limit:steps=2")
    assert quick == dataclasses.replace(ImageStudy().quick(), strategies=strategies)


def test_without_a_name_results_get_a_dated_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_study, "run_image_study", lambda config, out, *_: print(out))
    assert run("train").out.startswith("results/train-2")
    assert run("compare").out.startswith("results/compare-2")


# ------------------------------------------------------------------------ in its own process


def test_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hypergrad", "compare", "--strategies", "truncation:k=101"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("hypergrad: k must be at most iterations; got k=101")
    assert ran.stderr.count("\n") == 1


def test_the_command_line_chooses_the_precision() -> None:
    """And the library does not: JAX's own default is float32."""
    code = """
import jax.numpy as jnp
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import main as cli
image_study.run_image_study = lambda config, *_: print(config.dtype, jnp.zeros(()).dtype)
print(jnp.zeros(()).dtype)
for options in ([], ["--dtype", "float32"]):
    assert cli.main(["compare", *options]) == 0
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["float32", "float64 float64", "float32 float32"]


KEPT = """
import collections, json, sys
import jax
from jax import monitoring
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import main as cli

events = collections.Counter()
monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))

def run(*given):
    del given
    jax.jit(lambda x: x @ x.T)(jax.numpy.ones((3, 3))).block_until_ready()
    print(json.dumps(events))

image_study.run_image_study = run
sys.exit(cli.main(["compare", "--out", "out"]))
"""


def _kept(folder: Path, **settings: str) -> dict[str, int]:
    """What JAX says of its cache after one program, in a process with this home."""
    cleared = ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment |= {"HOME": str(folder), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    # However quick this machine is.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    ran = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=False, cwd=folder,
        env=environment | settings,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def _only_below(folder: Path, kept: str) -> bool:
    files = files_in(folder)
    return bool(files) and all(name.startswith(f"{kept}/") for name in files)


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of the XDG convention")
def test_a_second_run_need_not_compile(tmp_path) -> None:
    first, second = _kept(tmp_path), _kept(tmp_path)
    assert first.get("cache_hits", 0) == 0 < first["cache_misses"]
    assert second["cache_hits"] == first["cache_misses"]
    assert _only_below(tmp_path, ".cache/hypergrad/programs")


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of the XDG convention")
def test_where_programs_are_kept_can_be_settled(tmp_path) -> None:
    (tmp_path / "file").touch()
    for settings, kept in (
        ({"XDG_CACHE_HOME": str(tmp_path / "named")}, "named/hypergrad/programs"),
        ({"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}, "mine"),
        ({"XDG_CACHE_HOME": str(tmp_path / "file")}, None),  # no folder can be made there
    ):
        _kept(tmp_path, **settings)
        if kept is None:
            assert files_in(tmp_path) == {"file"}
        else:
            (tmp_path / "file").unlink(missing_ok=True)
            assert _only_below(tmp_path, kept)
            shutil.rmtree(tmp_path / kept.partition("/")[0])
            (tmp_path / "file").touch()
