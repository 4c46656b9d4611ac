"""Learned operators for pictures, sounds and rows, and a picture to restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import hypergrad as hg

STRATEGY = hg.Truncation(k=1)


def learned(shape: tuple[int, ...], **given: Any) -> hg.SavedOperator:
    """Total variation on samples of this shape, few iterations of it."""
    differences = {1: hg.operators.differences, 2: hg.operators.differences2}[len(shape)]
    K = differences(shape if len(shape) == 2 else shape[0])
    problem = hg.LowerLevel(K=K, F=hg.L1(0.1), G=hg.Quadratic(1.0))
    return hg.SavedOperator(problem, hg.ChambollePock(3), STRATEGY, shape, **{"stride": 2, **given})


PATCHES, SOUND, ROWS = learned((4, 4)), learned((6,), rate=8000), learned((6,))
LEVELS = np.random.default_rng(0).integers(0, 256, (9, 10), dtype=np.uint8)


def another_rate(path: Path) -> None:
    soundfile.write(path, np.zeros(9), 16000, format="WAV")
