"""The base class of custom operators: two products, and the structure of their vectors."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import cast_leaves, check_counts
from hypergrad._foundation.errors import HypergradError

__all__ = ["AbstractOperator", "TransposedOperator", "cast_floats", "check_image_shape"]


class AbstractOperator(lx.AbstractLinearOperator):
    """A real linear operator by its products `K v` and `K^T y`; subclass it to add one.

    A subclass defines `mv`, `rmv`, `in_structure` and `out_structure` (vectors of one dtype),
    `norm_bound` where its norm is known, and `astype` where a dtype is a static field. Its float
    leaves can be learned; its products have to be differentiable in them. (A
    `lineax.FunctionLinearOperator` needs less, but JAX derives its transpose, and it is tied to one
    dtype and one device.)

    **Cost**: that of the products; `as_matrix` takes n of them and stores `m n` numbers.

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
        """Return `K^T y`."""

    def norm_bound(self) -> Float[Array, ""] | None:
        """Return a proved upper bound close to `||K||_2`; None (the default) if none is known."""
        return None

    def astype(self, dtype: Any) -> AbstractOperator:
        """Return the operator with its float leaves cast to another dtype."""
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


def cast_floats(tree: Any, dtype: Any) -> Any:
    """Cast float leaves to a dtype; operators are cast by their `astype`."""

    def is_operator(node: Any) -> bool:
        return isinstance(node, AbstractOperator)

    def cast(node: Any) -> Any:
        return node.astype(dtype) if is_operator(node) else cast_leaves(node, dtype)

    return jax.tree.map(cast, tree, is_leaf=is_operator)


def check_image_shape(image_shape: Any) -> None:
    """Check that a shape is `(height, width)`."""
    check_counts("image_shape", image_shape)
    if len(image_shape) != 2:
        raise HypergradError(
            f"image_shape must be (height, width); got {image_shape}: a batch is leading axes of "
            "x_tilde"
        )


# The properties of an operator that lineax asks for.
_PROPERTIES = (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
)


def _no(operator: lx.AbstractLinearOperator) -> bool:
    """Claim no property: lineax then takes the general way."""
    return False


def _itself(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """Return the operator, which is linear and real already."""
    return operator


def _matrix(operator: lx.AbstractLinearOperator) -> lx.MatrixLinearOperator:
    return lx.MatrixLinearOperator(operator.as_matrix())


def _diagonal(operator: lx.AbstractLinearOperator) -> Array:
    return jnp.diag(operator.as_matrix())


def _tridiagonal(operator: lx.AbstractLinearOperator) -> tuple[Array, Array, Array]:
    return lx.tridiagonal(_matrix(operator))


def _register_with_lineax(operator: type[lx.AbstractLinearOperator]) -> None:
    """Tell lineax's functions what to do with a class of operators."""
    for is_property in _PROPERTIES:
        is_property.register(operator)(_no)
    lx.linearise.register(operator)(_itself)
    lx.conj.register(operator)(_itself)
    lx.materialise.register(operator)(_matrix)
    lx.diagonal.register(operator)(_diagonal)
    lx.tridiagonal.register(operator)(_tridiagonal)


_register_with_lineax(AbstractOperator)
_register_with_lineax(TransposedOperator)
