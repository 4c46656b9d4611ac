"""A comparison in pieces gives what one at once gives; and what a strategy does not know."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
import pytest
from compared import (
    DIFFERENTIABLE,
    SOLVER,
    STRATEGIES,
    WORKING,
    problem,
    row_of,
    samples,
)
from matplotlib.figure import Figure

import hypergrad as hg
from hypergrad._foundation import timing
from hypergrad._foundation.records import read_jsonl
from hypergrad.comparison import reference as reference_module
from hypergrad.comparison import rows, side_by_side


@pytest.fixture(scope="module", autouse=True)
def _quick_reference() -> Iterator[None]:
    """By the limit formula: `Exact` compiles ten times as long, for each size of a piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_module, "Exact", lambda most: hg.LimitFormula())
        long = functools.partial(hg.ChambollePock, 50_000)
        patch.setattr(reference_module, "ChambollePock", long)
        yield


@pytest.fixture(scope="module")
def reference() -> hg.Hypergradient:
    return hg.reference_hypergradient(problem(), *samples(), solver=SOLVER)


@pytest.fixture(scope="module")
def comparison() -> hg.Comparison:
    result = hg.compare(problem(), *samples(), solver=SOLVER, strategies=STRATEGIES, repeats=1)
    assert row_of(result, "full")["relative_error"] > 1e-2  # there is something to be measured
    return result


# ------------------------------------------------------------------ what a strategy does not know


class LastTwo(hg.AbstractDifferentiableStrategy):
    """JAX differentiates two iterations: nobody knows how good that is."""

    name: ClassVar[str] = "a-strategy-whose-name-is-longer-than-a-column"
    momentum: float = eqx.field(static=True, default=0.25)

    def run(self, problem, x_tilde, solver, init):
        sizes = solver.step_sizes(problem)
        fixed = hg.stop_gradient((problem, x_tilde, sizes))
        state, taken = solver.approach(*fixed, solver.start(problem, x_tilde, init), keep=2)
        state, _ = hg.record(problem, x_tilde, sizes, state, 2)
        return solver.solution(problem, x_tilde, sizes, state, taken + 2)


class Vouched(LastTwo):
    """The same, which says that it was exact."""

    name: ClassVar[str] = "vouched"

    def adjoint_stats(self, solution, dx_tilde):
        return hg.AdjointStats.exact(solution.stats.iterations, dx_tilde, products=7)


@pytest.fixture(scope="module")
def unknown(reference) -> hg.Comparison:
    return hg.compare(
        problem(), *samples(),
        solver=SOLVER, reference=reference, repeats=1,
        strategies=[LastTwo(), LastTwo(0.5), Vouched(), hg.Truncation(2)],
    )  # fmt: skip


def test_what_jax_differentiates_is_unknown(unknown) -> None:
    row, _, vouched, truncation = unknown.records
    assert row["adjoint_status"] == "unknown 100 %"
    assert (row["adjoint_residual"], row["products"]) == (None, None)
    assert row["relative_error"] == pytest.approx(truncation["relative_error"], rel=1e-8)
    assert vouched["adjoint_status"] == "converged 100 %"
    assert vouched["adjoint_residual"] == 0.0
    assert vouched["products"] > 7
    json.dumps(unknown.records, allow_nan=False)


def test_what_is_unknown_is_printed_and_saved(unknown, tmp_path) -> None:
    row, *_ = unknown.table().splitlines()[2:]
    assert "unknown 100 %" in row
    assert "nan" not in unknown.table()
    assert "adjoint unknown" in " ".join(str(unknown).split())
    unknown.save(tmp_path)
    assert read_jsonl(tmp_path / "comparison.jsonl") == unknown.records
    assert isinstance(unknown.plot(), Figure)
    forgotten = unknown.reference | {"residual": None, "adjoint_residual": float("nan")}
    said = dataclasses.replace(unknown, reference=forgotten).markdown()
    assert "(worst residual unknown)" in said
    assert "(worst unknown)" in said


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_labels_are_whole_on_any_terminal(unknown, width: int) -> None:
    """And every number stands whole below its heading."""
    table, words = unknown.brief(width), unknown.brief(width).split()
    assert "…" not in table
    for record in unknown.records:
        assert record["strategy"] in table
        assert f"{record['cosine']:.3f}" in words
        assert f"{record['over_forward']:.2g}" in words
    labels = {record["strategy"] for record in unknown.records}
    rest = [line for line in table.splitlines() if not any(label in line for label in labels)]
    # A status stays in one piece, however narrow the terminal.
    assert max(map(len, rest), default=0) <= max(width, 40)


