"""Semismooth Newton for the lower level, to machine precision: what `Exact` stands on.

The optimality conditions as one equation in the arguments of the two proxes (a normal map), with
`r = prox_{tau G}(z_P)` and `y = prox_{sigma F*}(z_D)`:

    z_P - r + tau K^T y = 0
    z_D - y - sigma K (x_tilde + r) = 0

Its Jacobian at `D_P = prox'_{tau G}(z_P)`, `D_D = prox'_{sigma F*}(z_D)`, in the balanced unknowns
`z_P / sqrt(tau)`, `z_D / sqrt(sigma)` and with `s = sqrt(tau sigma)`, gives the Newton step; the
limit system of the adjoint, written in `U` (then `Delta = D U`), is the same with -s. One
factorisation serves both:

    (I - D_P) a + s K^T D_D b = f_P
    (I - D_D) b - s K D_P a   = f_D

Plain Newton on the active sets is quick where it works and cycles where it does not. What is
followed instead is a path: `F*` and `G` with a quadratic added, (t/sigma)||y||^2 / 2 and
(t/tau)||r||^2 / 2, whose proxes are `prox_{step/(1+t)}(z/(1+t))`. For t > 0 the solution is unique
and every Newton system regular; as t falls to 0 it tends to the solution of minimum norm, primal
and dual; and as soon as the active sets have settled, one step at t = 0 is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypergrad.chambolle_pock import ProxArguments, State, StepSizes, default_tolerance, step
from hypergrad.functions import AbstractFunction
from hypergrad.lower_level import LowerLevel
from hypergrad.operators import dense_matrix

__all__ = [
    "LEAST_MARGIN",
    "ActiveSystem",
    "ExactPair",
    "NormalMap",
    "active_system",
    "norm",
    "solve_exactly",
]

# ------------------------------------------------------------------------- the linear system


class Jacobian(NamedTuple):
    """A prox Jacobian of each sample: its eigenvalues in [0, 1], in a basis (None: the usual)."""

    values: Float[Array, "batch size"]
    basis: Float[Array, "batch size size"] | None

    def into(self, v: Array) -> Array:
        """Coordinates in the basis."""
        return v if self.basis is None else jnp.einsum("bij,bi->bj", self.basis, v)

    def out_of(self, v: Array) -> Array:
        """Back from coordinates in the basis."""
        return v if self.basis is None else jnp.einsum("bij,bj->bi", self.basis, v)


def _prox(f, z, step):
    return f.prox(z, step)


def _prox_conjugate(f, z, step):
    return f.prox_conjugate(z, step)


def _smoothed(prox, f: AbstractFunction, z: Array, step: Array, t: Array) -> Array:
    """The prox of `f` (or `f*`) with `(t/step) ||.||^2 / 2` added, `t` a sample."""
    return jax.vmap(lambda z, t: prox(f, z / (1 + t), step / (1 + t)))(z, t)


def _jacobian(prox, f: AbstractFunction, z: Array, step: Array, t: Array) -> Jacobian:
    if f.separable:
        value, pull = jax.vjp(lambda z: _smoothed(prox, f, z, step, t), z)
        return Jacobian(jnp.clip(pull(jnp.ones_like(value))[0], 0.0, 1.0), None)
    dense = jax.vmap(jax.jacfwd(lambda z, t: prox(f, z / (1 + t), step / (1 + t))))(z, t)
    values, basis = jnp.linalg.eigh((dense + dense.swapaxes(-1, -2)) / 2)
    return Jacobian(jnp.clip(values, 0.0, 1.0), basis)


def _times(matrix: Array, v: Array) -> Array:
    """`M v`, one matrix for all samples or one for each."""
    return v @ matrix.T if matrix.ndim == 2 else jnp.einsum("bmn,bn->bm", matrix, v)


def _transpose_times(matrix: Array, v: Array) -> Array:
    return v @ matrix if matrix.ndim == 2 else jnp.einsum("bmn,bm->bn", matrix, v)


def norm(pair: tuple[Array, Array]) -> Float[Array, " batch"]:
    """Euclidean norm of a pair of (balanced) unknowns, a sample."""
    return jnp.sqrt(jnp.sum(pair[0] ** 2, axis=-1) + jnp.sum(pair[1] ** 2, axis=-1))


class ActiveSystem(eqx.Module):
    """The Jacobian of the normal map at `D_P`, `D_D`, factorised; one system a sample.

    The dual is eliminated: with `W = D_D (I - D_D)^-1` and `h = D_P^(1/2)` what remains is

        ( I - D_P + s^2 h K^T W K h ) p = h (f_P - s K^T W f_D),        D_P a = h p,

    symmetric, positive and of size n. Where the system is singular (an eigenvalue 1 of D whose
    vector K does not see) the eigenvalues are shrunk a little before they are factorised, and the
    solution is refined with the residual of the system as it is: iterated regularisation from
    zero, which tends to the solution of minimum norm. Kernel and cokernel are the same space, which
    shrinking leaves invariant.

    **Cost**: `m n^2 + n^3 / 3` for the factor, `4 m n + 2 n^2` a solve; memory `n^2`, a sample
    (with a non-separable function `m n` and the square of its size, too).
    """

    matrix: Float[Array, "..."]  # K between the two bases, (m, n) or (batch, m, n)
    s: Float[Array, ""]
    D_P: Jacobian
    D_D: Jacobian
    W: Float[Array, "batch m"]
    h: Float[Array, "batch n"]
    inverse_factor: Float[Array, "batch n n"]  # of the Cholesky factor of what remains

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
    ) -> tuple[Array, Array]:
        def refine(_, unknowns):
            rest = jax.tree.map(jnp.subtract, f, self.product(unknowns, sign))
            return jax.tree.map(jnp.add, unknowns, self._solve_shrunk(rest, sign))

        return jax.lax.fori_loop(0, refinements, refine, self._solve_shrunk(f, sign))

    def solve(self, f: tuple[Array, Array], *, refinements: int = 0) -> tuple[Array, Array]:
        """The Newton step for a right-hand side (of minimum norm)."""
        f = self.D_P.into(f[0]), self.D_D.into(f[1])
        a, b = self._solve_refined(f, 1, refinements)
        return self.D_P.out_of(a), self.D_D.out_of(b)

    def solve_transposed(
        self, f: tuple[Array, Array], *, refinements: int = 0
    ) -> tuple[Array, Array]:
        """The limit system, which is the transpose, for any right-hand side (minimum norm).

            p - D_P (p + s K^T d) = f_P,    d - D_D (d - s K p) = f_D

        With `U` what D is applied to, the unknowns are `f + D U`.
        """
        f_P, f_D = self.D_P.into(f[0]), self.D_D.into(f[1])
        seen = (
            f_P + self.s * _transpose_times(self.matrix, f_D),
            f_D - self.s * _times(self.matrix, f_P),
        )
        U_P, U_D = self._solve_refined(seen, -1, refinements)
        p, d = f_P + self.D_P.values * U_P, f_D + self.D_D.values * U_D
        return self.D_P.out_of(p), self.D_D.out_of(d)

    def kernel_part(self, w: tuple[Array, Array]) -> tuple[Array, Array]:
        """The orthogonal projection of `w` onto the kernel: what solving cannot bring back.

        One side at a time: the kernel is the product of a primal and a dual space, and with the
        other side at 0 nothing cancels before it is divided by what was shrunk.
        """
        w_P, w_D = self.D_P.into(w[0]), self.D_D.into(w[1])
        sides = jnp.stack([w_P, jnp.zeros_like(w_P)]), jnp.stack([jnp.zeros_like(w_D), w_D])

        def seen(side: tuple[Array, Array]) -> tuple[Array, Array]:
            return self._solve_refined(self.product(side), 1, _REFINEMENTS)

        a, b = jax.lax.map(seen, sides)
        return self.D_P.out_of(w_P - a[0]), self.D_D.out_of(w_D - b[1])

    def without_kernel(self, w: tuple[Array, Array]) -> tuple[Array, Array]:
        """`w` of minimum norm: rounding that dividing by what was shrunk has made large goes."""
        return jax.tree.map(jnp.subtract, w, self.kernel_part(w))

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
        key_P, key_D = jax.random.split(jax.random.key(0))
        like_P, like_D = self.D_P.values, self.D_D.values
        v = (
            jax.random.normal(key_P, like_P.shape, like_P.dtype),
            jax.random.normal(key_D, like_D.shape, like_D.dtype),
        )

        def power(_, carry):
            v, logarithm = carry
            size = norm(v)[:, None]
            v = self.solve_transposed(self.solve((v[0] / size, v[1] / size)))
            return v, logarithm + jnp.log(norm(v))

        none = jnp.zeros(like_P.shape[0], like_P.dtype)
        _, logarithm = jax.lax.fori_loop(0, _POWERS, power, (v, none))
        bound = _POWER_FACTOR**0.5 * jnp.exp(logarithm / (2 * _POWERS))
        moved = 3 * _shrink(bound.dtype) * bound
        return jnp.where(moved <= 0.5, bound / (1 - jnp.minimum(moved, 0.5)), jnp.inf)

    def rank(self) -> Int[Array, " batch"]:
        """The rank of K between what is free on either side (to the root of the precision)."""
        free_P, free_D = (D.values > 0 for D in (self.D_P, self.D_D))
        active = jnp.where(free_D[..., None] & free_P[:, None, :], self.matrix, 0.0)
        gram = jnp.einsum("bmi,bmj->bij", active, active)
        floor = 64 * max(self.matrix.shape[-2:]) * jnp.finfo(gram.dtype).eps
        largest = jnp.max(jnp.diagonal(gram, axis1=-2, axis2=-1), axis=-1)

        def eliminate(_, carry):
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


# With so many refinements the shrinking has no effect beyond singular values of about the root of
# the precision.
_REFINEMENTS = 4

# j and theta of `ActiveSystem.inverse_norm`.
_POWERS, _POWER_FACTOR = 8, 9.0


def _factorise(
    matrix: Array, s: Array, D_P: Jacobian, D_D: Jacobian, shrink: float
) -> ActiveSystem:
    if D_P.basis is not None:
        matrix = jnp.einsum("...mi,bij->bmj", matrix, D_P.basis)
    if D_D.basis is not None:
        matrix = jnp.einsum("bij,...in->bjn", D_D.basis, matrix)
    # What has curvature on the primal side can do with less shrinking on the dual one.
    curvature = jnp.maximum(jnp.min(1 - D_P.values, axis=-1, keepdims=True), shrink)
    shrink_D = jnp.maximum(shrink**2 / curvature, 1e-3 * shrink)
    d_P, d_D = (1 - shrink) * D_P.values, (1 - shrink_D) * D_D.values
    W, h = d_D / (1 - d_D), jnp.sqrt(d_P)
    normal = jnp.matmul(jnp.swapaxes(matrix, -1, -2), W[..., None] * matrix)
    normal = s**2 * h[:, :, None] * normal * h[:, None, :]
    normal = normal + jax.vmap(jnp.diag)(1 - d_P)
    factor = jnp.linalg.cholesky(normal)
    identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    inverse = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return ActiveSystem(matrix, s, D_P, D_D, W, h, inverse)


def _shrink(dtype: jnp.dtype) -> float:
    return 8 * float(jnp.finfo(dtype).eps) ** 0.5


def active_system(
    problem: LowerLevel, sizes: StepSizes, z: ProxArguments, t: Array | None = None
) -> ActiveSystem:
    """The system at `z`; at t = 0 (None) it may be singular, and is shrunk to be factorised."""
    tau, sigma, _ = sizes
    smoothing = jnp.zeros(z.z_P.shape[0], z.z_P.dtype) if t is None else t
    D_P = _jacobian(_prox, problem.G, z.z_P, tau, smoothing)
    # Where both are diagonalised, one after the other (see `_solve_shrunk`): a 0 that depends.
    after_D_P = 0.0 * D_P.values[:, :1]
    D_D = _jacobian(_prox_conjugate, problem.F, z.z_D + after_D_P, sigma, smoothing)
    shrink = _shrink(z.z_P.dtype) if t is None else 0.0
    return _factorise(dense_matrix(problem.K), jnp.sqrt(tau * sigma), D_P, D_D, shrink)


# ------------------------------------------------------------------------------ the normal map


class NormalMap(eqx.Module):
    """The normal map of a batch, with smoothing `t` a sample."""

    problem: LowerLevel
    x_tilde: Float[Array, "batch n"]
    sizes: StepSizes

    def pair(self, z: ProxArguments, t: Array) -> tuple[Array, Array]:
        """`r`, `y`."""
        r = _smoothed(_prox, self.problem.G, z.z_P, self.sizes.tau, t)
        return r, _smoothed(_prox_conjugate, self.problem.F, z.z_D, self.sizes.sigma, t)

    def arguments(self, r: Array, y: Array) -> ProxArguments:
        """The arguments that a solution `r`, `y` would have."""
        tau, sigma, _ = self.sizes
        K = dense_matrix(self.problem.K)
        return ProxArguments(y + sigma * ((self.x_tilde + r) @ K.T), r - tau * (y @ K))

    def balanced(self, z: ProxArguments) -> tuple[Array, Array]:
        """Balanced unknowns, primal first."""
        tau, sigma, _ = self.sizes
        return z.z_P / jnp.sqrt(tau), z.z_D / jnp.sqrt(sigma)

    def moved(self, z: ProxArguments, length: Array, by: tuple[Array, Array]) -> ProxArguments:
        """`z` moved along a balanced direction."""
        tau, sigma, _ = self.sizes
        length = length[..., None]
        return ProxArguments(
            z.z_D + length * jnp.sqrt(sigma) * by[1], z.z_P + length * jnp.sqrt(tau) * by[0]
        )

    def __call__(self, z: ProxArguments, t: Array) -> tuple[Array, Array]:
        """How far `z` is from where its pair would put it, balanced."""
        r, y = self.pair(z, t)
        wanted = self.arguments(r, y)
        return self.balanced(ProxArguments(z.z_D - wanted.z_D, z.z_P - wanted.z_P))

    def relative(self, z: ProxArguments, t: Array) -> Array:
        """The size of the map relative to that of the pair `(x, y)`."""
        r, y = self.pair(z, t)
        size = norm(self.balanced(ProxArguments(y, self.x_tilde + r)))
        value = norm(self(z, t))
        return jnp.where(size > 0, value / jnp.where(size > 0, size, 1.0), value)

    def margin(self, z: ProxArguments) -> Array:
        """The relative distance to the nearest kink (unknown: infinite)."""
        tau, sigma, _ = self.sizes
        in_F = jnp.min(self.problem.F.margin(z.z_D / sigma, 1 / sigma), axis=-1)
        in_G = jnp.min(self.problem.G.margin(z.z_P, tau), axis=-1)
        return jnp.nan_to_num(jnp.minimum(in_F, in_G), nan=jnp.inf, posinf=jnp.inf)


# --------------------------------------------------------------------------------- the path

_FIRST_SMOOTHING, _SMOOTHING_FACTOR = 0.1, 10.0
# Where a coordinate sits on its kink, only a path that has come so far tells which of the optimal
# dual variables has minimum norm.
_STRICT_SMOOTHING = 1e-4
LEAST_MARGIN = 1e-9
_LENGTHS = 10  # step lengths 1, 1/2, …; each costs two products with K
_MEMORY = 4  # the line search may rise above the last few residuals: pieces are crossed sooner
_SUFFICIENT_DECREASE = 0.1
_POLISHING = 3  # Newton steps at t = 0; one is enough where the proxes are piecewise affine
_FIRST_BURST, _BURST = 200, 50  # Chambolle-Pock iterations: at the start, and out of a dead end
_SHORT = 0.25  # a step length that counts as a dead end


class ExactPair(NamedTuple):
    """Where the search ended: `z` at t = 0, and what is known of it, a sample.

    `iterations` of Chambolle-Pock and `newton_steps` that were taken; `unique_P`, `unique_D`,
    whether the primal and the dual solution are (no kernel on that side); the `system` there.
    """

    z: ProxArguments
    residual: Float[Array, " batch"]
    unique_P: Bool[Array, " batch"]
    unique_D: Bool[Array, " batch"]
    system: ActiveSystem
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]

    @property
    def products(self) -> Int[Array, " batch"]:
        """Products with K that the Newton steps took (in the line search, mostly)."""
        return self.newton_steps * 2 * (_LENGTHS + 3)


def _where(chosen: Array, new, old):
    return jax.tree.map(lambda a, b: jnp.where(chosen[..., None], a, b), new, old)


class _Found(NamedTuple):
    """A point at t = 0, its relative residual, and whether nothing speaks against accepting it."""

    z: ProxArguments
    residual: Array
    accepted: Array


def _jump(
    normal_map: NormalMap, pair: tuple[Array, Array], strict: Array, tolerance: float
) -> _Found:
    """From a pair `r`, `y` by Newton steps at t = 0, and there to the pair of minimum norm.

    What is accepted has a small residual with its kernel part taken away. That is the pair of
    minimum norm among those with the same active sets, hence of all unless something sits on its
    kink; then it has to come from far enough down the path (`strict`).
    """
    none = jnp.zeros(strict.shape, pair[0].dtype)
    z = normal_map.arguments(*pair)
    best = _Found(z, normal_map.relative(z, none), jnp.zeros(strict.shape, bool))

    def closer(best: _Found, z: ProxArguments) -> _Found:
        residual = normal_map.relative(z, none)
        better = residual < best.residual
        return best._replace(
            z=_where(better, z, best.z), residual=jnp.where(better, residual, best.residual)
        )

    def polish(_, carry):
        z, best = carry
        system = active_system(normal_map.problem, normal_map.sizes, z)
        f = jax.tree.map(jnp.negative, normal_map(z, none))
        z = normal_map.moved(z, none + 1, system.solve(f, refinements=_REFINEMENTS))
        return z, closer(best, z)

    _, best = jax.lax.fori_loop(0, _POLISHING, polish, (z, best))
    system = active_system(normal_map.problem, normal_map.sizes, best.z)
    r, y = normal_map.pair(best.z, none)
    kernel = system.kernel_part(normal_map.balanced(ProxArguments(y, r)))
    shortest = normal_map.moved(best.z, none - 1, kernel)
    residual = normal_map.relative(shortest, none)
    feasible = residual <= tolerance
    sure = (normal_map.margin(shortest) > LEAST_MARGIN) | strict
    z = _where(feasible, shortest, best.z)
    return _Found(z, jnp.where(feasible, residual, best.residual), feasible & sure)


class _Path(NamedTuple):
    """Where the samples are on their paths."""

    z: ProxArguments
    t: Array
    recent: Array  # (memory, batch), residual norms at this t
    found: _Found
    finished: Array
    iterations: Array
    newton_steps: Array


def _damped_newton(normal_map: NormalMap, path: _Path) -> tuple[ProxArguments, Array, Array]:
    """One Newton step at each sample's t, as long as a search allows; its length and residual."""
    z, t = path.z, path.t
    system = active_system(normal_map.problem, normal_map.sizes, z, t)
    f = normal_map(z, t)
    direction = system.solve(jax.tree.map(jnp.negative, f))
    lengths = 0.5 ** jnp.arange(_LENGTHS, dtype=t.dtype)

    def residual_at(length: Array) -> Array:
        value = norm(normal_map(normal_map.moved(z, length * jnp.ones_like(t), direction), t))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    tried = jax.lax.map(residual_at, lengths)
    now = norm(f)
    reference = jnp.maximum(jnp.max(path.recent, axis=0), now)
    enough = tried <= (1 - _SUFFICIENT_DECREASE * lengths[:, None]) * reference
    chosen = jnp.where(jnp.any(enough, 0), jnp.argmax(enough, 0), jnp.argmin(tried, 0))
    length = jnp.where(jnp.isfinite(jnp.min(tried, 0)), lengths[chosen], 0.0)
    return normal_map.moved(z, length, direction), length, now


