"""Warm starts against full unrolling: how soon the held-out loss of the latter is reached.

K is learned by full unrolling at L = 100, by its own rate and for a fixed number of epochs; and by
the limit formula with few iterations and few steps a visit, every visit going on from the last one
(primal, dual and adjoint state). Counted are the seconds of the updates, without compilation and
without judging, until the held-out loss is for the first time at most the one that full unrolling
ends with: at L = 100 from a cold start, and at a converged lower level.

Both were tuned by hand, with seeds 0 to 2; judged is on others, but on the same test photographs
and clips. Photographs: the rate of full unrolling was chosen on `rocket`, rate and iterations of
warm starts there and on other patches of the training photographs; but their batch, their steps
and the number of their epochs, over which their rate falls, after losses on the test photographs
had been seen. Speech: on the clips that are set aside to choose on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad._foundation.records import markdown_table
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning import History, WarmStart, evaluate, train
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, BoxQuadratic, Quadratic
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies import AbstractStrategy, FullUnrolling, LimitFormula, Steps, Truncation
from hypergrad.workbench import data
from hypergrad.workbench.baselines import reciprocal_row_weights
from hypergrad.workbench.sweep import Cell, Record, Result, Workspace

__all__ = ["NAME", "Settings", "cells", "report"]

NAME = "learning"


@dataclasses.dataclass(frozen=True)
class Full:
    """Full unrolling: Adam from this rate, falling to 0 like a cosine."""

    rate: float
    epochs: int
    batch_size: int = 128
    iterations: int = 100


@dataclasses.dataclass(frozen=True)
class Warm:
    """The limit formula with warm starts, its rate falling alike."""

    rate: float
    epochs: int
    batch_size: int = 32
    iterations: int = 5
    steps: int = 5
    residual: float = 0.1
    most: int = 10
    share: float = 0.0
    """The settings of `WarmStart`: `residual`, `most` and `share`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One kind of data with the settings of both ways."""

    samples: int
    held_out: int
    full: Full
    warm: Warm

    def quick(self) -> Job:
        """A few updates."""
        full = dataclasses.replace(self.full, epochs=1, batch_size=32, iterations=10)
        warm = dataclasses.replace(self.warm, epochs=2)
        return Job(samples=64, held_out=32, full=full, warm=warm)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Photographs: a random K of 128 rows, L1 and a quadratic. Speech: 3 bits, K of 2 n rows."""

    seeds: tuple[int, ...] = (3, 4, 5)
    """The settings were chosen with 0 to 2; these had not been seen then."""
    images: Job = Job(
        4096, 1024, Full(rate=0.01, epochs=12), Warm(rate=4e-3, epochs=2, batch_size=24, steps=1)
    )
    spoken: Job = Job(8192, 256, Full(rate=2e-3, epochs=4), Warm(rate=2e-3, epochs=4, residual=0.3))
    speech: Path | None = None
    """Folder of WAV or FLAC files at 8 kHz. (default: no speech)"""

    def quick(self) -> Settings:
        """One seed, a few updates."""
        return dataclasses.replace(
            self, seeds=(3,), images=self.images.quick(), spoken=self.spoken.quick()
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: the problem, its data, its step `ratio`, and the size of r where known."""

    problem: LowerLevel
    train: data.Samples
    held_out: data.Samples
    learned: Any
    ratio: float
    primal_scale: float | None
    patient: ChambollePock

    def solver(self, iterations: int) -> ChambollePock:
        return ChambollePock(iterations, step_ratio=self.ratio, primal_scale=self.primal_scale)


COLUMNS = {
    "data": "data",
    "seed": "seed",
    "judged": "judged",
    "untrained": "untrained",
    "full": "full unrolling",
    "warm": "warm starts, then",
    "warm_end": "warm starts, at their end",
    "full_seconds": "full unrolling (s)",
    "warm_seconds": "warm starts, until then (s)",
    "ratio": "ratio",
    "error": "error",
}


# ------------------------------------------------------------------------------------------ data


def patches(job: Job, seed: int) -> Task:
    """Natural patches with noise; K random, F and G as in the posters."""
    noise = 0.1
    K = operators.random(128, 64, key=jax.random.key(seed))
    problem = LowerLevel(K=K, F=L1(0.15), G=Quadratic(1.0))
    # Two seeds from one, so that training and held-out noise are not the same draw.
    draw = functools.partial(data.noisy_patches, noise=noise)
    return Task(
        cast_floats(problem, jnp.float32),
        draw(data.PHOTOGRAPHS_TRAIN, job.samples, seed=2 * seed).astype(np.float32),
        draw(data.PHOTOGRAPHS_HELD_OUT, job.held_out, seed=2 * seed + 1).astype(np.float32),
        lambda p: p.K,
        ratio=1.0,
        primal_scale=noise,
        patient=ChambollePock(1000, step_ratio=100.0, primal_scale=noise, tolerance=1e-4),
    )


def speech(folder: Path, job: Job, seed: int) -> Task:
    """Frames of 20 ms, quantised to 3 bits; K the DCTs of the frame and of its halves, noisy."""
    frame, bits = 160, 3
    draw = functools.partial(data.speech_frames, folder, frame=frame, bits=bits, seed=seed)
    observed = draw(split="train", count=job.samples)
    rng = np.random.default_rng([seed, frame])
    halves = np.kron(np.eye(2), np.asarray(operators.dct(frame // 2)))
    K = np.concatenate([np.asarray(operators.dct(frame)), halves])
    K = jnp.asarray(K + 0.02 / np.sqrt(frame) * rng.standard_normal(K.shape))
    weights = reciprocal_row_weights(K, observed.x_true)
    problem = LowerLevel(K=K, F=L1(weights), G=BoxQuadratic(2.0**-bits, 6.0))
    return Task(
        cast_floats(problem, jnp.float32),
        observed.astype(np.float32),
        draw(split="test", count=job.held_out).astype(np.float32),
        lambda p: (p.K, p.F.weight, p.G.weight),
        ratio=10.0,
        primal_scale=None,
        patient=ChambollePock(1000, step_ratio=10.0, tolerance=5e-5),
    )


# -------------------------------------------------------------------------------------- learning


def judge(task: Task, L: int, problem: LowerLevel) -> dict[str, float]:
    """Held-out losses, by solves that start from zero."""
    pair = (task.held_out.x_tilde, task.held_out.x_true)
    solvers = {"at L": task.solver(L), "solved": task.patient}
    return {
        name: evaluate(problem, *pair, solver=solver, strategy=Truncation(1), piece=256)
        for name, solver in solvers.items()
    }


def learn(
    task: Task,
    workspace: Workspace,
    *,
    strategy: AbstractStrategy,
    settings: Full | Warm,
    L: int,
    warm_start: WarmStart | bool,
    seed: int,
) -> History:
    """A training run whose records tell the held-out losses after each epoch."""
    steps = settings.epochs * (len(task.train) // settings.batch_size)
    return train(
        task.problem,
        (task.train.x_tilde, task.train.x_true),
        solver=task.solver(settings.iterations),
        strategy=strategy,
        optimizer=optax.adam(optax.cosine_decay_schedule(settings.rate, steps)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=seed,
        warm_start=warm_start,
        trainable=task.learned,
        measure=functools.partial(judge, task, L),
        progress=workspace.bar,
    )


def compare_ways(name: str, job: Job, task: Task, seed: int, workspace: Workspace) -> list[Record]:
    """Both runs, and when the losses of the second are for the first time those of the first."""
    full, warm = job.full, job.warm
    run = functools.partial(learn, task, workspace, L=full.iterations, seed=seed)
    unrolled = run(strategy=FullUnrolling(), settings=full, warm_start=False)
    warmed = run(
        strategy=LimitFormula(Steps(warm.steps)),
        settings=warm,
        warm_start=WarmStart(warm.residual, warm.most, warm.share),
    )
    seconds = float(unrolled.column("seconds")[-1])
    records = []
    for judged in ("at L", "solved"):
        target, losses = float(unrolled.column(judged)[-1]), warmed.column(judged)
        arrived = 1 + np.flatnonzero(losses[1:] <= target)
        record: dict[str, Any] = {
            "data": name,
            "seed": seed,
            "judged": judged,
            "untrained": float(unrolled.column(judged)[0]),
            "full": target,
            "full_seconds": seconds,
            "warm_end": float(losses[-1]),
            "warm_seconds_in_all": float(warmed.column("seconds")[-1]),
        }
        if len(arrived) > 0:
            then = float(warmed.column("seconds")[arrived[0]])
            record |= {"warm": float(losses[arrived[0]]), "warm_seconds": then}
            record |= {"ratio": seconds / then}
        else:
            record["error"] = "not reached"
        records.append(record)
    return records


# ----------------------------------------------------------------------------------------- cells


def _on_patches(settings: Settings, seed: int, workspace: Workspace) -> Result:
    job = settings.images
    return Result(compare_ways("patches", job, patches(job, seed), seed, workspace))


def _on_speech(settings: Settings, seed: int, workspace: Workspace) -> Result:
    if settings.speech is None:
        missing = "no folder of speech was named (setting `speech`)"
        return Result([{"data": "speech", "seed": seed, "error": missing}])
    job = settings.spoken
    task = speech(settings.speech, job, seed)
    return Result(compare_ways("speech", job, task, seed, workspace))


def cells(settings: Settings) -> list[Cell]:
    """One for each kind of data and seed."""
    kinds: Mapping[str, Any] = {"patches": _on_patches, "speech": _on_speech}
    return [
        Cell(
            {"section": NAME, "kind": kind, "of": seed},
            functools.partial(compute, settings, seed),
            cost=10.0,
        )
        for kind, compute in kinds.items()
        for seed in settings.seeds
    ]


def report(records: Sequence[Record]) -> str:
    """One table: losses, seconds until they are reached, and their ratio."""
    return f"# Warm starts against full unrolling\n\n{markdown_table(records, COLUMNS)}\n"
