"""Faster ways to the same solution: what the undifferentiated iterations may be replaced by."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.samples import safe_norm, where
from hypergrad.chambolle_pock.iteration import State, StepSizes
from hypergrad.chambolle_pock.residuals import primal_dual_norm
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose

__all__ = ["AbstractAcceleration", "RestartedHalpern"]

# When an epoch ends (Applegate et al. 2021): its last move has fallen to the first share of its
# first one, or to the second and rises again; or the epoch is this share of all iterations.
_SUFFICIENT, _NECESSARY, _LONG = 0.2, 0.8, 0.36
# The ratio of the step sizes keeps within this factor of the one that it began with.
_WIDEST = 1e5


class AbstractAcceleration(eqx.Module):
    """A way to the solutions that are fixed points of the iteration, in bursts.

    Only iterations that nobody differentiates are accelerated: what a strategy goes back through
    are plain ones.
    """

    @abc.abstractmethod
    def begin(self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State) -> Any:
        """Where it stands before the first iteration."""

    @abc.abstractmethod
    def advance(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        at: Any,
        count: int | Array,
    ) -> Any:
        """So many iterations further, each of 2 products with K."""

    @abc.abstractmethod
    def state(self, at: Any) -> State:
        """The state from which plain iterations can go on."""


class _Epoch(NamedTuple):
    """One sample's (or a batch's) place in a restarted Halpern iteration."""

    r: Float[Array, "*batch n"]
    y: Float[Array, "*batch m"]
    image_r: Float[Array, "*batch n"]  # the last plain step
    image_y: Float[Array, "*batch m"]
    anchor_r: Float[Array, "*batch n"]
    anchor_y: Float[Array, "*batch m"]
    since: Float[Array, "*batch"]  # iterations since the last restart
    first_move: Float[Array, "*batch"]
    last_move: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]  # sqrt(sigma / tau)
    first_weight: Float[Array, "*batch"]
    product: Float[Array, "*batch"]  # sqrt(tau sigma)
    taken: Float[Array, "*batch"]


class RestartedHalpern(AbstractAcceleration):
    """Reflected Halpern iterations with restarts, the ratio of the step sizes adapted at each.

        w = (r, y),    w+ = (k+1)/(k+2) (2 T(w) - w) + 1/(k+2) w_0

    where T is one Chambolle-Pock step (theta = 1), `w_0` where the epoch began and k the iterations
    since. An epoch ends when `||w - T(w)||` has fallen enough; the next begins at `T(w)`, with
    `sigma / tau` moved towards `(||y - y_0|| / ||r - r_0||)^2` at the same product `tau sigma`.
    Every sample by itself.

    **Cost**: 2 products with K an iteration, and about twice the passes over memory of a plain one.

    **Caveat**: the iterates are not those of the algorithm that strategies differentiate; the
    solutions are. Strategies that differentiate every iteration therefore refuse it. The solver's
    theta is not used.

    **Source**: Lu & Yang 2024 (restarted Halpern, reflected); Applegate et al. 2021 (restarts,
    primal weight).

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Box(0.2))
    >>> solver = hg.ChambollePock(300, acceleration=hg.RestartedHalpern())
    >>> x_tilde = jnp.array([0.0, 0.1, 1.0, 0.9])
    >>> x = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).x
    >>> f"{float(x.max() - x.min()):.3f}"
    '0.600'
    """

    def begin(self, problem: LowerLevel, x_tilde: Array, sizes: StepSizes, state: State) -> _Epoch:
        tau, sigma, _ = sizes
        of_samples = jnp.zeros(x_tilde.shape[:-1], x_tilde.dtype)
        weight = of_samples + jnp.sqrt(sigma) / jnp.sqrt(tau)
        pair = (state.r, state.y)
        return _Epoch(
            *pair,
            *pair,
            *pair,
            since=of_samples,
            first_move=of_samples,
            last_move=of_samples + jnp.inf,
            weight=weight,
            first_weight=weight,
            product=of_samples + jnp.sqrt(tau) * jnp.sqrt(sigma),
            taken=of_samples,
        )

    def advance(
        self,
        problem: LowerLevel,
        x_tilde: Array,
        sizes: StepSizes,
        at: _Epoch,
        count: int | Array,
    ) -> _Epoch:
        def one_sample(x_tilde: Array, tau: Array, sigma: Array, r: Array, y: Array):
            new_r = problem.G.prox(r - tau * apply_transpose(problem.K, y), tau)
            z_D = y + sigma * apply(problem.K, x_tilde + 2 * new_r - r)
            return new_r, problem.F.prox_conjugate(z_D, sigma)

        def body(_, at: _Epoch) -> _Epoch:
            tau, sigma = at.product / at.weight, at.product * at.weight
            return _move_on(at, *jax.vmap(one_sample)(x_tilde, tau, sigma, at.r, at.y), tau, sigma)

        return jax.lax.fori_loop(0, count, body, at)

    def state(self, at: _Epoch) -> State:
        return State(at.image_r, at.image_r, at.image_y)


def _move_on(at: _Epoch, new_r: Array, new_y: Array, tau: Array, sigma: Array) -> _Epoch:
    """From `T(w)` to the next point of the epoch, or to the first of the next one."""
    move = primal_dual_norm(at.r - new_r, at.y - new_y, tau, sigma)
    first = jnp.where(at.since == 0, move, at.first_move)
    fallen = (move <= _SUFFICIENT * first) | ((move <= _NECESSARY * first) & (move > at.last_move))
    restart = (at.since > 0) & (fallen | (at.since >= _LONG * at.taken))
    share = ((at.since + 1) / (at.since + 2))[..., None]
    return at._replace(
        r=where(restart, new_r, share * (2 * new_r - at.r) + (1 - share) * at.anchor_r),
        y=where(restart, new_y, share * (2 * new_y - at.y) + (1 - share) * at.anchor_y),
        image_r=new_r,
        image_y=new_y,
        anchor_r=where(restart, new_r, at.anchor_r),
        anchor_y=where(restart, new_y, at.anchor_y),
        since=jnp.where(restart, 0.0, at.since + 1),
        first_move=first,
        last_move=jnp.where(restart, jnp.inf, move),
        weight=jnp.where(restart, _adapted(at, new_r, new_y), at.weight),
        taken=at.taken + 1,
    )


def _adapted(at: _Epoch, new_r: Array, new_y: Array) -> Array:
    """The weight, moved half way (in logarithms) to what the epoch says."""
    moved_r = safe_norm(new_r - at.anchor_r)
    moved_y = safe_norm(new_y - at.anchor_y)
    # What has moved by no more than rounding says nothing.
    rounding = 8 * jnp.finfo(new_r.dtype).eps
    says = (moved_r > rounding * safe_norm(new_r)) & (moved_y > rounding * safe_norm(new_y))
    said = jnp.where(says, moved_y, 1.0) / jnp.where(says, moved_r, 1.0)
    weight = jnp.where(says, jnp.sqrt(at.weight) * jnp.sqrt(said), at.weight)
    return jnp.clip(weight, at.first_weight / _WIDEST, at.first_weight * _WIDEST)
