"""Side by side: every number of the table against one that `compare` had no part in."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_differences, random_data, solve_l1_quadratic
from matplotlib.figure import Figure

import hypergrad as hg
from hypergrad import comparison as module
from hypergrad._foundation import timing
from hypergrad._foundation.records import read_jsonl
from hypergrad._foundation.status import Status
from hypergrad.comparison import rows, side_by_side

WEIGHT, L = 0.4, 40
SOLVER = hg.ChambollePock(L)
# Two odd samples: one at a kink, which has no gradient, and one that takes its time.
KINK, SLOW = 1, 3
DIFFERENTIABLE = [0, 2, 3, 4, 5]


class Doubled(hg.AbstractStrategy):
    """A strategy of the user's: full unrolling, twice."""

    name: ClassVar[str] = "doubled"

    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        gradients = hg.FullUnrolling().pullback(residuals, cotangent)
        twice = jax.tree.map(lambda g: 2 * g, eqx.filter(gradients.problem, eqx.is_inexact_array))
        return gradients._replace(problem=twice)


class Failing(hg.AbstractStrategy):
    """Another one, which does not work."""

    name: ClassVar[str] = "failing"

    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        raise RuntimeError("no luck today\nand a second line about it")


STRATEGIES = [hg.FullUnrolling(), Failing(), hg.Truncation(1), Doubled(), hg.Truncation(L + 1)]
WORKING = ["full", "truncation:k=1", "doubled"]


def _K() -> np.ndarray:
    """Independent rows; the last one sees the last coordinate alone."""
    K = np.zeros((4, 5))
    K[:3, :4] = np.random.default_rng(0).standard_normal((3, 4))
    K /= np.linalg.norm(K, 2)
    K[3, 4] = 0.01
    return K


def _problem() -> hg.LowerLevel:
    return hg.LowerLevel(K=_K(), F=hg.L1(WEIGHT), G=hg.Quadratic(1.0))


def _data() -> tuple[np.ndarray, np.ndarray]:
    x_tilde, x_true = random_data(6, 5)
    # The dual variable of the last row walks to its bound in steps of about 0.004 times this.
    x_tilde[:, 4] = x_true[:, 4] = 20.0
    x_tilde[SLOW, 4] = x_true[SLOW, 4] = 3e-4
    # K x = 0 in the first rows, with a dual variable of exactly the weight.
    K = _K()[:3, :4]
    in_kernel = np.linalg.svd(K)[2][-1]
    x_tilde[KINK, :4] = in_kernel + K.T @ [WEIGHT, 0.1, -0.1]
    return x_tilde, x_true


@pytest.fixture(scope="module")
def reference() -> hg.Hypergradient:
    return hg.reference_hypergradient(_problem(), *_data(), solver=SOLVER)


