"""The time that every strategy takes to compile, and how often it compiles.

Seconds of tracing and compiling one hypergradient, with no program kept from before (`hypergrad
bench` keeps none on disk; a `JAX_COMPILATION_CACHE_DIR` would); programs compiled by a
first call, small ones between the large one included, and by a second one with other numbers of the
same shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.timing import compile_ahead
from hypergrad.bilevel import hypergradient
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import failure_of, one_hypergradient
from hypergrad.strategies import STRATEGIES, AbstractStrategy
from hypergrad.workbench.benchmark._compilations import count_compilations
from hypergrad.workbench.benchmark._problems import random_problem
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["NAME", "Settings", "cells", "report"]

NAME = "compilation"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every strategy as it comes, float64 (`Exact` is to be exact)."""

    m: int = 128
    n: int = 64
    batch: int = 256
    iterations: int = 100
    strategies: tuple[str, ...] = tuple(STRATEGIES)

    def quick(self) -> Settings:
        """A small size, two strategies."""
        return dataclasses.replace(
            self, m=16, n=8, batch=4, strategies=("truncation", "limit"), iterations=10
        )


COLUMNS = {
    "strategy": "strategy",
    "compile_seconds": "trace and compile (s)",
    "first": "programs, first call",
    "second": "programs, second call",
    "error": "error",
}


def measure(settings: Settings, name: str) -> Result:
    """One strategy: compiled ahead; then called with two sets of numbers, of a small size.

    (How many programs there are is no matter of the size, and forward mode would take minutes.)
    """
    strategy: AbstractStrategy = STRATEGIES[name]()
    solver = ChambollePock(settings.iterations)
    large = random_problem(settings.m, settings.n, settings.batch, jnp.float64)
    problem, x_tilde, x_true = random_problem(8, 4, 3, jnp.float64)
    other = jax.block_until_ready(0.9 * x_tilde)

    def call(x: Array):
        return hypergradient(problem, x, x_true, solver=solver, strategy=strategy)

    try:
        jax.clear_caches()
        compiled = compile_ahead(one_hypergradient, *large, solver, strategy)
        jax.clear_caches()
        record = {
            "compile_seconds": compiled.compile_seconds,
            "first": count_compilations(lambda: call(x_tilde)),
            "second": count_compilations(lambda: call(other)),
        }
    except Exception as error:  # a peer that is not installed is a row with its reason
        record = {"error": failure_of(error)}
    return Result([record])


def cells(settings: Settings) -> list[Cell]:
    """One for each strategy."""
    return [
        Cell({"section": NAME, "strategy": name}, lambda _, name=name: measure(settings, name))
        for name in settings.strategies
    ]


def report(records: Sequence[Record]) -> str:
    """One table."""
    return f"# Compilation\n\n{markdown_table(records, COLUMNS)}\n"
