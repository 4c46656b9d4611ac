"""The upper level: learn leaves of the problem by a first-order method, resumably."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from hypergrad.lower_level import LowerLevel, cast_floats
from hypergrad.progress import progress_bar
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.variables import K_is_a_gauge, Variables, rescale_K
from hypergrad.visits import Visit, WarmStart, make_visit, nothing_left, put, take

__all__ = ["History", "WarmStart", "evaluate", "solve_in_pieces", "train"]

Pair = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class History:
    """What a training run gave: the learned problem and one record an epoch.

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


def _make_update(
    variables: Variables,
    visit: Visit,
    optimizer: optax.GradientTransformation,
    project: Callable[[LowerLevel], LowerLevel] | None,
) -> Any:
    """One step of the optimiser, as a jitted function."""

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
        h, counted = visit(problem, x_tilde, x_true, left)
        before = (problem, optimizer_state)
        # Where nothing counts, neither the momentum of the optimiser nor a projection moves K.
        problem, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(jnp.any(counted), new, old) if eqx.is_array(new) else new,
            step(*before, h.grad),
            before,
        )
        stats = h.solution.stats
        measured = {
            "train_loss": h.value,
            "residual": jnp.max(stats.residual),
            "converged": jnp.mean((stats.status == Status.CONVERGED).astype(x_tilde.dtype)),
            "counted": jnp.mean(counted.astype(x_tilde.dtype)),
        }
        return problem, optimizer_state, measured, None if left is None else h.state

    return eqx.filter_jit(update)


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

    With the memory of one piece: data are read by rows, and the loss has to be a mean over samples
    (that of all is the mean of those of the pieces).
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
    shared `rich` bar.

    **Returns**: a `History`.

    **Errors**: a `ValueError` for data that do not fit, or a checkpoint of another run. An
    interruption (`KeyboardInterrupt`) leaves the last epoch's checkpoint.

    **Cost**: `epochs * samples / batch_size` hypergradients; memory for one batch, besides the data
    where they are arrays (they are not copied) and the states of all samples with a `warm_start`.

    **Caveat**: samples that do not fill the last batch wait for the next epoch's shuffle.

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
    if not isinstance(warm_start, (WarmStart, bool)):
        raise ValueError(
            f"warm_start must be a WarmStart, True or False; got {warm_start!r}: try True"
        )
    safeguard = WarmStart() if warm_start is True else warm_start or None
    check_problem(problem)
    solver = usual_solver(solver)
    check_strategy(strategy, solver)
    optimizer = optax.adam(2e-3) if optimizer is None else optimizer
    _check_optimizer(optimizer)
    x_tilde, x_true = _check_pair("data", data, problem.n)
    held_out = None
    if validation is not None:
        held_out = _check_pair("validation", validation, problem.n)
    batch_size = min(batch_size, len(x_tilde))

    dtype = jnp.result_type(problem.dtype, x_tilde.dtype)
    problem = cast_floats(problem, dtype)
    x_tilde, x_true, held_out = jax.tree.map(
        lambda rows: rows.astype(dtype), (x_tilde, x_true, held_out)
    )
    check_loss(loss, jnp.asarray(x_true[:batch_size]))
    variables = Variables(problem, trainable)
    if project is None and K_is_a_gauge(problem, variables):
        project = rescale_K
    visit = make_visit(solver, strategy, loss, safeguard)
    update = _make_update(variables, visit, optimizer, project)

    def loss_on(pair: Pair, problem: LowerLevel) -> float:
        return evaluate(
            problem, *pair, solver=solver, strategy=strategy, loss=loss, piece=batch_size
        )

    def validate(problem: LowerLevel) -> float | None:
        return None if held_out is None else loss_on(held_out, problem)

    optimizer_state, memory = optimizer.init(variables.free(problem)), None
    if safeguard is not None:
        example = (problem, x_tilde[:batch_size], x_true[:batch_size])
        memory = nothing_left(len(x_tilde), *example, solver=solver, strategy=strategy)
    some = slice(batch_size)
    lowered = update.lower(
        problem, optimizer_state, x_tilde[some], x_true[some], take(memory, some)
    )
    records = [
        {
            "epoch": 0,
            "seconds": 0.0,
            "train_loss": loss_on((x_tilde, x_true), problem),
            "validation_loss": validate(problem),
            "residual": None,
            "converged": None,
            "counted": None,
            **measure(problem),
        }
    ]
    checkpoints = None
    if checkpoint_dir is not None:
        # The program holds the optimiser, the loss, what is learned and how it is projected.
        settings = (strategy, epochs, batch_size, seed, safeguard, lowered.as_text())
        run = fingerprint_of(problem, x_tilde, x_true, held_out, solver, settings)
        checkpoints = Checkpoints(checkpoint_dir, run)
        state = (problem, optimizer_state, memory)
        state, records = checkpoints.load(state) or (state, records)
        problem, optimizer_state, memory = state
        memory = jax.tree.map(np.array, memory)  # to be written into

    with _bar(progress) as bar:
        steps = len(x_tilde) // batch_size
        done = records[-1]["epoch"] * steps
        task = bar.add_task(strategy.label, total=epochs * steps, completed=done, loss="compiling")
        compiled = lowered.compile()
        for epoch in range(records[-1]["epoch"] + 1, epochs + 1):
            measured, started = [], time.perf_counter()
            for rows in _batches(len(x_tilde), batch_size, seed, epoch):
                problem, optimizer_state, now, left = compiled(
                    problem, optimizer_state, x_tilde[rows], x_true[rows], take(memory, rows)
                )
                put(memory, rows, left)
                measured.append(jax.tree.map(float, now))
                bar.update(task, advance=1, loss=f"loss {measured[-1]['train_loss']:.5f}")
            seconds = records[-1]["seconds"] + time.perf_counter() - started
            record = _record(epoch, seconds, measured, validate(problem))
            records.append({**record, **measure(problem)})
            if checkpoints is not None:
                checkpoints.save(epoch, (problem, optimizer_state, memory), records)
    return History(problem, records)


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
