"""Losses and records of training, data that are read by rows, and the best epoch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, random_data
from training_runs import (
    DATA,
    EPOCHS,
    RTOL,
    SAMPLES,
    SOLVER,
    N,
    assert_same_run,
    evaluate,
    run,
    small_problem,
    train,
    within_epoch_3,
)

import hypergrad as hg
from hypergrad import learning as training
from hypergrad._foundation import rows as _rows
from hypergrad._foundation.progress import progress_bar
from hypergrad.learning import chunks
from hypergrad.learning.result import best_epoch


def _solution(problem: hg.LowerLevel) -> hg.Solution:
    return hg.solve(problem, DATA[0], solver=SOLVER, strategy=hg.Truncation(1))


def test_evaluate_is_the_mean_loss() -> None:
    x = np.asarray(_solution(small_problem()).x)
    expected = 0.5 * np.mean(np.sum((x - DATA[1]) ** 2, axis=-1))
    assert evaluate(small_problem()) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("piece", [1, 3, 8, 20])
def test_pieces_have_one_size_and_give_what_all_at_once_gives(piece, monkeypatch) -> None:
    sizes = []

    def solve(problem, x_tilde, **kwargs):
        sizes.append(len(x_tilde))
        return hg.solve(problem, x_tilde, **kwargs)

    monkeypatch.setattr(chunks, "solve", solve)
    settings = {"solver": SOLVER, "strategy": hg.Truncation(1), "piece": piece}
    x, stats = training.solve_in_pieces(small_problem(), DATA[0], **settings)
    assert sizes == [piece] * -(-SAMPLES // piece)
    at_once = jax.tree.map(np.asarray, _solution(small_problem()))
    assert_close((x, stats), (at_once.x, at_once.stats), 1e-10)


def test_nobody_has_to_think_of_the_size_of_a_piece(monkeypatch) -> None:
    expected = evaluate(small_problem())
    monkeypatch.setattr(chunks, "ROWS_A_PIECE", 3)
    assert evaluate(small_problem()) == pytest.approx(expected, rel=RTOL)


def test_records() -> None:
    other = random_data(3, N, seed=7)
    history = train(small_problem(), validation=other, epochs=3, batch_size=4)
    for record in history.records:
        assert set(record) == {
            "epoch", "seconds", "train_loss", "validation_loss", "residual", "converged",
            "counted",
        }  # fmt: skip
    assert [record["epoch"] for record in history.records] == [0, 1, 2, 3]
    first, *_, last = history.records
    losses = [first["train_loss"], first["validation_loss"], last["validation_loss"]]
    expected = [
        evaluate(small_problem()),
        *(evaluate(p, other) for p in (small_problem(), history.problem)),
    ]
    assert losses == pytest.approx(expected, rel=RTOL)
    assert (first["residual"], first["converged"], first["counted"]) == (None, None, None)
    assert last["counted"] == 1.0

    seconds = history.column("seconds")
    assert seconds[0] == 0
    assert np.all(np.diff(seconds) > 0)
    assert np.isnan(history.column("residual")[0])
    assert repr(history).startswith("History(3 epochs in ")
    assert f"train_loss={last['train_loss']:.6g}" in repr(history)


def test_without_validation_and_epochs_only_the_start_is_recorded() -> None:
    problem = small_problem()
    history = train(problem, epochs=0)
    assert_close(history.problem, problem, 0.0)
    assert [record["epoch"] for record in history.records] == [0]
    assert history.records[0]["validation_loss"] is None


def test_jax_and_numpy_give_the_same_bits() -> None:
    in_numpy = train(small_problem(), validation=DATA)
    in_jax = train(
        small_problem(), tuple(map(jnp.asarray, DATA)), validation=tuple(map(jnp.asarray, DATA))
    )
    assert_same_run(in_jax, in_numpy)


def test_a_shared_bar_is_left_to_its_owner() -> None:
    with progress_bar() as bar:
        bar.disable = True
        train(small_problem(), epochs=2, batch_size=4, progress=bar)
        assert bar.live.is_started
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total) == ("truncation:k=1", 4, 4)


def test_measured_numbers_are_in_the_records() -> None:
    """Of the untrained problem, and of each after its epoch."""
    history = train(small_problem(), epochs=2, measure=lambda p: {"size": float(jnp.sum(p.K**2))})
    sizes = history.column("size")
    assert sizes[0] == pytest.approx(np.sum(np.asarray(small_problem().K) ** 2), rel=RTOL)
    assert sizes[2] == pytest.approx(np.sum(np.asarray(history.problem.K) ** 2), rel=RTOL)
    assert len(np.unique(sizes)) == 3


# ------------------------------------------------------------------ data that are not in memory


class _OnDisk:
    """Data of HDF5, say: rows of integers that can be read forwards only; the most at once."""

    def __init__(self, array: np.ndarray):
        self.shape, self.dtype, self.most, self._array = array.shape, array.dtype, 0, array

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self._array))[rows]
        assert np.all(np.diff(numbers) > 0)
        self.most = max(self.most, len(numbers))
        return self._array[rows].copy()


def test_data_are_read_by_rows(tmp_path, monkeypatch) -> None:
    """In pieces for their checks, their hash and their losses, in batches for the steps."""
    x_tilde, x_true = (np.round(100 * array).astype(np.int32) for array in DATA)
    settings = {"epochs": 2, "batch_size": 3, "checkpoint_dir": tmp_path / "from arrays"}
    expected = train(small_problem(), (x_tilde, x_true), validation=(x_tilde, x_true), **settings)
    monkeypatch.setattr(_rows, "ROWS_A_PIECE", 4)
    on_disk = _OnDisk(x_tilde), _OnDisk(x_true)
    settings["checkpoint_dir"] = tmp_path / "from disk"
    history = train(small_problem(), on_disk, validation=on_disk, **settings)
    assert_same_run(history, expected)
    assert [data.most for data in on_disk] == [4, 4]
    # The hash sees the same bytes: the run from arrays is this run.
    settings["checkpoint_dir"] = tmp_path / "from arrays"
    assert_same_run(train(small_problem(), on_disk, validation=on_disk, **settings), expected)


MEMORY = """
import resource
import jax, numpy as np, optax
jax.config.update("jax_enable_x64", True)
import hypergrad as hg

