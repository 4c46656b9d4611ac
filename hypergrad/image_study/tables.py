"""Tables of a run, in Markdown and for the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hypergrad.comparison import Comparison
from hypergrad.image_study.baselines import CONVERGED_TOLERANCE
from hypergrad.image_study.samples import StudyData
from hypergrad.image_study.settings import ImageStudy
from hypergrad.records import format_cell, markdown_table

__all__ = ["TABLE", "learning_table", "report", "terminal_table"]

TABLE = {
    "operator": "operator",
    "train_at_L": "training loss at L",
    "held_out_at_L": "held-out loss at L",
    "train_converged": "training loss, converged",
    "held_out_converged": "held-out loss, converged",
    "psnr_at_L": "held-out PSNR at L (dB)",
    "psnr_converged": "held-out PSNR, converged (dB)",
    "share_converged": "share converged",
    "seconds": "training time (s)",
}


def report(
    config: ImageStudy, samples: StudyData, comparison: Comparison, rows: list[dict[str, Any]]
) -> str:
    parts = {"K": config.K, "F": config.F, "G": config.G, "loss": config.loss}
    usual = dataclasses.asdict(ImageStudy())
    given = [f"{name} = {text}" for name, text in parts.items() if text != usual[name]]
    own = f" Learned with {', '.join(given)} (the table is in the loss above)." if given else ""
    return (
        "# Hypergradients on one batch\n\n"
        f"{comparison}\n\n"
        "# Learned operators\n\n"
        f"Loss: half the squared error a patch. L = {config.iterations}; converged: relative "
        f"residual below {CONVERGED_TOLERANCE:g}, at most {config.converged_iterations} "
        f"iterations. {len(samples.train)} training and {len(samples.held_out)} held-out samples, "
        f"{config.epochs} epochs, seed {config.seed}.{own}\n\n"
        f"{markdown_table(rows, TABLE)}\n"
    )


def terminal_table(comparison: Comparison) -> Any:
    return _table(
        comparison.records,
        {
            "strategy": "strategy",
            "relative_error": "rel. error",
            "cosine": "cosine",
            "milliseconds": "time (ms)",
            "over_forward": "/ forward",
            "peak_megabytes": "MB",
            "error": "error",
        },
    )


def learning_table(rows: list[dict[str, Any]]) -> Any:
    return _table(
        rows,
        {
            "operator": "operator",
            "train_at_L": "train, L",
            "held_out_at_L": "held out, L",
            "held_out_converged": "converged",
            "psnr_at_L": "dB, L",
            "psnr_converged": "dB, conv.",
            "seconds": "s",
        },
    )


def _table(records: list[dict[str, Any]], columns: Mapping[str, str]) -> Any:
    """A table for the terminal; columns that are empty everywhere are left out."""
    from rich.table import Table

    used = {
        key: heading
        for key, heading in columns.items()
        if any(record.get(key) is not None for record in records)
    }
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(used.values()):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for record in records:
        table.add_row(*(format_cell(record.get(key)) for key in used))
    return table
