"""Why a hypergradient is what it is: layer by layer, step by step, sample by sample.

`adjoint_trajectory` shows the delta recursion of an unrolled gradient, `contraction_factor` how
fast the iteration and its adjoint contract in the end, `steps_needed` how many steps of the
recursion that means, `per_sample_errors` how the error of a strategy spreads over the samples.
(The iterates themselves: `solve(..., trace=True)`.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hypergrad._checks import check_count, is_concrete
from hypergrad.adjoint import (
    AdjointProblem,
    AdjointStats,
    Cotangent,
    LimitSystem,
    Recorded,
    adjoint_step,
    nothing_like,
    solve_least_squares,
    squared_norm,
    start_adjoint,
)
from hypergrad.bilevel import (
    Data,
    Loss,
    check_strategy,
    flatten_batch,
    half_mean_squared_error,
    prepare,
    prepare_truth,
    restore_batch,
)
from hypergrad.chambolle_pock import (
    AdjointPair,
    ChambollePock,
    ProxArguments,
    Solution,
    SolverStats,
    State,
    StepSizes,
    default_tolerance,
    record,
    step,
)
from hypergrad.lower_level import LowerLevel
from hypergrad.operators import Operator, apply, apply_transpose, bilinear_gradient, matrix_of
from hypergrad.records import markdown_table
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.strategies.limit import LeastSquares, LimitFormula

__all__ = [
    "AdjointTrajectory",
    "Contraction",
    "SampleErrors",
    "StepsNeeded",
    "adjoint_trajectory",
    "are_certified",
    "contraction_factor",
    "per_sample_errors",
    "steps_needed",
]

# The dimension of the Krylov space in which a contraction factor is looked for.
_KRYLOV_DIMENSION = 40

# Nearer to a kink than this (relative to its size where it has one), rounding may have chosen the
# side.
_LEAST_MARGIN = 1e-6


# ------------------------------------------------------- gradients in K that are never written out

Factors = tuple[tuple[Array, Array], ...]


def _layer_factors(
    sizes: StepSizes, delta: AdjointPair, x: Float[Array, "*batch n"], y: Float[Array, "*batch m"]
) -> Factors:
    """`sigma delta_D x^T - tau y delta_P^T` as the pairs whose outer products it is the sum of."""
    delta_P, delta_D = delta
    return (sizes.sigma * delta_D, x), (-sizes.tau * y, delta_P)


def _flat(tree: Any) -> Array:
    """Every float of a pytree in one vector (nothing at all counts as a zero)."""
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(1)


def _check_learnable(K: Operator) -> None:
    """Refuse an operator whose gradient has no entries: its errors would all be 0."""
    if not jax.tree.leaves(eqx.filter(K, eqx.is_inexact_array)):
        raise ValueError(
            f"K must have a parameter for its gradient to be looked at; got a {type(K).__name__} "
            "without any: use a matrix or an operator with array fields"
        )


def _form_norm(K: Operator, factors: Factors) -> Float[Array, "*batch"]:
    """The Frobenius norm of `sum left right^T`, the gradient in a matrix K, a sample.

    With `left = Q R` (thin) and `right = Q' R'` it is `||R R'^T||`, of the size of the number of
    pairs: unlike the Gram matrices this loses no digits where the pairs cancel. Of another
    operator, the norm of the gradient in its parameters, one sample after the other.
    """
    if matrix_of(K) is not None:
        left, right = (jnp.stack(side, axis=-1) for side in zip(*factors, strict=True))
        triangles = (jnp.linalg.qr(side, mode="r") for side in (left, right))
        R_left, R_right = triangles
        return jnp.linalg.norm(R_left @ jnp.swapaxes(R_right, -1, -2), axis=(-2, -1))
    batch = factors[0][0].shape[:-1]
    norms = jax.lax.map(
        lambda pairs: jnp.linalg.norm(_flat(bilinear_gradient(K, *pairs))),
        flatten_batch(factors, batch),
    )
    return norms.reshape(batch)


# --------------------------------------------------------------------- the layers of the adjoint


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
        return jnp.linalg.norm(self.delta_P, axis=-1)

    @property
    def norm_D(self) -> Float[Array, "L *batch"]:
        """`||delta_D[l]||`."""
        return jnp.linalg.norm(self.delta_D, axis=-1)

    def __repr__(self) -> str:
        if not is_concrete(self.delta_P):
            return "AdjointTrajectory(<traced>)"
        first, last = (float(jnp.max(self.contribution[l])) for l in (0, -1))
        return (
            f"AdjointTrajectory({self.delta_P.shape[0]} layers; contributions to the gradient "
            f"from {first:.1e} (first layer) to {last:.1e} (last), the largest of "
            f"{self.contribution[0].size};\n  forward={self.stats})"
        )


def adjoint_trajectory(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
) -> AdjointTrajectory:
    """Every layer of the delta recursion that an unrolling strategy sums.

        delta_P[l] = prox'_{tau G}(z_P[l]) (delta_P[l+1] + sigma K^T delta_bar_D[l+1] + alpha_l g)
        delta_D[l] = prox'_{sigma F*}(z_D[l]) (delta_D[l+1] - tau K delta_P[l])
        contribution[l] = || sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T ||

    In layers whose masks are those of the last one, what remains far from the output is

        delta_P,I[l] -> (alpha_l + … + alpha_L) P_ker(K_JI) g_I,    delta_D[l] -> 0,

    which for the last iterate is the reduced statement: `delta_P` goes to `ker(K)` only where no
    coordinate saturates. `distance` is the distance from that.

    Coordinates are not told apart by a threshold: `v_I` is `prox'_{tau G} v` and `v_J` is
    `prox'_{sigma F*} v`, with the derivatives at the last iterate, which has a meaning also where a
    prox is not separable. Where G is strongly convex `prox'_{tau G}` has no eigenvalue 1: the
    projection is 0, and `delta_P` itself vanishes.

    **Arguments**: as for `hypergradient`. The strategy is one whose forward pass leaves a
    `Recorded` to go back through.

    **Returns**: an `AdjointTrajectory`, with L the solver's iterations. (With a tolerance layer L
    is still the last iteration, whatever number it had.)

    **Errors**: as for `hypergradient`; a `ValueError` for a strategy without such a recursion.

    **Cost**: the forward solve, 6 products with K a layer and CGLS for the projection; several
    times `L (m + n)` numbers a sample. No `(batch, m, n)` array: the norm of a contribution is that
    of a matrix of rank 2. (Of an operator that is no matrix, it is the norm of the gradient in its
    parameters, formed layer by layer and sample by sample.)

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
    check_strategy(strategy, solver)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    x_true = prepare_truth(x_true, x_tilde)
    return _adjoint_trajectory(problem, x_tilde, x_true, solver, strategy, loss, init)


