"""The same hypergradient by this package, by hand, and by other packages.

Half mean squared error, `L1` and `Quadratic`, the sizes and the number of iterations of `floors`,
float32; the gradient in K and in the weight of F. By hand are `jax.grad` of a plain scan and
autograd of a plain PyTorch loop (`_ways`), of all iterations and of the last one alone. Other
packages are jaxopt and optimistix, through their strategies, and torchdeq. PyTorch and torchdeq
are measured where they are installed, with as many threads as JAX has.

Times are relative to those of the products with K alone (2 L of them), by the same library in the
same process. Memory is the scratch memory that the compiled program states, for PyTorch the growth
of the peak of a process that does nothing else. Errors are those of the gradient in K in float64,
on the samples that have one exact gradient: against the iterations all differentiated, and against
the exact one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.timing import compile_ahead, interleaved_medians, matrix_products_alone
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import differentiable_samples, reference_hypergradient
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import parse_strategy
from hypergrad.workbench.benchmark import _ways, floors
from hypergrad.workbench.benchmark._problems import random_problem
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["NAME", "Settings", "cells", "report"]

NAME = "by_hand"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Ratios of time, memory and errors, L iterations."""

    sizes: tuple[tuple[int, int, int], ...] = floors.Settings.sizes
    """(m, n, batch)."""
    strategies: tuple[str, ...] = (
        "full",
        "truncation:k=1",
        "limit:steps=10",
        "limit:cgls",
        "jaxopt:normal_cg",
        "optimistix:bicgstab",
    )
    iterations: int = floors.Settings.iterations
    repeats: int = floors.Settings.repeats

    def quick(self) -> Settings:
        """One small size, two strategies, two repeats."""
        small = {"sizes": ((32, 16, 8),), "strategies": ("full", "limit:cgls"), "repeats": 2}
        return dataclasses.replace(self, **small)


COLUMNS = {
    "size": "(m, n, batch)",
    "iterations": "L",
    "name": "what",
    "milliseconds": "time (ms)",
    "over_products": "/ products alone",
    "megabytes": "scratch memory (MB)",
    "error_at_L": "relative error at L",
    "error": "relative error",
    "samples": "samples judged",
    "threads": "threads",
    "reason": "reason",
}

PRODUCTS = "products with K alone, JAX"
PRODUCTS_BY_TORCH = "products with K alone, PyTorch"
# Each with the package that it needs.
BY_TORCH = {
    "PyTorch loop, full": "torch",
    "PyTorch loop, last step": "torch",
    "torchdeq": "torchdeq",
}
# K, the weight, x_tilde, x_true, tau, sigma.
_Arrays = Sequence[Any]


class _Measured(NamedTuple):
    """A way: its time and that of the products alone, its memory, its gradient in K (float64)."""

    seconds: float
    products: float
    megabytes: float | None
    gradient: np.ndarray | None


def _in_jax(arrays: _Arrays, judged: _Arrays, settings: Settings) -> dict[str, _Measured]:
    L = settings.iterations
    ways: dict[str, Any] = {
        label: eqx.Partial(_ways.by_package, L=L, strategy=parse_strategy(label))
        for label in settings.strategies
    }
    ways["JAX scan, full"] = eqx.Partial(_ways.unrolled_by_jax, L=L, last=L)
    ways["JAX scan, last step"] = eqx.Partial(_ways.unrolled_by_jax, L=L, last=1)
    programs = {name: compile_ahead(way, *arrays) for name, way in ways.items()}
    products = eqx.Partial(matrix_products_alone, L=L)
    programs[PRODUCTS] = compile_ahead(products, arrays[0], arrays[2])
    calls = {name: program.call for name, program in programs.items()}
    seconds = interleaved_medians(calls, repeats=settings.repeats)
    gradients = {name: compile_ahead(way, *judged).call()[0] for name, way in ways.items()}
    return {
        name: _Measured(
            seconds[name],
            seconds[PRODUCTS],
            None if program.scratch_bytes is None else program.scratch_bytes / 1e6,
            gradients.get(name),
        )
        for name, program in programs.items()
    }


