"""Upper-level methods: what they promise, by the exact loss; their minima; bad input; resuming."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import solve_l1_quadratic
from training_runs import after_saving_epoch_2, assert_same_run

import hypergrad as hg

SOLVER = hg.ChambollePock(20_000)
TO_TOLERANCE = hg.LimitFormula(hg.Tolerance())
K0 = np.random.default_rng(1).standard_normal((7, 5)) / 4


def data(samples: int, n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x_true = np.cumsum(rng.standard_normal((samples, n)) * (rng.random((samples, n)) < 0.4), axis=1)
    return x_true + 0.4 * rng.standard_normal(x_true.shape), x_true


def smooth(K=K0, weight: Any = 0.3, smoothing: float = 0.1) -> hg.LowerLevel:
    return hg.LowerLevel(K=K, F=hg.Huber(weight, smoothing), G=hg.Quadratic(1.0))


def lasso(weight: float = 1.0) -> hg.LowerLevel:
    """`argmin ||A r - b||^2 / 2 + weight ||r||_1`: with `F = Quadratic`, G the l1 norm."""
    rng = np.random.default_rng(3)
    A = rng.standard_normal((20, 8))
    b = A @ np.array([1.5, 0, 0, -2, 0, 0, 0.7, 0]) + 0.5 * rng.standard_normal(20)
    return hg.LowerLevel(K=A, F=hg.Quadratic(1.0, b), G=hg.L1(weight))


LASSO_DATA = np.zeros((1, 8)), np.array([[1.5, 0, 0, -2, 0, 0, 0.7, 0]])


def total_variation(n: int, weight: float = 0.5) -> hg.LowerLevel:
    return hg.LowerLevel(hg.operators.differences(n), hg.L1(weight), hg.Quadratic(1.0))


def learn(problem, pair, **settings) -> hg.History:
    defaults = {"solver": SOLVER, "strategy": TO_TOLERANCE, "epochs": 12, "progress": False}
    return hg.train(problem, pair, **defaults | settings)


def exact_loss(problem, pair) -> float:
    return float(hg.hypergradient(problem, *pair, strategy=hg.Exact()).value)


# ----------------------------------------------------------------------------- what is promised

PROBLEMS: dict[str, tuple[hg.LowerLevel, Any, Any]] = {
    "K": (smooth(), lambda p: p.K, data(6, 5)),
    "a weight": (smooth(), lambda p: p.F.weight, data(6, 5)),
    "weights and K": (smooth(weight=np.full(7, 0.3)), lambda p: (p.K, p.F.weight), data(4, 5)),
    "all of a smooth problem": (smooth(), lambda p: p, data(4, 5)),
    "total variation": (total_variation(12), lambda p: p.F.weight, data(3, 12)),
    "K of the l1 norm": (
        hg.LowerLevel(K0[:4], hg.L1(0.2), hg.Quadratic(1.0)), lambda p: p.K, data(3, 5)
    ),
    "Lasso": (lasso(), lambda p: p.G.weight, LASSO_DATA),
}  # fmt: skip


# Each compiles for some seconds: every day a smooth K and weights, and one that is not smooth.
EVERY_DAY = ("weights and K", "Lasso")
CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name not in EVERY_DAY))
    for name, case in PROBLEMS.items()
]


@pytest.mark.parametrize(("problem", "trainable", "pair"), CASES)
def test_every_accepted_step_decreases_the_true_loss_as_promised(problem, trainable, pair) -> None:
    visited = []
    history = learn(
        problem,
        pair,
        method=hg.AdaptiveInexactDescent(),
        trainable=trainable,
        measure=lambda p: visited.append(p) or {},
    )
    losses = [exact_loss(problem, pair) for problem in visited]
    promised = [record["promised"] for record in history.records[1:]]
    assert sum(p is not None for p in promised) >= 3
    for before, after, least in zip(losses, losses[1:], promised, strict=False):
        if least is not None:
            assert 0 < least <= before - after + 1e-14 * before
    for loss, record in zip(losses[1:], history.records[1:], strict=True):
        assert record["loss_lower"] <= loss <= record["loss_upper"]


# ------------------------------------------------------------------------------------- minima


WEIGHTS: dict[str, tuple[Any, Any, Any]] = {
    "Lasso": (lasso, lambda p: p.G.weight, LASSO_DATA),
    "total variation": (lambda w: total_variation(12, w), lambda p: p.F.weight, data(3, 12)),
}


@functools.cache
def exact_losses(name: str) -> Any:
    """The exact loss at each of an array of weights, as one program."""
    problem_at, _, pair = WEIGHTS[name]

    @jax.jit
    @jax.vmap
    def losses(weight):
        return hg.hypergradient(problem_at(weight), *pair, strategy=hg.Exact()).value

    return losses


@functools.cache
def grid_minimum(name: str) -> float:
    """The least exact loss over a grid of weights, refined around the least: each cell a 1000th."""
    center, width = 0.0, np.log(30)
    for _ in range(3):
        grid = np.exp(center + np.linspace(-width, width, 41))
        losses = exact_losses(name)(grid)
        center, width = np.log(grid[int(np.argmin(losses))]), width / 10
    return float(np.min(losses))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("method", "most"), [(hg.LBFGS(), 15), (hg.AdaptiveInexactDescent(), 30)], ids=["lbfgs", "maid"]
)
def test_the_minimum_of_a_fine_grid_is_reached(name, method, most) -> None:
    """By the exact loss, since the adaptive method needs no accurate one."""
    visited = []
    problem_at, trainable, pair = WEIGHTS[name]
    settings = {"method": method, "trainable": trainable, "epochs": 30}
    measure = {"measure": lambda p: visited.append(float(trainable(p))) or {}}
    history = learn(problem_at(0.1), pair, **settings, **measure)
    found = np.resize(visited[1:], 41)  # repeated, to the shape of the grid: one program
    least, used = grid_minimum(name), 0
    for loss, record in zip(exact_losses(name)(found), history.records[1:], strict=False):
        used += record["evaluations"]
        if loss <= least * (1 + 1e-6):
            break
    assert loss <= least * (1 + 1e-6)
    assert used <= most


# ------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("iterations", [3, 30, 300])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_bound_encloses_the_true_loss(iterations, smoothing) -> None:
    """By dense solves in NumPy; over random weights and data, and as tight as the gap."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight, mu = rng.uniform(0.05, 0.8, 7), rng.uniform(0.5, 2.0)
        F = hg.Huber(weight, smoothing) if smoothing else hg.L1(weight)
        problem = hg.LowerLevel(K0, F, hg.Quadratic(mu))
        x_tilde, x_true = data(2, 5, seed)
        solver = hg.ChambollePock(iterations)
        rough = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1))
        bound = hg.loss_bound(problem, x_tilde, x_true, rough, solver=solver)
        for i in range(2):
            x = solve_l1_quadratic(K0, weight, mu, x_tilde[i], smoothing)
            assert bound.lower[i] <= np.sum((x - x_true[i]) ** 2) / 2 <= bound.upper[i]
            assert np.linalg.norm(x - rough.x[i]) <= bound.distance[i]
        floor = 1e-6  # the root of the rounding of a gap
        assert np.all(bound.distance <= np.sqrt(2 * np.abs(rough.stats.gap) / mu) + floor)