# ------------------------------------------------------------------------------ piece by piece


class _Forwards:
    """Data of HDF5, say: nothing but rows that ascend can be read."""

    def __init__(self, array: np.ndarray):
        self.shape, self.dtype, self._array = array.shape, array.dtype, array

    def __getitem__(self, rows: Any) -> np.ndarray:
        assert np.all(np.diff(np.arange(len(self._array))[rows]) > 0)
        return self._array[rows].copy()


UNTIMED = {"milliseconds", "over_forward", "compile_seconds", "peak_megabytes"}


def _assert_same(some: hg.Comparison, other: hg.Comparison) -> None:
    """Every number to 1e-12, but for times, and the bound where only one of them has it."""
    pairs = [*zip(some.records, other.records, strict=True), (some.reference, other.reference)]
    for one, two in pairs:
        for column in (set(one) & set(two)) - UNTIMED:
            expected = two[column]
            if isinstance(expected, float):
                expected = pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert one[column] == expected, column


@pytest.mark.parametrize("piece", [4, 100])
def test_pieces_give_what_all_at_once_gives(piece, comparison) -> None:
    """Of six samples: the second piece of four is filled up; a piece of 100 holds them all."""
    result = hg.compare(
        problem(), *samples(), solver=SOLVER, strategies=STRATEGIES, repeats=1, piece=piece
    )
    assert {*row_of(comparison, "full")} == {*row_of(result, "full")}
    _assert_same(result, comparison)
    assert all(row_of(result, label)["milliseconds"] > 0 for label in WORKING)


def test_a_given_reference_is_cut_into_the_same_pieces(comparison, reference) -> None:
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    few, at_once = (
        hg.compare(problem(), *samples(), reference=reference, piece=piece, **settings)
        for piece in (4, None)
    )
    _assert_same(few, at_once)
    expected = row_of(comparison, "truncation:k=1")["relative_error"]
    assert few.records[0]["relative_error"] == pytest.approx(expected, rel=1e-8)


def test_pieces_are_read_by_rows_and_one_program_does_for_all(monkeypatch) -> None:
    compiled = []

    def compile_ahead(function, *arguments):
        compiled.append(function.__name__)
        return timing.compile_ahead(function, *arguments)

    monkeypatch.setattr(rows, "compile_ahead", compile_ahead)
    monkeypatch.setattr(side_by_side, "compile_ahead", compile_ahead)
    data = [_Forwards(array) for array in samples()]
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    result = hg.compare(problem(), *data, piece=4, **settings)
    assert compiled == ["solve_without_strategy", "one_hypergradient"]
    _assert_same(result, hg.compare(problem(), *samples(), piece=4, **settings))


@pytest.mark.slow
def test_the_bounds_of_pieces_add_up() -> None:
    """Each holds for its own share of the gradient, so that their sum holds for all of it."""
    smooth = [array[DIFFERENTIABLE] for array in samples()]
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    few, at_once = (
        hg.compare(problem(), *smooth, error_bound=True, piece=piece, **settings).records[0]
        for piece in (4, None)
    )
    assert few["certified"] == at_once["certified"] == 1.0
    assert few["relative_error"] == pytest.approx(at_once["relative_error"], rel=1e-10)
    assert at_once["error_bound"] <= few["error_bound"] <= 5 * at_once["error_bound"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x: (x[0], x[0]), r"x_tilde must have shape \(samples, 5\); got \(5,\)"),
        (lambda x: (x, x[1:]), r"x_true must have the shape of x_tilde, \(6, 5\); got \(5, 5\)"),
        (lambda x: (x, x * np.nan), "x_true must be finite; got 30 NaN"),
    ],
)
def test_what_cannot_be_cut_into_pieces(data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hg.compare(problem(), *data(samples()[0]), strategies=[hg.Truncation(1)], piece=2)
