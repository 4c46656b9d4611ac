"""Sums of functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from hypergrad._foundation.checks import check_counts, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions._base import (
    AbstractFunction,
    Scalar,
    Values,
    Vector,
    check_is_function,
)

__all__ = ["SeparableSum"]


def _as_tuple(values: Any) -> Any:
    """Turn an iterable into a tuple; `__check_init__` reports anything else."""
    return tuple(values) if isinstance(values, Iterable) else values


class SeparableSum(AbstractFunction):
    """`f(v) = sum_j parts_j(v_j)`, where `v` is cut into consecutive pieces of the given `sizes`.

    A constraint on `x` itself is a block of rows of `K` (the identity, say) with its part here.

    **Arguments**:

    - `parts`: a tuple or list of functions.
    - `sizes`: the number of coordinates of each.

    >>> import hypergrad as hg
    >>> print(SeparableSum([hg.L1(1.0), hg.Zero()], sizes=(1, 2))(jnp.array([-2.0, 5.0, 5.0])))
    2.0
    """

    parts: tuple[AbstractFunction, ...] = eqx.field(converter=_as_tuple)
    sizes: tuple[int, ...] = eqx.field(static=True, converter=_as_tuple)

    @property
    def separable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are separable (a class variable in other functions)."""
        return all(part.separable for part in self.parts)

    @property
    def homogeneous(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are homogeneous."""
        return all(part.homogeneous for part in self.parts)

    @property
    def indicator(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are indicators."""
        return all(part.indicator for part in self.parts)

    @property
    def smooth(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are smooth."""
        return all(part.smooth for part in self.parts)

    def __check_init__(self) -> None:
        if not isinstance(self.parts, tuple):
            raise HypergradError(
                f"SeparableSum.parts must be a tuple of functions; got {describe(self.parts)}: put "
                "it in brackets, as in [hg.L1(0.1), hg.Zero()]"
            )
        for part in self.parts:
            check_is_function("each part of a SeparableSum", part)
        check_counts("SeparableSum.sizes", self.sizes)
        if len(self.parts) != len(self.sizes) or not self.parts:
            raise HypergradError(
                "SeparableSum must have one size for each part and at least one part; got "
                f"{len(self.parts)} parts and {len(self.sizes)} sizes"
            )
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.check_size(size)

    def _split(self, v: Array) -> Iterator[tuple[AbstractFunction, Array]]:
        """Pair each part with its piece of `v`."""
        pieces = jnp.split(v, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        return zip(self.parts, pieces, strict=True)

    def _sum(self, values: Iterable[Values], v: Vector) -> Values:
        return sum(values, jnp.zeros(v.shape[:-1], v.dtype))

    def __call__(self, v: Vector) -> Values:
        return self._sum((f(piece) for f, piece in self._split(v)), v)

    def prox(self, z: Vector, step: Scalar) -> Vector:
        return jnp.concatenate([f.prox(piece, step) for f, piece in self._split(z)], axis=-1)

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        return jnp.concatenate(
            [f.prox_conjugate(piece, step) for f, piece in self._split(z)], axis=-1
        )

    def conjugate(self, y: Vector) -> Values:
        return self._sum((f.conjugate(piece) for f, piece in self._split(y)), y)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        return jnp.concatenate([f.margin(piece, step) for f, piece in self._split(z)], axis=-1)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        pieces = [f.piece(part, step) for f, part in self._split(z)]
        known = [piece for piece in pieces if piece is not None]
        return jnp.concatenate(known, axis=-1) if len(known) == len(pieces) else None

    def check_size(self, size: int) -> None:
        if sum(self.sizes) != size:
            raise HypergradError(
                f"SeparableSum.sizes must add up to {size}; got {self.sizes}, which add up to "
                f"{sum(self.sizes)}"
            )

    def _median_scale(self, name: str) -> Array | None:
        """Return the median over all coordinates whose scale is known."""
        known = [
            jnp.full(size, scale)
            for part, size in zip(self.parts, self.sizes, strict=True)
            if (scale := getattr(part, name)) is not None
        ]
        return jnp.median(jnp.concatenate(known)) if known else None

    @property
    def dual_scale(self) -> Array | None:
        return self._median_scale("dual_scale")

    @property
    def primal_scale(self) -> Array | None:
        return self._median_scale("primal_scale")

    def _known_to_all(self, name: str) -> Array | None:
        values = [getattr(part, name) for part in self.parts]
        known = [value for value in values if value is not None]
        return jnp.stack(known) if len(known) == len(values) else None

    @property
    def strong_convexity(self) -> Array | None:
        moduli = self._known_to_all("strong_convexity")
        return None if moduli is None else jnp.min(moduli)

    @property
    def smoothness(self) -> Array | None:
        constants = self._known_to_all("smoothness")
        return None if constants is None else jnp.max(constants)
