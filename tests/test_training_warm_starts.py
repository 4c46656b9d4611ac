"""Training with warm starts: against the loop by hand, and against cold starts."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, relative_error
from training_runs import (
    DATA,
    EPOCHS,
    LIMIT,
    RTOL,
    SAMPLES,
    M,
    N,
    assert_same_run,
    float32,
    float64,
    gradient,
    run,
    sgd_step,
    small_problem,
    train,
)

import hypergrad as hg
from hypergrad.chambolle_pock import AdjointPair
from hypergrad.learning import pairs, updates

# With this threshold, and no more iterations than these, some samples are near and some are not.
WARM = hg.WarmStart(residual=5e-2, most=6, share=0.7)


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


def its_share_of_the_mean(x, x_true):
    """What one sample is of the mean loss over all."""
    return 0.5 * jnp.sum((x - x_true) ** 2) / SAMPLES


def nothing(x, x_true):
    return 0.0 * jnp.sum(x - x_true)


def test_warm_starts_are_the_loop_by_hand() -> None:
    """A sample is brought near, from where it was left; then those that are near give a gradient,
    as if the loss were theirs alone; and if they are too few, it moves nothing, momentum included.
    """
    problem, velocity = small_problem(), np.zeros((M, N))
    settings = {"optimizer": optax.sgd(0.5, momentum=0.9), "epochs": 5, "seed": 5, **LIMIT}
    history = train(problem, warm_start=WARM, **settings)
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
            h = gradient(problem, row, loss=loss, init=init, **LIMIT)
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
def test_a_first_epoch_without_a_threshold_is_a_cold_one(strategy) -> None:
    """And so is the first update; the second continues from the states of the first."""

    def problems(warm_start: Any) -> list[hg.LowerLevel]:
        seen = []
        settings = {"strategy": strategy, "epochs": 2, "warm_start": warm_start}
        train(small_problem(), measure=lambda p: seen.append(p) or {}, **settings)
        return seen

    (_, cold, cold_twice), (_, warm, warm_twice) = map(problems, (False, hg.WarmStart(1e9)))
    # Two programs, which XLA may round differently.
    assert_close(warm, cold, 1e-15)
    h = gradient(small_problem(), strategy=strategy)
    h = gradient(cold, strategy=strategy, init=h.state)
    assert_close(warm_twice.K, sgd_step(cold.K, h.grad.K), RTOL)
    assert relative_error(warm_twice.K, cold_twice.K) > 1e-6


@pytest.mark.parametrize("warm_start", [False, WARM], ids=["cold", "warm"])
def test_several_updates_in_a_call_are_these_updates(monkeypatch, warm_start) -> None:
    """Calls that are short grow, to the last batches of an epoch that do not fill one."""

    def histories(short: float) -> tuple[hg.History, list[int]]:
        made, updates_of = [], updates.Learner.updates

        def counted(learner, compiled, state, pair, group):
            made.append(len(group))
            return updates_of(learner, compiled, state, pair, group)

        with monkeypatch.context() as patch:
            patch.setattr(updates, "_SHORT_CALL", short)
            patch.setattr(updates.Learner, "updates", counted)
            return run(warm_start=warm_start, batch_size=1, **LIMIT), made

    (together, grown), (alone, single) = histories(np.inf), histories(0.0)
    assert_same_run(together, alone)
    assert set(single) == {1}
    assert len(single) == EPOCHS * SAMPLES
    assert grown[:2] == [1, 2]
    assert sum(grown) == EPOCHS * SAMPLES


def test_true_is_a_warm_start_as_it_comes() -> None:
    given, true = (train(small_problem(), epochs=2, warm_start=w) for w in (hg.WarmStart(), True))
    assert_same_run(true, given)
    # Within 100 iterations everything here is near enough.
    assert true.column("counted")[1:].tolist() == [1.0, 1.0]


def test_where_nothing_counts_nothing_is_learned() -> None:
    problem = small_problem()
    history = train(problem, epochs=2, warm_start=hg.WarmStart(residual=1e-12, most=1), **LIMIT)
    assert history.column("counted")[1:].tolist() == [0.0, 0.0]
    assert_close(history.problem, problem, 0.0)
    # The lower level is solved further all the same.
    assert history.records[2]["residual"] < 0.5 * history.records[1]["residual"]


def test_warm_starts_in_float32_stay_float32() -> None:
    history = train(float32(small_problem()), float32(DATA), epochs=2, warm_start=True, **LIMIT)
    assert history.problem.K.dtype == jnp.float32
    exact = train(small_problem(), epochs=2, warm_start=True, **LIMIT)
    assert relative_error(float64(history.problem.K), exact.problem.K) <= 1e-5


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
