"""What a study says below its tables: units, what the reference is, and that nothing was gained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

import hypergrad as hg
from hypergrad._foundation.terminal import terminal_table
from hypergrad.workbench import data
from hypergrad.workbench.studies import ImageStudy, tables
from hypergrad.workbench.studies.samples import StudyData

CONFIG = ImageStudy()


@pytest.fixture(scope="module")
def samples() -> StudyData:
    rows = np.zeros((5, 4))
    five = data.Samples(rows, rows, (2, 2), ("a",), np.zeros(5, int))
    return StudyData(five, five)


def evaluated(**psnr: float) -> list[dict]:
    """Rows of a table; what is learned has a time."""
    baselines = [{"operator": "identity", "psnr_converged": 20.0}]
    for name, value in psnr.items():
        row = {"operator": name.replace("_", ", "), "psnr_at_L": value, "train_at_L": 1 / value}
        baselines.append(row if name.startswith("untrained") else row | {"seconds": 1.0})
    return baselines


def test_a_run_that_gains_nothing_says_so(samples) -> None:
    rows = evaluated(untrained=27.75, full=27.76, truncation=27.74)
    said = tables.nothing_gained(CONFIG, samples, rows, [])
    assert "more than 0.1 dB on held-out data" in said
    assert "full came from 27.75 to 27.76 dB (its training loss from 0.03604 to 0.03602)" in said
    assert "(dct) is good already, or 8 epochs on 5 samples are too few" in said
    assert "--K random" in said
    compared = hg.Comparison([], dict.fromkeys(("residual", "adjoint_residual"), 0.0) | {
        "how": "", "status": "", "adjoint_status": "", "certified": 1.0, "differentiable": 0.03,
    }, {})  # fmt: skip
    assert said in tables.report(CONFIG, samples, compared, rows, [])


def test_a_run_that_gains_is_left_alone(samples) -> None:
    rows = evaluated(untrained=27.75, full=27.9, truncation=20.0)
    assert tables.nothing_gained(CONFIG, samples, rows, []) == ""
    assert tables.nothing_gained(CONFIG, samples, [], []) == ""


def test_an_average_is_held_against_the_average_that_is_not_learned(samples) -> None:
    rows = evaluated(untrained=20.0, untrained_ergodic=25.0, ergodic=25.05)
    said = tables.nothing_gained(CONFIG, samples, rows, [])
    assert "ergodic came from 25.00 to 25.05 dB" in said


def test_who_starts_at_random_gets_another_advice(samples) -> None:
    config = dataclasses.replace(CONFIG, K="random:rows=9")
    said = tables.nothing_gained(config, samples, evaluated(untrained=20.0, full=20.0), [])
    assert "--K random" not in said
    assert "--learning-rate" in said


def trained(strategy: str, *losses: float) -> list[dict]:
    return [{"kind": "training", "strategy": strategy, "train_loss": loss} for loss in losses]


@pytest.mark.parametrize(
    ("rate", "losses", "words"),
    [
        (1e9, (1.0, 1e12), "rose from 1 to 1e+12 as it learned: the learning rate, 1e+09, is too"),
        (1e9, (1.0, 1e12), "with --learning-rate 0.005 and another --out"),
        (1e-3, (1.0, 0.9, 1.2), "with --learning-rate 0.0001 and another --out"),
        (0.1, (1.0, float("nan")), "rose from 1 to nan"),
        (0.1, (1.0, float("inf")), "rose from 1 to inf"),
        (1e-3, (1.0, 1.01), "start from a poor K"),
        (1e-3, (1.0, 5.0, 0.99), "start from a poor K"),
        (1e-3, (1.0,), "start from a poor K"),
    ],
)
def test_the_advice_is_that_of_what_happened(samples, rate: float, losses, words: str) -> None:
    """The epoch that is kept may be the start, whatever came of the others."""
    config = dataclasses.replace(CONFIG, learning_rate=rate)
    rows = evaluated(untrained=20.0, full=20.0)
    training = [*trained("other", 1.0, 0.5), *trained("full", *losses)]
    said = tables.nothing_gained(config, samples, rows, training)
    assert words in said
    assert ("--K random" in said) == ("poor K" in words)


def test_what_is_no_number_has_gained_nothing(samples) -> None:
    nan = float("nan")
    assert (
        tables.nothing_gained(CONFIG, samples, evaluated(untrained=20.0, a=nan, b=25.0), []) == ""
    )
    said = tables.nothing_gained(CONFIG, samples, evaluated(untrained=20.0, a=nan, b=19.0), [])
    assert "b came from 20.00 to 19.00 dB" in said


def record(strategy: str, forward: str = "converged 100 %", adjoint: str = "converged 100 %"):
    return {
        "strategy": strategy, "relative_error": 0.0026, "cosine": 0.99996, "over_forward": 1.234,
        "peak_megabytes": 4.06, "forward_status": forward, "adjoint_status": adjoint,
    }  # fmt: skip


def test_the_table_of_gradients_fits_and_truncation_is_no_failure() -> None:
    used_up, part = "iterations used up 100 %", "converged 75 %, iterations used up 25 %"
    records = [
        record("full"),
        record("limit:steps=10", adjoint=used_up),
        record("limit:cgls", adjoint="converged 50 %, inconsistent 50 %"),
        record("ergodic", forward=part, adjoint="unknown 100 %"),
        {"strategy": "mine", "error": "TypeError: no"},
    ]
    compared = hg.Comparison(records, {"certified": 1.0, "differentiable": 0.5}, {})
    lines = compared.brief(200).splitlines()
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "full 2.6e-3 1.000 1.2 4.1 converged",
        "limit:steps=10 2.6e-3 1.000 1.2 4.1 truncated",
        "limit:cgls 2.6e-3 1.000 1.2 4.1 adjoint inconsistent 50 %",
        "ergodic 2.6e-3 1.000 1.2 4.1 not converged 25 %, adjoint unknown",
        "mine - - - - failed",
    ]
    assert max(map(len, hg.Comparison(records[:2], compared.reference, {}).brief(80).split())) < 80
    assert "unique on 50 %" in " ".join(compared.notes().split())
    assert "mine: TypeError: no" in compared.notes()


def test_where_gradients_are_not_unique_a_warning_replaces_the_errors() -> None:
    used_up, most = "iterations used up 100 %", "converged 95.7 %, iterations used up 4.3 %"
    records = [record("ergodic:uniform", used_up, most), {"strategy": "mine", "error": "no"}]
    compared = hg.Comparison(records, {"certified": 1.0, "differentiable": 0.03125}, {})
    lines = [" ".join(line.split()) for line in compared.brief(80).splitlines()[3:]]
    status = "not converged, truncated 4.3 %"
    assert lines == [f"ergodic:uniform not unique 1.2 4.1 {status}", "mine - - - failed"]
    assert compared.plot().axes[0].get_title().startswith("Warning: gradients are not unique")
    assert "differentiable on 3.12 % of the samples only" in " ".join(compared.notes().split())


def test_who_is_best_in_the_last_epoch_may_gain_by_more(samples) -> None:
    rows = [
        row | {"best_epoch": epoch} if "seconds" in row else row
        for row, epoch in zip(evaluated(untrained=20.0, a=21.0, b=22.0), (0, 0, 7, 8), strict=True)
    ]
    (said,) = tables.remarks(CONFIG, samples, rows, [])
    assert said.startswith("Still improving in the last epoch: b.")
    assert tables.still_improving(0, [{"operator": "a", "best_epoch": 0}]) == ""


def test_the_last_table_has_gains_in_order_and_baselines_below_a_rule() -> None:
    def row(operator: str, at_L: float | None, converged: float, **more: float) -> dict:
        return {"operator": operator, "psnr_at_L": at_L, "psnr_converged": converged, **more}

    rows = [
        row("identity", None, 20.0),
        row("untrained", 26.0, 26.01),
        row("untrained, ergodic", 26.5, 26.01),
        row("untrained, shrunk by a = 0.95", None, 26.25),
        row("full", 26.25, 26.3, seconds=1234.5, best_epoch=8),
        row("ergodic", 26.6, 26.3, seconds=0.026, best_epoch=0),
    ]
    lines = printed(tables.learning_table(rows)).splitlines()
    assert [line.split() for line in lines] == [
        ["gain", "PSNR", "PSNR", "epoch", "time"],
        ["operator", "(dB)", "at", "L", "conv.", "kept", "(s)"],
        ["full", "+0.25", "26.25", "26.30", "8", "1.2e+03"],
        # Against the average that is not learned, not against the last iterate.
        ["ergodic", "+0.10", "26.60", "26.30", "0", "0.026"],
        ["\u2500" * len(lines[4])],
        ["untrained,", "shrunk", "by", "a", "=", "0.95", "+0.24", "-", "26.25", "-", "-"],
        ["untrained", "+0.00", "26.00", "26.01", "-", "-"],
        ["untrained,", "ergodic", "+0.00", "26.50", "26.01", "-", "-"],
        ["identity", "-6.01", "-", "20.00", "-", "-"],
    ]
    assert max(map(len, lines)) <= 80


def test_a_narrow_terminal_gets_the_rule_between_the_same_rows() -> None:
    rows = [{"a": "long label", "b": i} for i in range(3)]
    columns = {"a": "label", "b": "number"}
    said = terminal_table(rows, columns, width=12, rule_after=2).splitlines()
    assert said.index("\u2500" * 10) == 2 + 2 * 2
    assert said[-2:] == ["long label", "       2"]


def test_what_the_loss_was_is_told() -> None:
    config = dataclasses.replace(CONFIG, loss="parts:charbonnier")
    assert "parts:charbonnier" in tables.about_the_table(config)
    assert "not the loss that was learned by" not in tables.about_the_table(CONFIG)


def printed(table) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
