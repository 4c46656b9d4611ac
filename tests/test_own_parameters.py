"""Training with parameters that differ by sample: a mask, a noise level."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, random_data
from training_runs import DATA, SAMPLES, M, N, run, small_problem, untimed, within_epoch_3

import hypergrad as hg
from hypergrad import operators
from hypergrad.learning.warm_start import make_batch_gradient

RNG = np.random.default_rng(5)
MASKS = RNG.random((SAMPLES, N)) < 0.6
MASKS[:, 0] = True
LEVELS = RNG.uniform(0.5, 2.0, SAMPLES)
ROWS = RNG.uniform(0.5, 1.5, (SAMPLES, M, N))
SOLVER = hg.ChambollePock(100, tau=0.3, sigma=0.3)  # the same steps for every K


def with_mask(problem: hg.LowerLevel, mask: Any) -> hg.LowerLevel:
    return eqx.tree_at(lambda p: p.G.A.mask, problem, mask)


def with_level(problem: hg.LowerLevel, level: Any) -> hg.LowerLevel:
    """The learned weight acts through two leaves of the sample's problem."""
    parts = problem.F.weight * level, problem.G.weight + problem.F.weight**2
    return eqx.tree_at(lambda p: (p.F.weight, p.G.weight), problem, parts)


def with_rows(problem: hg.LowerLevel, factors: Any) -> hg.LowerLevel:
    return eqx.tree_at(lambda p: p.K, problem, problem.K * factors)


def masked() -> hg.LowerLevel:
    return small_problem(G=hg.DataFidelity(operators.Mask(np.ones(N, bool))))


CASES: dict[str, Any] = {
    "masks": (masked(), with_mask, MASKS),
    "levels": (small_problem(), with_level, LEVELS),
    "a K for each": (small_problem(), with_rows, ROWS),
}


def mean_loss(problem: hg.LowerLevel, sample_problem: Any, own: Any) -> Any:
    """Plain: the problem of each sample, one after the other."""
    total = 0.0
    for x_tilde, x_true, row in zip(*DATA, own, strict=True):
        mine = sample_problem(problem, jnp.asarray(row))
        h = hg.hypergradient(mine, x_tilde, x_true, solver=SOLVER, strategy=hg.FullUnrolling())
        total = total + h.value / SAMPLES
    return total


@pytest.mark.parametrize(("problem", "sample_problem", "own"), CASES.values(), ids=CASES)
def test_the_gradient_is_that_of_the_mean_loss(problem, sample_problem, own) -> None:
    strategy = hg.FullUnrolling()
    compute = make_batch_gradient(
        SOLVER, strategy, hg.half_mean_squared_error, None, lambda p: p.K, sample_problem
    )
    batch = eqx.filter_jit(compute)(problem, *map(jnp.asarray, DATA), jnp.asarray(own), None)
    assert batch.loss == pytest.approx(float(mean_loss(problem, sample_problem, own)), rel=1e-12)

    def one(own, x_tilde, x_true):
        mine, pull = eqx.filter_vjp(lambda p: sample_problem(p, own), problem)
        h = hg.hypergradient(mine, x_tilde, x_true, solver=SOLVER, strategy=strategy)
        return pull(h.grad)[0]

    each = jax.vmap(one)(jnp.asarray(own), *map(jnp.asarray, DATA))
    assert_close(batch.grad, jax.tree.map(lambda g: jnp.mean(g, axis=0), each), 1e-12)

    h = 1e-6
    for leaf in (lambda p: p.K, lambda p: p.F.weight):
        value = leaf(problem)
        direction = jnp.asarray(RNG.standard_normal(value.shape))
        ahead, behind = (
            mean_loss(eqx.tree_at(leaf, problem, value + t * direction), sample_problem, own)
            for t in (h, -h)
        )
        slope = float((ahead - behind) / (2 * h))
        assert float(jnp.sum(leaf(batch.grad) * direction)) == pytest.approx(slope, rel=1e-6)


WARM = hg.WarmStart(residual=1e-2, most=20, share=0.0)
SETTINGS: dict[str, dict[str, Any]] = {"cold": {}, "warm": {"warm_start": WARM}}


def by_sample(own: Any = MASKS, **settings: Any) -> hg.History:
    """A run of some epochs with a mask for each sample."""
    held_out = (*random_data(3, N, seed=7), own[:3])
    fixed = {"problem": masked(), "data": (*DATA, own), "validation": held_out}
    return run(**{"sample_problem": with_mask, **fixed, **settings})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equal_rows_make_the_run_without(settings) -> None:
    mask = MASKS[0]
    problem = with_mask(masked(), jnp.asarray(mask))
    strategy = {"strategy": hg.LimitFormula(), **settings}
    history = by_sample(np.tile(mask, (SAMPLES, 1)), **strategy)
    expected = run(problem=problem, **strategy)
    for name in ("train_loss", "validation_loss", "residual", "converged", "counted"):
        np.testing.assert_allclose(history.column(name), expected.column(name), rtol=1e-12)
    assert_close(history.problem.K, expected.problem.K, 1e-12)


