"""The yardstick: its hypergradient, the samples that it holds on, and their sums over pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

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
from hypergrad.comparison.pieces import Piece
from hypergrad.diagnostics import are_certified
from hypergrad.diagnostics._gradients import flat
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies.exact import Exact

__all__ = [
    "Judged",
    "Reference",
    "certified_samples",
    "differentiable_samples",
    "over_all",
    "reference_hypergradient",
    "statistics_of",
]

# On natural patches with an overcomplete K a step ratio a hundred times larger is what settles the
# active sets of most samples within a few hundred iterations.
_REFERENCE_RATIO_FACTOR = 100.0
# Newton steps: what is not certified by then is left out of the comparison, and counted.
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
    """The yardstick: `Exact`, at the step ratio with which it is quick.

    **Arguments**: as for `hypergradient`; of the `solver` only `primal_scale` and `step_ratio` are
    used, the latter a hundredfold, since that converges faster on natural patches; `init`, a state
    to go on from; `most`, Newton steps a sample.

    **Returns**: a `Hypergradient`, each sample with its certificate.

    **Cost**: see `Exact`.
    """
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    ratio = _REFERENCE_RATIO_FACTOR * solver.step_ratio
    patient = ChambollePock(step_ratio=ratio, primal_scale=solver.primal_scale)
    # With a start written out and its steps in an array, a first call and one that goes on from
    # there compile as one.
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
    """Samples whose solution and adjoint are certified, whatever their rank.

    Where the status is NONDIFFERENTIABLE the gradient is that of the minimum-norm dual solution,
    one of several, and no other strategy need agree; `differentiable_samples` leaves those out.
    """
    forward, adjoint = reference.solution.stats.status, reference.adjoint.status
    solved = (forward == Status.CONVERGED) | (forward == Status.NONDIFFERENTIABLE)
    return solved & ((adjoint == Status.CONVERGED) | (adjoint == Status.MINIMUM_NORM))


def differentiable_samples(reference: Hypergradient) -> Bool[Array, "*batch"]:
    """Samples with one gradient, away from every kink: see `diagnostics.are_certified`."""
    return are_certified(reference.solution.stats, reference.adjoint)


class Judged(NamedTuple):
    """What the reference says of a piece: losses of the samples that count, and its gradients."""

    on_all: OnSamples
    on_some: dict[str, OnSamples]


class Reference:
    """The yardstick over all pieces: its gradients summed up, and how good they are."""

    def __init__(
        self,
        problem: LowerLevel,
        solver: ChambollePock,
        loss: Loss,
        parameters: Callable[[LowerLevel], Any],
        given: Hypergradient | None,
    ):
        self.problem, self.solver, self.loss, self.given = problem, solver, loss, given
        self.parameters = parameters
        self.gradients: dict[str, Any] = dict.fromkeys(("certified", "differentiable"), 0.0)
        self.shares = dict.fromkeys(self.gradients, 0.0)
        self.stats: list[dict[str, Any]] = []

    def gradient(self, h: Hypergradient) -> Array:
        return flat(self.parameters(h.grad))

    def look_at(self, piece: Piece) -> Judged:
        refer = functools.partial(
            reference_hypergradient, self.problem, piece.x_tilde, piece.x_true, solver=self.solver
        )
        on_all = OnSamples(self.loss, jnp.asarray(piece.real))
        found = refer(loss=on_all) if self.given is None else self.given
        about = (found.state, found.solution.stats, found.adjoint, _chosen(found))
        if self.given is not None:
            about = piece.part_of(about)
        state, forward, adjoint, chosen = about
        self.stats.append(jax.tree.map(piece.of_real, statistics_of(forward, adjoint)))
        on_some = {name: OnSamples(self.loss, some & piece.real) for name, some in chosen.items()}
        for name, on in on_some.items():
            # What is certified stays where it is: no steps for what was given up.
            exact = self.gradient(refer(loss=on, init=state, most=1))
            self.gradients[name] += piece.scale * exact
            self.shares[name] += piece.share * float(np.mean(piece.of_real(chosen[name])))
        return Judged(on_all, on_some)

    def describe(self) -> dict[str, Any]:
        stats = over_all(self.stats)
        return {
            "how": "Exact (semismooth Newton, minimum norm)",
            "status": Status.summary(stats["forward_status"]),
            "residual": float(np.max(stats["forward_residual"])),
            "iterations": int(np.max(stats["iterations"])),
            "adjoint_status": Status.summary(stats["adjoint_status"]),
            "adjoint_residual": float(np.max(stats["adjoint_residual"])),
            **self.shares,
        }


def _chosen(reference: Hypergradient) -> dict[str, Array]:
    return {
        "certified": certified_samples(reference),
        "differentiable": differentiable_samples(reference),
    }


def statistics_of(forward: SolverStats, adjoint: AdjointStats) -> dict[str, Any]:
    """One entry a sample; None for products that nobody counted."""
    products = None if adjoint.products is None else forward.products + adjoint.products
    return {
        "iterations": forward.iterations,
        "forward_status": forward.status,
        "forward_residual": forward.residual,
        "adjoint_status": adjoint.status,
        "adjoint_residual": adjoint.residual,
        "products": products,
    }


def over_all(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all chunks, one after the other."""
    return jax.tree.map(lambda *entries: np.concatenate(entries), *parts)