def _threads() -> int:
    """Return the number of JAX's threads, one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _growth_of_the_peak(call: Callable[[], Any]) -> float | None:
    """Return by how much a call raises the peak of the resident memory (MB), on Linux with glibc.

    `ru_maxrss` would begin with the peak of the process that started this one.
    """

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return 1.024e-3 * int(status.partition("VmHWM:")[2].split()[0])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # else a call may use what was freed before
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = peak()
    except (OSError, AttributeError):
        return None
    call()
    return peak() - before


def _measure_torch(
    name: str, arrays: _Arrays, judged: _Arrays, settings: Settings, threads: int
) -> _Measured:
    """Measure one way in this process, whose peak of memory should be of nothing else."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    L = settings.iterations
    way = {
        "PyTorch loop, full": functools.partial(_ways.unrolled_by_torch, L=L, last=L),
        "PyTorch loop, last step": functools.partial(_ways.unrolled_by_torch, L=L, last=1),
        "torchdeq": functools.partial(_ways.implicit_by_torchdeq, L=L),
    }[name]
    K, weight, x_tilde, x_true, *sizes = tensors = [torch.tensor(array) for array in arrays]
    way(K, weight, x_tilde[:1], x_true[:1], *sizes)  # a first call loads libraries
    megabytes = _growth_of_the_peak(lambda: way(*tensors))
    products = functools.partial(_ways.products_by_torch, K, x_tilde, L)
    calls = {name: functools.partial(way, *tensors), PRODUCTS_BY_TORCH: products}
    seconds = interleaved_medians(calls, repeats=settings.repeats)
    gradient = way(*(torch.tensor(array) for array in judged))[0].numpy()
    return _Measured(seconds[name], seconds[PRODUCTS_BY_TORCH], megabytes, gradient)


def _in_torch(arrays: _Arrays, judged: _Arrays, settings: Settings) -> dict[str, _Measured | str]:
    """Return what each way measured in a fresh process, else why not."""
    measured: dict[str, _Measured | str] = {}
    # A process that is given arrays of JAX starts its threads, too.
    arrays, judged = ([np.asarray(array) for array in part] for part in (arrays, judged))
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name, package in BY_TORCH.items():
            if importlib.util.find_spec(package) is None:
                measured[name] = f"{package} is not installed"
            else:
                task = pool.submit(_measure_torch, name, arrays, judged, settings, _threads())
                measured[name] = way = task.result()
                # Each way has its own time of the products; that of the first one is a row.
                alone = _Measured(way.products, way.products, None, None)
                measured.setdefault(PRODUCTS_BY_TORCH, alone)
    return measured


def _judged(problem: LowerLevel, x_tilde: Array, x_true: Array) -> tuple[Array, Array, np.ndarray]:
    """Return the samples that have one exact gradient, and its part in K."""
    reference = reference_hypergradient(problem, x_tilde, x_true)
    chosen = differentiable_samples(reference)
    samples, state = jax.tree.map(lambda leaf: leaf[chosen], ((x_tilde, x_true), reference.state))
    exact = reference_hypergradient(problem, *samples, init=state, most=1)
    return *samples, np.asarray(exact.grad.K)


def _record(way: _Measured | str, unrolled: np.ndarray, exact: np.ndarray) -> Record:
    if isinstance(way, str):
        return {"reason": way}
    record = {
        "milliseconds": 1e3 * way.seconds,
        "over_products": way.seconds / way.products,
        "megabytes": way.megabytes,
    }
    if way.gradient is None:
        return record
    errors = {
        name: float(np.linalg.norm(way.gradient - reference) / np.linalg.norm(reference))
        for name, reference in {"error_at_L": unrolled, "error": exact}.items()
    }
    return record | errors


def measure(m: int, n: int, batch: int, settings: Settings) -> Result:
    """Return a record for each way and for the products alone."""
    problem, *data = random_problem(m, n, batch, jnp.float32)
    tau, sigma, _ = ChambollePock(settings.iterations).step_sizes(problem)
    F: Any = problem.F
    given: tuple[Any, ...] = (problem.K, F.weight, *data, tau, sigma)
    arrays, precise = ([a.astype(t) for a in given] for t in (jnp.float32, jnp.float64))
    *samples, exact = _judged(problem.astype(jnp.float64), *precise[2:4])
    judged = [*precise[:2], *samples, *precise[4:]]
    in_jax = _in_jax(arrays, judged, settings)
    unrolled = in_jax["JAX scan, full"].gradient
    assert unrolled is not None
    about = {"size": f"({m}, {n}, {batch})", "iterations": settings.iterations}
    return Result(
        [
            {
                **about,
                "name": name,
                **_record(way, unrolled, exact),
                "samples": len(samples[0]),
                "threads": _threads(),
            }
            for name, way in (in_jax | _in_torch(arrays, judged, settings)).items()
        ]
    )


def cells(settings: Settings) -> list[Cell]:
    """One for each size."""
    return [
        Cell(
            {"section": NAME, "m": m, "n": n, "batch": batch},
            lambda _, size=(m, n, batch): measure(*size, settings),
        )
        for m, n, batch in settings.sizes
    ]


def report(records: Sequence[Record]) -> str:
    """One table."""
    return f"# Against what people write by hand\n\n{markdown_table(records, COLUMNS)}\n"
