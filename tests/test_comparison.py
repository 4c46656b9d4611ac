"""Side by side: every number of the table against one that `compare` had no part in."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compared import (
    DIFFERENTIABLE,
    KINK,
    SLOW,
    SOLVER,
    STRATEGIES,
    WEIGHT,
    WORKING,
    L,
    matrix,
    problem,
    row_of,
    samples,
)
from helpers import central_differences, solve_l1_quadratic
from matplotlib.figure import Figure

import hypergrad as hg
from hypergrad import comparison as module
from hypergrad._foundation.records import read_jsonl
from hypergrad._foundation.status import Status
from hypergrad.comparison import side_by_side


@pytest.fixture(scope="module")
def reference() -> hg.Hypergradient:
    return hg.reference_hypergradient(problem(), *samples(), solver=SOLVER)


@pytest.fixture(scope="module")
def comparison() -> hg.Comparison:
    return hg.compare(
        problem(), *samples(),
        solver=SOLVER, strategies=STRATEGIES, repeats=1, error_bound=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """The gradient in K of the smooth samples: central differences of a direct solver."""
    x_tilde, x_true = samples()

    def loss(K: np.ndarray) -> float:
        x = [solve_l1_quadratic(K, WEIGHT, 1.0, x_tilde[i]) for i in DIFFERENTIABLE]
        return 0.5 * np.sum((np.array(x) - x_true[DIFFERENTIABLE]) ** 2) / len(x_tilde)

    return central_differences(loss, matrix(), step=1e-6)


def _of_differentiable(strategy: hg.AbstractStrategy) -> hg.LowerLevel:
    """The gradient of the smooth samples alone, in a loss that is a mean over all six."""
    x_tilde, x_true = (array[DIFFERENTIABLE] for array in samples())
    h = hg.hypergradient(problem(), x_tilde, x_true, solver=SOLVER, strategy=strategy)
    return jax.tree.map(lambda g: np.asarray(g) * len(DIFFERENTIABLE) / 6, h.grad)


# ----------------------------------------------------------------------------- the reference


def test_the_sample_at_a_kink_is_certified_but_not_differentiable(reference) -> None:
    assert np.all(module.certified_samples(reference))
    assert np.flatnonzero(module.differentiable_samples(reference)).tolist() == DIFFERENTIABLE
    stats = reference.solution.stats
    assert stats.status[KINK] == Status.NONDIFFERENTIABLE
    assert abs(float(stats.margin[KINK])) < 1e-6
    assert np.max(stats.residual) <= 1e-12


def test_an_adjoint_that_is_not_solved_is_not_certified(reference) -> None:
    status = reference.adjoint.status.at[2].set(int(Status.INCONSISTENT))
    doubtful = eqx.tree_at(lambda h: h.adjoint.status, reference, status)
    assert np.flatnonzero(module.certified_samples(doubtful)).tolist() == [0, 1, 3, 4, 5]
    assert np.flatnonzero(module.differentiable_samples(doubtful)).tolist() == [0, 3, 4, 5]


def test_the_reference_is_described(comparison) -> None:
    about = comparison.reference
    assert about["certified"] == 1.0
    assert about["differentiable"] == pytest.approx(5 / 6)
    assert about["status"] == "converged 83.3 %, nondifferentiable 16.7 %"


# --------------------------------------------------------------------------------- the rows


def test_rows_come_in_the_order_of_the_strategies(comparison) -> None:
    labels = [record["strategy"] for record in comparison.records]
    assert labels == [strategy.label for strategy in STRATEGIES]


@pytest.mark.parametrize("strategy", [hg.FullUnrolling(), hg.Truncation(1)], ids=lambda s: s.label)
def test_gradients_are_held_against_the_truth_on_differentiable_samples(
    strategy, comparison, exact
) -> None:
    gradient, row = _of_differentiable(strategy).K, row_of(comparison, strategy.label)
    error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    assert row["relative_error_differentiable"] == pytest.approx(error, rel=1e-5)
    assert error > 1e-2  # there is something to be measured


@pytest.mark.parametrize("strategy", [hg.FullUnrolling(), hg.Truncation(1)], ids=lambda s: s.label)
def test_gradients_are_held_against_the_reference_on_certified_samples(
    strategy, comparison, reference
) -> None:
    h = hg.hypergradient(problem(), *samples(), solver=SOLVER, strategy=strategy)
    gradient, truth = np.asarray(h.grad.K), np.asarray(reference.grad.K)
    norms, row = (
        (np.linalg.norm(gradient), np.linalg.norm(truth)),
        row_of(comparison, strategy.label),
    )
    assert row["gradient_norm"] == pytest.approx(norms[0], rel=1e-10)
    error = np.linalg.norm(gradient - truth) / norms[1]
    assert row["relative_error"] == pytest.approx(error, rel=1e-8)
    assert row["cosine"] == pytest.approx(np.sum(gradient * truth) / np.prod(norms), rel=1e-8)


def test_a_bound_is_there_where_it_holds(comparison) -> None:
    """Not for the whole batch: the sample at its kink cannot be certified."""
    for label in WORKING:
        row = row_of(comparison, label)
        assert row["certified"] == pytest.approx(5 / 6)
        assert row["error_bound"] is None
    smooth = [array[[0, *DIFFERENTIABLE]] for array in samples()]  # as many: the same programs
    strategies = [hg.Truncation(1)]
    result = hg.compare(
        problem(), *smooth, solver=SOLVER, strategies=strategies, repeats=1, error_bound=True
    )
    (row,) = result.records
    assert row["certified"] == 1.0
    assert row["relative_error"] <= row["error_bound"] * (1 + 1e-9)
    assert row["error_bound"] <= 10 * row["relative_error"]


def test_the_loss_is_that_of_the_whole_batch(comparison) -> None:
    x_tilde, x_true = samples()
    x = hg.solve(problem(), x_tilde, solver=SOLVER, strategy=hg.Truncation(1)).x
    losses = 0.5 * np.sum((np.asarray(x) - x_true) ** 2, axis=-1)
    assert losses[[KINK, SLOW]].min() > 1e-3
    for label in WORKING:
        assert row_of(comparison, label)["loss"] == pytest.approx(losses.mean(), rel=1e-12)


def test_statuses_are_those_of_the_whole_batch(comparison) -> None:
    x_tilde, x_true = samples()
    strategy = hg.Truncation(1)
    h = hg.hypergradient(problem(), x_tilde, x_true, solver=SOLVER, strategy=strategy)
    row = row_of(comparison, "truncation:k=1")
    assert row["forward_status"] == Status.summary(h.solution.stats.status)
    assert row["forward_residual"] == pytest.approx(float(h.solution.stats.residual.max()))
    assert row["adjoint_status"] == Status.summary(h.adjoint.status)
    assert row["adjoint_residual"] == pytest.approx(float(h.adjoint.residual.max()))
    assert row["adjoint_residual"] != row_of(comparison, "full")["adjoint_residual"] == 0.0


def test_a_strategy_of_the_users_is_a_row_like_any_other(comparison) -> None:
    full, doubled = row_of(comparison, "full"), row_of(comparison, "doubled")
    assert set(doubled) == set(full)
    assert doubled["gradient_norm"] == pytest.approx(2 * full["gradient_norm"])
    assert doubled["cosine"] == pytest.approx(full["cosine"])


def test_a_strategy_that_fails_is_a_row_with_its_reason(comparison) -> None:
    assert row_of(comparison, "failing") == {
        "strategy": "failing",
        "error": "RuntimeError: no luck today",
    }
    reason = row_of(comparison, f"truncation:k={L + 1}")["error"]
    assert reason.startswith(f"HypergradError: k must be at most iterations; got k={L + 1}")


def test_costs_are_there(comparison) -> None:
    for label in WORKING:
        row = row_of(comparison, label)
        assert row["compile_seconds"] > 0
        assert row["milliseconds"] > 0
        assert row["over_forward"] > 0
    megabytes = {label: row_of(comparison, label)["peak_megabytes"] for label in WORKING}
    assert megabytes["truncation:k=1"] > 1e-6 * sum(
        array.nbytes for array in (matrix(), *samples())
    )
    # The history of all iterations: L (m + n) doubles a sample, where the other keeps one of them.
    assert megabytes["full"] - megabytes["truncation:k=1"] > 0.5e-6 * 8 * 6 * L * (4 + 5)


# ------------------------------------------------------------------- other ways to be called


def test_parameters_can_be_chosen(reference) -> None:
    x_tilde, x_true = samples()

    def loss(weight: np.ndarray) -> float:
        x = [solve_l1_quadratic(matrix(), float(weight), 1.0, x_tilde[i]) for i in DIFFERENTIABLE]
        return 0.5 * np.sum((np.array(x) - x_true[DIFFERENTIABLE]) ** 2) / 6

    result = hg.compare(
        problem(), x_tilde, x_true, reference=reference, repeats=1,
        solver=SOLVER, strategies=[hg.FullUnrolling()], parameters=lambda p: p.F.weight,
    )  # fmt: skip
    (row,) = result.records
    gradient, exact = (
        _of_differentiable(hg.FullUnrolling()).F.weight,
        central_differences(loss, WEIGHT),
    )
    error = abs(float(gradient) / float(exact) - 1)
    assert row["relative_error_differentiable"] == pytest.approx(error, rel=1e-5)
    assert row["cosine"] == pytest.approx(1.0)  # of two numbers


def test_with_nothing_certified_there_is_no_error(reference) -> None:
    nothing = jnp.full_like(reference.solution.stats.status, Status.ITERATIONS_USED_UP)
    doubtful = eqx.tree_at(lambda h: h.solution.stats.status, reference, nothing)
    result = hg.compare(
        problem(), *samples(),
        solver=SOLVER, strategies=[hg.Truncation(1)], repeats=1, reference=doubtful,
    )  # fmt: skip
    (row,) = result.records
    assert result.reference["certified"] == 0.0
    assert (row["relative_error"], row["cosine"], row["gradient_norm"]) == (None, None, 0.0)
    assert row["loss"] > 0
    assert "differentiable on 0 % of the samples" in result.about_the_reference()
    json.dumps(result.records, allow_nan=False)


def test_two_strategies_of_one_label_are_told_apart(reference, monkeypatch) -> None:
    weights = [np.full(L, 1 / L), np.eye(L)[-1]]
    seconds = (1.0, 2.0, 3.0)  # the lower level's own comes first
    monkeypatch.setattr(
        side_by_side,
        "interleaved_medians",
        lambda calls, *, repeats: dict(zip(calls, seconds, strict=True)),
    )
    result = hg.compare(
        problem(), *samples(),
        solver=SOLVER, strategies=[hg.ErgodicUnrolling(w) for w in weights], reference=reference,
    )  # fmt: skip
    labels = [record["strategy"] for record in result.records]
    assert labels == ["ergodic:given", "ergodic:given #2"]
    assert [record["milliseconds"] for record in result.records] == [2000.0, 3000.0]
    # The second one's average is the last iterate.
    x = hg.solve(problem(), samples()[0], solver=SOLVER, strategy=hg.Truncation(1)).x
    loss = float(hg.half_mean_squared_error(x, jnp.asarray(samples()[1])))
    assert result.records[1]["loss"] == pytest.approx(loss, rel=1e-12)
    assert result.records[0]["loss"] != pytest.approx(loss, rel=1e-3)


class Named(hg.AbstractStrategy):
    """One step, scaled, under any name."""

    label_: str = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=1.0)
    name: ClassVar[str] = "named"

    @property
    def label(self):
        return self.label_

    def forward(self, problem, x_tilde, solver, init):
        return hg.Truncation(1).forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        scaled = jax.tree.map(lambda g: self.scale * g, cotangent)
        return hg.Truncation(1).pullback(residuals, scaled)


@pytest.mark.parametrize(
    "labels",
    [
        ("forward", "forward", "forward #2"),
        ("floor", "untrained", "forward"),
        ("a #2", "a", "a"),
        ("", "strategy", "error"),
    ],
)
def test_a_row_has_its_own_time_and_gradient_whatever_it_is_called(
    labels, reference, monkeypatch
) -> None:
    """The time of the lower level alone is no strategy's, and no row is another's."""
    strategies = [Named(label, scale) for label, scale in zip(labels, (1.0, 2.0, 3.0), strict=True)]
    given = iter((10.0, 20.0, 30.0, 40.0))
    monkeypatch.setattr(
        side_by_side,
        "interleaved_medians",
        lambda calls, *, repeats: {call: next(given) for call in calls},
    )
    result = hg.compare(
        problem(), *samples(), solver=SOLVER, strategies=strategies, reference=reference
    )
    assert len({row["strategy"] for row in result.records}) == 3
    assert [row["over_forward"] for row in result.records] == [2.0, 3.0, 4.0]
    norms = np.array([row["gradient_norm"] for row in result.records])
    np.testing.assert_allclose(norms, norms[0] * np.array([1.0, 2.0, 3.0]), rtol=1e-10)


def test_the_strategy_forward_is_timed_by_itself(reference, monkeypatch) -> None:
    """Its name is that of nothing else; and only the weight is differentiated."""
    order = []

    def medians(calls, *, repeats):
        order.extend(calls)
        return dict(zip(calls, (1.0, 5.0, 7.0), strict=True))

    monkeypatch.setattr(side_by_side, "interleaved_medians", medians)
    result = hg.compare(
        problem(), *samples(), solver=SOLVER, reference=reference,
        strategies=[hg.ForwardUnrolling(), hg.FullUnrolling()], parameters=lambda p: p.F.weight,
    )  # fmt: skip
    assert len(order) == 3
    forward, full = result.records
    assert (forward["over_forward"], full["over_forward"]) == (5.0, 7.0)
    assert forward["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=1e-10)
    # A derivative and the iteration along which it is carried, 2 products each; and the solve.
    solve = hg.solve(problem(), samples()[0], solver=SOLVER, strategy=hg.FullUnrolling())
    assert forward["products"] == float(np.mean(solve.stats.products)) + 4 * L


# --------------------------------------------------------------------- tables, files, pictures


def test_the_table_has_a_line_for_each_and_no_empty_columns(comparison) -> None:
    header, _, *lines = comparison.table().splitlines()
    headings = header.strip("| ").split(" | ")
    # No bound stands for the whole batch.
    assert headings == [v for k, v in module.COLUMNS.items() if k != "error_bound"]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [s.label for s in STRATEGIES]
    assert lines[1].endswith("| RuntimeError: no luck today |")
    assert f"{row_of(comparison, 'full')['relative_error']:.4g}" in lines[0]

    working = [record for record in comparison.records if "error" not in record]
    header = dataclasses.replace(comparison, records=working).table().splitlines()[0]
    assert header.strip("| ").split(" | ") == headings[:-1]


def test_printing_gives_the_table_and_how_good_the_reference_is(comparison) -> None:
    text = comparison.markdown()
    assert text.startswith(comparison.table())
    assert "100 % of the samples" in text
    assert "83.3 % the solution map is differentiable" in text
    assert comparison.reference["status"] in text


def test_it_is_printed_on_80_columns(comparison) -> None:
    """As it has to be read in a terminal: a line for each strategy, and what the errors mean."""
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[:3] == ["strategy", "error", "cosine"]
    assert [line.split()[0] for line in lines[3 : len(STRATEGIES) + 3]] == [
        strategy.label for strategy in STRATEGIES
    ]
    said = " ".join(str(comparison).split())
    assert "certified on 100 % of the samples" in said
    assert "truncated" in said
    assert "RuntimeError: no luck today" in said


def test_saving(comparison, tmp_path) -> None:
    comparison.save(tmp_path / "run")
    written = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert set(written) == {
        "comparison.jsonl", "comparison.md", "reference.json", "environment.json",
    }  # fmt: skip
    assert read_jsonl(written["comparison.jsonl"]) == comparison.records
    assert written["comparison.md"].read_text(encoding="utf-8") == f"{comparison.markdown()}\n"
    assert json.loads(written["reference.json"].read_bytes()) == comparison.reference
    environment = json.loads(written["environment.json"].read_bytes())
    assert environment == comparison.environment
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["dtype"] == "float64"
    assert environment["device"]


def test_the_plot_has_a_marker_for_each_that_worked(comparison) -> None:
    figure = comparison.plot()
    assert isinstance(figure, Figure)
    drawn = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    for label in WORKING:
        row = row_of(comparison, label)
        np.testing.assert_allclose(drawn[label], [[row["over_forward"], row["relative_error"]]])
    figure.savefig(picture := io.BytesIO(), format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
