"""The time to a hypergradient of given accuracy, beside the best other package (float64).

Easy: K near the DCT (m = 63), natural patches. Hard: an overcomplete K (m = 128), random and
learned, and the linear programme of speech dequantisation. For each way the least number of
iterations is searched whose relative error in K is at most the target, then that is timed; the
error is that of the samples which `Exact` certifies and where the solution map is differentiable.
Times are in iterations of the same forward solve. Peers get the plain iteration, at the default
step ratio and at the best of those tried; so does ours, and the restarted Halpern iteration.

What was tried on the hard ones: expected, and measured in forward iterations on one core.

- Over-relaxation by 1.9: half the iterations. With a quadratic G about that; on the linear
  programme nothing.
- Reflected Halpern iterations with restarts: a linear rate on linear programmes. The median
  residual after 1,000 fell from 2e-5 to 2e-9; with a quadratic G nothing.
- The same with an adaptive step ratio: none to be tuned. On every problem as good as the best fixed
  one, or better; an iteration costs 1.3 to 1.5 plain ones. Kept.
- Exact part by part, one factorisation where the active sets are right: the stragglers' share only.
  Random K from 24,000 (step ratio 1) or 1,500 (100) to 800, DCT from 2,000 to 840. Kept.
- More first-order iterations between jumps, and the path last: fewer Newton steps. Learned K from
  140,000 to 12,000, the linear programme from minutes to 24,000. Kept; what is left are stragglers.
- Conjugate gradients on the dual half of the limit system: half the products of CGLS a step and the
  root of its steps. The adjoint from 28 to 13 iterations (DCT), from 645 to 82 (random K). Kept.
- Bursts of 200 or of 1,000 iterations between jumps: no difference that counts. Given up.
- Samples with a coordinate on its kink to the end of a path at once: on the linear programme 9,600
  iterations for 17,300. Kept.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.samples import float_vector
from hypergrad._foundation.status import Status
from hypergrad._foundation.timing import compile_ahead, interleaved_medians
from hypergrad.bilevel import Hypergradient, OnSamples, half_mean_squared_error, hypergradient
from hypergrad.chambolle_pock import AbstractAcceleration, ChambollePock, RestartedHalpern, State
from hypergrad.comparison import (
    differentiable_samples,
    failure_of,
    one_hypergradient,
    reference_hypergradient,
    solve_without_strategy,
)
from hypergrad.learning import train
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, Box, Quadratic
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import (
    AbstractStrategy,
    ConjugateGradients,
    Exact,
    LimitFormula,
    Truncation,
    parse_strategy,
)
from hypergrad.workbench import data
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["NAME", "Settings", "cells", "report"]

NAME = "accuracy"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The problems and the accuracies."""

    problems: tuple[str, ...] = (
        "easy: DCT",
        "hard: random K",
        "hard: learned K",
        "hard: linear programme",
    )
    patches: int = 256
    frames: int = 128
    weight: float = 0.15
    noise: float = 0.1
    strategies: tuple[str, ...] = (
        "limit:cg",
        "limit:cgls",
        "jaxopt:bicgstab",
        "jaxopt:normal_cg",
        "optimistix:bicgstab",
    )
    step_ratios: tuple[float, ...] = (1.0, 100.0)
    targets: tuple[float, ...] = (1e-3, 1e-8)
    most_iterations: int = 6000
    most_seconds: float = 15.0
    """For one hypergradient; slower ones are given up."""
    epochs: int = 6
    """The number of epochs of learning the K of the third problem."""
    repeats: int = 5
    speech: Path | None = None
    """Folder of clips for the linear programme."""
    seed: int = 0

    def quick(self) -> Settings:
        """Few samples, one problem, one strategy."""
        return dataclasses.replace(
            self,
            problems=("easy: DCT",),
            strategies=("limit:cgls",),
            patches=16,
            frames=8,
            step_ratios=(100.0,),
            targets=(1e-3,),
            most_iterations=100,
            repeats=1,
        )


@dataclasses.dataclass(frozen=True)
class _Given:
    problem: LowerLevel
    x_tilde: Array
    x_true: Array


