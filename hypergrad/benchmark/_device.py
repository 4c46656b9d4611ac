"""Where the benchmark runs."""

from __future__ import annotations

import os

import jax

__all__ = ["device_name"]


def device_name() -> str:
    """The model of the device, and of how many cores where it is a CPU."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {os.cpu_count()} cores"
