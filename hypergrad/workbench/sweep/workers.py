"""Cells on workers of Dask: local processes, or those of a scheduler."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad._foundation.progress import progress_bar
from hypergrad.workbench.sweep.cells import Cell, Result, Workspace

__all__ = ["compute_on_workers"]

PATIENCE = 30  # seconds for a scheduler to answer


def compute_on_workers(
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
        where = {"address": scheduler, "timeout": PATIENCE}
    try:
        client = distributed.Client(**where)
    except (OSError, ValueError) as error:
        raise HypergradError(
            f"scheduler must be the address of a Dask scheduler that runs; got {scheduler!r} "
            f"({reason_of(error)}): start one with `dask scheduler`"
        ) from None
    with client:
        if scheduler is None:
            _share_cores(client)
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


def _share_cores(client: Any) -> None:
    """Give each local worker cores of its own, before JAX counts them.

    As many threads as cores in every worker would get in each other's way.
    """
    if not hasattr(os, "sched_setaffinity"):  # not on every system
        return
    cores, workers = sorted(os.sched_getaffinity(0)), list(client.scheduler_info()["workers"])
    for i, worker in enumerate(workers if len(workers) <= len(cores) else ()):
        client.run(os.sched_setaffinity, 0, cores[i :: len(workers)], workers=[worker])


def _has_x64() -> bool:
    import jax

    return jax.config.read("jax_enable_x64")


def _compute_on_worker(cell: Cell, out: Path, x64: bool) -> Result:
    import jax

    # A worker starts with JAX's defaults, whatever the experiment has set.
    jax.config.update("jax_enable_x64", x64)
    with progress_bar(disable=True) as bar:
        return cell.compute(Workspace.of(cell, out, bar))
