"""Evaluate the upper-level loss and its gradient to given accuracies, with bounds on both."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.samples import float_vector, safe_norm
from hypergrad._foundation.status import Status
from hypergrad.bilevel import Loss, half_mean_squared_error
from hypergrad.bilevel.error_bound import (
    AbstractRegime,
    ReturnedPair,
    bound_error,
    regimes_of,
)
from hypergrad.bilevel.hypergradients import compute_hypergradient
from hypergrad.bilevel.loss_bound import bound_distance, bound_loss, has_distance_bound
from hypergrad.chambolle_pock import AdjointPair, ChambollePock, Solution, State
from hypergrad.learning.variables import Variables
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["Accuracy", "Evaluation", "Evaluations", "Evaluator", "tree_norm"]


class Accuracy(NamedTuple):
    """The tolerance of the lower level, and that of the adjoint solve, both relative."""

    tolerance: Float[Array, ""]
    rtol: Float[Array, ""]

    def times(self, of_tolerance: float, of_rtol: float, at_least: Accuracy) -> Accuracy:
        """Return both multiplied, at least the finest and at most a half."""
        return Accuracy(
            jnp.clip(of_tolerance * self.tolerance, at_least.tolerance, 0.5),
            jnp.clip(of_rtol * self.rtol, at_least.rtol, 0.5),
        )


class Evaluation(NamedTuple):
    """The loss at some free variables, and its gradient where it was asked for.

    `lower`, `upper`: bounds on the loss at the true solution; `error`, a bound on the distance of
    `gradient` from the true one (both infinite where none is known); `iterations`,
    `adjoint_steps`: means over the samples; `residual`, the largest; `converged`, the share of
    samples that reached the tolerance; `exhausted`, whether one cannot: more accuracy is not to be
    had. `state` is where the next solves start.
    """

    loss: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    state: State
    iterations: Float[Array, ""]
    adjoint_steps: Float[Array, ""]
    residual: Float[Array, ""]
    converged: Float[Array, ""]
    exhausted: Bool[Array, ""]
    error: Float[Array, ""]
    gradient: Any = None


def tree_norm(tree: Any) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves."""
    return safe_norm(float_vector(tree))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The upper-level loss of all samples as a function of the free variables."""

    variables: Variables
    problem: LowerLevel
    solver: ChambollePock
    strategy: AbstractStrategy
    loss: Loss

    @functools.cached_property
    def regimes(self) -> tuple[AbstractRegime, ...]:
        """The regimes that can bound the error of the gradient."""
        return regimes_of(self.problem, self._smoothness(1))

    @property
    def has_loss_bound(self) -> bool:
        """Whether the loss can be bounded: from the distance to the solution."""
        return self.loss is half_mean_squared_error and has_distance_bound(self.problem)

    @property
    def finest(self) -> Accuracy:
        """The finest accuracy that is asked for: the solver's tolerance, for both solves."""
        tolerance = jnp.asarray(self.solver.tolerance, self.problem.dtype)
        return Accuracy(tolerance, tolerance)

    def _smoothness(self, samples: int) -> float | None:
        return 1 / samples if self.loss is half_mean_squared_error else None

    def start(self, x_tilde: Array) -> State:
        """Return the state that the first solves start from: zero, with an adjoint part."""
        state = self.solver.start(self.problem, x_tilde)
        zero = AdjointPair(jnp.zeros_like(state.r), jnp.zeros_like(state.y))
        return State(state.r, state.r_bar, state.y, zero)

    def _settings(
        self, problem: LowerLevel, accuracy: Accuracy
    ) -> tuple[ChambollePock, AbstractStrategy]:
        """Return solver and strategy at an accuracy; a strategy without one as it is.

        The solver has its step sizes, which solve and bounds share: one norm of K.
        """
        solver = eqx.tree_at(lambda s: s.tolerance, self.solver, accuracy.tolerance)
        return solver.with_step_sizes(problem), self.strategy.with_tolerance(
            accuracy.rtol
        ) or self.strategy

    def evaluate_loss(
        self, free: Any, x_tilde: Array, x_true: Array, accuracy: Accuracy, state: State
    ) -> Evaluation:
        """Solve the lower level alone."""
        problem = self.variables.problem(free, self.problem)
        solver, strategy = self._settings(problem, accuracy)
        solution, _ = strategy.forward(problem, x_tilde, solver, state)
        sizes = solver.step_sizes(problem)
        pair = ReturnedPair(problem, x_tilde, sizes, solution.x, solution.y, state.adjoint)
        return self._evaluation(pair, x_true, solution)

    def evaluate_gradient(
        self, free: Any, x_tilde: Array, x_true: Array, accuracy: Accuracy, state: State
    ) -> Evaluation:
        """Solve both, and bound the error of the gradient in the free variables."""
        problem = self.variables.problem(free, self.problem)
        solver, strategy = self._settings(problem, accuracy)
        h = compute_hypergradient(
            problem, x_tilde, x_true, solver, strategy, self.loss, state, wanted=self.variables.mask
        )
        adjoint = state.adjoint if h.adjoint_pair is None else h.adjoint_pair
        sizes = solver.step_sizes(problem)
        pair = ReturnedPair(problem, x_tilde, sizes, h.solution.x, h.solution.y, adjoint)
        evaluation = self._evaluation(pair, x_true, h.solution)
        steps = jnp.zeros_like(evaluation.iterations)
        if h.adjoint.steps is not None:
            steps = jnp.mean(h.adjoint.steps.astype(steps.dtype))
        error = evaluation.error
        if self.regimes:
            bound = bound_error(
                pair._replace(adjoint=h.adjoint_pair),
                h.grad,
                None,
                jax.grad(lambda x: self.loss(x, x_true)),
                smoothness=self._smoothness(len(x_tilde)),
                regimes=self.regimes,
            )
            error = self.variables.error_bound(bound.grad, problem)
        return evaluation._replace(
            gradient=self.variables.gradient(h.grad, problem), error=error, adjoint_steps=steps
        )

    def _evaluation(self, pair: ReturnedPair, x_true: Array, solution: Solution) -> Evaluation:
        x, stats, last = solution.x, solution.stats, solution.state
        value = self.loss(x, x_true)
        lower, upper = jnp.full_like(value, -jnp.inf), jnp.full_like(value, jnp.inf)
        if self.has_loss_bound:
            bound = bound_loss(x, x_true, bound_distance(pair, stats.gap, self.regimes))
            lower, upper = jnp.mean(bound.lower), jnp.mean(bound.upper)
        converged = stats.status == Status.CONVERGED
        return Evaluation(
            loss=value,
            lower=lower,
            upper=upper,
            state=State(last.r, last.r_bar, last.y, pair.adjoint),
            iterations=jnp.mean(stats.iterations.astype(value.dtype)),
            adjoint_steps=jnp.zeros_like(value),
            residual=jnp.max(stats.residual),
            converged=jnp.mean(converged.astype(value.dtype)),
            exhausted=~jnp.all(converged),
            error=jnp.full_like(value, jnp.inf),
        )


