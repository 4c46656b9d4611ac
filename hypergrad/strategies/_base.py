"""The base of strategies: `forward` and `pullback`, and the rules by which JAX differentiates."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import describe, spelt
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    SolvedPair,
    Tangents,
    solver_label,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel, stop_gradient

Batch = Float[Array, "batch n"]


class AbstractStrategy(eqx.Module):
    """A way to approximate the hypergradient: subclass it to add a strategy.

    It always sees one batch axis (`x_tilde` is `(batch, n)`, `y` is `(batch, m)`), one dtype and
    checked shapes: `solve` and `hypergradient` take care of that. Gradients in the problem are
    summed over the batch. The class variables describe the strategy in tables (`formula`, `cost`,
    `caveat`) and on the command line (`name`, and in `choices` a word for each object that a field
    can hold: word -> (field, constructor)). `follows_solver` is False if its iterates are not
    those of the solver: `solve` then refuses to trace them. `differentiates_every_iteration` is
    True if no iteration may be replaced by an acceleration.

    Fields that are floats are arguments of the compiled program, so that another number is not
    another program; mark a field as static (`equinox.field(static=True)`) where Python code
    branches on it. Whole numbers are compiled in.
    """

    name: ClassVar[str]
    formula: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {}
    follows_solver: ClassVar[bool] = True
    differentiates_every_iteration: ClassVar[bool] = False

    @abc.abstractmethod
    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        """Solve; also return whatever the pullback will need, as a pytree."""

    @abc.abstractmethod
    def pullback(self, saved: Any, cotangent: Cotangent) -> Gradients:
        """Gradients of a loss whose derivative in the returned `x` and `y` is the cotangent."""

    def solve(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """Solve, differentiably: both modes by the pushforward, or reverse mode by the pullback."""
        if not self.has_pushforward:
            return _solve_rule((problem, x_tilde, solver), self, init)  # pyright: ignore[reportCallIssue]
        # The solve itself is not differentiated; its result gets its derivatives afterwards.
        fixed, fixed_x_tilde, fixed_solver = stop_gradient((problem, x_tilde, solver))
        solution, saved = self.forward(fixed, fixed_x_tilde, fixed_solver, init)
        pair = (solution.x, solution.y)
        x, y = _with_derivatives((problem, x_tilde), self, saved, pair)
        return Solution(x, y, solution.stats, solution.state)

    def partial_pullback(self, saved: Any, cotangent: Cotangent, wanted: LowerLevel) -> Gradients:
        """Return the gradients in some leaves of the problem; all others are None.

        `wanted` has a bool for each leaf of the problem. By default the others are dropped, so that
        `jit` skips what nothing else needs; override this to save more.
        """
        gradients = self.pullback(saved, cotangent)
        part = eqx.filter(gradients.problem, wanted)
        return gradients._replace(problem=part, x_tilde=None, solver=None)

    def cost_warning(
        self, problem: LowerLevel, solver: ChambollePock, wanted: LowerLevel | None
    ) -> str | None:
        """Return a warning about the cost, to be issued before it runs; by default None.

        `wanted` marks the leaves of the problem that are differentiated; None: everything is.
        """
        return None

    @property
    def has_pushforward(self) -> bool:
        """Return whether there is a pushforward: then JAX differentiates `solve` in both modes."""
        return False

    def pushforward(self, saved: Any, solved: SolvedPair, tangents: Tangents) -> Cotangent:
        """Return the derivatives of the returned `x` and `y` along the tangents.

        Linear in the tangents, written so that JAX can transpose it. What it takes from
        `solved`, and not from `saved`, can be differentiated again.
        """
        raise NotImplementedError(f"{self.label} has no pushforward")

    def with_tolerance(self, rtol: Array) -> AbstractStrategy | None:
        """Return the strategy with this tolerance of its adjoint solve; None if it has none.

        `rtol` is an array, so that another one is not another program. A strategy with a tolerance
        can be used in `hypergradient_to_target`.
        """
        return None

    def check(self, solver: ChambollePock) -> None:
        """Raise a `ValueError` if the strategy cannot be used with this solver."""

    def check_solver(self, solver: ChambollePock) -> None:
        """Raise a `ValueError` for a solver whose acceleration or settings do not fit."""
        if self.differentiates_every_iteration and solver.acceleration is not None:
            raise HypergradError(
                f"{self.label} must have plain iterations, since it differentiates them all; got a "
                "solver with an acceleration: leave it out, or use Truncation or LimitFormula"
            )
        self.check(solver)

    def check_trace(self, solver: ChambollePock) -> None:
        """Raise a `ValueError` if the iterates are not those of the plain iteration."""
        if solver.acceleration is not None:
            raise HypergradError(
                "trace=True must have plain iterations; got a solver with an acceleration: leave "
                "it out"
            )
        if not self.follows_solver:
            raise HypergradError(
                f"trace=True must have a strategy that takes the solver's iterations; got "
                f"{self.label}, which does not: trace another one, hg.Truncation(k=1) say"
            )

    @property
    def label(self) -> str:
        """The strategy as it is written on the command line, e.g. `truncation:k=1`.

        Fields that are None are left out, and so is all but the first number of an object.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options = [_spell(name, value) for name, value in fields.items() if value is not None]
        return ":".join([self.name, *filter(None, [",".join(options)])])


