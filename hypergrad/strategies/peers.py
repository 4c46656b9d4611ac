"""The peers: jaxopt and optimistix on the same iteration, behind the same interface.

So that a comparison compares how one differentiates and nothing else, the implicit peers start from
the state that the core has arrived at, and are given the fixed-point equation in its smallest form:
at a fixed point `r_bar = r`, so the unknowns are `s = (r, y)`, one vector of size m + n a sample,

    s = T(s),    T(r, y) = (r', y') of one iteration from (r, r, y),

and theta drops out. For a cotangent c of s a peer solves `(I - T'(s)^T) w = c`, by its own rule for
differentiating a fixed point (in an offset e of `s = T(s) + e`, whose cotangent w is) and its own
linear solver. What is left, `<w, d/dp T>`, is one reverse pass through one iteration. It is done
for the whole batch at once, so that the gradient in K is one matrix product, and gives `T'(s)^T w`
on the way: the residual of the peer's system costs nothing, and decides the status, since neither
peer says how its solve went.

The solve is mapped over the samples. A product with a mapped K is a matrix product all the same, a
sample is done when it is done, and one that fails or is NaN spoils no other. Tried against one
system for the whole batch (256 natural patches, float64, jaxopt's solvers): near the DCT, where
samples are alike, one system took three quarters of the time by normal CG and BiCGStab and a little
more by GMRES; with a random K twice as wide the mapped solve took a third of the time by normal CG
and four fifths by GMRES, while BiCGStab broke down on more than half of the samples and not on the
one system.

jaxopt is no longer maintained and optimistix is needed by nothing else here: each is imported where
it is used, so that without it only its own strategy fails.
"""

from __future__ import annotations

import abc
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._checks import check_count
from hypergrad.adjoint import AdjointStats, Cotangent, Gradients, relative_size
from hypergrad.chambolle_pock import (
    ChambollePock,
    Solution,
    State,
    StepSizes,
    default_tolerance,
)
from hypergrad.lower_level import LowerLevel
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractStrategy, Batch

__all__ = [
    "AbstractImplicitPeer",
    "AbstractJaxoptSolve",
    "JaxoptBiCGStab",
    "JaxoptGMRES",
    "JaxoptImplicit",
    "JaxoptLU",
    "JaxoptNormalCG",
    "OptimistixCheckpointed",
    "OptimistixImplicit",
]

# What is asked of the Krylov solvers of lineax, which want a number before there is a dtype.
_LINEAX_TOLERANCE = 1e-10