@pytest.fixture(scope="module")
def comparison() -> hg.Comparison:
    return hg.compare(
        _problem(), *_data(),
        solver=SOLVER, strategies=STRATEGIES, repeats=1, error_bound=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """The gradient in K of the smooth samples: central differences of a direct solver."""
    x_tilde, x_true = _data()

    def loss(K: np.ndarray) -> float:
        x = [solve_l1_quadratic(K, WEIGHT, 1.0, x_tilde[i]) for i in DIFFERENTIABLE]
        return 0.5 * np.sum((np.array(x) - x_true[DIFFERENTIABLE]) ** 2) / len(x_tilde)

    return central_differences(loss, _K(), step=1e-6)


def _row(comparison: hg.Comparison, label: str) -> dict[str, Any]:
    (row,) = (record for record in comparison.records if record["strategy"] == label)
    return row


def _of_differentiable(strategy: hg.AbstractStrategy) -> hg.LowerLevel:
    """The gradient of the smooth samples alone, in a loss that is a mean over all six."""
    x_tilde, x_true = (array[DIFFERENTIABLE] for array in _data())
    h = hg.hypergradient(_problem(), x_tilde, x_true, solver=SOLVER, strategy=strategy)
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
    gradient, row = _of_differentiable(strategy).K, _row(comparison, strategy.label)
    error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    assert row["relative_error_differentiable"] == pytest.approx(error, rel=1e-5)
    assert error > 1e-2  # there is something to be measured


@pytest.mark.parametrize("strategy", [hg.FullUnrolling(), hg.Truncation(1)], ids=lambda s: s.label)
def test_gradients_are_held_against_the_reference_on_certified_samples(
    strategy, comparison, reference
) -> None:
    h = hg.hypergradient(_problem(), *_data(), solver=SOLVER, strategy=strategy)
    gradient, truth = np.asarray(h.grad.K), np.asarray(reference.grad.K)
    norms, row = (np.linalg.norm(gradient), np.linalg.norm(truth)), _row(comparison, strategy.label)
    assert row["gradient_norm"] == pytest.approx(norms[0], rel=1e-10)
    error = np.linalg.norm(gradient - truth) / norms[1]
    assert row["relative_error"] == pytest.approx(error, rel=1e-8)
    assert row["cosine"] == pytest.approx(np.sum(gradient * truth) / np.prod(norms), rel=1e-8)


def test_a_bound_is_there_where_it_holds(comparison) -> None:
    """Not for the whole batch: the sample at its kink cannot be certified."""
    for label in WORKING:
        row = _row(comparison, label)
        assert row["certified"] == pytest.approx(5 / 6)
        assert row["error_bound"] is None
    smooth = [array[[0, *DIFFERENTIABLE]] for array in _data()]  # as many: the same programs
    strategies = [hg.Truncation(1)]
    result = hg.compare(
        _problem(), *smooth, solver=SOLVER, strategies=strategies, repeats=1, error_bound=True
    )
    (row,) = result.records
    assert row["certified"] == 1.0
    assert row["relative_error"] <= row["error_bound"] * (1 + 1e-9)
    assert row["error_bound"] <= 10 * row["relative_error"]


def test_the_loss_is_that_of_the_whole_batch(comparison) -> None:
    x_tilde, x_true = _data()
    x = hg.solve(_problem(), x_tilde, solver=SOLVER, strategy=hg.Truncation(1)).x
    losses = 0.5 * np.sum((np.asarray(x) - x_true) ** 2, axis=-1)
    assert losses[[KINK, SLOW]].min() > 1e-3
    for label in WORKING:
        assert _row(comparison, label)["loss"] == pytest.approx(losses.mean(), rel=1e-12)


def test_statuses_are_those_of_the_whole_batch(comparison) -> None:
    x_tilde, x_true = _data()
    strategy = hg.Truncation(1)
    h = hg.hypergradient(_problem(), x_tilde, x_true, solver=SOLVER, strategy=strategy)
    row = _row(comparison, "truncation:k=1")
    assert row["forward_status"] == Status.summary(h.solution.stats.status)
    assert row["forward_residual"] == pytest.approx(float(h.solution.stats.residual.max()))
    assert row["adjoint_status"] == Status.summary(h.adjoint.status)
    assert row["adjoint_residual"] == pytest.approx(float(h.adjoint.residual.max()))
    assert row["adjoint_residual"] != _row(comparison, "full")["adjoint_residual"] == 0.0


def test_a_strategy_of_the_users_is_a_row_like_any_other(comparison) -> None:
    full, doubled = _row(comparison, "full"), _row(comparison, "doubled")
    assert set(doubled) == set(full)
    assert doubled["gradient_norm"] == pytest.approx(2 * full["gradient_norm"])
    assert doubled["cosine"] == pytest.approx(full["cosine"])


def test_a_strategy_that_fails_is_a_row_with_its_reason(comparison) -> None:
    assert _row(comparison, "failing") == {
        "strategy": "failing",
        "error": "RuntimeError: no luck today",
    }
    reason = _row(comparison, f"truncation:k={L + 1}")["error"]
    assert reason.startswith(f"HypergradError: k must be at most iterations; got k={L + 1}")


def test_costs_are_there(comparison) -> None:
    for label in WORKING:
        row = _row(comparison, label)
        assert row["compile_seconds"] > 0
        assert row["milliseconds"] > 0
        assert row["over_forward"] > 0
    megabytes = {label: _row(comparison, label)["peak_megabytes"] for label in WORKING}
    assert megabytes["truncation:k=1"] > 1e-6 * sum(array.nbytes for array in (_K(), *_data()))
    # The history of all iterations: L (m + n) doubles a sample, where the other keeps one of them.
    assert megabytes["full"] - megabytes["truncation:k=1"] > 0.5e-6 * 8 * 6 * L * (4 + 5)


# ------------------------------------------------------------------- other ways to be called


def test_parameters_can_be_chosen(reference) -> None:
    x_tilde, x_true = _data()

    def loss(weight: np.ndarray) -> float:
        x = [solve_l1_quadratic(_K(), float(weight), 1.0, x_tilde[i]) for i in DIFFERENTIABLE]
        return 0.5 * np.sum((np.array(x) - x_true[DIFFERENTIABLE]) ** 2) / 6

    result = hg.compare(
        _problem(), x_tilde, x_true, reference=reference, repeats=1,
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
        _problem(), *_data(),
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
        _problem(), *_data(),
        solver=SOLVER, strategies=[hg.ErgodicUnrolling(w) for w in weights], reference=reference,
    )  # fmt: skip
    labels = [record["strategy"] for record in result.records]
    assert labels == ["ergodic:given", "ergodic:given #2"]
    assert [record["milliseconds"] for record in result.records] == [2000.0, 3000.0]
    # The second one's average is the last iterate.
    x = hg.solve(_problem(), _data()[0], solver=SOLVER, strategy=hg.Truncation(1)).x
    loss = float(hg.half_mean_squared_error(x, jnp.asarray(_data()[1])))
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
        _problem(), *_data(), solver=SOLVER, strategies=strategies, reference=reference
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
        _problem(), *_data(), solver=SOLVER, reference=reference,
        strategies=[hg.ForwardUnrolling(), hg.FullUnrolling()], parameters=lambda p: p.F.weight,
    )  # fmt: skip
    assert len(order) == 3
    forward, full = result.records
    assert (forward["over_forward"], full["over_forward"]) == (5.0, 7.0)
    assert forward["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=1e-10)
    # A derivative and the iteration along which it is carried, 2 products each; and the solve.
    solve = hg.solve(_problem(), _data()[0], solver=SOLVER, strategy=hg.FullUnrolling())
    assert forward["products"] == float(np.mean(solve.stats.products)) + 4 * L


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
        _problem(), *_data(),
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
        _problem(), *_data(), solver=SOLVER, strategies=STRATEGIES, repeats=1, piece=piece
    )
    columns = {*_row(comparison, "full")} - {"error_bound", "certified"}
    assert columns == {*_row(result, "full")}
    _assert_same(result, comparison)
    assert all(_row(result, label)["milliseconds"] > 0 for label in WORKING)


