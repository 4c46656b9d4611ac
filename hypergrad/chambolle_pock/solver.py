"""The solver: its settings, its step sizes for a problem, and a solve of one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hypergrad._foundation.checks import (
    as_inexact,
    check_count,
    check_fraction,
    check_number,
    describe,
    is_concrete,
)
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import where
from hypergrad.chambolle_pock.acceleration import AbstractAcceleration
from hypergrad.chambolle_pock.iteration import Iteration, ProxArguments, State, StepSizes
from hypergrad.chambolle_pock.residuals import SolverStats, certify, residual_of
from hypergrad.problem.lower_level import LowerLevel, stop_gradient
from hypergrad.problem.operators import Operator, apply, matrix_of, operator_norm

# How far the squared bound on a matrix-free norm may lie above the squared norm (margin, residual).
_LANCZOS_SLACK = 0.05

# With a tolerance, the optimality residual (two products) is checked once per so many iterations.
_CHECK_EVERY = 10


class Trace(eqx.Module):
    """The certificate of every iterate; entry `l - 1` of the first axis is iterate l per sample.

    `residual` and `gap` as in `SolverStats`; `objective`, `F(K x) + G(x - x_tilde)`. A sample that
    stopped before the others repeats what it stopped at.
    """

    residual: Float[Array, "L *batch"]
    gap: Float[Array, "L *batch"]
    objective: Float[Array, "L *batch"]


class Solution(eqx.Module):
    """The result of a solve: `x (..., n)`, `y (..., m)`, `stats`, and the last `state`.

    A later solve can start from `state`. `trace` is None unless it was asked for.
    """

    x: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]
    stats: SolverStats
    state: State
    trace: Trace | None = None


def _number_or_none(name: str, value: Any) -> Array | None:
    return None if value is None else as_inexact(value, name)


class ChambollePock(eqx.Module):
    """The Chambolle-Pock algorithm with a fixed number of iterations, or to a tolerance.

    **Arguments**: `iterations`, L (with a tolerance, the maximum); `tau`, `sigma`, step sizes with
    `tau sigma ||K||^2 <= 1` (those that are None follow from the operator norm); `theta`, the
    extrapolation (convergence is known for 1); `step_ratio`, dimensionless, and `primal_scale`, the
    size of r in the units of the data:

        sigma / tau = step_ratio (dual scale / primal scale)^2,     tau sigma ||K||^2 = 1

    with dual scale the weight of F (its median), primal scale the radius of G, else 1. Scaling
    data, weight and radius together then changes nothing. `tolerance`: each sample stops when its
    optimality residual is below it (checked every 10 iterations), so that a batch equals its
    samples. `acceleration`, a faster method (`RestartedHalpern()`) for all iterations but those
    that are differentiated.

    **Errors**: a `ValueError` for a setting out of range.

    **Cost**: 2 products with K per iteration, 2 more for the certificate; memory for one state.

    **Caveat**: for `theta != 1` convergence is not guaranteed; check the residual.

    **Source**: Chambolle & Pock 2011, Algorithm 1.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> solver = hg.ChambollePock(iterations=500, tolerance=1e-5)
    >>> x_tilde = jnp.array([0.0, 0.0, 1.0, 1.0])
    >>> x = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).x
    >>> [f"{value:.3f}" for value in x]
    ['0.050', '0.050', '0.950', '0.950']
    """

    iterations: int = eqx.field(static=True)
    tau: Float[Array, ""] | None
    sigma: Float[Array, ""] | None
    theta: Float[Array, ""]
    step_ratio: Float[Array, ""]
    primal_scale: Float[Array, ""] | None
    tolerance: Float[Array, ""] | None
    acceleration: AbstractAcceleration | None

    def __init__(
        self,
        iterations: int = 100,
        tau: float | Array | None = None,
        sigma: float | Array | None = None,
        theta: float | Array = 1.0,
        step_ratio: float | Array = 1.0,
        primal_scale: float | Array | None = None,
        tolerance: float | Array | None = None,
        acceleration: AbstractAcceleration | None = None,
    ):
        check_count("iterations", iterations)
        self.iterations = iterations
        self.tau = _number_or_none("tau", tau)
        self.sigma = _number_or_none("sigma", sigma)
        self.theta = as_inexact(theta, "theta")
        self.step_ratio = as_inexact(step_ratio, "step_ratio")
        self.primal_scale = _number_or_none("primal_scale", primal_scale)
        self.tolerance = _number_or_none("tolerance", tolerance)
        if acceleration is not None and not isinstance(acceleration, AbstractAcceleration):
            raise HypergradError(
                f"acceleration must be an AbstractAcceleration; got {describe(acceleration)}: pass "
                "hg.RestartedHalpern() or None"
            )
        self.acceleration = acceleration

    def __check_init__(self) -> None:
        check_fraction("theta", self.theta, "1 is the usual", zero_allowed=True, one_allowed=True)
        for name in ("tau", "sigma", "step_ratio", "primal_scale", "tolerance"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value)

    # ---- step sizes

    def step_sizes(self, problem: LowerLevel) -> StepSizes:
        """Return `tau`, `sigma`, `theta` of a problem; the norm of K is not differentiated."""
        if self.tau is not None and self.sigma is not None:
            return StepSizes(self.tau, self.sigma, self.theta)
        norm = operator_norm(stop_gradient(problem.K))
        if self.tau is not None:
            return StepSizes(self.tau, 1 / (self.tau * norm) / norm, self.theta)
        if self.sigma is not None:
            return StepSizes(1 / (self.sigma * norm) / norm, self.sigma, self.theta)
        scale_of_G = problem.G.primal_scale if self.primal_scale is None else self.primal_scale
        # An unknown or zero scale counts as 1.
        dual, primal = (
            jnp.ones((), problem.dtype) if scale is None else jnp.where(scale > 0, scale, 1.0)
            for scale in (problem.F.dual_scale, scale_of_G)
        )
        ratio = jax.lax.stop_gradient(dual / primal).astype(norm.dtype)
        root = jnp.sqrt(self.step_ratio) * ratio
        return StepSizes(1 / (norm * root), root / norm, self.theta)

    def with_step_sizes(self, problem: LowerLevel) -> ChambollePock:
        """Return the solver with the step sizes of this problem as its fields (one norm)."""
        tau, sigma, theta = self.step_sizes(problem)
        return eqx.tree_at(
            lambda solver: (solver.tau, solver.sigma, solver.theta),
            self,
            (tau, sigma, theta),
            is_leaf=lambda leaf: leaf is None,
        )

    def check_step_sizes(self, problem: LowerLevel) -> None:
        """Raise a `ValueError` if concrete steps given by hand are too long for the problem.

        Traced ones are not checked: the status of the solve shows the result.
        """
        if self.tau is None or self.sigma is None:
            return
        if not all(map(is_concrete, jax.tree.leaves((self.tau, self.sigma, problem.K)))):
            return
        # A jitted caller may close over a concrete K, but JAX would trace its norm.
        with jax.ensure_compile_time_eval():
            norm = float(_compiled_norm(problem.K))
        product = float(self.tau) * float(self.sigma) * norm**2
        # The norm is an upper bound (its margin), so 1 itself may come out a little above 1.
        slack = 1e-4 if matrix_of(problem.K) is not None else _LANCZOS_SLACK
        if product > 1 + slack:
            raise HypergradError(
                f"tau * sigma * ||K||^2 must be at most 1; got {product:.3g} (||K|| = {norm:.4g}): "
                "shorten the steps, or leave one of them out and it follows from the norm"
            )

    # ---- solves

    def on(self, problem: LowerLevel, x_tilde: Array) -> ForwardSolve:
        """Return the solve of a batch, with the step sizes of the problem."""
        return ForwardSolve(self, Iteration(problem, x_tilde, self.step_sizes(problem)))

    def start(self, problem: LowerLevel, x_tilde: Array, init: State | None = None) -> State:
        """Return `r = r_bar = 0`, `y = 0`; or the primal-dual part of an earlier state."""
        if init is not None:
            return State(init.r, init.r_bar, init.y)
        zero = jnp.zeros_like(x_tilde)
        return State(zero, zero, jnp.zeros((*x_tilde.shape[:-1], problem.m), x_tilde.dtype))

    def approach(
        self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, *, keep: int
    ) -> tuple[State, Array]:
        """Return the state after all iterations but the last `keep`, and their number."""
        return ForwardSolve(self, Iteration(problem, x_tilde, sizes)).run_all_but(keep, state)

    def certify(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        r: Array,
        y: Array,
        taken: Array,
    ) -> SolverStats:
        """Return the statistics of a pair, by this solver's tolerance (or the default one)."""
        return certify(Iteration(problem, x_tilde, sizes), r, y, taken, self.tolerance)

    def solution(
        self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, taken: Array
    ) -> Solution:
        """Return the last iterate with its statistics, after `taken` iterations per sample."""
        return ForwardSolve(self, Iteration(problem, x_tilde, sizes)).solution(state, taken)


