"""What every strategy costs: time and memory over L, k, the batch and n.

    python experiments/cost.py [--quick] [--out results/cost]

One of L, k, batch and n is varied at a time, the others stay at a base point; m = 2 n, a random K,
patches of photographs, float32. Times are medians over interleaved repeats, compilation apart, and
ratios to the floor: the 2 L matrix products of L iterations alone, in the same process. Memory is
what the compiled program states. A strategy that fails, or would take too long or too much memory,
is a row with its reason (and its memory, which is known without a run).

Budget: 6 minutes on 2 cores, by itself: it measures time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.timing import (
    Compiled,
    compile_ahead,
    interleaved_medians,
    matrix_products_alone,
)
from hypergrad.comparison import failure_of, one_hypergradient, solve_without_strategy
from hypergrad.learning.devices import device_name
from hypergrad.problem import operators
from hypergrad.workbench import data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# How the strategies are measured; those that are not named here, as they are by default.
OPTIONS = {
    "truncation": ("k={k}",),
    "limit": ("steps={k}", "last={k}", "cgls"),
    "ergodic": ("uniform",),
    "jaxopt": ("normal_cg", "bicgstab"),
    "optimistix": ("autolinearsolver", "bicgstab"),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """Iterations, backpropagated steps, samples at a time, pixels along the side of a patch."""

    L: int = 100
    k: int = 10
    batch: int = 64
    side: int = 8

    @property
    def n(self) -> int:
        return self.side**2


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """What is varied, around a base point."""

    base: Point = Point()
    L: tuple[int, ...] = (10, 30, 100, 300)
    k: tuple[int, ...] = (1, 10, 100)
    batch: tuple[int, ...] = (16, 64, 512)
    side: tuple[int, ...] = (4, 8, 16)
    weight: float = 0.15
    noise: float = 0.1
    step_ratio: float = 100.0
    repeats: int = 5
    most_seconds: float = 10.0
    """For one hypergradient that is estimated beforehand."""
    slow_seconds: float = 1.0
    """What takes longer is timed once, after a run to warm up."""
    most_megabytes: float = 2000.0

    def quick(self) -> Config:
        """Small and few."""
        return dataclasses.replace(
            self,
            base=Point(L=20, k=2, batch=8, side=4),
            L=(10, 20),
            k=(1, 2),
            batch=(8,),
            side=(3, 4),
            repeats=1,
            most_seconds=0.1,
        )

    def points(self) -> dict[Point, bool]:
        """All points, and whether only what depends on k is measured there."""
        points = {self.base: False}
        for name in ("L", "batch", "side"):
            for value in getattr(self, name):
                points[dataclasses.replace(self.base, **{name: value})] = False
        for k in self.k:
            points.setdefault(dataclasses.replace(self.base, k=k), True)
        return points


def strategies(k: int, *, with_k_only: bool = False) -> list[str]:
    """Every strategy of the package and every peer."""
    found = []
    for name in hg.STRATEGIES:
        for options in OPTIONS.get(name, ("",)):
            if "{k}" in options or not with_k_only:
                found.append(f"{name}:{options.format(k=k)}" if options else name)
    return found


def cells(config: Config) -> list[Cell]:
    """One for each point: what is compared is measured in one process, in turns."""
    made = []
    for point, with_k_only in config.points().items():
        texts = strategies(point.k, with_k_only=with_k_only)
        key = {**dataclasses.asdict(point), "n": point.n}
        compute = functools.partial(measure, config, point, texts)
        made.append(Cell(key, compute, cost=float(len(texts))))
    return made


def measure(config: Config, point: Point, texts: Sequence[str], workspace: Workspace) -> Result:
    """Time and memory of all strategies at one point."""
    del workspace
    samples = data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, point.batch, size=point.side, noise=config.noise, seed=0
    )
    x_tilde, x_true = (jnp.asarray(a, jnp.float32) for a in (samples.x_tilde, samples.x_true))
    K = operators.random(2 * point.n, point.n, key=jax.random.key(0)).astype(jnp.float32)
    problem = hg.LowerLevel(K=K, F=hg.L1(config.weight), G=hg.Quadratic(1.0))
    # The norm is no part of a strategy.
    solver = hg.ChambollePock(point.L, step_ratio=config.step_ratio).with_step_sizes(problem)

    programs = {
        "floor": compile_ahead(eqx.Partial(matrix_products_alone, L=point.L), K, x_tilde),
        "forward solve": compile_ahead(solve_without_strategy, problem, x_tilde, solver),
    }
    reasons: dict[str, str] = {}
    slow: dict[str, float] = {}
    solve_seconds = min(_seconds(programs["forward solve"]) for _ in range(2))
    for text in texts:
        strategy = hg.parse_strategy(text)
        try:
            program = compile_ahead(one_hypergradient, problem, x_tilde, x_true, solver, strategy)
        except Exception as error:  # one that fails is a row with its reason, not the end of all
            reasons[text] = failure_of(error)
            continue
        programs[text] = program
        reason = _too_much(config, strategy, program, solve_seconds * _derivatives(problem))
        if reason is not None:
            reasons[text] = reason
            continue
        try:
            _seconds(program)
            if (once := _seconds(program)) > config.slow_seconds:
                slow[text] = once
        except Exception as error:
            reasons[text] = failure_of(error)
    left_out = reasons | slow
    timed = {name: one.call for name, one in programs.items() if name not in left_out}
    seconds = interleaved_medians(timed, repeats=config.repeats) | slow
    names = [*(name for name in programs if name not in texts), *texts]
    return Result([_record(name, programs.get(name), seconds, reasons) for name in names])


def _derivatives(problem: hg.LowerLevel) -> int:
    """In how many numbers a forward-mode derivative is taken."""
    return sum(leaf.size for leaf in jax.tree.leaves(problem)) + problem.n


def _too_much(
    config: Config, strategy: hg.AbstractStrategy, program: Compiled, one_each: float
) -> str | None:
    """Why a program is not run; `one_each`, the seconds of one solve for each derivative."""
    if isinstance(strategy, hg.ForwardUnrolling) and one_each > config.most_seconds:
        return f"a solve for each derivative would take {one_each:.2g} s"
    megabytes = (program.peak_bytes or 0) / 1e6
    return f"{megabytes:.2g} MB" if megabytes > config.most_megabytes else None


def _seconds(program: Compiled) -> float:
    started = time.perf_counter()
    jax.block_until_ready(program.call())
    return time.perf_counter() - started


def _record(
    name: str,
    program: Compiled | None,
    seconds: Mapping[str, float],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    peak = None if program is None else program.peak_bytes
    record: dict[str, Any] = {
        "strategy": name,
        "milliseconds": None,
        "over_floor": None,
        "over_forward": None,
        "compile_seconds": None if program is None else program.compile_seconds,
        "megabytes": None if peak is None else peak / 1e6,
        "reason": reasons.get(name),
    }
    if name in seconds:
        record["milliseconds"] = 1e3 * seconds[name]
        record["over_floor"] = seconds[name] / seconds["floor"]
        record["over_forward"] = seconds[name] / seconds["forward solve"]
    return record


def report(config: Config, records: Sequence[Record]) -> str:
    """The base point as a table, and time over the floor at the others."""
    base = [r for r in records if _at(r, config.base)]
    headings = {
        "strategy": "what",
        "milliseconds": "time (ms)",
        "over_floor": "/ floor",
        "over_forward": "/ forward",
        "compile_seconds": "compile (s)",
        "megabytes": "memory (MB)",
        "reason": "not measured because",
    }
    where = ", ".join(f"{k} = {v}" for k, v in dataclasses.asdict(config.base).items())
    parts = [f"# At {where}\n\n{markdown_table(base, headings)}\n"]
    for axis in ("L", "batch", "side"):
        rows: dict[str, dict[str, Any]] = {}
        for value in getattr(config, axis):
            point = dataclasses.replace(config.base, **{axis: value})
            for r in (r for r in records if _at(r, point)):
                rows.setdefault(r["strategy"], {"strategy": r["strategy"]})[str(value)] = r[
                    "over_floor"
                ]
        columns = {str(v): f"{axis} = {v}" for v in getattr(config, axis)}
        table = markdown_table(list(rows.values()), {"strategy": "what"} | columns)
        parts.append(f"# Time over the floor, by {axis}\n\n{table}\n")
    return "\n".join([*parts, f"Device: {device_name()}\n"])


def _at(record: Record, point: Point) -> bool:
    return all(record[key] == value for key, value in dataclasses.asdict(point).items())


if __name__ == "__main__":
    main("cost", Config, cells, report)
