"""The limit formula at the last primal-dual pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    CGLS,
    LINEAX_SOLVERS,
    AbstractAdjointSolve,
    AbstractLinearSolve,
    AdjointProblem,
    ConjugateGradients,
    Cotangent,
    Gradients,
    LastIterates,
    LimitSystem,
    LinearSolve,
    SolvedPair,
    Steps,
    Tangents,
    Tolerance,
    Unknowns,
    limit_gradients,
    limit_pushforward,
    solve_both_ways,
)
from hypergrad.chambolle_pock import (
    AdjointPair,
    ChambollePock,
    ProxArguments,
    Solution,
    State,
    StepSizes,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch


def _as_adjoint_solve(adjoint: Any) -> AbstractAdjointSolve:
    if isinstance(adjoint, AbstractAdjointSolve):
        return adjoint
    if isinstance(adjoint, lx.AbstractLinearSolver):
        return LinearSolve(adjoint)
    raise HypergradError(
        f"adjoint must be a way to get Delta; got {adjoint!r}: use hg.Steps(k), "
        "hg.LastIterates(k), hg.Tolerance(rtol) or a lineax solver for unsymmetric systems"
    )


class _Saved(NamedTuple):
    problem: LowerLevel
    solver: ChambollePock
    sizes: StepSizes
    history: ProxArguments
    x: Batch
    y: Float[Array, "batch m"]
    earlier: AdjointPair | None


class LimitFormula(AbstractStrategy):
    """The limit of the unrolled gradient as L grows, evaluated at the last primal-dual pair.

        grad_K = sigma Delta_D x*^T - tau y* Delta_P^T

    `Delta` solves `(I - D_P) Delta_P - sigma D_P K^T Delta_D = D_P g` and
    `tau D_D K Delta_P + (I - D_D) Delta_D = 0` with the prox derivatives of the last iteration.

    **Arguments**: `adjoint`: `Steps(k)`, `LastIterates(k)` (what the second poster writes),
    `Tolerance(rtol)`, or a lineax solver for unsymmetric square systems (GMRES, BiCGStab, LU, SVD).
    `ConjugateGradients()` is quicker where G is separable and strongly convex. By default the
    system is solved by `CGLS`, which needs nothing of it.

    **Cost**: the solve, and for each step 2 products with K (`Steps`, `LastIterates`, `Tolerance`)
    or 4 (the default, CGLS, at most `4 (m + n)` steps); memory independent of L, `k (m + n)` a
    sample for `LastIterates(k)`.

    **Caveat**: needs a converged lower level. At an unconverged pair the masks are wrong and so is
    the gradient: look at `solution.stats`. Where the system is singular the solution of minimum
    norm is taken (the status is then CONVERGED), but where active rows of K are dependent y* is not
    unique, and the gradient depends on where the dual started. Where the system is inconsistent the
    status says so.

    **Source**: Brauer & Lorenz (second poster), the limit; Delta by recursion or linear solve is
    implicit differentiation (Blondel et al. 2022) of this fixed point.

    >>> import hypergrad as hg
    >>> hg.LimitFormula(hg.Steps(3)).label, hg.LimitFormula().label
    ('limit:steps=3', 'limit:cgls')
    """

    adjoint: AbstractAdjointSolve = eqx.field(converter=_as_adjoint_solve, default_factory=CGLS)
    name: ClassVar[str] = "limit"
    formula: ClassVar[str] = "sigma Delta_D x*^T - tau y* Delta_P^T"
    cost: ClassVar[str] = "time 1 + k/L solves (k steps; 1 + 2k/L by cgls), memory independent of L"
    caveat: ClassVar[str] = "wrong where the lower level is not converged: see its residual"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "steps": ("adjoint", Steps),
        "last": ("adjoint", LastIterates),
        "tolerance": ("adjoint", Tolerance),
        "cgls": ("adjoint", CGLS),
        "cg": ("adjoint", ConjugateGradients),
        **{word: ("adjoint", make) for word, make in LINEAX_SOLVERS.items()},
    }

    def check(self, solver: ChambollePock) -> None:
        if self.adjoint.iterates > solver.iterations:
            raise HypergradError(
                f"k must be at most iterations; got k={self.adjoint.iterates}, "
                f"iterations={solver.iterations}: take more iterations or fewer of the last ones"
            )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        forward = solver.on(problem, x_tilde)
        run = forward.run(init, record_last=self.adjoint.iterates)
        solution = forward.solution(run.state, run.taken)
        earlier = None if init is None else init.adjoint
        sizes, x, y = forward.iteration.sizes, solution.x, solution.y
        return solution, _Saved(problem, solver, sizes, run.history, x, y, earlier)

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        problem, solver, sizes, history, x, y, earlier = saved
        system = LimitSystem.at_last(problem, sizes, history)
        sums, stats = self.adjoint(AdjointProblem(system, history, cotangent, earlier))
        grad, dx_tilde = limit_gradients(system, x, y, sums)
        return Gradients.of_limit(grad, cotangent.x + dx_tilde, solver, stats, sums.pair)

    def with_tolerance(self, rtol: Array) -> AbstractStrategy | None:
        adjoint = self.adjoint.with_tolerance(rtol)
        return None if adjoint is None else LimitFormula(adjoint)

    @property
    def has_pushforward(self) -> bool:
        return isinstance(self.adjoint, AbstractLinearSolve)

    def pushforward(self, saved: _Saved, solved: SolvedPair, tangents: Tangents) -> Cotangent:
        fixed = LimitSystem.at_last(saved.problem, saved.sizes, saved.history)
        adjoint = self.adjoint
        assert isinstance(adjoint, AbstractLinearSolve)

        def solve(system: LimitSystem, right: Unknowns) -> Unknowns:
            return solve_both_ways(
                system.scaled_transpose,
                right,
                lambda right: adjoint.solve(fixed, right, transposed=True)[0],
                lambda right: adjoint.solve(fixed, right, transposed=False)[0],
            )

        return limit_pushforward(fixed, solved, tangents, solve)
