"""An iteration and every strategy against the floor: time, memory, compilation.

Also read from the compiled programs: memory, and whether an array of the size (batch, m, n) occurs;
and counted: compilations on a second call at the same shapes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.timing import compile_ahead, interleaved_medians, matrix_products_alone
from hypergrad.bilevel import hypergradient
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import distinct_labels, one_hypergradient, solve_without_strategy
from hypergrad.problem import operators
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import (
    AbstractStrategy,
    ErgodicUnrolling,
    FullUnrolling,
    LimitFormula,
    Steps,
    Truncation,
)
from hypergrad.workbench.benchmark._compilations import count_compilations
from hypergrad.workbench.benchmark._problems import random_problem
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["Settings", "cells", "report"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Ratios of time and memory, float32, L iterations."""

    sizes: tuple[tuple[int, int, int], ...] = (
        (128, 64, 256),
        (512, 256, 256),
        (640, 320, 128),
        (128, 64, 64),
    )
    """(m, n, batch)."""
    iterations: int = 100
    repeats: int = 15
    many_iterations: int = 100_000
    """L of one more run at the last size, once: does memory grow?"""

    def quick(self) -> Settings:
        """One small size, two repeats."""
        return dataclasses.replace(self, sizes=((32, 16, 8),), repeats=2, many_iterations=1_000)


MEASURED: tuple[AbstractStrategy, ...] = (
    Truncation(1),
    LimitFormula(Steps(1)),
    Truncation(10),
    LimitFormula(Steps(10)),
    FullUnrolling(),
    ErgodicUnrolling(),
)
# Those of which memory does not depend on L.
OF_CONSTANT_MEMORY = MEASURED[:4]

COLUMNS = {
    "size": "(m, n, batch)",
    "iterations": "L",
    "name": "what",
    "milliseconds": "time (ms)",
    "over_floor": "/ floor",
    "over_forward": "/ forward",
    "compile_seconds": "compile (s)",
    "megabytes": "memory (MB)",
    "batch_m_n_arrays": "arrays (batch, m, n)",
    "recompilations": "compiled again",
}


def arrays_of_size(text: str, *dimensions: int) -> int:
    """Count the shapes of a compiled program that have all of these dimensions."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f\d+\[([\d,]+)\]", text)}
    return sum(all(shape.count(d) >= dimensions.count(d) for d in dimensions) for shape in shapes)


def measure(
    m: int,
    n: int,
    batch: int,
    strategies: Sequence[AbstractStrategy],
    *,
    iterations: int,
    repeats: int,
) -> Result:
    problem, x_tilde, x_true = random_problem(m, n, batch, jnp.float32)
    # The norm is paid once and reported in a row of its own.
    solver = ChambollePock(iterations).with_step_sizes(problem)

    # There is a strategy that is called `forward`, too: what is none stands apart.
    programs = {
        ("alone", "floor"): compile_ahead(
            eqx.Partial(matrix_products_alone, L=iterations), problem.K, x_tilde
        ),
        ("alone", "forward"): compile_ahead(solve_without_strategy, problem, x_tilde, solver),
        ("alone", "operator norm"): compile_ahead(operators.operator_norm, problem.K),
    }
    labelled = {("strategy", label): s for label, s in distinct_labels(strategies).items()}
    given = (problem, x_tilde, x_true, solver)
    for key, strategy in labelled.items():
        programs[key] = compile_ahead(one_hypergradient, *given, strategy)
    seconds = interleaved_medians(
        {key: program.call for key, program in programs.items()}, repeats=repeats
    )
    again = {key: _recompilations(*given, strategy) for key, strategy in labelled.items()}
    records = [
        {
            "size": f"({m}, {n}, {batch})",
            "iterations": iterations,
            "name": key[1],
            "milliseconds": 1e3 * seconds[key],
            "over_floor": seconds[key] / seconds["alone", "floor"],
            "over_forward": seconds[key] / seconds["alone", "forward"],
            "compile_seconds": program.compile_seconds,
            "megabytes": None if program.peak_bytes is None else program.peak_bytes / 1e6,
            "batch_m_n_arrays": arrays_of_size(program.text, m, n, batch),
            "recompilations": again.get(key),
        }
        for key, program in programs.items()
    ]
    return Result(records)


def _recompilations(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
) -> int:
    """Compilations on a second call with other numbers of the same shapes."""

    def call(scale: float):
        x = jnp.asarray(scale, x_tilde.dtype) * x_tilde
        return hypergradient(problem, x, x_true, solver=solver, strategy=strategy)

    jax.block_until_ready(call(1.0))
    return count_compilations(lambda: call(2.0))


def cells(settings: Settings) -> list[Cell]:
    """One for each size, and one of many iterations."""

    def cell(
        m: int, n: int, batch: int, L: int, repeats: int, strategies: Sequence[AbstractStrategy]
    ) -> Cell:
        return Cell(
            {"section": "floors", "m": m, "n": n, "batch": batch, "L": L},
            lambda _: measure(m, n, batch, strategies, iterations=L, repeats=repeats),
        )

    usual = [
        cell(*size, settings.iterations, settings.repeats, MEASURED) for size in settings.sizes
    ]
    return [*usual, cell(*settings.sizes[-1], settings.many_iterations, 1, OF_CONSTANT_MEMORY)]


def report(records: Sequence[Record]) -> str:
    """One table."""
    return f"# Time and memory against the floor\n\n{markdown_table(records, COLUMNS)}\n"
