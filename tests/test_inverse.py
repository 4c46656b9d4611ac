"""Models of inverse problems: data terms at any shape, their best scale, and the experiment."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad._foundation.records import read_jsonl
from hypergrad.workbench.studies.whole_images import best_scale, solve_at
from hypergrad.workbench.sweep import run_sweep

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inverse(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("inverse")


def quadratic_model(inverse, problem: str, shape: tuple[int, int], slope: float):
    """A bank whose potential is `slope v^2 / 2` for every value that occurs."""
    K = hg.operators.dct_bank(2, shape)
    F = hg.ConvexPotential(np.full((3, 1), slope), knots=(3.0,))
    return hg.LowerLevel(K=K, F=F, G=inverse.data_term(problem, shape)).astype(jnp.float32)


@pytest.mark.parametrize(
    "problem", ["Gaussian blur", "motion blur", "inpainting", "Fourier sampling"]
)
@pytest.mark.parametrize("shape", [(12, 12), (10, 14)])
def test_a_model_of_one_shape_restores_another(inverse, problem, shape):
    """With a quadratic F: the solution of linear equations, from A and K column by column."""
    model = quadratic_model(inverse, problem, (12, 12), slope := 0.3)
    n = shape[0] * shape[1]
    x_true = np.random.default_rng(1).random((2, n))
    x_tilde = inverse.observe(problem, 0.01, x_true, shape, np.random.default_rng(2))

    A = np.asarray(inverse.FORWARD[problem](shape)(jnp.eye(n)))
    K = hg.operators.dct_bank(2, shape).as_matrix()
    normal = (A @ A.conj().T).real
    expected = np.linalg.solve(normal + slope * K.T @ K, normal @ x_tilde.T).T

    term = functools.partial(inverse.data_term, problem)
    x = solve_at(model, shape, term, np.float32(x_tilde), 4000)
    np.testing.assert_allclose(x, expected, atol=2e-4)
    assert np.max(abs(expected - x_tilde)) > 0.05


def test_x_tilde_fits_the_measurements(inverse):
    """Of what is measured above the cutoff, it is all."""
    shape, rng = (12, 10), np.random.default_rng
    x_true = rng(0).random((3, 120))
    for problem in ("inpainting", "Fourier sampling"):
        b = inverse.measure(problem, 0.1, x_true, shape, rng(1))
        x_tilde = inverse.observe(problem, 0.1, x_true, shape, rng(1))
        np.testing.assert_allclose(inverse.FORWARD[problem](shape)(x_tilde), b, atol=1e-12)


def test_masks_measure_the_share_that_they_are_named_for(inverse):
    for shape in ((64, 64), (31, 48)):
        assert np.mean(inverse.half_of_pixels(shape)) == pytest.approx(0.5, abs=1e-3)
        mask = inverse.some_frequencies(shape, 0.3)
        assert np.mean(mask) == pytest.approx(0.3, abs=2e-3)
        # The coefficients of a real image are conjugate: with a frequency, its opposite is known.
        waves = np.fft.fft2(np.fft.ifft2(mask).real)
        np.testing.assert_allclose(waves, mask, atol=1e-12)
        assert mask[0, 0]


@pytest.mark.parametrize("best", [-7.3, 0.1, 5.0])
def test_the_best_scale_is_found(best):
    problem = hg.LowerLevel(hg.operators.differences(4), hg.L1(0.5), hg.Quadratic(2.0))

    def loss(model: hg.LowerLevel) -> float:
        return (np.log2(float(model.F.weight / model.G.weight)) - best) ** 2  # pyright: ignore

    found = best_scale(problem, loss)
    assert loss(found) <= 0.25**2 + 1e-9


@pytest.fixture
def miniature(inverse):
    return dataclasses.replace(
        inverse.Config().quick(),
        problems=("inpainting",),
        learned=("l1 2x3x3 limit:steps=10",),
        compared=("l1 2x3x3 limit:steps=10",),
    )


def test_the_experiment_in_miniature(inverse, miniature, tmp_path):
    """Every method; a second call computes nothing."""
    records = run_sweep(inverse.cells(miniature), tmp_path, config={}, progress=False)
    methods = ["observed", "total variation", "DCT", "learned for denoising, l1 2x3x3"]
    methods += ["learned for the problem, l1 2x3x3, limit:steps=10"]
    assert [r["method"] for r in records] == methods
    assert all(5 < r["psnr"] < 60 for r in records)
    assert inverse.table(miniature, records).count("\n") == 1 + len(methods)
    again = run_sweep(inverse.cells(miniature), tmp_path, config={}, progress=False)
    assert again == records


def test_an_unknown_problem(inverse, miniature):
    with pytest.raises(hg.HypergradError, match=r"problems must be of .*inpainting.*; got"):
        inverse.cells(dataclasses.replace(miniature, problems=("tomography",)))


def test_the_table_of_the_guide_is_that_of_the_stored_records(inverse):
    stored = read_jsonl(ROOT / "experiments" / "records" / "inverse" / "records.jsonl")
    guide = ROOT / "hypergrad" / "workbench" / "guides" / "inverse.md"
    assert inverse.table(inverse.Config(), [*stored]) in guide.read_text(encoding="utf-8")
