"""Differentiate every iteration."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    AdjointStats,
    Checkpointed,
    Cotangent,
    Gradients,
    Tape,
    backpropagate,
    backpropagate_checkpointed,
    run_in_segments,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch


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
    ) -> tuple[Solution, Tape | Checkpointed]:
        forward = solver.on(problem, x_tilde)
        if self.checkpoints is None:
            run = forward.run(init, record_last=solver.iterations)
            return forward.solution(run.state, run.taken), Tape(forward, run.before, run.history)
        state, saved = run_in_segments(forward, forward.start(init), checkpoints=self.checkpoints)
        taken = jnp.full(x_tilde.shape[:-1], solver.iterations)
        return forward.solution(state, taken), saved

    def pullback(self, saved: Tape | Checkpointed, cotangent: Cotangent) -> Gradients:
        if isinstance(saved, Checkpointed):
            gradients, products = backpropagate_checkpointed(saved, cotangent), 6
        else:
            gradients, products = backpropagate(saved, cotangent), 4
        (dproblem, dx_tilde, dsolver, _), L = gradients, saved.forward.solver.iterations
        stats = AdjointStats.exact(L, dx_tilde, products=products * L)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
