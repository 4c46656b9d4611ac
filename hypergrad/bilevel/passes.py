"""One forward and one backward solve, compiled as one program."""

from __future__ import annotations

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.compiled import compiled
from hypergrad.adjoint import Cotangent, Gradients
from hypergrad.bilevel.arguments import flatten_batch, restore_batch
from hypergrad.bilevel.error_bound import ErrorBound, ReturnedPair, bound_error
from hypergrad.bilevel.losses import Loss, half_mean_squared_error, of_rows
from hypergrad.bilevel.result import Hypergradient
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["compute_hypergradient"]

_Inputs = TypeVar("_Inputs")


@compiled
def compute_hypergradient(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    init: State | None,
    *,
    error_bound: bool = False,
    wanted: LowerLevel | None = None,
) -> Hypergradient:
    """Compute the hypergradient in the leaves that `wanted` marks, and the bound on its error."""
    problem, x_tilde, solver, init = _not_differentiable((problem, x_tilde, solver, init))
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    solution, saved = strategy.forward(problem, rows, solver, init)

    row_loss = of_rows(loss, x_true)
    value, g = jax.value_and_grad(row_loss)(solution.x)
    no_y = jnp.zeros_like(solution.y)

    def pull(g: Array) -> Gradients:
        if wanted is None:
            return strategy.pullback(saved, Cotangent(g, no_y))
        return strategy.partial_pullback(saved, Cotangent(g, no_y), wanted)

    gradients = pull(g)
    grad, grad_x_tilde, grad_solver, stats, pair = gradients

    bound = None
    if error_bound:

        def pullback(chosen: Array) -> LowerLevel:
            return pull(jnp.where(chosen[:, None], g, 0.0)).problem

        # The default loss is a mean of squares: its second derivative is 1 / batch.
        smoothness = 1 / len(rows) if loss is half_mean_squared_error else None
        sizes = solver.step_sizes(problem)
        returned = ReturnedPair(problem, rows, sizes, solution.x, solution.y)
        bound = bound_error(returned, grad, pullback, jax.grad(row_loss), smoothness=smoothness)
        certified = restore_batch(bound.certified, batch)
        bound = ErrorBound(bound.total, bound.grad, certified, bound.on_certified)

    solution, grad_x_tilde, stats, pair = restore_batch(
        (solution, grad_x_tilde, stats, pair), batch
    )
    return Hypergradient(
        value, grad, grad_x_tilde, grad_solver, solution, stats, pair, error_bound=bound
    )


def _not_differentiable(inputs: _Inputs) -> _Inputs:
    """Return the inputs; their derivative would be that of the iterations, so it is refused."""
    floats, rest = eqx.partition(inputs, eqx.is_inexact_array)
    return eqx.combine(_refusing(floats), rest)


@jax.custom_jvp
def _refusing(floats: Any) -> Any:
    return floats


@_refusing.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "hypergradient(...) must not be differentiated; got a derivative of its problem, x_tilde, "
        "solver or init: its gradient is its .grad, and hg.solve(...).x is made to be "
        "differentiated (for its value alone, hold its arguments by jax.lax.stop_gradient)"
    )
