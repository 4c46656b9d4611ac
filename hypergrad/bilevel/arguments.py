"""What a call is given: checked, of one dtype, its leading axes a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._checks import as_inexact, check_finite
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.lower_level import LowerLevel, cast_floats
from hypergrad.strategies._base import AbstractStrategy

__all__ = [
    "Data",
    "flatten_batch",
    "prepare",
    "prepare_hypergradient",
    "prepare_solve",
    "prepare_truth",
    "restore_batch",
]

Data = Float[Array, "..."] | Float[np.ndarray, "..."]


def check_strategy(strategy: Any, solver: ChambollePock) -> None:
    """Refuse what is no strategy, or does not go with the solver."""
    if not isinstance(strategy, AbstractStrategy):
        raise ValueError(
            f"strategy must be a hypergrad strategy; got {strategy!r}: use for example "
            "hg.Truncation(k=1)"
        )
    strategy.check(solver)


def prepare(
    problem: LowerLevel, x_tilde: Any, solver: ChambollePock, init: State | None
) -> tuple[LowerLevel, Array, ChambollePock, State | None]:
    """Check what can be checked, and cast everything to one dtype."""
    x_tilde = as_inexact(x_tilde)
    _check_batch("x_tilde", x_tilde, problem.n)
    solver.check_step_sizes(problem)
    dtype = jnp.result_type(problem.dtype, x_tilde.dtype)
    if init is not None:
        _check_init(init, problem, x_tilde)
    return cast_floats((problem, x_tilde, solver, init), dtype)


def prepare_solve(
    problem: LowerLevel,
    x_tilde: Any,
    solver: ChambollePock | None,
    strategy: Any,
    init: State | None,
) -> tuple[LowerLevel, Array, ChambollePock, State | None]:
    """`prepare`, with the usual solver where none is given, and a strategy that goes with it."""
    solver = ChambollePock() if solver is None else solver
    check_strategy(strategy, solver)
    return prepare(problem, x_tilde, solver, init)


def prepare_hypergradient(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    solver: ChambollePock | None,
    strategy: Any,
    init: State | None,
) -> tuple[LowerLevel, Array, Array, ChambollePock, State | None]:
    """`prepare_solve`, with the truth."""
    problem, x_tilde, solver, init = prepare_solve(problem, x_tilde, solver, strategy, init)
    return problem, x_tilde, prepare_truth(x_true, x_tilde), solver, init


def _check_batch(name: str, x: Array, n: int) -> None:
    if x.ndim == 0 or x.shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (..., {n}), the columns of K last; got {x.shape}: "
            "reshape each sample to a vector"
        )
    if x.size == 0:
        raise ValueError(f"{name} must hold at least one sample; got shape {x.shape}")
    check_finite(name, x)


def prepare_truth(x_true: Any, x_tilde: Array) -> Array:
    """`x_true` in the shape and the dtype of `x_tilde`."""
    x_true = jnp.asarray(x_true, x_tilde.dtype)
    if x_true.shape != x_tilde.shape:
        raise ValueError(
            f"x_true must have the shape of x_tilde, {x_tilde.shape}; got {x_true.shape}"
        )
    check_finite("x_true", x_true)
    return x_true


def _check_init(init: State, problem: LowerLevel, x_tilde: Array) -> None:
    batch = x_tilde.shape[:-1]
    primal, dual = (*batch, problem.n), (*batch, problem.m)
    expected, names = (primal, primal, dual), "r, r_bar, y"
    if init.adjoint is not None:
        expected, names = (*expected, primal, dual), f"{names}, Delta_P, Delta_D"
    got = tuple(leaf.shape for leaf in jax.tree.leaves(init))
    if got != expected:
        raise ValueError(
            f"init must have shapes {expected} ({names}); got {got}: use the state of a solve of "
            "the same batch"
        )


def flatten_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """Leading axes to one."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(batch) :]), tree)


def restore_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """One leading axis back to what it was."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), tree)
