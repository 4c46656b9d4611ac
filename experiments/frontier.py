"""Which error of the hypergradient for which time: all strategies and peers, options varied.

    python experiments/frontier.py [--quick] [--out results/frontier]

Patches of photographs, float64, an easy K (DCT) and a hard one (random, m = 2 n), at several
numbers of iterations L; `Exact` is the reference, and a time of its own. Errors are those of the
gradient in K on the samples that the reference is certified on; in a column of their own, on those
where the solution map is differentiable. Forward unrolling is left out: its gradient is that of
full unrolling, at a solve for each entry of K.

Budget: 8 minutes on 2 cores, by itself: it measures time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad.problem import operators
from hypergrad.workbench import data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# Each is measured at every L that its k allows.
STRATEGIES = (
    "full",
    "ergodic:uniform",
    "truncation:k=1",
    "truncation:k=10",
    "truncation:k=100",
    "limit:steps=10",
    "limit:steps=100",
    "limit:tolerance=1e-8",
    "limit:cgls",
    "piggyback",
    "jaxopt:normal_cg",
    "jaxopt:gmres",
    "jaxopt:bicgstab",
    "optimistix:autolinearsolver",
    "optimistix:bicgstab",
    "optimistix-checkpointed",
)

# What is kept of a record of `compare`.
COLUMNS = {
    "strategy": "strategy",
    "relative_error": "relative error",
    "relative_error_differentiable": "relative error, differentiable samples",
    "cosine": "cosine",
    "milliseconds": "time (ms)",
    "products": "products with K (mean a sample)",
    "forward_residual": "forward residual (worst)",
    "adjoint_residual": "adjoint residual (worst)",
    "error": "error",
}


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Error against time on one batch, float64."""

    patches: int = 64
    iterations: tuple[int, ...] = (10, 50, 200, 1000)
    strategies: tuple[str, ...] = STRATEGIES
    step_ratio: float = 100.0
    weight: float = 0.15
    noise: float = 0.1
    repeats: int = 3
    seed: int = 0

    def quick(self) -> Config:
        """A few strategies, few iterations."""
        few = ("full", "truncation:k=1", "limit:cgls", "piggyback", "jaxopt:normal_cg")
        return dataclasses.replace(self, patches=8, iterations=(10, 50), strategies=few, repeats=1)


def _operators(seed: int) -> dict[str, jax.Array]:
    return {
        "easy: DCT": operators.dct2((8, 8), constant=False),
        "hard: random": operators.random(128, 64, key=jax.random.key(seed)),
    }


def cells(config: Config) -> list[Cell]:
    """For each K, the reference by itself and all strategies at each L."""
    made = []
    for name in _operators(config.seed):
        for L in (None, *config.iterations):
            cost = 1.0 if L is None else 4 + L / 200
            compute = functools.partial(measure, config, name, L)
            made.append(Cell({"K": name, "L": L}, compute, cost))
    return made


def measure(config: Config, name: str, L: int | None, workspace: Workspace) -> Result:
    """All strategies at L against `Exact`; without an L, `Exact` itself."""
    del workspace
    samples = data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, config.patches, noise=config.noise, seed=config.seed
    )
    K = _operators(config.seed)[name]
    problem = hg.LowerLevel(K, hg.L1(config.weight), hg.Quadratic(1.0))
    # The norm is no part of a strategy.
    solver = hg.ChambollePock(L or 100, step_ratio=config.step_ratio).with_step_sizes(problem)
    texts = [text for text in config.strategies if _needs(text) <= solver.iterations]
    pair = samples.x_tilde, samples.x_true
    # One solver for the reference, whatever L: one compilation.
    patient = hg.ChambollePock(step_ratio=config.step_ratio)
    comparison = hg.compare(
        problem,
        *pair,
        solver=solver,
        strategies=[hg.parse_strategy(text) for text in (texts if L else ["exact"])],
        repeats=config.repeats,
        reference=hg.hypergradient(problem, *pair, solver=patient, strategy=hg.Exact()),
    )
    about = {key: comparison.reference[key] for key in ("certified", "differentiable")}
    return Result(
        [about | {key: record.get(key) for key in COLUMNS} for record in comparison.records]
    )


def _needs(text: str) -> int:
    """The least L that a strategy can be used with."""
    strategy: Any = hg.parse_strategy(text)
    if isinstance(strategy, hg.Truncation):
        return strategy.k
    adjoint = getattr(strategy, "adjoint", None)
    return adjoint.k if isinstance(adjoint, hg.LastIterates) else 1


def report(config: Config, records: Sequence[Record]) -> str:
    """A table for each K and L."""
    del config
    parts = []
    for name, L in dict.fromkeys((r["K"], r["L"]) for r in records):
        rows = [r for r in records if (r["K"], r["L"]) == (name, L)]
        shares = {key: f"{100 * rows[0][key]:.3g} %" for key in ("certified", "differentiable")}
        parts.append(
            f"# {name}, {f'L = {L}' if L else 'the reference'}\n\n{shares['certified']} of the "
            f"patches certified, {shares['differentiable']} differentiable\n\n"
            f"{markdown_table(rows, COLUMNS)}\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("frontier", Config, cells, report)
