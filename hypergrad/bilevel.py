"""The two entry points: `solve`, an ordinary differentiable function, and `hypergradient`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypergrad._checks import as_inexact, check_finite, is_concrete
from hypergrad.adjoint import AdjointStats, Cotangent, Tangents
from hypergrad.chambolle_pock import AdjointPair, ChambollePock, Solution, State
from hypergrad.error_bound import ErrorBound, ReturnedPair, bound_error
from hypergrad.lower_level import LowerLevel, cast_floats
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractDifferentiableStrategy, AbstractStrategy

__all__ = [
    "Chosen",
    "Hypergradient",
    "OnSamples",
    "half_mean_squared_error",
    "hypergradient",
    "solve",
]

Loss = Callable[[Array, Array], Array]
Data = Float[Array, "..."] | Float[np.ndarray, "..."]


def half_mean_squared_error(
    x: Float[Array, "*batch n"], x_true: Float[Array, "*batch n"]
) -> Float[Array, ""]:
    """`0.5 ||x - x_true||^2`, summed over the last axis and averaged over the batch.

    >>> print(half_mean_squared_error(jnp.ones((3, 4)), jnp.zeros((3, 4))))
    2.0
    """
    return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))


class OnSamples(eqx.Module):
    """A loss with its full value, but whose gradient is that of the chosen samples alone."""

    loss: Loss
    chosen: Bool[Array, "*batch"]

    def __call__(self, x: Array, x_true: Array) -> Array:
        return self.loss(jnp.where(self.chosen[..., None], x, jax.lax.stop_gradient(x)), x_true)


class Chosen(eqx.Module):
    """What `hypergradient(..., target_error=...)` chose, and whether it was enough.

    `iterations` and `steps` `(...)`: those of the forward and the adjoint solve, a sample, over all
    `rounds`; `tolerance` and `rtol`, where the last round stopped the two; `status`: CONVERGED (the
    target was reached), ITERATIONS_USED_UP or, at the end of the precision, NOT_CERTIFIED.
    """

    iterations: Int[Array, "*batch"]
    steps: Int[Array, "*batch"]
    tolerance: Float[Array, ""]
    rtol: Float[Array, ""]
    rounds: int = eqx.field(static=True)
    status: Status = eqx.field(static=True)

    def __repr__(self) -> str:
        reached = "target reached" if self.status.is_good else "target not reached"
        return (
            f"Chosen({reached}, {self.status.label}; at most {int(jnp.max(self.iterations))} "
            f"iterations and {int(jnp.max(self.steps))} adjoint steps in {self.rounds} rounds; "
            f"tolerance={float(self.tolerance):.1e}, rtol={float(self.rtol):.1e})"
        )


class Hypergradient(eqx.Module):
    """Everything about one hypergradient.

    `value`, the loss; `grad`, its gradient in the structure of the problem (`h.grad.K`,
    `h.grad.F.weight`); `grad_x_tilde (..., n)`; `grad_solver`, in the structure of the solver
    (`tau`, `sigma`, `theta`; zero for strategies whose limit does not depend on them); `solution`,
    with its `stats`; `adjoint`, how the backward solve went; `state`, where the
    forward and (where the strategy has one) the adjoint solve ended: `init` of a next call;
    `error_bound`, where it was asked for, and `chosen`, where a target error was.
    """

    value: Float[Array, ""]
    grad: LowerLevel
    grad_x_tilde: Float[Array, "*batch n"]
    grad_solver: ChambollePock
    solution: Solution
    adjoint: AdjointStats
    state: State
    error_bound: ErrorBound | None = None
    chosen: Chosen | None = None

    def __repr__(self) -> str:
        if not is_concrete(self.value):
            return "Hypergradient(<traced>)"
        lines = [
            f"value={float(self.value):.6g}",
            f"  forward={self.solution.stats}",
            f"  adjoint={self.adjoint}",
        ]
        if self.error_bound is not None:
            lines.append(f"  error_bound={self.error_bound}")
        if self.chosen is not None:
            lines.append(f"  chosen={self.chosen}")
        inside = ",\n".join(lines)
        return f"Hypergradient({inside})"


# ------------------------------------------------------------------------------ entry checks


def check_strategy(strategy: Any, solver: ChambollePock) -> None:
    """Refuse what is no strategy, or does not go with the solver."""
    if not isinstance(strategy, AbstractStrategy):
        raise ValueError(
            f"strategy must be a hypergrad strategy; got {strategy!r}: use for example "
            "hg.Truncation(k=1)"
        )
    strategy.check(solver)


def prepare(
    problem: LowerLevel, x_tilde: Any, solver: ChambollePock, init: State | None
) -> tuple[LowerLevel, Array, ChambollePock, State | None]:
    """Check what can be checked, and cast everything to one dtype."""
    x_tilde = as_inexact(x_tilde)
    _check_batch("x_tilde", x_tilde, problem.n)
    solver.check_step_sizes(problem)
    dtype = jnp.result_type(problem.dtype, x_tilde.dtype)
    if init is not None:
        _check_init(init, problem, x_tilde)
    return cast_floats((problem, x_tilde, solver, init), dtype)


def _check_batch(name: str, x: Array, n: int) -> None:
    if x.ndim == 0 or x.shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (..., {n}), the columns of K last; got {x.shape}: "
            "reshape each sample to a vector"
        )
    if x.size == 0:
        raise ValueError(f"{name} must hold at least one sample; got shape {x.shape}")
    check_finite(name, x)


def prepare_truth(x_true: Any, x_tilde: Array) -> Array:
    """`x_true` in the shape and the dtype of `x_tilde`."""
    x_true = jnp.asarray(x_true, x_tilde.dtype)
    if x_true.shape != x_tilde.shape:
        raise ValueError(
            f"x_true must have the shape of x_tilde, {x_tilde.shape}; got {x_true.shape}"
        )
    check_finite("x_true", x_true)
    return x_true


def _check_init(init: State, problem: LowerLevel, x_tilde: Array) -> None:
    batch = x_tilde.shape[:-1]
    primal, dual = (*batch, problem.n), (*batch, problem.m)
    expected, names = (primal, primal, dual), "r, r_bar, y"
    if init.adjoint is not None:
        expected, names = (*expected, primal, dual), f"{names}, Delta_P, Delta_D"
    got = tuple(leaf.shape for leaf in jax.tree.leaves(init))
    if got != expected:
        raise ValueError(
            f"init must have shapes {expected} ({names}); got {got}: use the state of a solve of "
            "the same batch"
        )


def flatten_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """Leading axes to one."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(batch) :]), tree)


