"""The linear system of the active sets, factorised: one for the Newton step and the adjoint."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypergrad.adjoint import Unknowns, pair_norm
from hypergrad.chambolle_pock import ProxArguments, StepSizes
from hypergrad.exact.normal_map import Jacobian, jacobian
from hypergrad.problem.functions import prox, prox_conjugate
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import dense_matrix

# With so many refinements the shrinking has no effect beyond singular values of about the root of
# the precision (its cube root where the primal side has no curvature).
REFINEMENTS = 4

# Of the one solve that a derivative takes: cheap beside the factorisation.
_FINAL_REFINEMENTS = 12

# j and theta of `ActiveSystem.inverse_norm`.
_POWERS, _POWER_FACTOR = 8, 9.0


def _times(matrix: Array, v: Array) -> Array:
    """`M v`, one matrix for all samples or one for each."""
    return v @ matrix.T if matrix.ndim == 2 else jnp.einsum("bmn,bn->bm", matrix, v)


def _transpose_times(matrix: Array, v: Array) -> Array:
    return v @ matrix if matrix.ndim == 2 else jnp.einsum("bmn,bm->bn", matrix, v)


def _largest(f: tuple[Array, Array]) -> Array:
    """Return the largest entry in size, per sample."""
    return jnp.maximum(*(jnp.max(jnp.abs(part), axis=-1) for part in f))


class AbstractActiveSystem(eqx.Module):
    """The Jacobian of the normal map at some active sets, ready to be solved with."""

    @abc.abstractmethod
    def kernel_part(self, w: Unknowns) -> Unknowns:
        """Return the orthogonal projection of `w` onto the kernel."""

    @abc.abstractmethod
    def tangent_solution(self, right: Unknowns) -> Unknowns:
        """Return the derivative of the pair: the solution of minimum norm, as exact as possible."""

    @abc.abstractmethod
    def adjoint_solution(self, right: Unknowns) -> tuple[Unknowns, Array, Array]:
        """Return the solution of the limit system (the transpose), its steps and products."""

    @abc.abstractmethod
    def rank(self, unique_D: Bool[Array, " batch"]) -> Int[Array, " batch"]:
        """Return the rank of K between the free coordinates of both sides; -1 if unknown."""

    @abc.abstractmethod
    def random_unknowns(self) -> Unknowns:
        """Return independent normal numbers."""

    def unique(self) -> tuple[Array, Array]:
        """Return whether the kernel is 0 on either side: else a random vector has a part in it."""
        small = 1e-3  # of a vector of size sqrt(n): far above rounding, far below what is typical
        kernel_P, kernel_D = self.kernel_part(self.random_unknowns())
        return (
            jnp.max(jnp.abs(kernel_P), axis=-1) <= small,
            jnp.max(jnp.abs(kernel_D), axis=-1) <= small,
        )


class ActiveSystem(AbstractActiveSystem):
    """The Jacobian of the normal map at `D_P`, `D_D`, factorised; one system a sample.

    The dual is eliminated: with `W = D_D (I - D_D)^-1` and `h = D_P^(1/2)` what remains is

        ( I - D_P + s^2 h K^T W K h ) p = h (f_P - s K^T W f_D),        D_P a = h p,

    symmetric, positive and of size n. Where the system is singular (an eigenvalue 1 of D whose
    vector K does not see) the eigenvalues are shrunk a little before they are factorised, and the
    solution is refined with the residual of the system as it is: iterated regularisation from
    zero, which tends to the solution of minimum norm. Kernel and cokernel are the same space, which
    shrinking leaves invariant.

    **Cost**: `m n^2 + 2 n^3 / 3` multiplications for the factor and its inverse, `5 m n + 2 n^2` a
    solve; memory `n^2`, while it is factorised `m n`, too, a sample (with a non-separable function
    the square of its size, too).
    """

    matrix: Float[Array, "..."]  # K between the two bases, (m, n) or (batch, m, n)
    s: Float[Array, ""]
    D_P: Jacobian
    D_D: Jacobian
    W: Float[Array, "batch m"]
    h: Float[Array, "batch n"]
    inverse_factor: Float[Array, "batch n n"]  # of the Cholesky factor of what remains
    shrink: Float[Array, "batch 1"]  # what the eigenvalues were shrunk by at most

    def product(self, unknowns: tuple[Array, Array], sign: int = 1) -> tuple[Array, Array]:
        """The left-hand side in the bases; `sign=-1` for that of the limit system in U."""
        (a, b), (d_P, d_D), s = unknowns, (self.D_P.values, self.D_D.values), sign * self.s
        # (1 - d) a, not a - d a: 0 where d is 1, however a compiler rounds. What is left there by
        # rounding would be divided by what was shrunk.
        return (
            (1 - d_P) * a + s * _transpose_times(self.matrix, d_D * b),
            (1 - d_D) * b - s * _times(self.matrix, d_P * a),
        )

    def _solve_shrunk(self, f: tuple[Array, Array], sign: int) -> tuple[Array, Array]:
        (f_P, f_D), s = f, sign * self.s
        right = self.h * (f_P - s * _transpose_times(self.matrix, self.W * f_D))
        # Products, not triangular solves: the loops that call this then hold no LAPACK call.
        # XLA runs independent loops side by side on the CPU, and two such calls were seen to wait
        # for each other's threads for ever. That is why there are few of them, one after another.
        p = _transpose_times(self.inverse_factor, _times(self.inverse_factor, right))
        D_a = self.h * p
        moved = f_D + s * _times(self.matrix, D_a)
        D_b = self.W * moved
        return f_P - s * _transpose_times(self.matrix, D_b) + D_a, moved + D_b

    def _solve_refined(
        self, f: tuple[Array, Array], sign: int, refinements: int
    ) -> tuple[tuple[Array, Array], Int[Array, ""]]:
        """Return the solution and the number of solves, at most `refinements` after the first.

        Refined is as long as more than rounding is left for any sample.
        """

        def refine(now: Any):
            unknowns, rest, done = now
            unknowns = jax.tree.map(jnp.add, unknowns, self._solve_shrunk(rest, sign))
            return unknowns, jax.tree.map(jnp.subtract, f, self.product(unknowns, sign)), done + 1

        def unfinished(now: Any):
            unknowns, rest, done = now
            rounding = 4 * jnp.finfo(f[0].dtype).eps * (_largest(f) + _largest(unknowns))
            # (Not "any above it": NaN is not finished.)
            return (done <= refinements) & ~jnp.all(_largest(rest) <= rounding)

        nothing = jax.tree.map(jnp.zeros_like, f)
        start = (nothing, f, jnp.zeros((), jnp.int32))
        unknowns, _, done = jax.lax.while_loop(unfinished, refine, start)
        return unknowns, done

    def solve(self, f: tuple[Array, Array], *, refinements: int = 0) -> tuple[Array, Array]:
        """Return the Newton step (of minimum norm) for a right-hand side."""
        f = self.D_P.into(f[0]), self.D_D.into(f[1])
        (a, b), _ = self._solve_refined(f, 1, refinements)
        return self.D_P.out_of(a), self.D_D.out_of(b)

    def solve_transposed(
        self, f: tuple[Array, Array], *, refinements: int = 0
    ) -> tuple[tuple[Array, Array], Int[Array, ""]]:
        """The limit system, which is the transpose, for any right-hand side (minimum norm).

        The number of solves is returned, too.

            p - D_P (p + s K^T d) = f_P,    d - D_D (d - s K p) = f_D

        With `U` what D is applied to, the unknowns are `f + D U`.
        """
        f_P, f_D = self.D_P.into(f[0]), self.D_D.into(f[1])
        seen = (
            f_P + self.s * _transpose_times(self.matrix, f_D),
            f_D - self.s * _times(self.matrix, f_P),
        )
        (U_P, U_D), done = self._solve_refined(seen, -1, refinements)
        p, d = f_P + self.D_P.values * U_P, f_D + self.D_D.values * U_D
        return (self.D_P.out_of(p), self.D_D.out_of(d)), done

    def kernel_part(self, w: Unknowns) -> Unknowns:
        """The orthogonal projection of `w` onto the kernel.

        One side at a time: the kernel is the product of a primal and a dual space, and with the
        other side at 0 nothing cancels before it is divided by what was shrunk.
        """
        w_P, w_D = self.D_P.into(w[0]), self.D_D.into(w[1])
        sides = jnp.stack([w_P, jnp.zeros_like(w_P)]), jnp.stack([jnp.zeros_like(w_D), w_D])

        def seen(side: tuple[Array, Array]) -> tuple[Array, Array]:
            return self._solve_refined(self.product(side), 1, REFINEMENTS)[0]

        a, b = jax.lax.map(seen, sides)
        return self.D_P.out_of(w_P - a[0]), self.D_D.out_of(w_D - b[1])

    def without_kernel(self, w: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return `w` without its part in the kernel, which is rounding that the solve amplified."""
        return jax.tree.map(jnp.subtract, w, self.kernel_part(w))

    def tangent_solution(self, right: Unknowns) -> Unknowns:
        return self.without_kernel(self.solve(right, refinements=_FINAL_REFINEMENTS))

    def adjoint_solution(self, right: Unknowns) -> tuple[Unknowns, Array, Array]:
        unknowns, done = self.solve_transposed(right, refinements=_FINAL_REFINEMENTS)
        steps = jnp.broadcast_to(done, right[0].shape[:1])
        return self.without_kernel(unknowns), steps, 4 * steps + 8

    def random_unknowns(self) -> tuple[Array, Array]:
        """Independent normal numbers, the same for all samples.

        Drawn here and not by the program, which would take as long to compile as a solve.
        """
        rng = np.random.default_rng(0)

        def like(values: Array) -> Array:
            numbers = jnp.asarray(rng.standard_normal(values.shape[-1]), values.dtype)
            return jnp.broadcast_to(numbers, values.shape)

        return like(self.D_P.values), like(self.D_D.values)

    def inverse_norm(self) -> Float[Array, " batch"]:
        """An upper bound of `||J^-1||` at t = 0; infinite where J is singular, or nearly.

        The power method for `A = (J J^T)^-1` from a random v of norm 1: after j steps

            || J^-1 ||^2 <= theta || A^j v ||^(1/j),

        but for a probability of `0.8 theta^-j sqrt(m + n)`, here about 1e-7. What was factorised is
        J moved by at most `3 shrink`: the inverse of a singular J shows as `1 / (3 shrink)` at the
        least, and that of any other is no larger than Neumann's series allows.

        **Cost**: 16 solves.

        **Source**: Dixon 1983 for the bound.
        """

        def power(_: Array, carry: Any):
            v, logarithm = carry
            size = pair_norm(v)[:, None]
            v, _ = self.solve_transposed(self.solve((v[0] / size, v[1] / size)))
            return v, logarithm + jnp.log(pair_norm(v))

        v = self.random_unknowns()
        _, logarithm = jax.lax.fori_loop(0, _POWERS, power, (v, jnp.zeros_like(pair_norm(v))))
        bound = _POWER_FACTOR**0.5 * jnp.exp(logarithm / (2 * _POWERS))
        moved = 3 * self.shrink[:, 0] * bound
        return jnp.where(moved <= 0.5, bound / (1 - jnp.minimum(moved, 0.5)), jnp.inf)

    def rank(self, unique_D: Bool[Array, " batch"]) -> Int[Array, " batch"]:
        """The rank of K between what is free on either side (to the root of the precision).

        Where the dual solution is unique and nothing is half free, the free rows are independent;
        only for the others is there something to eliminate.
        """
        free = self.D_D.values > 0
        independent = unique_D & jnp.all(~free | (self.D_D.values == 1), axis=-1)
        rows = jnp.sum(free, axis=-1).astype(jnp.int32)
        eliminated = jax.lax.cond(
            jnp.all(independent), lambda: rows, lambda: self._eliminated_rank()
        )
        return jnp.where(independent, rows, eliminated)

    def _eliminated_rank(self) -> Int[Array, " batch"]:
        free_P, free_D = (D.values > 0 for D in (self.D_P, self.D_D))
        active = jnp.where(free_D[..., None] & free_P[:, None, :], _batched(self.matrix), 0.0)
        gram = jnp.einsum("bmi,bmj->bij", active, active)
        floor = 64 * max(self.matrix.shape[-2:]) * jnp.finfo(gram.dtype).eps
        largest = jnp.max(jnp.diagonal(gram, axis1=-2, axis2=-1), axis=-1)

        def eliminate(_: Array, carry: Any) -> Any:
            """One step of the Cholesky factorisation with the largest pivot."""
            gram, rank = carry
            diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
            place = jnp.argmax(diagonal, axis=-1)
            pivot = jnp.max(diagonal, axis=-1)
            found = pivot > floor * largest
            column = jnp.take_along_axis(gram, place[:, None, None], axis=-1)[..., 0]
            column = column / jnp.sqrt(jnp.where(found, pivot, 1.0))[:, None]
            rest = gram - column[:, :, None] * column[:, None, :]
            return jnp.where(found[:, None, None], rest, gram), rank + found.astype(jnp.int32)

        rank = jnp.zeros(gram.shape[:1], jnp.int32)
        return jax.lax.fori_loop(0, gram.shape[-1], eliminate, (gram, rank))[1]


