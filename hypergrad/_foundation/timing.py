"""Honest timing: compilation apart, warmed up, interleaved, blocked until ready, the median."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.compiled import as_arguments, compiled

_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function with its arguments, what compiling took (s), and its memory (bytes).

    `peak_bytes` counts arguments, outputs and scratch memory, `scratch_bytes` the latter alone, as
    the compiled executable states them; None where the backend does not say.
    """

    executable: Callable[..., Any]
    arguments: tuple[Any, ...]
    text: str
    compile_seconds: float
    peak_bytes: int | None
    scratch_bytes: int | None

    def __call__(self, *arguments: Any) -> Any:
        """Run it on arguments of the same shapes."""
        return self.executable(*as_arguments((arguments, {})))

    def call(self) -> Any:
        """Run it on the arguments that it was compiled for."""
        return self(*self.arguments)


def compile_ahead(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile a function for its arguments without running it."""
    started = time.perf_counter()
    program = compiled(function).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    executable = program.compiled
    memory = executable.memory_analysis()
    peak = scratch = None
    if memory is not None:
        scratch = memory.temp_size_in_bytes
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + scratch
            - memory.alias_size_in_bytes
        )
    return Compiled(program, arguments, executable.as_text(), seconds, peak, scratch)


def interleaved_medians(
    calls: Mapping[_Key, Callable[[], Any]], *, repeats: int
) -> dict[_Key, float]:
    """Median seconds of each call; the calls take turns, so that a slow spell hits them all.

    They are keyed by what is timed itself, or by names where all are chosen by the caller: a name
    that a strategy gives itself may be any.

    Each is made twice, and the second one counts: the threads of a factorisation go on waiting for
    work when it is over, and what comes next shares its cores with them (a truncation seemed to
    take 1.5 forward solves, as long as the norm of K was measured before it).
    """
    seconds: dict[_Key, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            jax.block_until_ready(call())
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def matrix_products_alone(K: Array, x: Array, L: int) -> Array:
    """The floor of L iterations: their 2 L matrix products, each feeding the next, and no more."""

    def body(v: Array, _):
        return (v @ K.T) @ K, None

    return jax.lax.scan(body, x, None, length=L)[0]
