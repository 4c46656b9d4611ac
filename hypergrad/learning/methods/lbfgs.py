"""L-BFGS on all samples, with a backtracking line search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count, check_number
from hypergrad._foundation.samples import float_vector
from hypergrad.chambolle_pock import State
from hypergrad.learning.methods.base import AbstractUpperLevelMethod, Step, lost_in_error
from hypergrad.learning.methods.evaluations import (
    Accuracy,
    Evaluation,
    Evaluations,
    Evaluator,
    tree_norm,
)

if TYPE_CHECKING:
    import optax

# The direction is optax's, and the search optimistix's, which is made one evaluation at a time:
# optax's own searches, and optimistix's L-BFGS, evaluate within one program, which could neither
# start each solve where the last one ended nor count its iterations.


_LONGEST = 5.0  # a direction, in units of twice the last step


class _State(NamedTuple):
    """`gradient` and `loss` at the variables (before the first step there are none).

    `length`, of a step along the gradient where nothing is known of the curvature.
    """

    memory: Any
    gradient: Any
    loss: Float[Array, ""]
    error: Float[Array, ""]
    length: Float[Array, ""]
    warm: State


class LBFGS(AbstractUpperLevelMethod):
    """Minimise by L-BFGS: the method for a few hyperparameters, and for small sets of data.

        p[k+1] = p[k] - a H[k] z[k]

    `H` approximates the inverse Hessian from the last steps; a is halved from 1 until the loss has
    decreased sufficiently (Armijo's rule). Both solves go to the tolerance of the solver (by
    default that at which a solve counts as converged), since a gradient that is off misleads `H`.
    The first epoch evaluates the start.

    **Arguments**: `memory`, the number of steps that H remembers; `first_step`, the length of the
    first trial in the free variables; `max_backtracks`, after which the run stops.

    **Errors**: a `HypergradError` where `train` is given a `batch_size`.

    **Cost**: one hypergradient of all samples per evaluation, each from the state of the last;
    mostly one evaluation per epoch.

    **Caveat**: the decrease is that of computed losses. At a kink of the loss the search fails, and
    the run stops.

    **Source**: Liu & Nocedal 1989, by optax (direction) and optimistix (search).

    >>> import hypergrad as hg, jax, numpy as np
    >>> x_true = np.cumsum(np.random.default_rng(0).normal(size=(8, 5)), axis=1)
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=hg.L1(0.5), G=hg.Quadratic(1.0))
    >>> with jax.enable_x64(True):
    ...     history = hg.train(problem.astype(float), (x_true + 0.1, x_true), epochs=5,
    ...         strategy=hg.LimitFormula(), solver=hg.ChambollePock(1000), method=hg.LBFGS(),
    ...         trainable=lambda p: p.F.weight, progress=False)
    >>> losses = history.column("train_loss")
    >>> bool(losses[-1] < losses[1])
    True
    """

    memory: int = eqx.field(static=True, default=10)
    first_step: float = eqx.field(static=True, default=0.5)
    max_backtracks: int = eqx.field(static=True, default=20)

    def __check_init__(self) -> None:
        check_count("memory", self.memory)
        check_number("first_step", self.first_step)
        check_count("max_backtracks", self.max_backtracks)

    def check(self, evaluator: Evaluator) -> None:
        del evaluator  # every strategy will do

    def _direction(self) -> optax.GradientTransformation:
        import optax

        return optax.scale_by_lbfgs(self.memory)

    def init(self, free: Any, warm: State, finest: Accuracy) -> _State:
        nothing = jax.tree.map(jnp.zeros_like, free)
        unknown = jnp.full_like(finest.tolerance, jnp.inf)
        length = jnp.full_like(unknown, self.first_step)
        return _State(self._direction().init(free), nothing, unknown, unknown, length, warm)

    def step(self, evaluations: Evaluations, free: Any, state: _State) -> Step:
        # optax adds counts of two widths, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return self._step(evaluations, free, state)

    def _step(self, evaluations: Evaluations, free: Any, state: _State) -> Step:
        from optimistix import BacktrackingArmijo, FunctionInfo

        accuracy = evaluations.finest
        if jnp.isinf(state.loss):
            here = evaluations.gradient(free, accuracy, state.warm)
            after = state._replace(
                gradient=here.gradient, loss=here.loss, error=here.error, warm=here.state
            )
            return self._stepped(accuracy, free, after, here, 0.0)
        direction, memory = self._descent(free, state)
        search, at_start = BacktrackingArmijo(), FunctionInfo.EvalGrad(state.loss, state.gradient)
        search_state = search.init(free, at_start)
        step_size, warm, start = search_state.step_size, state.warm, jnp.array(False)
        slope = jnp.vdot(float_vector(direction), float_vector(state.gradient))
        is_rounding = slope <= float(jnp.finfo(slope.dtype).eps) * jnp.abs(state.loss)
        for backtracks in range(0 if is_rounding else self.max_backtracks + 1):
            trial = jax.tree.map(lambda p, d, a=step_size: p - a * d, free, direction)
            there = evaluations.gradient(trial, accuracy, warm)
            tried, info = step_size, FunctionInfo.Eval(there.loss)
            step_size, is_accepted, _, search_state = search.step(
                start, free, trial, at_start, info, search_state
            )
            if is_accepted:
                length = 2 * tried * tree_norm(direction)
                after = _State(memory, there.gradient, there.loss, there.error, length, there.state)
                step = self._stepped(accuracy, trial, after, there, float(tried))
                return step._replace(backtracks=backtracks)
        here = evaluations.loss(free, accuracy, state.warm)
        return self._stepped(accuracy, free, state, here, 0.0)._replace(
            backtracks=0 if is_rounding else self.max_backtracks,
            stopped="no step decreases the computed loss",
        )

    def _descent(self, free: Any, state: _State) -> tuple[Any, Any]:
        """Return a direction of descent and the new memory.

        The memory is emptied where the loss is concave along the last step, and with nothing in it
        the direction is the gradient, as long as twice the last step. A loss that is nearly linear
        would send it anywhere: no direction is longer than ten times the last step.
        """
        transform, memory = self._direction(), state.memory
        moved = float_vector(free) - float_vector(memory.params)
        turned = float_vector(state.gradient) - float_vector(memory.updates)
        is_convex = memory.count > 0 and jnp.vdot(moved, turned) > 0
        memory = memory if is_convex else transform.init(free)
        direction, memory = transform.update(state.gradient, memory, free)
        longest = _LONGEST * state.length if is_convex else state.length
        size = jnp.maximum(tree_norm(direction), jnp.finfo(moved.dtype).tiny)
        scale = jnp.minimum(1.0, longest / size) if is_convex else longest / size
        return jax.tree.map(lambda d: scale * d, direction), memory

    def _stepped(
        self, accuracy: Accuracy, free: Any, state: _State, at: Evaluation, step_size: float
    ) -> Step:
        norm, bound = float(tree_norm(state.gradient)), float(state.error)
        step = Step(free, state, at, norm, bound, accuracy, step_size)
        return step._replace(stopped=lost_in_error(norm, bound) if math.isfinite(bound) else None)