class Run(NamedTuple):
    """The iterations of a solve: the last ones recorded, from the state `before` to `state`.

    `history` holds their prox arguments, `(record_last, ..., m or n)`; `taken`, the number of all
    iterations per sample.
    """

    before: State
    state: State
    history: ProxArguments
    taken: Int[Array, "*batch"]


class ForwardSolve(NamedTuple):
    """A solver on one batch: `solver.on(problem, x_tilde)`."""

    solver: ChambollePock
    iteration: Iteration

    def start(self, init: State | None = None) -> State:
        """Return the first state: see `ChambollePock.start`."""
        problem, x_tilde, _ = self.iteration
        return self.solver.start(problem, x_tilde, init)

    def solve(self, init: State | None = None) -> Solution:
        """Return the solution after all iterations."""
        run = self.run(init)
        return self.solution(run.state, run.taken)

    def run(self, init: State | None = None, *, record_last: int = 0) -> Run:
        """Run all iterations, of which JAX can differentiate the last `record_last` in reverse.

        With a tolerance: until every sample is within it, each frozen from then on, and
        `record_last` iterations more.
        """
        problem, x_tilde, _ = self.iteration
        start = self.solver.start(problem, x_tilde, init)
        before, taken = self.run_all_but(record_last, start)
        state, history = self.iteration.record(before, record_last)
        return Run(before, state, history, taken + record_last)

    def run_all_but(self, last: int, state: State) -> tuple[State, Int[Array, "*batch"]]:
        """Return the state before the `last` iterations of a run, and the number of the others."""
        count = self.solver.iterations - last
        if self.solver.tolerance is not None:
            tolerance = jax.lax.stop_gradient(self.solver.tolerance)
            return self._run_to_tolerance(state, count, last, tolerance)
        if count > 0:
            state = self.advance(state, count)
        return state, jnp.full(self.iteration.x_tilde.shape[:-1], count, jnp.int32)

    def advance(self, state: State, count: int | Array) -> State:
        """Return the state after `count >= 1` iterations, accelerated ones if the solver has any.

        The solver's number of iterations and tolerance are not used.
        """
        method = self.solver.acceleration
        if method is None:
            return self.iteration.repeat(state, count)
        iterate = method.begin(self.iteration, state)
        return method.state(method.advance(self.iteration, iterate, count))

    def solution(self, state: State, taken: Array) -> Solution:
        """Return the last iterate with its statistics, after `taken` iterations per sample."""
        stats = certify(self.iteration, state.r, state.y, taken, self.solver.tolerance)
        return Solution(self.iteration.x_tilde + state.r, state.y, stats, state)

    def trace(self, taken: Array, init: State | None = None) -> Trace:
        """Repeat the first `taken` iterations of each sample, with a certificate for each iterate.

        The iterates are those of the solver, whatever the strategy (for a strategy that averages
        them, the iterates and not the average).

        **Cost**: 5 products with K per iteration, 2 of them the iteration's; 3 L numbers per
        sample. Nothing once all samples have stopped.
        """
        (solver, iteration), init = stop_gradient((self, init))
        problem, x_tilde, _ = iteration

        def judge(state: State) -> Trace:
            stats = certify(iteration, state.r, state.y, taken, solver.tolerance)
            objective = problem.F(apply(problem.K, x_tilde + state.r)) + problem.G(state.r)
            return Trace(stats.residual, stats.gap, objective)

        def advance(carry: Any, running: Array):
            moved, _ = iteration.step(carry[0])
            state = where(running, moved, carry[0])
            return state, judge(state)

        def body(carry: Any, done: Array) -> Any:
            running = done < taken
            carry = jax.lax.cond(jnp.any(running), advance, lambda c, _: c, carry, running)
            return carry, carry[1]

        start = self.start(init)
        done = jnp.arange(solver.iterations, dtype=taken.dtype)
        return jax.lax.scan(body, (start, judge(start)), done)[1]

    def _run_to_tolerance(
        self, state: State, count: int, last: int, tolerance: Array
    ) -> tuple[State, Int[Array, "*batch"]]:
        """Run in bursts until each sample is within the tolerance, now and `last` iterations later.

        The pair that the caller returns is the later one, and a plain iteration can move a pair
        away from the solution. A sample that has arrived is frozen: others cannot move it.
        """
        iteration, method = self.iteration, self.solver.acceleration or _Plain()

        def burst(carry: Any) -> Any:
            iterate, taken, candidates, arrived, done = carry
            # The residual is most of the program, so it occurs once: samples that are within the
            # tolerance now are candidates, which the next burst checks `last` iterations later.
            ahead = jnp.any(candidates)
            state = jax.lax.cond(
                ahead,
                lambda state: iteration.repeat(state, last),
                lambda state: state,
                method.state(iterate),
            )
            residual = residual_of(iteration, state.r, state.y)
            # A sample that is no longer finite will not arrive, so nothing waits for it.
            within = (residual <= tolerance) | ~jnp.isfinite(residual)
            arrived = arrived | (within & candidates if last else within)
            candidates = within & ~arrived & ~ahead
            length = jnp.minimum(_CHECK_EVERY, count - done)
            length = jnp.where(jnp.all(arrived) | jnp.any(candidates), 0, length)

            def advance(iterate: Any) -> Any:
                return where(arrived, iterate, method.advance(iteration, iterate, length))

            iterate = jax.lax.cond(length > 0, advance, lambda iterate: iterate, iterate)
            done = done + length
            return iterate, jnp.where(arrived, taken, done), candidates, arrived, done

        def unfinished(carry: Any):
            *_, arrived, done = carry
            return ~jnp.all(arrived) & (done < count)

        taken = jnp.zeros(iteration.x_tilde.shape[:-1], jnp.int32)
        none = taken > 0
        carry = (method.begin(iteration, state), taken, none, none, jnp.zeros((), jnp.int32))
        iterate, taken, *_ = jax.lax.while_loop(unfinished, burst, carry)
        return method.state(iterate), taken


@compiled
def _compiled_norm(K: Operator) -> Array:
    return operator_norm(K)


class _Plain(AbstractAcceleration):
    """The plain iteration."""

    def begin(self, iteration: Iteration, state: State) -> State:
        return state

    def advance(self, iteration: Iteration, iterate: State, count: int | Array) -> State:
        return iteration.repeat(iterate, count)

    def state(self, iterate: State) -> State:
        return iterate
