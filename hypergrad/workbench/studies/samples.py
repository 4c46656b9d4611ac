"""The samples to learn on and those held out, of photographs or of custom data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hypergrad._foundation.contents import contents_on_disk
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.strategies import AbstractStrategy
from hypergrad.workbench import data
from hypergrad.workbench.command_line.specs import parse_function, parse_loss, parse_operator
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = ["Study", "StudyData", "contents_of", "load", "piece_size"]


@dataclasses.dataclass(frozen=True)
class StudyData:
    train: data.Samples
    held_out: data.Samples

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train.shape

    @property
    def noise(self) -> float:
        """Root mean square of what was observed against the truth: the primal scale."""
        return float(np.sqrt(np.mean((self.train.x_tilde - self.train.x_true) ** 2)))


def piece_size(config: ImageStudy, samples: StudyData) -> int:
    """Samples solved at a time, throughout a job: one compilation a strategy.

    As many as a batch has, but no more than fit a chunk, which is padded.
    """
    looked_at = max(len(samples.held_out), min(config.tuning_samples, len(samples.train)))
    return min(config.batch_size, looked_at)


@dataclasses.dataclass(frozen=True)
class Study:
    """A run: its settings, its samples, and the strategies by label."""

    config: ImageStudy
    samples: StudyData
    strategies: Mapping[str, AbstractStrategy]

    @property
    def solver(self) -> ChambollePock:
        """Return the solver of L iterations."""
        return ChambollePock(self.config.iterations, primal_scale=self.samples.noise)

    @property
    def piece(self) -> int:
        return piece_size(self.config, self.samples)

    @property
    def train_subset(self) -> data.Samples:
        """Return as many training samples as there are held-out ones, to evaluate on."""
        return self.samples.train.take(slice(0, self.config.held_out_samples))


def load(config: ImageStudy, say: Callable[[str], object]) -> StudyData:
    """The samples of a run; `say` receives skipped files, where the settings allow it."""
    if config.data is not None:
        own = data.load_own(
            config.data,
            noise=config.noise,
            size=config.patch,
            frame=config.frame,
            bits=config.bits,
            rate=config.rate,
            seed=config.seed,
            most={"train": config.samples, "test": config.held_out_samples},
            skip=(lambda why: say(f"skipped: {why}")) if config.skip_unreadable else None,
        )
        rng = np.random.default_rng(config.seed)
        return StudyData(
            _subset(own["train"], config.samples, rng),
            _subset(own["test"], config.held_out_samples, rng),
        )
    draw = functools.partial(data.noisy_patches, size=config.patch, noise=config.noise)
    # Two seeds from one, so that training and held-out noise are not the same draw.
    return StudyData(
        draw(data.PHOTOGRAPHS_TRAIN, config.samples, seed=2 * config.seed),
        draw(data.PHOTOGRAPHS_HELD_OUT, config.held_out_samples, seed=2 * config.seed + 1),
    )


def contents_of(config: ImageStudy, samples: StudyData) -> dict[str, str]:
    """Digests of the data, and of the parts that are the user's: a name may hold others by now."""
    parts: dict[str, Any] = {
        "K": parse_operator(config.K, samples.shape),
        "F": parse_function(config.F),
        "G": parse_function(config.G),
        "loss": None if config.loss is None else parse_loss(config.loss),
    }
    pairs = samples.train, samples.held_out
    parts["data"] = [array for pair in pairs for array in (pair.x_tilde, pair.x_true)]
    return {f"contents of {name}": contents_on_disk(part) for name, part in parts.items()}


def _subset(samples: data.Samples, count: int, rng: np.random.Generator) -> data.Samples:
    if len(samples) <= count:
        return samples
    return samples.take(np.sort(rng.choice(len(samples), count, replace=False)))
