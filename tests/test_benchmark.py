"""The sections of the benchmark: what they count and how they relate it. Nothing is timed here."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.learning import History
from hypergrad.workbench import data, sweep
from hypergrad.workbench.benchmark import SECTIONS, Benchmark, batches, cells, learning
from hypergrad.workbench.benchmark._compilations import count_compilations
from hypergrad.workbench.sweep import run_sweep


def test_every_cell_says_its_section() -> None:
    made = cells(Benchmark())
    assert {cell.key["section"] for cell in made} == set(SECTIONS)
    assert len({cell.name for cell in made}) == len(made)


def test_the_settings_as_they_come_are_accepted() -> None:
    sweep.experiment.check_settings(Benchmark())
    sweep.experiment.check_settings(Benchmark().quick())


def test_compilations_are_counted() -> None:
    add = jax.jit(lambda x: x + 1)
    x, y, z = (jnp.ones(size) for size in (3, 3, 4))
    assert [count_compilations(lambda x=x: add(x)) for x in (x, y, z)] == [1, 0, 1]


def test_patches_on_disk_are_the_patches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_DRAWN_AT_ONCE", 7)
    x_tilde, x_true = batches._patches_on_disk(tmp_path, 10)
    assert (x_tilde.shape, x_tilde.dtype, type(x_true)) == ((10, 64), np.float32, np.memmap)
    drawn = data.noisy_patches(data.PHOTOGRAPHS_TRAIN, 3, noise=0.1, seed=7).astype(np.float32)
    np.testing.assert_array_equal(x_tilde[7:], drawn.x_tilde)
    np.testing.assert_array_equal(x_true[7:], drawn.x_true)


def test_costs_are_relative_to_the_fewest_of_each_job() -> None:
    rows = [("a", 2.0), ("a", 3.0), ("b", 5.0), ("b", 4.0)]
    records = [{"job": job, "microseconds": value} for job, value in rows]
    relative = [r["relative"] for r in batches._relative_to_the_fewest(records)]
    assert relative == [1.0, 1.5, 1.0, 0.8]


def _history(seconds: list[float], losses: list[float]) -> History:
    records = [
        {"seconds": s, "at L": loss, "solved": loss + 1}
        for s, loss in zip(seconds, losses, strict=True)
    ]
    return History(None, records, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("losses", "seconds"),
    [([0.1, 0.5, 0.3, 0.35], 2.0), ([9.0, 0.5, 0.4, 0.31], None)],
    ids=["reached, the untrained start does not count", "not reached"],
)
def test_the_first_moment_of_a_loss(losses, seconds, monkeypatch) -> None:
    runs = [_history([0, 30, 60], [9, 1, 0.3]), _history([0, 1, 2, 3], losses)]
    monkeypatch.setattr(learning, "learn", lambda *args, **settings: runs.pop(0))
    job = learning.Settings().images
    for record in learning.compare_ways("patches", job, None, 0, None):  # pyright: ignore
        assert record.get("warm_seconds") == seconds
        assert record.get("ratio") == (None if seconds is None else 30.0)
        assert record["full_seconds"] == 60


def test_warm_starts_in_miniature(tmp_path) -> None:
    """Both ways learn; without a folder of speech its row says so."""
    settings = learning.Settings().quick()
    records = run_sweep(learning.cells(settings), tmp_path, config={}, progress=False)
    patches = [r for r in records if r["data"] == "patches"]
    assert [r["judged"] for r in patches] == ["at L", "solved"]
    assert all(r["warm_end"] < r["untrained"] for r in patches)
    assert records[-1]["error"].startswith("no folder of speech")


def test_the_strategy_forward_is_not_the_forward_solve(monkeypatch) -> None:
    """Two rows with their own times, whatever strategies are called."""
    from hypergrad.workbench.benchmark import floors

    class Forward(hg.Truncation):
        """Named as ForwardUnrolling is, which compiles ten times as long."""

        name: ClassVar[str] = "forward"
        label: ClassVar[str] = "forward"

    monkeypatch.setattr(
        floors,
        "interleaved_medians",
        lambda calls, *, repeats: {key: float(i) for i, key in enumerate(calls, 1)},
    )
    strategies = [Forward(1), Forward(1)]
    rows = floors.measure(3, 2, 2, strategies, iterations=3, repeats=1).records
    times = [(row["name"], row["milliseconds"], row["over_forward"]) for row in rows]
    names = ["floor", "forward", "operator norm", "forward", "forward #2"]
    assert times == [(name, 1e3 * i, i / 2) for i, name in enumerate(names, 1)]
