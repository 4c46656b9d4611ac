"""The inputs and results of a backward solve."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypergrad._foundation.printing import as_sentence, worst
from hypergrad._foundation.status import Status
from hypergrad.chambolle_pock import ROUNDINGS, AdjointPair, ChambollePock
from hypergrad.problem.lower_level import LowerLevel


class Cotangent(NamedTuple):
    """The derivative of the loss in the returned `x` (`g`) and `y` (`g_y`): what a pullback takes.

    Its fields are `x (..., n)` and `y (..., m)`.

    >>> import hypergrad as hg
    >>> hg.Cotangent(x=jnp.ones((4, 3)), y=jnp.zeros((4, 2))).y.shape
    (4, 2)
    """

    x: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]


class Tangents(NamedTuple):
    """Perturbations of the arguments of a solve, in their structure."""

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]


class SolvedPair(NamedTuple):
    """The arguments of a solve and the pair found there, all of which may still be varied.

    A derivative is taken there; for one of higher order, `x` and `y` move with the arguments.
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    x: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]


class AdjointStats(eqx.Module):
    """The statistics of the backward solve, one entry per sample.

    `steps`, None if unknown; `residual`: of the limit system relative to `g` for a limit formula,
    the relative size of the part that was cut off for a truncation, 0 where the differentiation is
    exact, NaN if unknown; `status`, a `Status`; `products` with K or its transpose in the backward
    solve, where a gradient in K counts as two, None if unknown.

    A strategy makes it by one of four: `exact`, `judge` (a residual and a tolerance), `of` (a
    residual and a status), and `unknown`, which claims nothing.

    >>> import hypergrad as hg
    >>> hg.AdjointStats.judge(3, jnp.array([1e-9, 0.2]), 1e-6, products=12)
    AdjointStats(converged 50 %, iterations used up 50 %; worst of 2: steps 3, residual 2.0e-01)
    >>> hg.AdjointStats.unknown(dx_tilde=jnp.ones((2, 5)))
    AdjointStats(unknown 100 %; worst of 2: steps unknown, residual unknown)
    """

    steps: Int[Array, "*batch"] | None
    residual: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    products: Int[Array, "*batch"] | None

    @as_sentence
    def __repr__(self) -> str:
        unknown = np.all(np.asarray(self.status) == Status.UNKNOWN)
        residual = worst(None if unknown else self.residual)
        return (
            f"AdjointStats({Status.summary(self.status)}; worst of {np.size(self.residual)}: "
            f"steps {worst(self.steps, '.0f')}, residual {residual})"
        )

    @classmethod
    def of(
        cls,
        steps: Array | int | None,
        residual: Array,
        status: Array,
        products: Array | int | None,
    ) -> AdjointStats:
        """Take a residual and a status a sample, and counts that may be the same for all.

        NON_FINITE where the residual is not finite, except where the status is UNKNOWN.
        """
        claimed = jnp.isfinite(residual) | (jnp.asarray(status) == Status.UNKNOWN)
        status = jnp.where(claimed, status, Status.NON_FINITE).astype(jnp.int32)
        steps, products = (
            None if count is None else jnp.broadcast_to(count, residual.shape).astype(jnp.int32)
            for count in (steps, products)
        )
        return cls(steps, residual, status, products)

    @classmethod
    def judge(
        cls,
        steps: Array | int | None,
        residual: Array,
        tolerance: Array | float,
        rounding: Array | float = 0.0,
        *,
        products: Array | int | None,
        otherwise: Array | Status = Status.ITERATIONS_USED_UP,
    ) -> AdjointStats:
        """Report CONVERGED within the tolerance, else ROUNDING, or what it is `otherwise`."""
        at_rounding = residual <= ROUNDINGS * rounding
        status = jnp.where(at_rounding, Status.ROUNDING, otherwise)
        status = jnp.where(residual <= tolerance, Status.CONVERGED, status)
        return cls.of(steps, residual, status, products)

    @classmethod
    def exact(
        cls,
        steps: Array | int | None,
        dx_tilde: Float[Array, "*batch n"],
        *,
        products: Array | int | None,
    ) -> AdjointStats:
        """Report that nothing was approximated: residual 0, unless the gradient is not finite."""
        residual = jnp.where(_finite(dx_tilde), 0.0, jnp.nan).astype(dx_tilde.dtype)
        return cls.judge(steps, residual, 0.0, products=products)

    @classmethod
    def unknown(
        cls,
        dx_tilde: Float[Array, "*batch n"],
        *,
        steps: Array | int | None = None,
        products: Array | int | None = None,
    ) -> AdjointStats:
        """Report a gradient of unknown accuracy: residual NaN, status UNKNOWN.

        NON_FINITE where the gradient itself is not finite, which anybody can see.
        """
        finite = _finite(dx_tilde)
        residual = jnp.full(finite.shape, jnp.nan, dx_tilde.dtype)
        status = jnp.where(finite, Status.UNKNOWN, Status.NON_FINITE)
        return cls.of(steps, residual, status, products)


def _finite(dx_tilde: Array) -> Array:
    """Return which samples have a finite gradient."""
    return jnp.all(jnp.isfinite(dx_tilde), axis=-1)


class Gradients(NamedTuple):
    """The result of a pullback: gradients in the three arguments of a solve, and its statistics.

    `problem`, in the structure of the problem, summed over the batch; `x_tilde (batch, n)`;
    `solver`, in the structure of the solver (`tau`, `sigma`, `theta`, …): 0 or None where nothing
    depends on it. `x_tilde` and `solver` are None where only parts of the problem were asked for.
    `stats`, an `AdjointStats`. `adjoint`, where the strategy has one, is what a later backward
    solve can start from; then the gradient in K is the limit formula of these sums, with the
    returned x and y and the solver's step sizes.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> solver, x_tilde = hg.ChambollePock(5), jnp.array([[0.0, 1.0, 1.0]])
    >>> solution, saved = hg.Truncation(k=1).forward(problem, x_tilde, solver, None)
    >>> g = hg.Cotangent(jnp.ones_like(solution.x), jnp.zeros_like(solution.y))
    >>> gradients = hg.Truncation(k=1).pullback(saved, g)
    >>> gradients.problem.K.shape, gradients.x_tilde.shape, hg.Gradients._fields[-2:]
    ((2, 3), (1, 3), ('stats', 'adjoint'))
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"] | None
    solver: ChambollePock | None
    stats: AdjointStats
    adjoint: AdjointPair | None = None

    @classmethod
    def of_limit(
        cls,
        problem: LowerLevel,
        x_tilde: Float[Array, "*batch n"],
        solver: ChambollePock,
        stats: AdjointStats,
        adjoint: AdjointPair | None = None,
    ) -> Gradients:
        """Return the gradients at a limit, which does not depend on the solver's settings."""
        return cls(problem, x_tilde, zero_gradient(solver), stats, adjoint)


def zero_gradient(tree: Any) -> Any:
    """Return a gradient of 0, in the structure of the pytree."""
    return jax.tree.map(jnp.zeros_like, eqx.filter(tree, eqx.is_inexact_array))


def problem_gradient(problem: LowerLevel, dK: Any, dF: Any, dG: Any) -> LowerLevel:
    """Return the gradient in the structure of the problem."""
    return eqx.tree_at(lambda p: (p.K, p.F, p.G), problem, (dK, dF, dG))