@eqx.filter_jit
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
    solution, recorded = strategy.forward(problem, rows, solver, init)
    if not isinstance(recorded, Recorded):
        raise ValueError(
            f"strategy must go back through recorded iterations; got {strategy.label}, which has "
            "no layers: use FullUnrolling, Truncation or ErgodicUnrolling"
        )
    g = _loss_gradient(loss, solution, x_true)
    sizes, history = recorded.sizes, recorded.history
    count = history.z_D.shape[0]
    alpha = jnp.eye(count, dtype=rows.dtype)[-1] if recorded.alpha is None else recorded.alpha

    def body(later, at):
        z, alpha_l = at
        entering = Cotangent(alpha_l * g.x, alpha_l * g.y)
        state, _ = adjoint_step(problem, sizes, z, later, entering)
        return state, AdjointPair(state.delta_P, state.delta_D)

    _, delta = jax.lax.scan(body, start_adjoint(problem, g), (history, alpha), reverse=True)
    contribution = _form_norm(problem.K, _layer_factors(sizes, delta, *_iterates(recorded)))

    def all_layers(array: Array) -> Array:
        """With zeros for the layers that the strategy leaves out."""
        return jnp.pad(array, ((L - count, 0), *((0, 0),) * (array.ndim - 1)))

    (delta_P, delta_D), contribution = jax.tree.map(all_layers, (delta, contribution))
    last = LimitSystem(problem, sizes, ProxArguments(history.z_D[-1], history.z_P[-1]))
    on_I, on_J = jax.vmap(last.D_P), jax.vmap(last.D_D)
    limit_P = _project_on_kernel(last, g)
    entered = jnp.cumsum(all_layers(alpha)[::-1])[::-1]
    norms = {
        "norm_K_delta_P": apply(problem.K, delta_P),
        "norm_KT_delta_D": apply_transpose(problem.K, delta_D),
        "norm_KJI_delta_P": on_J(apply(problem.K, on_I(delta_P))),
        "norm_KJI_delta_D": on_I(apply_transpose(problem.K, on_J(delta_D))),
        "distance": on_I(delta_P) - entered[:, None, None] * limit_P,
    }
    by_layer = {"delta_P": delta_P, "delta_D": delta_D, "contribution": contribution} | {
        name: jnp.linalg.norm(array, axis=-1) for name, array in norms.items()
    }
    by_layer = jax.tree.map(lambda a: a.reshape(L, *batch, *a.shape[2:]), by_layer)
    limit_P, stats = restore_batch((limit_P, solution.stats), batch)
    return AdjointTrajectory(limit_P=limit_P, stats=stats, **by_layer)