def _burst(normal_map: NormalMap, z: ProxArguments, t: Array) -> ProxArguments:
    """Chambolle-Pock iterations on the smoothed problem: they change many active sets at once."""
    tau, sigma, _ = normal_map.sizes
    K, x_tilde = dense_matrix(normal_map.problem.K), normal_map.x_tilde

    def body(_, carry):
        r, r_bar, y = carry
        z_D = y + sigma * ((x_tilde + r_bar) @ K.T)
        y = _smoothed(_prox_conjugate, normal_map.problem.F, z_D, sigma, t)
        new_r = _smoothed(_prox, normal_map.problem.G, r - tau * (y @ K), tau, t)
        return new_r, 2 * new_r - r, y

    r, y = normal_map.pair(z, t)
    r, _, y = jax.lax.fori_loop(0, _BURST, body, (r, r, y))
    return normal_map.arguments(r, y)


def _advance(normal_map: NormalMap, path: _Path, tolerance: float) -> _Path:
    """One round: a Newton step, then a jump where it has settled or a burst where it is stuck."""
    settled_below = float(jnp.finfo(path.t.dtype).eps) ** 0.6
    last = path.t <= _shrink(path.t.dtype)
    z, length, now = _damped_newton(normal_map, path)
    running = ~path.finished
    z = _where(running, z, path.z)
    settled = running & (normal_map.relative(z, path.t) <= settled_below)

    def jump(found: _Found) -> _Found:
        pair, strict = normal_map.pair(z, path.t), path.t <= _STRICT_SMOOTHING
        new = _jump(normal_map, pair, strict, tolerance)
        better = settled & (new.accepted | (new.residual < found.residual))
        return _Found(
            _where(better, new.z, found.z),
            jnp.where(better, new.residual, found.residual),
            jnp.where(better, new.accepted, found.accepted),
        )

    found = jax.lax.cond(jnp.any(settled), jump, lambda found: found, path.found)
    finished = path.finished | (settled & (found.accepted | last))
    stuck = running & ~settled & (length <= _SHORT)

    def burst(found: _Found, z: ProxArguments) -> tuple[_Found, ProxArguments]:
        return found, _where(stuck, _burst(normal_map, z, path.t), z)

    # What was found goes through as well, so that the two branches run one after the other: side by
    # side, their loops with LAPACK inside were seen to wait for each other for ever on the CPU.
    found, z = jax.lax.cond(jnp.any(stuck), burst, lambda *kept: kept, found, z)
    t = jnp.where(settled & ~finished, path.t / _SMOOTHING_FACTOR, path.t)
    recent = jnp.concatenate([path.recent[1:], now[None]])
    return _Path(
        z=z,
        t=t,
        recent=jnp.where(settled | stuck, -jnp.inf, recent),
        found=found,
        finished=finished,
        iterations=path.iterations + jnp.where(stuck, _BURST, 0),
        newton_steps=path.newton_steps + jnp.where(running, 1, 0),
    )


