"""One visit to a batch of training samples: cold, or from where the last one left them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.checks import check_count, check_fraction, check_number
from hypergrad._foundation.status import Status
from hypergrad.bilevel import Data, Hypergradient, Loss, OnSamples, hypergradient
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["Visit", "Visited", "WarmStart", "make_visit", "nothing_left", "put", "take"]


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Each visit to a sample goes on from where the last one left it, safeguarded.

    The primal, dual and adjoint state of every training sample is kept; the first visit starts from
    zero. K has moved since the last visit, so before anything is differentiated the lower level is
    iterated until the sample's relative residual at the present K is at most `residual`. A sample
    that needs more than `most` iterations for that is kept as far as it got, but neither its
    gradient nor its adjoint state counts in this visit. Those that are near first are the easy
    ones: a batch of which less than a `share` is near makes no update, and K waits for the rest.

    **Arguments**: `residual`, relative (see `SolverStats`); `most`, a whole number; `share`, from 0
    to 1.

    **Errors**: a `ValueError` for a setting out of range.

    **Cost**: 2 products with K a visit where all samples are near, else what the slowest of the
    batch takes; `3 n + 2 m` numbers a training sample, on the host.

    **Caveat**: it looks at the forward residual only; an adjoint of few steps lags behind g as K
    moves. See `History`: where `counted` stays at 0 nothing is learned, so take more iterations or
    a larger `residual`.

    >>> WarmStart()
    WarmStart(residual=0.05, most=100, share=0.9)
    """

    residual: float = 5e-2
    most: int = 100
    share: float = 0.9

    def __post_init__(self) -> None:
        check_number("residual", self.residual)
        check_count("most", self.most)
        check_fraction("share", self.share, "try 0.9", zero_allowed=True, one_allowed=True)


def _approach(
    problem: LowerLevel, x_tilde: Array, patient: ChambollePock, left: State
) -> tuple[State, Bool[Array, " batch"]]:
    """The state that a visit starts from, and which samples are near enough to count."""
    patient = cast_floats(patient, problem.dtype)
    solution = patient.on(problem, x_tilde).solve(left)
    state, near = solution.state, solution.stats.status == Status.CONVERGED
    # A limit formula is linear in g and in the adjoint it starts from: only without both is it 0.
    adjoint = jax.tree.map(lambda Delta: jnp.where(near[:, None], Delta, 0.0), left.adjoint)
    return State(state.r, state.r_bar, state.y, adjoint), near


class Visited(NamedTuple):
    """What a visit to a batch gives.

    `loss` and `grad` are means over the samples; `converged` counts those whose forward solve did,
    `near` those whose gradient is in `grad`; `residual` is the largest relative one of a forward
    solve; `left` is where the solves of each sample ended (None where the next one starts cold).
    """

    loss: Float[Array, ""]
    grad: LowerLevel
    converged: Float[Array, ""]
    near: Float[Array, ""]
    residual: Float[Array, ""]
    left: State | None


Visit = Callable[[LowerLevel, Array, Array, Any], Visited]


def make_visit(
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    warm_start: WarmStart | None,
    parameters: Callable[[LowerLevel], Any] | None = None,
) -> Visit:
    """`visit(problem, x_tilde, x_true, left)`: a hypergradient on a batch, cold or warm."""
    settings: dict[str, Any] = {"solver": solver, "strategy": strategy, "parameters": parameters}

    def cold(problem: LowerLevel, x_tilde: Array, x_true: Array, left: None) -> Visited:
        del left
        h = hypergradient(problem, x_tilde, x_true, loss=loss, **settings)
        return _visited(h, jnp.ones(len(x_tilde), bool), None)

    if warm_start is None:
        return cold
    patient = dataclasses.replace(solver, iterations=warm_start.most, tolerance=warm_start.residual)

    def warm(problem: LowerLevel, x_tilde: Array, x_true: Array, left: State) -> Visited:
        init, near = _approach(problem, x_tilde, patient, left)
        on_near = OnSamples(loss, near)
        h = hypergradient(problem, x_tilde, x_true, loss=on_near, init=init, **settings)
        return _visited(h, near, h.state)

    return warm


def _visited(h: Hypergradient, near: Bool[Array, " batch"], left: State | None) -> Visited:
    def count(chosen: Array) -> Array:
        return jnp.sum(chosen.astype(h.value.dtype))

    stats = h.solution.stats
    converged = count(stats.status == Status.CONVERGED)
    return Visited(h.value, h.grad, converged, count(near), jnp.max(stats.residual), left)


def nothing_left(
    samples: int, problem: LowerLevel, x_tilde: Data, x_true: Data, **settings: Any
) -> State:
    """What visits leave of each sample, before the first: zeros, from which a solve is a cold one.

    On the host, where it can be written into. Whether an adjoint is kept is up to the strategy.
    """

    def state(*arguments: Any) -> State:
        return hypergradient(*arguments, **settings).state

    shapes = eqx.filter_eval_shape(state, problem, x_tilde, x_true)
    return jax.tree.map(lambda a: np.zeros((samples, *a.shape[1:]), a.dtype), shapes)


def take(memory: State | None, rows: Any) -> State | None:
    """What was left of these samples."""
    return jax.tree.map(lambda kept: kept[rows], memory)


def put(memory: State | None, rows: np.ndarray, left: State | None) -> None:
    """Keep what is now left of these samples."""
    for kept, new in zip(jax.tree.leaves(memory), jax.tree.leaves(left), strict=True):
        kept[rows] = new
