"""A bound on the error of a hypergradient, computed after it: how far from the true one it can be.

Two regimes lead from the pair that a solve returned to a nearby point with a *reference gradient*
whose own error is known. For any strategy then, by the triangle inequality,

    || grad - true ||  <=  || grad - reference || + || reference - true ||

per leaf of the problem and over all of them. The error of the reference is mostly rounding. It is
not enclosed by interval arithmetic but bounded by measured residuals and a model of rounding, times
condition numbers whose bound holds but for a small probability (`ActiveSystem.inverse_norm`).
"""

from __future__ import annotations

import abc
import enum
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypergrad._checks import is_concrete
from hypergrad.adjoint import Cotangent, LimitSystem, limit_gradients, solve_least_squares
from hypergrad.chambolle_pock import ProxArguments, StepSizes
from hypergrad.functions import AbstractFunction
from hypergrad.lower_level import LowerLevel
from hypergrad.newton import ActiveSystem, NormalMap, active_system, norm
from hypergrad.operators import apply, apply_transpose, matrix_of, operator_norm

__all__ = [
    "AbstractPoint",
    "AbstractRegime",
    "ActiveSet",
    "ErrorBound",
    "Regime",
    "ReturnedPair",
    "StrongConvexity",
    "bound_error",
]

# ------------------------------------------------------------------------------- the result


class Regime(enum.IntEnum):
    """What certifies the bound for a sample.

    >>> Regime.summary(np.array([1, 1, 0, 1]))
    'active set 75 %, neither 25 %'
    """

    NEITHER = 0
    """No bound is known: a kink too near, a singular system, or functions that no regime knows."""
    ACTIVE_SET = 1
    """The affine pieces at the solution are known, and the system in them is regular."""
    STRONG_CONVEXITY = 2
    """F and G are smooth and G strongly convex."""

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.lower().replace("_", " ")

    @classmethod
    def summary(cls, regime: Int[Array, "..."] | np.ndarray) -> str:
        """The share of each regime in words, the most frequent first."""
        codes = np.asarray(regime).ravel().tolist()
        shares = Counter(codes).most_common()
        return ", ".join(f"{cls(code).label} {100 * n / len(codes):.3g} %" for code, n in shares)


class ErrorBound(eqx.Module):
    """How far a hypergradient can be from the true one, in Euclidean norms.

    `total`, over all float leaves of the problem; `grad`, one bound a leaf, in the structure of the
    problem; both infinite unless every sample is certified. `certified (...)`, a `Regime` a sample.
    `on_certified`, a bound as `total` is one, for the part of the gradient that the loss sends
    through the certified samples: what the strategy gives for a loss gradient that is 0 elsewhere.
    """

    total: Float[Array, ""]
    grad: LowerLevel
    certified: Int[Array, "*batch"]
    on_certified: Float[Array, ""]

    def __repr__(self) -> str:
        if not is_concrete(self.total):
            return "ErrorBound(<traced>)"
        summary, codes = Regime.summary(self.certified), np.asarray(self.certified)
        missing = int(np.sum(codes == Regime.NEITHER))
        if not missing:
            return f"ErrorBound({float(self.total):.2g}; certified: {summary})"
        rest = "" if missing == codes.size else f"; without them {float(self.on_certified):.2g}"
        return (
            f"ErrorBound(no bound holds: {missing} of {codes.size} samples are not certified{rest};"
            f" certified: {summary})"
        )


# -------------------------------------------------------------------------- what a regime is


class ReturnedPair(NamedTuple):
    """What a solve returned, one row a sample, and the step sizes that its prox arguments take."""

    problem: LowerLevel
    x_tilde: Float[Array, "batch n"]
    sizes: StepSizes
    x: Float[Array, "batch n"]
    y: Float[Array, "batch m"]


class AbstractPoint(eqx.Module):
    """A point near the solution: where the reference gradient is taken.

    `holds`, whether the bound is certified; `x (batch, n)` and a bound `error_x` on its distance
    from the solution, a sample (of no meaning where it does not hold).
    """

    holds: eqx.AbstractVar[Array]
    x: eqx.AbstractVar[Array]
    error_x: eqx.AbstractVar[Array]

    @abc.abstractmethod
    def reference(self, g: Array, error_g: Array) -> tuple[LowerLevel, LowerLevel]:
        """The reference gradient, and in its structure a bound `(batch,)` on its error a sample.

        `g` is the loss gradient at the points, 0 where this one does not hold, and `error_g` a
        bound on its error a sample.
        """