def _batched(matrix: Array) -> Array:
    """Return one matrix per sample, or that of all samples with a batch axis of length 1."""
    return matrix if matrix.ndim == 3 else matrix[None]


def _factorise(
    matrix: Array, s: Array, D_P: Jacobian, D_D: Jacobian, shrink: Array
) -> ActiveSystem:
    if D_P.basis is not None:
        matrix = jnp.matmul(matrix, D_P.basis)
    if D_D.basis is not None:
        matrix = jnp.matmul(jnp.swapaxes(D_D.basis, -1, -2), matrix)
    curvature = jnp.min(1 - D_P.values, axis=-1, keepdims=True)
    # Without curvature on the primal side rounding is divided by shrink^2: shrink more there.
    shrink = jnp.where(curvature < shrink, float(jnp.finfo(matrix.dtype).eps) ** (1 / 3), shrink)
    # With curvature the dual side needs less.
    shrink_D = jnp.maximum(shrink**2 / jnp.maximum(curvature, shrink), 1e-3 * shrink)
    d_P, d_D = (1 - shrink) * D_P.values, (1 - shrink_D) * D_D.values
    W, h = d_D / (1 - d_D), jnp.sqrt(d_P)
    # In this order it is one product for all samples where they share the matrix.
    normal = jnp.matmul(jnp.swapaxes(_batched(matrix), -1, -2) * W[:, None, :], matrix)
    normal = s**2 * h[:, :, None] * normal * h[:, None, :]
    normal = normal + jax.vmap(jnp.diag)(1 - d_P)
    factor = jnp.linalg.cholesky(normal)
    identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    inverse = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return ActiveSystem(matrix, s, D_P, D_D, W, h, inverse, shrink)


