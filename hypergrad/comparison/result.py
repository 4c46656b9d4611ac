"""The result of a comparison: records, as a table, as files, as a figure."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypergrad._foundation.records import (
    latex_table,
    markdown_table,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from hypergrad._foundation.status import Status
from hypergrad._foundation.terminal import WIDTH, note, terminal_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Comparison", "not_unique"]

# The entries of a record with heading and unit. Everything that prints or draws reads this.
COLUMNS = {
    "strategy": "strategy",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "relative_error": "relative error",
    "cosine": "cosine",
    "relative_error_differentiable": "relative error, differentiable samples",
    "error_bound": "error bound, all samples (relative)",
    "certified": "share certified by the bound",
    "milliseconds": "time (ms)",
    "over_forward": "time / forward",
    "compile_seconds": "compile (s)",
    "peak_megabytes": "memory (MB)",
    "forward_status": "forward status",
    "forward_residual": "forward residual (worst)",
    "adjoint_status": "adjoint status",
    "adjoint_residual": "adjoint residual (worst)",
    "products": "products with K (mean per sample)",
    "error": "error",
}


# Headings of the columns on a terminal.
_BRIEF = {
    "strategy": "strategy",
    "error": "relative\nerror",
    "cosine": "cosine",
    "time": "time\n(forward\nsolves)",
    "memory": "memory\n(MB)",
    "status": "status",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Records of strategies on one batch, and how good the reference is that they are held against.

    Printing it gives the main columns, `markdown` all of them; `save` writes records, table and
    environment; `plot` draws it.
    """

    records: list[dict[str, Any]]
    reference: dict[str, Any]
    environment: dict[str, Any]

    def table(self) -> str:
        """The records as a Markdown table; columns that are empty everywhere are left out."""
        used = {
            key: heading
            for key, heading in COLUMNS.items()
            if any(record.get(key) is not None for record in self.records)
        }
        return markdown_table(self.records, used)

    def __str__(self) -> str:
        return f"{self.brief()}\n{self.notes()}"

    def brief(self, width: int = WIDTH) -> str:
        """Lay out error, cosine, time, memory and status for a terminal of this width.

        Where most samples have several gradients, "not unique" replaces errors that would mislead.
        """
        return terminal_table(self._rows(), self._brief_columns(), width)

    def notes(self, width: int = WIDTH) -> str:
        """Describe the reference, and why a strategy failed."""
        lines = [note(self.about_the_reference(), width=width)]
        for record in self.records:
            if record.get("error") is not None:
                lines.append(note(record["error"], f"{record['strategy']}: ", width))
        return "\n".join(lines)

    def about_the_reference(self) -> str:
        """Describe the reference that errors are measured against."""
        if warning := not_unique(self.reference):
            return warning
        certified, only = (
            f"{100 * self.reference[share]:.3g} %" for share in ("certified", "differentiable")
        )
        return (
            f"Error against the exact gradient, which is certified on {certified} of the samples "
            f"and unique on {only}."
        )

    def markdown(self) -> str:
        """Return all columns, and a description of the reference."""
        reference = self.reference
        return (
            f"{self.table()}\n\nReference: {reference['how']}; forward {reference['status']} "
            f"(worst residual {_residual(reference['residual'])}); adjoint "
            f"{reference['adjoint_status']} (worst {_residual(reference['adjoint_residual'])}). "
            f"Gradients are those of the {100 * reference['certified']:.3g} % of the samples that "
            f"it is certified on. On {100 * reference['differentiable']:.3g} % the solution map is "
            "differentiable; on the others (dependent active rows of K, or a coordinate on its "
            "kink) the reference is one gradient of several, and valid gradients can "
            "differ from it by several per cent."
        )

    def save(self, folder: str | Path) -> None:
        """Write `comparison.jsonl`, `comparison.md`, `reference.json`, `environment.json`."""
        folder = Path(folder)
        write_jsonl(folder / "comparison.jsonl", self.records)
        write_text(folder / "comparison.md", f"{self.markdown()}\n")
        write_json(folder / "reference.json", self.reference)
        write_json(folder / "environment.json", self.environment)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read what `save` wrote; numbers that were not finite are None."""
        folder = Path(folder)
        return cls(
            read_jsonl(folder / "comparison.jsonl"),
            read_json(folder / "reference.json"),
            read_json(folder / "environment.json"),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return the records as a pandas data frame, one row per strategy."""
        import pandas as pd

        used = [key for key in COLUMNS if any(key in record for record in self.records)]
        return pd.DataFrame(self.records, columns=used)

    def to_latex(self) -> str:
        """Return the main columns as a LaTeX `tabular`, with rules of the package booktabs."""
        rows = [[cell or "-" for cell in row.values()] for row in self._rows()]
        return latex_table(list(self._headings().values()), rows)

    def _repr_html_(self) -> str:
        import pandas as pd

        frame = pd.DataFrame(self._rows()).rename(columns=self._headings())
        notes = html.escape(self.notes()).replace("\n", "<br>")
        return f"{frame.to_html(index=False, na_rep='-')}<p>{notes}</p>"

    def _headings(self) -> dict[str, str]:
        return {key: _BRIEF[key].replace("\n", " ") for key in self._brief_columns()}

    def _rows(self) -> list[dict[str, str | None]]:
        rows = list(map(_brief_row, self.records))
        if not_unique(self.reference):
            rows = [row | {"error": row["error"] and "not unique"} for row in rows]
        return [{key: row[key] for key in self._brief_columns()} for row in rows]

    def _brief_columns(self) -> dict[str, str]:
        hidden = {"cosine"} if not_unique(self.reference) else set[str]()
        return {key: heading for key, heading in _BRIEF.items() if key not in hidden}

    def plot(self) -> Any:
        """Return a matplotlib figure: relative error against time, one marker per strategy."""
        from hypergrad.plotting import plot_comparison

        return plot_comparison(self.records, warning=not_unique(self.reference))


