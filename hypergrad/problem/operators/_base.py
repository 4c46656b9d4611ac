"""What an operator of one's own is: its two products, and what goes in and comes out."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import cast_leaves, check_counts
from hypergrad._foundation.errors import HypergradError

__all__ = ["AbstractOperator", "TransposedOperator", "check_image_shape"]


class AbstractOperator(lx.AbstractLinearOperator):
    """A real linear operator by its products `K v` and `K^T y`: what one subclasses to add one.

    A subclass gives `mv`, `rmv`, `in_structure` and `out_structure` (vectors, of one dtype), and
    `norm_bound` where its norm is known (and `astype` where a dtype is a static field). Its float
    leaves are what can be learned; products have to be differentiable in them. (A
    `lineax.FunctionLinearOperator` needs less, but its transpose is derived by JAX, and its dtype
    and its one device are fixed.)

    **Cost**: that of the products; `as_matrix` builds `m n` numbers, by n of them.

    >>> import equinox as eqx
    >>> class Scaled(AbstractOperator):
    ...     scale: jax.Array
    ...     size: int = eqx.field(static=True)
    ...     def mv(self, vector): return self.scale * vector
    ...     def rmv(self, vector): return self.scale * vector
    ...     def in_structure(self): return jax.ShapeDtypeStruct((self.size,), self.scale.dtype)
    ...     def out_structure(self): return self.in_structure()
    >>> print(Scaled(jnp.array(2.0), 3).as_matrix()[0])
    [2. 0. 0.]
    """

    @abc.abstractmethod
    def rmv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        """`K^T y`."""

    def norm_bound(self) -> Float[Array, ""] | None:
        """An upper bound of `||K||_2` that is no guess, near to it; None where there is none."""
        return None

    def astype(self, dtype: Any) -> AbstractOperator:
        """The same operator in another dtype: its float leaves are cast."""
        return cast_leaves(self, dtype)

    def as_matrix(self) -> Float[Array, "m n"]:
        unit = jnp.eye(self.in_size(), dtype=self.in_structure().dtype)
        return jax.vmap(self.mv, out_axes=1)(unit)

    def transpose(self) -> TransposedOperator:
        return TransposedOperator(self)


class TransposedOperator(lx.AbstractLinearOperator):
    """`K^T` of an operator: as fast as `K`."""

    operator: AbstractOperator

    def mv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        return self.operator.rmv(vector)

    def as_matrix(self) -> Float[Array, "n m"]:
        return self.operator.as_matrix().T

    def transpose(self) -> AbstractOperator:
        return self.operator

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.operator.out_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.operator.in_structure()


def check_image_shape(image_shape: Any) -> None:
    """Refuse what is not `(height, width)`."""
    check_counts("image_shape", image_shape)
    if len(image_shape) != 2:
        raise HypergradError(
            f"image_shape must be (height, width); got {image_shape}: a batch is leading axes of "
            "x_tilde"
        )


# What lineax asks an operator of: nothing is known of these but that they are real and linear.
_KNOWN_TO_BE = (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
)
for _operator in (AbstractOperator, TransposedOperator):
    for _property in _KNOWN_TO_BE:
        _property.register(_operator)(lambda operator: False)
    lx.linearise.register(_operator)(lambda operator: operator)
    lx.conj.register(_operator)(lambda operator: operator)
    lx.materialise.register(_operator)(
        lambda operator: lx.MatrixLinearOperator(operator.as_matrix())
    )
    lx.diagonal.register(_operator)(lambda operator: jnp.diag(operator.as_matrix()))
    lx.tridiagonal.register(_operator)(
        lambda operator: lx.tridiagonal(lx.MatrixLinearOperator(operator.as_matrix()))
    )