def _loss_gradient(loss: Loss, solution: Solution, x_true: Array) -> Cotangent:
    """`g`; the loss sees the batch as it was given."""
    g = jax.grad(lambda x: loss(x.reshape(x_true.shape), x_true))(solution.x)
    return Cotangent(g, jnp.zeros_like(solution.y))


def _iterates(recorded: Recorded) -> tuple[Array, Array]:
    """`x_tilde + r_bar[l-1]` and `y[l]` of all recorded iterations l."""
    problem, sizes, start, history = (
        recorded.problem, recorded.sizes, recorded.start, recorded.history,
    )  # fmt: skip
    r = jnp.concatenate([start.r[None], problem.G.prox(history.z_P[:-1], sizes.tau)])
    r_bar = r[1:] + sizes.theta * (r[1:] - r[:-1])
    x_bar = recorded.x_tilde + jnp.concatenate([start.r_bar[None], r_bar])
    return x_bar, problem.F.prox_conjugate(history.z_D, sizes.sigma)


def _project_on_kernel(system: LimitSystem, g: Cotangent) -> Float[Array, "*batch n"]:
    """`P_ker(K_JI) g_I`, 0 outside I; NaN where it could not be computed.

    What the recursion leaves unchanged is the kernel of the limit system, the product of a primal
    and a dual part, the primal one being `{v: D_P v = v, D_D K v = 0}`. So the projection of `g` is
    `g` minus the solution of minimum norm of `A w = A g`.
    """
    root = jnp.sqrt(system.sizes.tau)
    whole = (root * g.x, jnp.zeros_like(g.y))
    rtol, most = 4 * float(jnp.finfo(g.x.dtype).eps), 4 * sum(system.problem.shape)
    product, transpose = system.balanced, system.balanced_transpose
    w, *_ = solve_least_squares(product, transpose, product(whole), rtol=rtol, most=most)
    inside = (whole[0] - w[0], whole[1])
    left_over = jnp.sqrt(squared_norm(system.balanced(inside)))
    arrived = left_over <= default_tolerance(g.x.dtype) * jnp.sqrt(squared_norm(whole))
    return jnp.where(arrived[..., None], inside[0] / root, jnp.nan)


# ------------------------------------------------------------------------------- contraction


class Contraction(eqx.Module):
    """How fast the iteration and its adjoint contract in the end, one entry a sample.

    `factor`, the spectral radius; `residual`, how well its eigenvalue is known (0: exactly);
    `stats`, how the forward solve went.
    """

    factor: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    stats: SolverStats

    def __repr__(self) -> str:
        if not is_concrete(self.factor):
            return "Contraction(<traced>)"
        factor = np.asarray(self.factor)
        return (
            f"Contraction(factor {np.median(factor):.6g} (median), {np.max(factor):.6g} "
            f"(greatest of {factor.size}), residual {float(jnp.max(self.residual)):.1e};\n"
            f"  forward={self.stats})"
        )


