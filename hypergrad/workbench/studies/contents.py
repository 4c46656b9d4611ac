"""Describe the files in the folder of a run."""

from __future__ import annotations

from pathlib import Path

from hypergrad._foundation.records import markdown_table, write_text
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = ["CONTENTS", "PAGE", "worth_opening", "write_contents"]

PAGE = "report.html"
_README = "README.md"

# Every file of a run: the pattern of its name, what it holds, how it is read.
CONTENTS = {
    PAGE: (
        "all of this on one page: tables, interactive curves, the photograph with a slider",
        "any browser, without a network; `hypergrad report RUN RUN` puts runs side by side",
    ),
    "table.md": (
        "the result: the comparison on one batch, then every operator on training and held-out "
        "data",
        "any text viewer; numbers with more digits are in records.jsonl",
    ),
    "records.jsonl": (
        "one record for each epoch of each strategy (kind: training), then one for each row of the "
        "last table (kind: evaluation)",
        "`hypergrad._foundation.records.read_jsonl(path)`; one JSON object a line",
    ),
    "comparison.md": (
        "gradient, time and memory of each strategy on one batch before learning, and how good the "
        "reference is",
        "any text viewer",
    ),
    "comparison.jsonl": ("its numbers, a record for each strategy", "as records.jsonl"),
    "reference.json": ("the exact reference: its status, and the shares of samples", "JSON"),
    "comparison.png, .pdf": (
        "error over time, a marker for each strategy",
        "lower left is better",
    ),
    "loss_over_epochs.png, .pdf": (
        "the loss that is learned by, on training and held-out data",
        "lower is better",
    ),
    "loss_over_seconds.png, .pdf": ("the same over the time of learning", "as the picture above"),
    "operator_<strategy>.npz": (
        "what was learned, in its best epoch: K, its functions with their weights, the solver, the "
        "strategy",
        "`hypergrad.load_operator(path)`, or `hypergrad restore FILE --operator path`",
    ),
    "operator_<name>.png, .pdf": (
        "the rows of K as small pictures, for pictures alone",
        "what the data use most stands first; each row has a colour scale of its own",
    ),
    "patches.png, .pdf": (
        "six held-out patches restored by each operator, for pictures alone",
        "PSNR below each",
    ),
    "photograph_<name>.png, .pdf": (
        "a photograph restored by each operator, where no data were given",
        "PSNR and SSIM above each",
    ),
    "photograph_<name>.npz": (
        "the same pictures as grey levels: observed, restored by each operator, truth",
        "`numpy.load(path)`",
    ),
    "photograph.json": ("those numbers", "JSON"),
    "config.json": (
        "the settings: the same ones go on in this folder, others are refused",
        "JSON",
    ),
    "environment.json": ("versions and machine", "JSON"),
    "checkpoints/<strategy>/": (
        "where learning goes on after an interruption",
        "by the same command with this folder as --out; can be deleted when all is done",
    ),
}


def worth_opening(config: ImageStudy, out: Path) -> list[tuple[Path, str]]:
    """Return the paths to open first, each with what it shows; pictures only where there are."""
    found = [
        (out / PAGE, "tables, curves and pictures on one page"),
        (out / f"photograph_{config.photograph}.png", "a photograph restored by each operator"),
        (out / "loss_over_epochs.png", "the loss of each strategy as it learns"),
        (out / _README, "what each file is"),
    ]
    return [(path, what) for path, what in found if path.exists()]


def write_contents(out: Path) -> None:
    """Write the README of a folder, unless it has one: that may be the user's by now."""
    path = out / _README
    if path.exists():
        return
    rows = [
        {"file": f"`{pattern}`", "holds": holds, "read": read}
        for pattern, (holds, read) in CONTENTS.items()
    ]
    columns = {"file": "file", "holds": "what it holds", "read": "how to read it"}
    write_text(
        path,
        "# A run of hypergrad\n\n"
        "Each file is whole: one that is not there yet comes at its stage. In names of files "
        "`truncation:k=1` is `truncation_k-1`.\n\n"
        f"{markdown_table(rows, columns)}\n",
    )