class Programs(NamedTuple):
    """The two evaluations, compiled for the samples of a run (or lowered, not yet compiled)."""

    loss: Any
    gradient: Any

    @classmethod
    def lower(cls, evaluator: Evaluator, free: Any, x_tilde: Array, x_true: Array) -> Programs:
        arguments = free, x_tilde, x_true, evaluator.finest, evaluator.start(x_tilde)
        both = evaluator.evaluate_loss, evaluator.evaluate_gradient
        programs: list[Any] = [eqx.filter_jit(function) for function in both]
        return cls(*(program.lower(*arguments) for program in programs))

    def compile(self) -> Programs:
        return Programs(self.loss.compile(), self.gradient.compile())


@dataclasses.dataclass
class Evaluations:
    """What a method calls in one step: evaluations to an accuracy, each of them kept."""

    programs: Programs
    x_tilde: Array
    x_true: Array
    finest: Accuracy
    made: list[Evaluation] = dataclasses.field(default_factory=list)

    def loss(self, free: Any, accuracy: Accuracy, state: State) -> Evaluation:
        """Evaluate the loss, from a state that earlier solves ended in."""
        return self._kept(self.programs.loss, free, accuracy, state)

    def gradient(self, free: Any, accuracy: Accuracy, state: State) -> Evaluation:
        """Evaluate the loss and its gradient."""
        return self._kept(self.programs.gradient, free, accuracy, state)

    def _kept(self, program: Any, free: Any, accuracy: Accuracy, state: State) -> Evaluation:
        evaluation = program(free, self.x_tilde, self.x_true, accuracy, state)
        self.made.append(evaluation)
        return evaluation

    def is_finest(self, accuracy: Accuracy, evaluation: Evaluation) -> bool:
        """Return whether no evaluation at this point can be more accurate.

        The loss depends on the first tolerance alone.
        """
        at_least = list(zip(accuracy, self.finest, strict=True))
        relevant = at_least[:1] if evaluation.gradient is None else at_least
        return bool(evaluation.exhausted) or all(bool(a <= least) for a, least in relevant)
