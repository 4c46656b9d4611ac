"""Faster methods with the same solution, in place of iterations that are not differentiated."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.samples import safe_norm, where
from hypergrad.chambolle_pock.iteration import Iteration, State
from hypergrad.chambolle_pock.residuals import primal_dual_norm
from hypergrad.problem.operators import apply, apply_transpose

# When an epoch ends (Applegate et al. 2021): its last move has fallen to the first share of its
# first one, or to the second and rises again; or the epoch is this share of all iterations.
_SUFFICIENT, _NECESSARY, _LONG = 0.2, 0.8, 0.36
# The ratio of the step sizes keeps within this factor of the one that it began with.
_WIDEST = 1e5


class AbstractAcceleration(eqx.Module):
    """A method whose fixed points are those of the iteration, in bursts of iterations.

    It replaces only iterations that are not differentiated: a strategy differentiates plain ones.
    Between two bursts it carries an iterate of any structure.
    """

    @abc.abstractmethod
    def begin(self, iteration: Iteration, state: State) -> Any:
        """Return the iterate before the first iteration."""

    @abc.abstractmethod
    def advance(self, iteration: Iteration, iterate: Any, count: int | Array) -> Any:
        """Return the iterate after `count` more iterations, each of 2 products with K."""

    @abc.abstractmethod
    def state(self, iterate: Any) -> State:
        """Return the state from which plain iterations can continue."""


class _Epoch(NamedTuple):
    """The iterate of a restarted Halpern iteration, for one sample or a batch."""

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

    def begin(self, iteration: Iteration, state: State) -> _Epoch:
        _, x_tilde, (tau, sigma, _) = iteration
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

    def advance(self, iteration: Iteration, iterate: _Epoch, count: int | Array) -> _Epoch:
        problem, x_tilde, _ = iteration

        def one_sample(x_tilde: Array, tau: Array, sigma: Array, r: Array, y: Array):
            new_r = problem.G.prox(r - tau * apply_transpose(problem.K, y), tau)
            z_D = y + sigma * apply(problem.K, x_tilde + 2 * new_r - r)
            return new_r, problem.F.prox_conjugate(z_D, sigma)

        def body(_, now: _Epoch) -> _Epoch:
            tau, sigma = now.product / now.weight, now.product * now.weight
            image = jax.vmap(one_sample)(x_tilde, tau, sigma, now.r, now.y)
            return _continue(now, *image, tau, sigma)

        return jax.lax.fori_loop(0, count, body, iterate)

    def state(self, iterate: _Epoch) -> State:
        return State(iterate.image_r, iterate.image_r, iterate.image_y)


def _continue(now: _Epoch, new_r: Array, new_y: Array, tau: Array, sigma: Array) -> _Epoch:
    """Return the next point of the epoch, or the first point of the next epoch, from `T(w)`."""
    move = primal_dual_norm(now.r - new_r, now.y - new_y, tau, sigma)
    first = jnp.where(now.since == 0, move, now.first_move)
    fallen = (move <= _SUFFICIENT * first) | ((move <= _NECESSARY * first) & (move > now.last_move))
    restart = (now.since > 0) & (fallen | (now.since >= _LONG * now.taken))
    share = ((now.since + 1) / (now.since + 2))[..., None]
    return now._replace(
        r=where(restart, new_r, share * (2 * new_r - now.r) + (1 - share) * now.anchor_r),
        y=where(restart, new_y, share * (2 * new_y - now.y) + (1 - share) * now.anchor_y),
        image_r=new_r,
        image_y=new_y,
        anchor_r=where(restart, new_r, now.anchor_r),
        anchor_y=where(restart, new_y, now.anchor_y),
        since=jnp.where(restart, 0.0, now.since + 1),
        first_move=first,
        last_move=jnp.where(restart, jnp.inf, move),
        weight=jnp.where(restart, _adapted(now, new_r, new_y), now.weight),
        taken=now.taken + 1,
    )


def _adapted(now: _Epoch, new_r: Array, new_y: Array) -> Array:
    """Return the weight, moved half way (in logarithms) to the ratio of this epoch's moves."""
    moved_r = safe_norm(new_r - now.anchor_r)
    moved_y = safe_norm(new_y - now.anchor_y)
    # A move of the size of rounding carries no information.
    rounding = 8 * jnp.finfo(new_r.dtype).eps
    known = (moved_r > rounding * safe_norm(new_r)) & (moved_y > rounding * safe_norm(new_y))
    ratio = jnp.where(known, moved_y, 1.0) / jnp.where(known, moved_r, 1.0)
    weight = jnp.where(known, jnp.sqrt(now.weight) * jnp.sqrt(ratio), now.weight)
    return jnp.clip(weight, now.first_weight / _WIDEST, now.first_weight * _WIDEST)