class AbstractRegime(eqx.Module):
    """A way to certify samples."""

    code: ClassVar[Regime]

    @abc.abstractmethod
    def applies(self, problem: LowerLevel, smoothness: float | None) -> bool:
        """Whether the functions (and the loss, see `bound_error`) are such that it can hold."""

    @abc.abstractmethod
    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        """From what was returned to a point that is nearer; it holds for wanted samples only."""


# Newton steps from the returned pair, at the most: one is enough where its active set is right.
_NEWTON_STEPS = 4


def _rounding(problem: LowerLevel, dtype: Any) -> float:
    """How much a product with K, and what is made of it, is off, relative to the terms in it.

    The roundings of a sum of n terms are taken to add up like `sqrt(n)` (Higham & Mary 2019).
    """
    return (4 + max(problem.shape) ** 0.5) * float(jnp.finfo(dtype).eps)


def _norm(v: Array) -> Array:
    return jnp.linalg.norm(v, axis=-1)


def _where(chosen: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(chosen[..., None], a, b), new, old)


def _zero_unless(chosen: Array, tree: Any) -> Any:
    return _where(chosen, tree, jax.tree.map(jnp.zeros_like, tree))


def _has_pieces(f: AbstractFunction, size: int, dtype: Any) -> bool:
    return f.separable and f.piece(jnp.zeros(size, dtype), jnp.ones((), dtype)) is not None


def _pieces(f: AbstractFunction, z: Array, step: Array | float) -> Array:
    piece = f.piece(z, step)
    assert piece is not None  # that is what `applies` asks
    return piece


def _best_of_newton(
    newton_step: Callable[[Any], Any], residual: Callable[[Any], Array], start: Any, enough: float
) -> Any:
    """Newton steps while a (relative) residual is above rounding; each sample's best iterate."""

    def advance(carry):
        now, best, least, steps = carry
        now = newton_step(now)
        size = residual(now)
        better = size < least
        return now, _where(better, now, best), jnp.where(better, size, least), steps + 1

    def unfinished(carry):
        _, _, least, steps = carry
        return jnp.any(least > enough) & (steps < _NEWTON_STEPS)

    carry = (start, start, residual(start), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, advance, carry)[1]


def _parameter_errors(
    value: Callable[[AbstractFunction, Array], Array],
    f: AbstractFunction,
    z: Float[Array, "batch size"],
    spread: Float[Array, "batch size"],
    uncertain: Bool[Array, "batch size"] | None,
    u: Float[Array, "batch size"],
    error_u: Float[Array, " batch"],
    rounding: float,
) -> Any:
    """Errors of `<u, d/dp value(f, z)>` for each leaf p of f, `(batch,)`, in the structure of f.

    `value` acts on coordinates, `z` may move by `spread` and `u` by `error_u`. Between kinks the
    slope in p is affine in z; an uncertain coordinate has one kink in its reach, and the slope
    there is bounded by what the pieces on both sides can make of it. (None: all are certain.)
    """
    leaves, structure = jax.tree.flatten(eqx.filter(f, eqx.is_inexact_array))
    rest = eqx.filter(f, eqx.is_inexact_array, inverse=True)

    def error(i: int) -> Array:
        if leaves[i].ndim > 1:  # not one entry a coordinate: nothing is known of it
            return jnp.full(u.shape[:1], jnp.inf, u.dtype)
        along = [jnp.full_like(leaf, j == i) for j, leaf in enumerate(leaves)]

        def slope(z: Array) -> Array:
            def of_leaves(leaves):
                return value(eqx.combine(jax.tree.unflatten(structure, leaves), rest), z)

            return jax.jvp(of_leaves, (leaves,), (along,))[1]

        def slope_and_change(z: Array) -> tuple[Array, Array]:
            s, change = jax.jvp(slope, (z,), (jnp.ones_like(z),))
            return jnp.abs(s), jnp.abs(change) * spread

        s, moved = slope_and_change(z)
        if uncertain is not None:
            below, above = (slope_and_change(z + side * spread) for side in (-1.0, 1.0))
            highest = jnp.maximum(below[0] + 2 * below[1], above[0] + 2 * above[1])
            moved = jnp.where(uncertain, s + jnp.maximum(s + 2 * moved, highest), moved)
        known, moved, size = _norm(s), _norm(moved), _norm(u)
        return (known + moved) * error_u + (moved + rounding * known) * size

    return jax.tree.unflatten(structure, [error(i) for i in range(len(leaves))])


