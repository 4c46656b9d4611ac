"""The progress bar of everything that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(*, disable: bool = False) -> Progress:
    """A bar with steps, a note (the field `loss`), elapsed time and time left, on standard error.

    >>> with progress_bar(disable=True) as bar:
    ...     task = bar.add_task("learning", total=10, loss="")
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    return Progress(
        # On a narrow terminal labels go over several lines: they are never cut.
        TextColumn("{task.description:<28}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}", table_column=Column(overflow="fold")),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # Steps may take minutes: the speed is that of the whole run, not of the last 30 seconds.
        speed_estimate_period=float("inf"),
        disable=disable,
    )
