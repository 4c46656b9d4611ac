"""The upper level: learn leaves of the problem by a first-order method, resumably."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool
from rich.progress import Progress

from hypergrad._checks import as_inexact, check_count, check_number
from hypergrad.bilevel import (
    Hypergradient,
    Loss,
    OnSamples,
    half_mean_squared_error,
    hypergradient,
    solve,
)
from hypergrad.chambolle_pock import ChambollePock, SolverStats, State
from hypergrad.functions import AbstractFunction
from hypergrad.lower_level import LowerLevel, cast_floats
from hypergrad.operators import operator_norm
from hypergrad.progress import progress_bar
from hypergrad.records import write_npz
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["History", "WarmStart", "evaluate", "solve_in_pieces", "train"]

Pair = tuple[Any, Any]

# Validation runs through the data in pieces, so that its memory does not grow with them.
_EVALUATION_BATCH = 4096
_CHECKPOINTS_KEPT = 2


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


# --------------------------------------------------------------- what is learned, and in what


def _trainable_mask(problem: LowerLevel, trainable: Callable[[LowerLevel], Any]) -> Any:
    """True for the selected float leaves, False elsewhere."""
    nothing = jax.tree.map(lambda _: False, problem)
    chosen = eqx.tree_at(
        trainable, nothing, replace_fn=lambda node: jax.tree.map(lambda _: True, node)
    )
    mask = jax.tree.map(lambda yes, leaf: yes and eqx.is_inexact_array(leaf), chosen, problem)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            "trainable must select at least one float leaf of the problem; got none: "
            "try lambda p: p.K"
        )
    return mask


def _child(node: Any, key: Any) -> Any:
    """One step along a key path."""
    match key:
        case jax.tree_util.SequenceKey(idx=index):
            return node[index]
        case jax.tree_util.DictKey(key=name):
            return node[name]
        case jax.tree_util.GetAttrKey(name=name):
            return getattr(node, name)
    return None  # inside a pytree of another kind, where nothing declares itself positive


def _positive_mask(problem: LowerLevel) -> Any:
    """True for the leaves that their function declares positive."""

    def is_positive(path, _) -> bool:
        *way, last = path
        node: Any = problem
        for key in way:
            node = _child(node, key)
        return isinstance(node, AbstractFunction) and getattr(last, "name", None) in node.positive

    return jax.tree_util.tree_map_with_path(is_positive, problem)


class _Variables:
    """Between the problem and the free variables that the optimiser sees (None where fixed)."""

    def __init__(self, problem: LowerLevel, trainable: Callable[[LowerLevel], Any]):
        self.mask = _trainable_mask(problem, trainable)
        self.in_log = eqx.filter(_positive_mask(problem), self.mask)
        for log, leaf in self._flagged(problem):
            if log and not np.all(np.asarray(leaf) > 0):
                raise ValueError(
                    "a positive leaf is learned in the log, so it must start above 0; got "
                    f"{np.min(leaf):g}"
                )

    def _flagged(self, problem: LowerLevel) -> Iterator[tuple[bool, Array]]:
        leaves = jax.tree.leaves(eqx.filter(problem, self.mask))
        return zip(jax.tree.leaves(self.in_log), leaves, strict=True)

    def free(self, problem: LowerLevel) -> Any:
        """The learned leaves, positive ones as their logarithm."""
        learned = eqx.filter(problem, self.mask)
        return jax.tree.map(lambda log, p: jnp.log(p) if log else p, self.in_log, learned)

    def problem(self, free: Any, problem: LowerLevel) -> LowerLevel:
        """The problem with its learned leaves set from the free variables."""
        learned = jax.tree.map(lambda log, v: jnp.exp(v) if log else v, self.in_log, free)
        return eqx.combine(learned, problem)

    def gradient(self, gradient: LowerLevel, problem: LowerLevel) -> Any:
        """The gradient in the free variables: `d/d log p = p d/dp`."""
        gradient, learned = eqx.filter((gradient, problem), (self.mask, self.mask))
        return jax.tree.map(lambda log, g, p: g * p if log else g, self.in_log, gradient, learned)


def _rescale_K(problem: LowerLevel) -> LowerLevel:
    """K at norm 1: its scale is a gauge there, and would drift."""
    return eqx.tree_at(lambda p: p.K, problem, problem.K / operator_norm(problem.K))


def _K_is_a_gauge(problem: LowerLevel, variables: _Variables) -> bool:
    """Whether K is a matrix that is learned although its scale changes nothing."""
    return problem.scale_of_K_is_free and variables.mask.K is True


# --------------------------------------------------------------------------------- one visit


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Each visit to a sample goes on from where the last one left it, safeguarded.

    The primal, dual and adjoint state of every training sample is kept; the first visit starts from
    zero. K has moved since the last visit, so before anything is differentiated the lower level is
    iterated until the sample's relative residual at the present K is at most `residual`. A sample
    that needs more than `most` iterations for that is kept as far as it got, but neither its
    gradient nor its adjoint state counts in this visit. Those that are near first are the easy
    ones: a batch of which less than a `share` is near makes no update, and K waits for the rest.

    **Arguments**: `residual`, relative (see `SolverStats`); `most`, a whole number; `share`, from 0
    to 1.

    **Errors**: a `ValueError` for a setting out of range.

    **Cost**: 2 products with K a visit where all samples are near, else what the slowest of the
    batch takes; `3 n + 2 m` numbers a training sample, on the host.

    **Caveat**: it looks at the forward residual only; an adjoint of few steps lags behind g as K
    moves. See `History`: where `counted` stays at 0 nothing is learned, so take more iterations or
    a larger `residual`.

    >>> WarmStart()
    WarmStart(residual=0.01, most=100, share=0.9)
    """

    residual: float = 1e-2
    most: int = 100
    share: float = 0.9

    def __post_init__(self):
        check_number("residual", np.asarray(self.residual))
        check_count("most", self.most)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1; got {self.share}: try 0.9")


