"""Differentiate the last k iterations."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    LimitSystem,
    PairMetric,
    Tape,
    backpropagate,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State, default_tolerance
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch


class Truncation(AbstractStrategy):
    """The gradient of `x[L]` through its last k iterations, `state[L-k]` being held fixed.

        grad_K = sum_{l=L-k+1..L} sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    **Cost**: the solve and 4 k products; memory `k (m + n)` a sample, whatever L.

    **Caveat**: biased; the residual of the adjoint is the relative size of the delta that was cut
    off. With a tolerance on the solver it converges first and takes k iterations more.

    **Source**: Brauer & Lorenz (second poster); Shaban et al. 2019; k = 1 is the one-step
    differentiation of Bolte, Pauwels & Vaiter 2023.

    >>> import hypergrad as hg
    >>> hg.Truncation(k=5).label
    'truncation:k=5'
    """

    k: int = eqx.field(static=True, default=1)
    name: ClassVar[str] = "truncation"
    formula: ClassVar[str] = "sum over the last k iterations of the delta recursion"
    cost: ClassVar[str] = "time 1 + 2k/L solves, memory k (m + n) a sample"
    caveat: ClassVar[str] = "biased; the bias falls geometrically in k once the masks have settled"

    def __check_init__(self) -> None:
        check_count("k", self.k)

    def check(self, solver: ChambollePock) -> None:
        if self.k > solver.iterations:
            raise HypergradError(
                f"k must be at most iterations; got k={self.k}, iterations={solver.iterations}: "
                "take more iterations or differentiate fewer"
            )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Tape]:
        forward = solver.on(problem, x_tilde)
        run = forward.run(init, record_last=self.k)
        return forward.solution(run.state, run.taken), Tape(forward, run.before, run.history)

    def pullback(self, saved: Tape, cotangent: Cotangent) -> Gradients:
        dproblem, dx_tilde, dsolver, rest = backpropagate(saved, cotangent)
        problem, _, sizes = saved.forward.iteration
        system = LimitSystem.at_last(problem, sizes, saved.history)
        cut_off = PairMetric.at(system).size(rest.delta_P, rest.delta_D, cotangent)
        tolerance = default_tolerance(dx_tilde.dtype)
        stats = AdjointStats.judge(self.k, cut_off, tolerance, products=4 * self.k)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
