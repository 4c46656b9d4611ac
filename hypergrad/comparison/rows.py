"""One strategy on one chunk of the samples, and its record over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.status import Status
from hypergrad._foundation.timing import Compiled, compile_ahead
from hypergrad.bilevel import Hypergradient, Loss, half_mean_squared_error, hypergradient
from hypergrad.bilevel.error_bound import Regime
from hypergrad.chambolle_pock import ChambollePock, Solution
from hypergrad.comparison.chunks import Chunk, Sums
from hypergrad.comparison.reference import Targets, Task, statistics_of
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = [
    "RowChunk",
    "failure_of",
    "one_hypergradient",
    "record_of",
    "row_on_chunk",
    "solve_without_strategy",
]


def one_hypergradient(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    parameters: Callable[[LowerLevel], Any] | None = None,
) -> Hypergradient:
    """Call `hypergradient` with positional arguments, which `compile_ahead` needs."""
    return hypergradient(
        problem, x_tilde, x_true,
        solver=solver, strategy=strategy, loss=loss, parameters=parameters,
    )  # fmt: skip


def solve_without_strategy(problem: LowerLevel, x_tilde: Array, solver: ChambollePock) -> Solution:
    """Return the solution with its certificate, and nothing saved for a backward pass."""
    return solver.on(problem, x_tilde).solve()


def failure_of(error: Exception) -> str:
    """Return the error in one line: a strategy that fails is a row of the table."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first_line}"


class RowChunk(NamedTuple):
    """One strategy on one chunk: its sums, its compiled program, and the call to be timed."""

    sums: Sums
    program: Compiled
    call: Callable[[], Any]


def row_on_chunk(
    task: Task,
    strategy: AbstractStrategy,
    chunk: Chunk,
    targets: Targets,
    program: Compiled | None,
    *,
    with_bound: bool,
) -> RowChunk:
    """Run a strategy on a chunk; the `program` of an earlier chunk is used again.

    The totals are `loss`, `gradients` on the samples of the targets and, with a bound, `bound` and
    the share `certified` by it.
    """
    arguments = (task.problem, chunk.x_tilde, chunk.x_true, task.solver, strategy)
    on_all = (*arguments, targets.on_all, task.parameters)
    program = program or compile_ahead(one_hypergradient, *on_all)
    call = functools.partial(program, *on_all)
    h = call()
    totals = {
        "loss": chunk.share * chunk.mean_loss(h, task.loss),
        "gradients": {
            name: chunk.scale * task.vector(program(*arguments, loss, task.parameters).grad)
            for name, loss in targets.on_some.items()
        },
    }
    if with_bound:
        totals |= _bound_on_chunk(task, strategy, chunk)
    sums = Sums(totals, statistics_of(chunk, h.solution.stats, h.adjoint))
    return RowChunk(sums, program, call)


def _bound_on_chunk(task: Task, strategy: AbstractStrategy, chunk: Chunk) -> dict[str, Any]:
    """Return the bound on the error of the gradient, and the share of samples it certifies."""
    x_tilde, x_true = chunk.x_tilde, chunk.x_true
    if not chunk.real.all():
        x_tilde, x_true = x_tilde[chunk.real], x_true[chunk.real]
    bound = hypergradient(
        task.problem, x_tilde, x_true,
        solver=task.solver, strategy=strategy, loss=task.loss,
        parameters=task.parameters, error_bound=True,
    ).error_bound  # fmt: skip
    assert bound is not None
    certified = np.asarray(bound.certified) != Regime.NEITHER
    return {
        "bound": chunk.share * task.vector(bound.grad),
        "certified": chunk.share * float(np.mean(certified)),
    }


def record_of(label: str, program: Compiled, row: Sums, exact: Sums) -> dict[str, Any]:
    """Return the record of a strategy, without its times."""
    stats, totals, peak = row.statistics, row.totals, program.peak_bytes
    record = {
        "strategy": label,
        "loss": totals["loss"],
        "compile_seconds": program.compile_seconds,
        "peak_megabytes": None if peak is None else peak / 1e6,
        "forward_status": Status.summary(stats["forward_status"]),
        "forward_residual": _number(jnp.max(stats["forward_residual"])),
        "adjoint_status": Status.summary(stats["adjoint_status"]),
        "adjoint_residual": _number(jnp.max(stats["adjoint_residual"])),
        "products": None if stats["products"] is None else float(np.mean(stats["products"])),
        **_errors(totals["gradients"], exact.totals["gradients"]),
    }
    if "bound" in totals:
        size = jnp.linalg.norm(exact.totals["gradients"]["certified"])
        record["error_bound"] = _number(jnp.linalg.norm(totals["bound"]) / size)
        record["certified"] = totals["certified"]
    return record


def _errors(found: dict[str, Array], exact: dict[str, Array]) -> dict[str, Any]:
    """Compare the gradients of a strategy with the exact ones."""

    def relative_error(samples: str) -> float | None:
        # Without such samples this is 0 / 0, and the error a dash in the table.
        size = jnp.linalg.norm(exact[samples])
        return _number(jnp.linalg.norm(found[samples] - exact[samples]) / size)

    gradient, reference = found["certified"], exact["certified"]
    norm = jnp.linalg.norm(gradient)
    return {
        "gradient_norm": float(norm),
        "relative_error": relative_error("certified"),
        "cosine": _number(gradient @ reference / (norm * jnp.linalg.norm(reference))),
        "relative_error_differentiable": relative_error("differentiable"),
    }


def _number(value: Array) -> float | None:
    """Return a JSON number; None where the value is not finite."""
    return float(value) if jnp.isfinite(value) else None
