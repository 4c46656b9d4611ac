"""Gradient descent whose gradients become more accurate by a fixed schedule."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_fraction, check_number
from hypergrad.chambolle_pock import State
from hypergrad.learning.methods.base import (
    AbstractUpperLevelMethod,
    Step,
    check_has_tolerance,
    lost_in_error,
)
from hypergrad.learning.methods.evaluations import Accuracy, Evaluations, Evaluator, tree_norm

# How the step follows the loss: the constants of the author's implementation.
_LONGER, _SHORTER = 1 / 0.95, 0.5


class _State(NamedTuple):
    """`gradient` and `loss` at the variables (before the first step there are none)."""

    step_size: Float[Array, ""]
    gradient: Any
    loss: Float[Array, ""]
    accuracy: Accuracy
    warm: State


class HOAG(AbstractUpperLevelMethod):
    """Descend along gradients of summable errors: both tolerances shrink by a factor per step.

        p[k+1] = p[k] - a[k] z[k],    tolerance[k] = tolerance factor^k

    The step a grows while the loss decreases by `||p[k+1] - p[k]||^2 / (2 a)`, up to the
    tolerances, and is halved where the loss increases; every step is taken. The first epoch
    evaluates the start.

    **Arguments**: `tolerance`, the first of both solves; `factor`, at most 1 (which keeps it);
    `first_step`, the length of the first step in the free variables.

    **Errors**: a `HypergradError` for a strategy without a tolerance.

    **Cost**: one hypergradient of all samples per epoch; their states are kept.

    **Caveat**: nothing guarantees descent. A run that is longer than its schedule needs accuracies
    that the descent does not; a shorter one follows gradients that may be wrong.

    **Source**: Pedregosa 2016, and the step sizes of the author's implementation.

    >>> import hypergrad as hg, numpy as np
    >>> x_true = np.cumsum(np.random.default_rng(0).normal(size=(8, 5)), axis=1)
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=hg.L1(0.5), G=hg.Quadratic(1.0))
    >>> history = hg.train(problem, (x_true + 0.1, x_true), method=hg.HOAG(), epochs=5,
    ...     strategy=hg.LimitFormula(hg.Tolerance()), solver=hg.ChambollePock(1000),
    ...     trainable=lambda p: p.F.weight, progress=False)
    >>> losses = history.column("train_loss")
    >>> bool(losses[-1] < losses[1])
    True
    """

    tolerance: float = eqx.field(static=True, default=1e-2)
    factor: float = eqx.field(static=True, default=0.9)
    first_step: float = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        check_fraction("tolerance", self.tolerance, "try 1e-2")
        check_fraction("factor", self.factor, "try 0.9", one_allowed=True)
        check_number("first_step", self.first_step)

    def check(self, evaluator: Evaluator) -> None:
        check_has_tolerance(self, evaluator)

    def init(self, free: Any, warm: State, finest: Accuracy) -> _State:
        start = jnp.asarray(self.tolerance, finest.tolerance.dtype)
        nothing = jax.tree.map(jnp.zeros_like, free)
        infinite = jnp.full_like(start, jnp.inf)
        return _State(jnp.zeros_like(start), nothing, infinite, Accuracy(start, start), warm)

    def step(self, evaluations: Evaluations, free: Any, state: _State) -> Step:
        free = jax.tree.map(lambda p, z: p - state.step_size * z, free, state.gradient)
        here = evaluations.gradient(free, state.accuracy, state.warm)
        norm, bound = float(tree_norm(here.gradient)), float(here.error)
        accuracy = state.accuracy.times(self.factor, self.factor, evaluations.finest)
        step_size = self._next_step(state, here.loss, norm)
        after = _State(step_size, here.gradient, here.loss, accuracy, here.state)
        step = Step(free, after, here, norm, bound, state.accuracy, float(state.step_size))
        if evaluations.is_finest(state.accuracy, here) and math.isfinite(bound):
            return step._replace(stopped=lost_in_error(norm, bound))
        return step

    def _next_step(self, state: _State, loss: Array, norm: float) -> Float[Array, ""]:
        """Return the step after this one, by how the loss has followed the last one."""
        if jnp.isinf(state.loss):
            return jnp.asarray(self.first_step / max(norm, 1e-300), loss.dtype)
        moved = state.step_size * tree_norm(state.gradient)
        slack = state.accuracy.tolerance * (1 + moved) * jnp.abs(loss)
        decreased = loss <= state.loss + slack - moved**2 / (2 * state.step_size)
        shorter = jnp.where(loss > state.loss, _SHORTER, 1.0)
        return state.step_size * jnp.where(decreased, _LONGER, shorter)
