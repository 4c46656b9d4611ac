"""Several devices against one: the same gradient, one all-reduce a step, and what a step takes.

The devices are parts of one CPU, each row in processes of its own, since JAX counts its devices
when it starts. They share the cores of the machine: the time says what sharing out costs, not what
several devices gain.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from hypergrad._foundation.records import markdown_table
from hypergrad.workbench.sweep import Cell, Record, Result

__all__ = ["Settings", "cells", "report"]

NAME = "devices"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A batch shared out in float64, L iterations, one differentiated."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Forced devices of one process."""
    processes: tuple[int, ...] = (2,)
    """Processes of one device each, over loopback."""
    m: int = 128
    n: int = 64
    batch: int = 256
    iterations: int = 100
    repeats: int = 15

    def quick(self) -> Settings:
        """Two devices and two processes, a small problem, two repeats."""
        small = {"m": 32, "n": 16, "batch": 8, "repeats": 2}
        return dataclasses.replace(self, devices=(2,), **small)


COLUMNS = {
    "processes": "processes",
    "devices": "devices of each",
    "relative_difference": "gradient, relative difference",
    "all_reduces": "all-reduces a step",
    "other_collectives": "other collectives",
    "milliseconds": "step (ms)",
    "over_one_device": "/ one device",
}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def measure(processes: int, devices: int, settings: Settings) -> Result:
    """Return the measurements of the first process."""
    problem = dataclasses.asdict(settings)
    numbers = {name: problem[name] for name in ("m", "n", "batch", "iterations", "repeats")}
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    address = f"localhost:{_free_port()}" if processes > 1 else None
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "hypergrad.workbench.benchmark._on_devices"),
                json.dumps({"address": address, "processes": processes, "process": i, **numbers}),
            ],
            env=os.environ | {"JAX_ENABLE_X64": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode:
            raise RuntimeError(f"a measurement on {devices} devices failed: {errors.strip()}")
    # The library that connects the processes reports on the same stream, before.
    measured: dict[str, Any] = json.loads(ended[0][0].splitlines()[-1])
    return Result([measured])


def cells(settings: Settings) -> list[Cell]:
    """One for each number of devices, and one for each number of processes."""
    counts = [(1, devices) for devices in settings.devices]
    counts += [(processes, 1) for processes in settings.processes]
    return [
        Cell(
            {"section": NAME, "processes": processes, "devices": devices},
            lambda _, processes=processes, devices=devices: measure(processes, devices, settings),
        )
        for processes, devices in counts
    ]


def report(records: Sequence[Record]) -> str:
    """One table."""
    return f"# Several devices against one\n\n{markdown_table(records, COLUMNS)}\n"
