"""Strategies side by side on one batch: one record each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from hypergrad._checks import check_count, check_flag, describe
from hypergrad.bilevel import (
    Hypergradient,
    Loss,
    OnSamples,
    half_mean_squared_error,
    hypergradient,
)
from hypergrad.bilevel.arguments import check_is_strategy, prepare, prepare_truth
from hypergrad.chambolle_pock import ChambollePock, Solution, State
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
    # With a start written out, a first call and one that goes on from there compile as one.
    init = solver.start(problem, x_tilde, init)
    return hypergradient(
        problem,
        x_tilde,
        x_true,
        solver=patient,
        strategy=Exact(most),
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
    reference (a dash where a sample is not certified), and the share of samples that it certifies.

    **Returns**: a `Comparison`. A strategy that fails is a row with its reason.

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
    strategies = _as_strategies(strategies)
    problem, x_tilde, solver, _ = prepare(problem, x_tilde, solver, None)
    x_true = prepare_truth(x_true, x_tilde, loss)
    check_learnable("parameters(problem)", parameters(problem))
    on_all = OnSamples(loss, jnp.ones(x_tilde.shape[:-1], bool))
    refer = functools.partial(reference_hypergradient, problem, x_tilde, x_true, solver=solver)
    reference = refer(loss=on_all) if reference is None else reference
    chosen = {
        "certified": certified_samples(reference),
        "differentiable": differentiable_samples(reference),
    }
    losses = {name: OnSamples(loss, samples) for name, samples in chosen.items()}

    def gradient(h: Hypergradient) -> Array:
        return flat(parameters(h.grad))

    # What is certified stays where it is: no steps for what was given up.
    exact = {
        name: gradient(refer(loss=on_some, init=reference.state, most=1))
        for name, on_some in losses.items()
    }

    records: list[dict[str, Any]] = []
    compiled = {"forward": compile_ahead(solve_without_strategy, problem, x_tilde, solver)}
    for label, strategy in _distinct_labels(strategies).items():
        try:
            arguments = (problem, x_tilde, x_true, solver, strategy)
            one = compile_ahead(one_hypergradient, *arguments, on_all)
            h = one.call()
            found = {name: gradient(one(*arguments, on_some)) for name, on_some in losses.items()}
        except Exception as error:  # one that fails is a row with its reason, not the end of all
            records.append({"strategy": label, "error": reason_of(error)})
            continue
        record = _record(label, h, one) | _errors(found, exact)
        if error_bound:
            record |= _bound(*arguments, loss, parameters, jnp.linalg.norm(exact["certified"]))
        records.append(record)
        compiled[label] = one

    seconds = interleaved_medians(
        {name: one.call for name, one in compiled.items()}, repeats=repeats
    )
    for record in records:
        if record["strategy"] in seconds:
            time = seconds[record["strategy"]]
            record["milliseconds"] = 1e3 * time
            record["over_forward"] = time / seconds["forward"]
    shares = {name: float(jnp.mean(samples.astype(float))) for name, samples in chosen.items()}
    about = _describe_reference(reference) | shares
    return Comparison(records, about, environment() | _device())


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


def _record(label: str, h: Hypergradient, compiled: Compiled) -> dict[str, Any]:
    stats, peak = h.solution.stats, compiled.peak_bytes
    return {
        "strategy": label,
        "loss": float(h.value),
        "compile_seconds": compiled.compile_seconds,
        "peak_megabytes": None if peak is None else peak / 1e6,
        "forward_status": Status.summary(stats.status),
        "forward_residual": float(jnp.max(stats.residual)),
        "adjoint_status": Status.summary(h.adjoint.status),
        "adjoint_residual": float(jnp.max(h.adjoint.residual)),
        "products": float(jnp.mean((stats.products + h.adjoint.products).astype(float))),
    }


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


def _bound(
    problem, x_tilde, x_true, solver, strategy, loss, parameters, size: Array
) -> dict[str, Any]:
    """The bound on the error of the whole batch's gradient, and on how much of it that stands."""
    bound = hypergradient(
        problem, x_tilde, x_true, solver=solver, strategy=strategy, loss=loss, error_bound=True
    ).error_bound
    assert bound is not None
    return {
        "error_bound": _number(jnp.linalg.norm(flat(parameters(bound.grad))) / size),
        "certified": float(jnp.mean((bound.certified != Regime.NEITHER).astype(float))),
    }


def _number(value: Array) -> float | None:
    """A JSON number; None where it is not finite."""
    return float(value) if jnp.isfinite(value) else None


def _describe_reference(reference: Hypergradient) -> dict[str, Any]:
    stats = reference.solution.stats
    return {
        "how": "Exact (semismooth Newton, minimum norm)",
        "status": Status.summary(stats.status),
        "residual": float(jnp.max(stats.residual)),
        "iterations": int(jnp.max(stats.iterations)),
        "adjoint_status": Status.summary(reference.adjoint.status),
        "adjoint_residual": float(jnp.max(reference.adjoint.residual)),
    }


def _device() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": str(jnp.zeros(()).dtype),
    }
