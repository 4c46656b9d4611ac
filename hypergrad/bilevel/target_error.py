"""A hypergradient to a target error: rounds of both solves until the bound is small enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.checks import check_flag, check_fraction, is_concrete
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.status import Status, throw_if_bad
from hypergrad.bilevel.arguments import (
    Data,
    Loss,
    half_mean_squared_error,
    prepare_hypergradient,
)
from hypergrad.bilevel.hypergradients import compute_hypergradient, throw_if_any_is_bad
from hypergrad.bilevel.result import Hypergradient, TargetReport
from hypergrad.chambolle_pock import AdjointPair, ChambollePock, State
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.strategies._base import AbstractStrategy

# The factor of both tolerances from one round to the next follows from the bound, with a little to
# spare, within the range in which a linear extrapolation can be trusted.
_LEAST_TIGHTENING, _MOST_TIGHTENING, _SPARE = 0.1, 1e-3, 0.3


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
    _check_target(target_error, strategy, x_tilde)
    h = _to_target_error(
        problem, x_tilde, x_true, solver, strategy, loss, init,
        target_error=target_error, wanted=wanted,
    )  # fmt: skip
    if not throw:
        return h
    assert h.chosen is not None
    reached = jnp.asarray(int(h.chosen.status))
    return throw_if_bad(throw_if_any_is_bad(h), reached, "reaching the target error")


def _check_target(target_error: float, strategy: AbstractStrategy, x_tilde: Array) -> None:
    """Refuse a target that no round can reach."""
    check_fraction("target_error", target_error, "try 1e-6")
    if not is_concrete(x_tilde):
        raise HypergradError(
            "target_error must be used outside jit, since the bound decides how to continue; got "
            "traced data: call hypergradient_to_target itself, its rounds are compiled"
        )
    if strategy.with_tolerance(jnp.asarray(target_error, x_tilde.dtype)) is None:
        raise HypergradError(
            f"target_error must have a strategy with a tolerance; got {strategy.label}: pass "
            "hg.LimitFormula(hg.Tolerance())"
        )


def _size(tree: Any) -> float:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in leaves)))


def _to_target_error(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    init: State | None,
    *,
    target_error: float,
    wanted: LowerLevel | None,
) -> Hypergradient:
    """Repeat both solves, each to a tighter tolerance, until the bound is small enough."""
    batch, dtype = x_tilde.shape[:-1], x_tilde.dtype
    finest = 64 * float(jnp.finfo(dtype).eps)  # below it a residual may never fall
    tolerance = rtol = max(target_error**0.5, finest)
    iterations = steps = jnp.zeros(batch, jnp.int32)
    state, rounds = _with_adjoint(solver.start(problem, x_tilde, init), init), 0
    while True:
        levels = jnp.asarray(tolerance, dtype), jnp.asarray(rtol, dtype)
        stopping, driven = _stopped_at(solver, strategy, *levels)
        h = compute_hypergradient(
            problem, x_tilde, x_true, stopping, driven, loss, state,
            error_bound=True, wanted=wanted,
        )  # fmt: skip
        assert h.error_bound is not None
        assert h.adjoint.steps is not None  # what stops by a tolerance counts them
        rounds, state = rounds + 1, h.state
        iterations, steps = iterations + h.solution.stats.iterations, steps + h.adjoint.steps
        bound, target = float(h.error_bound.total), target_error * _size(h.grad)
        status = _final_status(
            bound <= target,
            min(tolerance, rtol) <= finest,
            bool(jnp.any(iterations >= solver.iterations)),
            h.solution.stats.status,
        )
        if status is not None:
            chosen = TargetReport(iterations, steps, *levels, rounds, status)
            return eqx.tree_at(lambda h: h.chosen, h, chosen, is_leaf=lambda leaf: leaf is None)
        if not np.isfinite(bound):  # the forward solve is not near enough, whatever the adjoint
            tolerance = max(_LEAST_TIGHTENING * tolerance, finest)
            continue
        tightening = max(_MOST_TIGHTENING, min(_LEAST_TIGHTENING, _SPARE * target / bound))
        tolerance, rtol = max(tightening * tolerance, finest), max(tightening * rtol, finest)


def _stopped_at(
    solver: ChambollePock, strategy: AbstractStrategy, tolerance: Array, rtol: Array
) -> tuple[ChambollePock, AbstractStrategy]:
    """Return both with their tolerances, as arrays: other numbers are not another program."""
    solver = eqx.tree_at(
        lambda s: s.tolerance, solver, tolerance, is_leaf=lambda leaf: leaf is None
    )
    driven = strategy.with_tolerance(rtol)
    assert driven is not None  # checked by _check_target
    return solver, driven


def _final_status(reached: bool, precise: bool, used_up: bool, forward: Array) -> Status | None:
    """Return the status if this round is the last one, else None."""
    if reached:
        return Status.CONVERGED
    if used_up:
        # More iterations would not help a solve that rounding has stopped.
        stopped = jnp.any(forward == Status.ROUNDING) & ~jnp.any(
            forward == Status.ITERATIONS_USED_UP
        )
        return Status.ROUNDING if bool(stopped) else Status.ITERATIONS_USED_UP
    return Status.NOT_CERTIFIED if precise else None


def _with_adjoint(start: State, init: State | None) -> State:
    """Return a start with an adjoint part, by default 0, so that all rounds are one program."""
    if init is not None and init.adjoint is not None:
        return State(start.r, start.r_bar, start.y, init.adjoint)
    zero = AdjointPair(jnp.zeros_like(start.r), jnp.zeros_like(start.y))
    return State(start.r, start.r_bar, start.y, zero)
