"""The delta recursion: one layer, and sums over layers.

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

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad.adjoint.results import Cotangent
from hypergrad.chambolle_pock import AdjointPair, ProxArguments, StepSizes
from hypergrad.problem.functions import prox, prox_conjugate
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose

__all__ = [
    "AdjointState",
    "DeltaSums",
    "StepTerms",
    "adjoint_step",
    "first_layer",
    "seed_last_layer",
    "start_adjoint",
    "sum_deltas",
    "zeros_like",
]


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
    _, pull_G = eqx.filter_vjp(prox, problem.G, z.z_P, tau)
    _, pull_F = eqx.filter_vjp(prox_conjugate, problem.F, z.z_D, sigma)

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
    frozen, nothing = history.z_D.shape[0] == 1, zeros_like(g)
    tau, sigma, theta = sizes

    def body(carry: Any, l: Array):
        later, Delta_P, Delta_D, KT_Delta_D = carry
        z = jax.tree.map(lambda h: h[0] if frozen else h[l - 1], history)
        state, _ = adjoint_step(problem, sizes, z, later, nothing)
        sums = Delta_P + state.delta_P, Delta_D + state.delta_D, KT_Delta_D + state.KT_delta_D
        return (state, *sums), None

    last = ProxArguments(history.z_D[-1], history.z_P[-1])
    state, sums = first_layer(problem, sizes, last, g, earlier)
    if steps == 1:
        return sums
    carry = (state, sums.Delta_P, sums.Delta_D, sums.KT_Delta_D)
    layers = jnp.arange(steps - 1, 0, -1)
    (state, Delta_P, Delta_D, KT_Delta_D), _ = jax.lax.scan(body, carry, layers)
    # What enters a layer is what the one behind it gave, so the sums of u follow from the others.
    K_Delta_P = apply(problem.K, Delta_P)
    KT_before = KT_Delta_D + theta * state.KT_delta_D - state.KT_delta_bar_D
    U_P = Delta_P - state.delta_P + sigma * KT_before + g.x
    U_D = Delta_D - state.delta_D - tau * K_Delta_P + g.y
    return DeltaSums(Delta_P, Delta_D, U_P, U_D, K_Delta_P, KT_Delta_D)
