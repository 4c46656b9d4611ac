"""One hypergradient with given settings: one forward and one backward solve."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.checks import check_flag
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.status import throw_if_bad
from hypergrad.adjoint import Cotangent, Gradients
from hypergrad.bilevel.arguments import (
    Data,
    Loss,
    flatten_batch,
    half_mean_squared_error,
    prepare_hypergradient,
    restore_batch,
)
from hypergrad.bilevel.error_bound import ErrorBound, ReturnedPair, bound_error
from hypergrad.bilevel.result import Hypergradient
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.strategies._base import AbstractStrategy


def hypergradient(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    parameters: Callable[[LowerLevel], Any] | None = None,
    init: State | None = None,
    throw: bool = False,
    error_bound: bool = False,
    target_error: float | None = None,
) -> Hypergradient:
    """Compute one hypergradient: value, gradient, solution and the statistics of both solves.

        value = loss(x_hat, x_true),    grad = d value / d problem

    **Arguments**: as for `solve`; `x_true (..., n)`; `loss(x, x_true)`, a scalar for the whole
    batch (the numbers of an equinox module are arguments of the compiled program, those of another
    object or a function, its attributes, closure, defaults and globals, are compiled in: where they
    change, the program is compiled anew, see `Loss`); `parameters`, the parts of the problem that
    the gradient is wanted in, as in `lambda p: (p.K, p.F.weight)`: `grad` (and a bound on its
    error) is None in all others, and so are `grad_x_tilde` and `grad_solver`; `init`, the `state`
    of an earlier hypergradient, where both solves then start.
    `error_bound=True` also gives a bound on `|| grad - true ||`, the distance from the gradient at
    the true argmin, for any strategy: an `ErrorBound`. (`target_error` is deprecated: call
    `hypergradient_to_target`.)

    **Returns**: a `Hypergradient`.

    **Warnings**: a `UserWarning` that tells the cost, where `ForwardUnrolling` would take more than
    500 forward solves.

    **Errors**: as for `solve`; a `TypeError` where it is differentiated in these. With `throw=True`
    a bad status of either solve raises (an adjoint that was cut off on purpose, a truncation, has
    one, too; and so does a custom strategy that JAX differentiates, which is UNKNOWN unless it says
    otherwise). A `ValueError` for `parameters` that are no parts of the problem.

    **Cost**: by strategy, see `hypergrad strategies`; fewer `parameters` are cheaper for
    `ForwardUnrolling`, and hardly for the others. The bound: up to 5 factorisations of
    `m n^2 + n^3 / 3` a sample, about 20 solves with the last; where K is no matrix, or a sample of
    a smooth problem is left over, up to 5 solves by CGLS with 4 products a step.

    **Caveat**: the bound is one where every sample is certified, and infinite where one is not: its
    `certified` says which (a kink too near, GroupL1, L2Ball). A singular system never is, since
    there the gradient is one of several. For float64. A loss other than the default is taken to be
    twice differentiable. The bound rests on a gradient that is better than the one it judges: where
    it is wanted at every step, `Exact` is the cheaper way to be sure.

    Not to be differentiated itself in what the lower level is made of, which is refused: `jax.grad`
    of `hypergradient(...).value` would know nothing of the strategy. Take `grad`, which is here, or
    differentiate through `solve`, which is made for that.

    **Source**: `hypergrad.bilevel.error_bound` has the mathematics.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_tilde, x_true = jnp.array([0.1, 1.0, 0.9]), jnp.array([0.0, 1.0, 1.0])
    >>> h = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.LimitFormula())
    >>> f"{h.grad.F.weight:.4f}"
    '0.3000'
    >>> h = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Truncation(k=1),
    ...                      solver=hg.ChambollePock(5), error_bound=True)
    >>> bool(h.error_bound.total < 0.2), hg.Regime.summary(h.error_bound.certified)
    (True, 'active set 100 %')
    >>> h = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.ForwardUnrolling(),
    ...                      parameters=lambda p: p.F.weight)
    >>> f"{h.grad.F.weight:.4f}", h.grad.K
    ('0.3000', None)
    """
    if target_error is not None:
        from hypergrad.bilevel.target_error import hypergradient_to_target

        warnings.warn(
            "hypergradient(target_error=...) is deprecated: call hg.hypergradient_to_target",
            DeprecationWarning,
            stacklevel=2,
        )
        return hypergradient_to_target(
            problem, x_tilde, x_true, target_error=target_error, solver=solver, strategy=strategy,
            loss=loss, parameters=parameters, init=init, throw=throw,
        )  # fmt: skip
    problem, x_tilde, x_true, solver, init = prepare_hypergradient(
        problem, x_tilde, x_true, solver, strategy, loss, init
    )
    check_flag("throw", throw)
    check_flag("error_bound", error_bound)
    wanted = None if parameters is None else select_leaves(problem, parameters, "parameters")
    if (warning := strategy.cost_warning(problem, solver, wanted)) is not None:
        warnings.warn(warning, UserWarning, stacklevel=2)
    h = compute_hypergradient(
        problem, x_tilde, x_true, solver, strategy, loss, init,
        error_bound=error_bound, wanted=wanted,
    )  # fmt: skip
    return throw_if_any_is_bad(h) if throw else h


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
    floats, rest = eqx.partition((problem, x_tilde, solver, init), eqx.is_inexact_array)
    problem, x_tilde, solver, init = eqx.combine(_not_differentiable(floats), rest)
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    solution, saved = strategy.forward(problem, rows, solver, init)

    def row_loss(x: Array) -> Array:
        return loss(x.reshape(x_true.shape), x_true)

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


@jax.custom_jvp
def _not_differentiable(floats: Any) -> Any:
    """Return the floats; their derivative would be that of the iterations, so it is refused."""
    return floats


@_not_differentiable.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "hypergradient(...) must not be differentiated; got a derivative of its problem, x_tilde, "
        "solver or init: its gradient is its .grad, and hg.solve(...).x is made to be "
        "differentiated (for its value alone, hold its arguments by jax.lax.stop_gradient)"
    )


def throw_if_any_is_bad(h: Hypergradient) -> Hypergradient:
    """Return the hypergradient; running it raises if the status of a solve is not good."""
    h = throw_if_bad(h, h.solution.stats.status, "the forward solve")
    return throw_if_bad(h, h.adjoint.status, "the adjoint solve")
