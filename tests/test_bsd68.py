"""The benchmark on photographs, in miniature: its noise, its records, and its report."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

from hypergrad.workbench import data
from hypergrad.workbench.studies.whole_images import Learning
from hypergrad.workbench.sweep import run_sweep

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bsd68():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        yield importlib.import_module("bsd68")


@pytest.fixture(scope="module")
def config(bsd68):
    return dataclasses.replace(
        bsd68.Config().quick(),
        models=("noisy", "dct 2x2x2", "l1 2x2x2"),
        compared="l1 2x2x2",
        strategies=("limit:steps=10",),
        learning=Learning(crop=12, crops=4, rounds=2, batch_size=2, L=5),
        side=16,
    )


@pytest.fixture(scope="module")
def records(bsd68, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return run_sweep(bsd68.cells(config), out, config={}, progress=False)


def test_the_noise_is_that_of_the_rule(records):
    """Of the first photograph: `25 / 255 * default_rng([68, 0])`, neither clipped nor rounded."""
    image = data.photograph(data.PHOTOGRAPHS_HELD_OUT[0])
    noise = 25 / 255 * np.random.default_rng([68, 0]).standard_normal(image.shape)
    (noisy,) = [r for r in records if r["model"] == "noisy"]
    assert noisy["psnr"] == pytest.approx(-10 * np.log10(np.mean(noise**2)), abs=1e-9)


def test_what_is_learned_is_recorded_by_epoch_and_restores(records):
    result = {r["model"]: r["psnr"] for r in records if r["kind"] == "result"}
    assert result["noisy"] < result["dct 2x2x2"]
    assert result["noisy"] < result["l1 2x2x2"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == list(range(len(epochs)))
    assert len(epochs) > 1
    assert all(r["strategy"] == "limit:steps=10" and r["seed"] == 0 for r in epochs)


def test_the_compared_model_has_every_strategy_and_the_first_every_seed(bsd68):
    config = dataclasses.replace(bsd68.Config(), seeds=2)
    keys = [cell.key for cell in bsd68.cells(config)]
    mine = [(key["strategy"], key["seed"]) for key in keys if key["model"] == config.compared]
    first, *others = config.strategies
    assert sorted(mine) == sorted([(first, 0), (first, 1), *((other, 0) for other in others)])
    assert len([key for key in keys if key["model"] != config.compared]) == len(config.models) - 1


def test_the_report_says_when_a_strategy_came_near_the_best(bsd68, config):
    config = dataclasses.replace(
        config, strategies=("full", "truncation:k=1"), models=("l1 2x2x2",)
    )
    key = {"level": 25, "model": "l1 2x2x2", "seed": 0}

    def epochs(strategy, *curve):
        rows = [{"kind": "epoch", "seconds": s, "validation_psnr": p} for s, p in curve]
        rows.append({"kind": "result", "psnr": 27.5})
        return [{**key, "strategy": strategy, **row} for row in rows]

    records = epochs("full", (0.0, 25.0), (7.0, 25.96), (9.0, 26.0))
    records += epochs("truncation:k=1", (0.0, 25.0), (2.0, 25.9))
    rows = [line for line in bsd68.report(config, records).splitlines() if "l1 2x2x2" in line]
    assert [row.strip("| ").split(" | ")[-1].strip() for row in rows] == ["7", "not reached"]
