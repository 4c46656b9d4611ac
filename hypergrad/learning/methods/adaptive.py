"""Descent with inexact gradients and losses, as exact as the descent needs them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count, check_fraction, check_number
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import float_vector
from hypergrad.chambolle_pock import State
from hypergrad.learning.methods.base import (
    AbstractUpperLevelMethod,
    Step,
    check_has_tolerance,
    lost_in_error,
)
from hypergrad.learning.methods.evaluations import (
    Accuracy,
    Evaluation,
    Evaluations,
    Evaluator,
    tree_norm,
)

# Deviations from Salehi, Mukherjee, Roberts & Ehrhardt (arXiv 2308.10098):
#
# 1. A trial is accepted, refused or undecided. There, a trial that is not accepted shortens the
#    step, and both accuracies are raised after a number of them. Here the bounds tell whether the
#    true loss can still have decreased enough: only then are the solves continued, at the same
#    step; where it cannot, the step is shortened at the same accuracy.
# 2. Losses are bounded by the distance from the solution, `(||x - x_true|| -+ d)^2 / 2`, and not by
#    a Taylor expansion with a Lipschitz constant of their gradient.
# 3. The first trial of a step is the step of Barzilai & Borwein 1988, within a factor of the last
#    step; there, it is the last step times a constant. The rule of acceptance is the same.
# 4. The accuracies are relative tolerances of both solves, and each sample stops by itself.

_SHORTER, _SHORTEST = 0.5, 0.1  # the next trial after a refused one
_LONGEST = 10.0  # a first trial, in units of the last step
_MORE_ACCURATE = 0.1  # tolerances where the bounds do not suffice; if they tell by how much,
_LEAST, _MOST, _SPARE = 0.5, 1e-3, 0.7  # by that and a little more, within a range
_NARROW = 0.25  # bounds so much narrower than those of the trial are not the reason
_RELAXED = 10.0  # tolerances after an accepted step, at most


class _State(NamedTuple):
    """`free`, `gradient`: of the step before (the first one has a `step_size` of 0)."""

    step_size: Float[Array, ""]
    free: Any
    gradient: Any
    accuracy: Accuracy
    warm: State


class AdaptiveInexactDescent(AbstractUpperLevelMethod):
    """Descend with a guarantee, to as little accuracy as it needs (MAID).

    A gradient z, known to an error e, is followed if `e <= (1 - eta) ||z||`. A step from p to
    `p - a z` is accepted if the bounds on the loss show that

        upper(p - a z)  <=  lower(p) - decrease a ||z||^2,

    so that the true loss decreases by at least that. Where the bounds leave it open both solves
    continue, to a tenth of the tolerance or less; where the true loss cannot have decreased so
    much, the step is shortened. After an accepted step both tolerances relax, by what the bounds
    had to spare.

    **Arguments**: `eta`, between 0 and 1; `decrease`, below `eta`; `first_step`, the length of the
    first trial in the free variables; `tolerance`, at which both solves begin; `max_backtracks`,
    after which the run stops.

    **Errors**: a `HypergradError` where no bound is known (see `ErrorBound`), for another loss than
    the default one, and for a strategy without a tolerance: `LimitFormula(Tolerance())`.

    **Cost**: all samples are solved at once, and their states are kept: `3 n + 2 m` numbers per
    sample. The bound on the gradient takes about ten products with K where F and G are smooth;
    elsewhere up to 5 factorisations per sample, as `Exact` does: `LBFGS` is then the better choice.

    **Caveat**: for float64. It ends where the bounds can tell no descent any more: near a minimum,
    at kinks of the loss, or where a sample cannot be certified.

    **Source**: Salehi, Mukherjee, Roberts & Ehrhardt, arXiv 2308.10098 (deviations are numbered in
    the source).

    >>> import hypergrad as hg, jax, numpy as np
    >>> x_true = np.cumsum(np.random.default_rng(0).normal(size=(8, 5)), axis=1)
    >>> F, G = hg.Huber(0.5, smoothing=0.1), hg.Quadratic(1.0)
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=F, G=G)
    >>> with jax.enable_x64(True):
    ...     history = hg.train(problem.astype(float), (x_true + 0.1, x_true), epochs=3,
    ...         strategy=hg.LimitFormula(hg.Tolerance()), solver=hg.ChambollePock(1000),
    ...         method=hg.AdaptiveInexactDescent(), trainable=lambda p: p.F.weight, progress=False)
    >>> losses = history.column("train_loss")
    >>> bool(losses[-1] < losses[1])
    True
    """

    eta: float = eqx.field(static=True, default=0.5)
    decrease: float = eqx.field(static=True, default=0.1)
    first_step: float = eqx.field(static=True, default=0.1)
    tolerance: float = eqx.field(static=True, default=1e-2)
    max_backtracks: int = eqx.field(static=True, default=30)

    def __check_init__(self) -> None:
        check_fraction("eta", self.eta, "try 0.5")
        check_fraction("decrease", self.decrease, "try 0.1")
        check_number("first_step", self.first_step)
        check_fraction("tolerance", self.tolerance, "try 1e-2")
        check_count("max_backtracks", self.max_backtracks)
        if self.decrease >= self.eta:
            raise HypergradError(
                f"decrease must be below eta, which is what a short step gives; got "
                f"{self.decrease:g} and {self.eta:g}: try decrease=0.1, eta=0.5"
            )

    def check(self, evaluator: Evaluator) -> None:
        check_has_tolerance(self, evaluator)
        F, G = (type(f).__name__ for f in (evaluator.problem.F, evaluator.problem.G))
        if not evaluator.has_loss_bound or not evaluator.regimes:
            raise HypergradError(
                "AdaptiveInexactDescent must have bounds on the loss and on its gradient; got "
                f"F={F}, G={G}, a K of {type(evaluator.problem.K).__name__} and the loss "
                f"{getattr(evaluator.loss, '__name__', type(evaluator.loss).__name__)}, for which "
                "one is unknown: use hg.HOAG() or hg.LBFGS(), or Huber in place of GroupL1"
            )

    def init(self, free: Any, warm: State, finest: Accuracy) -> _State:
        start = jnp.asarray(self.tolerance, finest.tolerance.dtype)
        nothing = jax.tree.map(jnp.zeros_like, free)
        return _State(jnp.zeros_like(start), nothing, nothing, Accuracy(start, start), warm)

    def step(self, evaluations: Evaluations, free: Any, state: _State) -> Step:
        here, accuracy, norm = self._descent_direction(evaluations, free, state)
        bound = float(here.error)
        step_size = self._first_trial(free, here.gradient, state)
        step = Step(free, state, here, norm, bound, accuracy, 0.0)
        if (reason := lost_in_error(norm, bound, 1 - self.eta)) is not None:
            return step._replace(stopped=reason)
        lower, upper, warm, backtracks = float(here.lower), float(here.upper), here.state, 0
        while backtracks <= self.max_backtracks:
            trial = _moved(free, here.gradient, step_size)
            there = evaluations.loss(trial, accuracy, warm)
            wanted = self.decrease * float(step_size) * norm**2
            if float(there.upper) <= lower - wanted:
                decrease, width = (upper + lower) / 2 - float(there.loss), _width(there)
                relaxed = accuracy.times(
                    _relaxed(decrease, upper - lower + width),
                    _relaxed((1 - self.eta) * norm, bound),
                    evaluations.finest,
                )
                after = _State(step_size, free, here.gradient, relaxed, there.state)
                return step._replace(
                    free=trial, state=after, at=there, step_size=float(step_size),
                    accuracy=accuracy, backtracks=backtracks, promised=wanted,
                )  # fmt: skip
            is_refused = float(there.lower) > upper - wanted
            is_finest = evaluations.is_finest(accuracy, there)
            if is_refused or is_finest:
                if is_finest and upper - lower > 2 * wanted / self.decrease:
                    break  # a step of this length decreases the loss by less than it is known to
                step_size = _shorter(step_size, (lower + upper) / 2, norm, float(there.loss))
                warm, backtracks = here.state, backtracks + 1
                continue
            # The gradient in hand, and the bound on its error, stay as good as they were.
            needed = _needed(lower, upper, there, wanted)
            accuracy = accuracy.times(needed, 1.0, evaluations.finest)
            warm = there.state
            if upper - lower > _NARROW * _width(there):
                again = evaluations.loss(free, accuracy, here.state)
                here = here._replace(state=again.state)
                lower, upper = max(lower, float(again.lower)), min(upper, float(again.upper))
        reason = f"no step decreases a loss that is known to {upper - lower:.1e}"
        return step._replace(backtracks=backtracks, stopped=reason)

    def _descent_direction(
        self, evaluations: Evaluations, free: Any, state: _State
    ) -> tuple[Evaluation, Accuracy, float]:
        """Continue both solves until the gradient is known well enough, or as well as can be."""
        accuracy, warm = state.accuracy, state.warm
        while True:
            here = evaluations.gradient(free, accuracy, warm)
            norm = float(tree_norm(here.gradient))
            is_enough = float(here.error) <= (1 - self.eta) * norm
            if is_enough or evaluations.is_finest(accuracy, here):
                return here, accuracy, norm
            accuracy = accuracy.times(_MORE_ACCURATE, _MORE_ACCURATE, evaluations.finest)
            warm = here.state

    def _first_trial(self, free: Any, gradient: Any, state: _State) -> Float[Array, ""]:
        """Return the step of Barzilai & Borwein, within a factor of the last one."""
        if state.step_size == 0:
            norm = tree_norm(gradient)
            return self.first_step / jnp.where(norm > 0, norm, 1.0)
        moved = float_vector(free) - float_vector(state.free)
        turned = float_vector(gradient) - float_vector(state.gradient)
        curvature, longest = jnp.vdot(moved, turned), _LONGEST * state.step_size
        known = jnp.vdot(moved, moved) / jnp.where(curvature > 0, curvature, 1.0)
        step_size = jnp.where(curvature > 0, known, longest)
        return jnp.clip(step_size, state.step_size / _LONGEST, longest)


def _shorter(step_size: Array, loss: float, norm: float, trial: float) -> Array:
    """Return the minimiser of the parabola through both losses and the slope, within a factor."""
    length = float(step_size)
    above = trial - loss + length * norm**2
    least = length**2 * norm**2 / (2 * above) if above > 0 else length
    return step_size * min(max(least / length, _SHORTEST), _SHORTER)


def _needed(lower: float, upper: float, there: Evaluation, wanted: float) -> float:
    """Return by how much narrower bounds would show the decrease that their centres have."""
    width = upper - lower + _width(there)
    shown = (upper + lower) / 2 - (float(there.upper) + float(there.lower)) / 2 - wanted
    known = 0 < shown < math.inf and math.isfinite(width)
    return min(max(_SPARE * shown / width, _MOST), _LEAST) if known else _MORE_ACCURATE


def _relaxed(enough: float, error: float) -> float:
    """Return by how much larger an error would still have been half of what is enough."""
    return min(max(enough / (2 * error), 1.0), _RELAXED) if error > 0 else _RELAXED


def _width(evaluation: Evaluation) -> float:
    return float(evaluation.upper) - float(evaluation.lower)


def _moved(free: Any, gradient: Any, step_size: Array) -> Any:
    return jax.tree.map(lambda p, z: p - step_size * z, free, gradient)
