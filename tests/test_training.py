"""The upper level: each step against one by hand, and runs that interruptions cannot change."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, random_data, relative_error, solve_l1_quadratic

import hypergrad as hg
from hypergrad import learning as training
from hypergrad._foundation import rows as _rows
from hypergrad._foundation.progress import progress_bar
from hypergrad.chambolle_pock import AdjointPair
from hypergrad.learning import chunks, loop, pairs
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.learning.result import best_epoch

M, N, SAMPLES, RATE = 6, 5, 8, 0.1
SOLVER = hg.ChambollePock(10)
DATA = random_data(SAMPLES, N)
# The same computation in another order: rounding alone.
RTOL = 1e-12


def _problem(F: Any = 0.3, G: Any = 1.0) -> hg.LowerLevel:
    """A random K with L1 and a quadratic, unless other functions are given."""
    K = np.random.default_rng(1).standard_normal((M, N)) / 4
    F = F if isinstance(F, hg.AbstractFunction) else hg.L1(F)
    G = G if isinstance(G, hg.AbstractFunction) else hg.Quadratic(G)
    return hg.LowerLevel(K=K, F=F, G=G)


def _train(problem: hg.LowerLevel, data: Any = DATA, **settings) -> hg.History:
    """One plain step on all data, unless settings say otherwise."""
    defaults = {"solver": SOLVER, "strategy": hg.Truncation(1), "optimizer": optax.sgd(RATE)}
    defaults |= {"epochs": 1, "batch_size": 100, "progress": False}
    return hg.train(problem, data, **defaults | settings)


def _gradient(problem: hg.LowerLevel, rows: Any = slice(None), **settings) -> hg.Hypergradient:
    settings = {"solver": SOLVER, "strategy": hg.Truncation(1)} | settings
    x_tilde, x_true = DATA
    return hg.hypergradient(problem, x_tilde[rows], x_true[rows], **settings)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Every run compiles its own update, and nearly all of that would be XLA's optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# -------------------------------------------------------------------------------- one step


def _plain(p, g):
    return p - RATE * g


def _in_log(p, g):
    """`log p - RATE d/dlog p` with `d/dlog p = p d/dp`."""
    return np.exp(np.log(p) - RATE * p * g)


def _parts() -> hg.LowerLevel:
    return _problem(hg.SeparableSum((hg.L1(0.3), hg.Huber(0.4, 0.2)), (2, 4)))


Leaf = tuple[Callable[[hg.LowerLevel], Any], Callable]
STEPS: dict[str, tuple[hg.LowerLevel, list[Leaf]]] = {
    "K": (_problem(), [(lambda p: p.K, _plain)]),
    "weight": (_problem(), [(lambda p: p.F.weight, _in_log)]),
    "a weight a row": (_problem(np.linspace(0.1, 0.6, M)), [(lambda p: p.F.weight, _in_log)]),
    "parts of a sum": (
        _parts(),
        [(lambda p: p.F.parts[0].weight, _in_log), (lambda p: p.F.parts[1].smoothing, _in_log)],
    ),
    "all at once": (
        _problem(np.linspace(0.1, 0.6, M), hg.Quadratic(1.0, jnp.zeros(N))),
        [
            (lambda p: p.K, _plain),
            (lambda p: p.F.weight, _in_log),
            (lambda p: p.G.weight, _in_log),
            (lambda p: p.G.center, _plain),
        ],
    ),
}


@pytest.mark.parametrize(("problem", "leaves"), STEPS.values(), ids=STEPS)
def test_a_step_is_the_one_by_hand(problem, leaves) -> None:
    def trainable(p):
        return [select(p) for select, _ in leaves]

    grad = _gradient(problem).grad
    stepped = [by_hand(select(problem), select(grad)) for select, by_hand in leaves]
    learned = _train(problem, trainable=trainable).problem
    # What is not selected has to be met as well.
    assert_close(learned, eqx.tree_at(trainable, problem, stepped), RTOL)
    for old, new in zip(trainable(problem), trainable(learned), strict=True):
        assert relative_error(new, old) != 0.0


@pytest.mark.parametrize("strategy", [s() for s in hg.STRATEGIES.values()], ids=lambda s: s.label)
def test_a_step_with_every_strategy(strategy) -> None:
    problem = _problem()
    h = _gradient(problem, strategy=strategy)
    history = _train(problem, strategy=strategy)
    assert_close(history.problem.K, _plain(problem.K, h.grad.K), RTOL)
    assert history.records[1]["train_loss"] == pytest.approx(float(h.value), rel=RTOL)


def test_a_whole_node_can_be_selected() -> None:
    problem = _problem()
    learned = _train(problem, trainable=lambda p: p.G).problem
    grad = _gradient(problem).grad.G
    assert_close(learned.G.weight, _in_log(problem.G.weight, grad.weight), RTOL)
    assert_close(learned.G.center, _plain(problem.G.center, grad.center), RTOL)


def test_the_loss_can_be_chosen() -> None:
    def loss(x, x_true):
        return jnp.mean(jnp.abs(x - x_true))

    problem = _problem()
    history = _train(problem, loss=loss, validation=DATA)
    assert_close(history.problem.K, _plain(problem.K, _gradient(problem, loss=loss).grad.K), RTOL)
    x = hg.solve(problem, DATA[0], solver=SOLVER, strategy=hg.Truncation(1)).x
    expected = np.mean(np.abs(x - DATA[1]))
    for name in ("train_loss", "validation_loss"):
        assert history.records[0][name] == pytest.approx(expected, rel=RTOL)


# ---------------------------------------------------------------------------- many steps


def test_train_is_the_plain_loop_over_its_batches() -> None:
    problem = _problem()
    # With this tolerance some samples converge and some do not.
    settings = {"solver": hg.ChambollePock(20, tolerance=5e-3), "strategy": hg.Truncation(1)}
    history = _train(problem, epochs=2, batch_size=3, seed=5, **settings)
    shares = []
    for epoch in (1, 2):
        solves = []
        for rows in pairs.batches(SAMPLES, 3, 5, epoch):
            solves.append(_gradient(problem, rows, **settings))
            K = _plain(problem.K, solves[-1].grad.K)
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

    history = _train(
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
    problem = _problem(np.linspace(0.1, 0.6, M))
    grad = _gradient(problem).grad
    leaves = (problem.F.weight, problem.G.weight), (grad.F.weight, grad.G.weight)
    rate = 1.5 * min(float(jnp.max(p / g)) for p, g in zip(*leaves, strict=True) if jnp.any(g > 0))
    plain = [p - rate * g for p, g in zip(*leaves, strict=True)]
    assert min(float(jnp.min(p)) for p in plain) < 0

    def trainable(p):
        return p.F.weight, p.G.weight

    learned = _train(problem, trainable=trainable, optimizer=optax.sgd(rate), epochs=3).problem
    for leaf in trainable(learned):
        assert np.all(np.isfinite(leaf))
        assert np.all(np.asarray(leaf) > 0)


# ----------------------------------------------------------------------------- warm starts

# With this threshold, and no more iterations than these, some samples are near and some are not.
WARM = hg.WarmStart(residual=5e-2, most=6, share=0.7)
LIMIT = {"solver": hg.ChambollePock(4), "strategy": hg.LimitFormula(hg.Steps(2))}


def _nearer(problem: hg.LowerLevel, x_tilde, state: hg.State, warm_start: hg.WarmStart):
    """By `hg.solve` to a tolerance and the states it ends in, one sample after the other."""
    solver = hg.ChambollePock(warm_start.most, tolerance=warm_start.residual)
    states, near = [], []
    for i, x in enumerate(x_tilde):
        init = jax.tree.map(lambda a, i=i: a[i], state)
        # Only ForwardUnrolling takes none of the last iterations apart from the others.
        settings = {"solver": solver, "strategy": hg.ForwardUnrolling(), "init": init}
        solution = hg.solve(problem, x, **settings)
        states.append(solution.state)
        near.append(float(solution.stats.residual) <= warm_start.residual)
    return jax.tree.map(lambda *a: jnp.stack(a), *states), np.array(near)


def test_warm_starts_are_the_loop_by_hand() -> None:
    """A sample is brought near, from where it was left; then those that are near give a gradient,
    as if the loss were theirs alone; and if they are too few, it moves nothing, momentum included.
    """
    problem, velocity = _problem(), np.zeros((M, N))
    settings = {"optimizer": optax.sgd(0.5, momentum=0.9), "epochs": 5, "seed": 5, **LIMIT}
    history = _train(problem, warm_start=WARM, **settings)
    sizes = (N, N, M, N, M)  # r, r_bar, y, Delta_P, Delta_D
    left, shares = [np.zeros((SAMPLES, size)) for size in sizes], []
    for epoch in range(1, 6):
        (rows,) = pairs.batches(SAMPLES, SAMPLES, 5, epoch)
        r, r_bar, y, P, D = (jnp.asarray(a[rows]) for a in left)
        nearer, near = _nearer(problem, DATA[0][rows], hg.State(r, r_bar, y), WARM)
        K = np.zeros((M, N))
        for i, row in enumerate(rows):
            adjoint = (P[i], D[i]) if near[i] else (jnp.zeros(N), jnp.zeros(M))
            init = hg.State(nearer.r[i], nearer.r_bar[i], nearer.y[i], AdjointPair(*adjoint))
            loss = its_share_of_the_mean if near[i] else nothing
            h = _gradient(problem, row, loss=loss, init=init, **LIMIT)
            K += np.asarray(h.grad.K)
            for kept, new in zip(left, jax.tree.leaves(h.state), strict=True):
                kept[row] = new
        shares.append(np.mean(near))
        if shares[-1] >= WARM.share:
            velocity = 0.9 * velocity + K
            problem = eqx.tree_at(lambda p: p.K, problem, problem.K - 0.5 * velocity)
    assert_close(history.problem, problem, RTOL)
    enough = np.array(shares) >= WARM.share
    np.testing.assert_array_equal(history.column("counted")[1:], np.where(enough, shares, 0.0))
    # Too few at first and again after some updates; and where there are enough, not always all.
    assert enough.tolist() == [False, True, True, False, True]
    assert min(np.array(shares)[enough]) < 1


@pytest.mark.parametrize(
    "strategy",
    [hg.Truncation(2), hg.LimitFormula(hg.Steps(2)), hg.Piggyback()],
    ids=lambda s: s.label,
)
def test_a_first_visit_without_a_threshold_is_a_cold_one(strategy) -> None:
    """And so is the first update; the second one goes on from what the first has left."""
    anything = hg.WarmStart(residual=1e9)
    cold, warm = (
        [_train(_problem(), strategy=strategy, epochs=n, warm_start=w) for n in (1, 2)]
        for w in (False, anything)
    )
    # Two programs, which XLA may round differently.
    assert_close(warm[0].problem, cold[0].problem, 1e-15)
    h = _gradient(_problem(), strategy=strategy)
    h = _gradient(cold[0].problem, strategy=strategy, init=h.state)
    assert_close(warm[1].problem.K, _plain(cold[0].problem.K, h.grad.K), RTOL)
    assert relative_error(warm[1].problem.K, cold[1].problem.K) > 1e-6


def test_true_is_a_warm_start_as_it_comes() -> None:
    given, true = (_train(_problem(), epochs=2, warm_start=w) for w in (hg.WarmStart(), True))
    _assert_same_run(true, given)
    # Within 100 iterations everything here is near enough.
    assert true.column("counted")[1:].tolist() == [1.0, 1.0]


def test_where_nothing_counts_nothing_is_learned() -> None:
    problem = _problem()
    history = _train(problem, epochs=2, warm_start=hg.WarmStart(residual=1e-12, most=1), **LIMIT)
    assert history.column("counted")[1:].tolist() == [0.0, 0.0]
    assert_close(history.problem, problem, 0.0)
    # The lower level is solved further all the same.
    assert history.records[2]["residual"] < 0.5 * history.records[1]["residual"]


def test_warm_starts_in_float32_stay_float32() -> None:
    history = _train(_float32(_problem()), _float32(DATA), epochs=2, warm_start=True, **LIMIT)
    assert history.problem.K.dtype == jnp.float32
    exact = _train(_problem(), epochs=2, warm_start=True, **LIMIT)
    assert relative_error(_float64(history.problem.K), exact.problem.K) <= 1e-5


def its_share_of_the_mean(x, x_true):
    """What one sample is of the mean loss over all."""
    return 0.5 * jnp.sum((x - x_true) ** 2) / SAMPLES


def nothing(x, x_true):
    return 0.0 * jnp.sum(x - x_true)


# ----------------------------------------------------------------------------- projections


def test_a_scale_of_K_that_is_free_is_held_at_norm_1() -> None:
    problem = _problem(G=hg.Box(0.3))
    step = np.asarray(_plain(problem.K, _gradient(problem).grad.K))
    K = _train(problem).problem.K
    assert_close(K, jnp.asarray(step / np.linalg.norm(step, 2)), 1e-10)
    assert np.linalg.norm(step, 2) != pytest.approx(1.0, rel=0.1)


def test_a_free_scale_is_held_in_operators_and_sums_alike() -> None:
    """A matrix as an operator of lineax is a matrix; filters are scaled to the norm of their K."""
    problem = _problem(G=hg.Box(0.3))
    parts = hg.SeparableSum((hg.Box(0.3), hg.Box(0.3)), (1, N - 1))
    same = hg.LowerLevel(lx.MatrixLinearOperator(problem.K), problem.F, parts)
    assert_close(_train(same).problem.K.matrix, _train(problem).problem.K, RTOL)

    filters = np.random.default_rng(0).standard_normal((2, 1, 2))
    bank = hg.operators.FilterBank(filters, (1, N))
    learned = _train(hg.LowerLevel(bank, hg.L1(0.1), hg.Box(0.3))).problem.K
    assert hg.operators.operator_norm(learned) == pytest.approx(1.0, rel=1e-12)
    assert np.linalg.norm(learned.as_matrix(), 2) == pytest.approx(1.0, rel=0.02)


def test_a_scale_of_K_that_matters_is_left_alone() -> None:
    problem = _problem()
    assert_close(_train(problem).problem.K, _plain(problem.K, _gradient(problem).grad.K), RTOL)
    assert np.linalg.norm(problem.K, 2) != pytest.approx(1.0, rel=0.1)


def test_ones_own_projection_takes_the_place_of_the_default() -> None:
    def clip(p):
        return eqx.tree_at(lambda q: q.K, p, jnp.clip(p.K, -0.2, 0.2))

    problem = _problem(G=hg.Box(0.3))
    step = _plain(problem.K, _gradient(problem).grad.K)
    assert_close(_train(problem, project=clip).problem.K, jnp.clip(step, -0.2, 0.2), RTOL)


# ----------------------------------------------------------------------- losses and records


def _evaluate(problem: hg.LowerLevel, data: Any = DATA) -> float:
    return hg.evaluate(problem, *data, solver=SOLVER, strategy=hg.Truncation(1))


def _solution(problem: hg.LowerLevel) -> hg.Solution:
    return hg.solve(problem, DATA[0], solver=SOLVER, strategy=hg.Truncation(1))


def test_evaluate_is_the_mean_loss() -> None:
    x = np.asarray(_solution(_problem()).x)
    expected = 0.5 * np.mean(np.sum((x - DATA[1]) ** 2, axis=-1))
    assert _evaluate(_problem()) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("piece", [1, 3, 8, 20])
def test_pieces_have_one_size_and_give_what_all_at_once_gives(piece, monkeypatch) -> None:
    sizes = []

    def solve(problem, x_tilde, **kwargs):
        sizes.append(len(x_tilde))
        return hg.solve(problem, x_tilde, **kwargs)

    monkeypatch.setattr(chunks, "solve", solve)
    settings = {"solver": SOLVER, "strategy": hg.Truncation(1), "piece": piece}
    x, stats = training.solve_in_pieces(_problem(), DATA[0], **settings)
    assert sizes == [piece] * -(-SAMPLES // piece)
    at_once = jax.tree.map(np.asarray, _solution(_problem()))
    assert_close((x, stats), (at_once.x, at_once.stats), 1e-10)


def test_nobody_has_to_think_of_the_size_of_a_piece(monkeypatch) -> None:
    expected = _evaluate(_problem())
    monkeypatch.setattr(chunks, "ROWS_A_PIECE", 3)
    assert _evaluate(_problem()) == pytest.approx(expected, rel=RTOL)


def test_records() -> None:
    other = random_data(3, N, seed=7)
    history = _train(_problem(), validation=other, epochs=3, batch_size=4)
    for record in history.records:
        assert set(record) == {
            "epoch", "seconds", "train_loss", "validation_loss", "residual", "converged",
            "counted",
        }  # fmt: skip
    assert [record["epoch"] for record in history.records] == [0, 1, 2, 3]
    first, *_, last = history.records
    losses = [first["train_loss"], first["validation_loss"], last["validation_loss"]]
    expected = [
        _evaluate(_problem()),
        *(_evaluate(p, other) for p in (_problem(), history.problem)),
    ]
    assert losses == pytest.approx(expected, rel=RTOL)
    assert (first["residual"], first["converged"], first["counted"]) == (None, None, None)
    assert last["counted"] == 1.0

    seconds = history.column("seconds")
    assert seconds[0] == 0
    assert np.all(np.diff(seconds) > 0)
    assert np.isnan(history.column("residual")[0])
    assert repr(history).startswith("History(3 epochs in ")
    assert f"train_loss={last['train_loss']:.6g}" in repr(history)


def test_without_validation_and_epochs_only_the_start_is_recorded() -> None:
    problem = _problem()
    history = _train(problem, epochs=0)
    assert_close(history.problem, problem, 0.0)
    assert [record["epoch"] for record in history.records] == [0]
    assert history.records[0]["validation_loss"] is None


def test_jax_and_numpy_give_the_same_bits() -> None:
    in_numpy = _train(_problem(), validation=DATA)
    in_jax = _train(
        _problem(), tuple(map(jnp.asarray, DATA)), validation=tuple(map(jnp.asarray, DATA))
    )
    _assert_same_run(in_jax, in_numpy)


def test_a_shared_bar_is_left_to_its_owner() -> None:
    with progress_bar() as bar:
        bar.disable = True
        _train(_problem(), epochs=2, batch_size=4, progress=bar)
        assert bar.live.is_started
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total) == ("truncation:k=1", 4, 4)


def test_measured_numbers_are_in_the_records() -> None:
    """Of the untrained problem, and of each after its epoch."""
    history = _train(_problem(), epochs=2, measure=lambda p: {"size": float(jnp.sum(p.K**2))})
    sizes = history.column("size")
    assert sizes[0] == pytest.approx(np.sum(np.asarray(_problem().K) ** 2), rel=RTOL)
    assert sizes[2] == pytest.approx(np.sum(np.asarray(history.problem.K) ** 2), rel=RTOL)
    assert len(np.unique(sizes)) == 3


# ------------------------------------------------------------------ data that are not in memory


class _OnDisk:
    """Data of HDF5, say: rows of integers that can be read forwards only; the most at once."""

    def __init__(self, array: np.ndarray):
        self.shape, self.dtype, self.most, self._array = array.shape, array.dtype, 0, array

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self._array))[rows]
        assert np.all(np.diff(numbers) > 0)
        self.most = max(self.most, len(numbers))
        return self._array[rows].copy()


def test_data_are_read_by_rows(tmp_path, monkeypatch) -> None:
    """In pieces for their checks, their hash and their losses, in batches for the steps."""
    x_tilde, x_true = (np.round(100 * array).astype(np.int32) for array in DATA)
    settings = {"epochs": 2, "batch_size": 3, "checkpoint_dir": tmp_path / "from arrays"}
    expected = _train(_problem(), (x_tilde, x_true), validation=(x_tilde, x_true), **settings)
    monkeypatch.setattr(_rows, "ROWS_A_PIECE", 4)
    on_disk = _OnDisk(x_tilde), _OnDisk(x_true)
    settings["checkpoint_dir"] = tmp_path / "from disk"
    history = _train(_problem(), on_disk, validation=on_disk, **settings)
    _assert_same_run(history, expected)
    assert [data.most for data in on_disk] == [4, 4]
    # The hash sees the same bytes: the run from arrays is this run.
    settings["checkpoint_dir"] = tmp_path / "from arrays"
    _assert_same_run(_train(_problem(), on_disk, validation=on_disk, **settings), expected)


MEMORY = """
import resource
import jax, numpy as np, optax
jax.config.update("jax_enable_x64", True)
import hypergrad as hg

