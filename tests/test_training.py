"""The upper level: each training step against one by hand, projections, dtypes, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, relative_error, solve_l1_quadratic
from training_runs import (
    DATA,
    RATE,
    RTOL,
    SAMPLES,
    SOLVER,
    M,
    N,
    evaluate,
    float32,
    float64,
    gradient,
    sgd_step,
    small_problem,
    train,
    with_entry,
)

import hypergrad as hg
from hypergrad.learning import pairs


def _in_log(p, g):
    """`log p - RATE d/dlog p` with `d/dlog p = p d/dp`."""
    return np.exp(np.log(p) - RATE * p * g)


def _parts() -> hg.LowerLevel:
    return small_problem(hg.SeparableSum((hg.L1(0.3), hg.Huber(0.4, 0.2)), (2, 4)))


Leaf = tuple[Callable[[hg.LowerLevel], Any], Callable]
# (K alone is learned with every strategy, below.)
STEPS: dict[str, tuple[hg.LowerLevel, list[Leaf]]] = {
    "weight": (small_problem(), [(lambda p: p.F.weight, _in_log)]),
    "a potential": (
        small_problem(hg.ConvexPotential([[0.4, 0.2], [0.3, 0.6]], (0.2, 0.5), [0.1, 0.2])),
        [(lambda p: p.F.slopes, _in_log), (lambda p: p.F.jump, _in_log)],
    ),
    "parts of a sum": (
        _parts(),
        [(lambda p: p.F.parts[0].weight, _in_log), (lambda p: p.F.parts[1].smoothing, _in_log)],
    ),
    "all at once": (
        small_problem(np.linspace(0.1, 0.6, M), hg.Quadratic(1.0, jnp.zeros(N))),
        [
            (lambda p: p.K, sgd_step),
            (lambda p: p.F.weight, _in_log),
            (lambda p: p.G.weight, _in_log),
            (lambda p: p.G.center, sgd_step),
        ],
    ),
}


@pytest.mark.parametrize(("problem", "leaves"), STEPS.values(), ids=STEPS)
def test_a_step_is_the_one_by_hand(problem, leaves) -> None:
    def trainable(p):
        return [select(p) for select, _ in leaves]

    grad = gradient(problem).grad
    stepped = [by_hand(select(problem), select(grad)) for select, by_hand in leaves]
    learned = train(problem, trainable=trainable).problem
    # What is not selected has to be met as well.
    assert_close(learned, eqx.tree_at(trainable, problem, stepped), RTOL)
    for old, new in zip(trainable(problem), trainable(learned), strict=True):
        assert relative_error(new, old) != 0.0


# `train` takes its gradient from `hypergradient` and nothing else of a strategy: every day one that
# unrolls (above), one that averages, one that solves, and one of another package.
EVERY_DAY = (hg.ErgodicUnrolling, hg.LimitFormula, hg.JaxoptImplicit)
STRATEGIES = [
    pytest.param(s(), id=s().label, marks=[pytest.mark.slow] * (s not in EVERY_DAY))
    for s in hg.STRATEGIES.values()
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_with_every_strategy(strategy) -> None:
    problem = small_problem()
    h = gradient(problem, strategy=strategy)
    history = train(problem, strategy=strategy)
    assert_close(history.problem.K, sgd_step(problem.K, h.grad.K), RTOL)
    assert history.records[1]["train_loss"] == pytest.approx(float(h.value), rel=RTOL)


def test_a_whole_node_can_be_selected() -> None:
    problem = small_problem()
    learned = train(problem, trainable=lambda p: p.G).problem
    grad = gradient(problem).grad.G
    assert_close(learned.G.weight, _in_log(problem.G.weight, grad.weight), RTOL)
    assert_close(learned.G.center, sgd_step(problem.G.center, grad.center), RTOL)


def test_the_loss_can_be_chosen() -> None:
    def loss(x, x_true):
        return jnp.mean(jnp.abs(x - x_true))

    problem = small_problem()
    history = train(problem, loss=loss, validation=DATA)
    assert_close(history.problem.K, sgd_step(problem.K, gradient(problem, loss=loss).grad.K), RTOL)
    x = hg.solve(problem, DATA[0], solver=SOLVER, strategy=hg.Truncation(1)).x
    expected = np.mean(np.abs(x - DATA[1]))
    for name in ("train_loss", "validation_loss"):
        assert history.records[0][name] == pytest.approx(expected, rel=RTOL)


# ---------------------------------------------------------------------------- many steps


def test_train_is_the_plain_loop_over_its_batches() -> None:
    problem = small_problem()
    # With this tolerance some samples converge and some do not.
    settings = {"solver": hg.ChambollePock(20, tolerance=5e-3), "strategy": hg.Truncation(1)}
    history = train(problem, epochs=2, batch_size=3, seed=5, **settings)
    shares = []
    for epoch in (1, 2):
        solves = []
        for rows in pairs.batches(SAMPLES, 3, 5, epoch):
            solves.append(gradient(problem, rows, **settings))
            K = sgd_step(problem.K, solves[-1].grad.K)
            problem = eqx.tree_at(lambda p: p.K, problem, K)
        stats = [h.solution.stats for h in solves]
        record = history.records[epoch]
        shares.append(record["converged"])
        assert record["train_loss"] == pytest.approx(np.mean([h.value for h in solves]), rel=RTOL)
        assert record["residual"] == pytest.approx(np.max([s.residual for s in stats]), rel=1e-6)
        assert record["converged"] == pytest.approx(np.mean([s.status == 0 for s in stats]))
    assert_close(history.problem, problem, RTOL)
    assert all(0 < share < 1 for share in shares)


@pytest.mark.parametrize(("count", "size"), [(8, 4), (10, 3), (5, 5), (5, 1)])
def test_batches_have_one_size_and_share_no_sample(count: int, size: int) -> None:
    batches = list(pairs.batches(count, size, 0, 1))
    assert [len(rows) for rows in batches] == [size] * (count // size)
    rows = np.concatenate(batches)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(count))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> tuple:
        return tuple(np.concatenate(list(pairs.batches(20, 5, seed, epoch))))

    starts = [(seed, epoch) for seed in range(3) for epoch in range(1, 4)]
    assert len({order(*pair) for pair in starts}) == len(starts)
    assert order(0, 1) == order(0, 1)


def test_what_is_left_out_of_one_epoch_has_its_turn_in_another() -> None:
    epochs = [np.concatenate(list(pairs.batches(5, 3, 0, epoch))) for epoch in range(1, 9)]
    assert set(np.concatenate(epochs)) == set(range(5))


def test_a_learned_weight_is_the_best_one() -> None:
    """Against the loss of a direct solver, over a grid of weights."""
    K = np.diff(np.eye(8), axis=0)
    x_true = np.repeat([[0.0, 1.0], [1.0, -0.5], [0.3, 0.3]], 4, axis=1)
    x_tilde = x_true + 0.2 * np.random.default_rng(0).standard_normal(x_true.shape)

    def loss(weight: float) -> float:
        x = [solve_l1_quadratic(K, weight, 1.0, row) for row in x_tilde]
        return 0.5 * np.mean(np.sum((x - x_true) ** 2, axis=-1))

    history = train(
        hg.LowerLevel(K=K, F=hg.L1(0.02), G=hg.Quadratic(1.0)),
        (x_tilde, x_true),
        solver=hg.ChambollePock(150),
        strategy=hg.FullUnrolling(),
        optimizer=optax.adam(0.1),
        epochs=60,
        trainable=lambda p: p.F.weight,
    )
    learned = loss(float(history.problem.F.weight))
    assert learned <= 1.01 * min(map(loss, np.geomspace(0.02, 1.0, 60)))
    assert learned < 0.7 * loss(0.02)
    assert history.records[-1]["train_loss"] == pytest.approx(learned, rel=1e-2)


def test_positive_leaves_stay_positive_where_plain_steps_would_not() -> None:
    problem = small_problem(np.linspace(0.1, 0.6, M))
    grad = gradient(problem).grad
    leaves = (problem.F.weight, problem.G.weight), (grad.F.weight, grad.G.weight)
    rate = 1.5 * min(float(jnp.max(p / g)) for p, g in zip(*leaves, strict=True) if jnp.any(g > 0))
    plain = [p - rate * g for p, g in zip(*leaves, strict=True)]
    assert min(float(jnp.min(p)) for p in plain) < 0

    def trainable(p):
        return p.F.weight, p.G.weight

    learned = train(problem, trainable=trainable, optimizer=optax.sgd(rate), epochs=3).problem
    for leaf in trainable(learned):
        assert np.all(np.isfinite(leaf))
        assert np.all(np.asarray(leaf) > 0)


# ----------------------------------------------------------------------------- projections


def test_a_scale_of_K_that_is_free_is_held_at_norm_1() -> None:
    problem = small_problem(G=hg.Box(0.3))
    step = np.asarray(sgd_step(problem.K, gradient(problem).grad.K))
    K = train(problem).problem.K
    assert_close(K, jnp.asarray(step / np.linalg.norm(step, 2)), 1e-10)
    assert np.linalg.norm(step, 2) != pytest.approx(1.0, rel=0.1)


def test_a_free_scale_is_held_in_operators_and_sums_alike() -> None:
    """A matrix as an operator of lineax is a matrix; filters are scaled to the norm of their K."""
    problem = small_problem(G=hg.Box(0.3))
    parts = hg.SeparableSum((hg.Box(0.3), hg.Box(0.3)), (1, N - 1))
    same = hg.LowerLevel(lx.MatrixLinearOperator(problem.K), problem.F, parts)
    assert_close(train(same).problem.K.matrix, train(problem).problem.K, RTOL)

    filters = np.random.default_rng(0).standard_normal((2, 1, 2))
    bank = hg.operators.FilterBank(filters, (1, N))
    learned = train(hg.LowerLevel(bank, hg.L1(0.1), hg.Box(0.3))).problem.K
    assert hg.operators.operator_norm(learned) == pytest.approx(1.0, rel=1e-12)
    assert np.linalg.norm(learned.as_matrix(), 2) == pytest.approx(1.0, rel=0.02)


def test_ones_own_projection_takes_the_place_of_the_default() -> None:
    def clip(p):
        return eqx.tree_at(lambda q: q.K, p, jnp.clip(p.K, -0.2, 0.2))

    problem = small_problem(G=hg.Box(0.3))
    step = sgd_step(problem.K, gradient(problem).grad.K)
    assert_close(train(problem, project=clip).problem.K, jnp.clip(step, -0.2, 0.2), RTOL)


# -------------------------------------------------------------------------------- precision


def _float32_run(validation: Any) -> hg.History:
    problem = float32(small_problem())
    return train(
        problem, float32(DATA), validation=validation, optimizer=optax.adam(0.1), epochs=2,
        trainable=lambda p: (p.K, p.F.weight),
    )  # fmt: skip


def test_float32_stays_float32() -> None:
    history = _float32_run(float32(DATA))
    assert {leaf.dtype for leaf in jax.tree.leaves(history.problem)} == {jnp.dtype("float32")}
    last = history.records[-1]
    assert last["validation_loss"] == pytest.approx(evaluate(float64(history.problem)), rel=1e-4)


def test_validation_is_cast_like_the_data() -> None:
    runs = [_float32_run(data).records for data in (DATA, float32(DATA))]
    mixed, cast = ([{**record, "seconds": None} for record in records] for records in runs)
    assert mixed == cast


# ------------------------------------------------------------------------------ bad inputs


x_tilde, x_true = DATA
BAD = {
    "other n": ((x_tilde, x_true[:, 1:]), {}, r"data must be .* \(samples, 5\)"),
    "not the n of K": ((x_tilde[:, 1:], x_true[:, 1:]), {}, r"\(samples, 5\); got \(8, 4\)"),
    "other count": ((x_tilde, x_true[1:]), {}, r"same shape .* got \(8, 5\) and \(7, 5\)"),
    "one sample flat": ((x_tilde[0], x_true[0]), {}, r"\(samples, 5\); got \(5,\)"),
    "a batch of batches": ((x_tilde[None], x_true[None]), {}, r"\(samples, 5\); got \(1, 8, 5\)"),
    "three arrays": ((x_tilde, x_true, x_true), {}, r"\(x_tilde, x_true\); got a tuple of 3"),
    "nothing": ((x_tilde[:0], x_true[:0]), {}, "data must hold at least one sample"),
    "NaN in x_tilde": ((with_entry(x_tilde, np.nan), x_true), {}, "data must be finite"),
    "infinite x_true": ((x_tilde, with_entry(x_true, np.inf)), {}, "data must be finite"),
    "validation": (DATA, {"validation": (x_tilde, x_true[1:])}, "validation must be two arrays"),
    "NaN to validate": (
        DATA,
        {"validation": (x_tilde, with_entry(x_true, np.nan))},
        "validation must be finite",
    ),
    "nothing selected": (DATA, {"trainable": lambda p: ()}, "trainable must select at least one"),
    "epochs": (DATA, {"epochs": -1}, "epochs must be a whole number of at least 0; got -1"),
    "half an epoch": (DATA, {"epochs": 0.5}, "epochs must be a whole number"),
    "batch_size": (DATA, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    "warm_start": (DATA, {"warm_start": 1e-2}, "warm_start must be a WarmStart, True or False"),
    "k > L": (DATA, {"strategy": hg.Truncation(11)}, "k must be at most iterations"),
}


@pytest.mark.parametrize(("data", "settings", "message"), BAD.values(), ids=BAD)
def test_bad_input(data, settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(small_problem(), data, **settings)


@pytest.mark.parametrize("weight", [0.0, np.array([0.1, 0.2, 0.0, 0.3, 0.4, 0.5])])
def test_zero_cannot_be_learned_in_the_log(weight) -> None:
    with pytest.raises(ValueError, match="in the log, so it must start above 0; got 0"):
        train(small_problem(weight), trainable=lambda p: p.F.weight)


class _Nested(hg.AbstractFunction):
    """`(weight / 2) ||v||^2`, its weight in a dictionary."""

    options: dict

    def __call__(self, v):
        return self.options["a"]["weight"] / 2 * jnp.sum(v**2, axis=-1)

    def prox(self, z, step):
        return z / (1 + step * self.options["a"]["weight"])


def test_a_function_of_the_users_may_hold_a_dictionary() -> None:
    nested = train(small_problem(G=_Nested({"a": {"weight": jnp.asarray(1.0)}})))
    assert_close(nested.problem.K, train(small_problem()).problem.K, RTOL)
