"""What a strategy is: two methods. `hypergradient` calls both, `solve` wraps them in one rule."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import describe, spelt
from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    SolvedPair,
    Tangents,
    solver_label,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["AbstractDifferentiableStrategy", "AbstractStrategy"]

Batch = Float[Array, "batch n"]


class AbstractStrategy(eqx.Module):
    """How the hypergradient is approximated: what one subclasses to add a strategy.

    It always sees one batch axis (`x_tilde` is `(batch, n)`, `y` is `(batch, m)`), one dtype and
    checked shapes: `solve` and `hypergradient` take care of that. Gradients in the problem are
    summed over the batch. The class variables describe the strategy in tables (`formula`, `cost`,
    `caveat`) and on the command line (`name`, and in `choices` a word for each object that a field
    can hold: word -> (field, constructor)). `follows_solver` says that its iterates are those
    of the solver; where it is False, `solve` refuses to trace them.
    `differentiates_every_iteration` says that none may be replaced by an acceleration.

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

    def partial_pullback(self, saved: Any, cotangent: Cotangent, wanted: LowerLevel) -> Gradients:
        """The pullback for some leaves of the problem alone; all others are None.

        `wanted` has a bool for each leaf of the problem. By default what is not wanted is dropped,
        and under `jit` not computed where nothing else needs it. To be overridden where more can be
        saved.
        """
        gradients = self.pullback(saved, cotangent)
        part = eqx.filter(gradients.problem, wanted)
        return gradients._replace(problem=part, x_tilde=None, solver=None)

    def cost_warning(
        self, problem: LowerLevel, solver: ChambollePock, wanted: LowerLevel | None
    ) -> str | None:
        """What to warn of before it runs, where the cost may surprise; by default nothing.

        `wanted` marks the leaves of the problem that are differentiated; None: everything is.
        """
        return None

    @property
    def has_pushforward(self) -> bool:
        """Whether `solve` with this strategy can be differentiated in forward mode, too."""
        return False

    def pushforward(self, saved: Any, solved: SolvedPair, tangents: Tangents) -> Cotangent:
        """How the returned `x` and `y` move with the problem and `x_tilde`.

        Linear in the tangents, written so that JAX can transpose it: where there is one, `solve` is
        differentiated by it in either mode. What it takes from `solved` and not from `saved` can be
        differentiated again.
        """
        raise NotImplementedError(f"{self.label} has no pushforward")

    def with_tolerance(self, rtol: Array) -> AbstractStrategy | None:
        """The same strategy, its adjoint solve stopped by this tolerance; None if nothing is.

        `rtol` is an array, so that another one is not another program. What can be given a
        tolerance can be driven to a `target_error`.
        """
        return None

    def check(self, solver: ChambollePock) -> None:
        """Raise a `ValueError` if the strategy cannot be used with this solver."""

    @property
    def label(self) -> str:
        """The strategy as it is written on the command line, e.g. `truncation:k=1`.

        As far as words can say it: what an object holds beside its first number is left out, and so
        is a field that is None.
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


class AbstractDifferentiableStrategy(AbstractStrategy):
    """A strategy written as plain differentiable JAX: `run` alone, its pullback made by `jax.vjp`.

    What it differentiates is up to `run`, which may hold fixed what it likes, and nothing tells how
    far the result is from a gradient. So its adjoint has the status UNKNOWN, which is not a good
    one (`throw=True` raises), no residual and no counts. A strategy that knows better overrides
    `adjoint_stats`.

    **Cost**: whatever JAX stores and computes for `run`; nothing is done by hand here.
    """

    @abc.abstractmethod
    def run(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """The solution, as a function that JAX can differentiate."""

    def adjoint_stats(self, solution: Solution, dx_tilde: Batch) -> AdjointStats:
        """Report what is known of the gradient: nothing, unless a strategy overrides this.

        One that differentiates every iteration, exactly, says so by `return
        hg.AdjointStats.exact(solution.stats.iterations, dx_tilde, products=None)`.

        **Arguments**: `solution`, what `run` returned; `dx_tilde (batch, n)`, the gradient in
        `x_tilde`, by which the samples whose gradient is not finite are found.
        """
        del solution
        return AdjointStats.unknown(dx_tilde)

    def solved(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """What `run` returns, once it has been looked at."""
        solution = self.run(problem, x_tilde, solver, init)
        if not isinstance(solution, Solution):
            raise ValueError(
                f"run of {type(self).__name__} must return a hypergrad.Solution; got "
                f"{describe(solution)}: return solver.on(problem, x_tilde).solve()"
            )
        return solution

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        def run(arguments: Any):
            problem, x_tilde, solver = arguments
            solution = self.solved(problem, x_tilde, solver, init)
            return Cotangent(solution.x, solution.y), solution

        arguments = (problem, x_tilde, solver)
        _, pull, solution = eqx.filter_vjp(run, arguments, has_aux=True)
        return solution, (pull, solution)

    def pullback(self, saved: Any, cotangent: Cotangent) -> Gradients:
        pull, solution = saved
        problem, x_tilde, solver = pull(cotangent)[0]
        return Gradients(problem, x_tilde, solver, self.adjoint_stats(solution, x_tilde))