def _import_peer(package: str) -> Any:
    """A peer's package; an `ImportError` says what to install."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        # Its module-level arrays are to be arrays, also if it is first needed while tracing.
        with jax.ensure_compile_time_eval():
            try:
                return importlib.import_module(package)
            except ImportError as error:
                name = package.partition(".")[0]
                raise ImportError(
                    f"this strategy needs {name}, which cannot be imported ({error}): "
                    f"pip install {name}"
                ) from error


# --------------------------------------------------------------------- implicit differentiation


class FixedPoint(eqx.Module):
    """`T`, from `s = (r, y)` to the next, for one sample or a batch."""

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
    sizes: StepSizes

    def __call__(self, s: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        r, y = jnp.split(s, [self.problem.n], axis=-1)
        moved = self.solver.step(self.problem, self.x_tilde, self.sizes, State(r, r, y))
        return jnp.concatenate([moved.r, moved.y], axis=-1)


class AbstractImplicitPeer(AbstractStrategy):
    """Implicit differentiation of the fixed point of the iteration, by another package."""

    @abc.abstractmethod
    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        """The peer's solution w of `(I - T'(s)^T) w = c`, for one sample; c has size 1."""

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        sizes = solver.step_sizes(problem)
        start = solver.start(problem, x_tilde, init)
        state, taken = solver.approach(problem, x_tilde, sizes, start, keep=0)
        solution = solver.solution(problem, x_tilde, sizes, state, taken)
        return solution, (problem, x_tilde, solver, sizes, state)

    def pullback(self, residuals: Any, cotangent: Cotangent) -> Gradients:
        problem, x_tilde, solver, sizes, state = residuals
        s = jnp.concatenate([state.r, state.y], axis=-1)
        c = jnp.concatenate(cotangent, axis=-1)

        def solve_sample(x_tilde: Array, s: Array, c: Array) -> Array:
            # An absolute tolerance then is a relative one; a loss averaged over a batch is small.
            size = jnp.linalg.norm(c)
            size = jnp.where(size == 0, 1.0, size)
            return size * self.adjoint(FixedPoint(problem, x_tilde, solver, sizes), s, c / size)

        w = jax.vmap(solve_sample)(x_tilde, s, c)

        def one_iteration(arguments):
            problem, x_tilde, s = arguments
            return FixedPoint(problem, x_tilde, solver, sizes)(s)

        _, pull = eqx.filter_vjp(one_iteration, (problem, x_tilde, s))
        dproblem, dx_tilde, transposed = pull(w)[0]

        misfit_r, misfit_y = jnp.split(c - w + transposed, [problem.n], axis=-1)
        residual = relative_size(misfit_r, misfit_y, cotangent, sizes)
        tolerance = float(jnp.finfo(residual.dtype).eps) ** 0.5
        status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.NOT_CERTIFIED)
        # A peer does not tell: one step of 2 products at the least, and 6 for the last pass.
        stats = AdjointStats.of(1, residual, status, 8)
        # The limit does not depend on tau, sigma and theta.
        dsolver = jax.tree.map(jnp.zeros_like, eqx.filter(solver, eqx.is_inexact_array))
        return Gradients(dproblem, cotangent.x + dx_tilde, dsolver, stats)


# ------------------------------------------------------------------------------------- jaxopt


class AbstractJaxoptSolve(eqx.Module):
    """One of jaxopt's linear solvers, as jaxopt takes it: `solve(matvec, b)`.

    A function of jaxopt or of the user's can stand in its place; these can be named on the command
    line, and ask for the accuracy of the core (`eps^(3/4)`) where jaxopt would stop at 1e-5.
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The solver as it is written on the command line."""

    @abc.abstractmethod
    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        """The solution x of `matvec(x) = b`."""


def _spell(name: str, rtol: float | None) -> str:
    return name if rtol is None else f"{name}={rtol:g}"


def _check_krylov(rtol: float | None, most: int | None) -> None:
    if rtol is not None and not 0 < rtol < 1:
        raise ValueError(f"rtol must lie between 0 and 1; got {rtol}: try 1e-10")
    if most is not None:
        check_count("most", most)


def _tolerance(rtol: float | None, b: Array) -> float:
    return default_tolerance(b.dtype) if rtol is None else rtol


class JaxoptNormalCG(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_normal_cg`, what jaxopt takes where nothing is said.

    Conjugate gradients on `A^T A w = A^T c`, formed as a product, so that the condition number is
    squared. `rtol`, of the residual of that; `most` steps, by default 10 (m + n). 4 products a
    step.
    """

    rtol: float | None = eqx.field(static=True, default=None)
    most: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check_krylov(self.rtol, self.most)

    @property
    def label(self) -> str:
        return _spell("normal_cg", self.rtol)

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        solve = _import_peer("jaxopt.linear_solve").solve_normal_cg
        return solve(matvec, b, tol=_tolerance(self.rtol, b), maxiter=self.most)


class JaxoptGMRES(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_gmres`, restarted: 2 products a step.

    `rtol`, of the residual; `restart`, the steps between two restarts; `most` restarts, by default
    10 (m + n).
    """

    rtol: float | None = eqx.field(static=True, default=None)
    restart: int = eqx.field(static=True, default=20)
    most: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check_krylov(self.rtol, self.most)
        check_count("restart", self.restart)

    @property
    def label(self) -> str:
        return _spell("gmres", self.rtol)

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        solve = _import_peer("jaxopt.linear_solve").solve_gmres
        tol, restart = _tolerance(self.rtol, b), min(self.restart, b.size)
        return solve(matvec, b, tol=tol, restart=restart, maxiter=self.most)


