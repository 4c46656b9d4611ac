"""Read the files of runs, and what follows from them: names, gains, the command."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import read_json, read_jsonl
from hypergrad.workbench.studies.settings import ImageStudy
from hypergrad.workbench.studies.tables import gains, shown_gains

__all__ = ["Run", "command_again", "read_run", "read_runs", "say"]

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of one run; what is not there yet is empty."""

    name: str
    folder: Path
    config: Record
    environment: Record
    comparison: list[Record]
    reference: Record
    training: list[Record]
    evaluation: list[Record]
    photograph: dict[str, Record]

    @property
    def strategies(self) -> list[str]:
        """Return the labels of all strategies, in order."""
        records = [*self.comparison, *self.training]
        return list(dict.fromkeys(str(record.get("strategy")) for record in records))

    def gains(self) -> dict[str, float]:
        """Return the gain of each learned operator in dB, where it is known."""
        return self._finite(gains)

    def shown_gains(self) -> dict[str, float]:
        """Return the gain of every operator as the terminal shows it, where it is known."""
        return self._finite(shown_gains)

    def _finite(self, of_rows: Callable[[list[Record]], dict[str, float]]) -> dict[str, float]:
        rows = [
            {key: math.nan if value is None else value for key, value in row.items()}
            for row in self.evaluation
        ]
        try:
            return {label: gain for label, gain in of_rows(rows).items() if math.isfinite(gain)}
        except (KeyError, StopIteration):  # rows are incomplete
            return {}


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read the folder of a run of `compare` or `train`, finished or not.

    **Raises**: `HypergradError` if it holds no such run, or a file that cannot be read.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path) if path.exists() else None
    if not isinstance(config, dict) or "strategies" not in config:
        raise HypergradError(
            f"{folder} must be the folder of a run of compare or train; got one without its "
            "config.json: name the folder that was its --out"
        )
    records = _read(folder / "records.jsonl", read_jsonl, [])
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        config=config,
        environment=_read(folder / "environment.json", read_json, {}),
        comparison=_read(folder / "comparison.jsonl", read_jsonl, []),
        reference=_read(folder / "reference.json", read_json, {}),
        training=[record for record in records if record.get("kind") == "training"],
        evaluation=[record for record in records if record.get("kind") == "evaluation"],
        photograph=_read(folder / "photograph.json", read_json, {}),
    )


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read several runs; folders of one name are told apart by their whole path."""
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    if len(set(names)) < len(names):
        raise HypergradError(f"runs must differ; got {', '.join(names)}: name each folder once")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def say(runs: Sequence[Run], conclude: Callable[[Run], str]) -> list[str]:
    """Return the conclusion for each run that has one, after its name where there are several."""
    found = [(run.name, conclude(run)) for run in runs]
    return [text if len(runs) == 1 else f"{name}: {text}" for name, text in found if text]


def _read(path: Path, read: Callable[[Path], Any], missing: Any) -> Any:
    found = read(path) if path.exists() else missing
    if not isinstance(found, type(missing)):
        kind = {dict: "one JSON object", list: "JSON objects"}[type(missing)]
        raise HypergradError(f"{path} must hold {kind}; got {type(found).__name__}: repair it")
    return found


# Settings that the command line has options for; `stride` follows `patch`.
_OPTIONS = (
    *("strategies", "epochs", "batch_size", "learning_rate", "iterations", "noise", "patch"),
    *("seed", "dtype", "data", "frame", "bits", "rate", "skip_unreadable"),
    *("K", "row_weights", "F", "G", "loss"),
)


def command_again(config: Mapping[str, Any]) -> str | None:
    """Return the command with these settings; None where they were made in Python.

    >>> command_again({"strategies": ["full", "limit:cgls"], "epochs": 3})
    'hypergrad compare --strategies full limit:cgls --epochs 3'
    """
    for words, study in ((), ImageStudy()), (("--quick",), ImageStudy().quick()):
        usual = dataclasses.asdict(study)
        patch = config.get("patch")
        if isinstance(patch, int) and patch != usual["patch"]:
            usual["stride"] = max(1, patch // 2)
        usual["strategies"] = list(usual["strategies"])
        given = {name: config.get(name, value) for name, value in usual.items()}
        other = [name for name, value in usual.items() if given[name] != value]
        if set(other) <= set(_OPTIONS):
            options = [_option(name, given[name]) for name in _OPTIONS if name in other]
            return " ".join(["hypergrad compare", *words, *options])
    return None


def _option(name: str, value: Any) -> str:
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{word}" if value else f"--no-{word}"
    values = value if isinstance(value, list) else [value]
    return shlex.join([f"--{word}", *map(str, values)])
