"""`solve`: an ordinary differentiable function, its derivatives by a strategy."""

from __future__ import annotations

from typing import Any

import jax

from hypergrad._foundation.checks import check_flag
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.status import throw_if_bad
from hypergrad.bilevel.arguments import (
    Data,
    check_compatible,
    flatten_batch,
    prepare,
    restore_batch,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel, stop_gradient
from hypergrad.strategies._base import AbstractStrategy


def solve(
    problem: LowerLevel,
    x_tilde: Data,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    init: State | None = None,
    throw: bool = False,
    trace: bool = False,
) -> Solution:
    """Solve the lower level, differentiably: the strategy decides how derivatives are taken.

        x_hat = argmin_x F(K x) + G(x - x_tilde)

    An ordinary JAX function: `jit`, `grad` and `vmap` go through it, to every float leaf of the
    problem, to `x_tilde` and to the float fields of the solver. Leading axes of `x_tilde` are a
    batch; prefer them to `vmap`, under which the gradient in K is formed sample by sample.

    **Arguments**: `x_tilde (..., n)`; `init`, the state of an earlier solve to start from (a
    constant when differentiating); `throw=True` raises, also under `jit`, where the status is bad;
    `trace=True` also gives the residual, gap and objective of every iterate (not with `Exact`,
    whose iterates are not the solver's).

    **Returns**: a `Solution` with `x (..., n)`, `y (..., m)`, `stats` and `state`; derivatives flow
    through `x` and `y`. Its `trace` is a `Trace`, or None without one.

    **Cost**: that of the strategy's solve. A trace is a second pass over the iterations, with a
    certificate for each: about 2.5 solves more; nothing where it is not asked for.

    **Errors**: a `ValueError` for wrong shapes, NaN, an empty batch, step sizes that are too long,
    or a strategy that does not go with the solver.

    >>> import hypergrad as hg, jax, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> f = lambda p: hg.solve(p, jnp.array([0.0, 1.0, 1.0]), strategy=hg.FullUnrolling()).x.sum()
    >>> jax.grad(f)(problem).K.shape
    (2, 3)
    """
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    check_compatible(strategy, solver)
    check_flag("throw", throw)
    check_flag("trace", trace)
    if trace:
        strategy.check_trace(solver)
    solution = _solve_jit((problem, x_tilde, solver), strategy, init, trace)
    if throw:
        solution = throw_if_bad(solution, solution.stats.status, "the forward solve")
    return solution


@compiled
def _solve_jit(
    arguments: Any, strategy: AbstractStrategy, init: State | None, trace: bool
) -> Solution:
    problem, x_tilde, solver = arguments
    batch = x_tilde.shape[:-1]
    rows, row_init = flatten_batch((x_tilde, stop_gradient(init)), batch)
    solution = strategy.solve(problem, rows, solver, row_init)
    # Only x and y carry derivatives: the rest describes the solve.
    described = jax.lax.stop_gradient((solution.stats, solution.state))
    solution = restore_batch(Solution(solution.x, solution.y, *described), batch)
    if not trace:
        return solution
    traced = solver.on(problem, x_tilde).trace(solution.stats.iterations, init)
    return Solution(solution.x, solution.y, solution.stats, solution.state, traced)