# ------------------------------------------------------------------- regime A: the active set


class ActiveSet(AbstractRegime):
    """The pieces that the solution's prox arguments lie in are known, so that it is solved for.

    In the balanced unknowns of `hypergrad.newton`, with `Phi` the normal map and J its Jacobian: a
    few Newton steps lead to z. If J is regular there, the affine map that Phi is on the piece of z
    has its zero within

        e_z = || J^-1 || || Phi(z) ||

    of z, and if no coordinate has a kink so near, this is a zero of Phi: the solution; J being
    regular, the only one, and differentiable. At z the limit system `J^T Delta = b(g)` is solved to
    a residual rho, so that `Delta` is known to

        e_Delta = || J^-1 || ( rho + sqrt(tau) e_g )

    and the limit formula follows by the product rule. For F and G with `piece`, and a matrix K.
    """

    code: ClassVar[Regime] = Regime.ACTIVE_SET

    def applies(self, problem: LowerLevel, smoothness: float | None) -> bool:
        del smoothness
        known = _has_pieces(problem.F, problem.m, problem.dtype)
        known = known and _has_pieces(problem.G, problem.n, problem.dtype)
        return known and matrix_of(problem.K) is not None

    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        problem, x_tilde, sizes, x, y = pair
        tau, sigma, _ = sizes
        rounding = _rounding(problem, x.dtype)
        normal_map, none = NormalMap(problem, x_tilde, sizes), jnp.zeros(x.shape[:1], x.dtype)

        def newton_step(z: ProxArguments) -> ProxArguments:
            f = jax.tree.map(jnp.negative, normal_map(z, none))
            step = active_system(problem, sizes, z).solve(f, refinements=_REFINEMENTS)
            return normal_map.moved(z, none + 1, step)

        def residual(z: ProxArguments) -> Array:
            return normal_map.relative(z, none)

        start = normal_map.arguments(x - x_tilde, y)
        z = _best_of_newton(newton_step, residual, start, rounding)
        system = active_system(problem, sizes, z)
        inverse_norm = system.inverse_norm()
        r, y = normal_map.pair(z, none)
        size = norm(normal_map.balanced(z))
        size = size + norm(normal_map.balanced(ProxArguments(y, x_tilde + r)))
        error = inverse_norm * (norm(normal_map(z, none)) + rounding * size)

        to_P, to_D = jnp.sqrt(tau) * error[:, None], jnp.sqrt(sigma) * error[:, None]
        same_P = _pieces(problem.G, z.z_P - to_P, tau) == _pieces(problem.G, z.z_P + to_P, tau)
        same_D = _pieces(problem.F, (z.z_D - to_D) / sigma, 1 / sigma) == _pieces(
            problem.F, (z.z_D + to_D) / sigma, 1 / sigma
        )
        settled = jnp.all(same_P, axis=-1) & jnp.all(same_D, axis=-1)
        holds = wanted & jnp.isfinite(error) & settled
        return _SettledPoint(
            holds=holds,
            x=_zero_unless(holds, x_tilde + r),
            error_x=jnp.sqrt(tau) * error,
            problem=problem,
            sizes=sizes,
            z=_zero_unless(holds, z),
            y=_zero_unless(holds, y),
            system=system,
            inverse_norm=inverse_norm,
            error=error,
        )


# Of the Newton step and of the adjoint solve: cheap beside the factorisation.
_REFINEMENTS = 6


