"""The result of a comparison: records, as a table, as files, as a figure."""

from __future__ import annotations

import dataclasses
import html
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypergrad._foundation.records import (
    format_cell,
    markdown_table,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from hypergrad._foundation.terminal import WIDTH, note, terminal_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Comparison"]

# The entries of a record with heading and unit. Everything that prints or draws reads this.
COLUMNS = {
    "strategy": "strategy",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "relative_error": "relative error",
    "cosine": "cosine",
    "relative_error_differentiable": "relative error, differentiable samples",
    "error_bound": "error bound (relative)",
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


# Those that fit on a terminal.
_BRIEF = {
    "strategy": "strategy",
    "relative_error": "rel. error",
    "relative_error_differentiable": "diff.",
    "cosine": "cosine",
    "milliseconds": "time (ms)",
    "over_forward": "/ forward",
    "peak_megabytes": "MB",
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
        """The main columns, for a terminal of this width."""
        return terminal_table(self.records, _BRIEF, width)

    def notes(self, width: int = WIDTH) -> str:
        """Describe the reference, and both solves of each strategy."""
        lines = [note(self.about_the_reference(), width=width)]
        for record in self.records:
            if (text := _about_the_solves(record)) is not None:
                lines.append(note(text, f"{record['strategy']}: ", width))
        return "\n".join(lines)

    def about_the_reference(self) -> str:
        """Describe the reference that errors are measured against."""
        certified, only = (
            f"{100 * self.reference[share]:.3g} %" for share in ("certified", "differentiable")
        )
        return (
            f"Errors against the exact gradient, on the {certified} of samples it is certified on; "
            f"diff.: on the {only} where it is the only one (elsewhere one of several)."
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
        used = {
            key: heading
            for key, heading in _BRIEF.items()
            if any(record.get(key) is not None for record in self.records)
        }
        rows = [list(used.values())]
        rows += [[format_cell(record.get(key)) for key in used] for record in self.records]
        head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in rows)
        columns = "l" + "r" * (len(used) - 1)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def _repr_html_(self) -> str:
        notes = html.escape(self.notes()).replace("\n", "<br>")
        return f"{self.to_dataframe().to_html(index=False, na_rep='-')}<p>{notes}</p>"

    def plot(self) -> Any:
        """A matplotlib figure: relative error against time, one marker a strategy."""
        from hypergrad.plotting import plot_comparison

        return plot_comparison(self.records)


def _latex(text: str) -> str:
    """Escape the characters that LaTeX interprets."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"|": r"\textbar{}"} | {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return text.translate(str.maketrans(special))


def _about_the_solves(record: dict[str, Any]) -> str | None:
    """Describe both solves of a strategy, or why it failed."""
    if record.get("forward_status") is None:
        return record.get("error")
    return f"forward {record['forward_status']}; adjoint {record.get('adjoint_status', 'unknown')}"


def _residual(value: float | None) -> str:
    """Format a residual, which may be unknown."""
    return "unknown" if value is None or math.isnan(value) else f"{value:.1e}"
