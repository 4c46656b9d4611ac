"""Operators on top of each other.

(lineax has sums and compositions of operators; its `PyTreeLinearOperator` is made of matrices.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.operators._base import AbstractOperator, cast_floats
from hypergrad.problem.operators.products import (
    Operator,
    apply,
    apply_transpose,
    as_operator,
    check_takes_vectors,
    matrix_of,
    operator_dtype,
    operator_shape,
)

__all__ = ["Stacked", "stack"]


class Stacked(AbstractOperator):
    """Several operators on the same vector, one response after the other.

        K x = (K_1 x, K_2 x, ...),    K^T y = K_1^T y_1 + K_2^T y_2 + ...

    All their float leaves can be learned (`trainable=lambda p: p.K.operators[0].filters`). Make one
    with `stack`.

    **Arguments**:

    - `operators`: matrices and lineax operators with the same number of columns and of one dtype.

    **Errors**: a `HypergradError` if there are none, or they do not fit together.

    **Cost**: that of all of them.

    **Caveat**: the norm is estimated by 65 products, whatever norms of the parts are known: the
    bound that these give, the root of the sum of their squares, may be too large by the root of
    their number.

    >>> import hypergrad as hg
    >>> K = Stacked((hg.operators.difference_operator((1, 3)), jnp.eye(3)))
    >>> print(K.mv(jnp.array([1.0, 2.0, 4.0])))
    [0. 0. 0. 1. 2. 0. 1. 2. 4.]
    """

    operators: tuple[Float[Array, "_ n"] | lx.AbstractLinearOperator, ...] = eqx.field(
        converter=lambda operators: _as_operators(operators)
    )

    def __check_init__(self) -> None:
        _check_fit(self.operators)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " m"]:
        return jnp.concatenate([apply(K, vector) for K in self.operators])

    def rmv(self, vector: Float[Array, " m"]) -> Float[Array, " n"]:
        """Return `K^T y`."""
        ends = np.cumsum([operator_shape(K)[0] for K in self.operators]).tolist()
        pieces = jnp.split(vector, ends[:-1])
        parts = [apply_transpose(K, y) for K, y in zip(self.operators, pieces, strict=True)]
        return sum(parts[1:], parts[0])

    def astype(self, dtype: Any) -> Stacked:
        return Stacked(cast_floats(self.operators, dtype))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((operator_shape(self.operators[0])[1],), self._dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        rows = sum(operator_shape(K)[0] for K in self.operators)
        return jax.ShapeDtypeStruct((rows,), self._dtype)

    @property
    def _dtype(self) -> jnp.dtype:
        return operator_dtype(self.operators[0])


def stack(*operators: Any) -> Float[Array, "m n"] | Stacked:
    """Stack operators on top of each other: matrices give a matrix, others a `Stacked`.

    **Arguments**: `operators` with the same number of columns, each an argument, or all in one
    list: matrices, filter banks, any `AbstractOperator` or lineax operator.

    **Returns**: the matrix of all rows, or an operator whose response is theirs, one after the
    other; `SeparableSum` takes a function for each.

    **Errors**: a `HypergradError` for what is no operator, and for operators that do not fit
    together.

    >>> import hypergrad as hg
    >>> stack([hg.operators.differences(3), hg.operators.dct(3)]).shape
    (5, 3)
    >>> K = stack(hg.operators.difference_operator((2, 3)), hg.operators.dct2((2, 3)))
    >>> hg.operators.operator_shape(K)
    (18, 6)
    """
    parts = _as_operators(_unpacked(operators))
    _check_fit(parts)
    matrices = [matrix for K in parts if (matrix := matrix_of(K)) is not None]
    return jnp.concatenate(matrices) if len(matrices) == len(parts) else Stacked(parts)


def _unpacked(operators: tuple[Any, ...]) -> Iterable[Any]:
    """Return the operators, which may all be in one sequence."""
    if len(operators) != 1 or isinstance(operators[0], lx.AbstractLinearOperator):
        return operators
    is_sequence = isinstance(operators[0], Iterable) and getattr(operators[0], "ndim", 3) == 3
    return operators[0] if is_sequence else operators


def _as_operators(operators: Iterable[Any]) -> tuple[Operator, ...]:
    return tuple(as_operator(K, f"operator {i} of a stack") for i, K in enumerate(operators))


def _check_fit(operators: Sequence[Array | lx.AbstractLinearOperator]) -> None:
    """Check that there are operators, on vectors of one length and of one dtype."""
    if not operators:
        raise HypergradError("a stack must have at least one operator; got none: pass some")
    for i, K in enumerate(operators):
        check_takes_vectors(f"operator {i} of a stack", K)
    columns = [operator_shape(K)[1] for K in operators]
    if len(set(columns)) > 1:
        raise HypergradError(
            f"all operators of a stack must have the same number of columns; got {columns}: build "
            "them for images or samples of one shape"
        )
    dtypes = [operator_dtype(K) for K in operators]
    if len(set(dtypes)) > 1:
        raise HypergradError(
            f"all operators of a stack must have one dtype; got {', '.join(map(str, dtypes))}: "
            "cast them by their astype"
        )
