"""Bounds on the loss at the true solution, from the pair that a solve returned."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.printing import as_sentence, extent
from hypergrad._foundation.samples import safe_norm
from hypergrad.bilevel.arguments import (
    Data,
    flatten_batch,
    half_mean_squared_error,
    prepare,
    prepare_truth,
    restore_batch,
)
from hypergrad.bilevel.error_bound import (
    AbstractRegime,
    AsReturned,
    ReturnedPair,
    gap_distance,
    regimes_of,
)
from hypergrad.chambolle_pock import ChambollePock, Solution
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["LossBound", "bound_distance", "bound_loss", "has_distance_bound", "loss_bound"]


class LossBound(eqx.Module):
    """Bounds on `||x* - x_true||^2 / 2` per sample, `x*` the true solution.

    `lower (...)`, `upper (...)`; `distance (...)`, a bound on `||x - x*||`, infinite where none is
    known (then `lower` is 0 and `upper` infinite). The mean over the samples bounds the default
    loss of `hypergradient`.
    """

    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    distance: Float[Array, "*batch"]

    @as_sentence
    def __repr__(self) -> str:
        lower, upper = jnp.mean(self.lower), jnp.mean(self.upper)
        return f"LossBound(mean loss from {extent(lower, '.6g')} to {extent(upper, '.6g')})"


def loss_bound(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    solution: Solution,
    *,
    solver: ChambollePock | None = None,
) -> LossBound:
    """Bound the loss at the true solution, from a solution that is not exact.

        ||x - x*|| <= d = sqrt(2 gap / mu),    (||x - x_true|| -+ d)^2 / 2

    where G is `mu`-strongly convex; if F and G are smooth, `||gradient|| / mu` where that is less.
    Where G is not, d follows from a certified active set (see `hypergrad.bilevel.error_bound`), by
    Newton steps from the pair.

    **Arguments**: `problem`, `x_tilde`, `x_true` as for `hypergradient`; `solution`, of `solve` or
    of a hypergradient, by any strategy; `solver`, whose step sizes scale the Newton steps.

    **Returns**: a `LossBound`, per sample.

    **Errors**: a `HypergradError` where no bound on the distance is known: G is not strongly
    convex, and F or G has no `piece` or K is no matrix.

    **Cost**: some products with K where G is strongly convex; else up to 5 factorisations.

    **Caveat**: the root makes the bound by the gap wide: a gap of 1e-10 is a distance of 1e-5. It
    never falls below about `sqrt(2 eps objective / mu)`, since rounding enters by a model.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(3), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_tilde, x_true = jnp.array([0.1, 1.0, 0.9]), jnp.array([0.0, 1.0, 1.0])
    >>> rough = hg.solve(problem, x_tilde, solver=hg.ChambollePock(3), strategy=hg.Truncation(1))
    >>> bound = hg.loss_bound(problem, x_tilde, x_true, rough)
    >>> exact = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact()).value
    >>> bool(bound.lower <= exact) and bool(exact <= bound.upper)
    True
    """
    problem, x_tilde, solver, _ = prepare(problem, x_tilde, solver, None)
    x_true = prepare_truth(x_true, x_tilde, half_mean_squared_error)
    if not has_distance_bound(problem):
        raise HypergradError(
            "loss_bound must have a strongly convex G, or F and G with pieces and a matrix K; got "
            f"F={type(problem.F).__name__}, G={type(problem.G).__name__}: nothing bounds the "
            "distance from the solution there"
        )
    return _compiled_bound(problem, x_tilde, x_true, solution, solver)


@compiled
def _compiled_bound(
    problem: LowerLevel, x_tilde: Array, x_true: Array, solution: Solution, solver: ChambollePock
) -> LossBound:
    batch = x_tilde.shape[:-1]
    rows, truth, x, y, gap = flatten_batch(
        (x_tilde, x_true, solution.x, solution.y, solution.stats.gap), batch
    )
    pair = ReturnedPair(problem, rows, solver.step_sizes(problem), x, y)
    return restore_batch(bound_loss(x, truth, bound_distance(pair, gap, _regimes(problem))), batch)


def has_distance_bound(problem: LowerLevel) -> bool:
    """Return whether a bound on the distance from the solution can be known."""
    return problem.G.strong_convexity is not None or bool(_regimes(problem))


def _regimes(problem: LowerLevel) -> tuple[AbstractRegime, ...]:
    """The regimes by which a solution is judged: none that factorises where the gap tells."""
    regimes = regimes_of(problem, 1.0)
    is_cheap = regimes == (AsReturned(),) or problem.G.strong_convexity is None
    return regimes if is_cheap else ()


def bound_distance(
    pair: ReturnedPair, gap: Array, regimes: tuple[AbstractRegime, ...]
) -> Float[Array, " batch"]:
    """Bound `||x - x*||` per sample: by the gap, or by a regime that certifies the sample."""
    distance = gap_distance(pair, gap)
    for regime in regimes:
        point = regime.locate(pair, jnp.ones_like(gap, bool))
        reached = safe_norm(pair.x - point.x) + point.error_x
        distance = jnp.where(point.holds, jnp.minimum(distance, reached), distance)
    return distance


def bound_loss(x: Array, x_true: Array, distance: Array) -> LossBound:
    """Bound the squared error of the solution, whose distance from x is bounded."""
    size = safe_norm(x - x_true)
    rounding = (8 + x.shape[-1]) * float(jnp.finfo(x.dtype).eps)
    nearest = jnp.maximum(size - distance, 0.0)
    lower = (1 - rounding) * nearest**2 / 2
    upper = (1 + rounding) * (size + distance) ** 2 / 2
    return LossBound(lower, upper, distance)
