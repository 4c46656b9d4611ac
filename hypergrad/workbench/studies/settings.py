"""The settings of one run."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from hypergrad._foundation.checks import check_count, check_number

__all__ = ["PRESETS", "ImageStudy", "Preset"]


class Preset(NamedTuple):
    """A start for K, whether one weight a row is learned with it, and the rate of learning."""

    K: str
    row_weights: bool
    learning_rate: float


# Rates were chosen on a photograph of its own, `rocket`.
PRESETS = {
    "square": Preset("dct", row_weights=False, learning_rate=5e-3),
    "overcomplete": Preset("dct+random", row_weights=True, learning_rate=5e-3),
    # Rows of K depend on each other: most samples have several gradients.
    "degenerate": Preset("dct+differences", row_weights=False, learning_rate=1e-3),
}


@dataclasses.dataclass(frozen=True)
class ImageStudy:
    """The settings of one run."""

    strategies: tuple[str, ...] = (
        "full",
        "truncation:k=1",
        "ergodic",
        "limit:steps=10",
        "limit:cgls",
    )
    iterations: int = 100
    samples: int = 6144
    held_out_samples: int = 1024
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = PRESETS["square"].learning_rate
    noise: float = 0.1
    patch: int = 8
    photograph: str = "camera"
    stride: int = 4
    tuning_samples: int = 512
    converged_iterations: int = 1000
    repeats: int = 5
    seed: int = 0
    dtype: str = "float64"
    data: str | None = None
    skip_unreadable: bool = False
    frame: int = 160
    bits: int = 3
    rate: int = 8000
    K: str = PRESETS["square"].K
    row_weights: bool = PRESETS["square"].row_weights
    F: str = "L1"
    G: str = "Quadratic:weight=1.0"
    loss: str | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "patch", "stride", "repeats"):
            check_count(name, getattr(self, name))
        for name in ("frame", "bits", "rate"):
            check_count(name, getattr(self, name))
        for name in ("samples", "held_out_samples", "tuning_samples"):
            check_count(name, getattr(self, name))
        check_count("epochs", self.epochs, least=0)
        check_count("seed", self.seed, least=0, most=2**63 - 1)
        for name in ("learning_rate", "noise"):
            check_number(name, getattr(self, name))

    def quick(self) -> ImageStudy:
        """The same job in miniature: a smoke test, not a result."""
        return dataclasses.replace(
            self,
            samples=256,
            held_out_samples=128,
            epochs=2,
            batch_size=64,
            # In so few steps a rate that suits hundreds of them only does harm.
            learning_rate=self.learning_rate / 5,
            stride=8,
            tuning_samples=64,
            converged_iterations=300,
            repeats=2,
        )