def _patches(settings: Settings) -> data.Samples:
    return data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, settings.patches, noise=settings.noise, seed=settings.seed
    )


def _denoising(settings: Settings, K: Array) -> _Given:
    samples = _patches(settings)
    problem = LowerLevel(K, L1(settings.weight), Quadratic(1.0))
    return _Given(problem, jnp.asarray(samples.x_tilde), jnp.asarray(samples.x_true))


def _random_K(settings: Settings) -> Array:
    return operators.random(128, 64, key=jax.random.key(settings.seed))


def _near_dct(settings: Settings) -> _Given:
    return _denoising(settings, operators.dct2((8, 8), constant=False))


def _random(settings: Settings) -> _Given:
    return _denoising(settings, _random_K(settings))


def _learned(settings: Settings) -> _Given:
    given = _denoising(settings, _random_K(settings))
    count = 16 * settings.patches
    samples = data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, count, noise=settings.noise, seed=settings.seed + 1
    )
    history = train(
        given.problem,
        (samples.x_tilde, samples.x_true),
        strategy=Truncation(1),
        optimizer=optax.adam(1e-2),
        epochs=settings.epochs,
        batch_size=settings.patches // 2,
        progress=False,
    )
    return dataclasses.replace(given, problem=history.problem)


def _linear_programme(settings: Settings) -> _Given:
    if settings.speech is None:
        raise HypergradError("no speech: give its folder")
    frames = data.speech_frames(
        settings.speech, bits=3, split="train", count=settings.frames, seed=settings.seed
    )
    problem = LowerLevel(operators.dct(160), L1(1.0), Box(0.125))
    return _Given(problem, jnp.asarray(frames.x_tilde), jnp.asarray(frames.x_true))


PROBLEMS: Mapping[str, Callable[[Settings], _Given]] = {
    "easy: DCT": _near_dct,
    "hard: random K": _random,
    "hard: learned K": _learned,
    "hard: linear programme": _linear_programme,
}


@dataclasses.dataclass(frozen=True)
class _Way:
    """A strategy on a solver that is still to be told its iterations."""

    strategy: AbstractStrategy
    step_ratio: float
    acceleration: AbstractAcceleration | None

    @property
    def name(self) -> str:
        return "plain" if self.acceleration is None else "restarted Halpern"

    def solver(self, iterations: int) -> ChambollePock:
        return ChambollePock(iterations, step_ratio=self.step_ratio, acceleration=self.acceleration)


def _ways(settings: Settings, problem: LowerLevel) -> list[_Way]:
    strategies = [parse_strategy(text) for text in settings.strategies]
    plain = [_Way(s, ratio, None) for s in strategies for ratio in settings.step_ratios]
    curved = problem.G.strong_convexity is not None
    best = LimitFormula(ConjugateGradients()) if curved else LimitFormula()
    return [*plain, _Way(best, 1.0, RestartedHalpern())]


def measure(name: str, settings: Settings) -> Result:
    """All ways to one problem's hypergradient."""
    try:
        given = PROBLEMS[name](settings)
    except (ValueError, OSError) as error:
        return Result([{"strategy": "-", "reason": failure_of(error)}])
    arguments = (given.problem, given.x_tilde, given.x_true)
    reference = reference_hypergradient(*arguments, most=int(Exact().most))
    judge = _Judge(given, reference)
    forward = compile_ahead(solve_without_strategy, *arguments[:2], ChambollePock(300))
    exact = compile_ahead(one_hypergradient, *arguments, ChambollePock(), Exact())
    calls, stats = {"forward": forward.call, "exact": exact.call}, exact.call().solution.stats
    records: list[dict[str, Any]] = [
        {
            "strategy": "exact",
            "error": judge(ChambollePock(), Exact()),
            "iterations": int(jnp.max(stats.iterations)),
            "statuses": Status.summary(stats.status),
            "call": "exact",
        }
    ]
    for way in _ways(settings, given.problem):
        for target, found in _search(given, way, judge, settings).items():
            about = {
                "strategy": way.strategy.label,
                "iteration": way.name,
                "step_ratio": way.step_ratio,
                "target": target,
            }
            if isinstance(found, str):
                records.append(about | {"reason": found})
                continue
            iterations, error = found
            call = f"{way} {iterations}"
            calls[call] = compile_ahead(
                one_hypergradient, *arguments, way.solver(iterations), way.strategy
            ).call
            records.append(about | {"error": error, "iterations": iterations, "call": call})
    seconds = interleaved_medians(calls, repeats=settings.repeats)
    iteration = seconds["forward"] / 300
    for record in records:
        call = record.pop("call", None)
        if call is not None:
            record["milliseconds"] = 1e3 * seconds[call]
            record["over_iteration"] = seconds[call] / iteration
    return Result(records)


