"""All strategies on one batch, and K learned with each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from rich.progress import Progress

from hypergrad._foundation.records import write_jsonl
from hypergrad.bilevel import Loss, half_mean_squared_error
from hypergrad.comparison import Comparison, compare
from hypergrad.learning import History, train
from hypergrad.learning.saved_operator import SavedOperator
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import AbstractStrategy
from hypergrad.workbench.command_line.specs import parse_loss
from hypergrad.workbench.studies.samples import Study
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = [
    "K_alone",
    "K_and_row_weights",
    "compare_on_a_batch",
    "file_name",
    "make_adam",
    "scale_weight_updates",
    "train_all",
    "training_records",
    "with_row_weights",
]

# Logarithms of weights are of another size than entries of K: their rate is so many times larger.
WEIGHTS_RATE = 10.0

# The share of all steps in which the rate rises from 0: Adam's first steps are as long as the rate
# whatever the gradient, and at a good start they only do harm.
_WARM_UP = 0.25


def K_alone(problem: LowerLevel) -> Any:
    """Select K, as the `trainable` of `hypergrad.train`."""
    return problem.K


def K_and_row_weights(problem: LowerLevel) -> Any:
    """Select K and the weights of F, as the `trainable` of `hypergrad.train`."""
    F: Any = problem.F
    return problem.K, F.weight


def with_row_weights(problem: LowerLevel) -> LowerLevel:
    """Return the same problem, with a weight of its own for each row of K."""
    F: Any = problem.F
    return dataclasses.replace(
        problem, F=dataclasses.replace(F, weight=jnp.full(problem.m, jnp.asarray(F.weight)))
    )


def make_adam(
    rate: float, steps: int, *, weights_rate: float | None = None
) -> optax.GradientTransformation:
    """Return Adam; its rate rises from 0 over the first quarter of the steps, then falls to 0.

    `weights_rate` multiplies the updates of the logarithms of F's weights, where they are learned.

    >>> optimizer = make_adam(1e-3, steps=100)
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, warmup_steps=math.ceil(_WARM_UP * steps), decay_steps=max(steps, 2)
    )
    adam = optax.adam(schedule)
    return adam if weights_rate is None else scale_weight_updates(adam, weights_rate)


def scale_weight_updates(
    optimizer: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Return an optimiser whose updates of the logarithms of F's weights are multiplied.

    >>> optimizer = scale_weight_updates(optax.adam(1e-3), 10.0)
    """

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return eqx.tree_at(lambda p: p.F.weight, updates, replace_fn=lambda u: factor * u)

    return optax.chain(optimizer, optax.stateless(scale))


def compare_on_a_batch(study: Study, problem: LowerLevel) -> Comparison:
    batch = study.samples.train.take(slice(0, study.config.batch_size))
    return compare(
        problem,
        batch.x_tilde,
        batch.x_true,
        solver=study.solver,
        strategies=list(study.strategies.values()),
        loss=_loss(study.config),
        repeats=study.config.repeats,
    )


def train_all(
    study: Study, problem: LowerLevel, out: Path, bar: Progress, devices: Mesh | None
) -> dict[str, History]:
    config, samples = study.config, study.samples
    steps = config.epochs * (len(samples.train) // min(config.batch_size, len(samples.train)))
    weights_rate = WEIGHTS_RATE if config.row_weights else None
    histories: dict[str, History] = {}
    for label, strategy in study.strategies.items():
        history = train(
            problem,
            (samples.train.x_tilde, samples.train.x_true),
            validation=(samples.held_out.x_tilde, samples.held_out.x_true),
            solver=study.solver,
            strategy=strategy,
            optimizer=make_adam(config.learning_rate, steps, weights_rate=weights_rate),
            trainable=K_and_row_weights if config.row_weights else K_alone,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            loss=_loss(config),
            checkpoint_dir=out / "checkpoints" / file_name(label),
            progress=bar,
            devices=devices,
        )
        histories[label] = history
        # Written after each strategy: an interruption loses none that is finished.
        write_jsonl(out / "records.jsonl", training_records(histories))
        saved = _saved(study, history.best.problem, strategy)
        saved.save(out / f"operator_{file_name(label)}.npz")
    return histories


def _loss(config: ImageStudy) -> Loss:
    return half_mean_squared_error if config.loss is None else parse_loss(config.loss)


def _saved(study: Study, problem: LowerLevel, strategy: AbstractStrategy) -> SavedOperator:
    """Return the learned operator with everything that restoring needs."""
    config, shape = study.config, study.samples.shape
    is_sound = len(shape) == 1 and config.data is not None and Path(config.data).is_dir()
    return SavedOperator(
        problem,
        study.solver,
        strategy,
        shape,
        stride=max(1, min(shape) // 2),
        rate=config.rate if is_sound else None,
        settings=dataclasses.asdict(config),
    )


def training_records(histories: Mapping[str, History]) -> Iterator[dict[str, Any]]:
    for label, history in histories.items():
        for record in history.records:
            yield {"kind": "training", "strategy": label, **record}


def file_name(label: str) -> str:
    """A label as part of the name of a file.

    >>> file_name("limit:tolerance=1e-06 #2")
    'limit_tolerance-1e-06_2'
    """
    letters = str.maketrans({":": "_", "=": "-", ",": "_", ".": "p", " ": "_", "#": None})
    return label.translate(letters).replace("__", "_")