def solve_exactly(
    problem: LowerLevel,
    x_tilde: Float[Array, "batch n"],
    sizes: StepSizes,
    start: State,
    *,
    most: int,
) -> ExactPair:
    """The primal-dual pair of minimum norm, to rounding, by at most `most` Newton steps a sample.

    **Cost**: 200 Chambolle-Pock iterations and a few Newton steps for most samples (each about as
    long as 30 iterations at (m, n) = (128, 64)); where active rows are dependent, or in a linear
    programme, tens of them.

    **Source**: the normal map is Robinson's (1992); the path is Tikhonov's; the alternation with a
    first-order method follows what was measured on natural patches.
    """
    tolerance = default_tolerance(x_tilde.dtype)
    count = x_tilde.shape[0]

    def iterate(_, state: State) -> State:
        return step(problem, x_tilde, sizes, state)[0]

    state = jax.lax.fori_loop(0, _FIRST_BURST, iterate, start)
    normal_map = NormalMap(problem, x_tilde, sizes)
    z = normal_map.arguments(state.r, state.y)
    t = jnp.zeros(count, x_tilde.dtype)
    found = _jump(normal_map, (state.r, state.y), jnp.zeros(count, bool), tolerance)
    path = _Path(
        z=z,
        t=t + _FIRST_SMOOTHING,
        recent=jnp.full((_MEMORY, count), -jnp.inf, x_tilde.dtype),
        found=found,
        finished=found.accepted | ~jnp.isfinite(found.residual),
        iterations=jnp.full(count, _FIRST_BURST, jnp.int32),
        newton_steps=jnp.full(count, _POLISHING, jnp.int32),
    )

    def unfinished(path: _Path) -> Array:
        return jnp.any(~path.finished & (path.newton_steps < most))

    path = jax.lax.while_loop(unfinished, lambda p: _advance(normal_map, p, tolerance), path)
    system = active_system(problem, sizes, path.found.z)
    unique_P, unique_D = _uniqueness(system)
    return ExactPair(
        path.found.z,
        path.found.residual,
        unique_P,
        unique_D,
        system,
        path.iterations,
        path.newton_steps,
    )


def _uniqueness(system: ActiveSystem) -> tuple[Array, Array]:
    """Whether the kernel is empty on either side: a random vector would have a part in it."""
    key_P, key_D = jax.random.split(jax.random.key(0))
    like_P, like_D = system.D_P.values, system.D_D.values
    kernel_P, kernel_D = system.kernel_part(
        (
            jax.random.normal(key_P, like_P.shape, like_P.dtype),
            jax.random.normal(key_D, like_D.shape, like_D.dtype),
        )
    )
    most = 1e-3  # of a vector of size sqrt(n): far above rounding, far below what is typical
    return (
        jnp.max(jnp.abs(kernel_P), axis=-1) <= most,
        jnp.max(jnp.abs(kernel_D), axis=-1) <= most,
    )
