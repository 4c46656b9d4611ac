"""Unrolled gradients: back through iterations that are recorded, or recorded again in segments."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.adjoint.recursion import (
    AdjointState,
    adjoint_step,
    entered,
    nothing_like,
    start_adjoint,
)
from hypergrad.adjoint.results import Cotangent, problem_gradient, zero_gradient
from hypergrad.chambolle_pock import (
    ChambollePock,
    ProxArguments,
    State,
    StepSizes,
    record,
    run,
    step,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import bilinear_gradient

__all__ = ["Checkpointed", "Recorded", "backpropagate", "backpropagate_again", "run_in_segments"]


class Recorded(NamedTuple):
    """Iterations to go back through: what a forward pass leaves for `backpropagate`.

    `start` is the state before the first of them, held fixed; `history` their prox arguments in
    order; `alpha (L,)` the weights of the iterates in the output (None: the last one alone).
    `moved`: `r[0] - r[-1]` where the start was iterated to as well (None: it was given).
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
    sizes: StepSizes
    start: State
    history: ProxArguments
    alpha: Float[Array, " L"] | None
    moved: Float[Array, "*batch n"] | None = None


class _Gathered(NamedTuple):
    """The adjoint state before some layer, and the gradients that all later layers have given."""

    adjoint: AdjointState
    K: Any
    F: Any
    G: Any
    x_tilde: Float[Array, "*batch n"]
    sizes: StepSizes


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


Unrolled = tuple[LowerLevel, Array, ChambollePock, AdjointState]


def backpropagate(recorded: Recorded, g: Cotangent) -> Unrolled:
    """Backpropagation through recorded iterations.

        grad_K = sum_l sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    as the gradient of the bilinear form of K; F and G from `u`; tau, sigma, theta likewise.

    **Returns**: the gradients in problem, x_tilde and solver; and the adjoint state before the
    first iteration, which is what a truncation neglects.

    **Cost**: 4 products with K an iteration (two of them outer products summed over the batch).
    """
    problem, x_tilde, solver = recorded.problem, recorded.x_tilde, recorded.solver
    adjoint = entered(g) if recorded.alpha is None else start_adjoint(problem, g)
    gathered = _gather(recorded, g, _nothing(problem, x_tilde, recorded.sizes, adjoint))
    return _gradients(problem, solver, g, gathered)


def _nothing(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, adjoint: AdjointState
) -> _Gathered:
    dK, dF, dG = zero_gradient((problem.K, problem.F, problem.G))
    no_sizes = jax.tree.map(jnp.zeros_like, sizes)
    return _Gathered(adjoint, dK, dF, dG, jnp.zeros_like(x_tilde), no_sizes)


def _gradients(
    problem: LowerLevel, solver: ChambollePock, g: Cotangent, gathered: _Gathered
) -> Unrolled:
    adjoint, dK, dF, dG, dx_tilde, dsizes = gathered
    # From the step sizes in force to the solver's fields (their norm is not differentiated).
    _, pull_sizes = eqx.filter_vjp(lambda s: s.step_sizes(problem), solver)
    dsolver = pull_sizes(dsizes)[0]
    return problem_gradient(problem, dK, dF, dG), g.x + dx_tilde, dsolver, adjoint


