"""The Chambolle-Pock iteration: its state, one step, and runs of a fixed length.

    z_D[l+1] = y[l] + sigma K (x_tilde + r_bar[l])     y[l+1] = prox_{sigma F*}(z_D[l+1])
    z_P[l+1] = r[l] - tau K^T y[l+1]                   r[l+1] = prox_{tau G}(z_P[l+1])
    r_bar[l+1] = r[l+1] + theta (r[l+1] - r[l])

The letters are those of the posters: r = x - x_tilde, y the dual variable, z the arguments of the
proxes. The history of a run is its z alone: y and r follow from it without a product with K.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float

from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose

__all__ = ["AdjointPair", "ProxArguments", "State", "StepSizes", "record", "run", "step"]


class StepSizes(NamedTuple):
    """`tau` and `sigma` in force (positive scalars), and the extrapolation `theta`."""

    tau: Float[Array, ""]
    sigma: Float[Array, ""]
    theta: Float[Array, ""]


class AdjointPair(NamedTuple):
    """The sums `Delta_P`, `Delta_D` of the limit formula: where an adjoint solve ended."""

    Delta_P: Float[Array, "*batch n"]
    Delta_D: Float[Array, "*batch m"]


class State(eqx.Module):
    """Where the iteration stands: `r = x - x_tilde`, its extrapolation `r_bar`, and the dual `y`.

    `adjoint` rides along where a backward solve is to start from an earlier one; the iteration
    itself neither reads nor keeps it.
    """

    r: Float[Array, "*batch n"]
    r_bar: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]
    adjoint: AdjointPair | None = None


class ProxArguments(NamedTuple):
    """What the two proxes of one iteration were applied to; their derivatives are taken there."""

    z_D: Float[Array, "*batch m"]
    z_P: Float[Array, "*batch n"]


class _Point(NamedTuple):
    """What an iteration reads: `x_bar = x_tilde + r_bar` in the place of `r_bar`.

    XLA makes a pass over memory of everything that a loop carries, so it carries no more than this.
    """

    r: Float[Array, "*batch n"]
    x_bar: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]


def _point(x_tilde: Array, state: State) -> _Point:
    return _Point(state.r, x_tilde + state.r_bar, state.y)


def _advance(problem: LowerLevel, sizes: StepSizes, at: _Point) -> tuple[State, ProxArguments]:
    K, F, G = problem.K, problem.F, problem.G
    tau, sigma, theta = sizes

    z_D = at.y + sigma * apply(K, at.x_bar)
    y = F.prox_conjugate(z_D, sigma)
    z_P = at.r - tau * apply_transpose(K, y)
    r = G.prox(z_P, tau)
    r_bar = r + theta * (r - at.r)
    return State(r, r_bar, y), ProxArguments(z_D, z_P)


def step(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State
) -> tuple[State, ProxArguments]:
    """One Chambolle-Pock iteration: the next state, and the arguments of its two proxes."""
    return _advance(problem, sizes, _point(x_tilde, state))


def run(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, count: int | Array
) -> State:
    """`count` iterations, without their history."""
    if isinstance(count, int) and count == 0:
        return state

    def body(_, at: _Point) -> _Point:
        return _point(x_tilde, _advance(problem, sizes, at)[0])

    # The last one by itself: it alone has to leave r_bar.
    at = jax.lax.fori_loop(0, count - 1, body, _point(x_tilde, state))
    return _advance(problem, sizes, at)[0]


def record(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, count: int
) -> tuple[State, ProxArguments]:
    """Run `count` iterations that JAX can differentiate in reverse, and keep their prox arguments.

    **Arguments**: `sizes`, the step sizes (`solver.step_sizes(problem)`); `state`, where they start
    (`solver.start(problem, x_tilde)`); `count`, a Python integer.

    **Returns**: the state after them, and the arguments of both proxes, `(count, ..., m or n)`.

    **Cost**: 2 products with K an iteration; memory `count (m + n)` a sample.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> solver, x_tilde = hg.ChambollePock(), jnp.array([[0.0, 1.0, 1.0]])
    >>> start = solver.start(problem, x_tilde)
    >>> state, history = hg.record(problem, x_tilde, solver.step_sizes(problem), start, 5)
    >>> state.y.shape, history.z_P.shape
    ((1, 2), (5, 1, 3))
    """

    def body(at: _Point, _):
        new, z = _advance(problem, sizes, at)
        return _point(x_tilde, new), z

    last, history = jax.lax.scan(body, _point(x_tilde, state), None, length=count)
    before = state.r if count == 1 else problem.G.prox(history.z_P[-2], sizes.tau)
    return State(last.r, last.r + sizes.theta * (last.r - before), last.y), history
