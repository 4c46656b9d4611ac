"""Compute the gradient of a batch, from a cold start or from the last state of each sample."""

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
from hypergrad.learning.pairs import SampleProblem
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies._base import AbstractStrategy

__all__ = [
    "BatchGradient",
    "ComputeGradient",
    "WarmStart",
    "empty_memory",
    "forget",
    "gather",
    "make_batch_gradient",
    "scatter",
]


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Start the solves of each training sample from its state in the last epoch, safeguarded.

    The primal, dual and adjoint state of every training sample is stored; the initial state is
    zero. Since K has changed in between, the lower level is first iterated until the sample's
    relative residual at the current K is at most `residual`; the sample is then *near*, and its
    gradient is computed. A sample that is not near after `most` iterations keeps its forward state,
    but its gradient is left out of the mean and its adjoint state is reset to 0. Easy samples are
    near first, so a batch with less than a `share` of near samples makes no update.

    **Arguments**: `residual`, relative (see `SolverStats`); `most`, a whole number; `share`, from 0
    to 1.

    **Errors**: a `HypergradError` for a setting out of range.

    **Cost**: 2 products with K per batch if all samples are near, else those of its slowest sample;
    memory on the host for `3 n + 2 m` numbers per training sample.

    **Caveat**: only the forward residual is checked; an adjoint of few steps lags behind g as K
    moves. If `counted` in the `History` stays at 0, nothing is learned: take more iterations or a
    larger `residual`.

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
    problem: LowerLevel, x_tilde: Array, solver: ChambollePock, state: State
) -> tuple[State, Bool[Array, " batch"]]:
    """Return the states that the solves start from, and which samples are near enough to count."""
    solution = solver.on(problem, x_tilde).solve(state)
    near = solution.stats.status == Status.CONVERGED
    # A limit formula is linear in g and in its initial adjoint: it gives 0 only if both are 0.
    adjoint = jax.tree.map(lambda Delta: jnp.where(near[:, None], Delta, 0.0), state.adjoint)
    approached = solution.state
    return State(approached.r, approached.r_bar, approached.y, adjoint), near


class BatchGradient(NamedTuple):
    """The gradient of a batch, with statistics of its solves.

    `loss` and `grad` are means over the samples; `converged` is the number of samples whose forward
    solve converged, `near` the number whose gradient is in `grad`; `residual` is the largest
    relative residual of a forward solve; `next_state` is the state from which the next solve of
    each sample starts (None for a cold start).
    """

    loss: Float[Array, ""]
    grad: LowerLevel
    converged: Float[Array, ""]
    near: Float[Array, ""]
    residual: Float[Array, ""]
    next_state: State | None


# Of `(problem, x_tilde, x_true, state)`; between the last two `own`, if the problem differs.
ComputeGradient = Callable[..., BatchGradient]


def make_batch_gradient(
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    warm_start: WarmStart | None,
    parameters: Callable[[LowerLevel], Any] | None = None,
    sample_problem: SampleProblem | None = None,
) -> ComputeGradient:
    """Return a function of `(problem, x_tilde, x_true, state)` that computes the batch gradient."""
    if sample_problem is not None:  # a learned leaf may act through any other of a sample's problem
        of_one = make_batch_gradient(solver, strategy, loss, warm_start)
        return _sample_by_sample(of_one, sample_problem)
    settings: dict[str, Any] = {"solver": solver, "strategy": strategy, "parameters": parameters}

    def cold(problem: LowerLevel, x_tilde: Array, x_true: Array, state: None) -> BatchGradient:
        del state
        h = hypergradient(problem, x_tilde, x_true, loss=loss, **settings)
        return _batch_gradient(h, jnp.ones(len(x_tilde), bool), None)

    if warm_start is None:
        return cold
    most, tolerance = warm_start.most, warm_start.residual

    def warm(problem: LowerLevel, x_tilde: Array, x_true: Array, state: State) -> BatchGradient:
        # Both solves take the same steps: one norm of K.
        stepped = cast_floats(solver, problem.dtype).with_step_sizes(problem)
        approach = dataclasses.replace(stepped, iterations=most, tolerance=tolerance)
        init, near = _approach(problem, x_tilde, approach, state)
        on_near = OnSamples(loss, near)
        now = {**settings, "solver": stepped, "init": init}
        h = hypergradient(problem, x_tilde, x_true, loss=on_near, **now)
        return _batch_gradient(h, near, h.state)

    return warm


def _sample_by_sample(compute: ComputeGradient, sample_problem: SampleProblem) -> ComputeGradient:
    """Return a function of `(problem, x_tilde, x_true, own, state)`: each sample in its problem.

    The gradient is that of the mean loss in the shared problem, through `sample_problem`.

    **Cost**: that of the batch, and memory for a gradient of each sample, that in a dense K
    included: under `jax.vmap` their sum is no single matrix product.
    """

    def compute_each(
        problem: LowerLevel, x_tilde: Array, x_true: Array, own: Any, state: State | None
    ) -> BatchGradient:
        def one(own: Any, *rows: Any) -> BatchGradient:
            mine, pull = eqx.filter_vjp(lambda shared: sample_problem(shared, own), problem)
            sample = compute(mine, *jax.tree.map(lambda row: row[None], rows))
            next_state = jax.tree.map(lambda row: row[0], sample.next_state)
            return sample._replace(grad=pull(sample.grad)[0], next_state=next_state)

        each = jax.vmap(one)(own, x_tilde, x_true, state)
        return BatchGradient(
            loss=jnp.mean(each.loss),
            grad=jax.tree.map(lambda grads: jnp.mean(grads, axis=0), each.grad),
            converged=jnp.sum(each.converged),
            near=jnp.sum(each.near),
            residual=jnp.max(each.residual),
            next_state=each.next_state,
        )

    return compute_each


def _batch_gradient(
    h: Hypergradient, near: Bool[Array, " batch"], next_state: State | None
) -> BatchGradient:
    def count(chosen: Array) -> Array:
        return jnp.sum(chosen.astype(h.value.dtype))

    stats = h.solution.stats
    converged, residual = count(stats.status == Status.CONVERGED), jnp.max(stats.residual)
    return BatchGradient(h.value, h.grad, converged, count(near), residual, next_state)


def empty_memory(
    samples: int, problem: LowerLevel, x_tilde: Data, x_true: Data, **settings: Any
) -> State:
    """Return the initial warm-start memory (zeros, which give a cold start), as NumPy arrays.

    The strategy decides whether an adjoint state is stored.
    """

    def state(*arguments: Any) -> State:
        return hypergradient(*arguments, **settings).state

    shapes = eqx.filter_eval_shape(state, problem, x_tilde, x_true)
    return jax.tree.map(lambda a: np.zeros((samples, *a.shape[1:]), a.dtype), shapes)


def forget(memory: State | None) -> None:
    """Set the stored states to zero, in place: other samples start cold."""
    for stored in jax.tree.leaves(memory):
        stored[:] = 0


def gather(memory: State | None, rows: Any) -> State | None:
    """Return the stored states of these samples."""
    return jax.tree.map(lambda stored: stored[rows], memory)


def scatter(memory: State | None, rows: np.ndarray, state: State | None) -> None:
    """Store the states of these samples, in place."""
    for stored, new in zip(jax.tree.leaves(memory), jax.tree.leaves(state), strict=True):
        stored[rows] = new
