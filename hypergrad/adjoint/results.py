"""What a backward solve is given, and what it gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypergrad._printing import as_sentence, worst
from hypergrad.chambolle_pock import AdjointPair, ChambollePock
from hypergrad.lower_level import LowerLevel
from hypergrad.status import Status

__all__ = [
    "AdjointStats",
    "Cotangent",
    "Gradients",
    "SolvedPair",
    "Tangents",
    "problem_gradient",
    "zero_gradient",
]


class Cotangent(NamedTuple):
    """The derivative of the loss in the returned `x` (`g`) and `y` (`g_y`)."""

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
    """How the backward solve went, one entry a sample.

    `steps`, None where whoever took them does not tell; `residual`: of the limit system relative to
    `g` for a limit formula, the relative size of what was cut off for a truncation, 0 where the
    differentiation is exact; `status`; `products` with K or its transpose that the backward side
    took, a gradient in K counted as two.
    """

    steps: Int[Array, "*batch"] | None
    residual: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    products: Int[Array, "*batch"]

    @as_sentence
    def __repr__(self) -> str:
        return (
            f"AdjointStats({Status.summary(self.status)}; worst of {np.size(self.residual)}: "
            f"steps {worst(self.steps, '.0f')}, residual {worst(self.residual)})"
        )

    @classmethod
    def of(
        cls, steps: Array | int | None, residual: Array, status: Array, products: Array | int
    ) -> AdjointStats:
        """From a residual and a status a sample, and counts that may be the same for all."""

        def a_sample(count: Array | int) -> Array:
            return jnp.broadcast_to(jnp.asarray(count), residual.shape).astype(jnp.int32)

        status = jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE)
        counted = None if steps is None else a_sample(steps)
        return cls(counted, residual, a_sample(status), a_sample(products))

    @classmethod
    def judge(
        cls,
        steps: Array | int | None,
        residual: Array,
        tolerance: Array | float,
        *,
        products: Array | int,
    ) -> AdjointStats:
        """Converged where the residual is within the tolerance."""
        status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.ITERATIONS_USED_UP)
        return cls.of(steps, residual, status, products)

    @classmethod
    def exact(
        cls, steps: Array | int | None, dx_tilde: Float[Array, "*batch n"], *, products: Array | int
    ) -> AdjointStats:
        """Nothing was approximated: residual 0, unless the gradient itself is not finite."""
        finite = jnp.all(jnp.isfinite(dx_tilde), axis=-1)
        residual = jnp.where(finite, 0.0, jnp.nan).astype(dx_tilde.dtype)
        return cls.judge(steps, residual, 0.0, products=products)


class Gradients(NamedTuple):
    """What a pullback gives: gradients in the three arguments of a solve, and its statistics.

    `adjoint`, where the strategy has one, is what a later backward solve can start from; then the
    gradient in K is the limit formula of these sums, with the returned x and y and the solver's
    step sizes.
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
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
        """At a limit, which does not depend on the solver's tau, sigma and theta."""
        return cls(problem, x_tilde, zero_gradient(solver), stats, adjoint)


def zero_gradient(tree: Any) -> Any:
    """The gradient in a pytree on which nothing depends, in its structure."""
    return jax.tree.map(jnp.zeros_like, eqx.filter(tree, eqx.is_inexact_array))


def problem_gradient(problem: LowerLevel, dK: Any, dF: Any, dG: Any) -> LowerLevel:
    """The gradient in the structure of the problem."""
    return eqx.tree_at(lambda p: (p.K, p.F, p.G), problem, (dK, dF, dG))
