"""Strategies side by side on one batch: one record each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from hypergrad._checks import check_count, check_flag, describe
from hypergrad._rows import Rows, rows_of
from hypergrad.adjoint import AdjointStats
from hypergrad.bilevel import (
    Hypergradient,
    Loss,
    OnSamples,
    half_mean_squared_error,
    hypergradient,
)
from hypergrad.bilevel.arguments import (
    check_is_strategy,
    check_loss,
    check_problem,
    check_samples,
    check_truth_shape,
    prepare,
    prepare_truth,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, SolverStats, State
from hypergrad.diagnostics import are_certified
from hypergrad.diagnostics._gradients import check_learnable, flat
from hypergrad.error_bound import Regime
from hypergrad.lower_level import LowerLevel
from hypergrad.records import environment, markdown_table, write_json, write_jsonl, write_text
from hypergrad.status import Status
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.strategies.exact import Exact
from hypergrad.timing import Compiled, compile_ahead, interleaved_medians

__all__ = [
    "COLUMNS",
    "Comparison",
    "certified_samples",
    "compare",
    "differentiable_samples",
    "one_hypergradient",
    "reason_of",
    "reference_hypergradient",
    "solve_without_strategy",
]

# What a record holds, with its heading and unit. Everything that prints or draws reads this.
COLUMNS = {
    "strategy": "strategy",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "relative_error": "relative error",
    "cosine": "cosine",
    "relative_error_differentiable": "relative error, differentiable samples",
    "error_bound": "error bound (relative)",
    "certified": "share certified by the bound",
    "milliseconds": "time (ms)",
    "over_forward": "time / forward",
    "compile_seconds": "compile (s)",
    "peak_megabytes": "memory (MB)",
    "forward_status": "forward status",
    "forward_residual": "forward residual (worst)",
    "adjoint_status": "adjoint status",
    "adjoint_residual": "adjoint residual (worst)",
    "products": "products with K (mean a sample)",
    "error": "error",
}

# On natural patches with an overcomplete K a step ratio a hundred times larger is what settles the
# active sets of most samples within a few hundred iterations.
_REFERENCE_RATIO_FACTOR = 100.0
# Newton steps: what is not certified by then is left out of the comparison, and counted.
_REFERENCE_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Records of strategies on one batch, and how good the reference is that they are held against.

    Printing it gives a table; `save` writes records, table and environment; `plot` draws it.
    """

    records: list[dict[str, Any]]
    reference: dict[str, Any]
    environment: dict[str, Any]

    def table(self) -> str:
        """The records as a Markdown table; columns that are empty everywhere are left out."""
        used = {
            key: heading
            for key, heading in COLUMNS.items()
            if any(record.get(key) is not None for record in self.records)
        }
        return markdown_table(self.records, used)

    def __str__(self) -> str:
        reference = self.reference
        return (
            f"{self.table()}\n\nReference: {reference['how']}; forward {reference['status']} "
            f"(worst residual {reference['residual']:.1e}); adjoint {reference['adjoint_status']} "
            f"(worst {reference['adjoint_residual']:.1e}). Gradients are those of the "
            f"{100 * reference['certified']:.3g} % of the samples that it is certified on. On "
            f"{100 * reference['differentiable']:.3g} % the solution map is differentiable; on the "
            "others (dependent active rows of K, or a coordinate on its kink) the reference is one "
            "gradient of several, and strategies may differ from it by per cents and be right."
        )

    def save(self, folder: str | Path) -> None:
        """Write `comparison.jsonl`, `comparison.md`, `reference.json`, `environment.json`."""
        folder = Path(folder)
        write_jsonl(folder / "comparison.jsonl", self.records)
        write_text(folder / "comparison.md", f"{self}\n")
        write_json(folder / "reference.json", self.reference)
        write_json(folder / "environment.json", self.environment)

    def plot(self) -> Any:
        """A matplotlib figure: relative error against time, one marker a strategy."""
        from hypergrad.plotting import plot_comparison

        return plot_comparison(self.records)


