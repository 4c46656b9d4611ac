"""Checks of the loaders, and their errors."""

from __future__ import annotations

from collections.abc import Iterable

from hypergrad._foundation.errors import HypergradError


def one_of(what: str, got: str, names: Iterable[str]) -> None:
    require(got in names, f"{what} must be one of {', '.join(names)}", repr(got), "choose one")


def at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        require(number >= 1, f"{name} must be at least 1", number, f"pass {name}=1 or more")


def require(
    holds: bool, rule: str, got: object, to_do: str, error: type[Exception] = HypergradError
) -> None:
    """Raise the error that says the rule, what was got and what to do, unless the rule holds."""
    if not holds:
        raise error(f"{rule}; got {got}: {to_do}")
