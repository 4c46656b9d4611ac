"""Arrays of several makes: masked ones are refused wherever data enter, foreign bytes are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import hypergrad as hg
from hypergrad._foundation.rows import rows_of
from hypergrad.learning import solve_in_pieces
from hypergrad.workbench import baselines, data

pytestmark = pytest.mark.usefixtures("no_type_checker", "quick_reference")


PROBLEM = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
PLAIN = np.random.default_rng(0).uniform(size=(6, 4))
WAY = hg.Truncation(1)
SOLVER = hg.ChambollePock(20)
ROWS = hg.SavedOperator(PROBLEM, SOLVER, WAY, (4,), stride=1)
SOUND = hg.SavedOperator(PROBLEM, SOLVER, WAY, (4,), stride=1, rate=8000)


class Variable:
    """A variable of netCDF: what is read of it is masked."""

    def __init__(self, array: Any):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, rows: Any) -> Any:
        return self.array[rows]


def train(x_tilde: Any, x_true: Any, **options: Any) -> np.ndarray:
    usual = {"strategy": WAY, "solver": SOLVER, "epochs": 1, "batch_size": 3, "progress": False}
    learned = hg.train(PROBLEM, (x_tilde, x_true), **{**usual, **options})
    return np.asarray(learned.problem.K)


def compare(x_tilde: Any, x_true: Any, **options: Any) -> Any:
    found = hg.compare(PROBLEM, x_tilde, x_true, strategies=[WAY], repeats=1, **options)
    return found.records[0]["relative_error"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# name: what takes an array of shape (6, 4), and gives numbers that depend on it
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "solve": lambda x: hg.solve(PROBLEM, x, strategy=WAY).x,
    "a list of rows": lambda x: hg.solve(PROBLEM, list(x), strategy=WAY).x,
    "hypergradient": lambda x: hg.hypergradient(PROBLEM, x, PLAIN, strategy=WAY).value,
    "x_true": lambda x: hg.hypergradient(PROBLEM, PLAIN, x, strategy=WAY).value,
    "evaluate": lambda x: hg.evaluate(PROBLEM, x, PLAIN, strategy=WAY),
    "x_true of evaluate": lambda x: hg.evaluate(PROBLEM, PLAIN, x, strategy=WAY),
    "rows of evaluate": lambda x: hg.evaluate(PROBLEM, list(x), PLAIN, strategy=WAY),
    "solve_in_pieces": lambda x: solve_in_pieces(PROBLEM, x, strategy=WAY, piece=4)[0],
    "train": lambda x: train(x, PLAIN),
    "x_true of train": lambda x: train(PLAIN, x),
    "validation": lambda x: train(PLAIN, PLAIN, validation=(x, PLAIN)),
    "compare": lambda x: compare(x, PLAIN),
    "compare by pieces": lambda x: compare(x, PLAIN, piece=3),
    "x_true of compare by pieces": lambda x: compare(PLAIN, x, piece=3),
    "restore rows": lambda x: hg.restore(ROWS, x),
    "restore sound": lambda x: hg.restore(SOUND, x),
    "K": lambda x: hg.LowerLevel(K=x, F=hg.L1(0.1), G=hg.Quadratic(1.0)).K,
    "weights": lambda x: hg.L1(x[0])(np.ones(4)),
    "psnr": lambda x: data.psnr(x, PLAIN + 1),
    "snr": lambda x: data.snr(PLAIN + 1, x),
    "quantise": lambda x: data.quantise(x, 3),
    "all_patches": lambda x: data.all_patches(x, size=2, stride=2),
    "random_patches": lambda x: data.random_patches({"a": x}, 3, size=2, rng=rng()),
    "assemble": lambda x: data.assemble(x, (4, 3), size=2, stride=1),
    "mean_loss": lambda x: baselines.mean_loss(x, PLAIN + 1),
    "best_affine": lambda x: baselines.best_affine(x, PLAIN).A,
}  # fmt: skip


@pytest.mark.parametrize("use", ENTRIES.values(), ids=ENTRIES)
def test_masked_entries_are_refused(use) -> None:
    masked = np.ma.masked_array(PLAIN.copy(), mask=np.eye(6, 4, dtype=bool))
    with pytest.raises(ValueError, match=r"must have no masked entries; got \d+ out of \d+: fill"):
        use(masked)


@functools.cache
def of_plain(name: str) -> Any:
    """What an entry gives for the array as it is."""
    return ENTRIES[name](PLAIN)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("dtype", [">f8", np.longdouble])
def test_the_make_of_an_array_changes_nothing(name: str, dtype) -> None:
    np.testing.assert_array_equal(ENTRIES[name](PLAIN.astype(dtype)), of_plain(name))


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">u2", ">i4", ">f2"])
def test_foreign_bytes_are_the_same_numbers(dtype: str) -> None:
    foreign = np.arange(24).reshape(6, 4).astype(dtype)
    ours = foreign.astype(foreign.dtype.newbyteorder("="))
    with jax.numpy_dtype_promotion("standard"):
        for use in (ENTRIES["solve"], ENTRIES["evaluate"], ENTRIES["a list of rows"]):
            np.testing.assert_array_equal(use(foreign), use(ours))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_mask_that_hides_nothing_changes_nothing(name: str) -> None:
    np.testing.assert_array_equal(ENTRIES[name](np.ma.masked_array(PLAIN)), of_plain(name))


def test_a_state_that_is_masked() -> None:
    state = hg.solve(PROBLEM, PLAIN, strategy=WAY).state
    masked = jax.tree.map(lambda a: np.ma.masked_less(np.asarray(a), np.inf), state)
    with pytest.raises(ValueError, match="init must have no masked entries"):
        hg.solve(PROBLEM, PLAIN, strategy=WAY, init=masked)


def test_a_state_of_foreign_bytes() -> None:
    state = hg.solve(PROBLEM, PLAIN, strategy=WAY).state
    foreign = jax.tree.map(lambda a: np.asarray(a).astype(">f8"), state)
    found, expected = (hg.solve(PROBLEM, PLAIN, strategy=WAY, init=s).x for s in (foreign, state))
    np.testing.assert_array_equal(found, expected)


def test_a_file_that_masks_what_is_read_of_it() -> None:
    missing = Variable(np.ma.masked_greater(PLAIN, 0.9))
    with pytest.raises(ValueError, match=r"x_tilde of data must have no masked entries"):
        train(missing, PLAIN)
    with pytest.raises(ValueError, match="x_true must have no masked entries"):
        hg.evaluate(PROBLEM, PLAIN, missing, strategy=WAY)
    whole = Variable(np.ma.masked_greater(PLAIN, 1.0))
    np.testing.assert_array_equal(train(whole, PLAIN), train(PLAIN, PLAIN))


def test_a_memory_map_of_foreign_bytes_is_not_loaded(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", PLAIN.astype(">f4"))
    stored = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows = rows_of(stored, "x")
    assert rows.source is stored
    assert rows.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(rows[1:3], PLAIN[1:3].astype(np.float32))


@pytest.mark.parametrize("dtype", ["O", "S1", "m8", "V4"])
def test_what_holds_no_numbers_is_told_by_its_dtype(dtype: str) -> None:
    array = np.zeros((6, 4)).astype(int).astype(dtype)
    for use in (ENTRIES["solve"], ENTRIES["evaluate"], ENTRIES["train"]):
        with pytest.raises(
            ValueError, match=rf"must be a number or .*; got ndarray of dtype .*{array.dtype}"
        ):
            use(array)
