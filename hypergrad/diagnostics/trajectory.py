"""The layers of the adjoint."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.printing import as_sentence, extent
from hypergrad._foundation.samples import safe_norm
from hypergrad.adjoint import (
    Cotangent,
    LimitSystem,
    Tape,
    adjoint_step,
    pair_norm,
    solve_least_squares,
    start_adjoint,
)
from hypergrad.bilevel.arguments import (
    Data,
    Loss,
    flatten_batch,
    half_mean_squared_error,
    prepare_hypergradient,
    restore_batch,
)
from hypergrad.chambolle_pock import (
    AdjointPair,
    ChambollePock,
    SolverStats,
    State,
    default_tolerance,
)
from hypergrad.diagnostics._gradients import form_norm, layer_factors, loss_gradient
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["AdjointTrajectory", "adjoint_trajectory"]


class AdjointTrajectory(eqx.Module):
    """The delta recursion of an unrolled gradient; entry `l - 1` of the first axis is layer l.

    `delta_P (L, ..., n)`, `delta_D (L, ..., m)`, zero where the strategy does not go; the norms
    `norm_P`, `norm_D`, `norm_K_delta_P`, `norm_KT_delta_D`, `(L, ...)`; `contribution`, the norm of
    what a layer adds to the gradient in K. With I the free primal and J the unsaturated dual
    coordinates of the last iterate: `norm_KJI_delta_P` is `||K_JI delta_P,I||`, `norm_KJI_delta_D`
    is `||K_JI^T delta_D,J||`, and `distance` that of `delta_P,I` from `P_ker(K_JI) g_I`, which
    itself is `limit_P (..., n)` (NaN where it could not be computed). `stats` is how the forward
    solve went.
    """

    delta_P: Float[Array, "L *batch n"]
    delta_D: Float[Array, "L *batch m"]
    limit_P: Float[Array, "*batch n"]
    norm_K_delta_P: Float[Array, "L *batch"]
    norm_KT_delta_D: Float[Array, "L *batch"]
    norm_KJI_delta_P: Float[Array, "L *batch"]
    norm_KJI_delta_D: Float[Array, "L *batch"]
    distance: Float[Array, "L *batch"]
    contribution: Float[Array, "L *batch"]
    stats: SolverStats

    @property
    def norm_P(self) -> Float[Array, "L *batch"]:
        """`||delta_P[l]||`."""
        return safe_norm(self.delta_P)

    @property
    def norm_D(self) -> Float[Array, "L *batch"]:
        """`||delta_D[l]||`."""
        return safe_norm(self.delta_D)

    @as_sentence
    def __repr__(self) -> str:
        # After a vmap the layers are no longer the first axis, so no layer is named.
        samples = np.size(self.stats.residual)
        return (
            f"AdjointTrajectory({np.size(self.contribution) // max(samples, 1)} layers of "
            f"{samples} samples; contributions to the gradient {extent(self.contribution, '.1e')};"
            f"\n  forward={self.stats})"
        )


def adjoint_trajectory(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
) -> AdjointTrajectory:
    """Return every layer of the delta recursion that an unrolling strategy sums.

        delta_P[l] = prox'_{tau G}(z_P[l]) (delta_P[l+1] + sigma K^T delta_bar_D[l+1] + alpha_l g)
        delta_D[l] = prox'_{sigma F*}(z_D[l]) (delta_D[l+1] - tau K delta_P[l])
        contribution[l] = || sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T ||

    In layers whose masks are those of the last one, what remains far from the output is

        delta_P,I[l] -> (alpha_l + … + alpha_L) P_ker(K_JI) g_I,    delta_D[l] -> 0,

    which for the last iterate is the reduced statement: `delta_P` goes to `ker(K)` only where no
    coordinate saturates. `distance` is the distance from that.

    No threshold decides between coordinates: `v_I` is `prox'_{tau G} v` and `v_J` is
    `prox'_{sigma F*} v`, with the derivatives at the last iterate, which has a meaning also where a
    prox is not separable. Where G is strongly convex `prox'_{tau G}` has no eigenvalue 1: the
    projection is 0, and `delta_P` itself vanishes.

    **Arguments**: as for `hypergradient`. The strategy is one whose forward pass records
    its iterations.

    **Returns**: an `AdjointTrajectory`, with L the solver's iterations. (With a tolerance layer L
    is still the last iteration, whatever number it had.)

    **Errors**: as for `hypergradient`; a `ValueError` for a strategy without such a recursion.

    **Cost**: the forward solve, 6 products with K a layer and CGLS for the projection; several
    times `L (m + n)` numbers per sample. No `(batch, m, n)` array: the norm of a contribution is
    that of a matrix of rank 2. (For an operator that is not a matrix, it is the norm of the
    gradient in its parameters, formed layer by layer and sample by sample.)

    **Caveat**: with uniform weights `delta[l]` decays like 1/L instead, as `Delta / L`; but a part
    in the kernel of K_JI does not: it stays, weighted with what has entered by then.

    **Source**: Brauer & Lorenz (posters), the adjoint variables and their limits.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([0.0, 0.0, 1.0, 1.0])
    >>> trajectory = hg.adjoint_trajectory(problem, x_true + 0.1, x_true,
    ...     solver=hg.ChambollePock(iterations=100), strategy=hg.Truncation(k=30))
    >>> trajectory.delta_P.shape, bool(trajectory.norm_P[70] < 1e-3 * trajectory.norm_P[-1])
    ((100, 4), True)
    """
    problem, x_tilde, x_true, solver, init = prepare_hypergradient(
        problem, x_tilde, x_true, solver, strategy, loss, init
    )
    return _adjoint_trajectory(problem, x_tilde, x_true, solver, strategy, loss, init)


@compiled
def _adjoint_trajectory(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    init: State | None,
) -> AdjointTrajectory:
    batch, L = x_tilde.shape[:-1], solver.iterations
    rows, init = flatten_batch((x_tilde, init), batch)
    solution, tape = strategy.forward(problem, rows, solver, init)
    if not isinstance(tape, Tape):
        raise HypergradError(
            f"strategy must differentiate recorded iterations; got {strategy.label}, which has "
            "no layers: use FullUnrolling, Truncation or ErgodicUnrolling"
        )
    g = loss_gradient(loss, solution, x_true)
    sizes, history = tape.forward.iteration.sizes, tape.history
    count = history.z_D.shape[0]
    alpha = jnp.eye(count, dtype=rows.dtype)[-1] if tape.alpha is None else tape.alpha

    def body(later: Any, at: Any):
        z, alpha_l = at
        entering = Cotangent(alpha_l * g.x, alpha_l * g.y)
        state, _ = adjoint_step(problem, sizes, z, later, entering)
        return state, AdjointPair(state.delta_P, state.delta_D)

    _, delta = jax.lax.scan(body, start_adjoint(problem, g), (history, alpha), reverse=True)
    contribution = form_norm(problem.K, layer_factors(sizes, delta, *_iterates(tape)))

    def all_layers(array: Array) -> Array:
        """Pad with zeros for the layers that the strategy leaves out."""
        return jnp.pad(array, ((L - count, 0), *((0, 0),) * (array.ndim - 1)))

    (delta_P, delta_D), contribution = jax.tree.map(all_layers, (delta, contribution))
    last = LimitSystem.at_last(problem, sizes, history)
    on_I, on_J = jax.vmap(last.D_P), jax.vmap(last.D_D)
    limit_P = _project_on_kernel(last, g)
    entered = jnp.cumsum(all_layers(alpha)[::-1])[::-1]
    norms = {
        "norm_K_delta_P": apply(problem.K, delta_P),
        "norm_KT_delta_D": apply_transpose(problem.K, delta_D),
        "norm_KJI_delta_P": on_J(apply(problem.K, on_I(delta_P))),
        "norm_KJI_delta_D": on_I(apply_transpose(problem.K, on_J(delta_D))),
        "distance": on_I(delta_P) - entered[:, None, None] * limit_P[None],
    }
    by_layer = {"delta_P": delta_P, "delta_D": delta_D, "contribution": contribution} | {
        name: safe_norm(array) for name, array in norms.items()
    }
    by_layer = jax.tree.map(lambda a: a.reshape(L, *batch, *a.shape[2:]), by_layer)
    limit_P, stats = restore_batch((limit_P, solution.stats), batch)
    return AdjointTrajectory(limit_P=limit_P, stats=stats, **by_layer)


def _iterates(tape: Tape) -> tuple[Array, Array]:
    """Return `x_tilde + r_bar[l-1]` and `y[l]` of all recorded iterations l."""
    problem, x_tilde, sizes = tape.forward.iteration
    start, history = tape.start, tape.history
    r = jnp.concatenate([start.r[None], problem.G.prox(history.z_P[:-1], sizes.tau)])
    r_bar = r[1:] + sizes.theta * (r[1:] - r[:-1])
    x_bar = x_tilde[None] + jnp.concatenate([start.r_bar[None], r_bar])
    return x_bar, problem.F.prox_conjugate(history.z_D, sizes.sigma)


def _project_on_kernel(system: LimitSystem, g: Cotangent) -> Float[Array, "*batch n"]:
    """Return `P_ker(K_JI) g_I`, 0 outside I; NaN where it could not be computed.

    What the recursion leaves unchanged is the kernel of the limit system, the product of a primal
    and a dual part, the primal one being `{v: D_P v = v, D_D K v = 0}`. So the projection of `g` is
    `g` minus the solution of minimum norm of `A w = A g`.
    """
    root = jnp.sqrt(system.sizes.tau)
    whole = (root * g.x, jnp.zeros_like(g.y))
    rtol, max_steps = 4 * float(jnp.finfo(g.x.dtype).eps), 4 * sum(system.problem.shape)
    product, transpose = system.scaled, system.scaled_transpose
    w, *_ = solve_least_squares(product, transpose, product(whole), rtol=rtol, max_steps=max_steps)
    inside = (whole[0] - w[0], whole[1])
    remainder = pair_norm(system.scaled(inside))
    arrived = remainder <= default_tolerance(g.x.dtype) * pair_norm(whole)
    return jnp.where(arrived[..., None], inside[0] / root, jnp.nan)
