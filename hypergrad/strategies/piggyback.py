"""Adjoint iterations interleaved with the forward ones."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    DeltaSums,
    Gradients,
    LimitSystem,
    adjoint_step,
    limit_gradients,
    start_adjoint,
)
from hypergrad.chambolle_pock import (
    AdjointPair,
    ChambollePock,
    ForwardSolve,
    ProxArguments,
    Solution,
    State,
    default_tolerance,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch

# Deviations from Bogensperger, Chambolle & Pock 2022:
#
# 1. There, g is the gradient of the loss at the iterate of the moment. A custom rule learns g when
#    the forward iteration has ended, so here g is that at the last iterate from the first adjoint
#    iteration on. The limit is the same wherever the adjoint iteration forgets its beginnings.
# 2. For that the forward iteration runs twice, the second time in step with the adjoint one. To
#    store its prox arguments instead would take the memory of full unrolling.
# 3. The adjoint iteration is that of the posters, whose primal step comes first (the forward
#    iteration's dual step does), and it starts from zero or from the adjoint part of `init`.


class _Saved(NamedTuple):
    forward: ForwardSolve
    start: State
    taken: Int[Array, " batch"]
    earlier: AdjointPair | None


class Piggyback(AbstractStrategy):
    """The limit formula with an adjoint that is iterated along with the lower level.

        Delta_P[l] = prox'_{tau G}(z_P[l])    * ( Delta_P[l-1] + sigma K^T Delta_bar_D[l-1] + g )
        Delta_D[l] = prox'_{sigma F*}(z_D[l]) * ( Delta_D[l-1] - tau K Delta_P[l] )
        Delta_bar_D[l] = Delta_D[l] + theta (Delta_D[l] - Delta_D[l-1])           l = 1, …, L

        grad_K = sigma Delta_D[L] x[L]^T - tau y[L] Delta_P[L]^T

    While the masks are those of the solution this is the iteration of `LimitFormula(Steps(L))`;
    what earlier masks have put into `Delta` is forgotten at the rate of that iteration.

    **Cost**: the solve twice, and 2 L products for the adjoint; memory for one state.

    **Caveat**: needs a converged lower level, and then as many iterations again as the adjoint
    takes: look at the residuals of both. With a tolerance each sample's adjoint takes as many
    iterations as its lower level did (at least one), which may be too few: started from an earlier
    state, hardly any.

    **Source**: Griewank & Faure 2003 (piggyback iterations); Bogensperger, Chambolle & Pock 2022,
    for this algorithm (deviations are numbered in the source).

    >>> import hypergrad as hg
    >>> hg.Piggyback().label
    'piggyback'
    """

    name: ClassVar[str] = "piggyback"
    formula: ClassVar[str] = "sigma Delta_D x^T - tau y Delta_P^T, Delta iterated along with x, y"
    cost: ClassVar[str] = "time 3 solves, memory independent of L"
    caveat: ClassVar[str] = "wrong where the lower level or the adjoint is not converged"
    differentiates_every_iteration: ClassVar[bool] = True

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        forward = solver.on(problem, x_tilde)
        start = forward.start(init)
        run = forward.run(start, record_last=1)
        earlier = None if init is None else init.adjoint
        saved = _Saved(forward, start, run.taken, earlier)
        return forward.solution(run.state, run.taken), saved

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        (solver, iteration), start, taken, earlier = saved
        problem, x_tilde, sizes = iteration

        def body(l: Array, carry: Any):
            state, later, *_ = carry
            new_state, z = iteration.step(state)
            adjoint, terms = adjoint_step(problem, sizes, z, later, cotangent)
            new = (new_state, adjoint, z, DeltaSums.of(adjoint, terms))
            running = (l < taken)[:, None]
            return jax.tree.map(lambda new, old: jnp.where(running, new, old), new, carry)

        adjoint = start_adjoint(problem, cotangent, earlier)
        z = ProxArguments(jnp.zeros_like(start.y), jnp.zeros_like(start.r))
        nothing = DeltaSums(start.r, start.y, start.r, start.y, start.y, start.r)
        carry = (start, adjoint, z, jax.tree.map(jnp.zeros_like, nothing))
        state, _, z, sums = jax.lax.fori_loop(0, jnp.max(taken), body, carry)

        system = LimitSystem(problem, sizes, z)
        grad, dx_tilde = limit_gradients(system, x_tilde + state.r, state.y, sums)
        residual, rounding = system.residual(sums, cotangent)
        # 2 of each iteration's 4 products run the lower level again; a warm start takes one more.
        products = 4 * taken + 2 + int(earlier is not None)
        tolerance = default_tolerance(x_tilde.dtype)
        stats = AdjointStats.judge(taken, residual, tolerance, rounding, products=products)
        return Gradients.of_limit(grad, cotangent.x + dx_tilde, solver, stats, sums.pair)
