"""The asymptotic contraction factor of the iteration and its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.printing import as_sentence, worst
from hypergrad.bilevel.arguments import Data, flatten_batch, prepare, restore_batch
from hypergrad.chambolle_pock import (
    ChambollePock,
    ForwardSolve,
    Iteration,
    Run,
    SolverStats,
    State,
)
from hypergrad.problem.lower_level import LowerLevel

__all__ = [
    "KRYLOV_DIMENSION",
    "Contraction",
    "contraction_factor",
    "contraction_of",
]

# The dimension of the Krylov space in which the contraction factor is searched.
KRYLOV_DIMENSION = 40


class Contraction(eqx.Module):
    """The asymptotic contraction factor of the iteration and its adjoint, per sample.

    `factor`, the spectral radius; `residual`, how well its eigenvalue is known (0: exactly);
    `stats`, how the forward solve went.
    """

    factor: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    stats: SolverStats

    @as_sentence
    def __repr__(self) -> str:
        return (
            f"Contraction(factor {worst(self.factor, '.6g', of=np.median)} (median), "
            f"{worst(self.factor, '.6g')} (greatest of {np.size(self.factor)}), "
            f"residual {worst(self.residual)};\n"
            f"  forward={self.stats})"
        )


def contraction_factor(
    problem: LowerLevel,
    x_tilde: Data,
    *,
    solver: ChambollePock | None = None,
    init: State | None = None,
    dimension: int = KRYLOV_DIMENSION,
) -> Contraction:
    """Return the spectral radius of the linearised iteration at the last state, per sample.

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
    the whole batch; `dimension (m + 2 n)` numbers per sample.

    **Caveat**: masks that have not settled give the factor of another iteration: see `stats`. A
    factor above 1 occurs where `theta` is not 1. Eigenvalues within the square root of the machine
    precision (3e-4 in float32) of 1 count as 1.

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


@compiled
def _contraction_factor(
    problem: LowerLevel,
    x_tilde: Array,
    solver: ChambollePock,
    init: State | None,
    dimension: int,
) -> Contraction:
    batch = x_tilde.shape[:-1]
    rows, init = flatten_batch((x_tilde, init), batch)
    forward = solver.on(problem, rows)
    contraction = contraction_of(forward, forward.run(init, record_last=1), dimension)
    return restore_batch(contraction, batch)


def contraction_of(forward: ForwardSolve, run: Run, dimension: int) -> Contraction:
    """Return the contraction of the last iteration of a run, which is recorded."""
    iteration = forward.iteration
    problem, rows, _ = iteration
    move = _adjoint_of_a_step(iteration, run.before)
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
        stats=forward.solution(run.state, run.taken).stats,
    )


def _adjoint_of_a_step(iteration: Iteration, state: State) -> Callable[[Array], Array]:
    """Return `v -> J^T v` with J the Jacobian of one iteration at a state, in scaled units.

    That is, v holds `sqrt(tau)`, `sqrt(tau)`, `sqrt(sigma)` times the cotangents of r, r_bar, y.
    """
    problem, _, (tau, sigma, _) = iteration
    root_tau, root_sigma = jnp.sqrt(tau), jnp.sqrt(sigma)
    _, pull = jax.vjp(lambda s: iteration.step(s)[0], state)

    def move(v: Array) -> Array:
        r, r_bar, y = jnp.split(v, (problem.n, 2 * problem.n), axis=-1)
        (moved,) = pull(State(r / root_tau, r_bar / root_tau, y / root_sigma))
        parts = root_tau * moved.r, root_tau * moved.r_bar, root_sigma * moved.y
        return jnp.concatenate(parts, axis=-1)

    return move


def _arnoldi(
    move: Callable[[Array], Array], v: Float[Array, "batch size"], dimension: int
) -> tuple[Float[Array, "batch dimension dimension"], Float[Array, " batch"]]:
    """Return the Hessenberg matrix of `move` on the Krylov space of v, and its last entry.

    Where the space is exhausted first, the rest of the matrix is 0: more eigenvalues 0.
    """
    rounding = 10 * v.shape[-1] * jnp.finfo(v.dtype).eps

    def normalised(w: Array, size: Array) -> Array:
        nonzero = size > 0
        return jnp.where(nonzero[:, None], w / jnp.where(nonzero, size, 1.0)[:, None], 0.0)

    def body(j: Array, carry: Any):
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
