"""Strategies side by side on one batch: one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypergrad._checks import check_count, check_flag, describe
from hypergrad.bilevel import Hypergradient, Loss, half_mean_squared_error
from hypergrad.bilevel.arguments import check_is_strategy
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison.pieces import in_pieces
from hypergrad.comparison.reference import Reference
from hypergrad.comparison.result import Comparison
from hypergrad.comparison.rows import Forward, Row
from hypergrad.devices import device_name
from hypergrad.diagnostics._gradients import check_learnable
from hypergrad.lower_level import LowerLevel
from hypergrad.records import environment
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.timing import interleaved_medians

__all__ = ["compare"]


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
    problem, solver, pieces = in_pieces(problem, x_tilde, x_true, solver, loss, piece)
    check_learnable("parameters(problem)", parameters(problem))
    judge = Reference(problem, solver, loss, parameters, reference)
    rows = {label: Row(strategy, judge) for label, strategy in labelled.items()}
    forward = Forward(problem, solver)
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
    about = environment() | {"device": device_name(), "dtype": str(problem.dtype)}
    return Comparison(records, judge.describe(), about)


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