def _gather(recorded: Recorded, g: Cotangent, gathered: _Gathered) -> _Gathered:
    """Back through all layers of a recording, from what the layers behind it have given."""
    problem, x_tilde, _, sizes, start, history, alpha, start_moved = recorded
    tau, sigma, theta = sizes
    F, G = problem.F, problem.G
    count = history.z_D.shape[0]

    def entering(l: Array):
        """`alpha_l g`; what enters behind the last layer alone is there before the first step."""
        if alpha is None:
            return nothing_like(g)
        return Cotangent(alpha[l - 1] * g.x, alpha[l - 1] * g.y)

    def r_at(l: Array):
        """`r[l]`, recomputed from the history: a prox costs less than the memory of r."""
        z_P = jax.lax.dynamic_index_in_dim(history.z_P, jnp.maximum(l - 1, 0), keepdims=False)
        return jnp.where(l > 0, G.prox(z_P, tau), start.r)

    def layer(later: _Gathered, l: Array):
        z = jax.tree.map(lambda h: jax.lax.dynamic_index_in_dim(h, l - 1, keepdims=False), history)
        state, terms = adjoint_step(problem, sizes, z, later.adjoint, entering(l))
        y = F.prox_conjugate(z.z_D, sigma)
        r_before = r_at(l - 1)
        moved = jnp.where(
            l > 1, r_before - r_at(l - 2), 0.0 if start_moved is None else start_moved
        )
        x_bar = x_tilde + jnp.where(l > 1, r_before + theta * moved, start.r_bar)

        dK = bilinear_gradient(problem.K, (state.delta_D, sigma * x_bar), (y, -tau * state.delta_P))
        dsizes = StepSizes(
            tau=later.sizes.tau + terms.dtau - jnp.sum(terms.K_delta_P * y),
            sigma=later.sizes.sigma + terms.dsigma + jnp.sum(state.KT_delta_D * x_bar),
            theta=later.sizes.theta + sigma * jnp.sum(state.KT_delta_D * moved),
        )
        dF, dG = _add(later.F, terms.dF), _add(later.G, terms.dG)
        dx_tilde = later.x_tilde + sigma * state.KT_delta_D
        return _Gathered(state, _add(later.K, dK), dF, dG, dx_tilde, dsizes), None

    return jax.lax.scan(layer, gathered, jnp.arange(count, 0, -1))[0]


# ------------------------------------------------------------------------------------ checkpoints


class _Checkpoint(NamedTuple):
    """Where a segment begins: the state, and `r[l] - r[l-1]` there."""

    state: State
    moved: Float[Array, "*batch n"]


class Checkpointed(NamedTuple):
    """Iterations to go back through segment by segment, each recorded again from its checkpoint.

    The first `first` iterations begin at `start`; the others are segments of `length`, whose
    `checkpoints` are stacked.
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
    sizes: StepSizes
    start: State
    first: int
    length: int
    checkpoints: _Checkpoint


def run_in_segments(
    problem: LowerLevel,
    x_tilde: Array,
    solver: ChambollePock,
    start: State,
    *,
    checkpoints: int,
) -> tuple[State, Checkpointed]:
    """All iterations of the solver, of which only every so many states are kept.

    **Cost**: the solve; memory for `checkpoints` states.
    """
    sizes, length = solver.step_sizes(problem), -(-solver.iterations // checkpoints)
    segments = (solver.iterations - 1) // length
    first = solver.iterations - segments * length

    def run_segment(state: State, count: int) -> _Checkpoint:
        before = run(problem, x_tilde, sizes, state, count - 1)
        after, _ = step(problem, x_tilde, sizes, before)
        return _Checkpoint(after, after.r - before.r)

    def body(at: _Checkpoint, _):
        return run_segment(at.state, length), at

    last, kept = jax.lax.scan(body, run_segment(start, first), None, length=segments)
    return last.state, Checkpointed(problem, x_tilde, solver, sizes, start, first, length, kept)


def backpropagate_again(kept: Checkpointed, g: Cotangent) -> Unrolled:
    """`backpropagate`, with every segment recorded again from its checkpoint.

    **Cost**: 6 products with K an iteration; memory for one segment.
    """
    problem, x_tilde, solver, sizes, start, first, length, checkpoints = kept

    def through(later: _Gathered, state: State, moved: Array | None, count: int) -> _Gathered:
        _, history = record(problem, x_tilde, sizes, state, count)
        segment = Recorded(problem, x_tilde, solver, sizes, state, history, None, moved)
        return _gather(segment, g, later)

    def body(later: _Gathered, at: _Checkpoint):
        return through(later, at.state, at.moved, length), None

    gathered = _nothing(problem, x_tilde, sizes, entered(g))
    gathered, _ = jax.lax.scan(body, gathered, checkpoints, reverse=True)
    return _gradients(problem, solver, g, through(gathered, start, None, first))
