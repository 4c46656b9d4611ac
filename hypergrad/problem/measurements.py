"""A data term on measurements whose operator has no closed resolvent: one more dual block."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions import AbstractFunction, IndicatorZero, SeparableSum
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import (
    AbstractOperator,
    apply,
    apply_transpose,
    operator_dtype,
    operator_shape,
)
from hypergrad.problem.operators._base import cast_floats
from hypergrad.problem.operators.products import as_operator, check_takes_vectors

__all__ = ["WithMeasurements", "with_measurements"]


class WithMeasurements(AbstractOperator):
    """`(x, b) -> (K x, A x - b)`, the operator of `with_measurements`.

    >>> K = WithMeasurements(jnp.array([[-1.0, 1.0]]), jnp.array([[2.0, 0.0]]))
    >>> print(K.mv(jnp.array([1.0, 4.0, 5.0])), K.rmv(jnp.array([1.0, 3.0])))
    [ 3. -3.] [ 5.  1. -3.]
    """

    K: Float[Array, "m n"] | lx.AbstractLinearOperator
    A: Float[Array, "p n"] | lx.AbstractLinearOperator

    def mv(self, vector: Float[Array, " n_and_p"]) -> Float[Array, " m_and_p"]:
        n = operator_shape(self.K)[1]
        x, b = vector[:n], vector[n:]
        return jnp.concatenate([apply(self.K, x), apply(self.A, x) - b])

    def rmv(self, vector: Float[Array, " m_and_p"]) -> Float[Array, " n_and_p"]:
        """Return `(K^T y + A^T u, -u)` of `(y, u)`."""
        m = operator_shape(self.K)[0]
        y, u = vector[:m], vector[m:]
        return jnp.concatenate([apply_transpose(self.K, y) + apply_transpose(self.A, u), -u])

    def astype(self, dtype: Any) -> WithMeasurements:
        return WithMeasurements(*cast_floats((self.K, self.A), dtype))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        (p, n) = operator_shape(self.A)
        return jax.ShapeDtypeStruct((n + p,), operator_dtype(self.K))

    def out_structure(self) -> jax.ShapeDtypeStruct:
        m, p = operator_shape(self.K)[0], operator_shape(self.A)[0]
        return jax.ShapeDtypeStruct((m + p,), operator_dtype(self.K))


def with_measurements(problem: LowerLevel, A: Any, D: AbstractFunction) -> LowerLevel:
    """Add a term on measurements b to a lower level, whatever the resolvent of A.

        argmin_x F(K x) + G(x - x_tilde) + D(A x - b)

    The measurements join the variable, and are held there: the lower level returned is one of
    `(x, b)`, with the operator `(x, b) -> (K x, A x - b)`, `F + D`, and `G` beside the indicator of
    {0}. It is an ordinary lower level, so every strategy, `Exact`, bounds and training take it;
    what differs by sample, b, is data. For an A with a closed resolvent (a mask, a periodic blur)
    `DataFidelity` needs fewer iterations.

    **Arguments**:

    - `problem`: K, F and G; `G=hg.Zero()` where there is no observation of x itself.
    - `A`: a matrix `(p, n)` or an operator, such as `hg.operators.Radon`.
    - `D`: a convex function on vectors of size p: `hg.Quadratic(1 / noise**2)` for Gaussian noise.

    **Returns**: a `LowerLevel` of vectors of size n + p. Give it `x_tilde` and b side by side,
    `jnp.concatenate([x_tilde, b], axis=-1)`, and the truth beside the same b; the first n entries
    of its `x` are the solution. Its parts are `K.K`, `K.A`, `F.parts` and `G.parts`.

    **Errors**: a `HypergradError` for an A that does not take vectors of size n, and a D that does
    not take its measurements.

    **Cost**: a product with A, one with `A^T`, and p more entries in each iteration.

    **Source**: the iteration of Chambolle & Pock (2011) on a stacked operator.

    >>> import hypergrad as hg
    >>> K, A = hg.operators.differences(3), jnp.array([[1.0, 1.0, 1.0]])
    >>> problem = hg.LowerLevel(K=K, F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> problem = with_measurements(problem, A, hg.Quadratic(100.0))  # the sum is 3, nearly
    >>> x = hg.solve(problem, jnp.array([0.0, 1.0, 1.0, 3.0]), strategy=hg.Exact()).x[:3]
    >>> f"{x.sum():.3f}"
    '2.997'
    """
    A = as_operator(A, "A")
    check_takes_vectors("A", A)
    (m, n), (p, columns) = operator_shape(problem.K), operator_shape(A)
    if columns != n:
        raise HypergradError(
            f"A must take vectors of the size of x, {n}; got {columns}: build it for the same "
            "image shape"
        )
    D.check_size(p)
    return LowerLevel(
        K=WithMeasurements(problem.K, A),
        F=SeparableSum((problem.F, D), sizes=(m, p)),
        G=SeparableSum((problem.G, IndicatorZero()), sizes=(n, p)),
    )
