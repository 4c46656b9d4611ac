"""Baselines against independent oracles: grids, scikit-free least squares, closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import hypergrad as hg
from hypergrad.workbench import baselines, data
from hypergrad.workbench.studies.baselines import Tuned, in_words
from hypergrad.workbench.studies.samples import StudyData, piece_size
from hypergrad.workbench.studies.settings import ImageStudy


@pytest.fixture(scope="module")
def patches() -> data.Samples:
    return data.noisy_patches(data.PHOTOGRAPHS_TRAIN, 512, seed=0)


def denoising(weight: float, n: int = 64) -> hg.LowerLevel:
    K = hg.operators.dct2((8, 8), constant=False) if n == 64 else jnp.eye(n)
    return hg.LowerLevel(K=K, F=hg.L1(weight), G=hg.Quadratic(1.0))


def test_converged_is_the_closed_form():
    """K = I: soft-thresholding."""
    x_tilde = np.random.default_rng(0).normal(size=(5, 7))
    x, share = baselines.solve_to_tolerance(denoising(0.3, 7), x_tilde, tolerance=1e-12)
    assert_close(x, np.sign(x_tilde) * np.maximum(np.abs(x_tilde) - 0.3, 0), 1e-11)
    assert share == 1.0


def test_a_share_below_1_where_iterations_do_not_suffice(patches):
    x, share = baselines.solve_to_tolerance(
        denoising(0.1), patches.x_tilde, tolerance=1e-13, most=2, step_ratio=1.0
    )
    assert x.shape == patches.x_true.shape
    assert share < 0.5


def test_best_shrinkage_beats_a_grid(patches):
    x, _ = baselines.solve_to_tolerance(denoising(0.2), patches.x_tilde)
    a = baselines.best_shrinkage(patches.x_tilde, x, patches.x_true)
    losses = {
        b: baselines.mean_loss(baselines.shrink(patches.x_tilde, x, b), patches.x_true)
        for b in [a, *np.linspace(0, 2, 201)]
    }
    assert min(losses, key=losses.__getitem__) == a


def test_no_step_is_shrunk_to_nothing():
    assert baselines.best_shrinkage(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3))) == 0.0


def test_row_weights_of_the_dct_grow_with_frequency(patches):
    K = hg.operators.dct2((8, 8), constant=False)
    weights = np.asarray(baselines.reciprocal_row_weights(K, patches.x_true))
    expected = 1 / np.mean(np.abs(patches.x_true @ np.asarray(K).T), axis=0)
    assert_close(weights / weights[0], expected / expected[0], 1e-12)
    assert_close(np.prod(weights), 1.0, 1e-10)
    assert weights[-1] > 5 * weights[0]


def test_a_row_that_sees_nothing_gets_the_largest_weight_of_the_others():
    K = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    weights = baselines.reciprocal_row_weights(K, np.array([[2.0, 2.0], [1.0, 1.0]]))
    assert float(weights[2]) == float(jnp.max(weights[:2]))
    with pytest.raises(ValueError, match="see something"):
        baselines.reciprocal_row_weights(K[2:], np.array([[1.0, 1.0]]))


def test_best_of_takes_the_weight_that_a_grid_finds(patches):
    few = patches.take(slice(0, 128))

    def restore(problem, x_tilde):
        return baselines.solve_to_tolerance(problem, x_tilde).x

    weights = (0.02, 0.1, 0.5)
    best = baselines.best_of(map(denoising, weights), few.x_tilde, few.x_true, restore)
    losses = [
        np.mean((restore(denoising(weight), few.x_tilde) - few.x_true) ** 2) for weight in weights
    ]
    assert float(best.F.weight) == weights[int(np.argmin(losses))]  # pyright: ignore
    with pytest.raises(ValueError, match="at least one"):
        baselines.best_of([], few.x_tilde, few.x_true, restore)


@pytest.mark.parametrize(
    ("grid", "optimum"), [((0.5, 1.0), 90.0), ((0.5, 1.0), 0.004), ((1.0, 1.5, 3.0), 1.6)]
)
def test_the_best_weight_lies_inside_what_was_tried(grid, optimum):
    """The restored value is the weight itself: its distance to the optimum is known."""
    tried = []

    def restore(problem, x_tilde):
        tried.append(float(problem.F.weight))
        return np.full_like(x_tilde, problem.F.weight)

    best = baselines.best_weight(
        lambda weight: denoising(weight, 1),
        grid,
        np.ones((1, 1)),
        np.full((1, 1), optimum),
        restore,
    )
    assert not best.at_an_end
    assert best.weight == float(best.problem.F.weight)  # pyright: ignore
    assert min(tried) < best.weight < max(tried)
    assert best.weight == min(tried, key=lambda weight: abs(weight - optimum))
    assert len(tried) == len(set(tried))


def test_a_weight_that_never_lies_inside_is_told():
    def best(grid, towards):
        return baselines.best_weight(
            lambda weight: denoising(weight, 1), grid, np.ones((1, 1)), np.zeros((1, 1)),
            lambda problem, x_tilde: np.full_like(x_tilde, problem.F.weight**towards),
        )  # fmt: skip

    assert best([0.5, 1.0], -1)[1:] == (512.0, True)  # the last one below 1000
    assert best([0.5, 1.0], 1)[1:] == (2.0**-10, True)
    assert best([0.5], 1)[1:] == (0.5, False)  # the one weight there is was not chosen
    for grid in ([], [0.0, 1.0], [-1.0, 1.0], [1.0, np.inf]):
        with pytest.raises(ValueError, match="weights must be positive numbers, at least one"):
            best(grid, 1)
    problem = denoising(512.0, 1)
    assert "a better one may lie farther" in in_words(Tuned(problem, at_an_end=True))
    assert in_words(Tuned(problem, at_an_end=False)) == "F = L1(weight=512)"


@pytest.mark.parametrize(
    ("batch", "held_out", "tuned", "expected"),
    [(8, 16, 32, 8), (100_000, 16, 32, 32), (100_000, 48, 32, 48), (100_000, 16, 10_000, 64)],
)
def test_a_piece_is_no_larger_than_what_is_solved_at_once(batch, held_out, tuned, expected):
    def samples(count):
        rows = np.zeros((count, 4))
        return data.Samples(rows, rows, (4,), ("a",), np.zeros(count, int))

    config = ImageStudy(batch_size=batch, tuning_samples=tuned)
    assert piece_size(config, StudyData(samples(64), samples(held_out))) == expected


def test_best_affine_satisfies_the_normal_equations(patches):
    """The error is uncorrelated with the observation, and of mean 0."""
    estimate = baselines.best_affine(patches.x_tilde, patches.x_true)
    error = estimate(patches.x_tilde) - patches.x_true
    assert np.max(np.abs(np.mean(error, axis=0))) < 1e-12
    assert np.max(np.abs(error.T @ patches.x_tilde / len(error))) < 1e-12
    held_out = data.noisy_patches(data.PHOTOGRAPHS_HELD_OUT, 512, seed=1)
    gain = data.psnr(estimate(held_out.x_tilde), held_out.x_true) - data.psnr(
        held_out.x_tilde, held_out.x_true
    )
    assert gain > 4.0  # dB