def reference_hypergradient(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock | None = None,
    loss: Loss = half_mean_squared_error,
    init: State | None = None,
    most: int = _REFERENCE_STEPS,
) -> Hypergradient:
    """The yardstick: `Exact`, at the step ratio with which it is quick.

    **Arguments**: as for `hypergradient`; of the `solver` only `primal_scale` and `step_ratio` are
    used, the latter a hundredfold, since that converges faster on natural patches; `init`, a state
    to go on from; `most`, Newton steps a sample.

    **Returns**: a `Hypergradient`, each sample with its certificate.

    **Cost**: see `Exact`.
    """
    problem, x_tilde, solver, init = prepare(problem, x_tilde, solver, init)
    ratio = _REFERENCE_RATIO_FACTOR * solver.step_ratio
    patient = ChambollePock(step_ratio=ratio, primal_scale=solver.primal_scale)
    # With a start written out and its steps in an array, a first call and one that goes on from
    # there compile as one.
    init = solver.start(problem, x_tilde, init)
    return hypergradient(
        problem,
        x_tilde,
        x_true,
        solver=patient,
        strategy=Exact(jnp.asarray(most, jnp.int32)),
        loss=loss,
        init=init,
    )


def certified_samples(reference: Hypergradient) -> Bool[Array, "*batch"]:
    """Samples whose solution and adjoint are certified, whatever their rank.

    Where the status is NONDIFFERENTIABLE the gradient is that of the minimum-norm dual solution,
    one of several, and no other strategy need agree; `differentiable_samples` leaves those out.
    """
    forward, adjoint = reference.solution.stats.status, reference.adjoint.status
    solved = (forward == Status.CONVERGED) | (forward == Status.NONDIFFERENTIABLE)
    return solved & ((adjoint == Status.CONVERGED) | (adjoint == Status.MINIMUM_NORM))


def differentiable_samples(reference: Hypergradient) -> Bool[Array, "*batch"]:
    """Samples with one gradient, away from every kink: see `diagnostics.are_certified`."""
    return are_certified(reference.solution.stats, reference.adjoint)


def compare(
    problem: LowerLevel,
    x_tilde: Any,
    x_true: Any,
    *,
    solver: ChambollePock | None = None,
    strategies: Sequence[AbstractStrategy],
    loss: Loss = half_mean_squared_error,
    parameters: Callable[[LowerLevel], Any] = lambda p: p.K,
    repeats: int = 5,
    reference: Hypergradient | None = None,
    error_bound: bool = False,
    piece: int | None = None,
) -> Comparison:
    """Every strategy on the same batch: value, gradient, error, time, memory, statuses.

    For each: the loss; the norm of the gradient in `parameters` (K by default); its relative error
    `||grad - ref|| / ||ref||` and cosine against the reference; the median time of a hypergradient
    over interleaved repeats (compilation apart), also over that of the forward solve alone; peak
    memory as the compiled executable states it; the share of each status; products with K. The
    gradients are those of the samples that the reference is certified on, whose share is told: one
    sample with wrong masks can have a gradient larger than all others together, and would stand for
    the error. A second error is that on the samples where the solution map is differentiable.

    **Arguments**: as for `hypergradient`; `reference`, by default `reference_hypergradient` (of a
    given one, the state it ended in is used, and which samples it is certified on);
    `error_bound=True` adds the bound on the error of the gradient in `parameters`, relative to the
    reference (a dash where a sample is not certified), and the share of samples that it certifies;
    `piece`, how many of the samples are looked at at a time: data `(samples, n)` of any size, read
    by rows (see `train`), with the memory of one piece. Everything is then over all samples; times
    are those of all pieces, memory and compilation those of one.

    **Returns**: a `Comparison`. A strategy that fails is a row with its reason.

    **Caveat**: with a `piece` the loss has to be a mean over samples, and the error bound is the
    sum of those of the pieces, which is larger than that of all samples at once.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    >>> comparison = hg.compare(problem, x_true + 0.1, x_true, repeats=1,
    ...                         strategies=[hg.FullUnrolling(), hg.Truncation(k=1)])
    >>> [record["strategy"] for record in comparison.records]
    ['full', 'truncation:k=1']
    """
    check_count("repeats", repeats)
    check_flag("error_bound", error_bound)
    labelled = _distinct_labels(_as_strategies(strategies))
    problem, solver, pieces = _in_pieces(problem, x_tilde, x_true, solver, loss, piece)
    check_learnable("parameters(problem)", parameters(problem))
    judge = _Reference(problem, solver, loss, parameters, reference)
    rows = {label: _Row(strategy, judge) for label, strategy in labelled.items()}
    forward = _Forward(problem, solver)
    for one in pieces:
        judged = judge.look_at(one)
        calls = {"forward": forward.look_at(one)}
        for label, row in rows.items():
            call = row.look_at(one, judged, with_bound=error_bound)
            if call is not None:
                calls[label] = call
        for name, seconds in interleaved_medians(calls, repeats=repeats).items():
            (forward if name == "forward" else rows[name]).seconds += seconds
    records = [row.record(label, forward.seconds) for label, row in rows.items()]
    return Comparison(records, judge.describe(), environment() | _device())