class Made:
    "(count, 64) numbers that are nowhere: what is read of them is made."
    dtype = np.dtype(float)
    def __init__(self, count): self.shape = (count, 64)
    def __getitem__(self, rows):
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return np.sin(numbers[:, None] + 7.0 * np.arange(64))
    def __len__(self): return self.shape[0]

problem = hg.LowerLevel(K=hg.operators.differences(64), F=hg.L1(0.1), G=hg.Quadratic(1.0))
def megabytes(count, folder):
    hg.train(problem, (Made(count), Made(count)), validation=(Made(count), Made(count)),
             solver=hg.ChambollePock(1), strategy=hg.Truncation(1), optimizer=optax.sgd(1e-3),
             epochs=1, batch_size=1000, checkpoint_dir=folder, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
few, many = megabytes(5_000, "few"), megabytes(50_000, "many")
print(many - few)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has other units, or none")
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path) -> None:
    """JAX's part included: ten times the samples, none of which are anywhere but in a batch."""
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    # One more copy of x_tilde alone would be 23 MB.
    assert float(ran.stdout) < 12


# -------------------------------------------------------------------------------- precision


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def _float32_run(validation: Any) -> hg.History:
    problem = _float32(_problem())
    return _train(
        problem, _float32(DATA), validation=validation, optimizer=optax.adam(0.1), epochs=2,
        trainable=lambda p: (p.K, p.F.weight),
    )  # fmt: skip