class Made:
    "(count, 64) numbers that are nowhere: what is read of them is made."
    dtype = np.dtype(float)
    def __init__(self, count): self.shape = (count, 64)
    def __getitem__(self, rows):
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return np.sin(numbers[:, None] + 7.0 * np.arange(64))
    def __len__(self): return self.shape[0]

problem = hg.LowerLevel(K=hg.operators.differences(64), F=hg.L1(0.1), G=hg.Quadratic(1.0))
def megabytes(count, folder):
    hg.train(problem, (Made(count), Made(count)), validation=(Made(count), Made(count)),
             solver=hg.ChambollePock(1), strategy=hg.Truncation(1), optimizer=optax.sgd(1e-3),
             epochs=1, batch_size=1000, checkpoint_dir=folder, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
few, many = megabytes(5_000, "few"), megabytes(50_000, "many")
print(many - few)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has other units, or none")
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path) -> None:
    """JAX's part included: ten times the samples, none of which are anywhere but in a batch."""
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    # One more copy of x_tilde alone would be 23 MB.
    assert float(ran.stdout) < 12


# ------------------------------------------------------------------------------ the best epoch


def test_the_best_problem_is_that_of_the_smallest_validation_loss(tmp_path, monkeypatch) -> None:
    """Against losses computed anew; a rate that is too large makes the last epoch a bad one."""
    seen: list[hg.LowerLevel] = []

    def measure(problem: hg.LowerLevel) -> dict[str, float]:
        seen.append(problem)
        return {}

    settings: dict[str, Any] = {"optimizer": optax.sgd(3.0), "measure": measure}
    history = run(**settings)
    held_out = random_data(3, N, seed=7)
    losses = [hg.evaluate(p, *held_out, solver=SOLVER, strategy=hg.Truncation(1)) for p in seen]
    best = int(np.argmin(losses))
    assert history.best.epoch == best < EPOCHS
    assert_close(history.best.problem, seen[best], 0.0)
    assert_close(history.problem, seen[-1], 0.0)
    assert f"best in epoch {best}" in repr(history)

    with monkeypatch.context() as patch:
        within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **settings)
    for _ in range(2):  # resumed, and finished
        resumed = run(tmp_path, **settings)
        assert resumed.best.epoch == best
        assert_close(resumed.best.problem, history.best.problem, 0.0)


def test_without_validation_the_last_problem_is_the_best() -> None:
    history = run(validation=None)
    assert history.best.epoch == EPOCHS
    assert_close(history.best.problem, history.problem, 0.0)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([1.0, 2.0], 0), ([2.0, 1.0, 1.0], 1), ([np.nan, 3.0], 1), ([2.0, np.nan], 0), ([None], 0),
     ([None, None], 1), ([np.nan, np.nan], 1), ([np.inf, 1.0], 1)],
)  # fmt: skip
def test_the_best_epoch(losses, best) -> None:
    records = [{"epoch": i, "validation_loss": loss} for i, loss in enumerate(losses)]
    assert best_epoch(records) == best


# ------------------------------------------------------------------------ columns and measures


def test_a_column_that_is_not_there() -> None:
    undisturbed = run()
    with pytest.raises(ValueError, match=r"one of epoch, seconds, train_loss.*got 'xx'"):
        undisturbed.column("xx")
    without = run(validation=None, epochs=1, measure=lambda p: {"word": "text"})
    with pytest.raises(ValueError, match="give train validation data"):
        without.column("validation_loss")
    with pytest.raises(ValueError, match=r"column 'word' must hold numbers; got 'text'"):
        without.column("word")
    residual = undisturbed.column("residual")
    assert np.isnan(residual[0])
    assert np.all(residual[1:] > 0)


NUMBERS = {
    "jax": (lambda p: jnp.linalg.norm(p.K), float),
    "jax, whole": (lambda p: jnp.sum(p.K > 0), int),
    "jax, bfloat16": (lambda p: jnp.bfloat16(0.5), float),
    "numpy": (lambda p: np.float32(0.1), float),
    "numpy, 0-d": (lambda p: np.array(0.1), float),
    "numpy, truth": (lambda p: np.bool_(True), bool),
    "plain": (lambda p: 1, int),
}


def test_every_kind_of_number_can_be_measured_and_kept(tmp_path) -> None:
    def measure(problem: hg.LowerLevel) -> dict[str, Any]:
        return {name: number(problem) for name, (number, _) in NUMBERS.items()}

    first, second = (run(tmp_path, measure=measure, epochs=1) for _ in range(2))
    assert first.records == second.records
    for name, (number, kind) in NUMBERS.items():
        assert [type(record[name]) for record in second.records] == [kind, kind], name
        assert second.records[0][name] == number(small_problem())


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (3.0, "must return numbers by name; got 3.0"),
        ({"x": jnp.ones(2)}, r"one number for each name; got .* of shape \(2,\) for 'x'"),
        ({"x": [1.0]}, "one number for each name; got list for 'x'"),
        ({"x": jnp.asarray(1j)}, "one number for each name"),
        ({"seconds": 1.0}, "must return new names; got seconds"),
    ],
)
def test_what_cannot_be_measured_is_refused(measured, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(measure=lambda p: measured)
