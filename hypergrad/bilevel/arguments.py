"""The arguments of a call: losses, and checks that leave one dtype and one batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.arrays import native, refuse_masked
from hypergrad._foundation.checks import as_inexact, check_again, check_finite, describe
from hypergrad._foundation.compiled import shape_of
from hypergrad._foundation.errors import HypergradError
from hypergrad.chambolle_pock import ChambollePock, State
from hypergrad.problem.functions._base import positive_leaves
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies._base import AbstractStrategy

Data = Float[Array, "..."] | Float[np.ndarray, "..."]


# ---- losses

# A scalar for a whole batch, from x and x_true. Its value is never one of earlier numbers: the
# arrays and floats of a pytree (an equinox module, `jax.tree_util.Partial`) are arguments of the
# compiled program; numbers of other objects, functions and `functools.partial` are compiled in, and
# compared at each call. A lambda in a loop that closes over a number that changes is therefore a
# new program each time, and a module with that number is not. Not seen are numbers behind an
# attribute of a Python module, and those of a function that is jitted by itself (JAX's rule).
Loss = Callable[[Array, Array], Array]


def half_mean_squared_error(
    x: Float[Array, "*batch n"], x_true: Float[Array, "*batch n"]
) -> Float[Array, ""]:
    """`0.5 ||x - x_true||^2`, summed over the last axis and averaged over the batch.

    >>> print(half_mean_squared_error(jnp.ones((3, 4)), jnp.zeros((3, 4))))
    2.0
    """
    return 0.5 * jnp.mean(jnp.sum((x - x_true) ** 2, axis=-1))


class OnSamples(eqx.Module):
    """A loss with its full value, but whose gradient is that of the chosen samples alone."""

    loss: Loss
    chosen: Bool[Array, "*batch"]

    def __call__(self, x: Array, x_true: Array) -> Array:
        return self.loss(jnp.where(self.chosen[..., None], x, jax.lax.stop_gradient(x)), x_true)


# ---- one argument


def check_problem(problem: Any) -> None:
    """Check that it is a lower level, also after an update of its parameters."""
    if not isinstance(problem, LowerLevel):
        raise HypergradError(
            f"problem must be a hypergrad.LowerLevel; got {describe(problem)}: pass "
            "hg.LowerLevel(K=K, F=F, G=G)"
        )
    check_again("problem", problem)


def default_solver(solver: Any) -> ChambollePock:
    """Return the solver, checked, or the default one for None."""
    if solver is None:
        return ChambollePock()
    if not isinstance(solver, ChambollePock):
        raise HypergradError(
            f"solver must be a hypergrad.ChambollePock; got {describe(solver)}: pass for example "
            "hg.ChambollePock(iterations=100)"
        )
    check_again("solver", solver)
    return solver


def check_is_strategy(name: str, strategy: Any) -> None:
    """Check that it is a strategy."""
    if not isinstance(strategy, AbstractStrategy):
        by_name = f"hg.parse_strategy({strategy!r})"
        advice = by_name if isinstance(strategy, str) else "for example hg.Truncation(k=1)"
        raise HypergradError(
            f"{name} must be a hypergrad strategy; got {describe(strategy)}: use {advice}"
        )
    if not isinstance(getattr(strategy, "name", None), str):
        raise HypergradError(
            f"{name} must have a name for tables; got a {type(strategy).__name__} without one: "
            'write name: ClassVar[str] = "mine" in its class'
        )


def check_compatible(strategy: Any, solver: ChambollePock) -> None:
    """Check that it is a strategy that works with the solver."""
    check_is_strategy("strategy", strategy)
    strategy.check_solver(solver)


def check_loss(loss: Any, x_true: Array) -> None:
    """Check that the loss is one number for the whole batch."""
    if loss is half_mean_squared_error:
        return
    if not callable(loss):
        raise HypergradError(
            f"loss must be a function loss(x, x_true); got {describe(loss)}: leave it out for half "
            "the mean squared error"
        )
    value = shape_of(loss, x_true, x_true)
    if not isinstance(value, jax.ShapeDtypeStruct):
        raise HypergradError(
            f"loss must return one number; got {describe(value)}: return its mean alone"
        )
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise HypergradError(
            f"loss must return one float for the whole batch; got shape {value.shape} of "
            f"{value.dtype} for x of shape {x_true.shape}: return the mean over the batch"
        )


# ---- all arguments


def prepare(
    problem: LowerLevel, x_tilde: Any, solver: ChambollePock | None, init: State | None
) -> tuple[LowerLevel, Array, ChambollePock, State | None]:
    """Check the arguments and cast them to one dtype."""
    check_problem(problem)
    solver = default_solver(solver)
    x_tilde = as_inexact(x_tilde, "x_tilde")
    if x_tilde.ndim == 0 or x_tilde.shape[-1] != problem.n:
        raise HypergradError(
            f"x_tilde must have shape (..., {problem.n}), the columns of K last; got "
            f"{x_tilde.shape}: reshape each sample to a vector"
        )
    if x_tilde.size == 0:
        raise HypergradError(f"x_tilde must hold at least one sample; got shape {x_tilde.shape}")
    check_finite("x_tilde", x_tilde)
    solver.check_step_sizes(problem)
    dtype = jnp.result_type(problem.dtype, x_tilde.dtype)
    if init is not None:
        _check_init(init, problem, x_tilde)
        init = jax.tree.map(native, init)
    problem = problem.astype(dtype)
    x_tilde, *others = cast_floats((x_tilde, solver, init), dtype)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(problem)):
        # A traced parameter out of range makes NaN of the data: then no status is good.
        traced = [leaf for leaf in positive_leaves(problem) if isinstance(leaf, Tracer)]
        valid = jnp.array([jnp.all(leaf >= 0) for leaf in traced])
        x_tilde = jnp.where(jnp.all(valid), x_tilde, jnp.nan)
    return problem, x_tilde, *others


def prepare_hypergradient(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    solver: ChambollePock | None,
    strategy: Any,
    loss: Any,
    init: State | None,
) -> tuple[LowerLevel, Array, Array, ChambollePock, State | None]:
    """Prepare the arguments of a hypergradient: see `prepare`; check strategy, truth and loss."""
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    check_compatible(strategy, solver)
    return problem, x_tilde, prepare_truth(x_true, x_tilde, loss), solver, init


def prepare_truth(x_true: Any, x_tilde: Array, loss: Any) -> Array:
    """Return `x_true` in the dtype of `x_tilde`; check its shape and the loss."""
    x_true = as_inexact(x_true, "x_true").astype(x_tilde.dtype)
    check_truth_shape(x_true.shape, x_tilde.shape)
    check_finite("x_true", x_true)
    check_loss(loss, x_true)
    return x_true


def check_samples(shape: tuple[int, ...], n: int) -> None:
    """Check that each row is a sample."""
    if len(shape) != 2 or shape[1] != n:
        raise HypergradError(
            f"x_tilde must have shape (samples, {n}); got {shape}: one sample is x_tilde[None]"
        )
    if shape[0] == 0:
        raise HypergradError("x_tilde must hold at least one sample; got none")


def check_truth_shape(x_true: tuple[int, ...], x_tilde: tuple[int, ...]) -> None:
    """Check that the truth has the shape of the observations."""
    if x_true != x_tilde:
        raise HypergradError(
            f"x_true must have the shape of x_tilde, {x_tilde}; got {x_true}: one true sample for "
            "each observed one"
        )


def _check_init(init: Any, problem: LowerLevel, x_tilde: Array) -> None:
    if not isinstance(init, State):
        raise HypergradError(
            f"init must be a hypergrad.State; got {describe(init)}: pass the .state of a solution "
            "or of a hypergradient"
        )
    batch = x_tilde.shape[:-1]
    primal, dual = (*batch, problem.n), (*batch, problem.m)
    expected, names = (primal, primal, dual), "r, r_bar, y"
    if init.adjoint is not None:
        expected, names = (*expected, primal, dual), f"{names}, Delta_P, Delta_D"
    for leaf in jax.tree.leaves(init):
        refuse_masked(leaf, "init")
    got = tuple(leaf.shape for leaf in jax.tree.leaves(init))
    if got != expected:
        raise HypergradError(
            f"init must have shapes {expected} ({names}); got {got}: use the state of a solve of "
            "the same batch"
        )


def flatten_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """Merge the leading axes into one."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(batch) :]), tree)


def restore_batch(tree: Any, batch: tuple[int, ...]) -> Any:
    """Restore the leading axes."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), tree)
