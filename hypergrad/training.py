"""The upper level: learn leaves of the problem by a first-order method, resumably."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from rich.progress import Progress

from hypergrad._checks import check_count, check_finite, describe
from hypergrad._rows import ROWS_A_PIECE, Rows, rows_of
from hypergrad.bilevel import Loss, half_mean_squared_error, solve
from hypergrad.bilevel.arguments import (
    check_loss,
    check_problem,
    check_samples,
    check_strategy,
    check_truth_shape,
    usual_solver,
)
from hypergrad.chambolle_pock import ChambollePock, SolverStats, State
from hypergrad.checkpoints import Checkpoints, fingerprint_of
from hypergrad.devices import AbstractPlacement, OneDevice, placement
from hypergrad.lower_level import LowerLevel, cast_floats
from hypergrad.progress import progress_bar
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.variables import K_is_a_gauge, Variables, rescale_K
from hypergrad.visits import Visit, WarmStart, make_visit, nothing_left, put, take

__all__ = ["History", "WarmStart", "evaluate", "make_update", "solve_in_pieces", "train"]

Pair = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class History:
    """What a training run gave: the learned `problem` and its `records`, one an epoch.

    A record holds `epoch` (0 is the untrained problem), `seconds` (of the updates alone, summed up;
    compilation and validation are not in it), `train_loss` (the mean over the epoch's batches, each
    before its update; for epoch 0 over all data), `validation_loss` (None without validation data),
    `residual` (the largest relative residual of a forward solve), `converged` (the share of samples
    whose forward solve converged) and `counted` (the share whose gradient counted: all of them,
    unless a `WarmStart` held some back).
    """

    problem: LowerLevel
    records: list[dict[str, Any]]

    def column(self, name: str) -> np.ndarray:
        """One entry of every record."""
        return np.array([record[name] for record in self.records], dtype=float)

    def __repr__(self) -> str:
        last = self.records[-1]
        return (
            f"History({last['epoch']} epochs in {last['seconds']:.1f} s, "
            f"train_loss={last['train_loss']:.6g}, validation_loss={last['validation_loss']})"
        )


# --------------------------------------------------------------------------------------- one update


class _State(NamedTuple):
    """What a run carries from step to step; `memory`, what visits leave, stays on the host."""

    problem: LowerLevel
    optimizer_state: Any
    memory: State | None


def make_update(
    variables: Variables,
    visit: Visit,
    optimizer: optax.GradientTransformation,
    project: Callable[[LowerLevel], LowerLevel] | None,
    share: float,
) -> Any:
    """One step of the optimiser, as a jitted function; where less than a share is near, none."""

    def step(problem: LowerLevel, optimizer_state: Any, grad: LowerLevel):
        gradient, free = variables.gradient(grad, problem), variables.free(problem)
        # optax raises a float to an integer count, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, free)
        problem = variables.problem(optax.apply_updates(free, updates), problem)
        return problem if project is None else project(problem), optimizer_state

    def update(
        problem: LowerLevel, optimizer_state: Any, x_tilde: Array, x_true: Array, left: State | None
    ):
        visited = visit(problem, x_tilde, x_true, left)
        near = visited.near / len(x_tilde)
        counted = jnp.where(near >= share, near, 0.0)
        before = (problem, optimizer_state)
        # Where nothing counts, neither the momentum of the optimiser nor a projection moves K.
        problem, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(counted > 0, new, old) if eqx.is_array(new) else new,
            step(*before, visited.grad),
            before,
        )
        measured = {
            "train_loss": visited.loss,
            "residual": visited.residual,
            "converged": visited.converged / len(x_tilde),
            "counted": counted,
        }
        return problem, optimizer_state, measured, visited.left

    return eqx.filter_jit(update)


@dataclasses.dataclass(frozen=True)
class _Learner:
    """What takes training steps: the training data, what is learned from them, and where."""

    x_tilde: Rows
    x_true: Rows
    variables: Variables
    visit: Visit
    optimizer: optax.GradientTransformation
    project: Callable[[LowerLevel], LowerLevel] | None
    share: float
    place: AbstractPlacement

    def spread(self, state: _State) -> _State:
        """The state where the steps want it."""
        problem, optimizer_state = self.place.everywhere((state.problem, state.optimizer_state))
        return _State(problem, optimizer_state, state.memory)

    def _arguments(self, state: _State, rows: Any) -> tuple[Any, ...]:
        batch = (self.x_tilde[rows], self.x_true[rows], take(state.memory, rows))
        return state.problem, state.optimizer_state, *self.place.rows(batch)

    def lower(self, state: _State, rows: Any) -> Any:
        """The program of a step, not yet compiled."""
        visit = self.place.visit(self.visit)
        update = make_update(self.variables, visit, self.optimizer, self.project, self.share)
        return update.lower(*self._arguments(self.spread(state), rows))

    def step(self, compiled: Any, state: _State, rows: Any) -> tuple[_State, dict[str, float]]:
        """One update, and what was measured before it."""
        *moved, measured, left = compiled(*self._arguments(state, rows))
        put(state.memory, rows, left)
        problem, optimizer_state = moved
        return _State(problem, optimizer_state, state.memory), jax.tree.map(float, measured)


# --------------------------------------------------------------------------------------------- data


def _check_pair(name: str, pair: Pair, n: int) -> tuple[Rows, Rows]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = type(pair).__name__ + (f" of {len(pair)}" if hasattr(pair, "__len__") else "")
        raise ValueError(f"{name} must be a pair (x_tilde, x_true); got a {got}")
    x_tilde, x_true = (
        rows_of(array, f"{part} of {name}")
        for part, array in zip(("x_tilde", "x_true"), pair, strict=True)
    )
    if x_tilde.shape != x_true.shape or len(x_tilde.shape) != 2 or x_tilde.shape[1] != n:
        raise ValueError(
            f"{name} must be two arrays of the same shape (samples, {n}); got {x_tilde.shape} and "
            f"{x_true.shape}"
        )
    if len(x_tilde) == 0:
        raise ValueError(f"{name} must hold at least one sample; got none")
    for part in (x_tilde, x_true):
        part.check_finite(name)
    return x_tilde, x_true


def _of_one_dtype(
    problem: LowerLevel, data: Pair, validation: Pair | None
) -> tuple[LowerLevel, tuple[Rows, Rows], tuple[Rows, Rows] | None]:
    """The problem, and data that fit it and are read in its dtype."""
    pair, held_out = _check_pair("data", data, problem.n), None
    if validation is not None:
        held_out = _check_pair("validation", validation, problem.n)
    dtype = jnp.result_type(problem.dtype, pair[0].dtype)
    pair, held_out = jax.tree.map(lambda rows: rows.astype(dtype), (pair, held_out))
    return cast_floats(problem, dtype), pair, held_out


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


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Indices of an epoch's batches, all of one size (one compilation).

    The order depends on seed and epoch alone, so that a resumed run sees the same batches. What
    does not fill a batch is left out of this epoch; the next one is shuffled anew. Within a batch
    they ascend: a file is read forwards (and HDF5 reads in no other way).
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield np.sort(order[start : start + batch_size])


def solve_in_pieces(
    problem: LowerLevel,
    x_tilde: Any,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    piece: int | None = None,
) -> tuple[np.ndarray, SolverStats]:
    """`x` and the statistics for `(samples, n)` of any size, with the memory of one piece (and x).

    Pieces have one size (the last is filled up with zeros), so there is one compilation. `x_tilde`
    is read by rows: a memory map is not loaded.
    """
    solved = _pieces_solved(problem, rows_of(x_tilde, "x_tilde"), solver, strategy, piece)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(found for _, found in solved))


def _pieces_solved(
    problem: LowerLevel,
    x_tilde: Rows,
    solver: ChambollePock | None,
    strategy: AbstractStrategy,
    piece: int | None,
) -> Iterator[tuple[slice, tuple[np.ndarray, SolverStats]]]:
    """Piece by piece: which rows it is, their `x` and their statistics."""
    check_problem(problem)
    check_samples(x_tilde.shape, problem.n)
    if piece is not None:
        check_count("piece", piece)
    count = len(x_tilde)
    size = min(ROWS_A_PIECE, count) if piece is None else piece
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        few = x_tilde[rows]
        filled = np.concatenate([few, np.zeros((size - len(few), problem.n), few.dtype)])
        solution = solve(problem, filled, solver=solver, strategy=strategy)
        found = (solution.x, solution.stats)
        yield rows, jax.tree.map(lambda a, few=few: np.asarray(a)[: len(few)], found)


def evaluate(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    piece: int | None = None,
) -> float:
    """The loss on `(samples, n)` of any size, solved in pieces (of at most 4096 by default).

    **Arguments**: as for `hypergradient`, `x_tilde` and `x_true` `(samples, n)`; `loss`, a mean
    over samples (that of all is the mean of those of the pieces); `piece`, samples at a time.

    **Returns**: the loss.

    **Cost**: one solve; data are read by rows, with the memory of one piece.

    >>> import hypergrad as hg
    >>> problem = hg.LowerLevel(K=hg.operators.differences(2), F=hg.L1(0.0), G=hg.Quadratic(1.0))
    >>> x = np.array([[0.0, 1.0]])
    >>> hg.evaluate(problem, x, x + 2, strategy=hg.Truncation(1))
    4.0
    """
    x_tilde, x_true = rows_of(x_tilde, "x_tilde"), rows_of(x_true, "x_true")
    check_truth_shape(x_true.shape, x_tilde.shape)
    total = 0.0
    for rows, (x, _) in _pieces_solved(problem, x_tilde, solver, strategy, piece):
        truth = jnp.asarray(x_true[rows], x.dtype)
        check_finite("x_true", truth)
        if rows.start == 0:
            check_loss(loss, truth)
        total += len(x) * float(loss(jnp.asarray(x), truth))
    return total / len(x_tilde)


def _bar(progress: Progress | bool) -> contextlib.AbstractContextManager[Progress]:
    """A bar of one's own, a silent one, or a shared one (which its owner opens and closes)."""
    if isinstance(progress, Progress):
        return contextlib.nullcontext(progress)
    return progress_bar(disable=not progress)


# -------------------------------------------------------------------------------------------- train


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
    problem, (x_tilde, x_true), held_out = _of_one_dtype(problem, data, validation)
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
    learner = _Learner(x_tilde, x_true, variables, visit, optimizer, project, share, place)
    memory = None
    if safeguard is not None:
        settings = {"solver": solver, "strategy": strategy}
        memory = nothing_left(len(x_tilde), problem, *example, **settings)
    start = _State(problem, optimizer.init(variables.free(problem)), memory)
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
            for rows in _batches(len(x_tilde), batch_size, seed, epoch):
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