def test_float32_stays_float32() -> None:
    history = _float32_run(_float32(DATA))
    assert {leaf.dtype for leaf in jax.tree.leaves(history.problem)} == {jnp.dtype("float32")}
    last = history.records[-1]
    assert last["validation_loss"] == pytest.approx(_evaluate(_float64(history.problem)), rel=1e-4)


def _float64(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


def test_validation_is_cast_like_the_data() -> None:
    runs = [_float32_run(data).records for data in (DATA, _float32(DATA))]
    mixed, cast = ([{**record, "seconds": None} for record in records] for records in runs)
    assert mixed == cast


# ------------------------------------------------------------------------------ bad inputs


def _with(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[1, 2] = value
    return array


x_tilde, x_true = DATA
BAD = {
    "other n": ((x_tilde, x_true[:, 1:]), {}, r"data must be .* \(samples, 5\)"),
    "not the n of K": ((x_tilde[:, 1:], x_true[:, 1:]), {}, r"\(samples, 5\); got \(8, 4\)"),
    "other count": ((x_tilde, x_true[1:]), {}, r"same shape .* got \(8, 5\) and \(7, 5\)"),
    "one sample flat": ((x_tilde[0], x_true[0]), {}, r"\(samples, 5\); got \(5,\)"),
    "a batch of batches": ((x_tilde[None], x_true[None]), {}, r"\(samples, 5\); got \(1, 8, 5\)"),
    "three arrays": ((x_tilde, x_true, x_true), {}, r"\(x_tilde, x_true\); got a tuple of 3"),
    "nothing": ((x_tilde[:0], x_true[:0]), {}, "data must hold at least one sample"),
    "NaN in x_tilde": ((_with(x_tilde, np.nan), x_true), {}, "data must be finite"),
    "infinite x_true": ((x_tilde, _with(x_true, np.inf)), {}, "data must be finite"),
    "validation": (DATA, {"validation": (x_tilde, x_true[1:])}, "validation must be two arrays"),
    "NaN to validate": (
        DATA,
        {"validation": (x_tilde, _with(x_true, np.nan))},
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
        _train(_problem(), data, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": 0.0}, "residual must be one finite number above 0; got 0.0"),
        ({"residual": np.nan}, "residual must be one finite number above 0; got nan"),
        ({"most": 0}, "most must be a whole number of at least 1; got 0"),
        ({"share": 1.5}, r"share must lie in \[0, 1\]; got 1\.5"),
        ({"share": np.nan}, r"share must lie in \[0, 1\]; got nan"),
    ],
)
def test_a_warm_start_is_checked(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hg.WarmStart(**options)


@pytest.mark.parametrize("weight", [0.0, np.array([0.1, 0.2, 0.0, 0.3, 0.4, 0.5])])
def test_zero_cannot_be_learned_in_the_log(weight) -> None:
    with pytest.raises(ValueError, match="in the log, so it must start above 0; got 0"):
        _train(_problem(weight), trainable=lambda p: p.F.weight)


class _Nested(hg.AbstractFunction):
    """`(weight / 2) ||v||^2`, its weight in a dictionary."""

    options: dict

    def __call__(self, v):
        return self.options["a"]["weight"] / 2 * jnp.sum(v**2, axis=-1)

    def prox(self, z, step):
        return z / (1 + step * self.options["a"]["weight"])


def test_a_function_of_the_users_may_hold_a_dictionary() -> None:
    nested = _train(_problem(G=_Nested({"a": {"weight": jnp.asarray(1.0)}})))
    assert_close(nested.problem.K, _train(_problem()).problem.K, RTOL)


# ---------------------------------------------------------------------------- interruptions

EPOCHS = 4


def _run(folder: Path | None = None, **settings) -> hg.History:
    """A run whose optimiser has a state, and whose batches leave samples out."""
    defaults = {
        "validation": random_data(3, N, seed=7),
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 8)),
        "epochs": EPOCHS,
        "batch_size": 3,
        "seed": 3,
        "trainable": lambda p: (p.K, p.F.weight),
        "checkpoint_dir": folder,
    }
    settings = defaults | settings
    return _train(settings.pop("problem", _problem()), settings.pop("data", DATA), **settings)


def _untimed(history: hg.History) -> list[dict]:
    return [{**record, "seconds": None} for record in history.records]


def _assert_same_run(history: hg.History, expected: hg.History) -> None:
    """Bit for bit, the timing excepted."""
    assert _untimed(history) == _untimed(expected)
    assert_close(history.problem, expected.problem, 0.0)


@pytest.fixture(scope="module")
def undisturbed() -> hg.History:
    return _run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run; to be copied before it is touched."""
    folder = tmp_path_factory.mktemp("finished")
    _run(folder)
    return folder


def _checkpoint(epoch: int) -> str:
    return f"checkpoint-{epoch:06d}.npz"


def _after_saving_epoch_2(monkeypatch) -> None:
    save = Checkpoints.save

    def save_and_stop(self, epoch, *args):
        save(self, epoch, *args)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def _while_saving_epoch_3(monkeypatch) -> None:
    replace = os.replace

    def replace_or_stop(source, target):
        if str(target).endswith(_checkpoint(3)):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_stop)


def _within_epoch_3(monkeypatch) -> None:
    batches = pairs.batches

    def one_batch_and_stop(count, batch_size, seed, epoch):
        for rows in batches(count, batch_size, seed, epoch):
            yield rows
            if epoch == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(loop, "batches", one_batch_and_stop)


INTERRUPTIONS = [_after_saving_epoch_2, _while_saving_epoch_3, _within_epoch_3]


@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda f: f.__name__[1:])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    interrupt, undisturbed, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [_checkpoint(1), _checkpoint(2)]
    history = _run(tmp_path)
    _assert_same_run(history, undisturbed)
    assert np.all(np.diff(history.column("seconds")) > 0)
    assert sorted(os.listdir(tmp_path)) == [_checkpoint(3), _checkpoint(4)]


def test_an_interrupted_run_with_functions_in_it_goes_on_alike(tmp_path, monkeypatch) -> None:
    """Made anew, as in another process: where a function lies in memory says nothing."""

    def run(folder: Path | None = None) -> hg.History:
        structure = jax.ShapeDtypeStruct((N,), jnp.float64)
        K = lx.FunctionLinearOperator(lambda v: jnp.diff(v), structure)
        solve = hg.JaxoptImplicit(lambda matvec, b: hg.JaxoptGMRES()(matvec, b))
        problem = hg.LowerLevel(K, hg.L1(0.1), hg.Quadratic(1.0))
        return _run(folder, problem=problem, strategy=solve, trainable=lambda p: p.F.weight)

    with monkeypatch.context() as patch:
        _within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    history, expected = run(tmp_path), run()
    assert _untimed(history) == _untimed(expected)
    assert_close(history.problem.F, expected.problem.F, 0.0)


def test_an_interrupted_run_with_warm_starts_goes_on_alike(tmp_path, monkeypatch) -> None:
    """Each sample's states come back from the checkpoint, without which it would be another run."""
    settings = {"warm_start": hg.WarmStart(residual=1e-2, most=5, share=0.0), **LIMIT}
    with monkeypatch.context() as patch:
        _within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, **settings)
    forgetful = Path(shutil.copytree(tmp_path, tmp_path.parent / "forgetful"))
    undisturbed = _run(**settings)
    _assert_same_run(_run(tmp_path, **settings), undisturbed)

    with np.load(forgetful / _checkpoint(2)) as stored:
        arrays = dict(stored)
    states = [name for name, array in arrays.items() if array.shape in ((SAMPLES, N), (SAMPLES, M))]
    assert len(states) == 5
    np.savez(forgetful / _checkpoint(2), **arrays | {n: 0 * arrays[n] for n in states})
    other = _run(forgetful, **settings)
    assert relative_error(other.problem.K, undisturbed.problem.K) > 1e-6


def test_a_finished_run_is_not_run_again(finished, undisturbed, monkeypatch) -> None:
    def no_more(*args):
        pytest.fail("an epoch was begun")

    monkeypatch.setattr(loop, "batches", no_more)
    again = _run(finished)
    _assert_same_run(again, undisturbed)
    assert again.records == _run(finished).records  # the seconds too
    assert sorted(os.listdir(finished)) == [_checkpoint(3), _checkpoint(4)]


# ---------------------------------------------------------------------- damaged checkpoints


class _Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garble(path: Path) -> None:
    path.write_bytes(b"\x93garbage" * 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit_of_the_numbers(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY") + 128 + 3] ^= 1  # behind the header of the first array
    path.write_bytes(bytes(content))


def _plant_a_pickle(path: Path) -> None:
    bomb = np.array([_Bomb(path.parent / "exploded")], dtype=object)
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {"leaf0000": bomb})


def _lose_the_records(path: Path) -> None:
    np.savez(path, leaf0000=np.zeros(3))


def _mark_as_encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] ^= 1  # the flags of the first entry
    path.write_bytes(bytes(content))


def _another_compression(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] ^= 1
    path.write_bytes(bytes(content))


def _one_bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _lose_the_fingerprint(path: Path) -> None:
    np.savez(path, about=np.array("{}"))


DAMAGES = [
    _truncate,
    _garble,
    _empty,
    _flip_a_bit_of_the_numbers,
    _plant_a_pickle,
    _lose_the_records,
    _mark_as_encrypted,
    _another_compression,
    _one_bare_array,
    _lose_the_fingerprint,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__[1:])
def test_a_damaged_checkpoint_is_passed_over(
    damage, finished, undisturbed, tmp_path, capsys
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    damage(folder / _checkpoint(4))
    _assert_same_run(_run(folder), undisturbed)
    assert sorted(os.listdir(folder)) == [_checkpoint(3), _checkpoint(4)]
    out = capsys.readouterr().out
    assert f"{folder / _checkpoint(4)} is damaged" in out
    assert "the one before it is used" in out


def test_with_all_of_them_damaged_it_starts_anew(finished, undisturbed, tmp_path, capsys) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for epoch in (3, 4):
        _truncate(folder / _checkpoint(epoch))
    _assert_same_run(_run(folder), undisturbed)
    assert capsys.readouterr().out.count("is damaged") == 2


def test_a_damaged_checkpoint_is_closed(finished, tmp_path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    _truncate(folder / _checkpoint(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _run(folder)
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]


# ------------------------------------------------------------------------------- other runs

_ERGODIC = {"strategy": hg.ErgodicUnrolling(np.full(10, 0.1)), "epochs": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 4},
    "data": {"data": (_with(x_tilde, 0.0), x_true)},
    "truth": {"data": (x_tilde, _with(x_true, 0.0))},
    "strategy": {"strategy": hg.Truncation(2)},
    "solver": {"solver": hg.ChambollePock(10, step_ratio=2.0)},
    "problem": {"problem": _problem(0.31)},
    "epochs": {"epochs": EPOCHS + 1},
    "batch_size": {"batch_size": 4},
}
# Settings that are functions, or stand in them.
UNSEEN: dict[str, dict[str, Any]] = {
    "learning rate": {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1 + 1e-9, 8))},
    "schedule, in its last steps": {
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 8, alpha=1e-6))
    },
    "optimizer": {"optimizer": optax.sgd(0.1)},
    "loss": {"loss": lambda x, x_true: jnp.mean(jnp.abs(x - x_true))},
    "projection": {"project": lambda p: eqx.tree_at(lambda q: q.K, p, jnp.round(p.K, 3))},
    "validation": {"validation": DATA},
    "warm starts": {"warm_start": True},
    "what is learned": {"trainable": lambda p: (p.K, p.G.weight)},
    "how much is learned": {"trainable": lambda p: p.K},
}


