"""The base of the implicit peers: other packages on the same iteration.

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
it is used, so that without it only its own strategies fail.
"""

from __future__ import annotations

import abc
import importlib
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.samples import safe_norm
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats, Cotangent, Gradients, LimitSystem, PairMetric
from hypergrad.chambolle_pock import ChambollePock, ForwardSolve, Iteration, Solution, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch


def import_peer(package: str) -> Any:
    """Import a peer's package; an `ImportError` tells what to install."""
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


class FixedPoint(eqx.Module):
    """`T`, from `s = (r, y)` to the next, for one sample or a batch."""

    iteration: Iteration

    def __call__(self, s: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        r, y = jnp.split(s, [self.iteration.problem.n], axis=-1)
        moved, _ = self.iteration.step(State(r, r, y))
        return jnp.concatenate([moved.r, moved.y], axis=-1)


class _Saved(NamedTuple):
    forward: ForwardSolve
    state: State


class AbstractImplicitPeer(AbstractStrategy):
    """Implicit differentiation of the fixed point of the iteration, by another package."""

    @abc.abstractmethod
    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        """Return the peer's solution w of `(I - T'(s)^T) w = c`, for one sample; c has size 1."""

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        forward = solver.on(problem, x_tilde)
        solution = forward.solve(init)
        return solution, _Saved(forward, solution.state)

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        (solver, iteration), state = saved
        problem, x_tilde, sizes = iteration
        s = jnp.concatenate([state.r, state.y], axis=-1)
        c = jnp.concatenate(cotangent, axis=-1)

        def solve_sample(x_tilde: Array, s: Array, c: Array) -> Array:
            # An absolute tolerance then is a relative one; a loss averaged over a batch is small.
            size = safe_norm(c)
            size = jnp.where(size == 0, 1.0, size)
            return size * self.adjoint(FixedPoint(Iteration(problem, x_tilde, sizes)), s, c / size)

        w = jax.vmap(solve_sample)(x_tilde, s, c)

        def one_iteration(arguments: Any):
            problem, x_tilde, s = arguments
            return FixedPoint(Iteration(problem, x_tilde, sizes))(s)

        _, pull = eqx.filter_vjp(one_iteration, (problem, x_tilde, s))
        dproblem, dx_tilde, transposed = pull(w)[0]

        misfit_r, misfit_y = jnp.split(c - w + transposed, [problem.n], axis=-1)
        # The last iteration's prox arguments, from which the state came.
        _, z = iteration.step(State(state.r, state.r, state.y))
        metric = PairMetric.at(LimitSystem(problem, sizes, z))
        residual = metric.misfit(misfit_r, misfit_y, cotangent)
        tolerance = float(jnp.finfo(residual.dtype).eps) ** 0.5
        status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.NOT_CERTIFIED)
        # A peer does not tell its steps: one of 2 products at the least, and 8 for what follows.
        stats = AdjointStats.of(None, residual, status, 10)
        return Gradients.of_limit(dproblem, cotangent.x + dx_tilde, solver, stats)
