"""Backpropagation through iterations that are recorded, or recorded again in segments."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.adjoint.deltas import (
    AdjointState,
    adjoint_step,
    seed_last_layer,
    start_adjoint,
    zeros_like,
)
from hypergrad.adjoint.results import Cotangent, problem_gradient, zero_gradient
from hypergrad.chambolle_pock import (
    ChambollePock,
    ForwardSolve,
    Iteration,
    ProxArguments,
    State,
    StepSizes,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import bilinear_gradient


class Tape(NamedTuple):
    """Recorded iterations, which a forward pass saves for `backpropagate`.

    `start` is the state before the first of them, a constant; `history` their prox arguments in
    order; `alpha (L,)` the weights of the iterates in the output (None: the last one alone).
    `moved`: `r[0] - r[-1]` where the start is itself an iterate (None: it is given).
    """

    forward: ForwardSolve
    start: State
    history: ProxArguments
    alpha: Float[Array, " L"] | None = None
    moved: Float[Array, "*batch n"] | None = None


class _Gathered(NamedTuple):
    """The adjoint state before some layer, and the sum of the gradients of all later layers."""

    adjoint: AdjointState
    K: Any
    F: Any
    G: Any
    x_tilde: Float[Array, "*batch n"]
    sizes: StepSizes


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


Unrolled = tuple[LowerLevel, Array, ChambollePock, AdjointState]


def backpropagate(tape: Tape, g: Cotangent) -> Unrolled:
    """Backpropagate through recorded iterations.

        grad_K = sum_l sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    as the gradient of the bilinear form of K; those in F, G, tau, sigma and theta from `u`.

    **Returns**: the gradients in problem, x_tilde and solver; and the adjoint state before the
    first iteration, which a truncation neglects.

    **Cost**: 4 products with K per iteration (two of them outer products summed over the batch).
    """
    solver, iteration = tape.forward
    problem = iteration.problem
    adjoint = seed_last_layer(g) if tape.alpha is None else start_adjoint(problem, g)
    gathered = _gather(tape, g, _zero_gradients(iteration, adjoint))
    return _gradients(problem, solver, g, gathered)


def _zero_gradients(iteration: Iteration, adjoint: AdjointState) -> _Gathered:
    problem, x_tilde, sizes = iteration
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


def _gather(tape: Tape, g: Cotangent, gathered: _Gathered) -> _Gathered:
    """Add the gradients of all layers of a tape to those of the layers after it."""
    forward, start, history, alpha, start_moved = tape
    problem, x_tilde, sizes = forward.iteration
    tau, sigma, theta = sizes
    F, G = problem.F, problem.G
    count = history.z_D.shape[0]

    def entering(l: Array):
        """`alpha_l g`; what enters behind the last layer alone is there before the first step."""
        if alpha is None:
            return zeros_like(g)
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
    """The start of a segment: the state, and `r[l] - r[l-1]` there."""

    state: State
    moved: Float[Array, "*batch n"]


class Checkpointed(NamedTuple):
    """Segments of iterations, each of which is recorded again from its checkpoint.

    The first `first` iterations begin at `start`; the others are segments of `length`, whose
    `checkpoints` are stacked.
    """

    forward: ForwardSolve
    start: State
    first: int
    length: int
    checkpoints: _Checkpoint


def run_in_segments(
    forward: ForwardSolve, start: State, *, checkpoints: int
) -> tuple[State, Checkpointed]:
    """Run all iterations of the solver, and keep `checkpoints` of the states.

    **Cost**: the solve; memory for `checkpoints` states.
    """
    solver, iteration = forward
    length = -(-solver.iterations // checkpoints)
    segments = (solver.iterations - 1) // length
    first = solver.iterations - segments * length

    def run_segment(state: State, count: int) -> _Checkpoint:
        before = iteration.repeat(state, count - 1)
        after, _ = iteration.step(before)
        return _Checkpoint(after, after.r - before.r)

    def body(at: _Checkpoint, _):
        return run_segment(at.state, length), at

    last, saved = jax.lax.scan(body, run_segment(start, first), None, length=segments)
    return last.state, Checkpointed(forward, start, first, length, saved)


def backpropagate_checkpointed(saved: Checkpointed, g: Cotangent) -> Unrolled:
    """Backpropagate as `backpropagate` does, recording each segment again from its checkpoint.

    **Cost**: 6 products with K per iteration; memory for one segment.
    """
    forward, start, first, length, checkpoints = saved
    solver, iteration = forward

    def through(later: _Gathered, state: State, moved: Array | None, count: int) -> _Gathered:
        _, history = iteration.record(state, count)
        return _gather(Tape(forward, state, history, None, moved), g, later)

    def body(later: _Gathered, at: _Checkpoint):
        return through(later, at.state, at.moved, length), None

    gathered = _zero_gradients(iteration, seed_last_layer(g))
    gathered, _ = jax.lax.scan(body, gathered, checkpoints, reverse=True)
    return _gradients(iteration.problem, solver, g, through(gathered, start, None, first))
