"""Count what JAX compiles during a call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["count_compilations"]

# Where JAX says what it traces and compiles.
_LOGGERS = ("dispatch", "interpreters.pxla", "compiler", "pjit")


def count_compilations(call: Callable[[], Any]) -> int:
    """Compilations during a call, as JAX logs them (what it logs is swallowed)."""
    compiled = 0

    def swallow(record: logging.LogRecord) -> bool:
        nonlocal compiled
        compiled += record.getMessage().startswith("Compiling ")
        return False

    loggers = [logging.getLogger(f"jax._src.{name}") for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(swallow)
    try:
        with jax.log_compiles():
            jax.block_until_ready(call())
    finally:
        for logger in loggers:
            logger.removeFilter(swallow)
    return compiled