def contraction_factor(
    problem: LowerLevel,
    x_tilde: Data,
    *,
    solver: ChambollePock,
    init: State | None = None,
    dimension: int = _KRYLOV_DIMENSION,
) -> Contraction:
    """The spectral radius of the linearised iteration at the last state, sample by sample.

        rho = max { |lambda| : lambda an eigenvalue, not 1, of d state[L] / d state[L-1] }

    with `state = (r, r_bar, y)`. The adjoint recursion has the same eigenvalues. Once the masks
    have settled, errors of the iterates and the deltas fall like `rho^l`.

    An eigenvalue 1 belongs to what the iteration leaves as it is (`ker K_JI` on the primal side,
    `ker K_JI^T` on the dual one) and does not count: the deltas there neither grow nor fall, and
    the sums of the others do not see them. It is left out twice: the search starts at an increment
    of the adjoint recursion, `(J^T - 1) v`, which has no part there since the eigenvalue is
    semisimple; and what rounding brings back (within the square root of the machine precision of
    1) is dropped.

    **Arguments**: `solver` and `init` as for `solve`; `dimension` of the Krylov space.

    **Returns**: a `Contraction`. With the residual near 0 the factor is exact; otherwise it is an
    estimate, in general from below: enlarge the dimension.

    **Errors**: as for `solve`.

    **Cost**: the forward solve and 2 products with K for each of the `dimension` Arnoldi steps, for
    the whole batch; `dimension (m + 2 n)` numbers a sample.

    **Caveat**: masks that have not settled give the factor of another iteration: see `stats`. A
    factor above 1 occurs where `theta` is not 1. What is really 1 less than the square root of the
    machine precision (3e-4 in float32) counts as 1.

    **Source**: Arnoldi 1951; linear convergence after identification of the active set as in
    Liang, Fadili & Peyré 2018.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=jnp.eye(1), F=hg.L1(1.0), G=hg.Zero())
    >>> solver = hg.ChambollePock(iterations=50, tau=0.5, sigma=1.5)
    >>> contraction = hg.contraction_factor(problem, jnp.array([0.1]), solver=solver)
    >>> f"{contraction.factor:.4f}"  # sqrt(1 - tau sigma)
    '0.5000'
    """
    check_count("dimension", dimension)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    return _contraction_factor(problem, x_tilde, solver, init, dimension)


@eqx.filter_jit
def _contraction_factor(
    problem: LowerLevel,
    x_tilde: Array,
    solver: ChambollePock,
    init: State | None,
    dimension: int,
) -> Contraction:
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    end = _run(problem, rows, solver, init)
    return restore_batch(_contraction(problem, rows, end, dimension), batch)


class _End(eqx.Module):
    """The end of a forward solve: its last iteration, from the state before it."""

    sizes: StepSizes
    before: State
    history: ProxArguments  # of length 1
    solution: Solution


def _run(problem: LowerLevel, rows: Array, solver: ChambollePock, init: State | None) -> _End:
    sizes = solver.step_sizes(problem)
    start = solver.start(problem, rows, init)
    before, taken = solver.approach(problem, rows, sizes, start, keep=1)
    state, history = record(problem, rows, sizes, before, 1)
    solution = solver.solution(problem, rows, sizes, state, taken + 1)
    return _End(sizes, before, history, solution)


def _contraction(problem: LowerLevel, rows: Array, end: _End, dimension: int) -> Contraction:
    move = _adjoint_of_a_step(problem, rows, end.sizes, end.before)
    size = 2 * problem.n + problem.m
    v = jax.random.normal(jax.random.key(0), (len(rows), size), rows.dtype)
    H, beyond = _arnoldi(move, move(v) - v, min(dimension, size))
    finite = jnp.all(jnp.isfinite(H), axis=(-2, -1))
    values, vectors = jnp.linalg.eig(jnp.where(finite[:, None, None], H, 0.0))

    near_one = float(jnp.finfo(rows.dtype).eps) ** 0.5
    radius = jnp.where(jnp.abs(values - 1) > near_one, jnp.abs(values), 0.0)
    leading = jnp.argmax(radius, axis=-1, keepdims=True)
    # `J^T q = theta q + beyond * (last entry of the eigenvector)` for a Ritz vector q.
    last_entry = jnp.abs(jnp.take_along_axis(vectors[:, -1], leading, axis=-1))[:, 0]
    return Contraction(
        factor=jnp.where(finite, jnp.max(radius, axis=-1), jnp.nan),
        residual=jnp.where(finite, beyond * last_entry, jnp.nan),
        stats=end.solution.stats,
    )


