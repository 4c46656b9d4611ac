"""Regime B: smooth functions, one of them strongly convex."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.samples import safe_norm
from hypergrad.adjoint import Unknowns, solve_least_squares
from hypergrad.bilevel.error_bound._base import (
    AbstractPoint,
    AbstractRegime,
    ReturnedPair,
    best_of_newton,
    has_pieces,
    in_structure,
    parameter_errors,
    pieces,
    rounding_of,
    zero_unless,
)
from hypergrad.bilevel.error_bound.result import Regime
from hypergrad.problem.functions import AbstractFunction
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose, matrix_of, operator_norm


def is_smooth(problem: LowerLevel) -> bool:
    """Return whether F and G are smooth with known pieces, and G strongly convex."""
    sides = (problem.F, problem.m), (problem.G, problem.n)
    known = all(f.smooth and has_pieces(f, size, problem.dtype) for f, size in sides)
    return known and problem.G.strong_convexity is not None


class StrongConvexity(AbstractRegime):
    """G is `mu`-strongly convex and F and G are smooth: the primal problem alone tells.

    Newton steps lead to x, where with `H = K^T S K + S_G`, `S = F''`, `S_G = G''` and `v = H^-1 g`
    to a residual rho (CGLS on the two blocks, H never squared)

        || x - x* ||  <=  e = || gradient of the objective at x || / mu
        || v - v* ||  <=  ( e_g + rho + || K || || J K v || ) / mu
        grad_K        =  - ( F'(K x) v^T + S K v x^T )

    J is the jump of S for the rows of K that have a kink within `|| K_i || e`, else 0. The gradient
    follows by the product rule. It needs no factorisation and no matrix, so it stands in where K is
    matrix-free or a coordinate of a Huber function is on its kink.

    **Source**: in the spirit of Bogensperger, Ehrhardt, Pock, Salehi & Wong, arXiv 2412.06436.
    """

    code: ClassVar[Regime] = Regime.STRONG_CONVEXITY

    def applies(self, problem: LowerLevel, smoothness: float | None) -> bool:
        return is_smooth(problem) and smoothness is not None

    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        problem, x_tilde = pair.problem, pair.x_tilde
        rounding, sizes = rounding_of(problem, x_tilde.dtype), OperatorSizes.of(problem)

        def newton_step(x: Array) -> Array:
            right = jnp.where(wanted[:, None], gradient_at(pair, x), 0.0)
            return x - _solve_hessian(problem, *_curvatures(problem, x_tilde, x), right)

        def relative_residual(x: Array) -> Array:
            relative, _ = residual_at(pair, x, sizes)
            return jnp.where(wanted, relative, 0.0)  # nothing waits for what is not wanted

        x = best_of_newton(newton_step, relative_residual, pair.x, rounding)
        error = gradient_distance(pair, x, sizes)
        return smooth_point(pair, wanted, x, error, sizes, None)


class OperatorSizes(NamedTuple):
    """`||K||` and `||K_i||` of its rows (`||K||` for each, if it is no matrix).

    Taken once, outside the loop of Newton steps.
    """

    norm: Float[Array, ""]
    rows: Float[Array, "1 m"]

    @classmethod
    def of(cls, problem: LowerLevel) -> OperatorSizes:
        norm, matrix = operator_norm(problem.K), matrix_of(problem.K)
        if matrix is None:
            return cls(norm, jnp.broadcast_to(norm, (1, problem.m)))
        return cls(norm, safe_norm(matrix)[None])


def gradient_at(pair: ReturnedPair, x: Array) -> Array:
    """The gradient of the objective at x."""
    K = pair.problem.K
    return apply_transpose(K, _slope(pair.problem.F, apply(K, x))) + _slope(
        pair.problem.G, x - pair.x_tilde
    )


def residual_at(pair: ReturnedPair, x: Array, sizes: OperatorSizes) -> tuple[Array, Array]:
    """The norm of the gradient at x, relative to the sizes that rounding in it has; and those."""
    problem, x_tilde = pair.problem, pair.x_tilde
    K, F, G = problem.K, problem.F, problem.G
    size = safe_norm(x)
    in_row = rounding_of(problem, x.dtype) * sizes.rows * size[:, None]
    steepest = jnp.max(_steepest(F, apply(K, x), in_row), axis=-1)
    steepest_G = jnp.max(_steepest(G, x - x_tilde, jnp.zeros_like(x)), axis=-1)
    forces = sizes.norm * safe_norm(_slope(F, apply(K, x))) + safe_norm(_slope(G, x - x_tilde))
    scale = forces + (sizes.norm**2 * steepest + steepest_G) * (size + safe_norm(x_tilde))
    return safe_norm(gradient_at(pair, x)) / jnp.where(scale > 0, scale, 1.0), scale


def gradient_distance(pair: ReturnedPair, x: Array, sizes: OperatorSizes) -> Array:
    """Bound `||x - x*||` by `||gradient|| / mu`, per sample."""
    relative, scale = residual_at(pair, x, sizes)
    return (relative + rounding_of(pair.problem, x.dtype)) * scale / _convexity(pair.problem)


def smooth_point(
    pair: ReturnedPair,
    wanted: Array,
    x: Array,
    error: Array,
    sizes: OperatorSizes,
    v: Array | None,
) -> _SmoothPoint:
    """The point x, within `error` of the solution; v, an approximation of `H^-1 g` (or None)."""
    problem, x_tilde = pair.problem, pair.x_tilde
    reach = sizes.rows * error[:, None]
    crossed = _crossed(problem.F, apply(problem.K, x), reach)
    crossed_G = _crossed(problem.G, x - x_tilde, error[:, None] * jnp.ones_like(x))
    simple = jnp.all(crossed <= 1, axis=-1) & jnp.all(crossed_G == 0, axis=-1)
    holds = wanted & jnp.isfinite(error) & simple
    return _SmoothPoint(
        holds=holds,
        x=zero_unless(holds, x),
        error_x=error,
        problem=problem,
        x_tilde=zero_unless(holds, x_tilde),
        reach=zero_unless(holds, reach),
        uncertain=crossed > 0,
        norm_K=sizes.norm,
        mu=_convexity(problem),
        v=None if v is None else zero_unless(holds, v),
    )


def _convexity(problem: LowerLevel) -> Array:
    mu = problem.G.strong_convexity
    assert mu is not None  # that is what `applies` asks
    return mu


def _slope(f: AbstractFunction, v: Array) -> Array:
    """`f'(v)`, coordinate by coordinate."""
    return jax.grad(lambda v: jnp.sum(f(v)))(v)


def _curvature(f: AbstractFunction, v: Array) -> Array:
    """`f''(v)`, coordinate by coordinate."""
    return jax.jvp(lambda v: _slope(f, v), (v,), (jnp.ones_like(v),))[1]


def _curvatures(problem: LowerLevel, x_tilde: Array, x: Array) -> tuple[Array, Array]:
    """`S` and `S_G`."""
    return _curvature(problem.F, apply(problem.K, x)), _curvature(problem.G, x - x_tilde)


def _steepest(f: AbstractFunction, v: Array, reach: Array) -> Array:
    """The largest `f''` within reach (with one kink in it, both sides are seen)."""
    return jnp.maximum(
        jnp.maximum(_curvature(f, v - reach), _curvature(f, v + reach)), _curvature(f, v)
    )


def _crossed(f: AbstractFunction, v: Array, reach: Array) -> Array:
    """Count the kinks of `f'` within reach. (`v` is the prox of `v + f'(v)`.)"""
    low, high = v - reach, v + reach
    one = jnp.ones((), v.dtype)
    return pieces(f, high + _slope(f, high), one) - pieces(f, low + _slope(f, low), one)


def _solve_hessian(problem: LowerLevel, S: Array, S_G: Array, right: Array) -> Array:
    """`(K^T S K + S_G)^-1 right`, by CGLS on its two square roots."""
    root, root_G = jnp.sqrt(S), jnp.sqrt(S_G)
    K, no_dual = problem.K, jnp.zeros_like(S)

    def product(v: Unknowns) -> Unknowns:
        return root_G * v[0], root * apply(K, v[0])

    def transpose_product(w: Unknowns) -> Unknowns:
        return root_G * w[0] + apply_transpose(K, root * w[1]), no_dual

    (v, _), *_ = solve_least_squares(
        product,
        transpose_product,
        (right / root_G, no_dual),
        rtol=4 * float(jnp.finfo(right.dtype).eps),
        max_steps=4 * sum(problem.shape),
    )
    return v


class _SmoothPoint(AbstractPoint):
    """x within `error_x` of the solution, and `K x` a row within `reach`."""

    holds: Bool[Array, " batch"]
    x: Float[Array, "batch n"]
    error_x: Float[Array, " batch"]
    problem: LowerLevel
    x_tilde: Float[Array, "batch n"]
    reach: Float[Array, "batch m"]
    uncertain: Bool[Array, "batch m"]
    norm_K: Float[Array, ""]
    mu: Float[Array, ""]
    v: Float[Array, "batch n"] | None

    def reference(self, g: Array, error_g: Array) -> tuple[LowerLevel, LowerLevel]:
        problem, x, x_tilde = self.problem, self.x, self.x_tilde
        K, F, norm_K, error_x = problem.K, problem.F, self.norm_K, self.error_x
        rounding = rounding_of(problem, g.dtype)
        S, S_G = _curvatures(problem, x_tilde, x)
        v = self.v
        if v is None:
            v = zero_unless(self.holds, _solve_hessian(problem, S, S_G, g))
        K_x, K_v = apply(K, x), apply(K, v)

        def derivative_along_v(problem: LowerLevel) -> Array:
            return jnp.sum(jax.jvp(lambda x: problem.objective(x, x_tilde), (x,), (v,))[1])

        grad = jax.tree.map(jnp.negative, eqx.filter_grad(derivative_along_v)(problem))

        steepest = _steepest(F, K_x, self.reach)
        jump = jnp.where(self.uncertain, steepest, 0.0)
        steepest_norm = jnp.max(steepest, axis=-1)
        rest = safe_norm(g - apply_transpose(K, S * K_v) - S_G * v)
        rest = rest + rounding * (norm_K**2 * steepest_norm + jnp.max(S_G, axis=-1)) * safe_norm(v)
        rest = rest + rounding * safe_norm(g)
        error_v = (error_g + rest + norm_K * safe_norm(jump * K_v)) / self.mu

        y, SK_v = _slope(F, K_x), S * K_v
        error_y = jnp.minimum(safe_norm(steepest * self.reach), steepest_norm * norm_K * error_x)
        error_SK_v = steepest_norm * norm_K * error_v + safe_norm(jump * K_v)
        in_K = (
            error_y * (safe_norm(v) + error_v)
            + safe_norm(y) * error_v
            + error_SK_v * (safe_norm(x) + error_x)
            + safe_norm(SK_v) * error_x
            + rounding * (safe_norm(y) * safe_norm(v) + safe_norm(SK_v) * safe_norm(x))
        )
        if matrix_of(K) is None:  # its parameters, if it has any, may enter it anyhow
            in_K = jnp.full_like(in_K, jnp.inf)
        in_F = parameter_errors(
            _slope, F, K_x, self.reach, self.uncertain, K_v, norm_K * error_v, rounding
        )
        everywhere = error_x[:, None] * jnp.ones_like(x)
        in_G = parameter_errors(
            _slope, problem.G, x - x_tilde, everywhere, None, v, error_v, rounding
        )
        return grad, in_structure(problem, in_K, in_F, in_G)
