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

from hypergrad.lower_level import LowerLevel
from hypergrad.operators import apply, apply_transpose

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
    """Where the iteration stands: `r = x - x_tilde`, its extrapolation, and the dual variable.

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


def step(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State
) -> tuple[State, ProxArguments]:
    """One Chambolle-Pock iteration: the next state, and the arguments of its two proxes."""
    K, F, G = problem.K, problem.F, problem.G
    tau, sigma, theta = sizes

    z_D = state.y + sigma * apply(K, x_tilde + state.r_bar)
    y = F.prox_conjugate(z_D, sigma)
    z_P = state.r - tau * apply_transpose(K, y)
    r = G.prox(z_P, tau)
    r_bar = r + theta * (r - state.r)
    return State(r, r_bar, y), ProxArguments(z_D, z_P)


def run(problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, count: int) -> State:
    """`count` iterations, without their history."""

    def body(state: State, _):
        return step(problem, x_tilde, sizes, state)[0], None

    return jax.lax.scan(body, state, None, length=count)[0]


def record(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, count: int
) -> tuple[State, ProxArguments]:
    """`count` iterations with their history, the prox arguments `(count, ..., m or n)`."""

    def body(state: State, _):
        return step(problem, x_tilde, sizes, state)

    return jax.lax.scan(body, state, None, length=count)