def _adjoint_of_a_step(
    problem: LowerLevel, rows: Array, sizes: StepSizes, state: State
) -> Callable[[Array], Array]:
    """`v -> J^T v` with J the Jacobian of one iteration at a state, in balanced units.

    That is, v holds `sqrt(tau)`, `sqrt(tau)`, `sqrt(sigma)` times the cotangents of r, r_bar, y.
    """
    root_tau, root_sigma = jnp.sqrt(sizes.tau), jnp.sqrt(sizes.sigma)
    _, pull = jax.vjp(lambda s: step(problem, rows, sizes, s)[0], state)

    def move(v: Array) -> Array:
        r, r_bar, y = jnp.split(v, (problem.n, 2 * problem.n), axis=-1)
        (moved,) = pull(State(r / root_tau, r_bar / root_tau, y / root_sigma))
        parts = root_tau * moved.r, root_tau * moved.r_bar, root_sigma * moved.y
        return jnp.concatenate(parts, axis=-1)

    return move


def _arnoldi(
    move: Callable[[Array], Array], v: Float[Array, "batch size"], dimension: int
) -> tuple[Float[Array, "batch dimension dimension"], Float[Array, " batch"]]:
    """The Hessenberg matrix of `move` on the Krylov space of v, and the entry that leaves it.

    Where the space is exhausted first, the rest of the matrix is 0: more eigenvalues 0.
    """
    rounding = 10 * v.shape[-1] * jnp.finfo(v.dtype).eps

    def normalised(w: Array, size: Array) -> Array:
        nonzero = size > 0
        return jnp.where(nonzero[:, None], w / jnp.where(nonzero, size, 1.0)[:, None], 0.0)

    def body(j, carry):
        basis, H = carry
        w = move(basis[j])
        before = jnp.linalg.norm(w, axis=-1)
        for _ in range(2):  # "twice is enough" against the loss of orthogonality
            along = jnp.einsum("pbs,bs->bp", basis, w)
            w = w - jnp.einsum("bp,pbs->bs", along, basis)
            H = H.at[:, :, j].add(along)
        size = jnp.linalg.norm(w, axis=-1)
        size = jnp.where(size <= rounding * before, 0.0, size)
        return basis.at[j + 1].set(normalised(w, size)), H.at[:, j + 1, j].set(size)

    batch, size = v.shape
    basis = jnp.zeros((dimension + 1, batch, size), v.dtype)
    basis = basis.at[0].set(normalised(v, jnp.linalg.norm(v, axis=-1)))
    H = jnp.zeros((batch, dimension + 1, dimension), v.dtype)
    _, H = jax.lax.fori_loop(0, dimension, body, (basis, H))
    return H[:, :-1], H[:, -1, -1]


# ------------------------------------------------------------------------------- steps needed


class StepsNeeded(eqx.Module):
    """How many steps of the adjoint recursion an accuracy takes, one entry a sample.

    `predicted` from the contraction factor (infinite where it is not below 1); `measured`
    (infinite where the error was not reached, NaN where the limit could not be solved for);
    `contraction`, with the statistics of the forward solve.
    """

    predicted: Float[Array, "*batch"]
    measured: Float[Array, "*batch"]
    contraction: Contraction

    def __repr__(self) -> str:
        if not is_concrete(self.measured):
            return "StepsNeeded(<traced>)"
        predicted, measured = np.asarray(self.predicted), np.asarray(self.measured)
        return (
            f"StepsNeeded(median {np.median(measured):g} (predicted {np.median(predicted):g}), "
            f"most {np.max(measured):g} (predicted {np.max(predicted):g}) of {measured.size};\n"
            f"  forward={self.contraction.stats})"
        )


