"""The comparison of upper-level methods: when a run has arrived, and how statements are judged."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import read_jsonl

ROOT = Path(__file__).parents[1]
SEEDS = 3


@pytest.fixture
def experiment(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("upper_level")


def run(method: str, seed: int, losses: list[float], each: float) -> dict[str, Any]:
    """A run whose epochs take `each` iterations, a little more with every seed."""
    epochs = range(len(losses))
    iterations = [i * each * (1 + seed / 100) for i in epochs]
    costs = {
        name: [float(i) for i in epochs] for name in ("adjoint_steps", "evaluations", "seconds")
    }
    about = {"problem": "made up", "method": method, "seed": seed}
    return {**about, "true_loss": losses, "iterations": iterations, **costs}


# Losses and iterations per epoch of runs for which every statement holds.
ALL_HOLD: dict[str, tuple[list[float], float]] = {
    "low accuracy": ([1.0, 0.5, 0.2], 30),
    "middle accuracy": ([1.0, 0.4, 0.0], 50),
    "high accuracy": ([1.0, 0.4, 0.0], 100),
    "HOAG": ([1.0, 0.4, 0.0], 40),
    "adaptive": ([1.0, 0.005], 10),
    "adaptive from 1e-4": ([1.0, 0.0], 12),
    "adaptive, first step 1": ([1.0, 0.0], 9),
    "L-BFGS": ([1.0, -5.0], 1000),
}


def made_up(**changed: tuple[list[float], float]) -> list[dict[str, Any]]:
    runs = ALL_HOLD | changed
    return [run(name, seed, *of) for seed in range(SEEDS) for name, of in runs.items()]


def verdicts(experiment, runs) -> list[str]:
    table = experiment.statements_table({"made up": experiment.arrived(runs)})
    return [line.rpartition(" **")[2].removesuffix("** |") for line in table.splitlines()[2:]]


def test_the_goal_is_of_the_fixed_accuracies(experiment) -> None:
    """L-BFGS goes far below, and changes nothing."""
    runs = [r for r in made_up() if r["seed"] == 0]
    assert experiment.goal_of(runs) == pytest.approx(0.01)
    found = experiment.arrived(runs)
    arrived = {name: of.epochs[0] for name, of in found.items()}
    assert arrived["adaptive"] == arrived["L-BFGS"] == 1
    assert arrived["middle accuracy"] == 2
    assert arrived["low accuracy"] is None
    assert found["low accuracy"].gained[0] == pytest.approx(0.8)
    assert found["adaptive"].costs("iterations") == [10]
    with pytest.raises(HypergradError, match=r"a fixed accuracy to judge others by; got L-BFGS"):
        experiment.goal_of([r for r in runs if r["method"] == "L-BFGS"])


def test_every_statement_can_hold(experiment) -> None:
    assert set(verdicts(experiment, made_up())) == {"holds"}


NEVER = ([1.0, 0.1], 10)


@pytest.mark.parametrize(
    ("statement", "changed", "verdict"),
    [
        (0, {"adaptive": NEVER}, "does not hold"),
        (1, {"adaptive": ([1.0, 0.0], 150)}, "holds in part"),  # more than the middle, not the high
        (1, {"adaptive": ([1.0, 0.0], 500)}, "does not hold"),
        (1, {"adaptive": NEVER}, "does not hold"),
        (2, {"adaptive": ([1.0, 0.0], 80)}, "does not hold"),
        (2, {"adaptive": ([1.0, 0.0], 50)}, "undecided"),  # half
        (3, {"HOAG": ([1.0, 0.0], 6)}, "does not hold"),
        (3, {"HOAG": NEVER, "adaptive": NEVER}, "undecided"),
        (4, {"adaptive from 1e-4": ([1.0, 0.0], 30)}, "holds in part"),
        (4, {"adaptive": ([1.0, 0.0], 100)}, "does not hold"),
        (5, {"low accuracy": ([1.0, 0.5, 0.0], 30)}, "does not hold"),
    ],
)
def test_every_statement_can_fail(experiment, statement, changed, verdict) -> None:
    assert verdicts(experiment, made_up(**changed))[statement] == verdict


def test_a_seed_that_does_not_arrive_leaves_it_open(experiment) -> None:
    runs = [r for r in made_up() if (r["method"], r["seed"]) != ("adaptive", 0)]
    assert verdicts(experiment, [*runs, run("adaptive", 0, *NEVER)])[0] == "undecided"


def test_statements_need_their_methods(experiment) -> None:
    """A part of the methods has tables of costs alone."""
    few = [r for r in made_up() if r["method"] in ("low accuracy", "adaptive")]
    text = experiment.report(experiment.Config(), few)
    assert "| adaptive | 3 of 3 |" in text
    assert "Statements" not in text


def test_an_epoch_of_adam_has_its_fixed_cost(experiment) -> None:
    records = [{"epoch": i, "seconds": 0.5 * i, "true_loss": 1.0} for i in range(3)]
    columns = experiment.columns_of(records)
    assert columns["iterations"] == [0, experiment.L, 2 * experiment.L]
    assert "tolerance" not in columns


def test_the_page_shows_the_stored_records(experiment) -> None:
    page = (ROOT / "experiments" / "upper_level.md").read_text(encoding="utf-8")
    records = [*read_jsonl(ROOT / "experiments" / "records" / "upper_level" / "records.jsonl")]
    tables = experiment.report(experiment.Config(), records).splitlines()
    assert [line for line in tables if line.startswith("|") and line not in page] == []
