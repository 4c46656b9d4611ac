"""The number of steps of the delta recursion that an accuracy takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count, check_fraction
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.printing import as_sentence, worst
from hypergrad._foundation.status import Status
from hypergrad.adjoint import (
    CGLS,
    AdjointProblem,
    Cotangent,
    LimitSystem,
    adjoint_step,
    start_adjoint,
    zeros_like,
)
from hypergrad.bilevel.arguments import (
    Data,
    Loss,
    flatten_batch,
    half_mean_squared_error,
    prepare,
    prepare_truth,
    restore_batch,
)
from hypergrad.chambolle_pock import AdjointPair, ChambollePock, Solution, State
from hypergrad.diagnostics._gradients import (
    check_learnable,
    form_norm,
    layer_factors,
    loss_gradient,
)
from hypergrad.diagnostics.contraction import (
    KRYLOV_DIMENSION,
    Contraction,
    contraction_of,
)
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["StepsNeeded", "steps_needed"]


class StepsNeeded(eqx.Module):
    """The number of steps of the adjoint recursion that an accuracy takes, per sample.

    `predicted` from the contraction factor (infinite where it is not below 1); `measured`
    (infinite where the error was not reached, NaN where the limit could not be solved for);
    `contraction`, with the statistics of the forward solve.
    """

    predicted: Float[Array, "*batch"]
    measured: Float[Array, "*batch"]
    contraction: Contraction

    @as_sentence
    def __repr__(self) -> str:
        def of(measure: Callable[..., Any]) -> str:
            measured, predicted = (
                worst(steps, "g", of=measure) for steps in (self.measured, self.predicted)
            )
            return f"{measured} (predicted {predicted})"

        return (
            f"StepsNeeded(median {of(np.median)}, most {of(np.max)} of {np.size(self.measured)};\n"
            f"  forward={self.contraction.stats})"
        )


def steps_needed(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock | None = None,
    error: float,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
    most: int = 10_000,
    dimension: int = KRYLOV_DIMENSION,
) -> StepsNeeded:
    """Return the k of `LimitFormula(Steps(k))` for a relative error in `grad_K`, per sample.

        measured  = min { k : || grad_K[k] - grad_K[limit] || <= error || grad_K[limit] || }
        predicted = log(error) / log(rho)

    with the gradients of one sample at the last state, `grad_K = sigma Delta_D x^T - tau y
    Delta_P^T`: `Delta` after k steps of the recursion, and from the limit system (CGLS). It is
    measured in the gradient and not in `Delta`, whose two parts have different units. The
    prediction assumes a constant of 1 in front of `rho^k` and that the slowest mode is excited.

    **Arguments**: as for `hypergradient`; `error`, between 0 and 1; `most`, the maximal number
    of steps measured; `dimension` as for `contraction_factor`.

    **Returns**: a `StepsNeeded`.

    **Errors**: as for `hypergradient`; a `ValueError` for an operator without parameters.

    **Cost**: the forward solve, that of `contraction_factor`, CGLS, and for each step 2 products
    with K and the norm of a matrix of rank 2 per sample, until all samples have reached the
    error.

    **Caveat**: the error is that of the adjoint alone. For an unconverged lower level the limit
    itself is wrong: see `contraction.stats`. An error near the machine precision is never reached.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([0.0, 0.0, 1.0, 1.0])
    >>> k = hg.steps_needed(problem, x_true + 0.1, x_true, error=1e-2,
    ...                     solver=hg.ChambollePock(iterations=200))
    >>> bool(1 < k.measured < 50)
    True
    """
    check_fraction("error", error, "try 1e-3")
    check_count("most", most)
    check_count("dimension", dimension)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    x_true = prepare_truth(x_true, x_tilde, loss)
    check_learnable("K", problem.K)
    target = jnp.asarray(error, x_tilde.dtype)
    return _steps_needed(problem, x_tilde, x_true, solver, target, loss, init, most, dimension)


@compiled
def _steps_needed(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    error: Array,
    loss: Loss,
    init: State | None,
    most: int,
    dimension: int,
) -> StepsNeeded:
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    forward = solver.on(problem, rows)
    run = forward.run(init, record_last=1)
    contraction = contraction_of(forward, run, dimension)
    solution = forward.solution(run.state, run.taken)
    g = loss_gradient(loss, solution, x_true)

    system = LimitSystem.at_last(problem, forward.iteration.sizes, run.history)
    sums, stats = CGLS()(AdjointProblem(system, run.history, g))
    measured = _measure_steps(system, g, solution, sums.pair, error, most)
    measured = jnp.where(stats.status == Status.CONVERGED, measured, jnp.nan)
    steps = jnp.maximum(1.0, jnp.ceil(jnp.log(error) / jnp.log(contraction.factor)))
    predicted = jnp.where(contraction.factor < 1, steps, jnp.inf)
    return restore_batch(StepsNeeded(predicted, measured, contraction), batch)


def _measure_steps(
    system: LimitSystem,
    g: Cotangent,
    solution: Solution,
    limit: AdjointPair,
    error: Array,
    max_steps: int,
) -> Float[Array, " batch"]:
    """Return the first k at which the gradient of k steps is within the error of the limit."""
    problem, sizes, z, nothing = system.problem, system.sizes, system.z, zeros_like(g)

    def size(delta: AdjointPair) -> Array:
        return form_norm(problem.K, layer_factors(sizes, delta, solution.x, solution.y))

    target = error * size(limit)

    def is_far(missing: AdjointPair) -> Array:
        return size(missing) > target

    def one_more(carry: Any):
        later, missing, far, needed, done = carry
        state, _ = adjoint_step(problem, sizes, z, later, nothing)
        missing = AdjointPair(missing.Delta_P - state.delta_P, missing.Delta_D - state.delta_D)
        needed = jnp.where(far, done + 1, needed)
        return state, missing, far & is_far(missing), needed, done + 1

    def unfinished(carry: Any):
        *_, far, _, done = carry
        return jnp.any(far) & (done < max_steps)

    state, _ = adjoint_step(problem, sizes, z, start_adjoint(problem, g), g)
    missing = AdjointPair(limit.Delta_P - state.delta_P, limit.Delta_D - state.delta_D)
    one = jnp.ones((), jnp.int32)
    far = is_far(missing)
    carry = (state, missing, far, jnp.broadcast_to(one, far.shape), one)
    *_, far, needed, _ = jax.lax.while_loop(unfinished, one_more, carry)
    return jnp.where(far, jnp.inf, needed.astype(g.x.dtype))