def _spell(field: str, value: Any) -> str:
    if isinstance(value, (bool, int, float, str)):
        return f"{field}={value}"
    if eqx.is_array(value) and value.ndim == 0:
        return f"{field}={spelt(value)}"
    if isinstance(value, lx.AbstractLinearSolver):
        return solver_label(value)
    return getattr(value, "label", type(value).__name__.lower())


@eqx.filter_custom_jvp
def _with_derivatives(arguments: Any, strategy: AbstractStrategy, saved: Any, solved: Any) -> Any:
    """Return `solved`, differentiated as a function of the arguments by `strategy.pushforward`."""
    del arguments, strategy, saved
    return solved


@_with_derivatives.def_jvp
def _push_forward(primals: Any, tangents: Any) -> Any:
    arguments, strategy, saved, solved = primals

    def materialise(tangent: Any, primal: Any) -> Any:
        if tangent is None and eqx.is_inexact_array(primal):
            return jnp.zeros_like(primal)
        return tangent

    moved = jax.tree.map(materialise, tangents[0], arguments, is_leaf=lambda t: t is None)
    # Wrapped again, so that the next derivative differentiates x and y.
    solved = _with_derivatives(arguments, strategy, saved, solved)
    pair = SolvedPair(*arguments, *solved)
    return solved, tuple(strategy.pushforward(saved, pair, Tangents(*moved)))


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
    solution, saved = strategy.forward(problem, x_tilde, solver, init)
    return solution, (saved, Cotangent(solution.x, solution.y))


@_solve_rule.def_bwd
def _solve_backward(
    passed: Any, solution_bar: Any, perturbed: Any, arguments: Any, strategy: Any, init: Any
) -> Any:
    del perturbed, arguments, init
    saved, output = passed
    bars = (solution_bar.x, solution_bar.y)
    cotangent = Cotangent(
        *(jnp.zeros_like(o) if c is None else c for o, c in zip(output, bars, strict=True))
    )
    gradients = strategy.pullback(saved, cotangent)
    return gradients.problem, gradients.x_tilde, gradients.solver


class _Differentiated(NamedTuple):
    pull: Callable[[Cotangent], Any]
    solution: Solution


class AbstractDifferentiableStrategy(AbstractStrategy):
    """A strategy written as plain differentiable JAX: `run` alone, its pullback made by `jax.vjp`.

    `run` decides what is differentiated (it may apply `stop_gradient` anywhere), so the accuracy of
    the gradient is unknown. The adjoint has the status UNKNOWN, which is not good (`throw=True`
    raises), no residual and no counts, unless the strategy overrides `adjoint_stats`.

    **Cost**: whatever JAX stores and computes for `run`.
    """

    @abc.abstractmethod
    def run(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """The solution, as a function that JAX can differentiate."""

    def adjoint_stats(self, solution: Solution, dx_tilde: Batch) -> AdjointStats:
        """Report what is known of the gradient: nothing, unless a strategy overrides this.

        A strategy that differentiates every iteration exactly returns
        `hg.AdjointStats.exact(solution.stats.iterations, dx_tilde, products=None)`.

        **Arguments**: `solution`, the result of `run`; `dx_tilde (batch, n)`, the gradient in
        `x_tilde`, by which the samples whose gradient is not finite are found.
        """
        del solution
        return AdjointStats.unknown(dx_tilde)

    def solve(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """Return the result of `run`, checked."""
        solution = self.run(problem, x_tilde, solver, init)
        if not isinstance(solution, Solution):
            raise HypergradError(
                f"run of {type(self).__name__} must return a hypergrad.Solution; got "
                f"{describe(solution)}: return solver.on(problem, x_tilde).solve()"
            )
        return solution

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        def run(arguments: Any):
            problem, x_tilde, solver = arguments
            solution = self.solve(problem, x_tilde, solver, init)
            return Cotangent(solution.x, solution.y), solution

        arguments = (problem, x_tilde, solver)
        _, pull, solution = eqx.filter_vjp(run, arguments, has_aux=True)
        return solution, _Differentiated(pull, solution)

    def pullback(self, saved: Any, cotangent: Cotangent) -> Gradients:
        pull, solution = saved
        problem, x_tilde, solver = pull(cotangent)[0]
        return Gradients(problem, x_tilde, solver, self.adjoint_stats(solution, x_tilde))