class _SettledPoint(AbstractPoint):
    """z in the piece of the solution, within `error` of it in the balanced norm."""

    holds: Bool[Array, " batch"]
    x: Float[Array, "batch n"]
    error_x: Float[Array, " batch"]
    problem: LowerLevel
    sizes: StepSizes
    z: ProxArguments
    y: Float[Array, "batch m"]
    system: ActiveSystem
    inverse_norm: Float[Array, " batch"]
    error: Float[Array, " batch"]

    def reference(self, g: Array, error_g: Array) -> tuple[LowerLevel, LowerLevel]:
        root_tau, root_sigma = jnp.sqrt(self.sizes.tau), jnp.sqrt(self.sizes.sigma)
        rounding = _rounding(self.problem, g.dtype)
        limit = LimitSystem(self.problem, self.sizes, self.z)
        cotangent = Cotangent(g, jnp.zeros_like(self.y))
        right = limit.balanced_right_hand_side(cotangent)
        unknowns = self.system.solve_transposed(right, refinements=_REFINEMENTS)
        unknowns = _zero_unless(self.holds, unknowns)
        rest = norm(jax.tree.map(jnp.subtract, right, limit.balanced(unknowns)))
        rest = rest + rounding * (norm(right) + 2 * norm(unknowns))
        error_Delta = self.inverse_norm * (rest + root_tau * error_g)
        sums = _zero_unless(self.holds, limit.sums(unknowns, cotangent))
        grad, _ = limit_gradients(limit, self.x, self.y, sums)

        def outer(Delta: Array, size: Array, error: Array) -> Array:
            """The error of one outer product, by the product rule."""
            return error_Delta * (size + error) + Delta * error + rounding * Delta * size

        error_x, error_y = root_tau * self.error, root_sigma * self.error
        in_K = root_sigma * outer(_norm(unknowns[1]), _norm(self.x), error_x)
        in_K = in_K + root_tau * outer(_norm(unknowns[0]), _norm(self.y), error_y)
        return grad, self._errors(in_K, sums, error_Delta, error_g, rounding)

    def _errors(
        self, in_K: Array, sums: Any, error_Delta: Array, error_g: Array, rounding: float
    ) -> LowerLevel:
        """The error in K, with those in the parameters of F and G."""
        problem, z, (tau, sigma, _) = self.problem, self.z, self.sizes
        reach = self.error[:, None]
        in_F = _parameter_errors(
            lambda F, z: F.prox_conjugate(z, sigma),
            problem.F,
            z.z_D,
            jnp.sqrt(sigma) * reach * jnp.ones_like(z.z_D),
            None,
            sums.U_D,
            2 * error_Delta / jnp.sqrt(sigma),
            rounding,
        )
        in_G = _parameter_errors(
            lambda G, z: G.prox(z, tau),
            problem.G,
            z.z_P,
            jnp.sqrt(tau) * reach * jnp.ones_like(z.z_P),
            None,
            sums.U_P,
            2 * error_Delta / jnp.sqrt(tau) + error_g,
            rounding,
        )
        return _in_structure(problem, in_K, in_F, in_G)


def _in_structure(problem: LowerLevel, in_K: Array, in_F: Any, in_G: Any) -> LowerLevel:
    """Errors a sample in the structure of the problem (a matrix has one leaf)."""
    all_K = jax.tree.map(lambda _: in_K, eqx.filter(problem.K, eqx.is_inexact_array))
    return eqx.tree_at(lambda p: (p.K, p.F, p.G), problem, (all_K, in_F, in_G))


# ------------------------------------------------------------- regime B: smooth, strongly convex


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
        sides = (problem.F, problem.m), (problem.G, problem.n)
        known = all(f.smooth and _has_pieces(f, size, problem.dtype) for f, size in sides)
        return known and problem.G.strong_convexity is not None and smoothness is not None

    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        problem, x_tilde = pair.problem, pair.x_tilde
        K, F, G = problem.K, problem.F, problem.G
        mu, norm_K, rows = G.strong_convexity, operator_norm(K), _row_norms(problem)
        assert mu is not None  # that is what `applies` asks
        rounding = _rounding(problem, x_tilde.dtype)

        def gradient(x: Array) -> Array:
            return apply_transpose(K, _slope(F, apply(K, x))) + _slope(G, x - x_tilde)

        def newton_step(x: Array) -> Array:
            right = jnp.where(wanted[:, None], gradient(x), 0.0)
            return x - _solve_hessian(problem, *_curvatures(problem, x_tilde, x), right)

        def residual(x: Array) -> tuple[Array, Array]:
            """That of the gradient, relative to the sizes that rounding in it has; and those."""
            size = _norm(x)
            in_row = rounding * rows * size[:, None]
            steepest = jnp.max(_steepest(F, apply(K, x), in_row), axis=-1)
            steepest_G = jnp.max(_steepest(G, x - x_tilde, jnp.zeros_like(x)), axis=-1)
            forces = norm_K * _norm(_slope(F, apply(K, x))) + _norm(_slope(G, x - x_tilde))
            scale = forces + (norm_K**2 * steepest + steepest_G) * (size + _norm(x_tilde))
            return _norm(gradient(x)) / jnp.where(scale > 0, scale, 1.0), scale

        def relative_residual(x: Array) -> Array:
            return jnp.where(wanted, residual(x)[0], 0.0)  # nothing waits for what is not wanted

        x = _best_of_newton(newton_step, relative_residual, pair.x, rounding)
        relative, scale = residual(x)
        error = (relative + rounding) * scale / mu
        reach = rows * error[:, None]
        crossed = _crossed(F, apply(K, x), reach)
        crossed_G = _crossed(G, x - x_tilde, error[:, None] * jnp.ones_like(x))
        simple = jnp.all(crossed <= 1, axis=-1) & jnp.all(crossed_G == 0, axis=-1)
        holds = wanted & jnp.isfinite(error) & simple
        return _SmoothPoint(
            holds=holds,
            x=_zero_unless(holds, x),
            error_x=error,
            problem=problem,
            x_tilde=_zero_unless(holds, x_tilde),
            reach=_zero_unless(holds, reach),
            uncertain=crossed > 0,
            norm_K=norm_K,
            mu=mu,
        )