def _as_strategies(strategies: Any) -> list[AbstractStrategy]:
    if not isinstance(strategies, Iterable) or isinstance(strategies, str):
        raise ValueError(
            f"strategies must be a list of strategies; got {describe(strategies)}: put it in "
            "brackets, as in [hg.Truncation(k=1)]"
        )
    strategies = list(strategies)
    if not strategies:
        raise ValueError("strategies must name at least one; got none: try [hg.FullUnrolling()]")
    for strategy in strategies:
        check_is_strategy("each of strategies", strategy)
    return strategies


def _distinct_labels(strategies: Sequence[AbstractStrategy]) -> dict[str, AbstractStrategy]:
    """Strategies by label; one that has the label of an earlier one is numbered."""
    labelled: dict[str, AbstractStrategy] = {}
    for strategy in strategies:
        label, number = strategy.label, 1
        while label in labelled:
            number += 1
            label = f"{strategy.label} #{number}"
        labelled[label] = strategy
    return labelled


def one_hypergradient(
    problem, x_tilde, x_true, solver, strategy, loss=half_mean_squared_error
) -> Hypergradient:
    """`hypergradient` with its arguments by position, as what is compiled ahead takes them."""
    return hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy, loss=loss)


def solve_without_strategy(problem: LowerLevel, x_tilde: Array, solver: ChambollePock) -> Solution:
    """The forward solve with its certificate, and nothing kept for a backward pass."""
    sizes = solver.step_sizes(problem)
    start = solver.start(problem, x_tilde)
    state, taken = solver.approach(problem, x_tilde, sizes, start, keep=0)
    return solver.solution(problem, x_tilde, sizes, state, taken)


def reason_of(error: Exception) -> str:
    """What failed, in one line: a failure is a row of a table."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first_line}"


# ---------------------------------------------------------------------------- piece by piece


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Some of the samples, or all: to one size the last piece is filled up with copies of its end.

    `start`, the number of its first sample; `real`, those that are no copies; `share`, of all
    samples, and `scale`, what a mean over the piece counts for in the mean over all.
    """

    x_tilde: Array
    x_true: Array
    start: int
    real: np.ndarray
    share: float
    scale: float

    def of_real(self, values: Any) -> np.ndarray:
        """One entry for each sample that is no copy."""
        return np.asarray(values)[self.real]

    def part_of(self, tree: Any) -> Any:
        """These samples of a pytree with an entry for each of all of them."""
        if self.share == 1:
            return tree
        size, count = len(self.real), int(self.real.sum())

        def part(a: Array) -> Array:
            edges = [(0, size - count)] + [(0, 0)] * (a.ndim - 1)
            return jnp.pad(a[self.start : self.start + count], edges, mode="edge")

        return jax.tree.map(part, tree)

    def mean_loss(self, h: Hypergradient, loss: Loss) -> float:
        """The mean over the samples that are no copies."""
        if self.real.all():
            return float(h.value)
        return float(loss(h.solution.x[self.real], self.x_true[self.real]))


def _in_pieces(
    problem: LowerLevel, x_tilde: Any, x_true: Any, solver: Any, loss: Loss, piece: int | None
) -> tuple[LowerLevel, ChambollePock, Iterator[_Piece]]:
    """The arguments checked and cast; the samples as they are, or `piece` at a time."""
    if piece is None:
        problem, x_tilde, solver, _ = prepare(problem, x_tilde, solver, None)
        x_true = prepare_truth(x_true, x_tilde, loss)
        real = np.ones(x_tilde.shape[:-1], bool)
        return problem, solver, iter([_Piece(x_tilde, x_true, 0, real, 1.0, 1.0)])
    check_count("piece", piece)
    check_problem(problem)
    x_tilde, x_true = rows_of(x_tilde, "x_tilde"), rows_of(x_true, "x_true")
    check_samples(x_tilde.shape, problem.n)
    check_truth_shape(x_true.shape, x_tilde.shape)
    for name, rows in {"x_tilde": x_tilde, "x_true": x_true}.items():
        rows.check_finite(name)
    problem, first, solver, _ = prepare(problem, x_tilde[:1], solver, None)
    check_loss(loss, first)
    x_tilde, x_true = x_tilde.astype(first.dtype), x_true.astype(first.dtype)
    return problem, solver, _pieces_of(x_tilde, x_true, min(piece, len(x_tilde)))


