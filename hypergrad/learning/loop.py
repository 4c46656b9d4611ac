"""Learn leaves of a problem by a first-order method, in runs that can be resumed."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hypergrad._foundation.checks import check_count, check_number, describe
from hypergrad._foundation.contents import contents_on_disk
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.progress import progress_bar
from hypergrad.bilevel import Loss, half_mean_squared_error
from hypergrad.bilevel.arguments import check_compatible, check_loss, check_problem, default_solver
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.learning.devices import Placement
from hypergrad.learning.methods import AbstractUpperLevelMethod, MethodRun
from hypergrad.learning.methods.evaluations import Evaluator
from hypergrad.learning.methods.run import check_method, with_tolerance
from hypergrad.learning.pairs import (
    Draw,
    Pair,
    SampleProblem,
    TrainingPairs,
    batches,
    cast_rows,
    check_pair,
)
from hypergrad.learning.recorder import HeldOut, Recorder, out_of_patience
from hypergrad.learning.result import Best, History, best_epoch
from hypergrad.learning.updates import Learner, RunState, updates_a_call
from hypergrad.learning.variables import Variables, rescale_K, scale_is_free
from hypergrad.learning.warm_start import (
    WarmStart,
    empty_memory,
    forget,
    gather,
    make_batch_gradient,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import of_a_function
from hypergrad.strategies._base import AbstractStrategy

if TYPE_CHECKING:
    import optax
    from rich.progress import Progress

__all__ = ["train"]

Projection = Callable[[LowerLevel], LowerLevel]


def train(
    problem: LowerLevel,
    data: Pair | Draw,
    *,
    validation: Pair | Callable[[LowerLevel], float] | None = None,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    optimizer: optax.GradientTransformation | None = None,
    method: AbstractUpperLevelMethod | None = None,
    epochs: int = 50,
    seconds: float | None = None,
    patience: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    warm_start: WarmStart | bool = False,
    trainable: Callable[[LowerLevel], Any] = lambda p: p.K,
    project: Projection | None = None,
    loss: Loss = half_mean_squared_error,
    measure: Callable[[LowerLevel], Mapping[str, float]] = lambda p: {},
    progress: Progress | bool = True,
    devices: int | Mesh | None = None,
    sample_problem: SampleProblem | None = None,
) -> History:
    """Learn leaves of a problem from pairs of observed and true samples.

        min_p  mean_i loss(x_hat_i(p), x_true_i),     p = trainable(problem)

    **Arguments**:

    - `data`: a pair `(x_tilde, x_true)`, each `(samples, n)`: arrays, or objects that are indexed
      by rows (`np.load(..., mmap_mode="r")`, a data set of HDF5), which are read batch by batch and
      never loaded as a whole. Or a function of the epoch (1, 2, …) that returns its pair, always of
      the same size, such as `RandomCrops`. With `sample_problem` a triple: `own` has a row of any
      shape for each sample (floats are cast to the dtype of the problem).
    - `validation`: such a pair or triple, or a function of the problem that returns its loss (with
      another solver, or on images of another shape).
    - `seconds`: no epoch begins after so many seconds of updates. Defaults to no limit.
    - `patience`: stop after so many epochs without a smaller loss on validation data.
    - `optimizer`: from optax; by default Adam with rate 2e-3.
    - `method`: in place of an optimizer `LBFGS()`, `AdaptiveInexactDescent()` or `HOAG()`, which
      choose their steps, take all samples at once, and continue every solve. An epoch is one step;
      the solver's tolerance is the finest that they ask for, its iterations the most per solve.
    - `batch_size`: by default 256.
    - `checkpoint_dir`: a folder, written after every epoch. A call with the same arguments resumes
      the run; with other arguments it raises an error that names them.
    - `warm_start`: True or a `WarmStart` starts the solves of each training sample from its last
      state. (Epoch 0 and the validation losses use cold solves.) Where a function draws a new pair,
      its samples start cold.
    - `trainable`: selects the learned leaves (or nodes) of the problem; leaves that their function
      declares positive are learned in the log.
    - `project`: applied to the problem after each update. By default, a matrix or filter bank K is
      rescaled to norm 1 if its scale is free (F homogeneous and G an indicator).
    - `loss`: a mean over samples (values that it closes over are fixed, see `hypergradient`).
    - `measure`: called with the problem before the first epoch and after each; its numbers are
      added to the record, and its time is not counted.
    - `progress`: False, or a shared `rich` bar.
    - `devices`: a number of devices per process, or a `jax.sharding.Mesh`; each batch is split into
      equal shares. With several processes (`jax.distributed`) all call this with the same
      arguments; only the first writes checkpoints and shows progress.
    - `sample_problem`: `(problem, own) -> problem` of one sample, from its row of `own` (a mask, a
      noise level), as in `lambda p, mask: eqx.tree_at(lambda q: q.G.A.mask, p, mask)`. The gradient
      goes through it.

    **Returns**: a `History`: the last problem, and the best one by the loss on validation data.

    **Errors**: a `HypergradError` for data that do not fit, for a checkpoint of another run, and
    for a batch that the devices cannot share. A damaged checkpoint is reported and the one before
    it used; if none can be read, training starts anew. An interruption (`KeyboardInterrupt`) leaves
    the last epoch's checkpoint.

    **Cost**: `epochs * samples / batch_size` hypergradients; memory for one batch, and with a
    `warm_start` for the states of all samples (data in arrays are not copied). Each of several
    devices needs memory for its share; a step sums one vector of the size of the gradient over
    them.

    **Caveat**: samples that do not fill the last batch wait for the next epoch's shuffle. On
    several devices the loss must be a mean over the samples, warm starts need all devices in one
    process, and every process computes validation losses on one device. With `sample_problem` the
    gradient is formed sample by sample: a dense K takes `batch_size * m * n` numbers more.

    >>> import hypergrad as hg, numpy as np
    >>> x_true = np.cumsum(np.random.default_rng(0).normal(size=(8, 5)), axis=1)
    >>> problem = hg.LowerLevel(K=hg.operators.differences(5), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> history = hg.train(problem, (x_true + 0.1, x_true), strategy=hg.Truncation(1), epochs=2,
    ...                    batch_size=4, progress=False)
    >>> len(history.records)
    3
    """
    check_count("epochs", epochs, least=0)
    safeguard = _safeguard(warm_start)
    if method is not None:
        others = {"optimizer": optimizer, "batch_size": batch_size, "warm_start": safeguard}
        others |= {"project": project, "devices": devices, "sample_problem": sample_problem}
        check_method(method, others, data)
    check_count("batch_size", batch_size := 256 if batch_size is None else batch_size)
    check_problem(problem)
    solver = default_solver(solver)
    check_compatible(strategy, solver)
    if seconds is not None:
        check_number("seconds", seconds)
    _check_patience(patience, validation)
    differs = _differs(sample_problem)
    pairs = TrainingPairs(data, problem, own=differs)
    problem, pair = problem.astype(pairs.dtype), pairs.of(1)
    held_out = _held_out(validation, problem, own=differs)
    x_tilde, *_ = pair
    batch_size = len(x_tilde) if method is not None else min(batch_size, len(x_tilde))
    first = slice(batch_size)
    batch = tuple(part[first] for part in pair)
    example = batch[0], batch[1]
    place = _checked_place(problem, devices, loss, example, warm=safeguard is not None)
    variables = Variables(problem, trainable)
    memory = None
    if safeguard is not None:
        settings = {"solver": solver, "strategy": strategy, "parameters": trainable}
        memory = empty_memory(len(x_tilde), problem, *example, **settings)
    if method is not None:
        solver = with_tolerance(solver, problem)
        learner = MethodRun(method, Evaluator(variables, problem, solver, strategy, loss))
    else:
        learner = Learner(
            variables,
            make_batch_gradient(solver, strategy, loss, safeguard, trainable, sample_problem),
            _default_optimizer(optimizer),
            _default_projection(project, problem, variables),
            0.0 if safeguard is None else safeguard.share,
            place,
            updates_a_call((*batch, gather(memory, first))),
        )
    start = learner.start(problem, memory, example)
    lowered = learner.lower(start, pair, first)

    @functools.cache
    def run() -> dict[str, str]:
        return {
            **_data_digests(pairs, held_out),
            **_setting_digests(learner, start, solver, strategy, loss, safeguard),
            "choice of what is learned": variables.names,
            "number of epochs": str(epochs),
            "batch size": str(batch_size),
            "seed": str(seed),
            **({} if patience is None else {"patience": str(patience)}),
            **({"problem by sample": contents_on_disk(sample_problem)} if differs else {}),
        }

    place.check_alike(lambda: contents_on_disk((run(), checkpoint_dir is None)))
    more = learner.columns + (("stopped",) if method is not None or patience is not None else ())
    recorder = Recorder(
        pair, held_out, solver, strategy, loss, batch_size, measure, more, sample_problem
    )
    records = [recorder.first_record(problem)]
    checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir, run())
    state, best, records = _resumed(checkpoints, place, start, records)
    state, done = learner.replicate(state), records[-1]["epoch"]
    pair = pairs.of(max(done, 1))  # whose states a resumed run remembers
    with _bar(progress if place.writes else False) as bar:
        show = _shown(bar, strategy.label, len(x_tilde) // batch_size, done, epochs)
        compiled = lowered.compile() if done < epochs else None
        for epoch in range(done + 1, epochs + 1):
            is_over = seconds is not None and records[-1]["seconds"] >= seconds
            if is_over or records[-1].get("stopped") is not None:
                break
            started = time.perf_counter()
            if (drawn := pairs.of(epoch)) is not pair:
                pair = drawn
                forget(state.memory)
            rows = batches(len(x_tilde), batch_size, seed, epoch)
            state, measured = learner.epoch(compiled, state, pair, rows, show)
            elapsed = records[-1]["seconds"] + time.perf_counter() - started
            current = place.to_host(state.problem)
            records.append(recorder.record(current, epoch, elapsed, measured))
            if patience is not None and records[-1]["stopped"] is None:
                records[-1]["stopped"] = out_of_patience(records, patience)
            best = current if best_epoch(records) == epoch else best
            if checkpoints is not None and place.writes:
                checkpoints.save(epoch, (state, best), records)
    return History(place.to_host(state.problem), records, Best(best, best_epoch(records)))


# ----------------------------------------------------------------------------------- arguments


def _safeguard(warm_start: WarmStart | bool) -> WarmStart | None:
    if not isinstance(warm_start, (WarmStart, bool)):
        raise HypergradError(
            f"warm_start must be a WarmStart, True or False; got {warm_start!r}: try True"
        )
    return WarmStart() if warm_start is True else warm_start or None


def _check_patience(patience: int | None, validation: Any) -> None:
    if patience is None:
        return
    check_count("patience", patience)
    if validation is None:
        raise HypergradError(
            f"patience must have validation data to judge by; got patience={patience} and none: "
            "pass validation=(x_tilde, x_true)"
        )


def _differs(sample_problem: SampleProblem | None) -> bool:
    """Return whether the problem differs by sample."""
    if sample_problem is not None and not callable(sample_problem):
        raise HypergradError(
            f"sample_problem must be a function of (problem, own); got {describe(sample_problem)}: "
            "try lambda problem, own: eqx.tree_at(lambda p: p.F.weight, problem, own)"
        )
    return sample_problem is not None


def _held_out(
    validation: Pair | Callable[[LowerLevel], float] | None, problem: LowerLevel, *, own: bool
) -> HeldOut:
    """Return the held-out rows in the dtype of the problem, the function that judges, or None."""
    if validation is None or callable(validation):
        return validation
    return cast_rows(check_pair("validation", validation, problem.n, own=own), problem.dtype)


def _default_optimizer(optimizer: optax.GradientTransformation | None) -> Any:
    """Return the optimiser, after checking its two functions; default to Adam."""
    if optimizer is None:
        import optax

        return optax.adam(2e-3)
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise HypergradError(
            f"optimizer must be one of optax; got {describe(optimizer)}: pass for example "
            "optax.adam(1e-3)"
        )
    return optimizer


def _default_projection(
    project: Projection | None, problem: LowerLevel, variables: Variables
) -> Projection | None:
    """Return the projection; default to rescaling K to norm 1 where its scale is free."""
    if project is None and scale_is_free(problem, variables):
        return rescale_K
    return project


def _checked_place(
    problem: LowerLevel,
    devices: int | Mesh | None,
    loss: Loss,
    example: tuple[Any, Any],
    *,
    warm: bool,
) -> Placement:
    """Return the placement, after checking that it can share K, a batch and its loss."""
    x_tilde, x_true = map(jnp.asarray, example)
    place = Placement.of(devices)
    if devices is not None and of_a_function(problem.K):
        raise HypergradError(
            "K must be a matrix, a hypergrad.operators.AbstractOperator or made of matrices to be "
            "used on several devices; got a lineax.FunctionLinearOperator, whose program is for "
            "one: give its two products to a subclass of AbstractOperator"
        )
    place.check(len(x_tilde), warm=warm)
    check_loss(loss, x_true)
    place.check_loss(loss, x_tilde, x_true)
    return place


# ---------------------------------------------------------------------- identity of a run

# A run is identified by the bytes of its data and arrays, the fields of its settings, and the
# closures of its functions, with the code of those that are not of an installed package. Programs
# are not hashed, so that a run continues with another version of JAX. Values of functions are not
# hashed: a rate that differs in its last digit, or a schedule that differs in its last epoch, is
# another run. The price: a run is refused after its functions were rewritten to compute the same,
# and user functions are refused after a change of Python's version, which changes their bytecode.


def _data_digests(pairs: TrainingPairs, held_out: HeldOut) -> dict[str, str]:
    if isinstance(held_out, tuple):
        validation = contents_on_disk([rows.digest() for rows in held_out])
    else:
        validation = "none" if held_out is None else contents_on_disk(held_out)
    return {"set of training data": pairs.digest(), "set of validation data": validation}


def _setting_digests(
    learner: Learner | MethodRun,
    start: RunState,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss,
    safeguard: WarmStart | None,
) -> dict[str, str]:
    parts = {
        "problem": start.problem,
        "solver": solver,
        "strategy": strategy,
        # With its state, which holds some rates (`optax.inject_hyperparams`).
        "optimizer": (learner.optimizer, start.optimizer_state),
        "projection": learner.project,
        "loss": loss,
        "warm start": safeguard,
    }
    return {name: contents_on_disk(part) for name, part in parts.items()}


# -------------------------------------------------------------------------------------- stages


def _resumed(
    checkpoints: Checkpoints | None,
    place: Placement,
    start: RunState,
    records: list[dict[str, Any]],
) -> tuple[RunState, LowerLevel, list[dict[str, Any]]]:
    """Return the state, best problem and records of an earlier run, or the start."""
    if checkpoints is None:
        return start, start.problem, records
    template = start, start.problem
    (state, best), records = place.load(lambda: checkpoints.load(template), (template, records))
    memory = jax.tree.map(np.array, state.memory)  # writable
    return state._replace(memory=memory), best, records


def _shown(
    bar: Progress, label: str, steps: int, done: int, epochs: int
) -> Callable[[float], None]:
    """Add a line for the run to the bar; return a function to call with the loss of each step."""
    task = bar.add_task(label, total=epochs * steps, completed=done * steps, loss="compiling")
    return lambda loss: bar.update(task, advance=1, loss=f"loss {loss:.5f}")


def _bar(progress: Progress | bool) -> contextlib.AbstractContextManager[Progress]:
    """Return a new bar, a silent one, or the shared one (which its owner opens and closes)."""
    from rich.progress import Progress

    if isinstance(progress, Progress):
        return contextlib.nullcontext(progress)
    return progress_bar(disable=not progress)
