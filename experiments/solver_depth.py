"""How many iterations L, and what they cost: "L often needs to be high", the first reason of both
posters for doing something else than unrolling.

    python experiments/solver_depth.py [--quick] [--out results/solver_depth]

Noisy patches with a random K and with the DCT, over seeds. Over L: distances of x[L] and y[L] from
the exact pair, the loss beside its limit, the gradient of all L iterations beside the exact one;
and, with the lower level at x*, the partial sums of L deltas in the limit formula: the adjoint's
own convergence, beside the rate that `contraction_factor` predicts for both. As distributions over
samples, since a few are far harder than the others. Time and memory of the forward solve and of
full unrolling are measured once: they do not depend on the numbers.

Budget: 5 minutes on 2 cores, by itself: it measures time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from _gradients import (
    Reference,
    Task,
    batch_errors,
    dct_denoising,
    exact_reference,
    quantiles,
    random_denoising,
    relative_errors,
    rounded,
    sample_gradients,
    states,
)

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import mean_interval
from hypergrad._foundation.timing import compile_ahead, interleaved_medians
from hypergrad.comparison import one_hypergradient, solve_without_strategy
from hypergrad.learning.devices import device_name
from hypergrad.workbench.baselines import mean_loss
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

PROBLEMS: dict[str, Callable[[int, int], Task]] = {
    "random K": random_denoising,
    "DCT": dct_denoising,
}
LEVELS = {"median": 0.5, "90 %": 0.9, "worst": 1.0}
MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Convergence and cost over L, float64."""

    depths: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    seeds: int = 5
    samples: int = 64
    """In a batch; also when time and memory are measured."""
    dimension: int = 120
    """Of the Krylov space in which the rate is looked for (the state has 256 entries)."""
    repeats: int = 9

    def quick(self) -> Config:
        """Two seeds, three depths."""
        return dataclasses.replace(
            self, depths=(5, 20, 100), seeds=2, samples=16, dimension=30, repeats=2
        )


def cells(config: Config) -> list[Cell]:
    """Convergence of every problem and seed; cost once."""
    made = []
    for problem in PROBLEMS:
        for seed in range(config.seeds):
            key: dict[str, Any] = {"part": "convergence", "problem": problem, "seed": seed}
            made.append(Cell(key, functools.partial(converge, config, problem, seed)))
    made.append(
        Cell({"part": "cost", "problem": "random K", "seed": 0}, lambda _: measure(config), 2.0)
    )
    return made


# ---------------------------------------------------------------------------------- convergence


def converge(config: Config, name: str, seed: int, workspace: Workspace) -> Result:
    """Of the iterates, of the gradient of L iterations, and of L steps of the adjoint at x*."""
    del workspace
    task = PROBLEMS[name](seed, config.samples)
    reference = exact_reference(task)
    exact_loss = mean_loss(reference.x, task.x_true)
    way = states(task, task.solver(1), config.depths)
    records = []
    for L in config.depths:
        x = task.x_tilde + np.asarray(way[L].r)
        unrolled = sample_gradients(task, task.solver(L), hg.FullUnrolling())
        steps = hg.LimitFormula(hg.Steps(L))
        adjoint = sample_gradients(task, task.solver(1), steps, reference.state)
        loss = mean_loss(x, task.x_true)
        records += [
            _record("iterate", L, _distances(x, task, reference)),
            _record("dual", L, _dual_distances(way[L], reference)),
            _record("unrolled", L, relative_errors(unrolled, reference))
            | {"batch": batch_errors(unrolled, reference)[0]},
            _record("adjoint", L, relative_errors(adjoint, reference))
            | {"batch": batch_errors(adjoint, reference)[0]},
            {"kind": "loss", "L": L, "loss": loss, "gap": rounded(abs(loss / exact_loss - 1))},
        ]
    return Result([*records, *_rate(config, task, reference)])


def _record(kind: str, L: int, values: np.ndarray) -> dict[str, Any]:
    """Quantiles over the samples at one L."""
    return {"kind": kind, "L": L, **_at_levels(values)}


def _distances(x: np.ndarray, task: Task, reference: Reference) -> np.ndarray:
    """`|| x - x* || / || x* - x_tilde ||` of each good sample, which is 1 at the start."""
    good = reference.good
    moved = np.linalg.norm((reference.x - task.x_tilde)[good], axis=1)
    return np.linalg.norm((x - reference.x)[good], axis=1) / moved