def test_a_given_reference_is_cut_into_the_same_pieces(comparison, reference) -> None:
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    few, at_once = (
        hg.compare(_problem(), *_data(), reference=reference, piece=piece, **settings)
        for piece in (4, None)
    )
    _assert_same(few, at_once)
    expected = _row(comparison, "truncation:k=1")["relative_error"]
    assert few.records[0]["relative_error"] == pytest.approx(expected, rel=1e-8)


def test_pieces_are_read_by_rows_and_one_program_does_for_all(monkeypatch) -> None:
    compiled = []

    def compile_ahead(function, *arguments):
        compiled.append(function.__name__)
        return timing.compile_ahead(function, *arguments)

    monkeypatch.setattr(rows, "compile_ahead", compile_ahead)
    monkeypatch.setattr(side_by_side, "compile_ahead", compile_ahead)
    data = [_Forwards(array) for array in _data()]
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    result = hg.compare(_problem(), *data, piece=4, **settings)
    assert compiled == ["solve_without_strategy", "one_hypergradient"]
    _assert_same(result, hg.compare(_problem(), *_data(), piece=4, **settings))


@pytest.mark.slow
def test_the_bounds_of_pieces_add_up() -> None:
    """Each holds for its own share of the gradient, so that their sum holds for all of it."""
    smooth = [array[DIFFERENTIABLE] for array in _data()]
    settings = {"solver": SOLVER, "strategies": [hg.Truncation(1)], "repeats": 1}
    few, at_once = (
        hg.compare(_problem(), *smooth, error_bound=True, piece=piece, **settings).records[0]
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
        hg.compare(_problem(), *data(_data()[0]), strategies=[hg.Truncation(1)], piece=2)


# --------------------------------------------------------------------- tables, files, pictures


def test_the_table_has_a_line_for_each_and_no_empty_columns(comparison) -> None:
    header, _, *lines = comparison.table().splitlines()
    headings = header.strip("| ").split(" | ")
    # No bound stands for the whole batch.
    assert headings == [v for k, v in module.COLUMNS.items() if k != "error_bound"]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [s.label for s in STRATEGIES]
    assert lines[1].endswith("| RuntimeError: no luck today |")
    assert f"{_row(comparison, 'full')['relative_error']:.4g}" in lines[0]

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
        row = _row(comparison, label)
        np.testing.assert_allclose(drawn[label], [[row["over_forward"], row["relative_error"]]])
    figure.savefig(picture := io.BytesIO(), format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_labels_beside_a_bar_are_whole(width: int) -> None:
    from rich.console import Console

    from hypergrad._foundation.progress import progress_bar

    label = "a-strategy-whose-name-is-long:steps=2,momentum=0.25"
    bar = progress_bar()
    bar.add_task(label, total=10, loss="loss 0.12345")
    console = Console(width=width, file=io.StringIO())
    console.print(bar.get_renderable())
    lines = console.file.getvalue().splitlines()
    assert "".join(line.split(" ")[0] for line in lines) == label