def _approach(
    problem: LowerLevel, x_tilde: Array, patient: ChambollePock, left: State
) -> tuple[State, Bool[Array, " batch"]]:
    """The state that a visit starts from, and which samples are near enough to count."""
    patient = cast_floats(patient, problem.dtype)
    sizes = patient.step_sizes(problem)
    start = patient.start(problem, x_tilde, left)
    state, taken = patient.approach(problem, x_tilde, sizes, start, keep=0)
    stats = patient.certify(problem, x_tilde, sizes, state.r, state.y, taken)
    near = stats.status == Status.CONVERGED
    # A limit formula is linear in g and in the adjoint it starts from: only without both is it 0.
    adjoint = jax.tree.map(lambda Delta: jnp.where(near[:, None], Delta, 0.0), left.adjoint)
    return State(state.r, state.r_bar, state.y, adjoint), near


Visit = Callable[..., tuple[Hypergradient, Bool[Array, " batch"]]]


def _make_visit(
    solver: ChambollePock, strategy: AbstractStrategy, loss: Loss, warm_start: WarmStart | None
) -> Visit:
    """`visit(problem, x_tilde, x_true, left)`: a hypergradient, and which samples count in it."""
    settings = {"solver": solver, "strategy": strategy}

    def cold(problem: LowerLevel, x_tilde: Array, x_true: Array, left: None):
        del left
        h = hypergradient(problem, x_tilde, x_true, loss=loss, **settings)
        return h, jnp.ones(len(x_tilde), bool)

    if warm_start is None:
        return cold
    patient = dataclasses.replace(solver, iterations=warm_start.most, tolerance=warm_start.residual)

    def warm(problem: LowerLevel, x_tilde: Array, x_true: Array, left: State):
        init, near = _approach(problem, x_tilde, patient, left)
        on_near = OnSamples(loss, near)
        h = hypergradient(problem, x_tilde, x_true, loss=on_near, init=init, **settings)
        enough = jnp.mean(near.astype(x_tilde.dtype)) >= warm_start.share
        return h, near & enough

    return warm


def _nothing_left(
    samples: int, problem: LowerLevel, x_tilde: Array, x_true: Array, **settings: Any
) -> State:
    """What visits leave of each sample, before the first: zeros, from which a solve is a cold one.

    On the host, where it can be written into. Whether an adjoint is kept is up to the strategy.
    """
    h = eqx.filter_eval_shape(hypergradient, problem, x_tilde, x_true, **settings)
    return jax.tree.map(lambda a: np.zeros((samples, *a.shape[1:]), a.dtype), h.state)