def _dual_distances(state: hg.State, reference: Reference) -> np.ndarray:
    """`|| y - y* || / || y* ||` of each good sample (whose y* is unique)."""
    y, exact = (np.asarray(s.y)[reference.good] for s in (state, reference.state))
    return np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)


def _rate(config: Config, task: Task, reference: Reference) -> list[Record]:
    """The predicted rate of each sample at the exact state, and what it says of an accuracy."""
    contraction = hg.contraction_factor(
        task.problem,
        task.x_tilde,
        solver=task.solver(1),
        init=reference.state,
        dimension=config.dimension,
    )
    rate = np.asarray(contraction.factor)
    records = [_record("predicted", L, rate**L) for L in config.depths]
    residual = rounded(float(np.max(contraction.residual)))
    return [
        *records,
        {"kind": "rate", **_at_levels(rate), "residual": residual, **reference.shares},
    ]


def _at_levels(values: np.ndarray) -> dict[str, Any]:
    return dict(zip(LEVELS, quantiles(values, list(LEVELS.values())), strict=True))


# ----------------------------------------------------------------------------------------- cost


def measure(config: Config) -> Result:
    """Time of, and memory stated by, the compiled forward solve and full unrolling."""
    task = random_denoising(0, config.samples)
    data = jax.numpy.asarray(task.x_tilde), jax.numpy.asarray(task.x_true)
    programs = {}
    for L in config.depths:
        solver = task.solver(L)
        programs["forward", L] = compile_ahead(
            solve_without_strategy, task.problem, data[0], solver
        )
        programs["full", L] = compile_ahead(
            one_hypergradient, task.problem, *data, solver, hg.FullUnrolling()
        )
    seconds = interleaved_medians(
        {f"{name} {L}": program.call for (name, L), program in programs.items()},
        repeats=config.repeats,
    )
    device = device_name()
    return Result(
        [
            {
                "kind": "cost",
                "device": device,
                "what": name,
                "L": L,
                "milliseconds": 1e3 * seconds[f"{name} {L}"],
                "megabytes": None if program.peak_bytes is None else program.peak_bytes / MEGABYTE,
                "compile_seconds": program.compile_seconds,
            }
            for (name, L), program in programs.items()
        ]
    )


# --------------------------------------------------------------------------------------- report

REACHED = (1e-2, 1e-6)


def report(config: Config, records: Sequence[Record]) -> str:
    """The L that an accuracy takes, what it costs, and the predicted rates."""
    rows = []
    for problem in PROBLEMS:
        mine = [r for r in records if r["problem"] == problem]
        for kind in ("iterate", "dual", "unrolled", "adjoint", "predicted"):
            for level in LEVELS:
                needed = {
                    f"{error:g}": _depth_needed(config, mine, kind, level, error)
                    for error in REACHED
                }
                rows.append({"problem": problem, "kind": kind, "samples": level, **needed})
    headings = {"problem": "problem", "kind": "error of", "samples": "samples"}
    depth = markdown_table(rows, headings | {f"{e:g}": f"L to error {e:g}" for e in REACHED})
    rates = []
    for problem in PROBLEMS:
        mine = [r for r in records if r["kind"] == "rate" and r["problem"] == problem]
        found = {level: str(mean_interval([r[level] for r in mine])) for level in LEVELS}
        residual = max(r["residual"] for r in mine)
        rates.append({"problem": problem, **found, "residual": residual})
    columns = {"problem": "problem", **{level: f"rate, {level}" for level in LEVELS}}
    predicted = markdown_table(rates, columns | {"residual": "of the eigenvalue, residual"})
    cost = markdown_table(
        [r for r in records if r["kind"] == "cost"],
        {"what": "what", "L": "L", "milliseconds": "time (ms)", "megabytes": "memory (MB)"},
    )
    return f"{depth}\n\n{predicted}\n\n{cost}\n"


def _depth_needed(
    config: Config, records: Sequence[Record], kind: str, level: str, error: float
) -> str:
    """The first L of those tried at which every seed is below the error."""
    for L in config.depths:
        found = [r[level] for r in records if r["kind"] == kind and r["L"] == L]
        if found and all(value is not None and value <= error for value in found):
            return str(L)
    return f"> {config.depths[-1]}"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("solver_depth", Config, cells, report)
