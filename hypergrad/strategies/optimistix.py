"""Implicit differentiation and checkpointed unrolling by optimistix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import LINEAX_SOLVERS, AdjointStats, Cotangent, Gradients
from hypergrad.chambolle_pock import ChambollePock, Iteration, Solution, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch
from hypergrad.strategies._implicit_peer import AbstractImplicitPeer, FixedPoint, import_peer

# ------------------------------------------------------------------ implicit differentiation


class _Silent(lx.AbstractLinearSolver[Any]):
    """A lineax solver whose failure is no error.

    optimistix has nowhere to put a failure of the backward solve and raises, for one sample of a
    batch as for all. A solution that is not finite would raise too: 0 stands for it.
    """

    solver: lx.AbstractLinearSolver[Any]

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]):
        return self.solver.init(operator, options)

    def compute(self, state: Any, vector: Any, options: dict[str, Any]):
        solution, _, stats = self.solver.compute(state, vector, options)
        finite = jnp.all(jnp.isfinite(solution))
        return jnp.where(finite, solution, 0.0), lx.RESULTS.successful, stats

    def transpose(self, state: Any, options: dict[str, Any]):
        return self.solver.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]):
        return self.solver.conj(state, options)

    def assume_full_rank(self):
        return self.solver.assume_full_rank()


def _largest_move(difference: Any) -> Array:
    """The largest entry; in JAX's default precision, which optimistix starts from in any case."""
    sizes = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(difference)]
    return jnp.max(jnp.stack(sizes)).astype(float)


def _with_offset(s: Array, arguments: tuple[FixedPoint, Array]) -> Array:
    T, e = arguments
    return T(s) + e


def _as_lineax_solver(solver: Any) -> lx.AbstractLinearSolver[Any]:
    if isinstance(solver, lx.AbstractLinearSolver):
        return solver
    raise HypergradError(
        f"linear_solver must be a lineax solver; got {solver!r}: use for example lineax.LU()"
    )


class OptimistixImplicit(AbstractImplicitPeer):
    """Implicit differentiation by optimistix, at the state that the core arrived at.

        grad_p = <w, d/dp T(s)>,    (I - T'(s)^T) w = c

    with `optimistix.fixed_point(..., adjoint=optimistix.ImplicitAdjoint(linear_solver))`.

    **Arguments**: `linear_solver`, a lineax solver; by default that of optimistix,
    `AutoLinearSolver(well_posed=None)`, which is LU here. The tolerances of a Krylov solver are
    relative to the cotangent.

    **Errors**: an `ImportError` where optimistix cannot be imported.

    **Cost**: the solve; a dense `(m + n)^2` matrix a sample by default, 2 products a step by GMRES,
    4 by BiCGStab; memory independent of L. optimistix does not tell the steps: of the
    adjoint, `steps` is None and `products` a lower bound.

    **Caveat**: needs a converged lower level. By itself optimistix raises where a linear solve
    fails; here it is that sample's status, NOT_CERTIFIED (a residual above `sqrt(eps)`) or
    NON_FINITE. Where the system is singular the solver may fail, or end at a solution that is not
    the one of minimum norm, which the residual cannot tell.

    **Source**: Blondel et al. 2022; optimistix (Rader, Lyons & Kidger 2024).

    >>> import hypergrad as hg
    >>> hg.OptimistixImplicit().label, hg.parse_strategy("optimistix:gmres").label
    ('optimistix:autolinearsolver', 'optimistix:gmres')
    """

    linear_solver: lx.AbstractLinearSolver[Any] = eqx.field(
        converter=_as_lineax_solver, default=lx.AutoLinearSolver(well_posed=None)
    )
    name: ClassVar[str] = "optimistix"
    formula: ClassVar[str] = "<w, dT/dp> at s = T(s), (I - T'^T) w = c by optimistix and lineax"
    cost: ClassVar[str] = "time 1 solve and the linear solve, memory (m + n)^2 a sample by default"
    caveat: ClassVar[str] = "wrong where the lower level is not converged; singular systems fail"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "autolinearsolver": ("linear_solver", lambda: lx.AutoLinearSolver(well_posed=None)),
        **{word: ("linear_solver", make) for word, make in LINEAX_SOLVERS.items()},
    }

    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        optimistix = import_peer("optimistix")

        def fixed_point(e: Array) -> Array:
            return optimistix.fixed_point(
                _with_offset,
                optimistix.FixedPointIteration(rtol=1.0, atol=1.0, norm=_largest_move),
                s,
                (T, e),
                max_steps=0,  # s is where the core arrived: nothing is left but to differentiate
                adjoint=optimistix.ImplicitAdjoint(_Silent(self.linear_solver)),
                throw=False,
            ).value

        (w,) = jax.vjp(fixed_point, jnp.zeros_like(s))[1](c)
        # The solution is 0 for c = 0 only: any other 0 is a failure, which _Silent has covered up.
        return jnp.where(jnp.all(w == 0) & jnp.any(c != 0), jnp.nan, w)


