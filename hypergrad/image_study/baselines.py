"""The untrained operators, each with its best weight, and what converged means."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hypergrad import operators
from hypergrad.baselines import Converged, best_of, solve_to_tolerance
from hypergrad.functions import AbstractFunction
from hypergrad.image_study.samples import StudyData
from hypergrad.image_study.settings import ImageStudy
from hypergrad.lower_level import LowerLevel
from hypergrad.own_parts import parse_function, parse_operator

__all__ = ["CONVERGED_TOLERANCE", "converge", "in_words", "tuned_problems"]

# Weights tried for each operator, in units of the noise (or of the observed error of own data).
_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3)


# "Converged" is a residual, never a number of iterations; the share that arrives is in the table.
CONVERGED_TOLERANCE = 1e-6


def _analysis_operators(config: ImageStudy, shape: tuple[int, ...]) -> dict[str, Any]:
    """DCT without its constant row, differences, and the untrained operator: both, or one's own."""
    if len(shape) == 2:
        dct = operators.dct2((shape[0], shape[1]), constant=False)
        differences = operators.differences2((shape[0], shape[1]))
    else:
        dct = operators.dct(shape[0], constant=False)
        differences = operators.differences(shape[0])
    return {
        "DCT": dct,
        "differences": differences,
        "untrained": operators.stack([dct, differences])
        if config.K is None
        else parse_operator(config.K, shape),
    }


def converge(
    config: ImageStudy, samples: StudyData, problem: LowerLevel, x_tilde: Any
) -> Converged:
    return solve_to_tolerance(
        problem,
        x_tilde,
        primal_scale=samples.noise,
        tolerance=CONVERGED_TOLERANCE,
        most=config.converged_iterations,
        piece=config.batch_size,
    )


def tuned_problems(config: ImageStudy, samples: StudyData) -> dict[str, LowerLevel]:
    """Each operator with the weight that is best at a converged lower level on training data."""
    few = samples.train.take(slice(0, config.tuning_samples))
    problems = {}

    def restore(problem: LowerLevel, x_tilde: Any) -> np.ndarray:
        return converge(config, samples, problem, x_tilde).x

    G, weights = parse_function(config.G).built(), [a * samples.noise for a in _WEIGHTS]
    for name, K in _analysis_operators(config, samples.shape).items():
        # What is not learned stays what it is, whatever F is: something to be held against.
        F = parse_function(config.F if name == "untrained" else "L1")
        candidates = [LowerLevel(K=K, F=f, G=G) for f in F.at_weights(weights)]
        problems[name] = best_of(candidates, few.x_tilde, few.x_true, restore)
    return problems


def in_words(F: AbstractFunction) -> str:
    """Its class, and its parameters that are one number."""
    fields = ((field.name, getattr(F, field.name)) for field in dataclasses.fields(F))
    arrays = ((name, np.asarray(value)) for name, value in fields)
    numbers = [f"{name}={a:.3g}" for name, a in arrays if a.ndim == 0 and a.dtype.kind in "fiu"]
    return f"{type(F).__name__}({', '.join(numbers)})"
