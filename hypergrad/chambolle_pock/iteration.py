"""The Chambolle-Pock iteration: its state, one step, and a fixed number of steps.

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
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose


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
    """One iterate: `r = x - x_tilde`, its extrapolation `r_bar`, and the dual `y`.

    `adjoint` is where a backward solve starts from an earlier one; the iteration itself neither
    reads nor keeps it.
    """

    r: Float[Array, "*batch n"]
    r_bar: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]
    adjoint: AdjointPair | None = None


class ProxArguments(NamedTuple):
    """The arguments of the two proxes of one iteration; their derivatives are taken there."""

    z_D: Float[Array, "*batch m"]
    z_P: Float[Array, "*batch n"]


class _Carry(NamedTuple):
    """The state in a loop, with `x_bar = x_tilde + r_bar` in place of `r_bar`.

    XLA makes a pass over memory for everything that a loop carries, so it carries no more than an
    iteration reads.
    """

    r: Float[Array, "*batch n"]
    x_bar: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]


class Iteration(NamedTuple):
    """The Chambolle-Pock iteration of one problem on one batch with given step sizes."""

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    sizes: StepSizes

    def step(self, state: State) -> tuple[State, ProxArguments]:
        """Return the next state, and the arguments of the two proxes of this iteration."""
        return self._advance(self._carry(state))

    def repeat(self, state: State, count: int | Array) -> State:
        """Return the state after `count` iterations, without their history."""
        if isinstance(count, int) and count == 0:
            return state

        def body(_, carry: _Carry) -> _Carry:
            return self._carry(self._advance(carry)[0])

        # The last iteration is apart, since it alone returns r_bar.
        carry = jax.lax.fori_loop(0, count - 1, body, self._carry(state))
        return self._advance(carry)[0]

    def record(self, state: State, count: int) -> tuple[State, ProxArguments]:
        """Return the state after `count` iterations, and their prox arguments: see `record`."""
        if count == 0:
            z_D, z_P = (jnp.zeros((0, *a.shape), a.dtype) for a in (state.y, state.r))
            return state, ProxArguments(z_D, z_P)

        def body(carry: _Carry, _):
            new, z = self._advance(carry)
            return self._carry(new), z

        last, history = jax.lax.scan(body, self._carry(state), None, length=count)
        tau, _, theta = self.sizes
        before = state.r if count == 1 else self.problem.G.prox(history.z_P[-2], tau)
        return State(last.r, last.r + theta * (last.r - before), last.y), history

    def _carry(self, state: State) -> _Carry:
        return _Carry(state.r, self.x_tilde + state.r_bar, state.y)

    def _advance(self, carry: _Carry) -> tuple[State, ProxArguments]:
        K, F, G = self.problem.K, self.problem.F, self.problem.G
        tau, sigma, theta = self.sizes

        z_D = carry.y + sigma * apply(K, carry.x_bar)
        y = F.prox_conjugate(z_D, sigma)
        z_P = carry.r - tau * apply_transpose(K, y)
        r = G.prox(z_P, tau)
        r_bar = r + theta * (r - carry.r)
        return State(r, r_bar, y), ProxArguments(z_D, z_P)


def step(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State
) -> tuple[State, ProxArguments]:
    """Return the next state, and the arguments of the two proxes of this iteration."""
    return Iteration(problem, x_tilde, sizes).step(state)


def record(
    problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, count: int
) -> tuple[State, ProxArguments]:
    """Run `count` iterations that JAX can differentiate in reverse, and keep their prox arguments.

    **Arguments**: `sizes`, the step sizes (`solver.step_sizes(problem)`); `state`, the first
    state (`solver.start(problem, x_tilde)`); `count`, a Python integer.

    **Returns**: the state after them, and the arguments of both proxes, `(count, ..., m or n)`.

    **Cost**: 2 products with K per iteration; memory `count (m + n)` per sample.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> solver, x_tilde = hg.ChambollePock(), jnp.array([[0.0, 1.0, 1.0]])
    >>> start = solver.start(problem, x_tilde)
    >>> state, history = hg.record(problem, x_tilde, solver.step_sizes(problem), start, 5)
    >>> state.y.shape, history.z_P.shape
    ((1, 2), (5, 1, 3))
    """
    return Iteration(problem, x_tilde, sizes).record(state, count)
