"""The random problem that sections measure on."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from hypergrad.problem import operators
from hypergrad.problem.functions import L1, Quadratic
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["random_problem"]


def random_problem(
    m: int, n: int, batch: int, dtype: Any
) -> tuple[LowerLevel, Float[Array, "batch n"], Float[Array, "batch n"]]:
    """Return the problem of a random K, `x_tilde` and `x_true`."""
    keys = jax.random.split(jax.random.key(0), 3)
    K = operators.random(m, n, key=keys[0]).astype(dtype)
    x_true = jax.random.normal(keys[1], (batch, n), dtype)
    x_tilde = x_true + 0.1 * jax.random.normal(keys[2], (batch, n), dtype)
    return LowerLevel(K=K, F=L1(0.15), G=Quadratic(1.0)), x_tilde, x_true
