"""How accurate must the lower level be while one learns? Upper-level methods side by side.

    python experiments/upper_level.py [--quick] [--out results/upper_level]

The true loss (by `Exact`, not timed) after every step, over lower-level iterations and seconds: at
fixed accuracies (descent with the step sizes of HOAG), with HOAG's schedule, with the adaptive
method (from another accuracy and another first step, too), with L-BFGS, and with Adam on truncated
gradients at several rates. Three problems: K of a smooth analysis model on patches of photographs,
the weight of a Lasso, the weight of total variation on signals with jumps.

Budget: 45 minutes on 2 cores, by itself: it measures time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import hypergrad as hg
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import (
    Case,
    above,
    below,
    group,
    mean_interval,
    verdict_of,
)
from hypergrad.workbench import data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

FIXED = {"low accuracy": 1e-2, "middle accuracy": 1e-4, "high accuracy": 1e-8}
LOW, *_, HIGH = FIXED
OURS = "adaptive"
VARIANTS = {
    "adaptive from 1e-4": hg.AdaptiveInexactDescent(tolerance=1e-4),
    "adaptive, first step 1": hg.AdaptiveInexactDescent(first_step=1.0),
}
METHODS: dict[str, hg.AbstractUpperLevelMethod] = {
    **{name: hg.HOAG(tolerance, factor=1.0) for name, tolerance in FIXED.items()},
    "HOAG": hg.HOAG(),
    OURS: hg.AdaptiveInexactDescent(),
    **VARIANTS,
    "L-BFGS": hg.LBFGS(),
}
ADAM = "Adam, rate "
# Truncation: iterations of each solve, and backpropagated ones.
L, STEPS = 50, 10
SIZE = 8  # of a patch
# A run has arrived where it gained this share of what the best fixed accuracy of its problem and
# seed gained. Not of the best of all runs: others may fit further than any descent gets.
SHARE = 0.99


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Losses over lower-level iterations, float64."""

    problems: tuple[str, ...] = ("patches", "lasso", "total variation")
    methods: tuple[str, ...] = (
        *METHODS, *(f"{ADAM}{rate:g}" for rate in (0.003, 0.01, 0.03, 0.1))
    )  # fmt: skip
    samples: int = 64
    epochs: int = 60
    most: int = 5_000
    """Iterations of one solve."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def quick(self) -> Config:
        """Few samples, few steps."""
        methods = (*METHODS, f"{ADAM}0.03")
        small = {"samples": 4, "epochs": 3, "most": 500, "seeds": (0,), "problems": ("lasso",)}
        return dataclasses.replace(self, methods=methods, **small)


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


def cells(config: Config) -> list[Cell]:
    """One run each."""
    return [
        Cell(key, functools.partial(learn, config, *key.values()))
        for seed in config.seeds
        for problem in config.problems
        for name in config.methods
        for key in [{"problem": problem, "method": name, "seed": seed}]
    ]


def learn(config: Config, problem: str, name: str, seed: int, workspace: Workspace) -> Result:
    """The true loss after every step, with what it has cost."""
    task = task_of(config, problem, seed)

    def true_loss(problem: hg.LowerLevel) -> dict[str, float]:
        return {"true_loss": hg.evaluate(problem, *task.pair, strategy=hg.Exact())}

    if name.startswith(ADAM):
        how: dict[str, Any] = {
            "solver": hg.ChambollePock(L, step_ratio=task.step_ratio),
            "strategy": hg.Truncation(STEPS),
            "optimizer": optax.adam(float(name.removeprefix(ADAM))),
            "batch_size": len(task.pair[0]),
        }
    else:
        how = {
            "solver": hg.ChambollePock(config.most, step_ratio=task.step_ratio, tolerance=1e-10),
            "strategy": hg.LimitFormula(hg.Tolerance()),
            "method": METHODS[name],
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
    return Result([columns_of(history.records)])


def columns_of(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """The loss at each epoch, the accuracy, and cumulative costs: one list each."""
    costs = {"iterations": L, "adjoint_steps": STEPS, "evaluations": 1}  # per epoch of Adam
    columns = {name: [r.get(name) for r in records] for name in ("seconds", "true_loss")}
    if "tolerance" in records[-1]:
        columns["tolerance"] = [r["tolerance"] for r in records]
    for name, usual in costs.items():
        each = [r.get(name, usual) or 0.0 for r in records[1:]]
        columns[name] = np.cumsum([0.0, *each]).tolist()
    return columns


# ------------------------------------------------------------------------------------------ report


def goal_of(runs: Sequence[Record]) -> float:
    """The loss at which runs of one problem and seed have arrived."""
    start, best = _fixed_gain(runs)
    return start - SHARE * (start - best)


def _fixed_gain(runs: Sequence[Record]) -> tuple[float, float]:
    """The loss at the start, and the least that a fixed accuracy reaches."""
    fixed = [run["true_loss"] for run in runs if run["method"] in FIXED]
    if not fixed:
        raise HypergradError(
            f"there must be a fixed accuracy to judge others by; got "
            f"{', '.join(run['method'] for run in runs)}: add '{LOW}' to the methods"
        )
    return fixed[0][0], min(map(min, fixed))


def arrival(run: Record, goal: float) -> int | None:
    """The first epoch of a run at a loss, if it ever gets there."""
    return next((i for i, loss in enumerate(run["true_loss"]) if loss <= goal), None)


class Arrived(NamedTuple):
    """What the runs of a method needed to arrive, by seed: infinitely many if they did not."""

    runs: Mapping[int, Record]
    epochs: Mapping[int, int | None]
    gained: Mapping[int, float]
    """In the end, as a share of the gain of the best fixed accuracy."""

    @property
    def iterations(self) -> dict[int, float]:
        at = self.epochs.items()
        return {s: math.inf if i is None else self.runs[s]["iterations"][i] for s, i in at}

    def costs(self, column: str) -> list[float]:
        """A cumulative cost where it arrived, of the runs that did."""
        return [self.runs[s][column][i] for s, i in self.epochs.items() if i is not None]


def arrived(runs: Sequence[Record]) -> dict[str, Arrived]:
    """The methods of one problem."""
    by_seed = group(runs, "seed")
    goals = {seed: goal_of(same) for seed, same in by_seed.items()}
    gains = {seed: _fixed_gain(same) for seed, same in by_seed.items()}
    found = {}
    for name, same in group(runs, "method").items():
        mine = {run["seed"]: run for run in same}
        epochs = {seed: arrival(run, goals[seed]) for seed, run in mine.items()}
        gained = {}
        for seed, run in mine.items():
            start, best = gains[seed]
            gained[seed] = (start - run["true_loss"][-1]) / max(start - best, math.ulp(0.0))
        found[name] = Arrived(mine, epochs, gained)
    return found


def report(config: Config, records: Sequence[Record]) -> str:
    """What each method needs to arrive, by problem; which statements the records support."""
    del config
    problems = {name: arrived(runs) for name, runs in group(records, "problem").items()}
    tables = [f"## {name}\n\n{costs_table(methods)}\n" for name, methods in problems.items()]
    if all({*FIXED, "HOAG", OURS, *VARIANTS} <= methods.keys() for methods in problems.values()):
        tables.append(f"## Statements\n\n{statements_table(problems)}\n")
    return "\n".join(tables)


COSTS = {
    "iterations": "lower-level iterations",
    "adjoint_steps": "adjoint steps",
    "evaluations": "evaluations",
}
WHOLE = {
    "gained": "gain (%)",
    "each": "iterations per evaluation",
    "tries": "evaluations per epoch",
    "tolerance": "tolerance",
}


def costs_table(methods: Mapping[str, Arrived]) -> str:
    """Costs until arrival: means over the seeds that arrive, the median of the seconds, since some
    include compilation. Of whole runs: means, and the median tolerance."""
    headings = {"method": "method", "arrived": "arrived", **COSTS, "seconds": "seconds", **WHOLE}
    rows = []
    for name, of in methods.items():
        there = of.costs("seconds")
        costs = {key: _counted(of.costs(key)) if there else "–" for key in COSTS}
        seconds = f"{np.median(there):.2g}" if there else "–"
        count = f"{len(there)} of {len(of.runs)}"
        whole = _whole(of)
        rows.append({"method": name, "arrived": count, **costs, "seconds": seconds, **whole})
    return markdown_table(rows, headings)


def _counted(values: Sequence[float]) -> str:
    mean, half, samples = mean_interval(values)
    return f"{mean:.0f} ± {half:.0f}" if samples > 1 else f"{mean:.0f}"


def _whole(of: Arrived) -> dict[str, str]:
    runs = of.runs.values()
    each = [run["iterations"][-1] / max(run["evaluations"][-1], 1) for run in runs]
    tries = [run["evaluations"][-1] / (len(run["evaluations"]) - 1) for run in runs]
    tolerances = [t for run in runs for t in run.get("tolerance", ()) if t is not None]
    return {
        "gained": f"{100 * np.mean([*of.gained.values()]):.4g}",
        "each": f"{np.mean(each):.3g}",
        "tries": f"{np.mean(tries):.2g}",
        "tolerance": f"{np.median(tolerances):.0e}" if tolerances else "–",
    }


# -------------------------------------------------------------------------------------- statements

Judged = Iterator[tuple[str, Case]]
"""Of one problem: numbers in words, and whether each is as the statement says."""


class Statement(NamedTuple):
    """What the papers on adaptive accuracy state; `judge` is a function of one problem's runs."""

    says: str
    rule: str
    judge: Callable[[Mapping[str, Arrived]], Judged]


