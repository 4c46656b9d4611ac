"""Small training runs, and ways to interrupt them, for the tests of training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import assert_close, random_data

import hypergrad as hg
from hypergrad.learning import loop, pairs
from hypergrad.learning.checkpoints import Checkpoints

M, N, SAMPLES, RATE = 6, 5, 8, 0.1
SOLVER = hg.ChambollePock(10)
DATA = random_data(SAMPLES, N)
# The same computation in another order: rounding alone.
RTOL = 1e-12
LIMIT = {"solver": hg.ChambollePock(4), "strategy": hg.LimitFormula(hg.Steps(2))}
EPOCHS = 4


def small_problem(F: Any = 0.3, G: Any = 1.0) -> hg.LowerLevel:
    """A random K with L1 and a quadratic, unless other functions are given."""
    K = np.random.default_rng(1).standard_normal((M, N)) / 4
    F = F if isinstance(F, hg.AbstractFunction) else hg.L1(F)
    G = G if isinstance(G, hg.AbstractFunction) else hg.Quadratic(G)
    return hg.LowerLevel(K=K, F=F, G=G)


def train(problem: hg.LowerLevel, data: Any = DATA, **settings) -> hg.History:
    """One plain step on all data, unless settings say otherwise."""
    defaults = {"solver": SOLVER, "strategy": hg.Truncation(1), "optimizer": optax.sgd(RATE)}
    defaults |= {"epochs": 1, "batch_size": 100, "progress": False}
    return hg.train(problem, data, **defaults | settings)


def gradient(problem: hg.LowerLevel, rows: Any = slice(None), **settings) -> hg.Hypergradient:
    settings = {"solver": SOLVER, "strategy": hg.Truncation(1)} | settings
    x_tilde, x_true = DATA
    return hg.hypergradient(problem, x_tilde[rows], x_true[rows], **settings)


def sgd_step(p, g):
    return p - RATE * g


def evaluate(problem: hg.LowerLevel, data: Any = DATA) -> float:
    return hg.evaluate(problem, *data, solver=SOLVER, strategy=hg.Truncation(1))


def with_entry(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[1, 2] = value
    return array


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


def run(folder: Path | None = None, **settings) -> hg.History:
    """A run whose optimiser has a state, and whose batches leave samples out."""
    defaults = {
        "validation": random_data(3, N, seed=7),
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 8)),
        "epochs": EPOCHS,
        "batch_size": 3,
        "seed": 3,
        "trainable": lambda p: (p.K, p.F.weight),
        "checkpoint_dir": folder,
    }
    settings = defaults | settings
    return train(settings.pop("problem", small_problem()), settings.pop("data", DATA), **settings)


def untimed(history: hg.History) -> list[dict]:
    return [{**record, "seconds": None} for record in history.records]


def assert_same_run(history: hg.History, expected: hg.History) -> None:
    """Bit for bit, the timing excepted."""
    assert untimed(history) == untimed(expected)
    assert_close(history.problem, expected.problem, 0.0)


def checkpoint_name(epoch: int) -> str:
    return f"checkpoint-{epoch:06d}.npz"


def after_saving_epoch_2(monkeypatch) -> None:
    save = Checkpoints.save

    def save_and_stop(self, epoch, *args):
        save(self, epoch, *args)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def while_saving_epoch_3(monkeypatch) -> None:
    replace = os.replace

    def replace_or_stop(source, target):
        if str(target).endswith(checkpoint_name(3)):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_stop)


def within_epoch_3(monkeypatch) -> None:
    batches = pairs.batches

    def one_batch_and_stop(count, batch_size, seed, epoch):
        for rows in batches(count, batch_size, seed, epoch):
            yield rows
            if epoch == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(loop, "batches", one_batch_and_stop)


INTERRUPTIONS = [after_saving_epoch_2, while_saving_epoch_3, within_epoch_3]