def test_without_strong_convexity_the_certified_active_set_bounds_the_loss() -> None:
    problem, solver = lasso(), hg.ChambollePock(60)
    rough = hg.solve(problem, LASSO_DATA[0], solver=solver, strategy=hg.Truncation(1))
    bound = hg.loss_bound(problem, *LASSO_DATA, rough, solver=solver)
    exact = exact_loss(problem, LASSO_DATA)
    assert 0 < float(bound.distance[0]) < 1
    assert float(bound.lower[0]) <= exact <= float(bound.upper[0])


# ---------------------------------------------------------------------------------- bad input

ADAPTIVE = {"method": hg.AdaptiveInexactDescent()}
GROUPS = hg.LowerLevel(K0[:4], hg.GroupL1(0.1, shape=(2, 2)), hg.Quadratic(1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem": GROUPS, **ADAPTIVE}, r"must have bounds .* got F=GroupL1, G=Quadratic"),
        ({"loss": lambda x, t: jnp.sum(abs(x - t)), **ADAPTIVE}, r"must have bounds"),
        ({"strategy": hg.Truncation(1), **ADAPTIVE}, r"must have a strategy with a tolerance; got"),
        ({"strategy": hg.Truncation(1), "method": hg.HOAG()}, r"HOAG must have a strategy with a"),
        ({"method": hg.LBFGS(), "batch_size": 2}, r"batch_size must be left out with a method; go"),
        ({"method": hg.LBFGS(), "optimizer": object()}, r"optimizer must be left out with a meth"),
        ({"method": hg.LBFGS(), "warm_start": True}, r"warm_start must be left out with a method"),
        ({"method": hg.LBFGS(), "project": lambda p: p}, r"project must be left out with a metho"),
        ({"method": hg.LBFGS(), "devices": 1}, r"devices must be left out with a method; got 1"),
        ({"method": "lbfgs"}, r"method must be an AbstractUpperLevelMethod; got 'lbfgs': pass"),
        ({"method": hg.LBFGS(), "data": lambda epoch: data(2, 5)}, r"data must be one pair of arr"),
        ({"method": hg.LBFGS(), "patience": 3}, r"patience must have validation data to judge"),
    ],
)
def test_bad_input_is_one_clear_error(settings, message) -> None:
    settings = dict(settings)
    problem, pair = settings.pop("problem", smooth()), settings.pop("data", data(2, 5))
    with pytest.raises(hg.HypergradError, match=message):
        learn(problem, pair, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.AdaptiveInexactDescent(eta=1.0), "eta must lie in"),
        (lambda: hg.AdaptiveInexactDescent(decrease=0.6), "decrease must be below eta"),
        (lambda: hg.AdaptiveInexactDescent(first_step=0.0), "first_step must be one finite"),
        (lambda: hg.HOAG(factor=1.5), "factor must lie in"),
        (lambda: hg.LBFGS(memory=0), "memory must be a whole number"),
    ],
)
def test_bad_settings_are_one_clear_error(make, message) -> None:
    with pytest.raises(hg.HypergradError, match=message):
        make()