def _pieces_of(x_tilde: Rows, x_true: Rows, size: int) -> Iterator[_Piece]:
    total = len(x_tilde)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        count = rows.stop - start
        observed, truth = (
            jnp.asarray(np.pad(part[rows], ((0, size - count), (0, 0)), mode="edge"))
            for part in (x_tilde, x_true)
        )
        yield _Piece(observed, truth, start, np.arange(size) < count, count / total, size / total)


class _Judged(NamedTuple):
    """What the reference says of a piece: losses of the samples that count, and its gradients."""

    on_all: OnSamples
    on_some: dict[str, OnSamples]


class _Reference:
    """The yardstick over all pieces: its gradients summed up, and how good they are."""

    def __init__(
        self,
        problem: LowerLevel,
        solver: ChambollePock,
        loss: Loss,
        parameters: Callable[[LowerLevel], Any],
        given: Hypergradient | None,
    ):
        self.problem, self.solver, self.loss, self.given = problem, solver, loss, given
        self.parameters = parameters
        self.gradients: dict[str, Any] = dict.fromkeys(("certified", "differentiable"), 0.0)
        self.shares = dict.fromkeys(self.gradients, 0.0)
        self.stats: list[dict[str, np.ndarray]] = []

    def gradient(self, h: Hypergradient) -> Array:
        return flat(self.parameters(h.grad))

    def look_at(self, piece: _Piece) -> _Judged:
        refer = functools.partial(
            reference_hypergradient, self.problem, piece.x_tilde, piece.x_true, solver=self.solver
        )
        on_all = OnSamples(self.loss, jnp.asarray(piece.real))
        found = refer(loss=on_all) if self.given is None else self.given
        about = (found.state, found.solution.stats, found.adjoint, _chosen(found))
        if self.given is not None:
            about = piece.part_of(about)
        state, forward, adjoint, chosen = about
        self.stats.append(jax.tree.map(piece.of_real, _statistics(forward, adjoint)))
        on_some = {name: OnSamples(self.loss, some & piece.real) for name, some in chosen.items()}
        for name, on in on_some.items():
            # What is certified stays where it is: no steps for what was given up.
            exact = self.gradient(refer(loss=on, init=state, most=1))
            self.gradients[name] += piece.scale * exact
            self.shares[name] += piece.share * float(np.mean(piece.of_real(chosen[name])))
        return _Judged(on_all, on_some)

    def describe(self) -> dict[str, Any]:
        stats = _over_all(self.stats)
        return {
            "how": "Exact (semismooth Newton, minimum norm)",
            "status": Status.summary(stats["forward_status"]),
            "residual": float(np.max(stats["forward_residual"])),
            "iterations": int(np.max(stats["iterations"])),
            "adjoint_status": Status.summary(stats["adjoint_status"]),
            "adjoint_residual": float(np.max(stats["adjoint_residual"])),
            **self.shares,
        }


def _chosen(reference: Hypergradient) -> dict[str, Array]:
    return {
        "certified": certified_samples(reference),
        "differentiable": differentiable_samples(reference),
    }


def _statistics(forward: SolverStats, adjoint: AdjointStats) -> dict[str, Array]:
    return {
        "iterations": forward.iterations,
        "forward_status": forward.status,
        "forward_residual": forward.residual,
        "adjoint_status": adjoint.status,
        "adjoint_residual": adjoint.residual,
        "products": forward.products + adjoint.products,
    }


