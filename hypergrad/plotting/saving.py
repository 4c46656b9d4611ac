"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from hypergrad._foundation.records import write_bytes
from hypergrad.plotting._checks import require
from hypergrad.plotting.styles import DPI


def save_figure(figure: Figure, path_without_suffix: str | Path) -> list[Path]:
    """Write a figure as PDF and PNG (150 dpi), each whole or not at all, and return their paths.

    Where drawing fails nothing is written. The same figure gives the same bytes at any time.

    **Errors**: a `ValueError` for a path that ends in `.pdf` or `.png`.
    """
    bare = Path(path_without_suffix).suffix not in (".pdf", ".png")
    require(bare, f"the path must have no suffix; got {path_without_suffix}: leave it out")
    drawn = {}
    with matplotlib.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}):
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
            figure.savefig(file := io.BytesIO(), format=suffix, dpi=DPI, metadata=metadata)
            drawn[Path(f"{path_without_suffix}.{suffix}")] = file.getvalue()
    for path, content in drawn.items():
        write_bytes(path, lambda file, content=content: file.write(content))
    return list(drawn)
