"""What a strategy costs, as ratios within one run.

The floor is the time of the 2 L matrix products of L iterations alone (same shapes, dtype and
process). Everything is compiled ahead, warmed up, interleaved and blocked until ready; the figure
is the median. Also read from the compiled programs: memory, and whether an array of the size
(batch, m, n) occurs; and counted: compilations on a second call at the same shapes.

    python experiments/speed.py [--quick] [--out results/speed]
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

import hypergrad as hg
from hypergrad.comparison import one_hypergradient, solve_without_strategy
from hypergrad.operators import operator_norm
from hypergrad.records import markdown_table
from hypergrad.sweep import Cell, Record, Result, main
from hypergrad.timing import compile_ahead, interleaved_medians, matrix_products_alone


@dataclasses.dataclass(frozen=True)
class Config:
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

    def quick(self) -> Config:
        """One small size, two repeats."""
        return dataclasses.replace(self, sizes=((32, 16, 8),), repeats=2)


MEASURED: tuple[hg.AbstractStrategy, ...] = (
    hg.Truncation(1),
    hg.LimitFormula(hg.Steps(1)),
    hg.Truncation(10),
    hg.LimitFormula(hg.Steps(10)),
    hg.FullUnrolling(),
    hg.ErgodicUnrolling(),
)

COLUMNS = {
    "size": "(m, n, batch)",
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
    """How many shapes of a compiled program hold all of these dimensions."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f\d+\[([\d,]+)\]", text)}
    return sum(all(shape.count(d) >= dimensions.count(d) for d in dimensions) for shape in shapes)


class CompilationCounter(logging.Handler):
    """Counts what JAX says it compiles."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("Compiling ")


def count_compilations(call) -> int:
    """Compilations during a call."""
    counter, logger = CompilationCounter(), logging.getLogger("jax._src.interpreters.pxla")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(counter)
    try:
        with jax.log_compiles():
            jax.block_until_ready(call())
    finally:
        logger.removeHandler(counter)
        logger.propagate = propagate
    return counter.count


def measure(m: int, n: int, batch: int, config: Config) -> Result:
    keys = jax.random.split(jax.random.key(0), 3)
    K = hg.operators.random(m, n, key=keys[0])
    x_true = jax.random.normal(keys[1], (batch, n))
    x_tilde = x_true + 0.1 * jax.random.normal(keys[2], (batch, n))
    problem = hg.LowerLevel(K=K, F=hg.L1(0.15), G=hg.Quadratic(1.0))
    # The norm is paid once and reported in a row of its own.
    solver = hg.ChambollePock(config.iterations).with_step_sizes(problem)

    programs = {
        "floor": compile_ahead(eqx.Partial(matrix_products_alone, L=config.iterations), K, x_tilde),
        "forward": compile_ahead(solve_without_strategy, problem, x_tilde, solver),
        "operator norm": compile_ahead(operator_norm, K),
    }
    for strategy in MEASURED:
        programs[strategy.label] = compile_ahead(
            one_hypergradient, problem, x_tilde, x_true, solver, strategy
        )
    seconds = interleaved_medians(
        {name: program.call for name, program in programs.items()}, repeats=config.repeats
    )
    again = {s.label: _recompilations(problem, x_tilde, x_true, solver, s) for s in MEASURED}
    records = [
        {
            "size": f"({m}, {n}, {batch})",
            "device": jax.devices()[0].device_kind,
            "name": name,
            "milliseconds": 1e3 * seconds[name],
            "over_floor": seconds[name] / seconds["floor"],
            "over_forward": seconds[name] / seconds["forward"],
            "compile_seconds": program.compile_seconds,
            "megabytes": None if program.peak_bytes is None else program.peak_bytes / 1e6,
            "batch_m_n_arrays": arrays_of_size(program.text, m, n, batch),
            "recompilations": again.get(name),
        }
        for name, program in programs.items()
    ]
    return Result(records)


def _recompilations(problem, x_tilde, x_true, solver, strategy) -> int:
    """Compilations on a second call with other numbers of the same shapes."""

    def call(scale: float):
        x = jnp.asarray(scale, x_tilde.dtype) * x_tilde
        return hg.hypergradient(problem, x, x_true, solver=solver, strategy=strategy)

    jax.block_until_ready(call(1.0))
    return count_compilations(lambda: call(2.0))


def cells(config: Config) -> list[Cell]:
    """One for each size."""
    return [
        Cell({"m": m, "n": n, "batch": batch}, lambda _, size=(m, n, batch): measure(*size, config))
        for m, n, batch in config.sizes
    ]


def report(config: Config, records: Sequence[Record]) -> str:
    """The table, and the device that it was measured on."""
    del config
    return f"{markdown_table(records, COLUMNS)}\n\nDevice: {jax.devices()[0].device_kind}\n"


if __name__ == "__main__":
    main("speed", Config, cells, report)