def steps_needed(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock,
    error: float,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
    most: int = 10_000,
    dimension: int = _KRYLOV_DIMENSION,
) -> StepsNeeded:
    """The k of `LimitFormula(Steps(k))` that a relative error of the gradient in K takes, a sample.

        measured  = min { k : || grad_K[k] - grad_K[limit] || <= error || grad_K[limit] || }
        predicted = log(error) / log(rho)

    with the gradients of one sample at the last state, `grad_K = sigma Delta_D x^T - tau y
    Delta_P^T`: `Delta` after k steps of the recursion, and from the limit system (CGLS). It is
    measured in the gradient and not in `Delta`, whose two parts have different units. The
    prediction takes the constant in front of `rho^k` for 1, and the slowest mode for excited.

    **Arguments**: as for `hypergradient`; `error`, between 0 and 1; `most`, the steps after which
    measuring is given up; `dimension` as for `contraction_factor`.

    **Returns**: a `StepsNeeded`.

    **Errors**: as for `hypergradient`; a `ValueError` for an operator without parameters.

    **Cost**: the forward solve, that of `contraction_factor`, CGLS, and for each step 2 products
    with K and the norm of a matrix of rank 2 a sample, until the last sample is there.

    **Caveat**: the error is that of the adjoint alone. Of an unconverged lower level the limit
    itself is wrong: see `contraction.stats`. An error near the machine precision is never reached.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([0.0, 0.0, 1.0, 1.0])
    >>> k = hg.steps_needed(problem, x_true + 0.1, x_true, error=1e-2,
    ...                     solver=hg.ChambollePock(iterations=200))
    >>> bool(1 < k.measured < 50)
    True
    """
    if not 0 < error < 1:
        raise ValueError(f"error must lie between 0 and 1; got {error}: try 1e-3")
    check_count("most", most)
    check_count("dimension", dimension)
    _check_learnable(problem.K)
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    x_true = prepare_truth(x_true, x_tilde)
    target = jnp.asarray(error, x_tilde.dtype)
    return _steps_needed(problem, x_tilde, x_true, solver, target, loss, init, most, dimension)


@eqx.filter_jit
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
    end = _run(problem, rows, solver, init)
    contraction = _contraction(problem, rows, end, dimension)
    g = _loss_gradient(loss, end.solution, x_true)

    sums, stats = LeastSquares()(AdjointProblem(problem, end.sizes, end.history, g))
    measured = _measure_steps(problem, end, g, sums.pair, error, most)
    measured = jnp.where(stats.status == Status.CONVERGED, measured, jnp.nan)
    steps = jnp.maximum(1.0, jnp.ceil(jnp.log(error) / jnp.log(contraction.factor)))
    predicted = jnp.where(contraction.factor < 1, steps, jnp.inf)
    return restore_batch(StepsNeeded(predicted, measured, contraction), batch)


def _measure_steps(
    problem: LowerLevel, end: _End, g: Cotangent, limit: AdjointPair, error: Array, most: int
) -> Float[Array, " batch"]:
    """The first k at which the gradient of k steps is as near to the limit as it should be."""
    sizes, solution, nothing = end.sizes, end.solution, nothing_like(g)
    z = jax.tree.map(lambda h: h[0], end.history)

    def size(delta: AdjointPair) -> Array:
        return _form_norm(problem.K, _layer_factors(sizes, delta, solution.x, solution.y))

    target = error * size(limit)

    def is_far(missing: AdjointPair) -> Array:
        return size(missing) > target

    def one_more(carry):
        later, missing, far, needed, done = carry
        state, _ = adjoint_step(problem, sizes, z, later, nothing)
        missing = AdjointPair(missing.Delta_P - state.delta_P, missing.Delta_D - state.delta_D)
        needed = jnp.where(far, done + 1, needed)
        return state, missing, far & is_far(missing), needed, done + 1

    def unfinished(carry):
        *_, far, _, done = carry
        return jnp.any(far) & (done < most)

    state, _ = adjoint_step(problem, sizes, z, start_adjoint(problem, g), g)
    missing = AdjointPair(limit.Delta_P - state.delta_P, limit.Delta_D - state.delta_D)
    one = jnp.ones((), jnp.int32)
    far = is_far(missing)
    carry = (state, missing, far, jnp.broadcast_to(one, far.shape), one)
    *_, far, needed, _ = jax.lax.while_loop(unfinished, one_more, carry)
    return jnp.where(far, jnp.inf, needed.astype(g.x.dtype))


# ---------------------------------------------------------------------------- errors by sample