def _take(memory: State | None, rows: Any) -> State | None:
    return jax.tree.map(lambda kept: kept[rows], memory)


def _put(memory: State | None, rows: np.ndarray, left: State | None) -> None:
    for kept, new in zip(jax.tree.leaves(memory), jax.tree.leaves(left), strict=True):
        kept[rows] = new


def _make_update(
    variables: _Variables,
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


# ----------------------------------------------------------------------------------- data


def _check_pair(name: str, pair: Pair, n: int) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = type(pair).__name__ + (f" of {len(pair)}" if hasattr(pair, "__len__") else "")
        raise ValueError(f"{name} must be a pair (x_tilde, x_true); got a {got}")
    x_tilde, x_true = (np.asarray(as_inexact(array)) for array in pair)
    if x_tilde.shape != x_true.shape or x_tilde.ndim != 2 or x_tilde.shape[1] != n:
        raise ValueError(
            f"{name} must be two arrays of the same shape (samples, {n}); got {x_tilde.shape} and "
            f"{x_true.shape}"
        )
    if len(x_tilde) == 0:
        raise ValueError(f"{name} must hold at least one sample; got none")
    if not (np.all(np.isfinite(x_tilde)) and np.all(np.isfinite(x_true))):
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    return x_tilde, x_true


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Indices of an epoch's batches, all of one size (one compilation).

    The order depends on seed and epoch alone, so that a resumed run sees the same batches. What
    does not fill a batch is left out of this epoch; the next one is shuffled anew.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def solve_in_pieces(
    problem: LowerLevel,
    x_tilde: Any,
    *,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    piece: int | None = None,
) -> tuple[np.ndarray, SolverStats]:
    """`x` and the statistics for `(samples, n)` of any size, with the memory of one piece.

    Pieces have one size (the last is filled up with zeros), so there is one compilation.
    """
    x_tilde, count = np.asarray(x_tilde), len(x_tilde)
    if count == 0:
        raise ValueError("x_tilde must hold at least one sample; got none")
    piece = min(_EVALUATION_BATCH, count) if piece is None else piece
    filled = np.concatenate([x_tilde, np.zeros((-count % piece, problem.n), x_tilde.dtype)])
    solved = []
    for rows in filled.reshape(-1, piece, problem.n):
        solution = solve(problem, rows, solver=solver, strategy=strategy)
        solved.append(jax.tree.map(np.asarray, (solution.x, solution.stats)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *solved)


def evaluate(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    piece: int | None = None,
) -> float:
    """The loss on `(samples, n)` of any size, solved in pieces (of at most 4096 by default)."""
    x, _ = solve_in_pieces(problem, x_tilde, solver=solver, strategy=strategy, piece=piece)
    return float(loss(jnp.asarray(x), jnp.asarray(x_true, x.dtype)))


# ------------------------------------------------------------------------------- checkpoints


class _Checkpoints:
    """Numbered files in a folder, the last two kept: the arrays, the records, a fingerprint."""

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder), fingerprint

    def save(self, epoch: int, state: Any, records: list[dict[str, Any]]) -> None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        arrays = {f"leaf{i:04d}": leaf for i, leaf in enumerate(leaves)}
        about = json.dumps({"fingerprint": self.fingerprint, "records": records})
        write_npz(self.folder / f"checkpoint-{epoch:06d}.npz", {**arrays, "about": np.array(about)})
        for old in self._files()[_CHECKPOINTS_KEPT:]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def load(self, like: Any) -> tuple[Any, list[dict[str, Any]]] | None:
        """The newest checkpoint that can be read, or None; a damaged one is passed over."""
        for path in self._files():
            try:
                leaves, fingerprint, records = self._read(path, len(jax.tree.leaves(like)))
            except Exception as error:  # whatever a damaged archive makes its reader raise
                print(f"checkpoint {path} is damaged ({error}): the one before it is used")
                continue
            if fingerprint != self.fingerprint:
                raise ValueError(
                    f"checkpoint {path} must come from the same run; got one of other data or "
                    "settings: name another folder, or remove this one"
                )
            template = jax.tree.leaves(like)
            arrays = [jnp.asarray(a, t.dtype) for a, t in zip(leaves, template, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(like), arrays), records
        return None

    @staticmethod
    def _read(path: Path, count: int) -> tuple[list[np.ndarray], str, list[dict[str, Any]]]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            # A checkpoint of another run may hold another number of leaves: that is not damage.
            ours = len(stored.files) == count + 1
            leaves = [stored[f"leaf{i:04d}"] for i in range(count)] if ours else []
            return leaves, about["fingerprint"] if ours else "another", about["records"]


def _fingerprint(*parts: Any) -> str:
    """A hash of what makes a run what it is; arrays by their bytes."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            is_array = isinstance(leaf, (np.ndarray, jax.Array))
            digest.update(np.asarray(leaf).tobytes() if is_array else repr(leaf).encode())
        digest.update(str(jax.tree.structure(part)).encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------- train


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
    progress: Progress | bool = True,
) -> History:
    """Learn leaves of a problem from pairs of observed and true samples.

        min_p  mean_i loss(x_hat_i(p), x_true_i),     p = trainable(problem)

    **Arguments**: `data`, `validation`: `(x_tilde, x_true)`, each `(samples, n)`; `optimizer`, from
    optax (Adam with rate 2e-3 by default); `trainable`, which leaves (or nodes) of the problem are
    learned; leaves that their function declares positive are learned in the log; `project`, applied
    to the problem after each update (by default, where F is homogeneous and G an indicator, so that
    the scale of K is free, K is rescaled to norm 1); `checkpoint_dir`, written after every epoch:
    called again with the same arguments, it goes on from there; `warm_start`, True or a
    `WarmStart`: visits to a training sample go on from its last one (losses of epoch 0 and of the
    validation data are those of cold solves); `progress`, False or a shared `rich` bar.

    **Returns**: a `History`.

    **Errors**: a `ValueError` for data that do not fit, or a checkpoint of another run. An
    interruption (`KeyboardInterrupt`) leaves the last epoch's checkpoint.

    **Cost**: `epochs * samples / batch_size` hypergradients; memory for one batch.

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
    solver = ChambollePock() if solver is None else solver
    optimizer = optax.adam(2e-3) if optimizer is None else optimizer
    x_tilde, x_true = _check_pair("data", data, problem.n)
    held_out = None
    if validation is not None:
        held_out = _check_pair("validation", validation, problem.n)
    batch_size = min(batch_size, len(x_tilde))

    dtype = jnp.result_type(problem.dtype, jnp.asarray(x_tilde[:1]).dtype)
    problem = cast_floats(problem, dtype)
    x_tilde, x_true, held_out = cast_floats((x_tilde, x_true, held_out), dtype)
    variables = _Variables(problem, trainable)
    if project is None and _K_is_a_gauge(problem, variables):
        project = _rescale_K
    visit = _make_visit(solver, strategy, loss, safeguard)
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
        memory = _nothing_left(len(x_tilde), *example, solver=solver, strategy=strategy)
    some = slice(batch_size)
    lowered = update.lower(
        problem, optimizer_state, x_tilde[some], x_true[some], _take(memory, some)
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
        }
    ]
    checkpoints = None
    if checkpoint_dir is not None:
        # The program holds the optimiser, the loss, what is learned and how it is projected.
        settings = (strategy, epochs, batch_size, seed, safeguard, lowered.as_text())
        run = _fingerprint(problem, x_tilde, x_true, held_out, solver, settings)
        checkpoints = _Checkpoints(checkpoint_dir, run)
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
                    problem, optimizer_state, x_tilde[rows], x_true[rows], _take(memory, rows)
                )
                _put(memory, rows, left)
                measured.append(jax.tree.map(float, now))
                bar.update(task, advance=1, loss=f"loss {measured[-1]['train_loss']:.5f}")
            seconds = records[-1]["seconds"] + time.perf_counter() - started
            records.append(_record(epoch, seconds, measured, validate(problem)))
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


def _bar(progress: Progress | bool) -> contextlib.AbstractContextManager[Progress]:
    """A bar of one's own, a silent one, or a shared one (which its owner opens and closes)."""
    if isinstance(progress, Progress):
        return contextlib.nullcontext(progress)
    return progress_bar(disable=not progress)