class JaxoptBiCGStab(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_bicgstab`: 4 products a step, and it may break down.

    `rtol`, of the residual; `most` steps, by default 10 (m + n).
    """

    rtol: float | None = eqx.field(static=True, default=None)
    most: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check_krylov(self.rtol, self.most)

    @property
    def label(self) -> str:
        return _spell("bicgstab", self.rtol)

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        solve = _import_peer("jaxopt.linear_solve").solve_bicgstab
        return solve(matvec, b, tol=_tolerance(self.rtol, b), maxiter=self.most)


class JaxoptLU(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_lu`: a dense `(m + n)^2` matrix a sample, by m + n products."""

    @property
    def label(self) -> str:
        return "lu"

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        return _import_peer("jaxopt.linear_solve").solve_lu(matvec, b)


def _as_jaxopt_solve(solve: Any) -> Any:
    if callable(solve):
        return solve
    raise ValueError(
        f"linear_solver must be a function solve(matvec, b); got {solve!r}: use for example "
        "hg.JaxoptGMRES() or one of jaxopt.linear_solve"
    )


class JaxoptImplicit(AbstractImplicitPeer):
    """Implicit differentiation by jaxopt, at the state that the core arrived at.

        grad_p = <w, d/dp T(s)>,    (I - T'(s)^T) w = c

    with `jaxopt.implicit_diff.root_vjp`, which is what jaxopt's `FixedPointIteration` and
    `custom_fixed_point` call to differentiate.

    **Arguments**: `linear_solver`: `JaxoptNormalCG()` (jaxopt's default), `JaxoptGMRES()`,
    `JaxoptBiCGStab()`, `JaxoptLU()`, or a function `solve(matvec, b)` as jaxopt takes it.

    **Errors**: an `ImportError` where jaxopt cannot be imported.

    **Cost**: the solve; 2 products a step (4 by normal CG and BiCGStab), as many as the slowest
    sample needs; memory independent of L. jaxopt does not tell its steps: `steps` and `products`
    of the adjoint are lower bounds.

    **Caveat**: needs a converged lower level. Of a failed solve jaxopt says nothing: the status is
    by the residual, NOT_CERTIFIED above `sqrt(eps)`. Where the system is singular the solver may
    fail, or end at a solution that is not the one of minimum norm, which the residual cannot tell.

    **Source**: Blondel et al. 2022; jaxopt is no longer maintained.

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit().label, hg.parse_strategy("jaxopt:gmres=1e-6").label
    ('jaxopt:normal_cg', 'jaxopt:gmres=1e-06')
    """

    linear_solver: Callable[[Callable[[Array], Array], Array], Array] = eqx.field(
        static=True, converter=_as_jaxopt_solve, default=JaxoptNormalCG()
    )
    name: ClassVar[str] = "jaxopt"
    formula: ClassVar[str] = "<w, dT/dp> at the fixed point s = T(s), (I - T'^T) w = c by jaxopt"
    cost: ClassVar[str] = "time 1 solve and the linear solve, memory independent of L"
    caveat: ClassVar[str] = "wrong where the lower level is not converged; singular systems fail"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "normal_cg": ("linear_solver", JaxoptNormalCG),
        "gmres": ("linear_solver", JaxoptGMRES),
        "bicgstab": ("linear_solver", JaxoptBiCGStab),
        "lu": ("linear_solver", JaxoptLU),
    }

    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        root_vjp = _import_peer("jaxopt.implicit_diff").root_vjp

        def optimality(s: Array, e: Array) -> Array:
            return T(s) + e - s

        return root_vjp(optimality, s, (jnp.zeros_like(s),), c, self.linear_solver)[0]


# --------------------------------------------------------------------------------- optimistix


class _Silent(lx.AbstractLinearSolver):
    """A lineax solver whose failure is no error.

    optimistix has nowhere to put a failure of the backward solve and raises, for one sample of a
    batch as for all. A solution that is not finite would raise too: 0 stands for it.
    """

    solver: lx.AbstractLinearSolver

    def init(self, operator, options):
        return self.solver.init(operator, options)

    def compute(self, state, vector, options):
        solution, _, stats = self.solver.compute(state, vector, options)
        finite = jnp.all(jnp.isfinite(solution))
        return jnp.where(finite, solution, 0.0), lx.RESULTS.successful, stats

    def transpose(self, state, options):
        return self.solver.transpose(state, options)

    def conj(self, state, options):
        return self.solver.conj(state, options)

    def assume_full_rank(self):
        return self.solver.assume_full_rank()


def _most_moved(difference: Any) -> Array:
    """The largest entry; in JAX's default precision, which optimistix starts from in any case."""
    sizes = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(difference)]
    return jnp.max(jnp.stack(sizes)).astype(float)


def _with_offset(s: Array, arguments: tuple[FixedPoint, Array]) -> Array:
    T, e = arguments
    return T(s) + e


def _gmres() -> lx.GMRES:
    return lx.GMRES(rtol=_LINEAX_TOLERANCE, atol=_LINEAX_TOLERANCE)


def _bicgstab() -> lx.BiCGStab:
    return lx.BiCGStab(rtol=_LINEAX_TOLERANCE, atol=_LINEAX_TOLERANCE)


def _as_lineax_solver(solver: Any) -> lx.AbstractLinearSolver:
    if isinstance(solver, lx.AbstractLinearSolver):
        return solver
    raise ValueError(
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
    4 by BiCGStab; memory independent of L. optimistix does not tell the steps: `steps` and
    `products` of the adjoint are lower bounds.

    **Caveat**: needs a converged lower level. By itself optimistix raises where a linear solve
    fails; here it is that sample's status, NOT_CERTIFIED (a residual above `sqrt(eps)`) or
    NON_FINITE. Where the system is singular the solver may fail, or end at a solution that is not
    the one of minimum norm, which the residual cannot tell.

    **Source**: Blondel et al. 2022; optimistix (Rader, Lyons & Kidger 2024).

    >>> import hypergrad as hg
    >>> hg.OptimistixImplicit().label, hg.parse_strategy("optimistix:gmres").label
    ('optimistix:autolinearsolver', 'optimistix:gmres')
    """

    linear_solver: lx.AbstractLinearSolver = eqx.field(
        converter=_as_lineax_solver, default=lx.AutoLinearSolver(well_posed=None)
    )
    name: ClassVar[str] = "optimistix"
    formula: ClassVar[str] = "<w, dT/dp> at s = T(s), (I - T'^T) w = c by optimistix and lineax"
    cost: ClassVar[str] = "time 1 solve and the linear solve, memory (m + n)^2 a sample by default"
    caveat: ClassVar[str] = "wrong where the lower level is not converged; singular systems fail"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "autolinearsolver": ("linear_solver", lambda: lx.AutoLinearSolver(well_posed=None)),
        "gmres": ("linear_solver", _gmres),
        "bicgstab": ("linear_solver", _bicgstab),
        "lu": ("linear_solver", lx.LU),
        "svd": ("linear_solver", lx.SVD),
    }

    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        optimistix = _import_peer("optimistix")

        def fixed_point(e: Array) -> Array:
            return optimistix.fixed_point(
                _with_offset,
                optimistix.FixedPointIteration(rtol=1.0, atol=1.0, norm=_most_moved),
                s,
                (T, e),
                max_steps=0,  # s is where the core arrived: nothing is left but to differentiate
                adjoint=optimistix.ImplicitAdjoint(_Silent(self.linear_solver)),
                throw=False,
            ).value

        (w,) = jax.vjp(fixed_point, jnp.zeros_like(s))[1](c)
        # The solution is 0 for c = 0 only: any other 0 is a failure, which _Silent has covered up.
        return jnp.where(jnp.all(w == 0) & jnp.any(c != 0), jnp.nan, w)


# ------------------------------------------------------------------------ checkpointed unrolling


def _unfinished_step(
    iterate: tuple[State, Array],
    arguments: tuple[LowerLevel, Array, ChambollePock, StepSizes, Array],
) -> tuple[State, Array]:
    """One iteration of the samples that have not had theirs, and how many each has had."""
    (state, done), (problem, x_tilde, solver, sizes, taken) = iterate, arguments
    moved = solver.step(problem, x_tilde, sizes, state)
    running = (done < taken)[..., None]
    state = jax.tree.map(lambda old, new: jnp.where(running, new, old), state, moved)
    return state, jnp.minimum(done + 1, taken)


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

    def __check_init__(self):
        if self.checkpoints is not None:
            check_count("checkpoints", self.checkpoints)

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Any]:
        optimistix = _import_peer("optimistix")
        # optimistix ends the loop, which is that of the whole batch, at the first NaN.
        finite = jnp.where(jnp.isfinite(x_tilde), x_tilde, 0.0)
        start = solver.start(problem, finite, init)
        _, taken = solver.approach(problem, finite, solver.step_sizes(problem), start, keep=0)
        # An iterate is differentiated, and so made of floats.
        counts = taken.astype(x_tilde.dtype)
        # The count is part of the iterate and moves by 1: nothing has arrived while it moves.
        until_nothing_moves = optimistix.FixedPointIteration(0.0, atol=0.5, norm=_most_moved)
        adjoint = optimistix.RecursiveCheckpointAdjoint(self.checkpoints)

        def run(arguments):
            problem, x_tilde, solver = arguments
            sizes = solver.step_sizes(problem)
            finite = jnp.where(jnp.isfinite(x_tilde), x_tilde, 0.0)
            state, _ = optimistix.fixed_point(
                _unfinished_step,
                until_nothing_moves,
                (start, jnp.zeros_like(counts)),
                (problem, finite, solver, sizes, counts),
                max_steps=solver.iterations,
                adjoint=adjoint,
                throw=False,
            ).value
            solution = solver.solution(problem, x_tilde, sizes, state, taken)
            return Cotangent(solution.x, solution.y), solution

        _, pull, solution = eqx.filter_vjp(run, (problem, x_tilde, solver), has_aux=True)
        return solution, (pull, taken)

    def pullback(self, residuals: Any, cotangent: Cotangent) -> Gradients:
        pull, taken = residuals
        dproblem, dx_tilde, dsolver = pull(cotangent)[0]
        stats = AdjointStats.exact(taken, dx_tilde, products=6 * taken)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
