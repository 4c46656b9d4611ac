"""Tables for a terminal, which may be 80 columns wide."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hypergrad.records import format_cell

if TYPE_CHECKING:  # rich is imported where something is shown
    from rich.table import Table

__all__ = ["WIDTH", "as_text", "terminal_table"]

WIDTH = 80


def terminal_table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """Records by the headings of their columns; columns that are empty everywhere are left out.

    >>> print(as_text(terminal_table([{"L": 10, "error": 0.25}], {"L": "L", "error": "error"})))
    L   error
    10   0.25
    """
    from rich.table import Table

    used = {
        key: heading
        for key, heading in columns.items()
        if any(record.get(key) is not None for record in records)
    }
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(used.values()):
        table.add_column(heading, justify="left" if i == 0 else "right", vertical="bottom")
    for record in records:
        table.add_row(*(format_cell(record.get(key)) for key in used))
    return table


def as_text(table: Table, width: int = WIDTH) -> str:
    """A table as plain text."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, no_color=True, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
