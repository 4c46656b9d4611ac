"""Tables and notes for a terminal of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hypergrad._foundation.records import format_cell

WIDTH = 80
_GAP, _INDENT = "  ", "  "


def terminal_table(
    records: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    width: int = WIDTH,
    *,
    rule_after: int | None = None,
) -> str:
    """Lay out records under the headings of their columns; empty columns are left out.

    `rule_after` draws a line below so many records.

    Nothing is cut: where the table is wider than the terminal, the first column (the labels) gets
    lines of its own, and the others as many lines below it as they need.

    >>> print(terminal_table([{"L": 10, "error": 0.25}], {"L": "L", "error": "error"}))
    L   error
    10   0.25
    >>> print(terminal_table([{"L": 10, "error": 0.25}], {"L": "L", "error": "error"}, width=7))
    L
      error
    10
       0.25
    """
    used = {
        key: heading.split("\n")
        for key, heading in columns.items()
        if any(record.get(key) is not None for record in records)
    }
    if not used:
        return ""
    depth = max(map(len, used.values()))
    head = zip(*([""] * (depth - len(lines)) + lines for lines in used.values()), strict=True)
    rows = [*head, *([format_cell(record.get(key)) for key in used] for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fits = sum(widths) + len(_GAP) * (len(widths) - 1) <= width
    lay_out = _aligned if fits else _stacked
    blocks = lay_out(rows[:depth], rows[depth:], widths, width)
    lines = [line.rstrip() for block in blocks for line in block]
    if rule_after is not None:
        longest = max(map(len, lines))
        lines.insert(sum(map(len, blocks[: 1 + rule_after])), "\u2500" * min(longest, width))
    return "\n".join(lines)


Blocks = list[list[str]]


def _aligned(
    head: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    width: int,
) -> Blocks:
    """Lay out a line a record, the head first: labels on the left, numbers on the right."""
    del width

    def line(row: Sequence[str]) -> str:
        label = row[0].ljust(widths[0])
        return _GAP.join([label, *map(str.rjust, row[1:], widths[1:])])

    return [list(map(line, head)), *([line(row)] for row in rows)]


def _stacked(
    head: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    width: int,
) -> Blocks:
    """Lay out labels on lines of their own, and the other columns below in groups that fit."""
    groups: list[list[int]] = []
    room = 0
    for column in range(1, len(widths)):
        room -= len(_GAP) + widths[column]
        if room < 0 or not groups:
            groups.append([])
            room = width - len(_INDENT) - widths[column]
        groups[-1].append(column)

    def numbers(row: Sequence[str]) -> list[str]:
        cells = [[row[column].rjust(widths[column]) for column in group] for group in groups]
        return [_INDENT + _GAP.join(group) for group in cells]

    labels = [row[0] for row in head if row[0]]
    # Of a heading of several lines each group has its own.
    over = [line for lines in zip(*map(numbers, head), strict=True) for line in lines]
    return [[*labels, *filter(str.strip, over)], *([row[0], *numbers(row)] for row in rows)]


def note(text: str, label: str = "", width: int = WIDTH) -> str:
    """Break a sentence between words; a label before it stays in one piece.

    >>> print(note("neither cut nor broken", "a-label-that-is-long: ", width=20))
    a-label-that-is-long: neither
      cut nor broken
    """
    return textwrap.fill(
        text, width, initial_indent=label, subsequent_indent=_INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
