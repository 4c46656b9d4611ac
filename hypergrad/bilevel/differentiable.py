"""`solve`: an ordinary differentiable function, its derivatives by a strategy."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._foundation.checks import check_flag
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.status import throw_if_bad
from hypergrad.adjoint import Cotangent, SolvedPair, Tangents
from hypergrad.bilevel.arguments import (
    Data,
    check_trace,
    flatten_batch,
    prepare_solve,
    restore_batch,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel, stop_gradient
from hypergrad.strategies._base import AbstractDifferentiableStrategy, AbstractStrategy

__all__ = ["solve"]


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

    **Arguments**: `x_tilde (..., n)`; `init`, the state of an earlier solve to start from (held
    fixed when differentiating); `throw=True` raises, also under `jit`, where the status is bad;
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
    problem, x_tilde, solver, init = prepare_solve(problem, x_tilde, solver, strategy, init)
    check_flag("throw", throw)
    check_trace(trace, strategy, solver)
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
    solution = _solve_differentiably(problem, rows, solver, strategy, row_init)
    # Only x and y carry derivatives: the rest describes the solve.
    described = jax.lax.stop_gradient((solution.stats, solution.state))
    solution = restore_batch(Solution(solution.x, solution.y, *described), batch)
    if not trace:
        return solution
    traced = solver.on(problem, x_tilde).trace(solution.stats.iterations, init)
    return Solution(solution.x, solution.y, solution.stats, solution.state, traced)


def _solve_differentiably(
    problem: LowerLevel,
    x_tilde: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    init: State | None,
) -> Solution:
    """By whatever the strategy gives: a pushforward (both modes), plain JAX, or a pullback."""
    if strategy.has_pushforward:
        # The solve itself is not differentiated; its result gets its derivatives afterwards.
        fixed, fixed_x_tilde, fixed_solver = stop_gradient((problem, x_tilde, solver))
        solution, residuals = strategy.forward(fixed, fixed_x_tilde, fixed_solver, init)
        given = (problem, x_tilde)
        x, y = _with_derivatives(given, strategy, residuals, (solution.x, solution.y))
        return Solution(x, y, solution.stats, solution.state)
    if isinstance(strategy, AbstractDifferentiableStrategy):
        return strategy.solved(problem, x_tilde, solver, init)
    return _solve_rule((problem, x_tilde, solver), strategy, init)  # pyright: ignore[reportCallIssue]


@eqx.filter_custom_jvp
def _with_derivatives(
    arguments: Any, strategy: AbstractStrategy, residuals: Any, solved: Any
) -> Any:
    """`solved`, which is differentiated as what `strategy` made of the arguments."""
    del arguments, strategy, residuals
    return solved


@_with_derivatives.def_jvp
def _push_forward(primals: Any, tangents: Any) -> Any:
    arguments, strategy, residuals, solved = primals

    def materialise(tangent: Any, primal: Any) -> Any:
        if tangent is None and eqx.is_inexact_array(primal):
            return jnp.zeros_like(primal)
        return tangent

    given = jax.tree.map(materialise, tangents[0], arguments, is_leaf=lambda t: t is None)
    # By itself, so that x and y are differentiated in the next derivative.
    solved = _with_derivatives(arguments, strategy, residuals, solved)
    pair = SolvedPair(*arguments, *solved)
    return solved, tuple(strategy.pushforward(residuals, pair, Tangents(*given)))


@eqx.filter_custom_vjp
def _solve_rule(arguments: Any, strategy: AbstractStrategy, init: State | None) -> Solution:
    problem, x_tilde, solver = arguments
    return strategy.forward(problem, x_tilde, solver, init)[0]


@_solve_rule.def_fwd
def _solve_forward(
    perturbed: Any, arguments: Any, strategy: AbstractStrategy, init: State | None
) -> Any:
    del perturbed
    problem, x_tilde, solver = arguments
    solution, residuals = strategy.forward(problem, x_tilde, solver, init)
    return solution, (residuals, Cotangent(solution.x, solution.y))


@_solve_rule.def_bwd
def _solve_backward(
    kept: Any, solution_bar: Any, perturbed: Any, arguments: Any, strategy: Any, init: Any
) -> Any:
    del perturbed, arguments, init
    residuals, output = kept
    given = (solution_bar.x, solution_bar.y)
    cotangent = Cotangent(
        *(jnp.zeros_like(o) if c is None else c for o, c in zip(output, given, strict=True))
    )
    gradients = strategy.pullback(residuals, cotangent)
    return gradients.problem, gradients.x_tilde, gradients.solver
