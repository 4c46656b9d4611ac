"""The backward side: the delta recursion, the limit system, and gradients from bilinear forms.

Written as the posters write it, for l = L, …, 1 from zero, with `g` the gradient of the loss at the
output and `alpha_l` the weight of iterate l in the output:

    u_P[l] = delta_P[l+1] + sigma K^T delta_bar_D[l+1] + alpha_l g
                                              delta_P[l] = prox'_{tau G}(z_P[l]) u_P[l]
    u_D[l] = delta_D[l+1] - tau K delta_P[l] + alpha_l g_y
                                              delta_D[l] = prox'_{sigma F*}(z_D[l]) u_D[l]
    delta_bar_D[l] = delta_D[l] + theta (delta_D[l] - delta_D[l+1])

This is a Chambolle-Pock iteration again, for the linearised problem: the primal and the dual step
have changed places, `prox'` stands where the prox stood, and `-tau delta_P`, `sigma delta_D` play
`x` and `y`. `delta[l]` is the derivative of the loss in `z[l]`; `u[l]` that in `prox(z[l])`, which
is where a parameter of F or G gets its gradient (a weight acts just where `prox'` is 0).

One deviation in the writing: the product that an iteration makes is `K^T delta_D`, and that of
`delta_bar_D` is extrapolated from it, since the gradients in x_tilde, sigma and theta need the
former too and `K^T` is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hypergrad._checks import is_concrete
from hypergrad.chambolle_pock import (
    AdjointPair,
    ChambollePock,
    ProxArguments,
    State,
    StepSizes,
    primal_dual_norm,
)
from hypergrad.lower_level import LowerLevel
from hypergrad.operators import apply, apply_transpose, bilinear_gradient
from hypergrad.status import Status

__all__ = [
    "AdjointState",
    "AdjointStats",
    "Cotangent",
    "DeltaSums",
    "Gradients",
    "LimitSystem",
    "Recorded",
    "Tangents",
    "Unknowns",
    "adjoint_step",
    "backpropagate",
    "first_layer",
    "limit_gradients",
    "limit_pushforward",
    "nothing_like",
    "relative_size",
    "solve_both_ways",
    "solve_least_squares",
    "squared_norm",
    "start_adjoint",
    "sum_deltas",
]


class Cotangent(NamedTuple):
    """The derivative of the loss in the returned `x` (`g`) and `y` (`g_y`)."""

    x: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]


class AdjointStats(eqx.Module):
    """How the backward solve went, one entry a sample.

    `steps`; `residual`: of the limit system relative to `g` for a limit formula, the relative size
    of what was cut off for a truncation, 0 where the differentiation is exact; `status`;
    `products` with K or its transpose that the backward side took, a gradient in K counted as two.
    """

    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    products: Int[Array, "*batch"]

    def __repr__(self) -> str:
        if not is_concrete(self.residual):
            return "AdjointStats(<traced>)"
        return (
            f"AdjointStats({Status.summary(self.status)}; worst of {self.residual.size}: "
            f"{int(jnp.max(self.steps))} steps, residual {float(jnp.max(self.residual)):.1e})"
        )

    @classmethod
    def of(
        cls, steps: Array | int, residual: Array, status: Array, products: Array | int
    ) -> AdjointStats:
        """From a residual and a status a sample, and counts that may be the same for all."""
        status = jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE)
        steps, products, status = (
            jnp.broadcast_to(jnp.asarray(count), residual.shape).astype(jnp.int32)
            for count in (steps, products, status)
        )
        return cls(steps, residual, status, products)

    @classmethod
    def judge(
        cls,
        steps: Array | int,
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
        cls, steps: Array | int, dx_tilde: Float[Array, "*batch n"], *, products: Array | int
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


# ------------------------------------------------------------------------------ the recursion


class AdjointState(eqx.Module):
    """`delta_P[l]`, `delta_D[l]`, `K^T delta_D[l]` and `K^T delta_bar_D[l]`."""

    delta_P: Float[Array, "*batch n"]
    delta_D: Float[Array, "*batch m"]
    KT_delta_D: Float[Array, "*batch n"]
    KT_delta_bar_D: Float[Array, "*batch n"]


class StepTerms(NamedTuple):
    """What one adjoint iteration has computed on its way and the gradients want."""

    u_P: Array
    u_D: Array
    K_delta_P: Array
    dF: Any  # <u_D, d/dp prox_{sigma F*}(z_D)>, in the structure of F
    dG: Any  # <u_P, d/dp prox_{tau G}(z_P)>, in the structure of G
    dsigma: Array  # the part of d/dsigma that acts through the prox
    dtau: Array


def start_adjoint(
    problem: LowerLevel, g: Cotangent, earlier: AdjointPair | None = None
) -> AdjointState:
    """`delta[L+1] = 0`; or the sums of an earlier backward solve, to be carried on (1 product)."""
    if earlier is not None:
        KT_Delta_D = apply_transpose(problem.K, earlier.Delta_D)
        return AdjointState(earlier.Delta_P, earlier.Delta_D, KT_Delta_D, KT_Delta_D)
    zero_P, zero_D = jnp.zeros_like(g.x), jnp.zeros_like(g.y)
    return AdjointState(zero_P, zero_D, zero_P, zero_P)


def _prox_G(G, z_P, tau):
    return G.prox(z_P, tau)


def _prox_conjugate_F(F, z_D, sigma):
    return F.prox_conjugate(z_D, sigma)


def adjoint_step(
    problem: LowerLevel, sizes: StepSizes, z: ProxArguments, later: AdjointState, g: Cotangent
) -> tuple[AdjointState, StepTerms]:
    """`delta[l]` from `delta[l+1]`, at the cost of two products with K."""
    K, (tau, sigma, theta) = problem.K, sizes
    _, pull_G = eqx.filter_vjp(_prox_G, problem.G, z.z_P, tau)
    _, pull_F = eqx.filter_vjp(_prox_conjugate_F, problem.F, z.z_D, sigma)

    u_P = later.delta_P + sigma * later.KT_delta_bar_D + g.x
    dG, delta_P, dtau = pull_G(u_P)
    K_delta_P = apply(K, delta_P)
    u_D = later.delta_D - tau * K_delta_P + g.y
    dF, delta_D, dsigma = pull_F(u_D)
    KT_delta_D = apply_transpose(K, delta_D)
    KT_delta_bar_D = KT_delta_D + theta * (KT_delta_D - later.KT_delta_D)

    state = AdjointState(delta_P, delta_D, KT_delta_D, KT_delta_bar_D)
    return state, StepTerms(u_P, u_D, K_delta_P, dF, dG, dsigma, dtau)


def relative_size(primal: Array, dual: Array, g: Cotangent, sizes: StepSizes) -> Array:
    """Size of a pair of deltas relative to that of `g`, a sample; 0 where `g` is 0.

    Cotangents live in the dual space, so that tau and sigma multiply where they divide elsewhere.
    """
    tau, sigma, _ = sizes
    size = primal_dual_norm(g.x, g.y, 1 / tau, 1 / sigma)
    ratio = primal_dual_norm(primal, dual, 1 / tau, 1 / sigma) / jnp.where(size == 0, 1.0, size)
    return jnp.where(size == 0, 0.0, ratio)  # a size that is NaN stays to be seen


# ------------------------------------------------------------------------- unrolled gradients


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, eqx.filter(tree, eqx.is_inexact_array))


class Recorded(NamedTuple):
    """Iterations to go back through: what a forward pass leaves for `backpropagate`.

    `start` is the state before the first of them, held fixed; `history` their prox arguments in
    order; `alpha (L,)` the weights of the iterates in the output (None: the last one alone).
    """

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]
    solver: ChambollePock
    sizes: StepSizes
    start: State
    history: ProxArguments
    alpha: Float[Array, " L"] | None


def backpropagate(
    recorded: Recorded, g: Cotangent
) -> tuple[LowerLevel, Array, ChambollePock, AdjointState]:
    """Backpropagation through recorded iterations.

        grad_K = sum_l sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    as the gradient of the bilinear form of K; F and G from `u`; tau, sigma, theta likewise.

    **Returns**: the gradients in problem, x_tilde and solver; and the adjoint state before the
    first iteration, which is what a truncation neglects.

    **Cost**: 4 products with K an iteration (two of them outer products summed over the batch).
    """
    problem, x_tilde, solver, sizes, start, history, alpha = recorded
    tau, sigma, theta = sizes
    F, G = problem.F, problem.G
    count = history.z_D.shape[0]

    def r_at(l):
        """`r[l]`, recomputed from the history: a prox costs less than the memory of r."""
        z_P = jax.lax.dynamic_index_in_dim(history.z_P, jnp.maximum(l - 1, 0), keepdims=False)
        return jnp.where(l > 0, G.prox(z_P, tau), start.r)

    def body(carry, l):
        later, grad, dx_tilde, dsizes = carry
        z = jax.tree.map(lambda h: jax.lax.dynamic_index_in_dim(h, l - 1, keepdims=False), history)
        weight = (l == count).astype(x_tilde.dtype) if alpha is None else alpha[l - 1]
        state, terms = adjoint_step(problem, sizes, z, later, Cotangent(weight * g.x, weight * g.y))
        y = F.prox_conjugate(z.z_D, sigma)
        r_before = r_at(l - 1)
        moved = jnp.where(l > 1, r_before - r_at(l - 2), 0.0)
        x_bar = x_tilde + jnp.where(l > 1, r_before + theta * moved, start.r_bar)

        dK = bilinear_gradient(problem.K, (sigma * state.delta_D, x_bar), (-tau * y, state.delta_P))
        dsizes = StepSizes(
            tau=dsizes.tau + terms.dtau - jnp.sum(terms.K_delta_P * y),
            sigma=dsizes.sigma + terms.dsigma + jnp.sum(state.KT_delta_D * x_bar),
            theta=dsizes.theta + sigma * jnp.sum(state.KT_delta_D * moved),
        )
        grad = _add(grad, (dK, terms.dF, terms.dG))
        return (state, grad, dx_tilde + sigma * state.KT_delta_D, dsizes), None

    carry = (
        start_adjoint(problem, g),
        _zeros((problem.K, F, G)),
        jnp.zeros_like(x_tilde),
        jax.tree.map(jnp.zeros_like, sizes),
    )
    backwards = jnp.arange(count, 0, -1)
    (state, (dK, dF, dG), dx_tilde, dsizes), _ = jax.lax.scan(body, carry, backwards)
    # From the step sizes in force to the solver's fields (their norm is not differentiated).
    _, pull_sizes = eqx.filter_vjp(lambda s: s.step_sizes(problem), solver)
    dsolver = pull_sizes(dsizes)[0]
    return _problem_gradient(problem, dK, dF, dG), g.x + dx_tilde, dsolver, state


def _problem_gradient(problem: LowerLevel, dK: Any, dF: Any, dG: Any) -> LowerLevel:
    """The gradient in the structure of the problem."""
    return eqx.tree_at(lambda p: (p.K, p.F, p.G), problem, (dK, dF, dG))


# --------------------------------------------------------------------------- the limit formula


class DeltaSums(NamedTuple):
    """Sums over the layers: of delta, of u, and of the two products that come with them."""

    Delta_P: Float[Array, "*batch n"]
    Delta_D: Float[Array, "*batch m"]
    U_P: Float[Array, "*batch n"]
    U_D: Float[Array, "*batch m"]
    K_Delta_P: Float[Array, "*batch m"]
    KT_Delta_D: Float[Array, "*batch n"]

    @classmethod
    def of(cls, state: AdjointState, terms: StepTerms) -> DeltaSums:
        """One layer alone."""
        return cls(
            state.delta_P, state.delta_D, terms.u_P, terms.u_D, terms.K_delta_P, state.KT_delta_D
        )

    def plus(self, state: AdjointState, terms: StepTerms) -> DeltaSums:
        """The sums with one more layer."""
        return _add(self, DeltaSums.of(state, terms))

    @property
    def pair(self) -> AdjointPair:
        """The sums of delta alone."""
        return AdjointPair(self.Delta_P, self.Delta_D)


def nothing_like(g: Cotangent) -> Cotangent:
    """`g = 0`: what enters every layer but the last."""
    return Cotangent(*jax.tree.map(jnp.zeros_like, tuple(g)))


def first_layer(
    problem: LowerLevel,
    sizes: StepSizes,
    z: ProxArguments,
    g: Cotangent,
    earlier: AdjointPair | None,
) -> tuple[AdjointState, DeltaSums]:
    """The layer that `g` enters: its delta, and the sums so far.

    With the sums of an earlier solve to start from, the sums are those plus the delta: one step of
    the adjoint iteration from there, and the delta is what it moved. From then on the recursion is
    the same.
    """
    start = start_adjoint(problem, g, earlier)
    state, terms = adjoint_step(problem, sizes, z, start, g)
    return jax.tree.map(jnp.subtract, state, start), DeltaSums.of(state, terms)


def sum_deltas(
    problem: LowerLevel,
    sizes: StepSizes,
    history: ProxArguments,
    g: Cotangent,
    steps: int,
    earlier: AdjointPair | None = None,
) -> DeltaSums:
    """Sums of the deltas over the last `steps` layers; a history of length 1 is held frozen."""
    frozen, nothing = history.z_D.shape[0] == 1, nothing_like(g)

    def body(carry, l):
        later, sums = carry
        z = jax.tree.map(lambda h: h[0] if frozen else h[l - 1], history)
        state, terms = adjoint_step(problem, sizes, z, later, nothing)
        return (state, sums.plus(state, terms)), None

    last = ProxArguments(history.z_D[-1], history.z_P[-1])
    carry = first_layer(problem, sizes, last, g, earlier)
    if steps == 1:
        return carry[1]
    return jax.lax.scan(body, carry, jnp.arange(steps - 1, 0, -1))[0][1]


class LimitSystem(eqx.Module):
    """The linear system that the sums of the deltas solve in the limit, whatever theta:

        (I - D_P) Delta_P - sigma D_P K^T Delta_D = D_P g
        tau D_D K Delta_P + (I - D_D) Delta_D     = D_D g_y

    with `D_P = prox'_{tau G}(z_P)`, `D_D = prox'_{sigma F*}(z_D)`. A Krylov method sees it in the
    balanced unknowns `sqrt(tau) Delta_P`, `sqrt(sigma) Delta_D`, where tau and sigma only occur as
    `sqrt(tau sigma) K`, of norm at most 1. The kernel splits into a primal and a dual part, so the
    solution of minimum norm is the same in both.
    """

    problem: LowerLevel
    sizes: StepSizes
    z: ProxArguments

    def D_P(self, u: Array) -> Array:
        """`prox'_{tau G}(z_P) u`; the Jacobian of a prox is symmetric."""
        tau = self.sizes.tau
        return jax.vjp(lambda z: self.problem.G.prox(z, tau), self.z.z_P)[1](u)[0]

    def D_D(self, u: Array) -> Array:
        """`prox'_{sigma F*}(z_D) u`."""
        sigma = self.sizes.sigma
        return jax.vjp(lambda z: self.problem.F.prox_conjugate(z, sigma), self.z.z_D)[1](u)[0]

    def _roots(self) -> tuple[Array, Array]:
        return jnp.sqrt(self.sizes.tau), jnp.sqrt(self.sizes.sigma)

    def balanced(self, unknowns: tuple[Array, Array]) -> tuple[Array, Array]:
        """The left-hand side, in balanced unknowns."""
        (root_tau, root_sigma), (p, d) = self._roots(), unknowns
        scale = root_tau * root_sigma
        K_p, KT_d = apply(self.problem.K, p), apply_transpose(self.problem.K, d)
        return p - self.D_P(p + scale * KT_d), d - self.D_D(d - scale * K_p)

    def balanced_transpose(self, unknowns: tuple[Array, Array]) -> tuple[Array, Array]:
        """The transpose of the left-hand side: the derivative of the optimality conditions."""
        (root_tau, root_sigma), (p, d) = self._roots(), unknowns
        D_P_p, D_D_d, scale = self.D_P(p), self.D_D(d), root_tau * root_sigma
        K_D_P_p, KT_D_D_d = apply(self.problem.K, D_P_p), apply_transpose(self.problem.K, D_D_d)
        return p - D_P_p + scale * KT_D_D_d, d - D_D_d - scale * K_D_P_p

    def balanced_right_hand_side(self, g: Cotangent) -> tuple[Array, Array]:
        """The right-hand side, in balanced unknowns."""
        root_tau, root_sigma = self._roots()
        return root_tau * self.D_P(g.x), root_sigma * self.D_D(g.y)

    def sums(self, unknowns: tuple[Array, Array], g: Cotangent) -> DeltaSums:
        """From balanced unknowns to `Delta` and `U` (`U_P = Delta_P + sigma K^T Delta_D + g`)."""
        root_tau, root_sigma = self._roots()
        Delta_P, Delta_D = unknowns[0] / root_tau, unknowns[1] / root_sigma
        K_Delta_P = apply(self.problem.K, Delta_P)
        KT_Delta_D = apply_transpose(self.problem.K, Delta_D)
        U_P, U_D = self._brackets(Delta_P, Delta_D, K_Delta_P, KT_Delta_D, g)
        return DeltaSums(Delta_P, Delta_D, U_P, U_D, K_Delta_P, KT_Delta_D)

    def _brackets(
        self, Delta_P: Array, Delta_D: Array, K_Delta_P: Array, KT_Delta_D: Array, g: Cotangent
    ) -> tuple[Array, Array]:
        tau, sigma, _ = self.sizes
        return Delta_P + sigma * KT_Delta_D + g.x, Delta_D - tau * K_Delta_P + g.y

    def residual(self, sums: DeltaSums, g: Cotangent) -> Float[Array, "*batch"]:
        """Relative residual: how far `Delta` is from `D U(Delta)`, without a product with K."""
        Delta_P, Delta_D, _, _, K_Delta_P, KT_Delta_D = sums
        U_P, U_D = self._brackets(Delta_P, Delta_D, K_Delta_P, KT_Delta_D, g)
        return relative_size(Delta_P - self.D_P(U_P), Delta_D - self.D_D(U_D), g, self.sizes)


Unknowns = tuple[Array, Array]


def solve_least_squares(
    product: Callable[[Unknowns], Unknowns],
    transpose_product: Callable[[Unknowns], Unknowns],
    right: Unknowns,
    *,
    rtol: float,
    most: int,
) -> tuple[Unknowns, Array, Array]:
    """The least-squares solution of minimum norm of a linear system a sample, by CGLS.

    Conjugate gradients on `A^T A p = A^T b` from zero, in the form that never squares A: the
    iterates stay in the range of `A^T`, which is where the solution of minimum norm lies, so a
    singular system needs no care. All samples of a batch at once, each frozen when it has arrived.

    **Returns**: the unknowns, the steps taken and whether it arrived, one entry a sample.

    **Cost**: 4 products with K a step, for the whole batch.

    **Source**: Hestenes & Stiefel 1952; Björck, Numerical Methods for Least Squares, §7.4.
    """

    def unfinished(carry):
        *_, running, steps = carry
        return jnp.any(running) & jnp.all(steps < most)

    def body(carry):
        x, r, p, gamma, running, steps = carry
        q = product(p)
        length = jnp.where(running, gamma / _positive(squared_norm(q)), 0.0)
        x, r = _axpy(length, p, x), _axpy(-length, q, r)
        s = transpose_product(r)
        gamma_next = squared_norm(s)
        p = jax.tree.map(
            lambda new, old: jnp.where(running[..., None], new, old),
            _axpy(gamma_next / _positive(gamma), p, s),
            p,
        )
        small = (squared_norm(r) <= rtol**2 * squared_norm(right)) | (
            gamma_next <= rtol**2 * squared_norm(r)
        )
        steps = jnp.where(running, steps + 1, steps)
        return x, r, p, jnp.where(running, gamma_next, gamma), running & ~small, steps

    s = transpose_product(right)
    gamma = squared_norm(s)
    zero = jax.tree.map(jnp.zeros_like, right)
    carry = (zero, right, s, gamma, gamma > 0, jnp.zeros(gamma.shape, jnp.int32))
    x, _, _, _, running, steps = jax.lax.while_loop(unfinished, body, carry)
    return x, steps, ~running


def squared_norm(pair: tuple[Array, Array]) -> Array:
    """The squared Euclidean norm of a pair of unknowns, a sample."""
    return jnp.sum(pair[0] ** 2, axis=-1) + jnp.sum(pair[1] ** 2, axis=-1)


def _positive(value: Array) -> Array:
    """The value where it is positive, else 1: for a denominator whose numerator is 0 there."""
    return jnp.where(value > 0, value, 1.0)


def _axpy(length: Array, p: Any, x: Any) -> Any:
    """`x + length p`, sample by sample."""
    return jax.tree.map(lambda a, b: b + length[..., None] * a, p, x)


def limit_gradients(
    system: LimitSystem, x: Float[Array, "*batch n"], y: Float[Array, "*batch m"], sums: DeltaSums
) -> tuple[LowerLevel, Float[Array, "*batch n"]]:
    """The limit formula: gradients in the problem, and in x_tilde (without `g` itself).

    grad_K = sigma Delta_D x^T - tau y Delta_P^T
    grad_p = <U_D, d/dp prox_{sigma F*}(z_D)> + <U_P, d/dp prox_{tau G}(z_P)>
    """
    problem, (tau, sigma, _), z = system.problem, system.sizes, system.z
    dK = bilinear_gradient(problem.K, (sigma * sums.Delta_D, x), (-tau * y, sums.Delta_P))
    _, pull_F = eqx.filter_vjp(lambda F: F.prox_conjugate(z.z_D, sigma), problem.F)
    _, pull_G = eqx.filter_vjp(lambda G: G.prox(z.z_P, tau), problem.G)
    dF, dG = pull_F(sums.U_D)[0], pull_G(sums.U_P)[0]
    return _problem_gradient(problem, dK, dF, dG), sigma * sums.KT_Delta_D


def solve_both_ways(
    product: Callable[[Unknowns], Unknowns],
    right: Unknowns,
    forwards: Callable[[Unknowns], Unknowns],
    backwards: Callable[[Unknowns], Unknowns],
) -> Unknowns:
    """A solve that JAX can transpose: `backwards` solves the transposed system.

    As one vector a sample, since JAX cannot transpose a solve of which one half is not asked for.
    """

    def on_vectors(function: Callable[[Unknowns], Unknowns]) -> Callable[[Array], Array]:
        size = right[0].shape[-1]

        def on_vector(v: Array) -> Array:
            return jnp.concatenate(function((v[..., :size], v[..., size:])), axis=-1)

        return on_vector

    solved = jax.lax.custom_linear_solve(
        on_vectors(product),
        jnp.concatenate(right, axis=-1),
        lambda _, b: on_vectors(forwards)(b),
        lambda _, b: on_vectors(backwards)(b),
    )
    return solved[..., : right[0].shape[-1]], solved[..., right[0].shape[-1] :]


class Tangents(NamedTuple):
    """Perturbations of the arguments of a solve, in their structure."""

    problem: LowerLevel
    x_tilde: Float[Array, "*batch n"]


def _derivative(function: Callable[..., Array], at: tuple, along: tuple) -> Array:
    return eqx.filter_jvp(function, at, along)[1]


def limit_pushforward(
    system: LimitSystem,
    x: Float[Array, "*batch n"],
    y: Float[Array, "*batch m"],
    tangents: Tangents,
    solve: Callable[[Unknowns], Unknowns],
) -> Cotangent:
    """How `x` and `y` move with the arguments: the optimality conditions, differentiated.

        (I - D_P) z_P' + tau K^T D_D z_D'   = prox_P' - tau (K'^T y + K^T prox_D')
        (I - D_D) z_D' - sigma K D_P z_P'   = prox_D' + sigma (K' x + K (x_tilde' + prox_P'))

    with `prox_P'`, `prox_D'` the derivatives of the proxes in the parameters of G and F; then
    `r' = D_P z_P' + prox_P'` and `y' = D_D z_D' + prox_D'`. The left-hand side is the transpose of
    the limit system. Linear in the tangents, and JAX can transpose it.

    `solve` takes a (balanced) right-hand side to the unknowns.
    """
    problem, (tau, sigma, _), z = system.problem, system.sizes, system.z
    d, root_tau, root_sigma = tangents.problem, jnp.sqrt(tau), jnp.sqrt(sigma)
    prox_P = _derivative(lambda G: G.prox(z.z_P, tau), (problem.G,), (d.G,))
    prox_D = _derivative(lambda F: F.prox_conjugate(z.z_D, sigma), (problem.F,), (d.F,))
    dx = tangents.x_tilde + prox_P
    K_x = _derivative(apply, (problem.K, x), (d.K, dx))
    KT_y = _derivative(apply_transpose, (problem.K, y), (d.K, prox_D))
    right = (prox_P - tau * KT_y) / root_tau, (prox_D + sigma * K_x) / root_sigma
    a, b = solve(right)
    return Cotangent(dx + system.D_P(root_tau * a), prox_D + system.D_D(root_sigma * b))
