"""How good are the cheap hypergradients, and when? Against the exact one, sample by sample.

    python experiments/gradient_quality.py [--quick] [--out results/gradient_quality]

Relative error and cosine over L, over k and over the step ratio: truncation; the limit formula by
k steps at the last state, by the deltas of the last k iterates, and by CGLS; full unrolling; the
uniform average. L1 + Quadratic on noisy patches and the linear programme L1 + Box on quantised
ones, at the random K that learning starts from and at a K learned by one step of backpropagation.
As distributions over samples: a batch hides that some samples are wrong altogether, and that errors
of many cancel. What sees the last k iterations only is run from the state at L - k, which gives the
numbers of L iterations without repeating them.

Budget: 5 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _gradients import (
    Reference,
    Task,
    batch_errors,
    cosines,
    exact_reference,
    quantiles,
    quantised,
    relative_errors,
    sample_gradients,
    states,
)
from _images import Images, Learning

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import mean_interval
from hypergrad.problem import operators
from hypergrad.problem.lower_level import cast_floats
from hypergrad.workbench import baselines
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

PROBLEMS = ("L1 + Quadratic", "L1 + Box")
PLACES = ("start", "learned")
LEVELS = {"10": 0.1, "50": 0.5, "90": 0.9}


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Errors of hypergradients over L, k and the step ratio, float64."""

    depths: tuple[int, ...] = (10, 30, 100, 300, 1000)
    steps: tuple[int, ...] = (1, 3, 10, 30)
    ratios: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    few_steps: tuple[int, ...] = (1, 10)
    """The k at ratios other than 1."""
    few_depths: tuple[int, ...] = (100, 1000)
    """The L there."""
    samples: int = 64
    """Whose gradients are compared: drawn from the held-out ones."""
    seeds: int = 5
    bits: int = 3
    """Of the quantiser of the linear programme, on patches in [-1, 1]."""
    L: int = 100
    """At which K is learned."""
    rate: float = 0.03
    """Of Adam; for the linear programme, whose K has norm 1, `box_rate`: the best of 0.001 to 0.03
    in one trial."""
    box_rate: float = 0.003
    learning: Learning = Learning(samples=2048, held_out=256, epochs=10)

    def quick(self) -> Config:
        """One seed, two of everything."""
        return dataclasses.replace(
            self,
            depths=(10, 100),
            steps=(1, 10),
            ratios=(1.0, 10.0),
            few_depths=(100,),
            samples=16,
            seeds=1,
            learning=self.learning.quick(),
        )


def cells(config: Config) -> list[Cell]:
    """One for each problem, place and seed."""
    return [
        Cell(
            {"problem": problem, "place": place, "seed": seed},
            functools.partial(judge_gradients, config, problem, place, seed),
            cost=2.0 if place == "learned" else 1.0,
        )
        for problem in PROBLEMS
        for place in PLACES
        for seed in range(config.seeds)
    ]


# --------------------------------------------------------------------------------------- places


def find_place(
    config: Config, name: str, place: str, seed: int, workspace: Workspace
) -> tuple[hg.LowerLevel, Images]:
    """The lower level at this place, and the patches it is for."""
    images, problem = config.learning.draw(seed), config.learning.start(seed)
    if name == "L1 + Box":
        images = quantised(images, config.bits)
        # The scale of K and the weight do not move the argmin.
        K = operators.random(config.learning.rows, 64, key=jax.random.key(seed))
        radius = jnp.asarray(images.noise, jnp.float32)
        weight = jnp.ones((), jnp.float32)
        problem = hg.LowerLevel(K.astype(jnp.float32), hg.L1(weight), hg.Box(radius))
    if place == "learned":
        problem = config.learning.learn(
            images,
            L=config.L,
            strategy=hg.Truncation(1),
            rate=config.box_rate if name == "L1 + Box" else config.rate,
            seed=seed,
            workspace=workspace,
            problem=problem,
        ).problem
    return cast_floats(problem, jnp.float64), images


# ---------------------------------------------------------------------------------------- errors