def _row_norms(problem: LowerLevel) -> Float[Array, " m"]:
    """`|| K_i ||`, or of an operator that is no matrix `|| K ||` for each."""
    matrix = matrix_of(problem.K)
    if matrix is None:
        return jnp.broadcast_to(operator_norm(problem.K), problem.m)
    return _norm(matrix)


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
    """How many kinks of `f'` lie within reach. (`v` is the prox of `v + f'(v)`.)"""
    low, high = v - reach, v + reach
    one = jnp.ones((), v.dtype)
    return _pieces(f, high + _slope(f, high), one) - _pieces(f, low + _slope(f, low), one)


def _solve_hessian(problem: LowerLevel, S: Array, S_G: Array, right: Array) -> Array:
    """`(K^T S K + S_G)^-1 right`, by CGLS on its two square roots."""
    root, root_G = jnp.sqrt(S), jnp.sqrt(S_G)
    K, no_dual = problem.K, jnp.zeros_like(S)

    def product(v):
        return root_G * v[0], root * apply(K, v[0])

    def transpose_product(w):
        return root_G * w[0] + apply_transpose(K, root * w[1]), no_dual

    (v, _), *_ = solve_least_squares(
        product,
        transpose_product,
        (right / root_G, no_dual),
        rtol=4 * float(jnp.finfo(right.dtype).eps),
        most=4 * sum(problem.shape),
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

    def reference(self, g: Array, error_g: Array) -> tuple[LowerLevel, LowerLevel]:
        problem, x, x_tilde = self.problem, self.x, self.x_tilde
        K, F, norm_K, error_x = problem.K, problem.F, self.norm_K, self.error_x
        rounding = _rounding(problem, g.dtype)
        S, S_G = _curvatures(problem, x_tilde, x)
        v = _zero_unless(self.holds, _solve_hessian(problem, S, S_G, g))
        K_x, K_v = apply(K, x), apply(K, v)

        def derivative_along_v(problem: LowerLevel) -> Array:
            return jnp.sum(jax.jvp(lambda x: problem.objective(x, x_tilde), (x,), (v,))[1])

        grad = jax.tree.map(jnp.negative, eqx.filter_grad(derivative_along_v)(problem))

        steepest = _steepest(F, K_x, self.reach)
        jump = jnp.where(self.uncertain, steepest, 0.0)
        steepest_norm = jnp.max(steepest, axis=-1)
        rest = _norm(g - apply_transpose(K, S * K_v) - S_G * v)
        rest = rest + rounding * (norm_K**2 * steepest_norm + jnp.max(S_G, axis=-1)) * _norm(v)
        rest = rest + rounding * _norm(g)
        error_v = (error_g + rest + norm_K * _norm(jump * K_v)) / self.mu

        y, SK_v = _slope(F, K_x), S * K_v
        error_y = jnp.minimum(_norm(steepest * self.reach), steepest_norm * norm_K * error_x)
        error_SK_v = steepest_norm * norm_K * error_v + _norm(jump * K_v)
        in_K = (
            error_y * (_norm(v) + error_v)
            + _norm(y) * error_v
            + error_SK_v * (_norm(x) + error_x)
            + _norm(SK_v) * error_x
            + rounding * (_norm(y) * _norm(v) + _norm(SK_v) * _norm(x))
        )
        if matrix_of(K) is None:  # its parameters, if it has any, may enter it anyhow
            in_K = jnp.full_like(in_K, jnp.inf)
        in_F = _parameter_errors(
            _slope, F, K_x, self.reach, self.uncertain, K_v, norm_K * error_v, rounding
        )
        everywhere = error_x[:, None] * jnp.ones_like(x)
        in_G = _parameter_errors(
            _slope, problem.G, x - x_tilde, everywhere, None, v, error_v, rounding
        )
        return grad, _in_structure(problem, in_K, in_F, in_G)


# --------------------------------------------------------------------------------- the bound

REGIMES: tuple[AbstractRegime, ...] = (ActiveSet(), StrongConvexity())


def bound_error(
    pair: ReturnedPair,
    grad: LowerLevel,
    pullback: Callable[[Bool[Array, " batch"]], LowerLevel],
    loss_gradient: Callable[[Array], Array],
    *,
    smoothness: float | None,
    regimes: tuple[AbstractRegime, ...] = REGIMES,
) -> ErrorBound:
    """The bound for a gradient `grad`, however it was computed, at the pair that was returned.

    **Arguments**: `pullback`, the gradient that the strategy gives for chosen samples alone;
    `loss_gradient` `(batch, n)` to `(batch, n)`; `smoothness`, the Lipschitz constant of that where
    it is known to act on each sample by itself. Where it is not (None) the second derivative of the
    loss is bounded at the point, by the power method, and only the active set can certify.
    `regimes`, in the order in which they are tried.

    **Cost**: see `hypergradient`; a second pullback where a sample is not certified.
    """
    problem, x = pair.problem, pair.x
    certified = jnp.zeros(x.shape[:1], jnp.int32)
    error_x, points = jnp.zeros(x.shape[:1], x.dtype), []
    for regime in regimes:
        if regime.applies(problem, smoothness):
            point = regime.locate(pair, certified == Regime.NEITHER)
            certified = jnp.where(point.holds, int(regime.code), certified)
            x = _where(point.holds, point.x, x)
            error_x = jnp.where(point.holds, point.error_x, error_x)
            points.append(point)

    g = loss_gradient(x)
    if smoothness is None:
        error_g = _loss_curvature(loss_gradient, x) * jnp.linalg.norm(error_x)
        error_g = jnp.broadcast_to(error_g, error_x.shape)
    else:
        error_g = smoothness * error_x
    error_g = error_g + _rounding(problem, g.dtype) * _norm(g)

    grad = eqx.filter(grad, eqx.is_inexact_array)
    reference = jax.tree.map(jnp.zeros_like, grad)
    errors = jax.tree.map(lambda _: jnp.zeros((), g.dtype), grad)
    for point in points:
        part, missing = point.reference(_zero_unless(point.holds, g), error_g)
        reference = jax.tree.map(jnp.add, reference, eqx.filter(part, eqx.is_inexact_array))
        errors = jax.tree.map(
            lambda total, error, holds=point.holds: total + jnp.sum(jnp.where(holds, error, 0.0)),
            errors,
            eqx.filter(missing, eqx.is_inexact_array),
        )

    held = certified != Regime.NEITHER
    everything = jnp.all(held)

    def on_certified() -> LowerLevel:
        return eqx.filter(pullback(held), eqx.is_inexact_array)

    ours = jax.lax.cond(everything, lambda: grad, on_certified)
    distances = jax.tree.map(lambda a, b: jnp.linalg.norm(jnp.ravel(a - b)), ours, reference)
    bounds = jax.tree.map(lambda a, b: _known(a + b), distances, errors)
    total = _known(_root_sum_of_squares(distances) + _root_sum_of_squares(errors))
    return ErrorBound(
        total=jnp.where(everything, total, jnp.inf),
        grad=jax.tree.map(lambda bound: jnp.where(everything, bound, jnp.inf), bounds),
        certified=certified,
        on_certified=jnp.where(jnp.any(held), total, jnp.inf),
    )


def _known(bound: Array) -> Array:
    """A bound that is not a number is none."""
    return jnp.where(jnp.isnan(bound), jnp.inf, bound)


def _root_sum_of_squares(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.linalg.norm(jnp.stack(leaves)) if leaves else jnp.zeros(())


def _loss_curvature(loss_gradient: Callable[[Array], Array], x: Array) -> Array:
    """A bound on the norm of the loss's second derivative: as `ActiveSystem.inverse_norm`."""
    powers, factor = 8, 10.0

    def power(_, carry):
        v, logarithm = carry
        size = jnp.linalg.norm(v)
        v = jax.jvp(loss_gradient, (x,), (v / jnp.where(size > 0, size, 1.0),))[1]
        return v, logarithm + jnp.log(jnp.linalg.norm(v))

    start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    carry = start, jnp.zeros((), x.dtype)
    return factor * jnp.exp(jax.lax.fori_loop(0, powers, power, carry)[1] / powers)
