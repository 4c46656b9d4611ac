"""The derivative of the true argmin, certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypergrad._foundation.checks import check_count, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import safe_norm
from hypergrad._foundation.status import Status
from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    LimitSystem,
    SolvedPair,
    Tangents,
    Unknowns,
    limit_gradients,
    limit_pushforward,
    solve_both_ways,
)
from hypergrad.chambolle_pock import (
    ChambollePock,
    Iteration,
    Solution,
    State,
    StepSizes,
    certify,
    default_tolerance,
)
from hypergrad.exact import (
    AbstractActiveSystem,
    AbstractSearch,
    ExactPair,
    Factorised,
    MatrixFree,
    least_margin,
    regularization,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch

# Of `tau mu`: what rounding is divided by. It has to be far above what a singular system is shrunk
# by (1e-7 and 3e-3), too, to be told from a kernel.
_LEAST_CURVATURE, _ABOVE_SHRINK = 1e-2, 30.0


class _Saved(NamedTuple):
    limit: LimitSystem
    solver: ChambollePock
    x: Batch
    y: Float[Array, "batch m"]
    unique: Bool[Array, " batch"]
    active: AbstractActiveSystem


class Exact(AbstractStrategy):
    """The lower level solved to machine precision, and the true argmin differentiated.

        grad_K = sigma Delta_D x*^T - tau y* Delta_P^T

    at the optimal pair, `Delta` from one factorised solve. Accelerated iterations find the active
    sets, and one semismooth Newton step at them is exact. Where that fails, Newton's method follows
    the solution as a smoothing vanishes (see `hypergrad.exact`). The pair returned is that of
    minimum norm, whatever the start. Of the solver only the step sizes are used (they scale the
    smoothing), not its iterations or tolerance.

    **Arguments**: `most`, the maximum number of Newton steps per sample, to which 21 are added for
    the attempts before the path (as an array, another number is not another program); `search`, the
    method for the pair and the systems: factorised Newton steps (None), or for whole images
    `hg.MatrixFree()`, which takes only products with K.

    **Returns**, with every sample its certificate, `solution.stats`: residual, gap, margin, the
    rank of K between what is free on either side, and a status: CONVERGED (unique and, away from
    kinks, differentiable; or x = 0 and held there), NONDIFFERENTIABLE (a coordinate on its kink, or
    dependent active rows: the gradient is that of the minimum-norm dual, one of several),
    NOT_UNIQUE (more than one minimiser; the one of minimum `||r||` is returned), NOT_CERTIFIED (the
    residual stayed above `eps^(3/4)`). `adjoint.status`: CONVERGED, MINIMUM_NORM where the system
    was singular but consistent, INCONSISTENT where the minimiser moves freely along something that
    the loss sees.

    **Cost**: 100 accelerated iterations and, for most samples, two factorisations of `m n^2 + 2 n^3
    / 3` multiplications and some thirty solves; tens of them where active rows are dependent.
    Memory `n^2` a sample. A matrix-free K is made a matrix, but by `search=hg.MatrixFree()`.

    **Caveat**: for float64. In float32 it is no more exact than float32.

    **Source**: implicit differentiation of the optimality conditions (MATHEMATICS: the limit
    formula of Brauer & Lorenz); Robinson 1992 for the normal map.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_tilde, x_true = jnp.array([0.1, 1.0, 0.8]), jnp.array([0.0, 1.0, 1.0])
    >>> h = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact())
    >>> f"{h.grad.F.weight:.4f}", hg.Status.summary(h.solution.stats.status)
    ('0.3500', 'converged')
    """

    most: int | Int[Array, ""] = 150
    search: AbstractSearch | None = None
    name: ClassVar[str] = "exact"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "matrix-free": ("search", MatrixFree)
    }
    formula: ClassVar[str] = "sigma Delta_D x*^T - tau y* Delta_P^T at the true optimum"
    cost: ClassVar[str] = "100 iterations and a Newton step of m n^2 a sample for most, memory n^2"
    caveat: ClassVar[str] = "dense in n; where not differentiable, one of several gradients: status"
    follows_solver: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if not isinstance(self.most, Array):
            check_count("most", self.most)
        if self.search is not None and not isinstance(self.search, AbstractSearch):
            raise HypergradError(
                f"search must be a way to search for the exact pair; got {describe(self.search)}: "
                "pass hg.MatrixFree() or None"
            )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        sizes = _seeing_curvature(problem, solver.step_sizes(problem))
        iteration = Iteration(problem, x_tilde, sizes)
        search = Factorised() if self.search is None else self.search
        found = search(iteration, solver.start(problem, x_tilde, init), max_steps=self.most)
        solution = _certified(iteration, found)
        unique = found.unique_P & found.unique_D
        limit = LimitSystem(problem, sizes, found.z)
        return solution, _Saved(limit, solver, solution.x, solution.y, unique, found.system)

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        limit, solver, x, y, unique, active = saved
        right = limit.scaled_right_hand_side(cotangent)
        unknowns, steps, products = active.adjoint_solution(right)
        sums = limit.sums(unknowns, cotangent)
        residual, _ = limit.residual(sums, cotangent)
        tolerance = float(jnp.finfo(residual.dtype).eps) ** 0.5
        good = jnp.where(unique, Status.CONVERGED, Status.MINIMUM_NORM)
        bad = jnp.where(unique, Status.NOT_CERTIFIED, Status.INCONSISTENT)
        status = jnp.where(residual <= tolerance, good, bad)
        stats = AdjointStats.of(steps, residual, status, products)
        grad, dx_tilde = limit_gradients(limit, x, y, sums)
        return Gradients.of_limit(grad, cotangent.x + dx_tilde, solver, stats, sums.pair)

    @property
    def has_pushforward(self) -> bool:
        return True

    def pushforward(self, saved: _Saved, solved: SolvedPair, tangents: Tangents) -> Cotangent:
        active = saved.active

        def backwards(right: Unknowns) -> Unknowns:
            return active.adjoint_solution(right)[0]

        def solve(system: LimitSystem, right: Unknowns) -> Unknowns:
            forwards = active.tangent_solution
            return solve_both_ways(system.scaled_transpose, right, forwards, backwards)

        return limit_pushforward(saved.limit, solved, tangents, solve)


def _seeing_curvature(problem: LowerLevel, sizes: StepSizes) -> StepSizes:
    """Step sizes, of the same product, for which the curvature of G is no rounding.

    On the primal side the system has eigenvalues of about `tau mu`, with `mu` the strong convexity
    of G. Where the solver's tau is so short that they look like a kernel, a longer one is taken:
    the solution does not depend on it.
    """
    mu = problem.G.strong_convexity
    if mu is None:
        return sizes
    least = max(_LEAST_CURVATURE, _ABOVE_SHRINK * regularization(problem.dtype))
    seen = sizes.tau * mu
    longer = jnp.where(seen > 0, jnp.maximum(1.0, least / jnp.where(seen > 0, seen, 1.0)), 1.0)
    return StepSizes(sizes.tau * longer, sizes.sigma / longer, sizes.theta)


def _certified(iteration: Iteration, found: ExactPair) -> Solution:
    """Return the pair with its certificate."""
    problem, x_tilde, (tau, sigma, _) = iteration
    r, y = problem.G.prox(found.z.z_P, tau), problem.F.prox_conjugate(found.z.z_D, sigma)
    stats = certify(iteration, r, y, found.iterations, None)
    on_kink = stats.margin <= least_margin(r.dtype)
    rank, x = found.system.rank(found.unique_D), x_tilde + r
    # Active rows that leave no freedom keep x at 0 whatever moves: then their dependence is nothing
    # to the gradient, which is that of a constant.
    is_0 = safe_norm(x) <= default_tolerance(r.dtype) * safe_norm(x_tilde)
    differentiable = (found.unique_D | (is_0 & (rank == problem.n))) & ~on_kink
    status = jnp.where(differentiable, Status.CONVERGED, Status.NONDIFFERENTIABLE)
    status = jnp.where(found.unique_P, status, Status.NOT_UNIQUE)
    gave_up = stats.status == Status.ITERATIONS_USED_UP
    worse = jnp.where(gave_up, Status.NOT_CERTIFIED, stats.status)
    status = jnp.where(stats.status == Status.CONVERGED, status, worse)
    stats = eqx.tree_at(
        lambda s: (s.status, s.products, s.rank),
        stats,
        (status.astype(jnp.int32), stats.products + found.products, rank),
        is_leaf=lambda leaf: leaf is None,
    )
    return Solution(x, y, stats, State(r, r, y))
