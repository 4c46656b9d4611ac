"""What the figures share: the stored records of an experiment, and where a figure goes."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _conclusions import CONCLUSIONS
from matplotlib.figure import Figure

from hypergrad._foundation.errors import HypergradError, one_line, reason_of, user_message
from hypergrad._foundation.records import read_jsonl, write_bytes
from hypergrad.plotting import DPI, TEXT, Style, save_figure, style_of

STORED = Path(__file__).parents[1] / "experiments" / "records"
DRAWN = Path(__file__).parent / "drawn"

Record = Mapping[str, Any]

# Styles of what is no strategy, in colours that no strategy has.
PRIMAL = Style("#00868b", (0, (8, 1)), "p")
DUAL = Style("#c2185b", (0, (3, 1.5)), "X")
OTHER = Style("#7f8c00", (0, (10, 2)), "h")
TRUTH = {"color": "0.8", "lw": 4.0}  # a broad line that others are drawn on
FORWARD = style_of("identity")  # the forward solve alone


def read(folder: Path) -> list[Record]:
    """The records of an experiment; says how to make them where there are none."""
    path = folder / "records.jsonl"
    if not path.exists():
        raise HypergradError(
            f"{path} must hold the records of the experiment; got no such file: run "
            f"python experiments/{folder.name}.py --store {folder}"
        )
    return [*read_jsonl(path)]


def select(records: Sequence[Record], **values: Any) -> list[Record]:
    """The records with these values in their columns.

    >>> select([{"a": 1, "b": 2}, {"a": 2, "b": 2}], a=2)
    [{'a': 2, 'b': 2}]
    """
    return [r for r in records if all(r.get(key) == value for key, value in values.items())]


def values(records: Sequence[Record], column: str) -> list[float]:
    """One column; says which record lacks a number."""
    for record in records:
        if record.get(column) is None:
            about = {k: v for k, v in record.items() if isinstance(v, str | int)}
            raise HypergradError(f"{column} must be a number in every record; got none in {about}")
    if not records:
        raise HypergradError(f"there must be records with {column}; got none: run the experiment")
    return [float(record[column]) for record in records]


def paired(column: str, *methods: Sequence[Record]) -> list[np.ndarray]:
    """One column of several methods over the seeds that all have, a record for each.

    >>> paired("x", [{"seed": 1, "x": 5}, {"seed": 0, "x": 4}], [{"seed": 1, "x": 7}])
    [array([5.]), array([7.])]
    """
    columns = []
    for records in methods:
        seeds = [record["seed"] for record in records]
        if len(set(seeds)) < len(seeds):
            raise HypergradError(f"there must be one record a seed; got the seeds {seeds}")
        columns.append(dict(zip(seeds, values(records, column), strict=True)))
    common = sorted(set.intersection(*(set(found) for found in columns)))
    if not common:
        raise HypergradError(f"{column} must be measured with common seeds; got none")
    return [np.array([found[seed] for seed in common]) for found in columns]


def decibels_over(loss: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How much nearer to the truth than a reference, from losses that are mean squares.

    >>> decibels_over(np.array([0.1]), np.array([1.0]))
    array([10.])
    """
    return 10 * np.log10(reference / loss)


def arrays(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    """The stored arrays of the one cell whose file begins with `prefix`."""
    paths = sorted(folder.glob(f"{prefix}*.npz"))
    if len(paths) != 1:
        raise HypergradError(
            f"{folder} must hold one {prefix}*.npz; got {len(paths)}: store it again"
        )
    try:
        with np.load(paths[0], allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise HypergradError(
            f"{paths[0]} must be an archive of arrays; got {reason_of(error)}: store it again"
        ) from None


def why_not(error: Exception, folder: Path) -> str:
    """Why there is no figure, in one line; with the records that stand here it is raised, as a bug.

    Others may be those of a quick run, of another version, or damaged: what they lack shows where.
    """
    if isinstance(error, ValueError | OSError):
        return user_message(error) or one_line(str(error))
    if STORED in (folder.resolve(), folder.resolve().parent):
        raise error
    at = [f for f in traceback.extract_tb(error.__traceback__) if "paper_figs" in f.filename][-1]
    return one_line(
        f"{folder} must hold the records of a whole run; got some that {at.name} cannot use "
        f"({Path(at.filename).name}, line {at.lineno}: {type(error).__name__}: {error}): run the "
        "experiment in full, and store it again"
    )


def conclude(figure: Figure, name: str, folder: Path) -> Figure:
    """Put the conclusion above a figure, if it is drawn from the records it was read from."""
    if STORED not in folder.resolve().parents:
        return figure
    letters = int(11.8 * figure.get_figwidth())
    title = textwrap.fill(f"{name.partition('_')[0]}: {CONCLUSIONS[name]}", letters)
    if figure.get_layout_engine() is None:  # pictures at exact places: make room above them
        before, room = figure.get_figheight(), 0.3
        figure.set_figheight(before + room)
        for axes in figure.axes:
            x, y, width, height = axes.get_position().bounds
            shrink = before / (before + room)
            axes.set_position((x, y * shrink, width, height * shrink))
    else:
        figure.set_figheight(figure.get_figheight() + 0.2 * (1 + title.count("\n")))
    figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT, fontweight="bold")
    return figure


def store(figure: Figure, path: Path) -> Path:
    """Write a figure as WebP, which every browser shows: without loss where that is smaller."""
    drawn = []
    for options in ({"lossless": True, "quality": 100}, {"quality": 88}):
        figure.savefig(file := io.BytesIO(), format="webp", dpi=DPI, pil_kwargs=options)
        drawn.append(file.getvalue())
    write_bytes(path, lambda target: target.write(min(drawn, key=len)))
    return path


def main(experiment: str, figures: dict[str, Callable[[Path], Figure]]) -> None:
    """Draw the figures of one experiment from its records, as PDF and PNG."""
    parser = argparse.ArgumentParser(description=f"Figures of {experiment}.")
    parser.add_argument("--records", type=Path, default=STORED / experiment)
    parser.add_argument("--out", type=Path, default=DRAWN)
    options = parser.parse_args()
    try:
        for name, draw in figures.items():
            figure = conclude(draw(options.records), name, options.records)
            for path in save_figure(figure, options.out / name):
                print(path)
    except Exception as error:
        print(f"{experiment}: {why_not(error, options.records)}", file=sys.stderr)
        sys.exit(1)
