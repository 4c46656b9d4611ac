"""The base class of convex functions: a value and a prox."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from hypergrad._foundation.checks import check_positive
from hypergrad._foundation.errors import HypergradError

__all__ = ["AbstractFunction", "check_is_function", "positive_leaves", "prox", "prox_conjugate"]

Scalar = Float[Array, ""] | float
Vector = Float[Array, "*batch size"]
Values = Float[Array, "*batch"]


class AbstractFunction(eqx.Module):
    """A closed proper convex function with a prox; subclass it to add one.

    A subclass defines its value and its `prox`; array fields can be learned. Optional methods and
    their defaults:

    - `prox_conjugate`: by Moreau's identity.
    - `conjugate`: unknown (NaN), so that there is no primal-dual gap.
    - `margin`: unknown (NaN).
    - `piece`: not piecewise affine (None), so that there is no error bound.
    - `check_size`: accepts vectors of any size.

    Optional class variables:

    - `positive`: names of the positive fields. They are learned in the log; negative values raise
      an error (a subclass that cannot take 0 raises one in its `__check_init__`).
    - `homogeneous`: `f(c v) = c f(v)` for `c > 0`.
    - `indicator`: `f` takes the values 0 and infinity only.
    - `separable`: `f` is a sum over coordinates, so that its prox has a diagonal Jacobian. A false
      True gives wrong Newton steps, a false False only slower ones.
    - `smooth`: `f` has a continuous gradient everywhere.

    Example: `f(v) = -weight * sum_i log(v_i)`, by its value and its prox alone.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> class LogBarrier(hg.AbstractFunction):
    ...     weight: float = 1.0
    ...     def __call__(self, v):
    ...         return -self.weight * jnp.sum(jnp.log(v), axis=-1)
    ...     def prox(self, z, step):
    ...         return (z + jnp.sqrt(z**2 + 4 * step * self.weight)) / 2
    >>> f, z = LogBarrier(), jnp.array([0.0, 3.0])
    >>> print(f.prox(z, 1.0) + f.prox_conjugate(z, 1.0))  # Moreau: their sum is z
    [0. 3.]
    """

    positive: ClassVar[tuple[str, ...]] = ()
    homogeneous: ClassVar[bool] = False
    indicator: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    def __check_init__(self) -> None:
        for name in self.positive:
            check_positive(self, name, zero_allowed=True)

    @abc.abstractmethod
    def __call__(self, v: Vector) -> Values:
        """Return the value `f(v)`, `(..., size)` to `(...)`."""

    @abc.abstractmethod
    def prox(self, z: Vector, step: Scalar) -> Vector:
        """Return `argmin_v step * f(v) + ||v - z||^2 / 2`, for `step > 0`."""

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        """Return `prox_{step f*}(z)`, by Moreau's identity."""
        return z - step * self.prox(z / step, 1 / step)

    def conjugate(self, y: Vector) -> Values:
        """Return `f*(y) = sup_v <y, v> - f(v)`, or NaN where no formula is known."""
        return jnp.full(y.shape[:-1], jnp.nan, y.dtype)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        """Return the distance of `z` from the kinks of `prox_{step f}`, relative to their size.

        One number per coordinate (or group); infinity where the prox is smooth, NaN where it is
        unknown. Being relative, `margin(z/s, 1/s)` is that of `prox_{s f*}` at `z`. (A kink at 0
        has no size; its distance is absolute.)
        """
        return jnp.full((*z.shape[:-1], 1), jnp.nan, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        """Return the index of the affine piece of `prox_{step f}` that holds each coordinate.

        The pieces are intervals, counted upwards: no kink lies between two points of one piece, and
        one kink between points of neighbouring pieces. None (the default) where `f` is not
        separable or its prox not piecewise affine. `piece(z/s, 1/s)` is that of `prox_{s f*}` at
        `z`. A parameter that is an array has along its first axis one entry per coordinate or per
        block of coordinates, on which no other coordinate depends.
        """
        return None

    def check_size(self, size: int) -> None:
        """Check that the function acts on vectors of this size; raise a `ValueError` otherwise."""

    @property
    def dual_scale(self) -> Array | None:
        """The size of the subgradients (the weight of a norm); None if unknown."""
        return None

    @property
    def primal_scale(self) -> Array | None:
        """The size of the arguments (the radius of a box); None if unknown."""
        return None

    @property
    def strong_convexity(self) -> Array | None:
        """The largest known `mu` for which `f - (mu / 2) ||.||^2` is convex; None if unknown."""
        return None

    @property
    def smoothness(self) -> Array | None:
        """The smallest known `L` for which the gradient of `f` is L-Lipschitz; None if unknown."""
        return None


def check_is_function(name: str, f: Any) -> None:
    """Check that `f` is an `AbstractFunction` whose `positive` names fields that it has."""
    if not isinstance(f, AbstractFunction):
        raise HypergradError(
            f"{name} must be a hypergrad function; got {type(f).__name__}: use one from "
            "hypergrad.functions or subclass hypergrad.AbstractFunction"
        )
    # A misspelt field would be learned like any other, and could become negative.
    unknown = set(f.positive) - {field.name for field in dataclasses.fields(f)}
    if unknown:
        raise HypergradError(
            f"{type(f).__name__}.positive must name fields of it; got {', '.join(sorted(unknown))}"
            ", which are none: correct the spelling"
        )


def positive_leaves(tree: Any) -> Iterator[Any]:
    """Iterate over the leaves that the functions in a pytree declare positive."""

    def is_inner(node: Any) -> bool:
        return isinstance(node, AbstractFunction) and node is not tree

    if isinstance(tree, AbstractFunction):
        for name in tree.positive:
            yield from jax.tree.leaves(getattr(tree, name))
    for node in filter(is_inner, jax.tree.leaves(tree, is_leaf=is_inner)):
        yield from positive_leaves(node)


# Functions of `f`, to be differentiated in its parameters.


def prox(f: AbstractFunction, z: Vector, step: Scalar) -> Vector:
    """Return `prox_{step f}(z)`."""
    return f.prox(z, step)


def prox_conjugate(f: AbstractFunction, z: Vector, step: Scalar) -> Vector:
    """Return `prox_{step f*}(z)`."""
    return f.prox_conjugate(z, step)
