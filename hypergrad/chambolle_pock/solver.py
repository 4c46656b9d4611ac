"""The solver: its step sizes for a problem, its iterations, and what a solve returns."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
from hypergrad.chambolle_pock.certificate import SolverStats, certify, residual_of
from hypergrad.chambolle_pock.iteration import State, StepSizes, run, step
from hypergrad.problem.lower_level import LowerLevel, stop_gradient
from hypergrad.problem.operators import Operator, apply, matrix_of, operator_norm

__all__ = ["ChambollePock", "Solution", "Trace"]

# How far the squared bound on a matrix-free norm may lie above the squared norm (margin, residual).
_LANCZOS_SLACK = 0.05

# With a tolerance, the optimality residual (two products) is looked at once in so many iterations.
_CHECK_EVERY = 10


class Trace(eqx.Module):
    """Every iterate judged: entry `l - 1` along the first axis is iterate l of each sample.

    `residual` and `gap` as in `SolverStats`; `objective`, `F(K x) + G(x - x_tilde)`. A sample that
    stopped before the others repeats what it stopped at.
    """

    residual: Float[Array, "L *batch"]
    gap: Float[Array, "L *batch"]
    objective: Float[Array, "L *batch"]


class Solution(eqx.Module):
    """What a solve returns: `x (..., n)`, `y (..., m)`, `stats`, and the `state` to go on from.

    `trace`, where it was asked for, is how the iterates came there.
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

    **Arguments**: `iterations`, L (with a tolerance, the most it takes); `tau`, `sigma`, step sizes
    with `tau sigma ||K||^2 <= 1` (where one or both are not given they follow from the operator
    norm); `theta`, the extrapolation (convergence is known for 1); `step_ratio`, dimensionless, and
    `primal_scale`, the size of r in the units of the data:

        sigma / tau = step_ratio (dual scale / primal scale)^2,     tau sigma ||K||^2 = 1

    with dual scale the weight of F (its median), primal scale the radius of G, else 1. Scaling
    data, weight and radius together then changes nothing. `tolerance`: each sample stops when its
    optimality residual is below it (looked at every 10 iterations), so that a batch equals its
    samples. `acceleration`, another way to the same solution (`RestartedHalpern()`) for all
    iterations but those that are differentiated.

    **Errors**: a `ValueError` for a setting out of range.

    **Cost**: 2 products with K an iteration, 2 more for the certificate; memory for one state.

    **Caveat**: for `theta != 1` convergence is not guaranteed; the residual tells.

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
                f"acceleration must be one of this package; got {describe(acceleration)}: pass "
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
        """`tau`, `sigma`, `theta` for a problem; its norm and scales are not differentiated."""
        if self.tau is not None and self.sigma is not None:
            return StepSizes(self.tau, self.sigma, self.theta)
        norm = operator_norm(stop_gradient(problem.K))
        if self.tau is not None:
            return StepSizes(self.tau, 1 / (self.tau * norm) / norm, self.theta)
        if self.sigma is not None:
            return StepSizes(1 / (self.sigma * norm) / norm, self.sigma, self.theta)
        root = jnp.sqrt(self.step_ratio) * self._scale_ratio(problem).astype(norm.dtype)
        return StepSizes(1 / (norm * root), root / norm, self.theta)

    def _scale_ratio(self, problem: LowerLevel) -> Array:
        """Dual scale over primal scale; an unknown or zero scale counts as 1."""

        def known(scale: Array | None) -> Array:
            if scale is None:
                return jnp.ones((), problem.dtype)
            return jnp.where(scale > 0, scale, 1.0)

        primal = problem.G.primal_scale if self.primal_scale is None else self.primal_scale
        return jax.lax.stop_gradient(known(problem.F.dual_scale) / known(primal))

    def with_step_sizes(self, problem: LowerLevel) -> ChambollePock:
        """The same solver with the step sizes of this problem written out (the norm paid once)."""
        tau, sigma, theta = self.step_sizes(problem)
        return eqx.tree_at(
            lambda solver: (solver.tau, solver.sigma, solver.theta),
            self,
            (tau, sigma, theta),
            is_leaf=lambda leaf: leaf is None,
        )

    def check_step_sizes(self, problem: LowerLevel) -> None:
        """Raise a `ValueError` if concrete steps given by hand are too long for the problem.

        (Where something is traced they are let pass: what comes of it shows in the status.)
        """
        if self.tau is None or self.sigma is None:
            return
        if not all(map(is_concrete, jax.tree.leaves((self.tau, self.sigma, problem.K)))):
            return
        # What a jitted caller closes over can be looked at, but JAX would trace the norm of it.
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

    # ---- runs

    def start(self, problem: LowerLevel, x_tilde: Array, init: State | None = None) -> State:
        """`r = r_bar = 0`, `y = 0`; or the primal-dual part of an earlier state."""
        if init is not None:
            return State(init.r, init.r_bar, init.y)
        zero = jnp.zeros_like(x_tilde)
        return State(zero, zero, jnp.zeros((*x_tilde.shape[:-1], problem.m), x_tilde.dtype))

    def step(self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State) -> State:
        """One iteration, as the fixed-point map that other packages' solvers take."""
        return step(problem, x_tilde, sizes, state)[0]

    def approach(
        self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, *, keep: int
    ) -> tuple[State, Array]:
        """All iterations but the last `keep`, which the caller takes: the state, and their number.

        With a tolerance: until every sample has arrived, each frozen from then on.
        """
        count = self.iterations - keep
        if self.tolerance is None:
            if count > 0:
                state = self.advanced(problem, x_tilde, sizes, state, count)
            return state, jnp.full(x_tilde.shape[:-1], count, jnp.int32)
        at = self._way.begin(problem, x_tilde, sizes, state)
        tolerance = jax.lax.stop_gradient(self.tolerance)
        return _run_to_tolerance(problem, x_tilde, sizes, self._way, at, count, keep, tolerance)

    def advanced(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        state: State,
        count: int | Array,
    ) -> State:
        """So many iterations further, at least one, whatever its own number and tolerance."""
        at = self._way.begin(problem, x_tilde, sizes, state)
        return self._way.state(self._way.advance(problem, x_tilde, sizes, at, count))

    @property
    def _way(self) -> AbstractAcceleration:
        return _Plain() if self.acceleration is None else self.acceleration

    def certify(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        r: Array,
        y: Array,
        taken: Array,
    ) -> SolverStats:
        """The statistics of a pair, judged by this solver's tolerance (or the default one)."""
        return certify(problem, x_tilde, sizes, r, y, taken, self.tolerance)

    def solution(
        self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State, taken: Array
    ) -> Solution:
        """The last iterate with its statistics, after `taken` iterations a sample."""
        stats = self.certify(problem, x_tilde, sizes, state.r, state.y, taken)
        return Solution(x_tilde + state.r, state.y, stats, state)

    def trace(
        self, problem: LowerLevel, x_tilde: Array, taken: Array, init: State | None = None
    ) -> Trace:
        """The first `taken` iterations of each sample once more, every iterate judged.

        It knows no strategy: theirs are the iterates of this solver, and `taken` says where a
        sample was stopped. (Of a strategy that averages, the iterates and not the average.)

        **Cost**: 5 products with K an iteration, 2 of them the iteration's own; 3 L numbers a
        sample. Once all samples have stopped, nothing.
        """
        solver, problem, x_tilde, init = stop_gradient((self, problem, x_tilde, init))
        sizes = solver.step_sizes(problem)

        def look(state: State) -> Trace:
            stats = solver.certify(problem, x_tilde, sizes, state.r, state.y, taken)
            objective = problem.F(apply(problem.K, x_tilde + state.r)) + problem.G(state.r)
            return Trace(stats.residual, stats.gap, objective)

        def advance(carry: Any, running: Array):
            moved, _ = step(problem, x_tilde, sizes, carry[0])
            state = where(running, moved, carry[0])
            return state, look(state)

        def body(carry: Any, done: Array) -> Any:
            running = done < taken
            carry = jax.lax.cond(jnp.any(running), advance, lambda c, _: c, carry, running)
            return carry, carry[1]

        start = solver.start(problem, x_tilde, init)
        done = jnp.arange(solver.iterations, dtype=taken.dtype)
        return jax.lax.scan(body, (start, look(start)), done)[1]