class _Judge:
    """The relative error in K on the samples that have one gradient, which is known."""

    def __init__(self, given: _Given, reference: Hypergradient):
        self.loss = OnSamples(half_mean_squared_error, differentiable_samples(reference))
        self.given = given
        exact = reference_hypergradient(
            given.problem, given.x_tilde, given.x_true, loss=self.loss, init=reference.state, most=1
        )
        self.exact = float_vector(exact.grad.K)

    def __call__(
        self, solver: ChambollePock, strategy: AbstractStrategy, init: State | None = None
    ) -> float:
        """Return the relative error of the gradient in K that a strategy gives, from a start."""
        given = self.given
        h = hypergradient(
            given.problem, given.x_tilde, given.x_true,
            solver=solver, strategy=strategy, loss=self.loss, init=init,
        )  # fmt: skip
        error = float_vector(h.grad.K) - self.exact
        return float(jnp.linalg.norm(error) / jnp.linalg.norm(self.exact))


def _search(
    given: _Given, way: _Way, judge: _Judge, settings: Settings
) -> dict[float, tuple[int, float] | str]:
    """The fewest iterations, of a ladder, that reach each target; else why not."""
    solver = way.solver(settings.most_iterations)

    @jax.jit
    def state_after(count: Array) -> State:
        forward = solver.on(given.problem, given.x_tilde)
        return forward.advance(forward.start(), count)

    found: dict[float, tuple[int, float] | str] = {}
    last, error, count = ChambollePock(1, step_ratio=way.step_ratio), math.inf, 0
    for count in _ladder(settings.most_iterations):
        state = state_after(jnp.asarray(count - 1))
        started = time.perf_counter()
        try:
            error = judge(last, way.strategy, state)
        except Exception as failure:  # a way that fails is a row with its reason
            return {target: failure_of(failure) for target in settings.targets}
        for target in settings.targets:
            if target not in found and error <= target:
                found[target] = (count, error)
        if len(found) == len(settings.targets):
            break
        if time.perf_counter() - started > settings.most_seconds:
            break
    reason = f"not reached: {error:.1e} after {count} iterations"
    return {target: found.get(target, reason) for target in settings.targets}


def _ladder(most: int) -> list[int]:
    """Numbers of iterations, a fifth apart as far as 200, then a half."""
    rungs = [round(10 * 1.2**i) for i in range(17)] + [round(200 * 1.5**i) for i in range(20)]
    return [count for count in rungs if count < most] + [most]


def cells(settings: Settings) -> list[Cell]:
    """One for each problem: what is compared is measured in one process, in turns."""
    return [
        Cell(
            {"section": NAME, "problem": name},
            lambda _, name=name: measure(name, settings),
        )
        for name in settings.problems
    ]


COLUMNS = {
    "strategy": "strategy",
    "iteration": "iteration",
    "step_ratio": "step ratio",
    "target": "target",
    "iterations": "iterations",
    "error": "relative error",
    "milliseconds": "time (ms)",
    "over_iteration": "time in forward iterations",
    "statuses": "forward status",
    "reason": "reason",
}


def report(records: Sequence[Record]) -> str:
    """A table for each problem."""
    parts = []
    for name in dict.fromkeys(record["problem"] for record in records):
        rows = [record for record in records if record["problem"] == name]
        parts.append(f"# Time to an accuracy, {name}\n\n{markdown_table(rows, COLUMNS)}\n")
    return "\n".join(parts)
