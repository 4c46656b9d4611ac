"""The entry points of a hypergradient: with given settings, and to a target error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from hypergrad._foundation.checks import check_flag
from hypergrad._foundation.status import throw_if_bad
from hypergrad.bilevel.arguments import Data, prepare_hypergradient
from hypergrad.bilevel.losses import Loss, half_mean_squared_error
from hypergrad.bilevel.passes import compute_hypergradient
from hypergrad.bilevel.result import Hypergradient
from hypergrad.bilevel.target_error import check_target, to_target_error
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["hypergradient", "hypergradient_to_target"]


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
    return _throw_if_bad(h) if throw else h


def hypergradient_to_target(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    target_error: float,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    parameters: Callable[[LowerLevel], Any] | None = None,
    init: State | None = None,
    throw: bool = False,
) -> Hypergradient:
    """Compute a hypergradient whose relative error is certified to be at most `target_error`.

    Both solves continue in rounds, each from the end of the last one and to a tighter tolerance,
    until the bound on `|| grad - true ||` is at most `target_error ||grad||`.

    **Arguments**: as for `hypergradient`, `parameters` among them; `target_error`, between 0 and 1.
    `solver.iterations` is the maximum of all rounds together (checked between rounds). The rounds
    set the tolerances of the solver and of the strategy, which must have one:
    `LimitFormula(Tolerance())`.

    **Returns**: a `Hypergradient` with `error_bound`, and with a `TargetReport` as `chosen`.

    **Errors**: as for `hypergradient`; a `ValueError` for a strategy without a tolerance, and under
    `jit`. With `throw=True` a missed target raises, too.

    **Cost**: one program for all rounds; each round computes a bound (see `hypergradient`).

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_tilde, x_true = jnp.array([0.1, 1.0, 0.9]), jnp.array([0.0, 1.0, 1.0])
    >>> h = hg.hypergradient_to_target(problem, x_tilde, x_true, target_error=1e-3,
    ...     solver=hg.ChambollePock(1000), strategy=hg.LimitFormula(hg.Tolerance()))
    >>> h.chosen.status.label
    'converged'
    """
    problem, x_tilde, x_true, solver, init = prepare_hypergradient(
        problem, x_tilde, x_true, solver, strategy, loss, init
    )
    check_flag("throw", throw)
    wanted = None if parameters is None else select_leaves(problem, parameters, "parameters")
    check_target(target_error, strategy, x_tilde)
    h = to_target_error(
        problem, x_tilde, x_true, solver, strategy, loss, init,
        target_error=target_error, wanted=wanted,
    )  # fmt: skip
    if not throw:
        return h
    assert h.chosen is not None
    reached = jnp.asarray(int(h.chosen.status))
    return throw_if_bad(_throw_if_bad(h), reached, "reaching the target error")


def _throw_if_bad(h: Hypergradient) -> Hypergradient:
    h = throw_if_bad(h, h.solution.stats.status, "the forward solve")
    return throw_if_bad(h, h.adjoint.status, "the adjoint solve")
