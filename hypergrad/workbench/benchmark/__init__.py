"""The benchmark: what the package costs, as ratios measured within one run.

The floor is the time of the 2 L matrix products of L iterations alone: same shapes, dtype, process.
Everything is compiled ahead, warmed up, interleaved and blocked until ready; figures are medians.

Each section is a module with three names: `Settings`, a frozen dataclass with `quick()`;
`cells(settings)`, whose keys begin with the section's name; and `report(records)`, its tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType

from hypergrad._foundation.errors import HypergradError
from hypergrad.learning.devices import device_name
from hypergrad.workbench.benchmark import (
    accuracy,
    batches,
    by_hand,
    compilation,
    devices,
    floors,
    images,
    learning,
)
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record

__all__ = ["Benchmark", "cells", "report"]

# In the order in which they are run and printed.
SECTIONS: Mapping[str, ModuleType] = {
    "floors": floors,
    "by_hand": by_hand,
    "accuracy": accuracy,
    "compilation": compilation,
    "batches": batches,
    "devices": devices,
    "learning": learning,
    "images": images,
}


@dataclasses.dataclass(frozen=True)
class Benchmark(AbstractSettings):
    """Time and memory as ratios, section by section."""

    only: tuple[str, ...] = tuple(SECTIONS)
    """Sections to run, separated by spaces."""
    floors: floors.Settings = dataclasses.field(default_factory=floors.Settings)
    by_hand: by_hand.Settings = dataclasses.field(default_factory=by_hand.Settings)
    accuracy: accuracy.Settings = dataclasses.field(default_factory=accuracy.Settings)
    compilation: compilation.Settings = dataclasses.field(default_factory=compilation.Settings)
    batches: batches.Settings = dataclasses.field(default_factory=batches.Settings)
    devices: devices.Settings = dataclasses.field(default_factory=devices.Settings)
    learning: learning.Settings = dataclasses.field(default_factory=learning.Settings)
    images: images.Settings = dataclasses.field(default_factory=images.Settings)

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in SECTIONS]
        if unknown or not self.only:
            raise HypergradError(
                f"only must name sections of the benchmark; got {' '.join(unknown) or 'none'}: "
                f"choose from {' '.join(SECTIONS)}"
            )

    def quick(self) -> Benchmark:
        """Every section in miniature."""
        small = {name: getattr(self, name).quick() for name in SECTIONS}
        return dataclasses.replace(self, **small)


def cells(benchmark: Benchmark) -> list[Cell]:
    """Those of the sections that are to be run."""
    return [
        cell for name in benchmark.only for cell in SECTIONS[name].cells(getattr(benchmark, name))
    ]


def report(benchmark: Benchmark, records: Sequence[Record]) -> str:
    """The tables of the sections, and the device that they were measured on."""
    del benchmark
    parts = [
        section.report([record for record in records if record["section"] == name])
        for name, section in SECTIONS.items()
        if any(record["section"] == name for record in records)
    ]
    return "\n".join([*parts, f"Device: {device_name()}\n"])