def _refused(folder: Path, settings: dict[str, Any]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"checkpoint .* must come from the same run"):
        _run(folder, **settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(settings, finished) -> None:
    _refused(finished, settings)


@pytest.mark.parametrize("settings", UNSEEN.values(), ids=UNSEEN)
def test_a_checkpoint_of_other_settings_is_refused(settings, finished, tmp_path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / _checkpoint(4)).unlink()
    _refused(folder, settings)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path) -> None:
    rising = np.arange(1.0, 11.0) / 55
    _run(tmp_path, **_ERGODIC)
    _refused(tmp_path, _ERGODIC | {"strategy": hg.ErgodicUnrolling(rising)})


def test_the_error_names_what_differs(finished) -> None:
    with pytest.raises(ValueError, match=r"another number of epochs \(4, not 5\), another seed"):
        _run(finished, epochs=EPOCHS + 1, seed=4)
    with pytest.raises(ValueError, match=r"got one of another optimizer: name another folder"):
        _run(finished, optimizer=optax.adam(1.0))
    with pytest.raises(ValueError, match=r"what is learned \(\.K, \.F\.weight, not \.K\)"):
        _run(finished, trainable=lambda p: p.K)


def test_an_optimizer_that_was_used_is_the_same_one(tmp_path) -> None:
    """The schedule keeps its numbers as floats once it has been called."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 8))
    first = _run(tmp_path, optimizer=optimizer)
    assert _run(tmp_path, optimizer=optimizer).records == first.records
    fresh = optax.adam(optax.cosine_decay_schedule(0.1, 8))
    assert _run(tmp_path, optimizer=fresh).records == first.records


def test_a_rate_in_the_state_of_the_optimizer_counts(tmp_path) -> None:
    adam = optax.inject_hyperparams(optax.adam)
    _run(tmp_path, optimizer=adam(0.1))
    _refused(tmp_path, {"optimizer": adam(0.2)})
    _assert_same_run(_run(tmp_path, optimizer=adam(0.1)), _run(optimizer=adam(0.1)))


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path) -> None:
    about = np.array('{"fingerprint": "0123", "records": []}')
    np.savez(tmp_path / _checkpoint(4), leaf0000=np.zeros(3), about=about)
    _refused(tmp_path, {})


def test_a_checkpoint_is_of_no_version_of_jax(finished, monkeypatch) -> None:
    """No program is looked at: its text is another one in every version."""
    monkeypatch.delattr(type(eqx.filter_jit(jnp.sin).lower(x_tilde)), "as_text")
    assert _run(finished).records[-1]["epoch"] == EPOCHS


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "raw keys": lambda: optax.chain(optax.add_noise(1.0, 0.5, 0), optax.adam(0.01)),
    "keys": lambda: optax.chain(optax.add_noise(1.0, 0.5, jax.random.key(3)), optax.sgd(0.01)),
    "bfloat16": lambda: optax.adam(0.01, mu_dtype=jnp.bfloat16),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 8)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_state_of_an_optimizer_is_kept(make, tmp_path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        _within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, optimizer=make())
    history = _run(tmp_path, optimizer=make())
    _assert_same_run(history, _run(optimizer=make()))
    assert history.records == _run(tmp_path, optimizer=make()).records
    assert "damaged" not in capsys.readouterr().out


def test_a_checkpoint_with_other_arrays_is_no_damage(finished, tmp_path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with np.load(folder / _checkpoint(4)) as stored:
        arrays = dict(stored)
    np.savez(folder / _checkpoint(4), **arrays | {"leaf0000": np.zeros(7, np.float32)})
    with pytest.raises(ValueError, match="same run; got one of other arrays"):
        _run(folder)


def test_a_disk_that_refuses_is_no_damage(finished, monkeypatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="input/output error"):
        _run(finished)


def test_starting_anew_is_told(finished, tmp_path, capsys) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for epoch in (3, 4):
        _truncate(folder / _checkpoint(epoch))
    _run(folder)
    assert f"no other in {folder} can be read, so training starts" in capsys.readouterr().out


# ------------------------------------------------------------------------------ the best epoch


def test_the_best_problem_is_that_of_the_smallest_validation_loss(tmp_path, monkeypatch) -> None:
    """Against losses computed anew; a rate that is too large makes the last epoch a bad one."""
    seen: list[hg.LowerLevel] = []

    def measure(problem: hg.LowerLevel) -> dict[str, float]:
        seen.append(problem)
        return {}

    settings: dict[str, Any] = {"optimizer": optax.sgd(3.0), "measure": measure}
    history = _run(**settings)
    held_out = random_data(3, N, seed=7)
    losses = [hg.evaluate(p, *held_out, solver=SOLVER, strategy=hg.Truncation(1)) for p in seen]
    best = int(np.argmin(losses))
    assert history.best.epoch == best < EPOCHS
    assert_close(history.best.problem, seen[best], 0.0)
    assert_close(history.problem, seen[-1], 0.0)
    assert f"best in epoch {best}" in repr(history)

    with monkeypatch.context() as patch:
        _within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, **settings)
    for _ in range(2):  # resumed, and finished
        resumed = _run(tmp_path, **settings)
        assert resumed.best.epoch == best
        assert_close(resumed.best.problem, history.best.problem, 0.0)


def test_without_validation_the_last_problem_is_the_best() -> None:
    history = _run(validation=None)
    assert history.best.epoch == EPOCHS
    assert_close(history.best.problem, history.problem, 0.0)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([1.0, 2.0], 0), ([2.0, 1.0, 1.0], 1), ([np.nan, 3.0], 1), ([2.0, np.nan], 0), ([None], 0),
     ([None, None], 1), ([np.nan, np.nan], 1), ([np.inf, 1.0], 1)],
)  # fmt: skip
def test_the_best_epoch(losses, best) -> None:
    records = [{"epoch": i, "validation_loss": loss} for i, loss in enumerate(losses)]
    assert best_epoch(records) == best


# ------------------------------------------------------------------------ columns and measures


def test_a_column_that_is_not_there(undisturbed) -> None:
    with pytest.raises(ValueError, match=r"one of epoch, seconds, train_loss.*got 'xx'"):
        undisturbed.column("xx")
    without = _run(validation=None, epochs=1, measure=lambda p: {"word": "text"})
    with pytest.raises(ValueError, match="give train validation data"):
        without.column("validation_loss")
    with pytest.raises(ValueError, match=r"column 'word' must hold numbers; got 'text'"):
        without.column("word")
    residual = undisturbed.column("residual")
    assert np.isnan(residual[0])
    assert np.all(residual[1:] > 0)


NUMBERS = {
    "jax": (lambda p: jnp.linalg.norm(p.K), float),
    "jax, whole": (lambda p: jnp.sum(p.K > 0), int),
    "jax, bfloat16": (lambda p: jnp.bfloat16(0.5), float),
    "numpy": (lambda p: np.float32(0.1), float),
    "numpy, 0-d": (lambda p: np.array(0.1), float),
    "numpy, truth": (lambda p: np.bool_(True), bool),
    "plain": (lambda p: 1, int),
}


@pytest.mark.parametrize(("number", "kind"), NUMBERS.values(), ids=NUMBERS)
def test_every_kind_of_number_can_be_measured_and_kept(number, kind, tmp_path) -> None:
    settings = {"measure": lambda p: {"x": number(p)}, "epochs": 1}
    first, second = _run(tmp_path, **settings), _run(tmp_path, **settings)
    assert first.records == second.records
    assert [type(record["x"]) for record in second.records] == [kind, kind]
    assert second.records[0]["x"] == number(_problem())


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (3.0, "must return numbers by name; got 3.0"),
        ({"x": jnp.ones(2)}, r"one number for each name; got .* of shape \(2,\) for 'x'"),
        ({"x": [1.0]}, "one number for each name; got list for 'x'"),
        ({"x": jnp.asarray(1j)}, "one number for each name"),
        ({"seconds": 1.0}, "must return new names; got seconds"),
    ],
)
def test_what_cannot_be_measured_is_refused(measured, message) -> None:
    with pytest.raises(ValueError, match=message):
        _run(measure=lambda p: measured)
