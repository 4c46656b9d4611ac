"""An experiment on the command line: its settings, a sweep, a report."""

from __future__ import annotations

import abc
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from hypergrad._foundation.errors import DATA, INTERRUPTED, USAGE, HypergradError, user_message
from hypergrad._foundation.records import write_text
from hypergrad.workbench.sweep.cells import Cell, Record
from hypergrad.workbench.sweep.finished import store
from hypergrad.workbench.sweep.running import run_sweep

__all__ = ["AbstractSettings", "Options", "check_settings", "main", "run_experiment", "run_of"]


@dataclasses.dataclass(frozen=True)
class AbstractSettings(abc.ABC):
    """The settings of an experiment, a frozen dataclass."""

    @abc.abstractmethod
    def quick(self) -> Any:
        """The same in miniature: a smoke test, not a result."""


C = TypeVar("C", bound=AbstractSettings)


@dataclasses.dataclass(frozen=True)
class Options(Generic[C]):
    """The command line of an experiment."""

    config: Annotated[C, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; given again with the same settings, it goes on there."""
    quick: bool = False
    """The same in miniature: a smoke test, not a result."""
    workers: int = 1
    """Processes that compute cells, through Dask; 1 for experiments that measure time."""
    scheduler: str | None = None
    """Address of a Dask scheduler; its workers must see the folder under the same path."""
    store: Path | None = None
    """Also write the finished records in compact form to this folder."""


def _without_places(settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Settings as they are recorded: of a path its last part, since the rest is one machine's."""
    return {name: value.name if isinstance(value, Path) else value for name, value in settings}


def run_of(name: str, settings: Any) -> dict[str, Any]:
    """Return the experiment and its settings as the folder of a run records them."""
    return {"experiment": name, **dataclasses.asdict(settings, dict_factory=_without_places)}


def main(
    name: str,
    settings: type[C],
    cells: Callable[[C], Sequence[Cell]],
    report: Callable[[C, list[Record]], str] | None = None,
) -> None:
    """The command line of an experiment: its settings, `--out`, `--quick`, `--workers`, `--store` …

    `report(settings, records)`, the results in words and tables, is printed and written to
    `report.md`.
    """
    options = tyro.cli(Options[settings], prog=f"experiments/{name}.py")
    try:
        check_settings(options.config)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(USAGE)
    if (status := run_experiment(name, options, cells, report)) != 0:
        sys.exit(status)


def run_experiment(
    name: str,
    options: Options[C],
    cells: Callable[[C], Sequence[Cell]],
    report: Callable[[C, list[Record]], str] | None = None,
) -> int:
    """Run the cells, print and write the report; the exit status."""
    out = options.out or Path("results") / (f"{name}-quick" if options.quick else name)
    try:
        _run_and_report(name, options, out, cells, report)
        sys.stdout.flush()  # here, where a full disk can still be told
    except Exception as error:
        if (line := user_message(error)) is None:
            raise
        is_refused = isinstance(error, ValueError) or not (out / "config.json").exists()
        goes_on = "" if is_refused else f"; the same command goes on in {out}"
        print(f"{name}: {line}{goes_on}", file=sys.stderr)
        return DATA
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command goes on in {out}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run_and_report(
    name: str,
    options: Options[C],
    out: Path,
    cells: Callable[[C], Sequence[Cell]],
    report: Callable[[C, list[Record]], str] | None,
) -> None:
    config = options.config.quick() if options.quick else options.config
    records = run_sweep(
        cells(config),
        out,
        config=run_of(name, config),
        workers=options.workers,
        scheduler=options.scheduler,
    )
    if report is not None:
        text = report(config, records)
        write_text(out / "report.md", text)
        print(text)
    print(f"{name}: {len(records)} records in {out / 'records.jsonl'}")
    if options.store is not None:
        store(out, options.store)


def check_settings(settings: Any, owner: str = "") -> None:
    """Refuse numbers that no experiment can use: all are finite, and positive.

    But for seeds, and for what is 0 by default.
    """
    for field in dataclasses.fields(settings):
        name, value = f"{owner}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{name}.")
        if value == ():
            raise HypergradError(f"{name} must not be empty; got (): name one value or more")
        words = field.name.split("_")
        are_seeds = "seed" in words or (isinstance(value, tuple) and "seeds" in words)
        least = 0 if are_seeds or field.default == 0 else math.ulp(0.0)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not least <= number < math.inf:
                raise HypergradError(
                    f"{name} must be positive and finite; got {number}: pass another number"
                )
