"""The delta recursion, its sums over layers, and the linear system of their limit.

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
from jaxtyping import Array, Float

from hypergrad.adjoint.linear_solves import Unknowns
from hypergrad.adjoint.results import Cotangent, SolvedPair, Tangents, problem_gradient
from hypergrad.chambolle_pock import (
    AdjointPair,
    PairScale,
    ProxArguments,
    StepSizes,
    pair_scale,
    primal_dual_norm,
    relative_to,
    with_steps,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose, bilinear_gradient


class AdjointState(eqx.Module):
    """`delta_P[l]`, `delta_D[l]`, `K^T delta_D[l]` and `K^T delta_bar_D[l]`."""

    delta_P: Float[Array, "*batch n"]
    delta_D: Float[Array, "*batch m"]
    KT_delta_D: Float[Array, "*batch n"]
    KT_delta_bar_D: Float[Array, "*batch n"]


class StepTerms(NamedTuple):
    """Intermediate results of one adjoint iteration that the gradients need."""

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
    """Return `delta[L+1] = 0`, or the sums of an earlier backward solve (1 product)."""
    if earlier is not None:
        KT_Delta_D = apply_transpose(problem.K, earlier.Delta_D)
        return AdjointState(earlier.Delta_P, earlier.Delta_D, KT_Delta_D, KT_Delta_D)
    zero_P, zero_D = jnp.zeros_like(g.x), jnp.zeros_like(g.y)
    return AdjointState(zero_P, zero_D, zero_P, zero_P)


def seed_last_layer(g: Cotangent) -> AdjointState:
    """Return `delta[L+1] = g` with `delta_bar = 0`: equivalent to `g` entering layer L."""
    nothing = jnp.zeros_like(g.x)
    return AdjointState(g.x, g.y, nothing, nothing)


def adjoint_step(
    problem: LowerLevel, sizes: StepSizes, z: ProxArguments, later: AdjointState, g: Cotangent
) -> tuple[AdjointState, StepTerms]:
    """Return `delta[l]` from `delta[l+1]`, by two products with K."""
    K, (tau, sigma, theta) = problem.K, sizes
    _, pull_G = eqx.filter_vjp(lambda G, z, step: G.prox(z, step), problem.G, z.z_P, tau)
    _, pull_F = eqx.filter_vjp(
        lambda F, z, step: F.prox_conjugate(z, step), problem.F, z.z_D, sigma
    )

    u_P = later.delta_P + sigma * later.KT_delta_bar_D + g.x
    dG, delta_P, dtau = pull_G(u_P)
    K_delta_P = apply(K, delta_P)
    u_D = later.delta_D - tau * K_delta_P + g.y
    dF, delta_D, dsigma = pull_F(u_D)
    KT_delta_D = apply_transpose(K, delta_D)
    KT_delta_bar_D = KT_delta_D + theta * (KT_delta_D - later.KT_delta_D)

    state = AdjointState(delta_P, delta_D, KT_delta_D, KT_delta_bar_D)
    return state, StepTerms(u_P, u_D, K_delta_P, dF, dG, dsigma, dtau)


# ----------------------------------------------------------------------------- sums over the layers


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
        """Return the sums over one layer."""
        return cls(
            state.delta_P, state.delta_D, terms.u_P, terms.u_D, terms.K_delta_P, state.KT_delta_D
        )

    def plus(self, state: AdjointState, terms: StepTerms) -> DeltaSums:
        """Return the sums with one more layer."""
        return jax.tree.map(jnp.add, self, DeltaSums.of(state, terms))

    @property
    def pair(self) -> AdjointPair:
        """The sums of delta alone."""
        return AdjointPair(self.Delta_P, self.Delta_D)


def zeros_like(g: Cotangent) -> Cotangent:
    """Return `g = 0`, which enters every layer but the last."""
    return Cotangent(*jax.tree.map(jnp.zeros_like, tuple(g)))


def first_layer(
    problem: LowerLevel,
    sizes: StepSizes,
    z: ProxArguments,
    g: Cotangent,
    earlier: AdjointPair | None,
) -> tuple[AdjointState, DeltaSums]:
    """Return the delta of the layer that `g` enters, and the sums so far.

    From the sums of an earlier solve, this is one step of the adjoint iteration: the new sums are
    those plus the delta. From then on the recursion is the same.
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
    """Return the sums of the deltas over the last `steps` layers.

    With a history of length 1 all layers are taken at that iterate.
    """
    last = ProxArguments(history.z_D[-1], history.z_P[-1])
    state, sums = first_layer(problem, sizes, last, g, earlier)
    if steps == 1:
        return sums
    frozen, nothing = history.z_D.shape[0] == 1, zeros_like(g)
    tau, sigma, theta = sizes

    def body(carry: Any, l: Array):
        later, Delta_P, Delta_D, KT_Delta_D = carry
        z = jax.tree.map(lambda h: h[0] if frozen else h[l - 1], history)
        state, _ = adjoint_step(problem, sizes, z, later, nothing)
        sums = Delta_P + state.delta_P, Delta_D + state.delta_D, KT_Delta_D + state.KT_delta_D
        return (state, *sums), None

    carry = (state, sums.Delta_P, sums.Delta_D, sums.KT_Delta_D)
    layers = jnp.arange(steps - 1, 0, -1)
    (state, Delta_P, Delta_D, KT_Delta_D), _ = jax.lax.scan(body, carry, layers)
    # What enters a layer is what the one behind it gave, so the sums of u follow from the others.
    K_Delta_P = apply(problem.K, Delta_P)
    KT_before = KT_Delta_D + theta * state.KT_delta_D - state.KT_delta_bar_D
    U_P = Delta_P - state.delta_P + sigma * KT_before + g.x
    U_D = Delta_D - state.delta_D - tau * K_Delta_P + g.y
    return DeltaSums(Delta_P, Delta_D, U_P, U_D, K_Delta_P, KT_Delta_D)


