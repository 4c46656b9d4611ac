"""The data term of a linear inverse problem."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import check_positive, inexact
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions._base import AbstractFunction, Scalar, Values, Vector
from hypergrad.problem.functions._projections import check_one_number, indicator_of
from hypergrad.problem.operators.forward import AbstractForward, as_forward

__all__ = ["DataFidelity"]


class DataFidelity(AbstractFunction):
    """`f(r) = (weight / 2) ||A r||^2`, the G of a linear inverse problem.

    With `x_tilde = A^+ b` (`hypergrad.operators.pseudo_inverse`) the lower level is

        min_x F(K x) + (weight / 2) ||A x - b||^2,

    since `||A x - b||^2 = ||A (x - x_tilde)||^2 + constant`. The prox is the resolvent
    `(I + step weight A^T A)^{-1}`, in closed form in the basis of `A`.

    **Arguments**:

    - `A`: `Mask`, `Blur` or `FourierSampling` of `hypergrad.operators`, any `AbstractForward`, or
      a matrix `(p, n)`. Its float leaves (a blur kernel) can be learned.
    - `weight`: one number, at least 0; `1 / noise^2` makes it a likelihood. Defaults to 1.

    **Cost**: that of `A`: nothing to speak of for a mask, two FFTs per prox for the others, two
    products with the factors of a matrix.

    **Caveat**: where `A` has a kernel, `f` is not strongly convex, and K has to determine the rest:
    a kernel shared by K and A makes the solution ambiguous.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> A = hg.operators.Mask(jnp.array([1, 0, 1]))
    >>> print(DataFidelity(A, weight=3.0).prox(jnp.array([4.0, 4.0, 8.0]), 1.0))
    [1. 4. 2.]
    """

    A: AbstractForward = eqx.field(converter=as_forward)
    weight: Float[Array, ""] = eqx.field(converter=inexact("DataFidelity.weight"), default=1.0)
    positive: ClassVar[tuple[str, ...]] = ("weight",)
    smooth: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_one_number(self, "weight")
        check_positive(self, "weight", zero_allowed=True)

    @property
    def separable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.A.separable

    def __call__(self, v: Vector) -> Values:
        normal = self.A.filter(v, lambda gains: gains)
        return self.weight / 2 * jnp.sum(v * normal, axis=-1)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        c = step * self.weight
        return z - self.A.filter(z, lambda gains: c * gains / (1 + c * gains))

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        # As step -> 0, Moreau's z - step prox(z / step) would be a difference of nearly equal ones.
        return self.A.filter(z, lambda gains: gains * self.weight / (step + gains * self.weight))

    def conjugate(self, y: Vector) -> Values:
        measured = self.A.filter(y, lambda gains: self._has_curvature(gains).astype(y.dtype))
        inverse = self.A.filter(y, self._inverse)
        size = jnp.max(jnp.abs(y), axis=-1, keepdims=True)
        outside = indicator_of(jnp.abs(y - measured), self.A.size * size)
        return jnp.sum(y * inverse, axis=-1) / 2 + outside

    def _has_curvature(self, gains: Array) -> Array:
        return self.A.is_measured(gains) & (self.weight * gains > 0)

    def _inverse(self, gains: Array) -> Array:
        curved = self._has_curvature(gains)
        return jnp.where(curved, 1 / jnp.where(curved, self.weight * gains, 1), 0)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        return jnp.zeros(z.shape, jnp.int32) if self.separable else None

    def check_size(self, size: int) -> None:
        if self.A.size != size:
            raise HypergradError(
                f"DataFidelity.A must act on vectors of length {size}; got a "
                f"{type(self.A).__name__} for length {self.A.size}: give both the same image shape"
            )

    @property
    def smoothness(self) -> Array | None:
        return self.weight * jnp.max(self.A.gains(self.weight.dtype))