def test_a_loss_without_a_bound_is_refused() -> None:
    x_tilde, x_true = data(2, 5)
    F = hg.GroupL1(0.1, shape=(2, 2))
    problem = hg.LowerLevel(K0[:4], F, hg.Box(0.1))
    solution = hg.solve(problem, x_tilde, strategy=hg.Truncation(1))
    with pytest.raises(hg.HypergradError, match=r"must have a strongly convex G, or F and G with"):
        hg.loss_bound(problem, x_tilde, x_true, solution)


# ------------------------------------------------------------------------ stopping, resuming

METHODS = [hg.AdaptiveInexactDescent(), hg.HOAG(), hg.LBFGS()]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_killed_run_goes_on_bit_for_bit(method, tmp_path, monkeypatch) -> None:
    settings = {"method": method, "trainable": lambda p: (p.K, p.F.weight), "epochs": 5}
    whole = learn(smooth(), data(3, 5), **settings)
    with monkeypatch.context() as patch:
        after_saving_epoch_2(patch)
        with pytest.raises(KeyboardInterrupt):
            learn(smooth(), data(3, 5), checkpoint_dir=tmp_path, **settings)
    assert_same_run(learn(smooth(), data(3, 5), checkpoint_dir=tmp_path, **settings), whole)
    assert len(whole.records) == 6
    with pytest.raises(hg.HypergradError, match="another optimizer"):
        learn(smooth(), data(3, 5), checkpoint_dir=tmp_path, **settings | {"method": OTHER})


OTHER = hg.LBFGS(memory=3)
ROUGH: dict[str, Any] = {"trainable": lambda p: p.F.weight, "epochs": 80}
ROUGH |= {"solver": hg.ChambollePock(20_000, tolerance=1e-3)}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_gradient_below_its_error_bound_ends_the_run_and_says_so(method) -> None:
    """With a solver that may not be accurate, near the minimum."""
    history = learn(smooth(), data(4, 5), method=method, **ROUGH)
    assert history.stopped is not None
    assert len(history.records) < 81
    assert [record["stopped"] for record in history.records[:-1]] == [None] * (
        len(history.records) - 1
    )
    last = history.records[-1]
    if "cannot be told from its error" in history.stopped:
        assert last["gradient_bound"] > 0.5 * last["gradient_norm"]


def test_a_run_that_has_ended_is_not_gone_on_with(tmp_path) -> None:
    """The loop looks at this, whatever the method."""
    first, again = (
        learn(smooth(), data(4, 5), method=hg.HOAG(), checkpoint_dir=tmp_path, **ROUGH)
        for _ in range(2)
    )
    assert first.stopped is not None
    assert again.records == first.records


def test_patience_ends_a_run_that_does_not_improve() -> None:
    """By a function that finds every epoch worse than the one before."""
    judged = iter(range(100))
    history = learn(
        smooth(),
        data(4, 5),
        strategy=hg.Truncation(1),
        solver=hg.ChambollePock(20),
        optimizer=optax.sgd(1e-3),
        validation=lambda problem: next(judged),
        patience=2,
    )
    assert (history.best.epoch, len(history.records)) == (0, 3)
    assert history.stopped == "the loss on validation data has not improved for 2 epochs"