def over(of: Arrived, other: Arrived) -> list[float]:
    """Iterations until arrival over those of another method, in the seeds where one arrives."""
    ours, theirs = of.iterations, other.iterations
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return [a / max(b, 1.0) for a, b in pairs if min(a, b) < math.inf]


def between(name: str, ratios: Sequence[float], most: float, least: float = -math.inf) -> Judged:
    """Whether the interval of the mean ratio lies between bounds."""
    if math.inf in ratios:
        count = f"{ratios.count(math.inf)} of {len(ratios)}"
        yield f"{name}: does not arrive in {count} seeds", False
    elif not ratios:
        yield f"{name}: neither arrives", None
    else:
        mean = mean_interval(ratios)
        cases = below(mean, most), above(mean, least)
        yield f"{name}: {mean}", False if False in cases else None if None in cases else True


def reaches(methods: Mapping[str, Arrived]) -> Judged:
    of = methods[OURS]
    count, seeds = len(of.costs("seconds")), len(of.runs)
    yield f"{count} of {seeds} seeds", True if count == seeds else None if count else False


def fewer_than_every_fixed(methods: Mapping[str, Arrived]) -> Judged:
    for name in FIXED:
        if methods[name].costs("seconds"):
            yield from between(name, over(methods[OURS], methods[name]), 1.0)