def _over_all(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Forward:
    """The forward solve alone: what a hypergradient's time is held against."""

    def __init__(self, problem: LowerLevel, solver: ChambollePock):
        self.problem, self.solver, self.seconds = problem, solver, 0.0
        self.compiled: Compiled | None = None

    def look_at(self, piece: _Piece) -> Callable[[], Any]:
        arguments = (self.problem, piece.x_tilde, self.solver)
        self.compiled = self.compiled or compile_ahead(solve_without_strategy, *arguments)
        return functools.partial(self.compiled, *arguments)


class _Row:
    """One strategy over all pieces."""

    def __init__(self, strategy: AbstractStrategy, judge: _Reference):
        self.strategy, self.judge, self.seconds = strategy, judge, 0.0
        self.compiled: Compiled | None = None
        self.error: str | None = None
        self.loss, self.bound, self.certified = 0.0, None, 0.0
        self.gradients: dict[str, Any] = dict.fromkeys(judge.gradients, 0.0)
        self.stats: list[dict[str, np.ndarray]] = []

    def look_at(
        self, piece: _Piece, judged: _Judged, *, with_bound: bool
    ) -> Callable[[], Any] | None:
        """Take a piece in; what is to be timed, or None where the strategy has failed."""
        if self.error is not None:
            return None
        try:
            return self._take_in(piece, judged, with_bound=with_bound)
        except Exception as error:  # one that fails is a row with its reason, not the end of all
            self.error = reason_of(error)
            return None

    def _take_in(self, piece: _Piece, judged: _Judged, *, with_bound: bool) -> Callable[[], Any]:
        judge = self.judge
        arguments = (judge.problem, piece.x_tilde, piece.x_true, judge.solver, self.strategy)
        if self.compiled is None:
            self.compiled = compile_ahead(one_hypergradient, *arguments, judged.on_all)
        call = functools.partial(self.compiled, *arguments, judged.on_all)
        h = call()
        self.loss += piece.share * piece.mean_loss(h, judge.loss)
        self.stats.append(jax.tree.map(piece.of_real, _statistics(h.solution.stats, h.adjoint)))
        for name, on_some in judged.on_some.items():
            found = judge.gradient(self.compiled(*arguments, on_some))
            self.gradients[name] += piece.scale * found
        if with_bound:
            self._take_in_bound(piece)
        return call

    def _take_in_bound(self, piece: _Piece) -> None:
        """The bound on the error of all samples' gradient, and on how many of them it stands."""
        judge = self.judge
        x_tilde, x_true = piece.x_tilde, piece.x_true
        if not piece.real.all():
            x_tilde, x_true = x_tilde[piece.real], x_true[piece.real]
        bound = hypergradient(
            judge.problem, x_tilde, x_true,
            solver=judge.solver, strategy=self.strategy, loss=judge.loss, error_bound=True,
        ).error_bound  # fmt: skip
        assert bound is not None
        part = piece.share * flat(judge.parameters(bound.grad))
        self.bound = part if self.bound is None else self.bound + part
        held = np.asarray(bound.certified) != Regime.NEITHER
        self.certified += piece.share * float(np.mean(held))

    def record(self, label: str, forward_seconds: float) -> dict[str, Any]:
        if self.error is not None:
            return {"strategy": label, "error": self.error}
        assert self.compiled is not None
        stats, peak = _over_all(self.stats), self.compiled.peak_bytes
        record = {
            "strategy": label,
            "loss": self.loss,
            "compile_seconds": self.compiled.compile_seconds,
            "peak_megabytes": None if peak is None else peak / 1e6,
            "forward_status": Status.summary(stats["forward_status"]),
            "forward_residual": float(np.max(stats["forward_residual"])),
            "adjoint_status": Status.summary(stats["adjoint_status"]),
            "adjoint_residual": float(np.max(stats["adjoint_residual"])),
            "products": float(np.mean(stats["products"])),
            **_errors(self.gradients, self.judge.gradients),
        }
        if self.bound is not None:
            size = jnp.linalg.norm(self.judge.gradients["certified"])
            record["error_bound"] = _number(jnp.linalg.norm(self.bound) / size)
            record["certified"] = self.certified
        record["milliseconds"] = 1e3 * self.seconds
        record["over_forward"] = self.seconds / forward_seconds
        return record


def _errors(found: dict[str, Array], exact: dict[str, Array]) -> dict[str, Any]:
    """What tells a gradient from the reference, on the samples where there is one."""

    def relative_error(samples: str) -> float | None:
        # With no such sample there is nothing to be held against: a dash in the table.
        size = jnp.linalg.norm(exact[samples])
        return _number(jnp.linalg.norm(found[samples] - exact[samples]) / size)

    gradient, reference = found["certified"], exact["certified"]
    norm = jnp.linalg.norm(gradient)
    return {
        "gradient_norm": float(norm),
        "relative_error": relative_error("certified"),
        "cosine": _number(gradient @ reference / (norm * jnp.linalg.norm(reference))),
        "relative_error_differentiable": relative_error("differentiable"),
    }


def _number(value: Array) -> float | None:
    """A JSON number; None where it is not finite."""
    return float(value) if jnp.isfinite(value) else None


def _device() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": str(jnp.zeros(()).dtype),
    }
