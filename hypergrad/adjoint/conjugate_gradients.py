"""The limit system with the primal eliminated: conjugate gradients on what remains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypergrad._checks import check_count
from hypergrad._samples import where
from hypergrad.adjoint.delta_solves import AbstractLinearSolve
from hypergrad.adjoint.limit_system import LimitSystem
from hypergrad.adjoint.linear_solves import Unknowns, positive
from hypergrad.operators import apply, apply_transpose

__all__ = ["ConjugateGradients"]


class ConjugateGradients(AbstractLinearSolve):
    """The limit system by conjugate gradients on its dual half, all samples at once, matrix-free.

    Where G is separable and strongly convex, `I - D_P` can be divided by, and with
    `V = D_P (I - D_P)^-1`, `s = sqrt(tau sigma)` what remains of either the system or its
    transpose is

        A w = c,    A = (I - D_D) + s^2 K V K^T D_D,

    symmetric and not negative in the inner product `<u, D_D v>`. Started from zero it finds the
    solution of minimum norm where A is singular. 2 products with K a step, half of those of
    `LeastSquares`, and as many steps as the root of its condition number would take.

    **Arguments**: `most`, steps at the most (by default `4 (m + n)`).

    **Errors**: a `ValueError` where G is not known to be separable and strongly convex.

    **Source**: Hestenes & Stiefel 1952.

    >>> ConjugateGradients().label
    'cg'
    """

    most: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.most is not None:
            check_count("most", self.most)

    @property
    def label(self) -> str:
        return "cg" if self.most is None else f"cg={self.most}"

    @property
    def products_a_step(self) -> int:
        return 2

    def solve(
        self, system: LimitSystem, right: Unknowns, *, transposed: bool
    ) -> tuple[Unknowns, Array, Array]:
        reduced, (f_P, f_D) = _Reduced.of(system), right
        most = 4 * sum(system.problem.shape) if self.most is None else self.most
        if transposed:
            c = f_D + reduced.s * reduced.K(reduced.V * f_P)
            D_b, steps, used_up = _conjugate_gradients(reduced, c, most)
            b = D_b + c - reduced.normal(D_b)
            return (reduced.divided * (f_P - reduced.s * reduced.KT(D_b)), b), steps, used_up
        # With d = f_D + D_D w the part of f_D that D_D does not see comes in as well.
        c = f_D - reduced.normal(f_D) - reduced.s * reduced.K(reduced.divided * f_P)
        D_w, steps, used_up = _conjugate_gradients(reduced, c, most)
        d = f_D + D_w
        p = reduced.V * (reduced.s * reduced.KT(d)) + reduced.divided * f_P
        return (p, d), steps, used_up


class _Reduced(NamedTuple):
    """The pieces of what remains."""

    K: Callable[[Array], Array]
    KT: Callable[[Array], Array]
    D_D: Callable[[Array], Array]
    s: Array
    V: Array
    divided: Array  # (I - D_P)^-1

    @classmethod
    def of(cls, system: LimitSystem) -> _Reduced:
        problem, (tau, sigma, _) = system.problem, system.sizes
        if not problem.G.separable or problem.G.strong_convexity is None:
            raise ValueError(
                "ConjugateGradients must have a G that is separable and strongly convex; got "
                f"{type(problem.G).__name__}: use the default of LimitFormula"
            )
        D_P = system.D_P(jnp.ones_like(system.z.z_P))
        return cls(
            K=lambda v: apply(problem.K, v),
            KT=lambda y: apply_transpose(problem.K, y),
            D_D=system.D_D,
            s=jnp.sqrt(tau * sigma),
            V=D_P / (1 - D_P),
            divided=1 / (1 - D_P),
        )

    def normal(self, v: Array) -> Array:
        """`s^2 K V K^T v`."""
        return self.s**2 * self.K(self.V * self.KT(v))


def _conjugate_gradients(reduced: _Reduced, c: Array, most: int) -> tuple[Array, Array, Array]:
    """`D_D w` of `A w = c`; the steps, and where they were used up, a sample.

    In exact arithmetic only `D_D r` and `D_D p` are ever needed of the residual and the direction;
    r itself comes along, so that one application of D_D is enough.
    """
    rtol = 4 * float(jnp.finfo(c.dtype).eps)

    def unfinished(carry: Any):
        *_, running, steps = carry
        return jnp.any(running) & jnp.all(steps < most)

    def body(carry: Any):
        D_w, r, p, D_p, size, running, steps = carry
        A_p = p - D_p + reduced.normal(D_p)
        curvature = jnp.sum(A_p * D_p, axis=-1)
        length = jnp.where(running & (curvature > 0), size / positive(curvature), 0.0)[:, None]
        D_w, r = D_w + length * D_p, r - length * A_p
        D_r = reduced.D_D(r)
        new_size = jnp.sum(r * D_r, axis=-1)
        share = (new_size / positive(size))[:, None]
        p, D_p = where(running, (r + share * p, D_r + share * D_p), (p, D_p))
        steps = jnp.where(running, steps + 1, steps)
        left = running & (new_size > rtol**2 * first) & (curvature > 0)
        return D_w, r, p, D_p, jnp.where(running, new_size, size), left, steps

    D_c = reduced.D_D(c)
    first = jnp.sum(c * D_c, axis=-1)
    nothing = jnp.zeros(first.shape, jnp.int32)
    carry = (jnp.zeros_like(c), c, c, D_c, first, first > 0, nothing)
    D_w, *_, running, steps = jax.lax.while_loop(unfinished, body, carry)
    return D_w, steps, running
