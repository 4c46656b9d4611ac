"""How accurate must the lower level be while one learns? Upper-level methods side by side.

    python experiments/upper_level.py [--quick] [--out results/upper_level]

The true loss (by `Exact`, not timed) after every step, over lower-level iterations and seconds: at
fixed accuracies (descent with the step sizes of HOAG), with HOAG's schedule, with the adaptive
method, with L-BFGS, and with Adam on truncated gradients at its best of several rates. Three
problems: K of a smooth analysis model on patches of photographs, the weight of a Lasso, the weight
of total variation on signals with jumps.

Budget: 30 minutes on 2 cores, by itself: it measures time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group
from hypergrad.workbench import data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

FIXED = {"low accuracy": 1e-2, "middle accuracy": 1e-4, "high accuracy": 1e-8}
METHODS = (*FIXED, "HOAG", "adaptive", "L-BFGS")
# Truncation: iterations of each solve, and backpropagated ones.
L, STEPS = 50, 10
SIZE = 8  # of a patch
# A run has arrived where it has gained this share of what the best run of its problem gained.
SHARE = 0.99


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Losses over lower-level iterations, float64."""

    problems: tuple[str, ...] = ("patches", "lasso", "total variation")
    methods: tuple[str, ...] = METHODS
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    samples: int = 64
    epochs: int = 60
    most: int = 5_000
    """Iterations of one solve."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def quick(self) -> Config:
        """Few samples, few steps."""
        return dataclasses.replace(
            self, rates=(0.03,), samples=4, epochs=3, most=500, seeds=(0,), problems=("lasso",)
        )


class Task(NamedTuple):
    """What is learned, from where, on which samples."""

    problem: hg.LowerLevel
    pair: tuple[Any, Any]
    trainable: Callable[[hg.LowerLevel], Any]
    step_ratio: float


def task_of(config: Config, name: str, seed: int) -> Task:
    """Draw a problem: its start is off on purpose."""
    if name == "lasso":
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((60, 30)) / 60**0.5
        truth = rng.standard_normal(30) * (rng.random(30) < 0.2)
        b = A @ truth + 0.1 * rng.standard_normal(60)
        problem = hg.LowerLevel(A, hg.Quadratic(1.0, b), hg.L1(0.2))
        pair = np.zeros((1, 30)), truth[None]
        return Task(problem, pair, lambda p: p.G.weight, 1.0)
    if name == "total variation":
        # In one dimension: the rows of 2-D differences are dependent, and no active set certified.
        rng = np.random.default_rng(seed)
        jumps = rng.standard_normal((config.samples, 64)) * (rng.random((config.samples, 64)) < 0.1)
        x_true = np.cumsum(jumps, axis=1)
        pair = x_true + 0.3 * rng.standard_normal(x_true.shape), x_true
        problem = hg.LowerLevel(hg.operators.differences(64), hg.L1(0.1), hg.Quadratic(1.0))
        return Task(problem, pair, lambda p: p.F.weight, 10.0)
    photographs = data.PHOTOGRAPHS_TRAIN
    samples = data.noisy_patches(photographs, config.samples, size=SIZE, noise=0.1, seed=seed)
    K = hg.operators.dct2((SIZE, SIZE), constant=False)
    problem = hg.LowerLevel(K, hg.Huber(0.1, smoothing=0.05), hg.Quadratic(1.0))
    return Task(problem, (samples.x_tilde, samples.x_true), lambda p: p.K, 1.0)


def method_of(name: str) -> hg.AbstractUpperLevelMethod:
    """A method by its name in the records."""
    if name in FIXED:
        return hg.HOAG(FIXED[name], factor=1.0)
    return {"HOAG": hg.HOAG, "adaptive": hg.AdaptiveInexactDescent, "L-BFGS": hg.LBFGS}[name]()


def cells(config: Config) -> list[Cell]:
    """One run each."""
    names = [*config.methods, *(f"Adam, rate {rate:g}" for rate in config.rates)]
    return [
        Cell(key, functools.partial(learn, config, *key.values()))
        for seed in config.seeds
        for problem in config.problems
        for name in names
        for key in [{"problem": problem, "method": name, "seed": seed}]
    ]


def learn(config: Config, problem: str, name: str, seed: int, workspace: Workspace) -> Result:
    """The true loss after every step, with what it has cost."""
    task = task_of(config, problem, seed)

    def true_loss(problem: hg.LowerLevel) -> dict[str, float]:
        return {"true_loss": hg.evaluate(problem, *task.pair, strategy=hg.Exact())}

    if name.startswith("Adam"):
        rate = float(name.rpartition(" ")[2])
        how: dict[str, Any] = {
            "solver": hg.ChambollePock(L, step_ratio=task.step_ratio),
            "strategy": hg.Truncation(STEPS),
            "optimizer": optax.adam(rate),
            "batch_size": len(task.pair[0]),
        }
    else:
        how = {
            "solver": hg.ChambollePock(config.most, step_ratio=task.step_ratio, tolerance=1e-10),
            "strategy": hg.LimitFormula(hg.Tolerance()),
            "method": method_of(name),
        }
    history = hg.train(
        task.problem,
        task.pair,
        trainable=task.trainable,
        epochs=config.epochs,
        measure=true_loss,
        checkpoint_dir=workspace.checkpoints,
        progress=workspace.bar,
        **how,
    )
    return Result(_with_costs(history))


def _with_costs(history: hg.History) -> list[dict[str, Any]]:
    """Cumulative iterations (of the lower level and the adjoint) and evaluations at each epoch."""
    costs = {"iterations": L, "adjoint_steps": STEPS, "evaluations": 1}  # per epoch of Adam
    totals, found = dict.fromkeys(costs, 0.0), []
    for record in history.records:
        for name, usual in costs.items():
            totals[name] += (record.get(name, usual) or 0.0) if record["epoch"] else 0.0
        kept = {name: record[name] for name in ("epoch", "seconds", "true_loss")}
        accuracies = {name: record.get(name) for name in ("tolerance", "backtracks")}
        found.append({**kept, **totals, **accuracies, "stopped": record.get("stopped")})
    return found


def arrival(run: Sequence[Record], goal: float) -> Record | None:
    """The first record of a run at a loss, if it ever gets there."""
    return next((r for r in run if r["true_loss"] <= goal), None)


def goal_of(records: Sequence[Record]) -> float:
    """The loss at which runs of one problem and seed have arrived."""
    start = max(r["true_loss"] for r in records if r["epoch"] == 0)
    return start - SHARE * (start - min(r["true_loss"] for r in records))


def report(config: Config, records: Sequence[Record]) -> str:
    """What each method needs to arrive: a mean over the seeds of those that do."""
    del config
    headings = {
        "method": "method",
        "arrived": "arrived",
        "iterations": "lower-level iterations",
        "adjoint_steps": "adjoint steps",
        "evaluations": "evaluations",
        "seconds": "seconds",
        "loss": "last loss over the best",
    }
    parts = []
    for problem, mine in group(records, lambda r: r["problem"]).items():
        goals = {seed: goal_of(same) for seed, same in group(mine, lambda r: r["seed"]).items()}
        best = {seed: min(r["true_loss"] for r in mine if r["seed"] == seed) for seed in goals}
        rows = []
        for name, same in group(mine, lambda r: r["method"]).items():
            runs = group(same, lambda r: r["seed"])
            arrived = [arrival(run, goals[seed]) for seed, run in runs.items()]
            there = [r for r in arrived if r is not None]
            last = np.mean([run[-1]["true_loss"] / best[seed] for seed, run in runs.items()])
            costs = {
                key: f"{np.mean([r[key] for r in there]):.3g}" if there else "–"
                for key in ("iterations", "adjoint_steps", "evaluations", "seconds")
            }
            rows.append(
                {
                    "method": name,
                    "arrived": f"{len(there)} of {len(runs)}",
                    **costs,
                    "loss": f"{last:.6f}",
                }
            )
        parts.append(f"# {problem}\n\n{markdown_table(rows, headings)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("upper_level", Config, cells, report)
