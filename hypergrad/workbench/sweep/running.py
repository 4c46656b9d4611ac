"""Run the cells of a sweep that are not finished yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import Progress

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.progress import progress_bar
from hypergrad._foundation.records import (
    claim_folder,
    environment,
    in_use,
    write_json,
    write_jsonl,
)
from hypergrad.workbench.sweep.cells import Cell, Record, Result, Workspace
from hypergrad.workbench.sweep.finished import FinishedCells
from hypergrad.workbench.sweep.workers import compute_on_workers

__all__ = ["run_sweep"]


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
    >>> from hypergrad.workbench.sweep import Cell, Result
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
        finished = FinishedCells(out)
        found = {cell.name: finished.read(cell) for cell in cells}
        missing = [cell for cell in cells if found[cell.name] is None]
        with progress_bar(disable=not progress) as bar:
            if missing and (scheduler is not None or workers > 1):
                results = compute_on_workers(missing, out, workers, scheduler)
            else:
                results = _compute_here(missing, out, bar)
            for cell, result in _with_progress(results, cells, missing, bar):
                found[cell.name] = finished.write(cell, result)
                shutil.rmtree(Workspace.of(cell, out, bar).checkpoints, ignore_errors=True)
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


def _compute_here(cells: Sequence[Cell], out: Path, bar: Progress) -> Iterator[tuple[Cell, Result]]:
    for cell in cells:
        shown = set(bar.task_ids)
        yield cell, cell.compute(Workspace.of(cell, out, bar))
        for step in set(bar.task_ids) - shown:
            bar.remove_task(step)
