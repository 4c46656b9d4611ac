"""The limit of the delta recursion: its linear system, and derivatives from its solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.adjoint.linear_solves import Unknowns
from hypergrad.adjoint.recursion import DeltaSums
from hypergrad.adjoint.results import Cotangent, SolvedPair, Tangents, problem_gradient
from hypergrad.chambolle_pock import (
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

__all__ = ["LimitSystem", "PairMetric", "limit_gradients", "limit_pushforward"]


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
