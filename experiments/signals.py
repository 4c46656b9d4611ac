"""Signals with jumps: total variation at its best weight, and what is learned from there.

    python experiments/signals.py [--quick] [--out results/signals]

Rows of a measured disparity map with noise; `F` = L1, `G` = quadratic. K starts at the finite
differences, the weight at the one that restores training signals best (total variation). Learned
are K alone; K with one weight a row; and an overcomplete K (differences of neighbours on those of
pixels two apart, with noise) with one weight a row. Baselines: identity, the best affine estimator,
total variation, and its shrunk step. Everything is judged at its L and at a converged lower level,
over seeds (noise of the data and of the start, order of batches). Rate, k and step ratio were set
by hand after a few trials with one seed.

The held-out rows have far fewer jumps than the training rows (another part of the picture), so
held-out losses are the smaller ones.

Budget: 8 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _images import PIECE, Images, solver

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group, mean_interval, paired_interval
from hypergrad.problem import operators
from hypergrad.problem.lower_level import cast_floats
from hypergrad.workbench import baselines, data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# "Converged"; rounding of float32 leaves residuals of 1e-6.
TOLERANCE, MOST, STEP_RATIO = 1e-5, 4000, 10.0
WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
KINDS = ("K", "K and row weights", "overcomplete")
SHOWN = 3  # held-out signals that a figure shows


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Rows cut to `length` pixels; grey levels of disparity, 60 pixels are 1."""

    length: int = 64
    noise: float = 0.1
    L: int = 100
    step_ratio: float = 10.0
    k: int = 10
    rate: float = 2e-3
    epochs: int = 60
    batch_size: int = 128
    seeds: int = 5

    def quick(self) -> Config:
        """Two seeds, short signals, few epochs."""
        return dataclasses.replace(self, length=32, L=20, epochs=2, seeds=2)

    def solver(self, signals: Images) -> hg.ChambollePock:
        return solver(self.L, signals, step_ratio=self.step_ratio)


def cells(config: Config) -> list[Cell]:
    """Baselines and each kind of learning, for every seed."""
    made = []
    for seed in range(config.seeds):
        compute = functools.partial(compare_with_baselines, config, seed)
        made.append(Cell({"part": "baselines", "seed": seed}, compute))
        for kind in KINDS:
            key = {"part": "learned", "method": kind, "seed": seed}
            cost = 8.0 if kind == "overcomplete" else 5.0
            made.append(Cell(key, functools.partial(learn, config, kind, seed), cost))
    return made


def draw(config: Config, seed: int) -> Images:
    """Training and held-out signals, in float32."""

    def single(split: Any, seed: int) -> data.Samples:
        part = data.disparity_rows(split, length=config.length, noise=config.noise, seed=seed)
        return part.astype(np.float32)

    # Two seeds from one, so that training and held-out noise are not the same draw.
    return Images(single("train", 2 * seed), single("test", 2 * seed + 1), config.noise)


# ------------------------------------------------------------------------------------ lower level


def lower_level_of(K: Any, weight: Any) -> hg.LowerLevel:
    problem = hg.LowerLevel(K=jnp.asarray(K), F=hg.L1(weight), G=hg.Quadratic(1.0))
    return cast_floats(problem, jnp.float32)


def total_variation(signals: Images) -> hg.LowerLevel:
    """Finite differences at the weight that restores training signals best."""
    K = operators.differences(signals.train.shape[0])
    some = signals.train.take(slice(None, None, 4))
    candidates = (lower_level_of(K, weight) for weight in WEIGHTS)
    return baselines.best_of(
        candidates, some.x_tilde, some.x_true, lambda p, x: solve(p, x, signals).x
    )