# ---------------------------------------------------------------------- the limit of the recursion


class LimitSystem(eqx.Module):
    """The linear system that the sums of the deltas solve in the limit, whatever theta:

        (I - D_P) Delta_P - sigma D_P K^T Delta_D = D_P g
        tau D_D K Delta_P + (I - D_D) Delta_D     = D_D g_y

    with `D_P = prox'_{tau G}(z_P)`, `D_D = prox'_{sigma F*}(z_D)`. A Krylov method sees it in the
    scaled unknowns `sqrt(tau) Delta_P`, `sqrt(sigma) Delta_D`, where tau and sigma only occur as
    `sqrt(tau sigma) K`, of norm at most 1. The kernel splits into a primal and a dual part, so the
    solution of minimum norm is the same in both.
    """

    problem: LowerLevel
    sizes: StepSizes
    z: ProxArguments

    @classmethod
    def at_last(cls, problem: LowerLevel, sizes: StepSizes, history: ProxArguments) -> LimitSystem:
        """Return the system at the last of some iterates."""
        return cls(problem, sizes, ProxArguments(history.z_D[-1], history.z_P[-1]))

    def varied_with(self, solved: SolvedPair) -> LimitSystem:
        """Return the system as a function of the solved pair, for derivatives of higher order."""
        problem, x_tilde, x, y = solved
        tau, sigma, _ = self.sizes
        z_D = y + sigma * apply(problem.K, x)
        z_P = x - x_tilde - tau * apply_transpose(problem.K, y)
        z = ProxArguments(_moving(self.z.z_D, z_D), _moving(self.z.z_P, z_P))
        return LimitSystem(problem, self.sizes, z)

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

    def scaled(self, unknowns: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return the left-hand side, in scaled unknowns."""
        (root_tau, root_sigma), (p, d) = self._roots(), unknowns
        scale = root_tau * root_sigma
        K_p, KT_d = apply(self.problem.K, p), apply_transpose(self.problem.K, d)
        return p - self.D_P(p + scale * KT_d), d - self.D_D(d - scale * K_p)

    def scaled_transpose(self, unknowns: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return its transpose: the derivative of the optimality conditions."""
        (root_tau, root_sigma), (p, d) = self._roots(), unknowns
        D_P_p, D_D_d, scale = self.D_P(p), self.D_D(d), root_tau * root_sigma
        K_D_P_p, KT_D_D_d = apply(self.problem.K, D_P_p), apply_transpose(self.problem.K, D_D_d)
        return p - D_P_p + scale * KT_D_D_d, d - D_D_d - scale * K_D_P_p

    def scaled_right_hand_side(self, g: Cotangent) -> tuple[Array, Array]:
        """Return the right-hand side, in scaled unknowns."""
        root_tau, root_sigma = self._roots()
        return root_tau * self.D_P(g.x), root_sigma * self.D_D(g.y)

    def sums(self, unknowns: tuple[Array, Array], g: Cotangent) -> DeltaSums:
        """Return `Delta` and `U` from scaled unknowns (`U_P = Delta_P + sigma K^T Delta_D + g`)."""
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

    def residual(
        self, sums: DeltaSums, g: Cotangent
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Return the distance of `Delta` from `D U(Delta)`, and that of a solution by rounding.

        Both are relative to g (see `PairMetric`) and take no product with K.
        """
        metric, eps = PairMetric.at(self), float(jnp.finfo(sums.Delta_P.dtype).eps)
        Delta_P, Delta_D, _, _, K_Delta_P, KT_Delta_D = sums
        U_P, U_D = self._brackets(Delta_P, Delta_D, K_Delta_P, KT_Delta_D, g)
        residual = metric.size(Delta_P - self.D_P(U_P), Delta_D - self.D_D(U_D), g)
        Delta_P, Delta_D, U_P, U_D, _, _ = jax.tree.map(jnp.abs, sums)
        return residual, metric.size(eps * (Delta_P + U_P), eps * (Delta_D + U_D), g)


class PairMetric(NamedTuple):
    """Measure deltas relative to `g`, whatever the step sizes that they were computed with.

    A delta depends on them: with other step sizes the same misfit of the linearised problem is
    another delta. So it is measured as the one that it is with the pair's own steps `t`, `s` (see
    `hypergrad.chambolle_pock.residuals`), at which `D_t` is the derivative of the prox:

        X = t D_t delta_P + tau (I - D_t) delta_P,    Y = s D_s delta_D + sigma (I - D_s) delta_D
        size = sqrt( ||X||^2 / t + ||Y||^2 / s ) / sqrt( t ||g||^2 + s ||g_y||^2 )

    (`X`, `Y` are in the units of the adjoint saddle point, `-tau Delta_P` and `sigma Delta_D`.) It
    does not change with `tau`, `sigma`, `step_ratio`, nor with any unit.
    """

    problem: LowerLevel
    sizes: StepSizes
    own: PairScale
    z: ProxArguments  # of the same pair, at its own steps

    @classmethod
    def at(cls, system: LimitSystem) -> PairMetric:
        """Return the metric of the pair `prox_{tau G}(z_P)`, `prox_{sigma F*}(z_D)`."""
        problem, (tau, sigma, _), z = system.problem, system.sizes, system.z
        r, y = problem.G.prox(z.z_P, tau), problem.F.prox_conjugate(z.z_D, sigma)
        # Subgradients in the place of K x and -K^T y: at a solution they are the same.
        K_x, KT_y = (z.z_D - y) / sigma, (r - z.z_P) / tau
        own = pair_scale(problem, system.sizes, r, r, y, K_x, KT_y)
        # z - prox is a step along a subgradient: as many times longer as the step size is.
        z_D = y + (own.s / sigma)[..., None] * (z.z_D - y)
        z_P = r + (own.t / tau)[..., None] * (z.z_P - r)
        return cls(problem, system.sizes, own, ProxArguments(z_D, z_P))

    def size(self, delta_P: Array, delta_D: Array, g: Cotangent) -> Float[Array, "*batch"]:
        """Return the size of a pair of deltas relative to that of `g`; 0 where `g` is 0."""
        F, G, (tau, sigma, _) = self.problem.F, self.problem.G, self.sizes
        X = _at_own_steps(G.prox, self.z.z_P, tau, self.own.t, delta_P)
        Y = _at_own_steps(F.prox_conjugate, self.z.z_D, sigma, self.own.s, delta_D)
        return self._relative(primal_dual_norm(X, Y, self.own.t, self.own.s), g)

    def misfit(self, in_r: Array, in_y: Array, g: Cotangent) -> Float[Array, "*batch"]:
        """Return the size of a misfit of what `prox'` is applied to, in the units of `g`."""
        return self._relative(primal_dual_norm(in_r, in_y, 1 / self.own.t, 1 / self.own.s), g)

    def _relative(self, size: Array, g: Cotangent) -> Array:
        size_g = primal_dual_norm(g.x, g.y, 1 / self.own.t, 1 / self.own.s)
        return jnp.where(size_g == 0, 0.0, relative_to(size, size_g))


def _at_own_steps(
    prox: Callable[[Array, Array], Array], z: Array, step: Array, own: Array, delta: Array
) -> Array:
    _, pull = jax.vjp(lambda z: with_steps(prox, z, own), z)
    D_delta = pull(delta)[0]
    return own[..., None] * D_delta + step * (delta - D_delta)


def _moving(value: Array, like: Array) -> Array:
    """Return `value` with the derivatives of `like`."""
    return value + (like - jax.lax.stop_gradient(like))


def limit_gradients(
    system: LimitSystem, x: Float[Array, "*batch n"], y: Float[Array, "*batch m"], sums: DeltaSums
) -> tuple[LowerLevel, Float[Array, "*batch n"]]:
    """Return the gradients in the problem, and in x_tilde (without `g` itself).

    grad_K = sigma Delta_D x^T - tau y Delta_P^T
    grad_p = <U_D, d/dp prox_{sigma F*}(z_D)> + <U_P, d/dp prox_{tau G}(z_P)>
    """
    problem, (tau, sigma, _), z = system.problem, system.sizes, system.z
    dK = bilinear_gradient(problem.K, (sums.Delta_D, sigma * x), (y, -tau * sums.Delta_P))
    _, pull_F = eqx.filter_vjp(lambda F: F.prox_conjugate(z.z_D, sigma), problem.F)
    _, pull_G = eqx.filter_vjp(lambda G: G.prox(z.z_P, tau), problem.G)
    dF, dG = pull_F(sums.U_D)[0], pull_G(sums.U_P)[0]
    return problem_gradient(problem, dK, dF, dG), sigma * sums.KT_Delta_D


def _derivative(
    function: Callable[..., Array], at: tuple[Any, ...], along: tuple[Any, ...]
) -> Array:
    value, derivative = eqx.filter_jvp(function, at, along)
    # None where nothing that could be perturbed went in: a function without arrays.
    return jnp.zeros_like(value) if derivative is None else derivative


def limit_pushforward(
    system: LimitSystem,
    solved: SolvedPair,
    tangents: Tangents,
    solve: Callable[[LimitSystem, Unknowns], Unknowns],
) -> Cotangent:
    """Return the derivatives of `x` and `y` along the tangents, from the optimality conditions.

        (I - D_P) z_P' + tau K^T D_D z_D'   = prox_P' - tau (K'^T y + K^T prox_D')
        (I - D_D) z_D' - sigma K D_P z_P'   = prox_D' + sigma (K' x + K (x_tilde' + prox_P'))

    with `prox_P'`, `prox_D'` the derivatives of the proxes in the parameters of G and F; then
    `r' = D_P z_P' + prox_P'` and `y' = D_D z_D' + prox_D'`. The left-hand side is the transpose of
    the limit system. Linear in the tangents, and JAX can transpose it; and it can be differentiated
    again in the solved pair.

    `solve` takes a system and a (scaled) right-hand side to the unknowns.
    """
    system = system.varied_with(solved)
    problem, _, x, y = solved
    (tau, sigma, _), z = system.sizes, system.z
    d, root_tau, root_sigma = tangents.problem, jnp.sqrt(tau), jnp.sqrt(sigma)
    prox_P = _derivative(lambda G: G.prox(z.z_P, tau), (problem.G,), (d.G,))
    prox_D = _derivative(lambda F: F.prox_conjugate(z.z_D, sigma), (problem.F,), (d.F,))
    dx = tangents.x_tilde + prox_P
    K_x = _derivative(apply, (problem.K, x), (d.K, dx))
    KT_y = _derivative(apply_transpose, (problem.K, y), (d.K, prox_D))
    right = (prox_P - tau * KT_y) / root_tau, (prox_D + sigma * K_x) / root_sigma
    a, b = solve(system, right)
    return Cotangent(dx + system.D_P(root_tau * a), prox_D + system.D_D(root_sigma * b))
