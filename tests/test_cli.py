"""The command line: what it writes, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
import skimage.io

import hypergrad as hg
from hypergrad import learning as training
from hypergrad import plotting
from hypergrad._foundation.records import read_jsonl
from hypergrad.workbench import data
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import commands
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.studies import ImageStudy, contents, learning

TINY = {
    "patch": 4, "stride": 4, "samples": 16, "held_out_samples": 16, "tuning_samples": 16,
    "epochs": 2, "batch_size": 8, "converged_iterations": 100, "repeats": 1,
}  # fmt: skip
LABELS = ("truncation:k=1", "ergodic:uniform")


class Ran(NamedTuple):
    """What a command gave: exit status, and the two streams."""

    status: int | str | None
    out: str
    err: str


def _run(*arguments: object) -> Ran:
    """A command in this process; `--dtype` has to stay that of the tests."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | str | None = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # from the parser
            status = end.code
    return Ran(status, out.getvalue(), err.getvalue())


def _assert_one_line(ran: Ran, status: int, *words: str) -> None:
    """The exit status, and on the error stream one line with these words."""
    assert ran.status == status, ran.err
    assert ran.err.startswith("hypergrad: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


# ------------------------------------------------------------------------------------- words


def test_strategies_lists_the_one_list() -> None:
    ran = _run("strategies")
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
    ran = _run(*command, "--help")
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
    text = _run(command, "--help").out
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
        _assert_one_line(
            _run(*words), 2, "compare, train, restore, report, bench, strategies; got 'comparee'",
            "perhaps you meant compare;",
        )  # fmt: skip
    assert "perhaps" not in _run("frobnicate").err


def test_every_command_is_one() -> None:
    for command in commands.COMMANDS:
        assert _run(command, "--help").status == 0


def test_the_version_is_that_of_the_package() -> None:
    assert _run("--version") == (
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
    ran = _run(*arguments)
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
    ran = _run("compare", "--iterations", "5", *arguments)
    _assert_one_line(ran, 2, *words)
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
    _assert_one_line(_run("compare", *arguments), 2, arguments[0].strip("-").replace("-", "_"))


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
    ran = _run("train", "--quick", "--data", tmp_path / name, "--out", tmp_path / "out")
    _assert_one_line(ran, 1, word, str(tmp_path / name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_results_cannot_lie_below_a_file(place: str, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = _run("compare", "--quick", "--out", tmp_path / place)
    _assert_one_line(ran, 1, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


# ------------------------------------------------------------------------- the whole main job


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """`--quick` is a good deal quicker: a part of the photograph, in the small batches of TINY."""
    whole = data.photograph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "photograph", lambda name: whole(name)[128:256, 160:288])
        patch.setattr(ImageStudy, "quick", lambda study: dataclasses.replace(study, **TINY))
        yield


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """One run of the main job, with nothing left out."""
    out = tmp_path_factory.mktemp("whole") / "made" / "by the command"
    ran = _run(
        "compare", "--quick", "--out", out, "--iterations", 10, "--seed", 3,
        "--strategies", "truncation:k=1", "ergodic",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert f" s; in {out} open\n  report.html: " in ran.out
    assert "\n  README.md: what each file is\n" in ran.out
    assert ran.out.rstrip().endswith("samples, not a result")
    return out


def _files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix() for path in paths}


def test_everything_that_was_promised_is_written(whole) -> None:
    pictures = {
        "loss_over_epochs", "loss_over_seconds", "comparison", "patches", "photograph_camera",
        "operator_untrained", "operator_truncation_k-1", "operator_ergodic_uniform",
    }  # fmt: skip
    others = {
        "README.md", "report.html", "photograph_camera.npz",
        "records.jsonl", "config.json", "environment.json", "table.md", "photograph.json",
        "comparison.jsonl", "comparison.md", "reference.json",
        "operator_truncation_k-1.npz", "operator_ergodic_uniform.npz",
    }  # fmt: skip
    written = {name for name in _files(whole) if not name.startswith("checkpoints/")}
    assert written == others | {f"{name}.{kind}" for name in pictures for kind in ("png", "pdf")}
    for name in pictures:
        assert (whole / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert skimage.io.imread(whole / f"{name}.png").std() > 1  # not one blank page


def test_the_folder_explains_all_its_files(whole) -> None:
    """Each file fits a line of the README, and each line a file."""
    text = (whole / "README.md").read_text(encoding="utf-8")
    patterns = []
    for words in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE):
        path, *endings = re.sub(r"<\w+>", "*", words).split(", ")
        stem = path.rpartition(".")[0]
        patterns += [path + "*" * path.endswith("/"), *(stem + ending for ending in endings)]
    files = {name for name in _files(whole) if name != "README.md"}
    assert not [name for name in files if not any(fnmatch.fnmatch(name, p) for p in patterns)]
    assert not [p for p in patterns if not any(fnmatch.fnmatch(name, p) for name in files)]


def test_a_readme_that_is_there_is_left_alone(tmp_path) -> None:
    (tmp_path / "README.md").write_text("mine")
    contents.write_contents(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_its_records(whole) -> None:
    records = read_jsonl(whole / "records.jsonl")
    training_records = [record for record in records if record["kind"] == "training"]
    pairs = [(record["strategy"], record["epoch"]) for record in training_records]
    assert pairs == [(label, epoch) for label in LABELS for epoch in range(3)]
    assert all(record["validation_loss"] > 0 for record in training_records)

    rows = {record["operator"]: record for record in records if record["kind"] == "evaluation"}
    shrunk = [name for name in rows if name.startswith("untrained, shrunk by a = ")]
    assert len(shrunk) == 1
    assert set(rows) == {
        "identity", *shrunk, "total variation, best weight", "untrained",
        "untrained, ergodic:uniform", *LABELS,
    }  # fmt: skip
    assert len(rows) + len(training_records) == len(records)
    for label in LABELS:
        start, *_, last = found = [r for r in training_records if r["strategy"] == label]
        best = min(found, key=lambda r: r["validation_loss"])
        assert rows[label]["held_out_at_L"] == pytest.approx(best["validation_loss"], rel=1e-12)
        assert rows[label]["best_epoch"] == best["epoch"]
        assert rows[label]["seconds"] == last["seconds"]
        # Before the first step, the row of the untrained operator.
        name = "untrained" if label == LABELS[0] else f"untrained, {label}"
        assert rows[name]["held_out_at_L"] == pytest.approx(start["validation_loss"], rel=1e-12)


def test_its_other_files_say_what_the_records_say(whole) -> None:
    config = json.loads((whole / "config.json").read_bytes())
    given = {"seed": 3, "iterations": 10, "strategies": ["truncation:k=1", "ergodic"]}
    digests = {f"contents of {name}" for name in ("data", "K", "F", "G", "loss")}
    settings = {name: value for name, value in config.items() if name not in digests}
    assert settings == dataclasses.asdict(ImageStudy()) | TINY | given
    assert digests < config.keys()
    assert json.loads((whole / "environment.json").read_bytes())["packages"]["jax"]
    photograph = json.loads((whole / "photograph.json").read_bytes())
    assert set(photograph) == {"observed", "untrained", *LABELS}
    assert photograph["observed"]["psnr"] == pytest.approx(20.0, abs=0.1)  # noise 0.1

    rows = [r for r in read_jsonl(whole / "records.jsonl") if r["kind"] == "evaluation"]
    table = (whole / "table.md").read_text(encoding="utf-8").splitlines()
    learned = table[table.index("# Learned operators") :]
    for row in rows:
        (line,) = (line for line in learned if line.startswith(f"| {row['operator']} |"))
        assert f"{row['held_out_converged']:.4g}" in line
    comparison = (whole / "comparison.md").read_text(encoding="utf-8")
    assert comparison.splitlines()[0] in table
    assert [r["strategy"] for r in read_jsonl(whole / "comparison.jsonl")] == list(LABELS)


def test_its_operators(whole) -> None:
    with np.load(whole / "operator_truncation_k-1.npz", allow_pickle=False) as stored:
        K = stored["K"]
    assert K.shape == (15, 16)  # a DCT without its constant
    assert np.all(np.isfinite(K))
    with np.load(whole / "operator_ergodic_uniform.npz", allow_pickle=False) as stored:
        # Where the untrained one was best, that is the one for both.
        evaluated = [r for r in read_jsonl(whole / "records.jsonl") if "best_epoch" in r]
        untrained = not any(r["best_epoch"] for r in evaluated)
        assert np.array_equal(K, stored["K"]) == untrained


# --------------------------------------------------- the same, without comparison and pictures


@contextlib.contextmanager
def _light_work() -> Iterator[None]:
    """The one batch compared, and pictures saved, in no time: other tests look at them."""
    row = {"strategy": LABELS[0], "relative_error": 0.1, "milliseconds": 1.0}
    about = {"how": "", "status": "", "residual": 0.0, "adjoint_status": ""}
    about |= {"adjoint_residual": 0.0, "certified": 1.0, "differentiable": 1.0}
    compared = hg.Comparison([row], about, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "compare", lambda *args, **kwargs: compared)
        patch.setattr(plotting, "save_figure", lambda figure, path: None)
        yield


@pytest.fixture
def light(tiny) -> Iterator[None]:
    with _light_work():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """One's own data: 80 step signals of 16 entries."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, np.repeat(rng.uniform(size=(80, 4)), 4, axis=1))
    return path


def _train(rows: Path, out: Path, *more: object, command: str = "train") -> Ran:
    return _run(command, "--quick", "--iterations", 10, "--data", rows, "--out", out, *more)


@pytest.fixture(scope="module")
def finished(tiny, rows, tmp_path_factory) -> Path:
    """The folder of a run with seed 0; to be copied before it is touched."""
    out = tmp_path_factory.mktemp("finished")
    with _light_work():
        ran = _train(rows, out)
    assert ran.status == 0, ran.err
    return out


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """That folder once more."""
    return Path(shutil.copytree(finished, tmp_path / "again"))


def _records(out: Path, *, timed: bool = False) -> list[dict]:
    records = read_jsonl(out / "records.jsonl")
    return records if timed else [{**record, "seconds": None} for record in records]


def test_the_same_seed_gives_the_same_numbers(light, rows, finished, tmp_path) -> None:
    ran = _train(rows, tmp_path, "--seed", 0)
    assert ran.status == 0, ran.err
    assert "16 training, 16 held-out samples" in ran.out  # of 64 and 16 rows
    records = _records(tmp_path)
    assert len(records) == 3 + 5  # the start and two epochs; baselines and the learned operator
    assert records == _records(finished)


def test_another_seed_gives_others(light, rows, finished, tmp_path) -> None:
    assert _train(rows, tmp_path, "--seed", 1).status == 0
    pairs = zip(_records(tmp_path), _records(finished), strict=True)
    assert all(a["train_loss"] != b["train_loss"] for a, b in list(pairs)[:3])


def test_a_second_run_in_one_folder_goes_on(light, rows, again, monkeypatch) -> None:
    records, files = _records(again, timed=True), _files(again)
    monkeypatch.setattr(training.loop, "batches", lambda *args: pytest.fail("trained again"))
    assert _train(rows, again).status == 0
    assert _records(again, timed=True) == records  # its seconds too
    assert _files(again) == files


def test_another_seed_does_not_go_on_in_that_folder(light, rows, again) -> None:
    records = _records(again, timed=True)
    ran = _train(rows, again, "--seed", 1)
    assert ran.status == 1
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith(f"hypergrad: {again} must be a new folder or one of the same run")
    assert "(seed, contents of data)" in last
    assert _records(again, timed=True) == records


def test_what_is_refused_changes_nothing(light, rows, again) -> None:
    config = (again / "config.json").read_bytes()
    assert _train(rows, again, "--seed", 1).status == 1
    assert (again / "config.json").read_bytes() == config


@pytest.mark.parametrize("changed", ["data", "loss"])
def test_a_folder_whose_data_or_parts_have_changed_is_left_as_it_is(
    changed, light, rows, tmp_path, monkeypatch
) -> None:
    """Before stage 2: with the same words, since it is what they name that is another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    data, out, module = tmp_path / "rows.npy", tmp_path / "out", tmp_path / f"own_{changed}.py"
    loss = "def loss(x, t):\n    return {} * ((x - t) ** 2).mean()\n"
    shutil.copy(rows, data)
    module.write_text(loss.format(1.0))
    words = ("--loss", f"own_{changed}:loss", "--epochs", 1)
    assert _train(data, out, *words).status == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if changed == "data":
        np.save(data, 0.5 * np.load(data))
    else:
        module.write_text(loss.format(20.0))
        monkeypatch.delitem(sys.modules, "own_loss")
        importlib.invalidate_caches()
    ran = _train(data, out, *words)
    assert ran.status == 1
    assert f"(contents of {changed})" in ran.err.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_another_rate_does_not_go_on_in_that_folder(light, rows, again) -> None:
    assert _train(rows, again, "--learning-rate", 0.1).status == 1


def test_a_batch_without_a_certified_sample_is_no_end(light, rows, again, monkeypatch) -> None:
    (again / "table.md").unlink()
    row = {"strategy": LABELS[0], "relative_error": None, "milliseconds": 1.0}
    compared = dataclasses.replace(learning.compare(), records=[row])
    monkeypatch.setattr(learning, "compare", lambda *args, **kwargs: compared)
    assert _train(rows, again).status == 0
    assert (again / "table.md").exists()


# ---------------------------------------------------------------------------- interruptions


def _stop_at(label: str) -> Callable:
    def train(*args, strategy, **kwargs):
        if strategy.label == label:
            raise KeyboardInterrupt
        return training.train(*args, strategy=strategy, **kwargs)

    return train


def test_an_interruption_loses_nothing_that_is_finished(light, rows, tmp_path, monkeypatch) -> None:
    out, strategies = tmp_path / "out", ("--strategies", "truncation:k=1", "truncation:k=2")
    with monkeypatch.context() as patch:
        patch.setattr(learning, "train", _stop_at("truncation:k=2"))
        ran = _train(rows, out, *strategies, command="compare")
    assert ran.status == 130
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("hypergrad: interrupted")
    assert f"--out {out}" in last
    for name in ("records.jsonl", "operator_truncation_k-1.npz", "comparison.md"):
        assert name in last

    # Whole files, of the first strategy alone, and nothing beside them.
    first = _records(out, timed=True)
    assert [(r["strategy"], r["epoch"]) for r in first] == [(LABELS[0], e) for e in range(3)]
    with np.load(out / "operator_truncation_k-1.npz") as stored:
        K = stored["K"]
    folders = {Path(name).parts[0] for name in _files(out)}
    assert folders == {
        "checkpoints", "config.json", "environment.json", "comparison.jsonl", "comparison.md",
        "README.md", "reference.json", "records.jsonl", "operator_truncation_k-1.npz",
    }  # fmt: skip
    assert not [name for name in _files(out) if Path(name).name.startswith(".")]

    # The same command goes on with the second one.
    assert _train(rows, out, *strategies, command="compare").status == 0
    records = _records(out, timed=True)
    assert records[:3] == first
    assert [r["strategy"] for r in records[3:6]] == ["truncation:k=2"] * 3
    with np.load(out / "operator_truncation_k-1.npz") as stored:
        assert np.array_equal(stored["K"], K)


def test_an_interruption_at_once(rows, tmp_path, monkeypatch) -> None:
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_study, "run_image_study", stop)
    ran = _train(rows, tmp_path / "out")
    assert ran.status == 130
    assert "nothing yet" in ran.err


# ---------------------------------------------------------------------------------- own data


def test_a_folder_of_pictures(light, tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        grey = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        skimage.io.imsave(tmp_path / "pictures" / f"{i}.png", grey, check_contrast=False)
    ran = _train(tmp_path / "pictures", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert "16 training, 16 held-out patches" in ran.out
    labels = {r["strategy"] for r in _records(tmp_path / "out") if r["kind"] == "training"}
    assert labels == {"truncation:k=1"}


def test_a_corrupt_picture_is_named_or_skipped(light, tmp_path) -> None:
    (folder := tmp_path / "pictures").mkdir()
    for i in range(3):
        grey = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        skimage.io.imsave(folder / f"{i}.png", grey, check_contrast=False)
    (folder / "bad [bold].png").write_bytes(b"no picture")
    for command in ("train", "compare"):
        ran = _train(folder, tmp_path / "out", command=command)
        _assert_one_line(ran, 1, str(folder / "bad [bold].png"), "--skip-unreadable")
        assert not (tmp_path / "out").exists()
    ran = _train(folder, tmp_path / "out", "--skip-unreadable")
    assert ran.status == 0, ran.err
    assert f"skipped: file must be readable; got {folder / 'bad [bold].png'} (" in ran.out
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["skip_unreadable"] is True


def test_the_settings_reach_the_run(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(image_study, "run_image_study", lambda *given: seen.append(given[:2]))
    settings = {"seed": 7, "epochs": 3, "batch_size": 5, "learning_rate": 0.5, "noise": 0.2}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    _run("train", *words, "--data", "own", "--iterations", 9, "--out", tmp_path / "a")
    _run("compare", "--quick", "--strategies", "full", "limit:steps=2")
    (given, out), (quick, _) = seen
    assert out == tmp_path / "a"
    expected = settings | {"data": "own", "iterations": 9, "strategies": ("truncation:k=1",)}
    assert given == dataclasses.replace(ImageStudy(), **expected)
    strategies = ("full", "limit:steps=2")
    assert quick == dataclasses.replace(ImageStudy().quick(), strategies=strategies)


def test_without_a_name_results_get_a_dated_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_study, "run_image_study", lambda config, out, *_: print(out))
    assert _run("train").out.startswith("results/train-2")
    assert _run("compare").out.startswith("results/compare-2")


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
    files = _files(folder)
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
            assert _files(tmp_path) == {"file"}
        else:
            (tmp_path / "file").unlink(missing_ok=True)
            assert _only_below(tmp_path, kept)
            shutil.rmtree(tmp_path / kept.partition("/")[0])
            (tmp_path / "file").touch()