def are_certified(stats: SolverStats, adjoint: AdjointStats) -> Bool[Array, "*batch"]:
    """Samples on which both solves converged, away from every kink: where a gradient is trusted.

    **Caveat**: where active rows of K are dependent, the dual solution and with it the gradient
    depend on the start and the step sizes, by a few per cent; that is not detected here.
    """
    converged = (stats.status == Status.CONVERGED) & (adjoint.status == Status.CONVERGED)
    # A margin that is not known (NaN) is no objection.
    return converged & ~(stats.margin < _LEAST_MARGIN)


class SampleErrors(eqx.Module):
    """The gradient of each sample in K held against that of a reference.

    `cosine`, `relative_error` and `certified`, `(...)`: the last says where the reference can be
    trusted. A cosine is NaN where one of the two gradients is 0.

    Printing it gives quantiles over the certified samples.
    """

    cosine: Float[Array, "*batch"]
    relative_error: Float[Array, "*batch"]
    certified: Bool[Array, "*batch"]

    def quantiles(
        self, levels: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9, 1.0)
    ) -> dict[str, list[Any]]:
        """Quantiles over the certified samples; None where there are none.

        The errors are sorted upwards and the cosines downwards, so that the worst is last in both.
        """

        def upwards(values: Array) -> list[float] | list[None]:
            kept = np.asarray(values)[np.asarray(self.certified)]
            kept = np.sort(kept[~np.isnan(kept)])
            if not kept.size:
                return [None] * len(levels)
            # One of the values, nothing in between: an infinite error has no neighbours.
            return kept[np.ceil(np.array(levels) * (kept.size - 1)).astype(int)].tolist()

        cosine = [None if c is None else -c for c in upwards(-self.cosine)]
        return {"cosine": cosine, "relative_error": upwards(self.relative_error)}

    def table(self) -> str:
        """The quantiles as a Markdown table."""
        columns = {"name": "samples", "cosine": "cosine", "relative_error": "relative error"}
        names = ("best", "10 %", "median", "90 %", "worst")
        rows = zip(names, *self.quantiles().values(), strict=True)
        return markdown_table([dict(zip(columns, row, strict=True)) for row in rows], columns)

    def __repr__(self) -> str:
        if not is_concrete(self.cosine):
            return "SampleErrors(<traced>)"
        share = 100 * float(np.mean(np.asarray(self.certified)))
        return (
            f"SampleErrors of {self.cosine.size} samples, {share:.3g} % certified\n{self.table()}"
        )


def per_sample_errors(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    reference: AbstractStrategy | None = None,
    reference_solver: ChambollePock | None = None,
    loss: Loss = half_mean_squared_error,
    piece: int = 16,
) -> SampleErrors:
    """Cosine and relative error of the gradient in K, of each sample by itself.

    What a batch's gradient hides: a few samples may be wrong altogether, and errors of many may
    cancel. The gradient of sample i is the part of the batch's gradient that goes through it.

    **Arguments**: as for `hypergradient`; `reference`, by default `LimitFormula()`, and
    `reference_solver`, by default the `solver`: give one that converges. `piece`, how many samples
    at a time have their gradient written out, where that is needed.

    **Returns**: a `SampleErrors`; printed, a table of quantiles.

    **Errors**: as for `hypergradient`; a `ValueError` for an operator without parameters.

    **Cost**: both hypergradients once. Where both strategies give `Delta` (the limit formula does)
    and K is a matrix, the rest is algebra with matrices of rank 4 that are not written out:
    `8 (m + n)` numbers a sample. Otherwise each sample of a strategy that does not is solved and
    pulled back once more by itself (`jax.lax.map` over pieces), without the gain of a batch, and
    `2 piece m n` numbers are held.

    **Caveat**: the reference counts as the truth where it is `certified`, and only there.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    >>> errors = hg.per_sample_errors(problem, x_true + 0.1, x_true, strategy=hg.Truncation(k=1),
    ...                               solver=hg.ChambollePock(iterations=300))
    >>> errors.cosine.shape, bool(jnp.all(errors.relative_error > 0.1))
    ((2,), True)
    """
    check_count("piece", piece)
    _check_learnable(problem.K)
    reference = LimitFormula() if reference is None else reference
    reference_solver = solver if reference_solver is None else reference_solver
    check_strategy(strategy, solver)
    check_strategy(reference, reference_solver)
    _, _, reference_solver, _ = prepare(problem, x_tilde, reference_solver, None)
    problem, x_tilde, solver, _ = prepare(problem, x_tilde, solver, None)
    x_true = prepare_truth(x_true, x_tilde)
    ways = (strategy, solver), (reference, reference_solver)
    return _per_sample_errors(problem, x_tilde, x_true, ways, loss, piece)