def half_of_the_best_fixed(methods: Mapping[str, Arrived]) -> Judged:
    best = min(FIXED, key=lambda name: sum(methods[name].iterations.values()))
    yield from between(best, over(methods[OURS], methods[best]), 0.5)


def fewer_than_hoag(methods: Mapping[str, Arrived]) -> Judged:
    yield from between("HOAG", over(methods[OURS], methods["HOAG"]), 1.0)


def robust(methods: Mapping[str, Arrived]) -> Judged:
    for name in VARIANTS:
        yield from between(name, over(methods[name], methods[OURS]), 2.0, least=0.5)


def stalls(methods: Mapping[str, Arrived]) -> Judged:
    low, high = methods[LOW].gained, methods[HIGH].gained
    mean = mean_interval([100 * (high[seed] - low[seed]) for seed in low if seed in high])
    yield f"{mean} %", above(mean, 100 * (1 - SHARE))


STATEMENTS = (
    Statement(
        "Without a given accuracy the adaptive method reaches the loss of the best fixed one",
        "it arrives in every seed",
        reaches,
    ),
    Statement(
        "… with fewer lower-level iterations than every fixed accuracy that arrives",
        "iterations until arrival over those of each of them: below 1",
        fewer_than_every_fixed,
    ),
    Statement(
        "… with at most half of those of the best fixed accuracy",
        "over those of the one that arrives with the fewest: below 0.5",
        half_of_the_best_fixed,
    ),
    Statement(
        "… with fewer than by HOAG's schedule", "over those of HOAG: below 1", fewer_than_hoag
    ),
    Statement(
        "It is robust to its first accuracy and to its first step",
        "iterations of each variant over its own: between 0.5 and 2",
        robust,
    ),
    Statement(
        "A low fixed accuracy stalls above the loss of a high one",
        f"last loss above that of the high accuracy: more than {1 - SHARE:.0%} of the gain",
        stalls,
    ),
)


def statements_table(problems: Mapping[str, Mapping[str, Arrived]]) -> str:
    """The rule, the numbers by problem, and the verdict over all problems."""
    rows = []
    for says, rule, judge in STATEMENTS:
        found = {name: [*judge(methods)] for name, methods in problems.items()}
        words = {name: "; ".join(text for text, _ in mine) or "–" for name, mine in found.items()}
        cases = [case for mine in found.values() for _, case in mine]
        verdict = verdict_of(cases) if cases else "not measured"
        rows.append({"says": says, "rule": rule, **words, "verdict": f"**{verdict}**"})
    names = {name: name for name in problems}
    headings = {"says": "statement", "rule": "holds if", **names, "verdict": "verdict"}
    return markdown_table(rows, headings)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("upper_level", Config, cells, report)
