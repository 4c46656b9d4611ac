"""Whole photographs, matrix-free: a bank of 24 filters of 5 x 5 pixels, and total variation.

Time of an iteration over that of its two products with K alone, L of them in a loop, each feeding
the next; time of every strategy over that of the forward solve; memory in copies of the
primal-dual state (`n + m` numbers), arguments and outputs included, as the compiled program states
it. Float32.

What was tried for the products (24 filters of 5 x 5, one core of an EPYC with AVX-512, in a loop of
5, least of 6; the machine had other work, so that only ratios within a column say something):

| K v, ms                                  | 128² f32 | 512² f32 | 512² f64 | 1024² f32 |
|---|---|---|---|---|
| sums of shifted images, all filters      | 0.34     | 13       | 45       | 49        |
| the same, a strip of rows at a time, dot | 0.38     | 16       | 41       | 39        |
| shifted copies (im2col), dot             | 0.74     | 28       | 64       | 64        |
| XLA's convolution                        | 0.31     | 12       | 32       | 32        |
| FFT, the filters' spectra at hand        | 1.9      | 62       | 149      | 158       |
| FFT                                      | 1.6      | 66       | 165      | 181       |

| K^T y, ms                                | 128² f32 | 512² f32 | 512² f64 | 1024² f32 |
|---|---|---|---|---|
| sums of shifted images, filter by filter | 0.49     | 16       | 38       | 43        |
| a strip of rows at a time, dot           | 0.75     | 24       | 47       | 58        |
| dot, then sums of shifted images         | 0.60     | 65       | 151      | 145       |
| XLA's convolution                        | 11       | 255      | 618      | 862       |
| FFT, the filters' spectra at hand        | 1.9      | 79       | 116      | 163       |

Predicted was the strip of rows (a matrix product in the cache), since a sum of 25 shifted images
looked bound by memory. It is not: XLA makes one vectorised loop of it that runs at 60 GFlop/s.
The same sum transposed shift by shift, as JAX would, took 520 ms at 512² where filter by filter it
took 11 (25 sums over all responses, each of them written out): hence the explicit adjoint. XLA's
convolution is slow on the CPU with 24 channels going in, and slower in a loop (33 ms outside).

By the size of the filters (both products, 512², float32, ms): direct 22, 106, 201, 293 and 3352 for
5, 9, 11, 13 and 17 taps a side; FFT about 126 for all of them. Hence `FFT` from 100 taps on.

Within an iteration, sums over all filters at once are fused with the prox, whose arrays are flat:
3 copies of memory less, but row and column of every entry are then found by division, and the loop
does not vectorise: 148 ms an iteration where 24 were predicted. An optimisation barrier does not
help (XLA drops it before it fuses). One filter after the other in a loop that XLA does not look
into: 30 ms.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.status import Status
from hypergrad._foundation.timing import Compiled, compile_ahead, interleaved_medians
from hypergrad.bilevel import Hypergradient
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import failure_of, one_hypergradient, solve_without_strategy
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, AbstractFunction, GroupL1, Quadratic
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose
from hypergrad.strategies import (
    AbstractStrategy,
    ErgodicUnrolling,
    Exact,
    FullUnrolling,
    JaxoptImplicit,
    JaxoptNormalCG,
    LimitFormula,
    MatrixFree,
    OptimistixCheckpointed,
    OptimistixImplicit,
    Piggyback,
    Steps,
    Tolerance,
    Truncation,
)
from hypergrad.workbench import data
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["Settings", "cells", "report"]


STRATEGIES: tuple[AbstractStrategy, ...] = (
    Truncation(1),
    Truncation(5),
    LimitFormula(Steps(1)),
    LimitFormula(Steps(10)),
    LimitFormula(Tolerance(1e-2, most=20)),
    Piggyback(),
    FullUnrolling(),
    ErgodicUnrolling(),
    JaxoptImplicit(JaxoptNormalCG(most=10)),
    OptimistixImplicit(lx.BiCGStab(rtol=1e-3, atol=1e-3, max_steps=10)),
    OptimistixCheckpointed(),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Photographs of so many pixels a side, L iterations."""

    sides: tuple[int, ...] = (512, 1024)
    iterations: int = 10
    repeats: int = 3
    taps: tuple[int, ...] = (5, 9, 11, 13, 17)
    """Filters of so many pixels a side, by each way to convolve."""
    strategies: int = len(STRATEGIES)
    """So many of the strategies."""
    exact_side: int = 128
    """The side of the photograph that is solved exactly."""

    def quick(self) -> Settings:
        """A corner of a photograph, a few iterations."""
        return dataclasses.replace(
            self, sides=(64,), iterations=5, repeats=1, taps=(5,), strategies=2, exact_side=16
        )


_NOISE = 0.1
_SEED = 0

LEFT_OUT: Mapping[str, str] = {
    "limit:cgls": "has no limit on its steps but 4 (m + n): hundreds, to the end of float32",
    "forward": "one parameter at a time: 600 solves",
    "exact, limit:lu, optimistix by default": "matrices of the size of n or m + n (but see below)",
}

