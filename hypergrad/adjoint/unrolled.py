"""Unrolled gradients: back through recorded iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.adjoint.recursion import AdjointState, adjoint_step, start_adjoint
from hypergrad.adjoint.results import Cotangent, problem_gradient, zero_gradient
from hypergrad.chambolle_pock import ChambollePock, ProxArguments, State, StepSizes
from hypergrad.lower_level import LowerLevel
from hypergrad.operators import bilinear_gradient

__all__ = ["Recorded", "backpropagate"]


class Recorded(NamedTuple):
    """Iterations to go back through: what a forward pass leaves for `backpropagate`.

    `start` is the state before the first of them, held fixed; `history` their prox arguments in
    order; `alpha (L,)` the weights of the iterates in the output (None: the last one alone).
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
    sizes: StepSizes
    start: State
    history: ProxArguments
    alpha: Float[Array, " L"] | None


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def backpropagate(
    recorded: Recorded, g: Cotangent
) -> tuple[LowerLevel, Array, ChambollePock, AdjointState]:
    """Backpropagation through recorded iterations.

        grad_K = sum_l sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    as the gradient of the bilinear form of K; F and G from `u`; tau, sigma, theta likewise.

    **Returns**: the gradients in problem, x_tilde and solver; and the adjoint state before the
    first iteration, which is what a truncation neglects.

    **Cost**: 4 products with K an iteration (two of them outer products summed over the batch).
    """
    problem, x_tilde, solver, sizes, start, history, alpha = recorded
    tau, sigma, theta = sizes
    F, G = problem.F, problem.G
    count = history.z_D.shape[0]

    def r_at(l):
        """`r[l]`, recomputed from the history: a prox costs less than the memory of r."""
        z_P = jax.lax.dynamic_index_in_dim(history.z_P, jnp.maximum(l - 1, 0), keepdims=False)
        return jnp.where(l > 0, G.prox(z_P, tau), start.r)

    def body(carry, l):
        later, grad, dx_tilde, dsizes = carry
        z = jax.tree.map(lambda h: jax.lax.dynamic_index_in_dim(h, l - 1, keepdims=False), history)
        weight = (l == count).astype(x_tilde.dtype) if alpha is None else alpha[l - 1]
        state, terms = adjoint_step(problem, sizes, z, later, Cotangent(weight * g.x, weight * g.y))
        y = F.prox_conjugate(z.z_D, sigma)
        r_before = r_at(l - 1)
        moved = jnp.where(l > 1, r_before - r_at(l - 2), 0.0)
        x_bar = x_tilde + jnp.where(l > 1, r_before + theta * moved, start.r_bar)

        dK = bilinear_gradient(problem.K, (sigma * state.delta_D, x_bar), (-tau * y, state.delta_P))
        dsizes = StepSizes(
            tau=dsizes.tau + terms.dtau - jnp.sum(terms.K_delta_P * y),
            sigma=dsizes.sigma + terms.dsigma + jnp.sum(state.KT_delta_D * x_bar),
            theta=dsizes.theta + sigma * jnp.sum(state.KT_delta_D * moved),
        )
        grad = _add(grad, (dK, terms.dF, terms.dG))
        return (state, grad, dx_tilde + sigma * state.KT_delta_D, dsizes), None

    carry = (
        start_adjoint(problem, g),
        zero_gradient((problem.K, F, G)),
        jnp.zeros_like(x_tilde),
        jax.tree.map(jnp.zeros_like, sizes),
    )
    backwards = jnp.arange(count, 0, -1)
    (state, (dK, dF, dG), dx_tilde, dsizes), _ = jax.lax.scan(body, carry, backwards)
    # From the step sizes in force to the solver's fields (their norm is not differentiated).
    _, pull_sizes = eqx.filter_vjp(lambda s: s.step_sizes(problem), solver)
    dsolver = pull_sizes(dsizes)[0]
    return problem_gradient(problem, dK, dF, dG), g.x + dx_tilde, dsolver, state