@eqx.filter_jit
def _per_sample_errors(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    ways: tuple[tuple[AbstractStrategy, ChambollePock], ...],
    loss: Loss,
    piece: int,
) -> SampleErrors:
    batch = x_tilde.shape[:-1]
    rows = flatten_batch(x_tilde, batch)
    ours, exact = (_SampleGradients.of(problem, rows, x_true, *way, loss) for way in ways)
    if matrix_of(problem.K) is not None and ours.factors and exact.factors:
        products = _compare_factors(problem.K, ours.factors, exact.factors)
    else:
        products = jax.lax.map(
            lambda i: _compare_vectors(ours.written_out(problem, i), exact.written_out(problem, i)),
            jnp.arange(len(rows)),
            batch_size=min(piece, len(rows)),
        )
    inner, norm, exact_norm, difference = products
    # 0 where nothing is missing, infinite where there is nothing to compare with.
    error = jnp.where(difference == 0, 0.0, difference / exact_norm)
    certified = are_certified(exact.stats, exact.adjoint)
    return restore_batch(SampleErrors(inner / (norm * exact_norm), error, certified), batch)


class _SampleGradients(eqx.Module):
    """What one strategy needs to say what the gradient in K of each sample is.

    `factors`, where it gives `Delta`, say it at once; `stats` and `adjoint` describe its solves.
    """

    strategy: AbstractStrategy
    solver: ChambollePock
    x_tilde: Float[Array, "batch n"]
    g: Float[Array, "batch n"]
    factors: Factors | None
    stats: SolverStats
    adjoint: AdjointStats

    @classmethod
    def of(
        cls,
        problem: LowerLevel,
        rows: Array,
        x_true: Array,
        strategy: AbstractStrategy,
        solver: ChambollePock,
        loss: Loss,
    ) -> _SampleGradients:
        """One hypergradient of the whole batch."""
        solution, residuals = strategy.forward(problem, rows, solver, None)
        g = _loss_gradient(loss, solution, x_true)
        gradients = strategy.pullback(residuals, g)
        factors = None
        if gradients.adjoint is not None:
            sizes = solver.step_sizes(problem)
            factors = _layer_factors(sizes, gradients.adjoint, solution.x, solution.y)
        return cls(strategy, solver, rows, g.x, factors, solution.stats, gradients.stats)

    def written_out(self, problem: LowerLevel, i: Array) -> Array:
        """The gradient of sample i in K, as one vector."""
        if self.factors is not None:
            pairs = jax.tree.map(lambda side: side[i], self.factors)
            return _flat(bilinear_gradient(problem.K, *pairs))
        x_tilde, g = self.x_tilde[i][None], self.g[i][None]
        solution, residuals = self.strategy.forward(problem, x_tilde, self.solver, None)
        cotangent = Cotangent(g, jnp.zeros_like(solution.y))
        return _flat(self.strategy.pullback(residuals, cotangent).problem.K)


def _compare_vectors(ours: Array, exact: Array) -> tuple[Array, ...]:
    """Inner product, the two norms and that of the difference, of one sample."""
    norms = (jnp.linalg.norm(v) for v in (ours, exact, ours - exact))
    return ours @ exact, *norms


def _compare_factors(K: Operator, ours: Factors, exact: Factors) -> tuple[Array, ...]:
    """The same of a batch, from the factors alone."""
    inner = sum(
        jnp.sum(left * other_left, axis=-1) * jnp.sum(right * other_right, axis=-1)
        for left, right in ours
        for other_left, other_right in exact
    )
    difference = *ours, *((-left, right) for left, right in exact)
    return jnp.asarray(inner), *(_form_norm(K, f) for f in (ours, exact, difference))