@compiled
def _compiled_norm(K: Operator) -> Array:
    return operator_norm(K)


class _Plain(AbstractAcceleration):
    """The iteration as it is."""

    def begin(self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State) -> State:
        return state

    def advance(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        at: State,
        count: int | Array,
    ) -> State:
        return run(problem, x_tilde, sizes, at, count)

    def state(self, at: State) -> State:
        return at


def _run_to_tolerance(
    problem: LowerLevel,
    x_tilde: Array,
    sizes: StepSizes,
    way: AbstractAcceleration,
    at: Any,
    most: int,
    keep: int,
    tolerance: Array,
) -> tuple[State, Array]:
    """Run in bursts until each sample is within the tolerance, here and `keep` iterations later.

    The pair that the caller returns is the later one, and a plain iteration can move a pair away
    from the solution. A sample that has arrived is frozen, so that others cannot move it.
    """

    def look_ahead(state: State) -> State:
        return run(problem, x_tilde, sizes, state, keep)

    def burst(carry: Any) -> Any:
        at, iterations, candidates, arrived, done = carry
        # The residual stands once in the program, since it is most of it: samples that are within
        # the tolerance here are candidates, and the next burst looks at them further on.
        ahead = jnp.any(candidates)
        state = jax.lax.cond(ahead, look_ahead, lambda state: state, way.state(at))
        residual = residual_of(problem, x_tilde, sizes, state.r, state.y)
        # A sample that is no longer finite will not arrive: it is not waited for.
        within = (residual <= tolerance) | ~jnp.isfinite(residual)
        arrived = arrived | (within & candidates if keep else within)
        candidates = within & ~arrived & ~ahead
        length = jnp.minimum(_CHECK_EVERY, most - done)
        length = jnp.where(jnp.all(arrived) | jnp.any(candidates), 0, length)

        def advance(at: Any) -> Any:
            return where(arrived, at, way.advance(problem, x_tilde, sizes, at, length))

        at = jax.lax.cond(length > 0, advance, lambda at: at, at)
        done = done + length
        return at, jnp.where(arrived, iterations, done), candidates, arrived, done

    def unfinished(carry: Any):
        *_, arrived, done = carry
        return ~jnp.all(arrived) & (done < most)

    iterations = jnp.zeros(x_tilde.shape[:-1], jnp.int32)
    nobody = iterations > 0
    start = (at, iterations, nobody, nobody, jnp.zeros((), jnp.int32))
    at, iterations, *_ = jax.lax.while_loop(unfinished, burst, start)
    return way.state(at), iterations
