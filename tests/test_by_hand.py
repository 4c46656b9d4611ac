"""The ways by hand give this package's gradients; the section in miniature, without times."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import hypergrad as hg
from hypergrad.workbench.benchmark import _ways, by_hand
from hypergrad.workbench.benchmark._problems import random_problem

RTOL = 1e-10
L = 20
CONVERGED = 5000


def arrays(m: int = 6, n: int = 4, batch: int = 3) -> list[jax.Array]:
    problem, x_tilde, x_true = random_problem(m, n, batch, jnp.float64)
    tau, sigma, _ = hg.ChambollePock().step_sizes(problem)
    return [jnp.asarray(problem.K), problem.F.weight, x_tilde, x_true, tau, sigma]


def tensors():
    torch = pytest.importorskip("torch")
    return [torch.tensor(np.asarray(array)) for array in arrays()]


def expected(strategy: hg.AbstractStrategy, iterations: int = L) -> tuple[jax.Array, jax.Array]:
    K, weight, x_tilde, x_true, tau, sigma = arrays()
    problem = hg.LowerLevel(K, hg.L1(weight), hg.Quadratic(1.0))
    solver = hg.ChambollePock(iterations, tau, sigma)
    grad = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy).grad
    return grad.K, grad.F.weight


every_depth = pytest.mark.parametrize(
    ("last", "strategy"),
    [(L, hg.FullUnrolling()), (1, hg.Truncation(1)), (3, hg.Truncation(3))],
    ids=["full", "last step", "last three"],
)


@every_depth
def test_a_scan_is_unrolling(last, strategy) -> None:
    gradients = _ways.unrolled_by_jax(*arrays(), L=L, last=last)
    assert_close(gradients, expected(strategy), RTOL)


@every_depth
def test_a_loop_in_pytorch_is_unrolling(last, strategy) -> None:
    gradients = _ways.unrolled_by_torch(*tensors(), L=L, last=last)
    assert_close(tuple(g.numpy() for g in gradients), expected(strategy), RTOL)


def test_torchdeq_arrives_at_the_limit() -> None:
    given = tensors()
    pytest.importorskip("torchdeq")
    gradients = _ways.implicit_by_torchdeq(*given, L=CONVERGED)
    limit = expected(hg.LimitFormula(), CONVERGED)
    assert_close(tuple(g.numpy() for g in gradients), limit, RTOL)


def test_the_products_of_pytorch_are_those_of_jax() -> None:
    from hypergrad._foundation.timing import matrix_products_alone

    K, _, x_tilde, *_ = tensors()
    products = _ways.products_by_torch(K, x_tilde, 3).numpy()
    given = arrays()
    assert_close(products, matrix_products_alone(given[0], given[2], 3), RTOL)


@pytest.mark.parametrize("strategy", [hg.FullUnrolling(), hg.LimitFormula()], ids=lambda s: s.label)
def test_the_package_is_called_as_it_is(strategy) -> None:
    gradients = _ways.by_package(*arrays(), L=L, strategy=strategy)
    assert_close(gradients[:2], expected(strategy), RTOL)


@pytest.fixture
def settings(monkeypatch) -> by_hand.Settings:
    """A way takes as many seconds as its place in the list says."""
    monkeypatch.setattr(
        by_hand,
        "interleaved_medians",
        lambda calls, *, repeats: {key: float(i) for i, key in enumerate(calls, 1)},
    )
    return by_hand.Settings(
        strategies=("full", "truncation:k=1", "limit:cgls"), iterations=CONVERGED
    )


def test_the_section_in_miniature(settings, monkeypatch) -> None:
    monkeypatch.setattr(by_hand, "BY_TORCH", {"PyTorch loop, full": "a_package_that_is_missing"})
    records = by_hand.measure(6, 4, 3, settings).records
    rows = {record["name"]: record for record in records}
    full, truncated, limit, scan, last, products, loop = rows.values()
    assert list(rows) == [
        *("full", "truncation:k=1", "limit:cgls", "JAX scan, full", "JAX scan, last step"),
        *("products with K alone, JAX", "PyTorch loop, full"),
    ]
    assert [row["over_products"] for row in records[:6]] == [i / 6 for i in range(1, 7)]
    assert scan["error_at_L"] == 0
    for key in ("error_at_L", "error"):
        assert full[key] <= RTOL
        assert limit[key] <= RTOL
        assert truncated[key] == pytest.approx(last[key], rel=1e-8)
        assert truncated[key] > 0.01
        assert key not in products
    assert scan["megabytes"] > last["megabytes"] > 0
    assert loop["reason"] == "a_package_that_is_missing is not installed"
    assert {row["samples"] for row in records} == {3}
    assert by_hand.report(records).count("\n") == 4 + len(records)


def test_pytorch_is_measured_in_another_process(settings) -> None:
    pytest.importorskip("torch")
    given = arrays()
    measured = by_hand._in_torch(given, given, dataclasses.replace(settings, iterations=L))
    assert set(measured) == {*by_hand.BY_TORCH, "products with K alone, PyTorch"}
    way = measured["PyTorch loop, full"]
    assert isinstance(way, by_hand._Measured)
    assert way.seconds > 0
    assert way.products > 0
    assert_close(way.gradient, expected(hg.FullUnrolling())[0], RTOL)


def test_the_peak_of_a_call_is_that_of_the_call_alone() -> None:
    np.ones(4_000_000)
    growth = by_hand._growth_of_the_peak(lambda: np.ones(2_000_000))
    assert growth is None or 14 < growth < 18
