"""The exact hypergradient that errors are measured against, and the samples it is valid on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from hypergrad._foundation.samples import float_vector
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats
from hypergrad.bilevel import (
    Hypergradient,
    Loss,
    OnSamples,
    half_mean_squared_error,
    hypergradient,
)
from hypergrad.bilevel.arguments import prepare
from hypergrad.chambolle_pock import ChambollePock, SolverStats, State
from hypergrad.comparison.chunks import Chunk, Sums
from hypergrad.diagnostics import are_certified
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies.exact import Exact

__all__ = [
    "Targets",
    "Task",
    "certified_samples",
    "describe_reference",
    "differentiable_samples",
    "reference_hypergradient",
    "statistics_of",
    "targets_of",
]

# On natural patches with an overcomplete K a step ratio a hundred times larger is what settles the
# active sets of most samples within a few hundred iterations.
_REFERENCE_RATIO_FACTOR = 100.0
# Newton steps. Samples not certified by then are left out of the comparison, and counted.
_REFERENCE_STEPS = 30


def reference_hypergradient(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock | None = None,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
    most: int = _REFERENCE_STEPS,
) -> Hypergradient:
    """Return the exact hypergradient that errors are measured against, by `Exact`.

    **Arguments**: as for `hypergradient`; of the `solver` only `primal_scale` and `step_ratio` are
    used, the latter times 100, since that converges faster on natural patches; `init`, a state to
    continue from; `most`, the maximal number of Newton steps per sample.

    **Returns**: a `Hypergradient`, each sample with its certificate.

    **Cost**: see `Exact`.
    """
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    ratio = _REFERENCE_RATIO_FACTOR * solver.step_ratio
    patient = ChambollePock(step_ratio=ratio, primal_scale=solver.primal_scale)
    # With an explicit start and the steps in an array, a first call and one that continues share
    # one program.
    init = solver.start(problem, x_tilde, init)
    return hypergradient(
        problem,
        x_tilde,
        x_true,
        solver=patient,
        strategy=Exact(jnp.asarray(most, jnp.int32)),
        loss=loss,
        init=init,
    )


def certified_samples(reference: Hypergradient) -> Bool[Array, "*batch"]:
    """Return the samples whose solution and adjoint are certified, whatever their rank.

    Where the status is NONDIFFERENTIABLE the gradient is that of the minimum-norm dual solution,
    one of several, and no other strategy need agree; `differentiable_samples` leaves those out.
    """
    forward, adjoint = reference.solution.stats.status, reference.adjoint.status
    solved = (forward == Status.CONVERGED) | (forward == Status.NONDIFFERENTIABLE)
    return solved & ((adjoint == Status.CONVERGED) | (adjoint == Status.MINIMUM_NORM))


def differentiable_samples(reference: Hypergradient) -> Bool[Array, "*batch"]:
    """Return the samples with a unique gradient: see `diagnostics.are_certified`."""
    return are_certified(reference.solution.stats, reference.adjoint)


@dataclasses.dataclass(frozen=True)
class Task:
    """The bilevel problem that all strategies of a comparison solve."""

    problem: LowerLevel
    solver: ChambollePock
    loss: Loss
    parameters: Callable[[LowerLevel], Any]

    def vector(self, grad: LowerLevel) -> Array:
        """Return the gradient in the parameters as one vector."""
        return float_vector(self.parameters(grad))


class Targets(NamedTuple):
    """Losses whose gradient is that of some samples of a chunk, and sums of the exact gradients.

    The totals are `gradients` and `shares` of the "certified" and the "differentiable" samples.
    """

    on_all: OnSamples
    on_some: dict[str, OnSamples]
    sums: Sums


def targets_of(task: Task, chunk: Chunk, given: Hypergradient | None) -> Targets:
    """Compute the exact gradients of a chunk, from a `given` reference where there is one."""
    refer = functools.partial(
        reference_hypergradient, task.problem, chunk.x_tilde, chunk.x_true, solver=task.solver
    )
    on_all = OnSamples(task.loss, jnp.asarray(chunk.real))
    found = refer(loss=on_all) if given is None else given
    samples = {"certified": certified_samples, "differentiable": differentiable_samples}
    chosen = {name: choose(found) for name, choose in samples.items()}
    about = (found.state, found.solution.stats, found.adjoint, chosen)
    state, forward, adjoint, chosen = about if given is None else chunk.part_of(about)
    on_some = {name: OnSamples(task.loss, some & chunk.real) for name, some in chosen.items()}
    totals = {
        # Certified samples are solved already, and the others are given up: 1 step is enough.
        "gradients": {
            name: chunk.scale * task.vector(refer(loss=loss, init=state, most=1).grad)
            for name, loss in on_some.items()
        },
        "shares": {
            name: chunk.share * float(np.mean(chunk.of_real(some))) for name, some in chosen.items()
        },
    }
    return Targets(on_all, on_some, Sums(totals, statistics_of(chunk, forward, adjoint)))


def describe_reference(exact: Sums) -> dict[str, Any]:
    """Return how well the reference is solved, and on which share of the samples it holds."""
    stats = exact.statistics
    return {
        "how": "Exact (semismooth Newton, minimum norm)",
        "status": Status.summary(stats["forward_status"]),
        "residual": float(np.max(stats["forward_residual"])),
        "iterations": int(np.max(stats["iterations"])),
        "adjoint_status": Status.summary(stats["adjoint_status"]),
        "adjoint_residual": float(np.max(stats["adjoint_residual"])),
        **exact.totals["shares"],
    }


def statistics_of(chunk: Chunk, forward: SolverStats, adjoint: AdjointStats) -> dict[str, Any]:
    """Return one entry per sample; None for products that nobody counted."""
    products = None if adjoint.products is None else forward.products + adjoint.products
    statistics = {
        "iterations": forward.iterations,
        "forward_status": forward.status,
        "forward_residual": forward.residual,
        "adjoint_status": adjoint.status,
        "adjoint_residual": adjoint.residual,
        "products": products,
    }
    return jax.tree.map(chunk.of_real, statistics)