def restore_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """One leading axis back to what it was."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), tree)


_GOOD = np.array([status.value for status in Status if status.is_good], np.int32)


def _throw_if_bad(tree: Any, status: Array, what: str) -> Any:
    """The same tree; running it raises if a status is not good."""
    bad = ~jnp.isin(status, _GOOD)
    return eqx.error_if(
        tree, bad, f"{what} did not succeed for every sample: call with throw=False and see stats"
    )


# -------------------------------------------------------------------------------------- solve


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
    `trace=True` also gives the residual, gap and objective of every iterate.

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
    solver = ChambollePock() if solver is None else solver
    check_strategy(strategy, solver)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    solution = _solve_jit((problem, x_tilde, solver), strategy, init, trace)
    if throw:
        solution = _throw_if_bad(solution, solution.stats.status, "the forward solve")
    return solution


@eqx.filter_jit
def _solve_jit(arguments, strategy: AbstractStrategy, init: State | None, trace: bool) -> Solution:
    problem, x_tilde, solver = arguments
    batch = x_tilde.shape[:-1]
    rows, row_init = flatten_batch((x_tilde, init), batch)
    solution = _solve_differentiably(problem, rows, solver, strategy, row_init)
    # Only x and y carry derivatives: the rest describes the solve.
    described = jax.lax.stop_gradient((solution.stats, solution.state))
    solution = restore_batch(Solution(solution.x, solution.y, *described), batch)
    if not trace:
        return solution
    traced = solver.trace(problem, x_tilde, solution.stats.iterations, init)
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
        held = jax.lax.stop_gradient((problem, x_tilde, solver))
        solution, residuals = strategy.forward(*held, init)
        given = (problem, x_tilde)
        x, y = _with_derivatives(given, strategy, residuals, (solution.x, solution.y))
        return Solution(x, y, solution.stats, solution.state)
    if isinstance(strategy, AbstractDifferentiableStrategy):
        return strategy.run(problem, x_tilde, solver, init)
    return _solve_rule((problem, x_tilde, solver), strategy, init)  # pyright: ignore[reportCallIssue]


@eqx.filter_custom_jvp
def _with_derivatives(arguments, strategy: AbstractStrategy, residuals, solved):
    """`solved`, which is differentiated as what `strategy` made of the arguments."""
    del arguments, strategy, residuals
    return solved


@_with_derivatives.def_jvp
def _push_forward(primals, tangents):
    arguments, strategy, residuals, solved = primals

    def materialise(tangent, primal):
        if tangent is None and eqx.is_inexact_array(primal):
            return jnp.zeros_like(primal)
        return tangent

    given = jax.tree.map(materialise, tangents[0], arguments, is_leaf=lambda t: t is None)
    return solved, tuple(strategy.pushforward(residuals, Tangents(*given)))


@eqx.filter_custom_vjp
def _solve_rule(arguments, strategy: AbstractStrategy, init: State | None) -> Solution:
    problem, x_tilde, solver = arguments
    return strategy.forward(problem, x_tilde, solver, init)[0]


@_solve_rule.def_fwd
def _solve_forward(perturbed, arguments, strategy, init):
    del perturbed
    problem, x_tilde, solver = arguments
    solution, residuals = strategy.forward(problem, x_tilde, solver, init)
    return solution, (residuals, Cotangent(solution.x, solution.y))


@_solve_rule.def_bwd
def _solve_backward(kept, solution_bar, perturbed, arguments, strategy, init):
    del perturbed, arguments, init
    residuals, output = kept
    given = Cotangent(solution_bar.x, solution_bar.y)
    cotangent = Cotangent(
        *(jnp.zeros_like(o) if c is None else c for o, c in zip(output, given, strict=True))
    )
    gradients = strategy.pullback(residuals, cotangent)
    return gradients.problem, gradients.x_tilde, gradients.solver


# ------------------------------------------------------------------------------ hypergradient


def hypergradient(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
    throw: bool = False,
    error_bound: bool = False,
    target_error: float | None = None,
) -> Hypergradient:
    """One hypergradient and everything about it: value, gradient, solution, how both solves went.

        value = loss(x_hat, x_true),    grad = d value / d problem

    **Arguments**: as for `solve`; `x_true (..., n)`; `loss(x, x_true)`, a scalar for the whole
    batch (a new function object is compiled anew: define it once, outside a loop).
    `error_bound=True` also gives a bound on `|| grad - true ||`, the distance from the gradient at
    the true argmin, for any strategy: an `ErrorBound`. `target_error`, relative to `||grad||`: both
    solves are gone on with, each round from where the last one ended, until the bound is below it;
    `chosen` says what that took. Then `solver.iterations` is the most of all rounds together (it is
    looked at between rounds), a tolerance of the solver and the `rtol` of the strategy are
    replaced, and the strategy must have one: `LimitFormula(Tolerance())`.

    **Returns**: a `Hypergradient`.

    **Errors**: as for `solve`. With `throw=True` a bad status of either solve raises (an adjoint
    that was cut off on purpose, a truncation, has one, too), and so does a missed target. A
    `ValueError` for a target error with a strategy that has no tolerance.

    **Cost**: by strategy, see `hypergrad strategies`. The bound: up to 5 factorisations of
    `m n^2 + n^3 / 3` a sample, about 20 solves with the last; where K is no matrix, or a sample of
    a smooth problem is left over, up to 5 solves by CGLS with 4 products a step. With a target: one
    program for all rounds, and in each a bound.

    **Caveat**: the bound is one where every sample is certified, and infinite where one is not: its
    `certified` says which (a kink too near, GroupL1, L2Ball). A singular system never is, since
    there the gradient is one of several. For float64. A loss other than the default is taken to be
    twice differentiable. The bound rests on a gradient that is better than the one it judges: where
    it is wanted at every step, `Exact` is the cheaper way to be sure.

    **Source**: `hypergrad.error_bound` has the mathematics.

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
    """
    solver = ChambollePock() if solver is None else solver
    check_strategy(strategy, solver)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    x_true = prepare_truth(x_true, x_tilde)
    if target_error is None:
        h = _hypergradient_jit(
            problem, x_tilde, x_true, solver, strategy, loss, init, error_bound=error_bound
        )
    else:
        _check_target(target_error, strategy, x_tilde)
        h = _to_target_error(
            problem, x_tilde, x_true, solver, strategy, loss, init, target_error=target_error
        )
    if throw:
        h = _throw_if_bad(h, h.solution.stats.status, "the forward solve")
        h = _throw_if_bad(h, h.adjoint.status, "the adjoint solve")
        if h.chosen is not None:
            h = _throw_if_bad(h, jnp.asarray(int(h.chosen.status)), "reaching the target error")
    return h


@eqx.filter_jit
def _hypergradient_jit(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    init: State | None,
    *,
    error_bound: bool = False,
) -> Hypergradient:
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    solution, residuals = strategy.forward(problem, rows, solver, init)

    def row_loss(x: Array) -> Array:
        return loss(x.reshape(x_true.shape), x_true)

    value, g = jax.value_and_grad(row_loss)(solution.x)
    no_y = jnp.zeros_like(solution.y)
    gradients = strategy.pullback(residuals, Cotangent(g, no_y))
    grad, grad_x_tilde, grad_solver, stats, pair = gradients

    bound = None
    if error_bound:

        def pullback(chosen: Array) -> LowerLevel:
            return strategy.pullback(
                residuals, Cotangent(jnp.where(chosen[:, None], g, 0.0), no_y)
            ).problem

        # The default loss is a mean of squares: its second derivative is 1 / batch.
        smoothness = 1 / len(rows) if loss is half_mean_squared_error else None
        sizes = solver.step_sizes(problem)
        returned = ReturnedPair(problem, rows, sizes, solution.x, solution.y)
        bound = bound_error(returned, grad, pullback, jax.grad(row_loss), smoothness=smoothness)
        certified = restore_batch(bound.certified, batch)
        bound = ErrorBound(bound.total, bound.grad, certified, bound.on_certified)

    forward = solution.state
    state = State(forward.r, forward.r_bar, forward.y, pair)
    solution, grad_x_tilde, stats, state = restore_batch(
        (solution, grad_x_tilde, stats, state), batch
    )
    return Hypergradient(
        value, grad, grad_x_tilde, grad_solver, solution, stats, state, error_bound=bound
    )


# -------------------------------------------------------------------------- to a target error

# How far both tolerances come down from one round to the next: as far as the bound says that it
# takes, with a little to spare, but no further than a linear extrapolation can be trusted.
_LEAST_TIGHTENING, _MOST_TIGHTENING, _SPARE = 0.1, 1e-3, 0.3


def _check_target(target_error: float, strategy: AbstractStrategy, x_tilde: Array) -> None:
    if not 0 < target_error < 1:
        raise ValueError(f"target_error must lie between 0 and 1; got {target_error}: try 1e-6")
    if not is_concrete(x_tilde):
        raise ValueError(
            "target_error must be used outside jit, since the bound decides how to go on; got "
            "traced data: call hypergradient itself, its rounds are compiled"
        )
    if strategy.with_tolerance(jnp.asarray(target_error, x_tilde.dtype)) is None:
        raise ValueError(
            f"target_error must have a strategy with a tolerance; got {strategy.label}: pass "
            "hg.LimitFormula(hg.Tolerance())"
        )


def _size(tree: Any) -> float:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves)))


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
) -> Hypergradient:
    """Rounds of both solves, each to a tighter tolerance, until the bound is small enough."""
    batch, dtype = x_tilde.shape[:-1], x_tilde.dtype
    finest = 64 * float(jnp.finfo(dtype).eps)  # below it a residual may never fall
    tolerance = rtol = max(target_error**0.5, finest)
    iterations = steps = jnp.zeros(batch, jnp.int32)
    state, rounds = _with_adjoint(solver.start(problem, x_tilde, init), init), 0
    while True:
        levels = jnp.asarray(tolerance, dtype), jnp.asarray(rtol, dtype)
        stopping, driven = _stopped_at(solver, strategy, *levels)
        h = _hypergradient_jit(
            problem, x_tilde, x_true, stopping, driven, loss, state, error_bound=True
        )
        assert h.error_bound is not None
        rounds, state = rounds + 1, h.state
        iterations, steps = iterations + h.solution.stats.iterations, steps + h.adjoint.steps
        bound, target = float(h.error_bound.total), target_error * _size(h.grad)
        status = _how_it_stands(
            bound <= target, min(tolerance, rtol) <= finest, iterations, solver.iterations
        )
        if status is not None:
            chosen = Chosen(iterations, steps, *levels, rounds, status)
            return eqx.tree_at(lambda h: h.chosen, h, chosen, is_leaf=lambda leaf: leaf is None)
        if not np.isfinite(bound):  # the forward solve is not near enough, whatever the adjoint
            tolerance = max(_LEAST_TIGHTENING * tolerance, finest)
            continue
        tightening = max(_MOST_TIGHTENING, min(_LEAST_TIGHTENING, _SPARE * target / bound))
        tolerance, rtol = max(tightening * tolerance, finest), max(tightening * rtol, finest)


def _stopped_at(
    solver: ChambollePock, strategy: AbstractStrategy, tolerance: Array, rtol: Array
) -> tuple[ChambollePock, AbstractStrategy]:
    """The two with their tolerances, as arrays: other numbers are not another program."""
    solver = eqx.tree_at(
        lambda s: s.tolerance, solver, tolerance, is_leaf=lambda leaf: leaf is None
    )
    driven = strategy.with_tolerance(rtol)
    assert driven is not None  # it was checked
    return solver, driven


def _how_it_stands(reached: bool, precise: bool, iterations: Array, most: int) -> Status | None:
    """Why the rounds end here; None if they do not."""
    if reached:
        return Status.CONVERGED
    if int(jnp.max(iterations)) >= most:
        return Status.ITERATIONS_USED_UP
    return Status.NOT_CERTIFIED if precise else None


def _with_adjoint(start: State, init: State | None) -> State:
    """A start with an adjoint part, 0 where there is none: then all rounds are one program."""
    if init is not None and init.adjoint is not None:
        return State(start.r, start.r_bar, start.y, init.adjoint)
    nothing = AdjointPair(jnp.zeros_like(start.r), jnp.zeros_like(start.y))
    return State(start.r, start.r_bar, start.y, nothing)