def not_unique(reference: Mapping[str, Any]) -> str:
    """Warn where fewer than half of the samples have a single gradient; else an empty text.

    >>> not_unique({"certified": 1.0, "differentiable": 0.5})
    ''
    """
    certified, unique = reference.get("certified"), reference.get("differentiable")
    if certified is None or unique is None or unique >= 0.5:
        return ""
    if certified < 0.5:
        return (
            f"Warning: the reference is no measure. It is certified on {100 * certified:.3g} % of "
            f"the samples only, and the solution map differentiable on {100 * unique:.3g} % of the "
            "samples."
        )
    return (
        "Warning: gradients are not unique. The solution map is differentiable on "
        f"{100 * unique:.3g} % of the samples only; the others have several gradients, between "
        "which strategies choose differently, so a difference from the reference is no error."
    )


def _brief_row(record: dict[str, Any]) -> dict[str, str | None]:
    def written(name: str, layout: str) -> str | None:
        value = record.get(name)
        return None if value is None else format(value, layout)

    error = written("relative_error", ".1e")
    return {
        "strategy": record["strategy"],
        # 2.6e-3 and not 2.6e-03.
        "error": None if error is None else re.sub(r"e([+-])0", r"e\1", error),
        "cosine": written("cosine", ".3f"),
        "time": written("over_forward", ".2g"),
        "memory": written("peak_megabytes", ".2g"),
        "status": _status_in_words(record),
    }


def _status_in_words(record: dict[str, Any]) -> str:
    """Return how both solves ended; iterations that are used up were a choice, not a failure.

    Of a part of the samples the rest converged.
    """
    if record.get("error") is not None:
        return "failed"
    good, used_up = Status.CONVERGED.label, Status.ITERATIONS_USED_UP.label
    words = {
        "": (record.get("forward_status", "unknown"), "not converged"),
        "adjoint ": (record.get("adjoint_status", "unknown"), "truncated"),
    }
    parts = []
    for side, (status, chosen) in words.items():
        for text in status.removesuffix(" 100 %").split(", "):
            if text.startswith(used_up):
                parts.append(text.replace(used_up, chosen))
            elif not text.startswith(good):
                parts.append(f"{side}{text}")
    return ", ".join(parts) or good


def _residual(value: float | None) -> str:
    """Format a residual, which may be unknown."""
    return "unknown" if value is None or math.isnan(value) else f"{value:.1e}"
