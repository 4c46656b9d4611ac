"""Regime A: the active set is known."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.samples import safe_norm
from hypergrad.adjoint import Cotangent, LimitSystem, limit_gradients, pair_norm
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
from hypergrad.chambolle_pock import ProxArguments, StepSizes
from hypergrad.exact import ActiveSystem, NormalMap, active_system
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import matrix_of

# Of the Newton step and of the adjoint solve: cheap beside the factorisation.
_REFINEMENTS = 6


class ActiveSet(AbstractRegime):
    """The pieces that the solution's prox arguments lie in are known, so that it is solved for.

    In the scaled unknowns of `hypergrad.exact`, with `Phi` the normal map and J its Jacobian: a
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
        known = has_pieces(problem.F, problem.m, problem.dtype)
        known = known and has_pieces(problem.G, problem.n, problem.dtype)
        return known and matrix_of(problem.K) is not None

    def locate(self, pair: ReturnedPair, wanted: Bool[Array, " batch"]) -> AbstractPoint:
        problem, x_tilde, sizes, x, y, _ = pair
        tau, sigma, _ = sizes
        rounding = rounding_of(problem, x.dtype)
        normal_map, none = NormalMap(problem, x_tilde, sizes), jnp.zeros(x.shape[:1], x.dtype)

        def newton_step(z: ProxArguments) -> ProxArguments:
            f = jax.tree.map(jnp.negative, normal_map(z, none))
            step = active_system(problem, sizes, z, none).solve(f, refinements=_REFINEMENTS)
            return normal_map.moved(z, none + 1, step)

        def residual(z: ProxArguments) -> Array:
            return normal_map.relative(z, none)

        start = normal_map.arguments(x - x_tilde, y)
        z = best_of_newton(newton_step, residual, start, rounding)
        system = active_system(problem, sizes, z, none)
        inverse_norm = system.inverse_norm()
        r, y = normal_map.pair(z, none)
        size = pair_norm(normal_map.scaled(z))
        size = size + pair_norm(normal_map.scaled(ProxArguments(y, x_tilde + r)))
        error = inverse_norm * (pair_norm(normal_map(z, none)) + rounding * size)

        to_P, to_D = jnp.sqrt(tau) * error[:, None], jnp.sqrt(sigma) * error[:, None]
        same_P = pieces(problem.G, z.z_P - to_P, tau) == pieces(problem.G, z.z_P + to_P, tau)
        same_D = pieces(problem.F, (z.z_D - to_D) / sigma, 1 / sigma) == pieces(
            problem.F, (z.z_D + to_D) / sigma, 1 / sigma
        )
        settled = jnp.all(same_P, axis=-1) & jnp.all(same_D, axis=-1)
        holds = wanted & jnp.isfinite(error) & settled
        return _SettledPoint(
            holds=holds,
            x=zero_unless(holds, x_tilde + r),
            error_x=jnp.sqrt(tau) * error,
            problem=problem,
            sizes=sizes,
            z=zero_unless(holds, z),
            y=zero_unless(holds, y),
            system=system,
            inverse_norm=inverse_norm,
            error=error,
        )


class _SettledPoint(AbstractPoint):
    """z in the piece of the solution, within `error` of it in the scaled norm."""

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
        rounding = rounding_of(self.problem, g.dtype)
        limit = LimitSystem(self.problem, self.sizes, self.z)
        cotangent = Cotangent(g, jnp.zeros_like(self.y))
        right = limit.scaled_right_hand_side(cotangent)
        unknowns, _ = self.system.solve_transposed(right, refinements=_REFINEMENTS)
        unknowns = zero_unless(self.holds, unknowns)
        rest = pair_norm(jax.tree.map(jnp.subtract, right, limit.scaled(unknowns)))
        rest = rest + rounding * (pair_norm(right) + 2 * pair_norm(unknowns))
        error_Delta = self.inverse_norm * (rest + root_tau * error_g)
        sums = zero_unless(self.holds, limit.sums(unknowns, cotangent))
        grad, _ = limit_gradients(limit, self.x, self.y, sums)

        def outer(Delta: Array, size: Array, error: Array) -> Array:
            """The error of one outer product, by the product rule."""
            return error_Delta * (size + error) + Delta * error + rounding * Delta * size

        error_x, error_y = root_tau * self.error, root_sigma * self.error
        in_K = root_sigma * outer(safe_norm(unknowns[1]), safe_norm(self.x), error_x)
        in_K = in_K + root_tau * outer(safe_norm(unknowns[0]), safe_norm(self.y), error_y)
        return grad, self._errors(in_K, sums, error_Delta, error_g, rounding)

    def _errors(
        self, in_K: Array, sums: Any, error_Delta: Array, error_g: Array, rounding: float
    ) -> LowerLevel:
        """The error in K, with those in the parameters of F and G."""
        problem, z, (tau, sigma, _) = self.problem, self.z, self.sizes
        reach = self.error[:, None]
        in_F = parameter_errors(
            lambda F, z: F.prox_conjugate(z, sigma),
            problem.F,
            z.z_D,
            jnp.sqrt(sigma) * reach * jnp.ones_like(z.z_D),
            None,
            sums.U_D,
            2 * error_Delta / jnp.sqrt(sigma),
            rounding,
        )
        in_G = parameter_errors(
            lambda G, z: G.prox(z, tau),
            problem.G,
            z.z_P,
            jnp.sqrt(tau) * reach * jnp.ones_like(z.z_P),
            None,
            sums.U_P,
            2 * error_Delta / jnp.sqrt(tau) + error_g,
            rounding,
        )
        return in_structure(problem, in_K, in_F, in_G)
