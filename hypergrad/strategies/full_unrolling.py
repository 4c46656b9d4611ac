"""Differentiate every iteration."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    AdjointStats,
    Checkpointed,
    Cotangent,
    Gradients,
    Recorded,
    backpropagate,
    backpropagate_again,
    run_in_segments,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State, record
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch

__all__ = ["FullUnrolling"]


class FullUnrolling(AbstractStrategy):
    """The gradient of `x[L]`, through all L iterations.

        grad_K = sum_{l=1..L} sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    **Arguments**: `checkpoints`, how many states are kept, the iterations between them being
    recorded again on the way back; None (the default) keeps the prox arguments of all iterations.

    **Cost**: 4 products with K an iteration more than the solve; memory `L (m + n)` a sample. With
    checkpoints 6 products, about 1.2 times the time; memory `checkpoints (m + 3 n)` and
    `(L / checkpoints) (m + n)`, which is least near the square root of L.

    **Caveat**: exact for the finite L, also where the lower level is not converged; and then it is
    the gradient of another problem. Refuses a tolerance, since all L iterations are stored.

    **Source**: Brauer & Lorenz (first poster), "Results".

    >>> import hypergrad as hg
    >>> hg.FullUnrolling().label
    'full'
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "full"
    formula: ClassVar[str] = "sum over all L iterations of the delta recursion"
    cost: ClassVar[str] = "time 3 solves, memory L (m + n) a sample"
    caveat: ClassVar[str] = "exact for the finite L only"
    differentiates_every_iteration: ClassVar[bool] = True

    def __check_init__(self) -> None:
        if self.checkpoints is not None:
            check_count("checkpoints", self.checkpoints)

    def check(self, solver: ChambollePock) -> None:
        if solver.tolerance is not None:
            raise HypergradError(
                "FullUnrolling must know the number of iterations, so it takes no tolerance; got "
                "tolerance set on the solver: drop it, or use Truncation or LimitFormula"
            )
        if self.checkpoints is not None and self.checkpoints > solver.iterations:
            raise HypergradError(
                f"checkpoints must be at most iterations; got checkpoints={self.checkpoints}, "
                f"iterations={solver.iterations}: the square root of the iterations saves most"
            )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        sizes = solver.step_sizes(problem)
        start = solver.start(problem, x_tilde, init)
        taken = jnp.full(x_tilde.shape[:-1], solver.iterations)
        if self.checkpoints is None:
            state, history = record(problem, x_tilde, sizes, start, solver.iterations)
            kept = Recorded(problem, x_tilde, solver, sizes, start, history, alpha=None)
        else:
            state, kept = run_in_segments(
                problem, x_tilde, solver, start, checkpoints=self.checkpoints
            )
        return solver.solution(problem, x_tilde, sizes, state, taken), kept

    def pullback(self, residuals: Any, cotangent: Cotangent) -> Gradients:
        again = isinstance(residuals, Checkpointed)
        go_back, L = backpropagate_again if again else backpropagate, residuals.solver.iterations
        dproblem, dx_tilde, dsolver, _ = go_back(residuals, cotangent)
        stats = AdjointStats.exact(L, dx_tilde, products=(6 if again else 4) * L)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