def judge_gradients(
    config: Config, name: str, place: str, seed: int, workspace: Workspace
) -> Result:
    """Every strategy at every step ratio, over L."""
    problem, images = find_place(config, name, place, seed, workspace)
    x_tilde, x_true = (part[: config.samples].astype(float) for part in images.held_out_pair)
    task = Task(problem, x_tilde, x_true, images.noise)
    reference = exact_reference(task)
    records = []
    for ratio in config.ratios:
        depths = config.depths if ratio == 1 else config.few_depths
        steps = config.steps if ratio == 1 else config.few_steps
        records += over_depths(task, reference, ratio, depths, steps)
    about = {
        "kind": "reference",
        **reference.shares,
        "samples": config.samples,
        "loss": baselines.mean_loss(reference.x, task.x_true),
        "identity": baselines.mean_loss(task.x_tilde, task.x_true),
    }
    return Result([*records, about])


def over_depths(
    task: Task, reference: Reference, ratio: float, depths: Sequence[int], steps: Sequence[int]
) -> list[Record]:
    """A record for each strategy, with lists over L; what needs more than L iterations is None."""
    marks = [L - k for L in depths for k in (1, *steps) if k <= L]
    way = states(task, task.solver(1, ratio), marks)

    def near_the_end(strategy: hg.AbstractStrategy, L: int, k: int) -> np.ndarray:
        return sample_gradients(task, task.solver(k, ratio), strategy, way[L - k])

    def from_the_start(strategy: hg.AbstractStrategy, L: int, _: int) -> np.ndarray:
        return sample_gradients(task, task.solver(L, ratio), strategy)

    # How many of the last iterations a strategy sees, and how it is run.
    ways = [(hg.Truncation(k), k, near_the_end) for k in steps]
    ways += [(hg.LimitFormula(hg.LastIterates(k)), k, near_the_end) for k in steps]
    ways += [(hg.LimitFormula(hg.Steps(k)), 1, near_the_end) for k in steps]
    ways += [(hg.LimitFormula(), 1, near_the_end)]
    ways += [(s, 1, from_the_start) for s in (hg.FullUnrolling(), hg.ErgodicUnrolling())]
    records = []
    for strategy, k, run in ways:
        found = [_in_numbers(run(strategy, L, k), reference) if k <= L else {} for L in depths]
        lists = {column: [f.get(column) for f in found] for column in found[-1]}
        at = {"kind": "errors", "ratio": ratio, "strategy": strategy.label}
        records.append({**at, "L": list(depths), **lists})
    return records


def _in_numbers(ours: np.ndarray, reference: Reference) -> dict[str, Any]:
    """Quantiles over the samples, and the batch."""
    error, cosine = batch_errors(ours, reference)
    levels = list(LEVELS.values())
    errors = quantiles(relative_errors(ours, reference), levels)
    angles = quantiles(cosines(ours, reference), levels)
    return {
        **{f"error_{name}": value for name, value in zip(LEVELS, errors, strict=True)},
        "error_batch": error,
        **{f"cosine_{name}": value for name, value in zip(LEVELS, angles, strict=True)},
        "cosine_batch": cosine,
    }


# ---------------------------------------------------------------------------------------- report


def report(config: Config, records: Sequence[Record]) -> str:
    """At the L of learning: error and cosine by strategy and step ratio."""
    rows, L = [], config.L
    for problem in PROBLEMS:
        for place in PLACES:
            mine = [r for r in records if (r["problem"], r["place"]) == (problem, place)]
            shares = [r["good"] for r in mine if r["kind"] == "reference"]
            at_L = [r for r in mine if r["kind"] == "errors" and L in r["L"]]
            for strategy in dict.fromkeys(r["strategy"] for r in at_L):
                row: dict[str, Any] = {"problem": problem, "place": place, "strategy": strategy}
                for ratio in config.ratios:
                    found = [r for r in at_L if (r["strategy"], r["ratio"]) == (strategy, ratio)]
                    row[f"error {ratio:g}"] = _mean(found, "error_50", L)
                    row[f"cosine {ratio:g}"] = _mean(found, "cosine_batch", L)
                rows.append({**row, "good": str(mean_interval(shares))})
    headings = {name: name for name in ("problem", "place", "strategy")}
    for ratio in config.ratios:
        headings[f"error {ratio:g}"] = f"median relative error, ratio {ratio:g}"
        headings[f"cosine {ratio:g}"] = f"cosine of the batch, ratio {ratio:g}"
    return markdown_table(rows, headings | {"good": "certified samples"}) + "\n"


def _mean(records: Sequence[Record], column: str, L: int) -> str:
    values = [r[column][r["L"].index(L)] for r in records]
    values = [value for value in values if value is not None]
    return f"{mean_interval(values).mean:.3g}" if values else "-"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("gradient_quality", Config, cells, report)
