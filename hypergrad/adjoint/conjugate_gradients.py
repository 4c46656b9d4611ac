"""Conjugate gradients on the limit system with the primal eliminated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import magnitude
from hypergrad.adjoint.adjoint_solves import CGLS, AbstractKrylovSolve
from hypergrad.adjoint.deltas import LimitSystem
from hypergrad.adjoint.linear_solves import Unknowns, positive
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import apply, apply_transpose


class ConjugateGradients(AbstractKrylovSolve):
    """The limit system by conjugate gradients on its dual half, all samples at once, matrix-free.

    Where G is separable and strongly convex, `I - D_P` can be divided by, and with
    `V = D_P (I - D_P)^-1`, `s = sqrt(tau sigma)` what remains of either the system or its
    transpose is

        A w = c,    A = (I - D_D) + s^2 K V K^T D_D,

    and `D_D A` is symmetric and not negative. Started from zero, conjugate gradients find the
    solution of minimum norm where it is singular. 2 products with K a step, half of those of
    `CGLS`, and as many steps as the root of its condition number would take.

    The transpose, which forward mode takes, is left to `CGLS`: where it is singular its
    right-hand side may lie outside the range, and then only a least-squares solution is the
    transpose of what reverse mode gives. So is a G whose weight turns out to be 0 somewhere, where
    there is nothing to divide by; a step of `CGLS` then counts as two.

    **Arguments**: `most`, the maximum number of steps (by default `4 (m + n)`).

    **Errors**: a `ValueError` where G is not known to be separable and strongly convex.

    **Source**: Hestenes & Stiefel 1952.

    >>> ConjugateGradients().label
    'cg'
    """

    most: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "cg"
    products_a_step: ClassVar[int] = 2

    def solve(
        self, system: LimitSystem, right: Unknowns, *, transposed: bool
    ) -> tuple[Unknowns, Array, Array]:
        problem = system.problem
        _check_reducible(problem)
        if transposed:
            return CGLS(self.most).solve(system, right, transposed=True)
        rtol, max_steps = 4 * float(jnp.finfo(right[0].dtype).eps), self.max_steps(problem)
        reduced = ReducedSystem.of(system)

        def on_dual() -> tuple[Unknowns, Array, Array]:
            return reduced.solve(right, transposed=False, rtol=rtol, max_steps=max_steps)

        def on_both() -> tuple[Unknowns, Array, Array]:
            unknowns, steps, used_up = CGLS(self.most).solve(system, right, transposed=False)
            return unknowns, 2 * steps, used_up  # of 4 products each

        return jax.lax.cond(reduced.exists, on_dual, on_both)


def _check_reducible(problem: LowerLevel) -> None:
    """Refuse a G whose `I - D_P` cannot be divided by."""
    if not problem.G.separable or problem.G.strong_convexity is None:
        raise HypergradError(
            "ConjugateGradients must have a G that is separable and strongly convex; got "
            f"{type(problem.G).__name__}: use the default of LimitFormula"
        )


class ReducedSystem(NamedTuple):
    """The limit system or its transpose with the primal eliminated."""

    K: Callable[[Array], Array]
    KT: Callable[[Array], Array]
    D_D: Callable[[Array], Array]
    s: Array
    V: Array
    divided: Array  # (I - D_P)^-1

    @property
    def exists(self) -> Bool[Array, ""]:
        """Return whether the primal can be eliminated: G has curvature in every coordinate."""
        return jnp.all(jnp.isfinite(self.divided))

    @classmethod
    def of(cls, system: LimitSystem) -> ReducedSystem:
        """Eliminate the primal, where `D_P` is diagonal and below 1."""
        problem, (tau, sigma, _) = system.problem, system.sizes
        D_P = system.D_P(jnp.ones_like(system.z.z_P))
        return cls(
            K=lambda v: apply(problem.K, v),
            KT=lambda y: apply_transpose(problem.K, y),
            D_D=system.D_D,
            s=jnp.sqrt(tau) * jnp.sqrt(sigma),
            V=D_P / (1 - D_P),
            divided=1 / (1 - D_P),
        )

    def normal(self, v: Array) -> Array:
        """`s^2 K V K^T v`."""
        return self.s**2 * self.K(self.V * self.KT(v))

    def solve(
        self,
        right: Unknowns,
        *,
        transposed: bool,
        rtol: float,
        max_steps: int,
        floor: Array | float = 0.0,
    ) -> tuple[Unknowns, Array, Array]:
        """Return both unknowns, the steps, and which samples used up `max_steps`.

        The residual falls below `rtol` times its first value, or below `floor`.
        """
        f_P, f_D = right
        if transposed:
            c = f_D + self.s * self.K(self.V * f_P)
            D_b, steps, used_up = _conjugate_gradients(self, c, rtol, floor, max_steps)
            b = D_b + c - self.normal(D_b)
            return (self.divided * (f_P - self.s * self.KT(D_b)), b), steps, used_up
        # With d = f_D + D_D w the part of f_D that D_D does not see comes in as well.
        c = f_D - self.normal(f_D) - self.s * self.K(self.divided * f_P)
        D_w, steps, used_up = _conjugate_gradients(self, c, rtol, floor, max_steps)
        d = f_D + D_w
        p = self.V * (self.s * self.KT(d)) + self.divided * f_P
        return (p, d), steps, used_up


def _conjugate_gradients(
    reduced: ReducedSystem, c: Array, rtol: float, floor: Array | float, max_steps: int
) -> tuple[Array, Array, Array]:
    """Return `D_D w` of `A w = c`, the steps, and which samples used them up.

    Solved as the system `D_D A w = D_D c`, which is symmetric: all vectors stay in the range of
    D_D. (The inner product `<u, D_D v>` would take one application of D_D less, but the part in the
    kernel of D_D would grow until its rounding dominates.)
    """

    def is_running(carry: Any):
        *_, running, steps = carry
        return jnp.any(running) & jnp.all(steps < max_steps)

    def body(carry: Any):
        D_w, r, p, size, running, steps = carry
        D_p = reduced.D_D(p)
        A_p = reduced.D_D(p - D_p + reduced.normal(D_p))
        curvature = jnp.sum(p * A_p, axis=-1)
        # Along the kernel there is none but of rounding, and no end.
        curved = curvature > eps * jnp.sum(p**2, axis=-1)
        length = jnp.where(running & curved, size / positive(curvature), 0.0)[:, None]
        D_w, r = D_w + length * D_p, r - length * A_p
        new_size = jnp.sum(r**2, axis=-1)
        p = jnp.where(running[:, None], r + (new_size / positive(size))[:, None] * p, p)
        steps = jnp.where(running, steps + 1, steps)
        unfinished = running & (new_size > enough) & curved
        return D_w, r, p, jnp.where(running, new_size, size), unfinished, steps

    eps, unit = float(jnp.finfo(c.dtype).eps), magnitude(c)  # squares of c must not vanish
    D_c, floor = reduced.D_D(c / unit[:, None]), floor / unit
    first = jnp.sum(D_c**2, axis=-1)
    enough = jnp.maximum(rtol**2 * first, floor**2)
    nothing = jnp.zeros(first.shape, jnp.int32)
    carry = (jnp.zeros_like(c), D_c, D_c, first, first > enough, nothing)
    D_w, *_, running, steps = jax.lax.while_loop(is_running, body, carry)
    return unit[:, None] * D_w, steps, running