COLUMNS = {
    "side": "pixels a side",
    "K": "K",
    "name": "what",
    "milliseconds": "time (ms)",
    "over_products": "/ products alone",
    "over_forward": "/ forward",
    "copies": "memory (copies of the state)",
    "compile_seconds": "compile (s)",
    "gradient_norm": "norm of the gradient",
    "error": "reason",
}
CONVOLUTION_COLUMNS = {
    "side": "pixels a side",
    "taps": "taps a side",
    "direct": "direct (ms)",
    "fft": "FFT (ms)",
    "chosen": "by default",
}
EXACT_COLUMNS = {
    "side": "pixels a side",
    "exact": "K and F",
    "milliseconds": "time (ms)",
    "over_iterations": "time in iterations",
    "iterations": "iterations",
    "products": "products with K",
    "residual": "residual",
    "adjoint_residual": "residual of the adjoint",
    "status": "status",
    "compile_seconds": "compile (s)",
}


# ------------------------------------------------------------------------------------ problems


def _photograph(side: int) -> np.ndarray:
    """The middle of a photograph that is large enough."""
    name = data.PHOTOGRAPHS_HELD_OUT[0] if side <= 512 else data.PHOTOGRAPHS_LARGE[0]
    image = data.photograph(name)
    top, left = ((length - side) // 2 for length in image.shape)
    return image[top : top + side, left : left + side].ravel()


def _dct_filters(taps: int) -> Array:
    """24 filters of a DCT of the size of a filter, of norm about 1 together."""
    return operators.dct2((taps, taps), constant=False)[:24].reshape(24, taps, taps) / taps


def _filter_bank(side: int) -> LowerLevel:
    filters = _dct_filters(5).astype(jnp.float32)
    K = operators.FilterBank(filters, (side, side))
    return LowerLevel(K=K, F=L1(0.02), G=Quadratic(1.0))


def _total_variation(side: int) -> LowerLevel:
    K = operators.difference_operator((side, side), dtype=jnp.float32)
    return LowerLevel(K=K, F=GroupL1(0.1, shape=(2, side * side)), G=Quadratic(1.0))


PROBLEMS: Mapping[str, Callable[[int], LowerLevel]] = {
    "24 filters 5 x 5": _filter_bank,
    "differences": _total_variation,
}


def _differences(side: int, F: AbstractFunction) -> LowerLevel:
    return LowerLevel(K=operators.difference_operator((side, side)), F=F, G=Quadratic(1.0))


EXACT_PROBLEMS: Mapping[str, Callable[[int], LowerLevel]] = {
    "24 filters 5 x 5, L1(0.02)": lambda side: LowerLevel(
        K=operators.FilterBank(_dct_filters(5), (side, side)), F=L1(0.02), G=Quadratic(1.0)
    ),
    "differences, L1(0.08)": lambda side: _differences(side, L1(0.08)),
    "differences, GroupL1(0.08)": lambda side: _differences(
        side, GroupL1(0.08, shape=(2, side * side))
    ),
}


# -------------------------------------------------------------------------------- measurements


def products_alone(K: operators.Operator, x: Array, L: int) -> Array:
    """The two products of L iterations, each feeding the next, and no more."""

    def body(v: Array, _):
        return apply_transpose(K, apply(K, v)), None

    return jax.lax.scan(body, x, None, length=L)[0]


def iterations_alone(problem: LowerLevel, x_tilde: Array, solver: ChambollePock) -> Any:
    """L iterations without the certificate."""
    forward = solver.on(problem, x_tilde)
    return forward.iteration.repeat(forward.start(), solver.iterations)


def _gradient_norm(h: Hypergradient) -> float:
    """Return the norm of the gradient in K if it has parameters, else of that in F."""
    in_K, in_F = (
        jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array)) for part in (h.grad.K, h.grad.F)
    )
    leaves = in_K or in_F
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves)))


def _copies(program: Compiled, problem: LowerLevel) -> float | None:
    """Memory in copies of the primal-dual state."""
    if program.peak_bytes is None:
        return None
    return program.peak_bytes / ((problem.m + problem.n) * problem.dtype.itemsize)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def _measure_strategy(
    strategy: AbstractStrategy, problem: LowerLevel, arguments: tuple[Any, ...]
) -> dict[str, Any]:
    """One after the other, since together they might not fit; the second call counts."""
    try:
        program = compile_ahead(one_hypergradient, problem, *arguments, strategy)
        gradient_norm = _gradient_norm(program.call())
        return {
            "milliseconds": 1e3 * _seconds(program.call),
            "copies": _copies(program, problem),
            "compile_seconds": program.compile_seconds,
            "gradient_norm": gradient_norm,
        }
    except Exception as error:  # a failure is a row with its reason
        return {"error": failure_of(error)}


