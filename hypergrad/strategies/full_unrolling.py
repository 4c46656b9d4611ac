"""Differentiate every iteration."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp

from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    Recorded,
    backpropagate,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State, record
from hypergrad.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch

__all__ = ["FullUnrolling"]


class FullUnrolling(AbstractStrategy):
    """The gradient of `x[L]`, through all L iterations.

        grad_K = sum_{l=1..L} sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    **Cost**: 4 products with K an iteration more than the solve; memory `L (m + n)` a sample.

    **Caveat**: exact for the finite L, also where the lower level is not converged; and then it is
    the gradient of another problem. Refuses a tolerance, since all L iterations are stored.

    **Source**: Brauer & Lorenz (first poster), "Results".

    >>> import hypergrad as hg
    >>> hg.FullUnrolling().label
    'full'
    """

    name: ClassVar[str] = "full"
    formula: ClassVar[str] = "sum over all L iterations of the delta recursion"
    cost: ClassVar[str] = "time 3 solves, memory L (m + n) a sample"
    caveat: ClassVar[str] = "exact for the finite L only"

    def check(self, solver: ChambollePock) -> None:
        if solver.tolerance is not None:
            raise ValueError(
                "FullUnrolling must know the number of iterations, so it takes no tolerance; got "
                "tolerance set on the solver: drop it, or use Truncation or LimitFormula"
            )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        sizes = solver.step_sizes(problem)
        start = solver.start(problem, x_tilde, init)
        state, history = record(problem, x_tilde, sizes, start, solver.iterations)
        taken = jnp.full(x_tilde.shape[:-1], solver.iterations)
        residuals = Recorded(problem, x_tilde, solver, sizes, start, history, alpha=None)
        return solver.solution(problem, x_tilde, sizes, state, taken), residuals

    def pullback(self, residuals: Any, cotangent: Cotangent) -> Gradients:
        dproblem, dx_tilde, dsolver, _ = backpropagate(residuals, cotangent)
        L = residuals.solver.iterations
        stats = AdjointStats.exact(L, dx_tilde, products=4 * L)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
