"""A training run: learn leaves of the problem by a first-order method, resumably."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.progress import Progress

from hypergrad._checks import check_count, describe
from hypergrad.bilevel import Loss, half_mean_squared_error
from hypergrad.bilevel.arguments import check_loss, check_problem, check_strategy, usual_solver
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.checkpoints import Checkpoints, fingerprint_of
from hypergrad.devices import OneDevice, placement
from hypergrad.lower_level import LowerLevel
from hypergrad.progress import progress_bar
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.training.pairs import Pair, batches, of_one_dtype
from hypergrad.training.pieces import evaluate
from hypergrad.training.result import History
from hypergrad.training.updates import Learner, RunState
from hypergrad.variables import K_is_a_gauge, Variables, rescale_K
from hypergrad.visits import WarmStart, make_visit, nothing_left

__all__ = ["train"]


def train(
    problem: LowerLevel,
    data: Pair,
    *,
    validation: Pair | None = None,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    warm_start: WarmStart | bool = False,
    trainable: Callable[[LowerLevel], Any] = lambda p: p.K,
    project: Callable[[LowerLevel], LowerLevel] | None = None,
    loss: Loss = half_mean_squared_error,
    measure: Callable[[LowerLevel], Mapping[str, float]] = lambda p: {},
    progress: Progress | bool = True,
    devices: int | Mesh | None = None,
) -> History:
    """Learn leaves of a problem from pairs of observed and true samples.

        min_p  mean_i loss(x_hat_i(p), x_true_i),     p = trainable(problem)

    **Arguments**: `data`, `validation`: `(x_tilde, x_true)`, each `(samples, n)`, arrays or what is
    indexed by rows like one (`np.load(..., mmap_mode="r")`, a data set of HDF5), which is read
    batch by batch and never held as a whole; `optimizer`, from optax (Adam with rate 2e-3 by
    default); `trainable`, which leaves (or nodes) of the problem are learned; leaves that their
    function declares positive are learned in the log; `project`, applied to the problem after each
    update (by default, where F is homogeneous and G an indicator, so that the scale of K is free, K
    is rescaled to norm 1); `checkpoint_dir`, written after every epoch: called again with the same
    arguments, it goes on from there; `warm_start`, True or a `WarmStart`: visits to a training
    sample go on from its last one (losses of epoch 0 and of the validation data are those of cold
    solves); `loss`, a mean over samples; `measure`, called with the problem before the first epoch
    and after each: its numbers are added to the record, its time is not; `progress`, False or a
    shared `rich` bar; `devices`, over which each batch is shared out in equal parts: how many of
    every process, or a `jax.sharding.Mesh`. Several processes (`jax.distributed`) all call this,
    with the same arguments; the first of them alone writes checkpoints and shows progress.

    **Returns**: a `History`.

    **Errors**: a `ValueError` for data that do not fit, for a checkpoint of another run, and for a
    batch that the devices cannot share out. An interruption (`KeyboardInterrupt`) leaves the last
    epoch's checkpoint.

    **Cost**: `epochs * samples / batch_size` hypergradients; memory for one batch, besides the data
    where they are arrays (they are not copied) and the states of all samples with a `warm_start`.
    On several devices, memory for its share on each, and a step sums up one vector of the size of
    the gradient over all of them.

    **Caveat**: samples that do not fill the last batch wait for the next epoch's shuffle. Over
    several devices the loss must be a mean over the samples, warm starts need them in one process,
    and validation and the losses of epoch 0 are computed on one device (by every process).

    >>> import hypergrad as hg, numpy as np
    >>> x_true = np.cumsum(np.random.default_rng(0).normal(size=(8, 5)), axis=1)
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> history = hg.train(problem, (x_true + 0.1, x_true), strategy=hg.Truncation(1), epochs=2,
    ...                    batch_size=4, progress=False)
    >>> len(history.records)
    3
    """
    check_count("epochs", epochs, least=0)
    check_count("batch_size", batch_size)
    safeguard = _safeguard(warm_start)
    check_problem(problem)
    solver = usual_solver(solver)
    check_strategy(strategy, solver)
    optimizer = optax.adam(2e-3) if optimizer is None else optimizer
    _check_optimizer(optimizer)
    problem, (x_tilde, x_true), held_out = of_one_dtype(problem, data, validation)
    batch_size = min(batch_size, len(x_tilde))
    place = placement(devices)
    place.check(batch_size, warm=safeguard is not None)
    some = slice(batch_size)
    example = x_tilde[some], x_true[some]
    check_loss(loss, jnp.asarray(example[1]))
    place.check_loss(loss, *map(jnp.asarray, example))
    variables = Variables(problem, trainable)
    if project is None and K_is_a_gauge(problem, variables):
        project = rescale_K
    visit = make_visit(solver, strategy, loss, safeguard)
    share = 0.0 if safeguard is None else safeguard.share
    learner = Learner(x_tilde, x_true, variables, visit, optimizer, project, share, place)
    memory = None
    if safeguard is not None:
        settings = {"solver": solver, "strategy": strategy}
        memory = nothing_left(len(x_tilde), problem, *example, **settings)
    start = RunState(problem, optimizer.init(variables.free(problem)), memory)
    lowered = learner.lower(start, some)

    @functools.cache
    def fingerprint() -> str:
        # The program holds the optimiser, the loss, what is learned and how it is projected. That
        # for one device: a run may go on with another number of them.
        alone = dataclasses.replace(learner, place=OneDevice())
        program = (lowered if devices is None else alone.lower(start, some)).as_text()
        settings = (strategy, epochs, batch_size, seed, safeguard, checkpoint_dir is None, program)
        return fingerprint_of(problem, x_tilde, x_true, held_out, solver, settings)

    place.check_alike(fingerprint)

    def loss_on(pair: Pair, problem: LowerLevel) -> float:
        return evaluate(
            problem, *pair, solver=solver, strategy=strategy, loss=loss, piece=batch_size
        )

    def validate(problem: LowerLevel) -> float | None:
        return None if held_out is None else loss_on(held_out, problem)

    state = start
    train_loss, validation_loss = loss_on((x_tilde, x_true), problem), validate(problem)
    records = [{**_first_record(train_loss, validation_loss), **measure(problem)}]
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(checkpoint_dir, fingerprint())
        state, records = place.from_first(lambda: checkpoints.load(start), (start, records))
        state = state._replace(memory=jax.tree.map(np.array, state.memory))  # to be written into
    state = learner.spread(state)

    with _bar(progress if place.writes else False) as bar:
        steps = len(x_tilde) // batch_size
        done = records[-1]["epoch"] * steps
        task = bar.add_task(strategy.label, total=epochs * steps, completed=done, loss="compiling")
        compiled = lowered.compile()
        for epoch in range(records[-1]["epoch"] + 1, epochs + 1):
            measured, started = [], time.perf_counter()
            for rows in batches(len(x_tilde), batch_size, seed, epoch):
                state, now = learner.step(compiled, state, rows)
                measured.append(now)
                bar.update(task, advance=1, loss=f"loss {now['train_loss']:.5f}")
            seconds = records[-1]["seconds"] + time.perf_counter() - started
            learned = place.here(state.problem)
            record = _record(epoch, seconds, measured, validate(learned))
            records.append({**record, **measure(learned)})
            if checkpoints is not None and place.writes:
                checkpoints.save(epoch, state, records)
    return History(place.here(state.problem), records)


def _safeguard(warm_start: WarmStart | bool) -> WarmStart | None:
    if not isinstance(warm_start, (WarmStart, bool)):
        raise ValueError(
            f"warm_start must be a WarmStart, True or False; got {warm_start!r}: try True"
        )
    return WarmStart() if warm_start is True else warm_start or None


def _check_optimizer(optimizer: Any) -> None:
    """Refuse what has not the two functions of optax (as not only its own class has)."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ValueError(
            f"optimizer must be one of optax; got {describe(optimizer)}: pass for example "
            "optax.adam(1e-3)"
        )


def _bar(progress: Progress | bool) -> contextlib.AbstractContextManager[Progress]:
    """A bar of one's own, a silent one, or a shared one (which its owner opens and closes)."""
    if isinstance(progress, Progress):
        return contextlib.nullcontext(progress)
    return progress_bar(disable=not progress)


def _first_record(train_loss: float, validation_loss: float | None) -> dict[str, Any]:
    """Of the untrained problem: no update, and so nothing of its solves."""
    return {
        "epoch": 0,
        "seconds": 0.0,
        "train_loss": train_loss,
        "validation_loss": validation_loss,
        "residual": None,
        "converged": None,
        "counted": None,
    }


def _record(
    epoch: int, seconds: float, measured: list[dict[str, float]], validation_loss: float | None
) -> dict[str, Any]:
    def column(name: str) -> np.ndarray:
        return np.array([entry[name] for entry in measured])

    return {
        "epoch": epoch,
        "seconds": seconds,
        "train_loss": float(np.mean(column("train_loss"))),
        "validation_loss": validation_loss,
        "residual": float(np.max(column("residual"))),
        "converged": float(np.mean(column("converged"))),
        "counted": float(np.mean(column("counted"))),
    }
