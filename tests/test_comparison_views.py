"""A comparison and a training history as data frames, LaTeX, HTML, figures and files."""

from __future__ import annotations

import io

import equinox as eqx
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.learning.result import Best

RECORDS = [
    {
        "strategy": "a|b_c&d<e>",
        "relative_error": 0.25,
        "cosine": None,
        "milliseconds": 2.0,
        "forward_status": "converged 75 %, non finite 25 %",
        "adjoint_status": "unknown 100 %",
    },
    {"strategy": "failing", "error": "RuntimeError: no luck"},
]
REFERENCE = {"certified": 1.0, "differentiable": 0.5, "residual": None}


@pytest.fixture
def comparison() -> hg.Comparison:
    return hg.Comparison(RECORDS, REFERENCE | {
        "how": "Exact", "status": "converged 100 %", "adjoint_status": "converged 100 %",
        "adjoint_residual": None,
    }, {"dtype": "float64"})  # fmt: skip


def test_a_saved_comparison_is_loaded_equal(comparison, tmp_path) -> None:
    comparison.save(tmp_path)
    assert hg.Comparison.load(tmp_path) == comparison


def test_the_data_frame_has_a_row_per_strategy(comparison) -> None:
    frame = comparison.to_dataframe()
    assert list(frame.columns) == [
        "strategy", "relative_error", "cosine", "milliseconds", "forward_status", "adjoint_status",
        "error",
    ]  # fmt: skip
    assert frame["strategy"].tolist() == ["a|b_c&d<e>", "failing"]
    assert frame["relative_error"][0] == 0.25
    assert frame["relative_error"].isna().tolist() == [False, True]


def test_latex_and_html_and_markdown_escape_labels(comparison) -> None:
    assert comparison.to_latex().splitlines() == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"strategy & relative error & cosine & time (forward solves) & memory (MB) & status \\",
        r"\midrule",
        r"a\textbar{}b\_c\&d<e> & $2.5 \cdot 10^{-1}$ & - & - & - "
        r"& non finite 25 \%, adjoint unknown \\",
        r"failing & - & - & - & - & failed \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert "a|b_c&amp;d&lt;e&gt;" in comparison._repr_html_()
    assert r"a\|b_c&d<e>" in comparison.table()


def test_a_history_is_a_data_frame_a_page_and_a_figure() -> None:
    records = [
        {"epoch": e, "seconds": 0.5 * e, "train_loss": 2.0 - e, "validation_loss": None}
        for e in (0, 1)
    ]
    problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    history = hg.History(problem, records, Best(problem, 1))
    assert history.to_dataframe()["train_loss"].tolist() == [2.0, 1.0]
    (line, *_) = history.plot().axes[0].lines
    assert line.get_xydata().tolist() == [[0.0, 2.0], [1.0, 1.0]]
    assert "<th>train_loss</th>" in history._repr_html_()
    assert r"1 & 0.5 & 1 & - \\" in history.to_latex().splitlines()


def test_a_saved_history_is_loaded_equal(tmp_path) -> None:
    def problem(weight: float) -> hg.LowerLevel:
        return hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(weight), G=hg.Quadratic(1.0))

    losses = {"train_loss": 1.0, "seconds": 0.5, "residual": None}
    records = [{"epoch": e, **losses, "validation_loss": 1.0 + e} for e in range(3)]
    history = hg.History(problem(0.1), records, Best(problem(0.2), 0))
    history.save(tmp_path / "kept")
    found = hg.History.load(tmp_path / "kept", problem(1.0))
    assert found.records == records
    assert eqx.tree_equal(found.problem, history.problem)
    assert eqx.tree_equal(found.best, history.best)
    with pytest.raises(hg.HypergradError, match="must be a folder of History"):
        hg.History.load(tmp_path / "nothing", problem(1.0))


def test_ssim_is_that_of_each_image() -> None:
    rng = np.random.default_rng(0)
    x, x_true = rng.random((2, 3, 9, 8))
    # By its definition at the one place where the window fits across: means over 7 x 7 pixels.
    a, b = x[:, :7, :7].reshape(3, -1), x_true[:, :7, :7].reshape(3, -1)
    assert hg.ssim(x_true, x_true) == 1.0
    one = hg.ssim(a.reshape(3, 7, 7), b.reshape(3, 7, 7), peak=2.0)
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = np.sum((a - mean_a[:, None]) * (b - mean_b[:, None]), 1) / 48
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (a.var(1, ddof=1) + b.var(1, ddof=1) + c2)
    assert one == pytest.approx(np.mean(expected), rel=1e-12)
    with pytest.raises(hg.HypergradError, match="at least 7 x 7"):
        hg.ssim(x[..., :6], x_true[..., :6])


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
