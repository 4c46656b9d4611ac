"""Run sweeps: the independent cells of an experiment, each written whole as soon as it is finished.

    out/config.json          what the run is; another run is refused the folder
    out/environment.json     where it ran
    out/cells/<name>.json    key, records and checksum of a finished cell
    out/cells/<name>.npz     its arrays, if it has any
    out/checkpoints/<name>/  of a cell at work; removed when the cell is finished
    out/files/<name>/        what else a cell leaves for a person to look at or listen to
    out/records.jsonl        all records in the order of the cells, once the last one is finished

Started again after an interruption, a sweep reads finished cells from disk and continues the others
from their checkpoints. A cell that cannot be read is reported as damaged and computed again.

Cells run one after another in this process, or on workers of Dask. The first is the default and
needs no Dask: experiments that measure time must have the machine to themselves, and a cell can
show its own progress. This process alone writes cells, so a worker that is killed costs only the
cell it was computing, which Dask gives to another one.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import math
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import tyro
from rich.progress import Progress

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import (
    DATA,
    INTERRUPTED,
    USAGE,
    HypergradError,
    reason_of,
    user_message,
)
from hypergrad._foundation.progress import progress_bar
from hypergrad._foundation.records import (
    claim_folder,
    environment,
    in_use,
    read_json,
    read_jsonl,
    round_numbers,
    to_json,
    write_json,
    write_jsonl,
    write_npz,
    write_text,
)

__all__ = [
    "AbstractSettings",
    "Cell",
    "Options",
    "Result",
    "Workspace",
    "main",
    "run_experiment",
    "run_of",
    "run_sweep",
    "store",
]

Record = Mapping[str, Any]

_PATIENCE = 30  # seconds for a scheduler to answer


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The folder of a cell's checkpoints, a bar for its steps, and a folder for files to keep.

    The files stay with the run: they are neither records nor stored.
    """

    checkpoints: Path
    bar: Progress
    files: Path

    def part(self, name: str) -> Workspace:
        """For one of several runs in a cell: checkpoints of its own."""
        return dataclasses.replace(self, checkpoints=self.checkpoints / name)


@dataclasses.dataclass(frozen=True)
class Result:
    """The flat records of a cell (its key is added to each) and arrays for the figures."""

    records: Sequence[Record]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One independent piece of a sweep.

    `key`, its parameters, plain values and different from those of any other cell; `compute`, a
    function of the key and the files under its workspace alone; `cost`, relative to other cells
    (the time left is estimated from it).
    """

    key: Record
    compute: Callable[[Workspace], Result]
    cost: float = 1.0

    @property
    def name(self) -> str:
        """The name of its files: the key in words, and a digest of it.

        >>> Cell({"strategy": "truncation:k=1", "seed": 0}, lambda workspace: Result([])).name
        'truncation-k-1-0-aac87a97'
        """
        words = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, self.key.values())))
        return f"{words[:60]}-{_digest(self.key)[:8]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()


# ------------------------------------------------------------------------------ finished cells


class _Finished:
    """The finished cells of a folder."""

    def __init__(self, out: Path):
        self.folder = out / "cells"

    def _paths(self, cell: Cell) -> tuple[Path, Path]:
        return self.folder / f"{cell.name}.json", self.folder / f"{cell.name}.npz"

    def write(self, cell: Cell, result: Result) -> list[Record]:
        """Write the arrays, then the records, which make the cell a finished one; return these."""
        path, arrays_path = self._paths(cell)
        digest = None
        if result.arrays:
            write_npz(arrays_path, result.arrays)
            digest = hashlib.sha256(arrays_path.read_bytes()).hexdigest()
        content = {
            "key": dict(cell.key),
            "records": [{**cell.key, **record} for record in result.records],
            "arrays": digest,
        }
        write_json(path, {**content, "checksum": _digest(content)})
        return read_json(path)["records"]

    def read(self, cell: Cell) -> list[Record] | None:
        """The records, or None where the cell is not finished; a damaged one is said to be."""
        path, arrays_path = self._paths(cell)
        if not path.exists():
            return None
        try:
            content = read_json(path)
            checksum = content.pop("checksum")
            whole = checksum == _digest(content)
            if whole and content["arrays"] is not None:
                whole = hashlib.sha256(arrays_path.read_bytes()).hexdigest() == content["arrays"]
            reason = "" if whole else "its checksum is another"
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            content, reason = {}, reason_of(error)
        if reason:
            print(f"{path} is damaged ({reason}): the cell is computed again", file=sys.stderr)
            return None
        return content["records"]


# ------------------------------------------------------------------------------------ the run


def run_sweep(
    cells: Sequence[Cell],
    out: str | Path,
    *,
    config: Record,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Compute the cells that are not finished yet; return all records in the order of the cells.

    **Arguments**:

    - `cells`: with different keys.
    - `out`: a new folder, or that of the same run.
    - `config`: the settings that identify the run, as JSON.
    - `workers`: number of processes. With more than one, Dask runs them on this machine.
    - `scheduler`: address of a Dask scheduler (`tcp://host:8786`) whose workers compute the cells
      in place of local ones; they see `out` under the same path.
    - `progress`: whether to show a bar with the time left.

    **Raises**: `HypergradError` if `out` holds another run or is in use, if two cells have one key,
    or if Dask is needed and not installed. An interruption leaves the finished cells and the
    checkpoints of the others.

    >>> import tempfile
    >>> def square(i):
    ...     return Cell({"i": i}, lambda workspace: Result([{"square": i * i}]))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run_sweep([square(i) for i in range(3)], out, config={}, progress=False)[2]
    {'i': 2, 'square': 4}
    """
    check_count("workers", workers)
    out = Path(out)
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise HypergradError(f"cells must have different keys; got twice: {', '.join(twice)}")
    claim_folder(out, config)
    with in_use(out):
        if not (out / "environment.json").exists():
            write_json(out / "environment.json", environment())
        finished = _Finished(out)
        found = {cell.name: finished.read(cell) for cell in cells}
        missing = [cell for cell in cells if found[cell.name] is None]
        with progress_bar(disable=not progress) as bar:
            if missing and (scheduler is not None or workers > 1):
                results = _compute_on_workers(missing, out, workers, scheduler)
            else:
                results = _compute_here(missing, out, bar)
            for cell, result in _with_progress(results, cells, missing, bar):
                found[cell.name] = finished.write(cell, result)
                shutil.rmtree(_workspace(cell, out, bar).checkpoints, ignore_errors=True)
        records = [record for cell in cells for record in found[cell.name] or ()]
        write_jsonl(out / "records.jsonl", records)
        return records


