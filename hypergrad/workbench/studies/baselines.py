"""The untrained operators, each with its best weight, and what converged means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad.bilevel.arguments import check_loss
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.workbench.baselines import Converged, best_weight, solve_to_tolerance
from hypergrad.workbench.command_line.specs import (
    NamedFunction,
    dct,
    differences,
    parse_function,
    parse_loss,
    parse_operator,
)
from hypergrad.workbench.studies.samples import Study
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = [
    "CONVERGED_TOLERANCE",
    "NAMES",
    "Tuned",
    "checked_operators",
    "converge",
    "in_words",
    "tuned_problems",
]

# Names of what is not learned, in tables and pictures; a strategy with one of them is numbered.
NAMES = frozenset({"DCT", "total variation", "identity", "noisy", "observed", "truth", "untrained"})

# Weights tried first for each operator, in units of the noise (or of the observed error of own
# data); where the best one is an end, more are tried beyond it.
_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3)


# "Converged" is a residual, never a number of iterations; the share that arrives is in the table.
CONVERGED_TOLERANCE = 1e-6


def _analysis_operators(config: ImageStudy, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the operators of the baselines, and the untrained one, where learning starts."""
    baselines = {"total variation": differences(shape)}
    if config.K != "dct":  # there it is the untrained operator
        baselines["DCT"] = dct(shape)
    return {**baselines, "untrained": parse_operator(config.K, shape)}


def converge(study: Study, problem: LowerLevel, x_tilde: Any) -> Converged:
    return solve_to_tolerance(
        problem,
        x_tilde,
        primal_scale=study.samples.noise,
        tolerance=CONVERGED_TOLERANCE,
        most=study.config.converged_iterations,
        piece=study.piece,
    )


class Tuned(NamedTuple):
    """An operator at its best weight; `at_an_end`: none beyond it was tried, though one may do."""

    problem: LowerLevel
    at_an_end: bool


def tuned_problems(study: Study, analysis_operators: Mapping[str, Any]) -> dict[str, Tuned]:
    """Each operator with the weight that is best at a converged lower level on training data."""
    config, samples = study.config, study.samples
    few = samples.train.take(slice(0, config.tuning_samples))
    G = parse_function(config.G).built()

    def restore(problem: LowerLevel, x_tilde: Any) -> np.ndarray:
        return converge(study, problem, x_tilde).x

    def tuned(K: Any, F: NamedFunction) -> Tuned:
        if not F.weight_is_free:
            return Tuned(LowerLevel(K=K, F=F.built(), G=G), at_an_end=False)
        weights = [a * samples.noise for a in _WEIGHTS]
        problem, _, at_an_end = best_weight(
            lambda weight: LowerLevel(K=K, F=F.built(weight=weight), G=G),
            weights, few.x_tilde, few.x_true, restore,
        )  # fmt: skip
        return Tuned(problem, at_an_end)

    # What is not learned stays what it is, whatever F is: a baseline.
    return {
        name: tuned(K, parse_function(config.F if name == "untrained" else "L1"))
        for name, K in analysis_operators.items()
    }


def checked_operators(config: ImageStudy, shape: tuple[int, ...]) -> dict[str, Any]:
    """The untrained operators, once F, G and the loss are checked: before anything is written.

    **Errors**: a `ValueError` with the rule that a part breaks.
    """
    found = _analysis_operators(config, shape)
    K, F, G = found["untrained"], parse_function(config.F), parse_function(config.G)
    m, n = K.shape
    F.check(m)
    G.check(n)
    if config.row_weights and not hasattr(F.example(), "weight"):
        raise HypergradError(
            f"row_weights needs an F with a weight; got {config.F!r}: name another F, or leave "
            "row_weights out"
        )
    problem = LowerLevel(K=K, F=F.example(), G=G.built())
    if config.loss is not None:
        _check_loss_text(config.loss, jnp.zeros((config.batch_size, n), problem.dtype))
    return found


def _check_loss_text(text: str, x: Array) -> None:
    try:
        check_loss(parse_loss(text), x)
    except Exception as error:  # the user's function may raise anything
        raise HypergradError(
            f"{text!r} must be a loss of x and x_true; got {reason_of(error)}"
        ) from None


def in_words(tuned: Tuned) -> str:
    """F: its class, and its parameters that are one number; and where its weight is an end."""
    F = tuned.problem.F
    fields = ((field.name, getattr(F, field.name)) for field in dataclasses.fields(F))
    arrays = ((name, np.asarray(value)) for name, value in fields)
    numbers = [f"{name}={a:.3g}" for name, a in arrays if a.ndim == 0 and a.dtype.kind in "fiu"]
    words = f"F = {type(F).__name__}({', '.join(numbers)})"
    if not tuned.at_an_end:
        return words
    return (
        f"{words}, the end of all weights that were tried (a thousand times beyond the usual "
        "ones): a better one may lie farther; give F another scale, or the weight yourself"
    )