def start(kind: str, signals: Images, seed: int) -> hg.LowerLevel:
    """Total variation, with what is learned beyond K."""
    problem = total_variation(signals)
    weight = float(problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "K":
        return problem
    K = np.asarray(problem.K)
    if kind == "overcomplete":
        # x[i+2] - x[i], and noise that makes the dependent rows independent and dense.
        K = np.concatenate([K, K[:-1] + K[1:]])
        K = K + 0.02 * np.random.default_rng(seed).standard_normal(K.shape)
        weight /= 2
    return lower_level_of(K, np.full(len(K), weight))


def solve(problem: hg.LowerLevel, x_tilde: Any, signals: Images) -> baselines.Converged:
    return baselines.solve_to_tolerance(
        problem,
        x_tilde,
        primal_scale=signals.noise,
        tolerance=TOLERANCE,
        most=MOST,
        step_ratio=STEP_RATIO,
        piece=PIECE,
    )


def judge(problem: hg.LowerLevel, config: Config, signals: Images) -> dict[str, Any]:
    """Held-out losses at L, converged, and converged but shrunk (fitted on training signals)."""
    x_tilde, x_true = signals.held_out.x_tilde, signals.held_out.x_true
    at_L = hg.solve(
        problem,
        x_tilde,
        solver=config.solver(signals),
        strategy=hg.Truncation(1),
    )
    x, share = solve(problem, x_tilde, signals)
    some = signals.train.take(slice(None, None, 4))
    a = baselines.best_shrinkage(some.x_tilde, solve(problem, some.x_tilde, signals).x, some.x_true)
    return {
        "loss_at_L": baselines.mean_loss(at_L.x, x_true),
        "loss": baselines.mean_loss(x, x_true),
        "loss_shrunk": baselines.mean_loss(baselines.shrink(x_tilde, x, a), x_true),
        "psnr": data.psnr(x, x_true),
        "shrinkage": a,
        "share_converged": share,
    }


def shown(signals: Images) -> data.Samples:
    """Held-out signals with the largest range, each of another row: flat ones show nothing."""
    order = np.argsort(-np.ptp(signals.held_out.x_true, axis=1))
    _, first = np.unique(signals.held_out.source_index[order] // 20, return_index=True)
    return signals.held_out.take(order[np.sort(first)[:SHOWN]])


# ------------------------------------------------------------------------------------------ cells


def compare_with_baselines(config: Config, seed: int, workspace: Workspace) -> Result:
    """What is not learned by descent, on the same signals."""
    del workspace
    signals = draw(config, seed)
    x_tilde, x_true = signals.held_out.x_tilde, signals.held_out.x_true
    affine = baselines.best_affine(signals.train.x_tilde, signals.train.x_true)
    problem = total_variation(signals)
    records: list[Record] = [
        {"method": name, "loss": baselines.mean_loss(x, x_true), "psnr": data.psnr(x, x_true)}
        for name, x in {"identity": x_tilde, "affine": affine(x_tilde)}.items()
    ]
    weight = float(problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    judged = judge(problem, config, signals)
    records.append({"method": "total variation", "weight": weight, **judged})
    records = [{"kind": "baseline", **record} for record in records]
    if seed > 0:
        return Result(records)
    some = shown(signals)
    restored = solve(problem, some.x_tilde, signals).x
    arrays = {"truth": some.x_true, "observed": some.x_tilde, "total variation": restored}
    return Result(records, arrays)


def _learned_leaves(kind: str, problem: hg.LowerLevel) -> Any:
    return problem.K if kind == "K" else (problem.K, problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]


def learn(config: Config, kind: str, seed: int, workspace: Workspace) -> Result:
    """One training run, epoch by epoch, and what the K that it ends at is worth."""
    signals = draw(config, seed)
    steps = config.epochs * (len(signals.train) // config.batch_size)
    history = hg.train(
        start(kind, signals, seed),
        (signals.train.x_tilde, signals.train.x_true),
        validation=(signals.held_out.x_tilde, signals.held_out.x_true),
        solver=config.solver(signals),
        strategy=hg.Truncation(config.k),
        optimizer=optax.adam(optax.cosine_decay_schedule(config.rate, steps)),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        checkpoint_dir=workspace.checkpoints,
        trainable=functools.partial(_learned_leaves, kind),
        progress=workspace.bar,
    )
    columns = ("epoch", "seconds", "train_loss", "validation_loss")
    curve = [{"kind": "epoch", **{name: r[name] for name in columns}} for r in history.records]
    judged = judge(history.problem, config, signals)
    records = [*curve, {"kind": "learned", **judged}]
    if seed > 0:
        return Result(records)
    restored = solve(history.problem, shown(signals).x_tilde, signals).x
    return Result(records, {"restored": restored, "rows": most_used(history.problem, signals)})


def most_used(problem: hg.LowerLevel, signals: Images, count: int = 12) -> np.ndarray:
    """Rows of K times their weight, those that cost held-out signals most, `(count, n)`."""
    K_x = np.asarray(operators.apply(problem.K, jnp.asarray(signals.held_out.x_true)))
    weight = np.asarray(problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    use = np.mean(weight * np.abs(K_x), axis=0)
    rows = np.broadcast_to(weight, use.shape)[:, None] * np.asarray(problem.K)
    return rows[np.argsort(-use)[:count]]


# ----------------------------------------------------------------------------------------- report


def report(config: Config, records: Sequence[Record]) -> str:
    """Held-out losses by method, and what is gained over total variation, paired over seeds."""
    del config
    judged = group((r for r in records if r["kind"] != "epoch"), "method")
    reference = [r["psnr"] for r in judged["total variation"]]
    table = []
    for method, rows in judged.items():
        row: dict[str, Any] = {"method": method, "seeds": len(rows)}
        for column in ("loss", "loss_at_L", "loss_shrunk", "share_converged", "psnr"):
            if column in rows[0]:
                row[column] = mean_interval([r[column] for r in rows])
        row["gain"] = paired_interval([r["psnr"] for r in rows], reference)
        table.append(row)
    headings = {
        "method": "method",
        "seeds": "seeds",
        "loss": "held-out loss, converged",
        "loss_at_L": "at L",
        "loss_shrunk": "shrunk",
        "share_converged": "share converged",
        "psnr": "PSNR (dB)",
        "gain": "gain over total variation (dB)",
    }
    return markdown_table(table, headings) + "\n"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("signals", Config, cells, report)