def _with_progress(
    results: Iterator[tuple[Cell, Result]],
    cells: Sequence[Cell],
    missing: Sequence[Cell],
    bar: Progress,
) -> Iterator[tuple[Cell, Result]]:
    # In thousandths of the whole, since cells differ in cost.
    scale = 1000 / max(sum(cell.cost for cell in cells), 1e-12)
    done = 1000 - round(scale * sum(cell.cost for cell in missing))
    task = bar.add_task("all cells (per mille)", total=1000, completed=done, loss="")
    for cell, result in results:
        yield cell, result
        bar.update(task, advance=cell.cost * scale, loss=cell.name[:40])


def _workspace(cell: Cell, out: Path, bar: Progress) -> Workspace:
    return Workspace(out / "checkpoints" / cell.name, bar, out / "files" / cell.name)


def _compute_here(cells: Sequence[Cell], out: Path, bar: Progress) -> Iterator[tuple[Cell, Result]]:
    for cell in cells:
        shown = set(bar.task_ids)
        yield cell, cell.compute(_workspace(cell, out, bar))
        for step in set(bar.task_ids) - shown:
            bar.remove_task(step)


def _compute_on_workers(
    cells: Sequence[Cell], out: Path, workers: int, scheduler: str | None
) -> Iterator[tuple[Cell, Result]]:
    """Yield results as workers of Dask finish them, in any order."""
    try:
        import distributed
    except ImportError:
        raise HypergradError(
            "several workers need Dask; got an environment without it: "
            "pip install 'hypergrad-jax[cluster]'"
        ) from None
    if scheduler is None:
        # One task at a time per process: JAX has threads of its own.
        where: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1}
        where |= {"dashboard_address": None}
    else:
        where = {"address": scheduler, "timeout": _PATIENCE}
    try:
        client = distributed.Client(**where)
    except (OSError, ValueError) as error:
        raise HypergradError(
            f"scheduler must be the address of a Dask scheduler that runs; got {scheduler!r} "
            f"({reason_of(error)}): start one with `dask scheduler`"
        ) from None
    with client:
        x64 = _has_x64()
        tasks = {
            # Dask takes equal keys for one task, and other sweeps may use the same scheduler.
            client.submit(
                _compute_on_worker, cell, out.resolve(), x64, key=f"{cell.name}-{uuid.uuid4().hex}"
            ): cell
            for cell in cells
        }
        for task in distributed.as_completed(tasks):
            yield tasks[task], task.result()


def _has_x64() -> bool:
    import jax

    return jax.config.read("jax_enable_x64")


def _compute_on_worker(cell: Cell, out: Path, x64: bool) -> Result:
    import jax

    # A worker starts with JAX's defaults, whatever the experiment has set.
    jax.config.update("jax_enable_x64", x64)
    with progress_bar(disable=True) as bar:
        return cell.compute(_workspace(cell, out, bar))


def store(out: str | Path, folder: str | Path) -> None:
    """Write the records of a finished sweep in compact form: six digits, arrays in float32."""
    out, folder = Path(out), Path(folder)
    write_jsonl(folder / "records.jsonl", round_numbers(read_jsonl(out / "records.jsonl")))
    for name in ("config.json", "environment.json"):
        write_json(folder / name, read_json(out / name))
    for path in sorted((out / "cells").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            compact = {name: _single(arrays[name]) for name in arrays.files}
        write_npz(folder / path.name, compact, compress=True)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


# ----------------------------------------------------------------- an experiment's command line


class AbstractSettings(Protocol):
    """A frozen dataclass: what an experiment is."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

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
        _check_settings(options.config)
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


def _check_settings(settings: Any, owner: str = "") -> None:
    """Refuse numbers that no experiment can use: all are finite, and positive.

    But for seeds, and for what is 0 by default.
    """
    for field in dataclasses.fields(settings):
        name, value = f"{owner}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _check_settings(value, f"{name}.")
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