def measure(kind: str, side: int, settings: Settings) -> Result:
    """One photograph, one K."""
    problem = PROBLEMS[kind](side)
    x_true = jnp.asarray(_photograph(side), jnp.float32)
    noise = jax.random.normal(jax.random.key(_SEED), x_true.shape, jnp.float32)
    x_tilde = x_true + _NOISE * noise
    solver = ChambollePock(settings.iterations).with_step_sizes(problem)
    alone = eqx.Partial(products_alone, L=settings.iterations)
    programs = {
        "products alone": compile_ahead(alone, problem.K, x_tilde),
        "iterations": compile_ahead(iterations_alone, problem, x_tilde, solver),
        "forward": compile_ahead(solve_without_strategy, problem, x_tilde, solver),
        "operator norm": compile_ahead(operators.operator_norm, problem.K),
    }
    calls = {name: program.call for name, program in programs.items()}
    seconds = interleaved_medians(calls, repeats=settings.repeats)
    records: list[dict[str, Any]] = [
        {
            "name": name,
            "milliseconds": 1e3 * seconds[name],
            "copies": _copies(program, problem),
            "compile_seconds": program.compile_seconds,
        }
        for name, program in programs.items()
    ]
    arguments = x_tilde, x_true, solver
    for strategy in STRATEGIES[: settings.strategies]:
        row = _measure_strategy(strategy, problem, arguments)
        records.append({"name": strategy.label, **row})
    records += [{"name": name, "error": reason} for name, reason in LEFT_OUT.items()]
    for record in records:
        if "milliseconds" in record:
            in_seconds = record["milliseconds"] / 1e3
            record["over_products"] = in_seconds / seconds["products alone"]
            record["over_forward"] = in_seconds / seconds["forward"]
    return Result(records)


def measure_exact(kind: str, side: int, settings: Settings) -> Result:
    """One photograph solved and differentiated exactly, in float64."""
    problem, strategy = EXACT_PROBLEMS[kind](side), Exact(search=MatrixFree())
    x_true = jnp.asarray(_photograph(side), problem.dtype)
    noise = jax.random.normal(jax.random.key(_SEED), x_true.shape, x_true.dtype)
    x_tilde, solver = x_true + _NOISE * noise, ChambollePock().with_step_sizes(problem)
    program = compile_ahead(one_hypergradient, problem, x_tilde, x_true, solver, strategy)
    iterations = compile_ahead(iterations_alone, problem, x_tilde, solver)
    h = program.call()
    seconds = interleaved_medians(
        {"exact": program.call, "iterations": iterations.call}, repeats=settings.repeats
    )
    record = {
        "milliseconds": 1e3 * seconds["exact"],
        "over_iterations": solver.iterations * seconds["exact"] / seconds["iterations"],
        "iterations": int(h.solution.stats.iterations),
        "products": int(h.solution.stats.products + h.adjoint.products),
        "residual": float(h.solution.stats.residual),
        "adjoint_residual": float(h.adjoint.residual),
        "status": Status.summary(h.solution.stats.status),
        "compile_seconds": program.compile_seconds,
    }
    return Result([record])


def measure_convolutions(taps: int, side: int, settings: Settings) -> Result:
    """Both products by both ways."""
    x = jnp.asarray(_photograph(side), jnp.float32)
    filters, repeats = _dct_filters(taps).astype(jnp.float32), settings.repeats
    ways = {"direct": operators.Direct(), "fft": operators.FFT()}
    programs = {}
    for name, way in ways.items():
        K = operators.FilterBank(filters, (side, side), convolution=way)
        programs[name] = compile_ahead(eqx.Partial(products_alone, L=3), K, x)
    calls = {name: program.call for name, program in programs.items()}
    seconds = interleaved_medians(calls, repeats=repeats)
    chosen = type(operators.FilterBank(filters, (side, side)).convolution).__name__
    milliseconds = {name: 1e3 / 3 * seconds[name] for name in ways}
    return Result([{**milliseconds, "chosen": chosen}])


def cells(settings: Settings) -> list[Cell]:
    """One for each K on each photograph, and one for each size of a filter."""
    strategies = [
        Cell(
            {"section": "images", "K": kind, "side": side},
            lambda _, kind=kind, side=side: measure(kind, side, settings),
        )
        for kind in PROBLEMS
        for side in settings.sides
    ]
    side = min(settings.sides)
    convolutions = [
        Cell(
            {"section": "images", "taps": taps, "side": side},
            lambda _, taps=taps: measure_convolutions(taps, side, settings),
        )
        for taps in settings.taps
    ]
    exact = [
        Cell(
            {"section": "images", "exact": kind, "side": settings.exact_side},
            lambda _, kind=kind: measure_exact(kind, settings.exact_side, settings),
        )
        for kind in EXACT_PROBLEMS
    ]
    return [*strategies, *convolutions, *exact]


def report(records: Sequence[Record]) -> str:
    """A table of the strategies, and one of the convolutions."""
    strategies = [record for record in records if "K" in record]
    convolutions = [record for record in records if "taps" in record]
    exact = [record for record in records if "exact" in record]
    return (
        "# Whole photographs, matrix-free\n\n"
        f"{markdown_table(strategies, COLUMNS)}\n\n"
        "Both products with K and its transpose, 24 filters:\n\n"
        f"{markdown_table(convolutions, CONVOLUTION_COLUMNS)}\n\n"
        "`Exact(search=MatrixFree())`, float64:\n\n"
        f"{markdown_table(exact, EXACT_COLUMNS)}\n"
    )
