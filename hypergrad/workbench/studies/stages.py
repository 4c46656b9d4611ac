"""The stages of a run, one after the other."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from hypergrad import plotting
from hypergrad._foundation.progress import progress_bar
from hypergrad._foundation.records import (
    claim_folder,
    environment,
    in_use,
    write_json,
    write_jsonl,
    write_text,
)
from hypergrad._foundation.terminal import note
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import distinct_labels
from hypergrad.strategies import Truncation, parse_strategy
from hypergrad.workbench.studies.baselines import NAMES, checked_operators, in_words, tuned_problems
from hypergrad.workbench.studies.contents import PAGE, worth_opening, write_contents
from hypergrad.workbench.studies.evaluation import evaluate_all, make_restorer
from hypergrad.workbench.studies.learning import (
    compare_on_a_batch,
    train_all,
    training_records,
    with_row_weights,
)
from hypergrad.workbench.studies.pictures import draw
from hypergrad.workbench.studies.report_page import report_page
from hypergrad.workbench.studies.samples import Study, contents_of, load
from hypergrad.workbench.studies.settings import ImageStudy
from hypergrad.workbench.studies.tables import (
    about_the_table,
    in_one_line,
    learning_table,
    remarks,
    report,
    ssim_fell,
)

__all__ = ["run_image_study"]


def run_image_study(
    config: ImageStudy, out: Path, console: Console, devices: Mesh | None = None
) -> None:
    """Run all stages, write everything under `out`; finished training is taken from there.

    `devices` are those that learn: see `train`. A quiet console shows no progress, either.
    """
    strategies = distinct_labels(list(map(parse_strategy, config.strategies)), taken=NAMES)
    for strategy in strategies.values():
        strategy.check(ChambollePock(config.iterations))

    samples = load(config, functools.partial(console.print, markup=False))
    analysis_operators = checked_operators(config, samples.shape)
    # With what stands behind the settings: a run that has changed is refused before it writes.
    claim_folder(out, dataclasses.asdict(config) | contents_of(config, samples))
    with in_use(out):
        study = Study(config, samples, strategies)
        _run_stages(study, analysis_operators, out, console, devices)


def _run_stages(
    study: Study,
    analysis_operators: Mapping[str, Any],
    out: Path,
    console: Console,
    devices: Mesh | None,
) -> None:
    started, config, samples = time.perf_counter(), study.config, study.samples
    write_json(out / "environment.json", environment())
    write_contents(out)
    K = analysis_operators["untrained"]
    _print(console, note(in_one_line(config, samples, K.shape), width=console.width))
    tuned = tuned_problems(study, analysis_operators)
    for name, found in tuned.items():
        _print(console, note(in_words(found), f"{name}: ", console.width))
    problems = {name: found.problem for name, found in tuned.items()}
    if config.row_weights:
        problems["untrained"] = with_row_weights(problems["untrained"])
    start = problems["untrained"]

    console.print("\n[bold]Gradients[/], before learning, on one batch")
    comparison = compare_on_a_batch(study, start)
    comparison.save(out)
    _print(console, comparison.brief(console.width))
    _print(console, comparison.notes(console.width))

    console.print("\n[bold]Learning[/]")
    with progress_bar(disable=console.quiet) as bar:
        histories = train_all(study, start, out, bar, devices)
    rows = evaluate_all(study, problems, histories)
    training = list(training_records(histories))
    write_jsonl(out / "records.jsonl", [*training, *rows])
    drawn = {"untrained": start}
    restorers = {"untrained": make_restorer(study, start, Truncation(1))}
    for label, history in histories.items():
        drawn[label] = history.best.problem
        restorers[label] = make_restorer(study, drawn[label], study.strategies[label])
    write_text(out / "table.md", report(config, samples, comparison, rows, training))
    photograph = draw(study, drawn, restorers, training, rows, out)
    if any(record.get("relative_error") for record in comparison.records):
        plotting.save_figure(comparison.plot(), out / "comparison")
    write_text(out / PAGE, report_page([out]))
    _print(console, learning_table(rows, console.width))
    _print(console, note(about_the_table(config), width=console.width))
    said = [*remarks(config, samples, rows, training), ssim_fell(photograph, rows)]
    for text in filter(None, said):
        _print(console, "\n" + note(text, width=console.width))
    seconds = time.perf_counter() - started
    console.print(f"\n{seconds:.0f} s; in {out} open", markup=False)
    for path, what in worth_opening(config, out):
        console.print(f"  {path.name}: {what}", markup=False)


def _print(console: Console, text: str) -> None:
    """Lines as they are: a label that is wider than the terminal is its own to break."""
    console.print(text, markup=False, soft_wrap=True)
