"""The rules of the figures: verdicts, pairs by seed, records of the settings that stand here."""

import dataclasses
import doctest
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypergrad._foundation.records import to_json
from hypergrad._foundation.statistics import Interval, below, mean_interval, verdict_of
from hypergrad.workbench.sweep import run_of

ROOT = Path(__file__).parents[1]
STORED = sorted(path.parent for path in (ROOT / "experiments" / "records").glob("*/config.json"))
# The data of the stored runs that are not packaged.
FOLDERS = {
    "bsd68": {"images": Path("train400"), "test": Path("bsd68")},
    "dequantization": {"speech": Path("en_US_f_Allison")},
    "inverse": {"images": Path("train400"), "test": Path("bsd68")},
}


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
    with pytest.raises(ValueError, match="case"):
        verdict_of([])


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
    assert verdict_of(cases) == verdict


def test_one_seed_decides_nothing():
    assert below(Interval(1.0, float("nan"), 1), 2.0) is None


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
    settings = dataclasses.replace(settings, **FOLDERS.get(folder.name, {}))
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert stored == json.loads(to_json(run_of(folder.name, settings)))


def test_the_table_of_statements_is_that_of_the_stored_records():
    """Neither is changed without the other, and nothing in it is written by hand."""
    statements = importlib.import_module("statements")
    text = statements.document(statements.STORED)
    assert "not measured" not in text
    assert text == statements.WRITTEN.read_text(encoding="utf-8")


def test_the_table_of_statements_can_be_read():
    """Claims of twelve words, cells of 120 characters, numbers of two digits."""
    statements = importlib.import_module("statements")
    assert all(len(statement.claim.split()) <= 12 for statement in statements.STATEMENTS)
    lines = statements.WRITTEN.read_text(encoding="utf-8").splitlines()
    tables = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    numbered = [cells for cells in tables if cells[0].startswith("[")]
    assert len(numbered) == len(statements.STATEMENTS)
    assert max(len(cell) for cells in tables for cell in cells) <= 120
    shown = [cells[2] for cells in tables if len(cells) == 4 and cells[2][-1].isdigit()]
    assert len(shown) > 100
    for number in (part for cell in shown for part in re.findall(r"[\d.]+(?=e|\b)", cell)):
        assert len(number.replace(".", "").strip("0")) <= 2, number


def test_the_stored_pictures_are_complete_and_small_and_in_the_gallery():
    """A figure that is drawn is stored and shown with its conclusion; nothing else is stored."""
    scripts = sorted((ROOT / "paper_figs").glob("fig[0-9]*.py"))
    drawn = {name for path in scripts for name in importlib.import_module(path.stem).FIGURES}
    stored = {path.stem: path for path in (ROOT / "paper_figs").glob("*.webp")}
    conclusions = importlib.import_module("_conclusions").CONCLUSIONS
    assert set(stored) == set(conclusions) == drawn
    assert sum(path.stat().st_size for path in stored.values()) < 3e6
    for path in stored.values():
        with Image.open(path) as picture:
            picture.verify()
    gallery = (ROOT / "hypergrad/workbench/guides/gallery.md").read_text(encoding="utf-8")
    entry = r"^## (\w+): (.*)\n\n<img src=\"../../../paper_figs/(\w+)\.webp\""
    shown = re.findall(entry, gallery, re.M)
    assert shown == [(name.partition("_")[0], text, name) for name, text in conclusions.items()]


def test_the_numbers_of_the_table_of_decisions_are_those_of_the_records():
    """They are written by hand in a guide, and have to follow when records do."""
    common = importlib.import_module("_common")
    fig04, fig09 = (
        importlib.import_module(f"fig{n}") for n in ("04_backprop_steps", "09_operators")
    )
    guide = ROOT / "hypergrad" / "workbench" / "guides" / "choosing.md"
    table = guide.read_text(encoding="utf-8")

    def one(experiment: str, **where):
        (record,) = common.select(common.read(common.STORED / experiment), **where)
        return record

    def cost(strategy: str):
        return one("cost", strategy=strategy, L=100, k=10, batch=64, side=8)

    forward, full, peer = map(cost, ("forward solve", "full", "optimistix-checkpointed"))
    steps = [
        cost(s)["over_floor"] / forward["over_floor"] for s in ("truncation:k=10", "limit:steps=10")
    ]
    exact = cost("exact")["over_floor"] / full["over_floor"]
    cgls, unrolled = (
        one("frontier", K="easy: DCT", L=50, strategy=strategy)
        for strategy in ("limit:cgls", "full")
    )
    learned = common.read(common.STORED / "backprop_steps")
    gain = mean_interval(
        fig04.over_full(
            learned,
            common.select(learned, kind="learned", strategy="truncation:k=1"),
            "held_out_converged",
        )
    )
    operators = common.read(common.STORED / "operators")
    psnr = {
        recipe: fig09._by_seed(common.select(operators, kind="learned", recipe=recipe))
        for recipe in ("2.7 n, one step", "2.7 n, from DCT and differences")
    }
    behind = mean_interval(np.subtract(*reversed(psnr.values())))
    rows = common.select(
        common.read(common.STORED / "gradient_quality"),
        kind="errors", problem="L1 + Quadratic", place="learned", ratio=1.0, strategy="limit:cgls",
    )  # fmt: skip
    wrong = np.exp(np.mean([np.log(r["error_50"][r["L"].index(10)]) for r in rows]))
    for words in (
        f"learned {gain.mean:.2f} ± {gain.half:.2f} dB more",
        f"one step stayed {behind.mean:.2f} dB behind",
        f"ten take {steps[0]:.1f} and {steps[1]:.1f} forward solves",
        f"{cgls['relative_error']:.0e} in {cgls['milliseconds']:.1f} ms",
        f"where `full` takes {unrolled['milliseconds']:.1f}",
        f"was {wrong:.0e}".replace("5e+01", "50") + " times the gradient",
        f"{peer['megabytes']:.1f} MB for {full['megabytes']:.1f}",
        f"in {peer['over_floor'] / full['over_floor']:.0f} times the time",
        f"about {exact:.0f} times the time of `full`",
    ):
        assert words in table
