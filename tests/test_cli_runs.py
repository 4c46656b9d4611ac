"""Whole commands: what they write, how they go on, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.io
from commands import LABELS, TINY, Ran, assert_one_line, files_in, run

import hypergrad as hg
from hypergrad import learning as training
from hypergrad import plotting
from hypergrad._foundation.records import read_jsonl
from hypergrad.comparison import reference
from hypergrad.workbench import data
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.studies import ImageStudy, contents, learning

# ------------------------------------------------------------------------- the whole main job


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """`--quick` is a good deal quicker: a part of the photograph, in the small batches of TINY.

    With the limit formula as the reference: `Exact` compiles ten times as long.
    """
    whole = data.photograph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "Exact", lambda most: hg.LimitFormula())
        patch.setattr(reference, "ChambollePock", functools.partial(hg.ChambollePock, 50_000))
        patch.setattr(data, "photograph", lambda name: whole(name)[128:256, 160:288])
        patch.setattr(ImageStudy, "quick", lambda study: dataclasses.replace(study, **TINY))
        yield


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """One run of the main job, with nothing left out."""
    out = tmp_path_factory.mktemp("whole") / "made" / "by the command"
    ran = run(
        "compare", "--quick", "--out", out, "--iterations", 10, "--seed", 3,
        "--strategies", "truncation:k=1", "ergodic",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert f" s; in {out} open\n  report.html: " in ran.out
    assert "\n  README.md: what each file is\n" in ran.out
    assert ran.out.rstrip().endswith("samples, not a result")
    return out


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
    written = {name for name in files_in(whole) if not name.startswith("checkpoints/")}
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
    files = {name for name in files_in(whole) if name != "README.md"}
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
    return run(command, "--quick", "--iterations", 10, "--data", rows, "--out", out, *more)


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
    records, files = _records(again, timed=True), files_in(again)
    monkeypatch.setattr(training.loop, "batches", lambda *args: pytest.fail("trained again"))
    assert _train(rows, again).status == 0
    assert _records(again, timed=True) == records  # its seconds too
    assert files_in(again) == files


def test_another_seed_does_not_go_on_in_that_folder(light, rows, again) -> None:
    records, config = _records(again, timed=True), (again / "config.json").read_bytes()
    ran = _train(rows, again, "--seed", 1)
    assert ran.status == 1
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith(f"hypergrad: {again} must be a new folder or one of the same run")
    assert "(seed, contents of data)" in last
    assert _records(again, timed=True) == records
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
    folders = {Path(name).parts[0] for name in files_in(out)}
    assert folders == {
        "checkpoints", "config.json", "environment.json", "comparison.jsonl", "comparison.md",
        "README.md", "reference.json", "records.jsonl", "operator_truncation_k-1.npz",
    }  # fmt: skip
    assert not [name for name in files_in(out) if Path(name).name.startswith(".")]

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
        assert_one_line(ran, 1, str(folder / "bad [bold].png"), "--skip-unreadable")
        assert not (tmp_path / "out").exists()
    ran = _train(folder, tmp_path / "out", "--skip-unreadable")
    assert ran.status == 0, ran.err
    assert f"skipped: file must be readable; got {folder / 'bad [bold].png'} (" in ran.out
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["skip_unreadable"] is True