def regularization(dtype: jnp.dtype) -> float:
    """Return the amount by which eigenvalues are shrunk by default; a path ends at this t."""
    return 8 * float(jnp.finfo(dtype).eps) ** 0.5


def _computed_after(first: Array, value: Array) -> Array:
    """Return `value`, which XLA then computes after `first`.

    XLA drops a `jax.lax.optimization_barrier` on the CPU before it orders the calls, but not `0 x`,
    since x may be NaN.
    """
    return value + 0.0 * first[:, :1]


def active_system(
    problem: LowerLevel, sizes: StepSizes, z: ProxArguments, t: Array
) -> ActiveSystem:
    """Return the system at `z` and `t`, factorised; where t = 0 it may be singular: shrunk."""
    tau, sigma, _ = sizes
    D_P = jacobian(prox, problem.G, z.z_P, tau, t)
    # Where both are diagonalised, one LAPACK call has to follow the other (see `_solve_shrunk`).
    z_D = _computed_after(D_P.values, z.z_D)
    D_D = jacobian(prox_conjugate, problem.F, z_D, sigma, t)
    shrink = jnp.where(t == 0, regularization(t.dtype), 0.0)[:, None]
    return _factorise(dense_matrix(problem.K), jnp.sqrt(tau) * jnp.sqrt(sigma), D_P, D_D, shrink)