# ---------------------------------------------------------------------- checkpointed unrolling


def _unfinished_step(
    iterate: tuple[State, Array], arguments: tuple[Iteration, Array]
) -> tuple[State, Array]:
    """Advance the samples that are not done yet by one iteration, and count it."""
    (state, done), (iteration, taken) = iterate, arguments
    moved, _ = iteration.step(state)
    running = (done < taken)[..., None]
    state = jax.tree.map(lambda old, new: jnp.where(running, new, old), state, moved)
    return state, jnp.minimum(done + 1, taken)


class _Saved(NamedTuple):
    pull: Callable[[Cotangent], Any]
    taken: Int[Array, " batch"]


class OptimistixCheckpointed(AbstractStrategy):
    """The gradient of `x[L]` through all iterations, recomputed from checkpoints by optimistix.

        grad_K = sum_{l=1..L} sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    with `optimistix.fixed_point(..., adjoint=optimistix.RecursiveCheckpointAdjoint(checkpoints))`.
    The same number as full unrolling gives, in less memory.

    **Arguments**: `checkpoints`, how many states are kept; by default optimistix takes about
    `log L` (of the iterations) of them.

    **Errors**: an `ImportError` where optimistix cannot be imported.

    **Cost**: 6 products with K an iteration more than the solve, and what is recomputed more than
    once comes on top (up to a factor `log L`): `products` of the adjoint is a lower bound. Memory
    `checkpoints (m + n)` a sample. With a tolerance on the solver it solves twice, first to learn
    how many iterations each sample takes.

    **Caveat**: exact for the finite number of iterations, also where the lower level is not
    converged; and then it is the gradient of another problem.

    **Source**: Stumm & Walther 2010; Wang, Moin & Iaccarino 2009 (checkpoints for a loop whose
    length is not known).

    >>> import hypergrad as hg
    >>> hg.OptimistixCheckpointed(checkpoints=20).label
    'optimistix-checkpointed:checkpoints=20'
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "optimistix-checkpointed"
    formula: ClassVar[str] = "sum over all L iterations of the delta recursion, by optimistix"
    cost: ClassVar[str] = "time 4 solves or more, memory checkpoints (m + n) a sample"
    caveat: ClassVar[str] = "exact for the finite L only"
    differentiates_every_iteration: ClassVar[bool] = True

    def __check_init__(self) -> None:
        if self.checkpoints is not None:
            check_count("checkpoints", self.checkpoints)

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        optimistix = import_peer("optimistix")
        # optimistix ends the loop, which is that of the whole batch, at the first NaN.
        finite = jnp.where(jnp.isfinite(x_tilde), x_tilde, 0.0)
        start = solver.start(problem, finite, init)
        taken = solver.on(problem, finite).run(start).taken
        # An iterate is differentiated, and so made of floats.
        counts = taken.astype(x_tilde.dtype)
        # The count is part of the iterate and moves by 1: nothing has arrived while it moves.
        until_nothing_moves = optimistix.FixedPointIteration(0.0, atol=0.5, norm=_largest_move)
        adjoint = optimistix.RecursiveCheckpointAdjoint(self.checkpoints)

        def run(arguments: Any):
            problem, x_tilde, solver = arguments
            forward = solver.on(problem, x_tilde)
            finite = jnp.where(jnp.isfinite(x_tilde), x_tilde, 0.0)
            state, _ = optimistix.fixed_point(
                _unfinished_step,
                until_nothing_moves,
                (start, jnp.zeros_like(counts)),
                (forward.iteration._replace(x_tilde=finite), counts),
                max_steps=solver.iterations,
                adjoint=adjoint,
                throw=False,
            ).value
            solution = forward.solution(state, taken)
            return Cotangent(solution.x, solution.y), solution

        _, pull, solution = eqx.filter_vjp(run, (problem, x_tilde, solver), has_aux=True)
        return solution, _Saved(pull, taken)

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        pull, taken = saved
        dproblem, dx_tilde, dsolver = pull(cotangent)[0]
        stats = AdjointStats.exact(taken, dx_tilde, products=6 * taken)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