def drawn(epoch: int) -> Any:
    return (*random_data(SAMPLES, N, seed=epoch), np.roll(MASKS, epoch, axis=0))


KILLED = {**SETTINGS, "drawn": {"data": drawn}}


@pytest.mark.parametrize("settings", KILLED.values(), ids=KILLED)
def test_an_interrupted_run_goes_on_alike(settings, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            by_sample(checkpoint_dir=tmp_path, **settings)
    history, expected = by_sample(checkpoint_dir=tmp_path, **settings), by_sample(**settings)
    assert untimed(history) == untimed(expected)
    assert_close(
        (history.problem.K, history.problem.F), (expected.problem.K, expected.problem.F), 0.0
    )


def test_a_checkpoint_of_other_rows_is_refused(tmp_path) -> None:
    by_sample(checkpoint_dir=tmp_path)
    with pytest.raises(hg.HypergradError, match="another set of training data"):
        by_sample(~MASKS, checkpoint_dir=tmp_path)
    with pytest.raises(hg.HypergradError, match="another problem by sample"):
        by_sample(checkpoint_dir=tmp_path, sample_problem=lambda p, own: with_mask(p, ~own))


def test_learning_with_masks_lowers_the_loss(tmp_path) -> None:
    """The rows are read from a file, batch by batch."""
    x_true = np.cumsum(np.random.default_rng(0).standard_normal((SAMPLES, N)), axis=1)
    path = tmp_path / "masks.npy"
    np.save(path, MASKS)
    masks, x_tilde = np.load(path, mmap_mode="r"), MASKS * (x_true + 0.1)
    history = hg.train(
        masked(), (x_tilde, x_true, masks), validation=(x_tilde, x_true, masks),
        sample_problem=with_mask, solver=hg.ChambollePock(200), strategy=hg.LimitFormula(),
        optimizer=optax.adam(2e-2), epochs=20, batch_size=4, progress=False, warm_start=WARM,
    )  # fmt: skip
    losses = history.column("validation_loss")
    assert losses[-1] < 0.95 * losses[0]
    assert losses[0] == history.records[0]["train_loss"]


def test_the_loss_on_data_of_any_size() -> None:
    """The last chunk is padded; a level of 0 in the padding would have no solution."""
    problem = small_problem()
    settings: dict[str, Any] = {"solver": SOLVER, "strategy": hg.FullUnrolling(), "piece": 3}
    loss = hg.evaluate(problem, *DATA, LEVELS, sample_problem=with_level, **settings)
    assert loss == pytest.approx(float(mean_loss(problem, with_level, LEVELS)), rel=1e-12)


def test_whole_numbers_stay_what_they_are() -> None:
    """A row may be an index into learned weights."""

    def of_group(problem: hg.LowerLevel, group: Any) -> hg.LowerLevel:
        return eqx.tree_at(lambda p: p.F.weight, problem, problem.F.weight[group])

    problem, groups = small_problem(hg.L1(jnp.full(M, 0.3))), np.arange(SAMPLES) % 2
    settings = {"trainable": lambda p: p.F.weight, "validation": None}
    history = run(problem=problem, data=(*DATA, groups), sample_problem=of_group, **settings)
    moved = np.asarray(history.problem.F.weight) != np.asarray(problem.F.weight)
    assert moved.tolist() == [True, True] + [False] * (M - 2)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no function": (
        {"sample_problem": None},
        r"data must be a pair .*; got a tuple of 3: pass both sample_problem and rows of own, or",
    ),
    "no rows": ({"data": DATA}, r"data must be a triple .*; got a tuple of 2: pass both"),
    "no rows to judge by": ({"validation": DATA}, r"validation must be a triple .* got a tuple of"),
    "rows of another count": (
        {"data": (*DATA, MASKS[1:])},
        rf"own of data must have one row for each of the {SAMPLES} samples; got shape \(7, 5\)",
    ),
    "one number": ({"data": (*DATA, 0.5)}, r"own of data must have one row for each"),
    "NaN": ({"data": (*DATA, LEVELS * np.nan)}, "own of data must be finite"),
    "no real numbers": ({"data": (*DATA, 1j * LEVELS)}, "own of data must be real"),
    "what cannot be called": ({"sample_problem": 3}, "sample_problem must be a function of"),
    "a method": (
        {"method": hg.LBFGS(), "optimizer": None, "batch_size": None},
        "sample_problem must be left out with a method",
    ),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(settings, words: str) -> None:
    with pytest.raises(hg.HypergradError, match=words):
        by_sample(**settings)


def test_the_loss_needs_both() -> None:
    strategy: dict[str, Any] = {"strategy": hg.Truncation(1)}
    with pytest.raises(hg.HypergradError, match="given together; got own alone: pass sample_prob"):
        hg.evaluate(masked(), *DATA, MASKS, **strategy)
    with pytest.raises(hg.HypergradError, match="got sample_problem alone: pass own, too"):
        hg.evaluate(masked(), *DATA, sample_problem=with_mask, **strategy)
