"""What a function is: a value and a prox."""

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
    """A closed proper convex function with a prox: what one subclasses to add one.

    A subclass gives its value and its `prox`. Five more methods have a default that a subclass may
    replace: `prox_conjugate` (Moreau), `conjugate` (unknown: NaN, so no primal-dual gap), `margin`
    (unknown: NaN), `piece` (not piecewise affine: None, so no error bound) and `check_size` (any
    size). Array fields are what one can learn.

    Class variables: `positive` names the fields that are positive (they are learned in the log, and
    refused below 0; a subclass that cannot take 0 refuses it in its `__check_init__`),
    `homogeneous` says that `f(c v) = c f(v)` for `c > 0`, `indicator` that `f` is 0 or infinite,
    `separable` that `f` is a sum over coordinates, so that the Jacobian of its prox is diagonal
    (said of one that is not, it gives wrong Newton steps; not said, only slow ones), `smooth` that
    `f` is differentiable everywhere, with a gradient that does not jump.

    Example: `f(v) = -weight * sum_i log(v_i)`, from its value and its prox alone.

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
        """The value `f(v)`, `(..., size)` to `(...)`."""

    @abc.abstractmethod
    def prox(self, z: Vector, step: Scalar) -> Vector:
        """`argmin_v step * f(v) + ||v - z||^2 / 2`, for `step > 0`."""

    def prox_conjugate(self, z: Vector, step: Scalar) -> Vector:
        """`prox_{step f*}(z)`, by Moreau's identity."""
        return z - step * self.prox(z / step, 1 / step)

    def conjugate(self, y: Vector) -> Values:
        """`f*(y) = sup_v <y, v> - f(v)`, or NaN where no formula is known."""
        return jnp.full(y.shape[:-1], jnp.nan, y.dtype)

    def margin(self, z: Vector, step: Scalar) -> Inexact[Array, "*batch kinks"]:
        """Distance of `z` from the kinks of `prox_{step f}`, relative to the size of the kink.

        One number for each coordinate (or group); infinity where the prox is smooth, NaN where it
        is not known. Being relative, `margin(z/s, 1/s)` is that of `prox_{s f*}` at `z`. (A kink
        at 0 has no size: there the distance itself.)
        """
        return jnp.full((*z.shape[:-1], 1), jnp.nan, z.dtype)

    def piece(self, z: Vector, step: Scalar) -> Int[Array, "*batch size"] | None:
        """In which affine piece of `prox_{step f}` each coordinate of `z` lies, counted upwards.

        The pieces are intervals: two points of the same piece have no kink between them, of
        neighbouring pieces one. None where `f` is not separable or its prox not piecewise affine
        (the default). `piece(z/s, 1/s)` is that of `prox_{s f*}` at `z`. A parameter that is a
        vector has one entry a coordinate.
        """
        return None

    def check_size(self, size: int) -> None:
        """Raise a `ValueError` if the function does not act on vectors of this size."""

    @property
    def dual_scale(self) -> Array | None:
        """The size of the subgradients where it is known (the weight of a norm)."""
        return None

    @property
    def primal_scale(self) -> Array | None:
        """The size of the arguments where it is known (the radius of a box)."""
        return None

    @property
    def strong_convexity(self) -> Array | None:
        """The largest `mu` known for which `f - (mu / 2) ||.||^2` is convex."""
        return None

    @property
    def smoothness(self) -> Array | None:
        """The smallest `L` known for which the gradient of `f` is L-Lipschitz."""
        return None


def check_is_function(name: str, f: Any) -> None:
    """Refuse what is no convex function of this package or of a subclass."""
    if not isinstance(f, AbstractFunction):
        raise HypergradError(
            f"{name} must be a hypergrad function; got {type(f).__name__}: use one from "
            "hypergrad.functions or subclass hypergrad.AbstractFunction"
        )
    # A field that is misspelt there would be learned as any other, and become negative.
    unknown = set(f.positive) - {field.name for field in dataclasses.fields(f)}
    if unknown:
        raise HypergradError(
            f"{type(f).__name__}.positive must name fields of it; got {', '.join(sorted(unknown))}"
            ", which are none: correct the spelling"
        )


def positive_leaves(tree: Any) -> Iterator[Any]:
    """The leaves that the functions in a pytree declare positive."""

    def is_inner(node: Any) -> bool:
        return isinstance(node, AbstractFunction) and node is not tree

    if isinstance(tree, AbstractFunction):
        for name in tree.positive:
            yield from jax.tree.leaves(getattr(tree, name))
    for node in filter(is_inner, jax.tree.leaves(tree, is_leaf=is_inner)):
        yield from positive_leaves(node)


# As functions of the function, too: what is differentiated in its parameters.


def prox(f: AbstractFunction, z: Vector, step: Scalar) -> Vector:
    """`prox_{step f}(z)`."""
    return f.prox(z, step)


def prox_conjugate(f: AbstractFunction, z: Vector, step: Scalar) -> Vector:
    """`prox_{step f*}(z)`."""
    return f.prox_conjugate(z, step)
