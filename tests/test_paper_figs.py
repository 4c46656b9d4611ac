"""The rules of the figures: verdicts, pairs by seed, records of the settings that stand here."""

import dataclasses
import doctest
import importlib
import json
import sys
from pathlib import Path

import pytest

from hypergrad.records import to_json
from hypergrad.statistics import Interval
from hypergrad.sweep import run_of

ROOT = Path(__file__).parents[1]
STORED = sorted(path.parent for path in (ROOT / "experiments" / "records").glob("*/config.json"))


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    """Scripts see the modules beside them, as when they are run."""
    for folder in ("paper_figs", "experiments"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(ROOT / "paper_figs")):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["_common", "_findings"])
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def test_a_verdict_needs_cases():
    """No records of large L are not a statement that holds."""
    findings = importlib.import_module("_findings")
    with pytest.raises(ValueError, match="case"):
        findings.verdict_of([])


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([True, True], "holds"),
        ([True, None], "holds in part"),
        ([False, None], "undecided"),
        ([False, False], "does not hold"),
    ],
)
def test_verdicts(cases, verdict):
    assert importlib.import_module("_findings").verdict_of(cases) == verdict


def test_one_seed_decides_nothing():
    findings = importlib.import_module("_findings")
    assert findings.below(Interval(1.0, float("nan"), 1), 2.0) is None


def test_a_missing_number_is_said_and_not_judged():
    common = importlib.import_module("_common")
    with pytest.raises(ValueError, match="loss must be a number"):
        common.values([{"seed": 0, "loss": None}], "loss")
    with pytest.raises(ValueError, match="one record a seed"):
        common.paired("loss", [{"seed": 0, "loss": 1.0}] * 2, [{"seed": 0, "loss": 1.0}])


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
def test_stored_records_are_of_the_settings_that_stand_here(folder):
    """Nobody changes a setting and keeps the figures of another."""
    settings = importlib.import_module(folder.name).Config()
    if folder.name == "dequantization":
        settings = dataclasses.replace(settings, speech=Path("en_US_f_Allison"))
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert stored == json.loads(to_json(run_of(folder.name, settings)))


def test_the_table_of_statements_is_that_of_the_stored_records():
    """Neither is changed without the other, and nothing in it is written by hand."""
    statements = importlib.import_module("statements")
    text = statements.document(statements.STORED)
    assert "not measured" not in text
    assert text == statements.WRITTEN.read_text(encoding="utf-8")
