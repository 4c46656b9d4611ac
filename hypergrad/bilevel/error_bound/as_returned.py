"""Regime B without its Newton steps: what was returned is judged as it is."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool

from hypergrad.bilevel.error_bound._base import (
    AbstractPoint,
    AbstractRegime,
    ReturnedPair,
    gap_distance,
)
from hypergrad.bilevel.error_bound.result import Regime
from hypergrad.bilevel.error_bound.strong_convexity import (
    OperatorSizes,
    gradient_distance,
    is_smooth,
    smooth_point,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose, matrix_of


class AsReturned(AbstractRegime):
    """The bound of `StrongConvexity` at x and the adjoint as they were returned, not improved.

        || x - x* ||  <=  e = min( sqrt(2 gap / mu), || gradient of the objective at x || / mu )

    and `v = tau Delta_P` of the strategy's adjoint stands for `H^-1 g`, its residual rho computed.
    No solve: some ten products with K. So it is wide where the solves are rough, and an upper level
    that decides how rough they may be can ask for it at every step. Where the strategy returns no
    adjoint, `H^-1 g` is solved for. (Without a matrix K it bounds no gradient in K.)

    **Source**: Bogensperger, Ehrhardt, Pock, Salehi & Wong, arXiv 2412.06436, whose bound is one of
    the two returned pairs, too; here rows near a kink take the place of a Lipschitz constant.
    """

    code: ClassVar[Regime] = Regime.STRONG_CONVEXITY

    def applies(self, problem: LowerLevel, smoothness: float | None) -> bool:
        return is_smooth(problem) and smoothness is not None and matrix_of(problem.K) is not None

    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        problem, x_tilde, (tau, _, _), x, y, adjoint = pair
        r, K_x, KT_y = x - x_tilde, apply(problem.K, x), apply_transpose(problem.K, y)
        gap = problem.gap(r, y, x_tilde, K_x=K_x, KT_y=KT_y)
        sizes = OperatorSizes.of(problem)
        error = jnp.fmin(gap_distance(pair, gap), gradient_distance(pair, x, sizes))
        v = None if adjoint is None else tau * adjoint.Delta_P
        return smooth_point(pair, wanted, x, error, sizes, v)
