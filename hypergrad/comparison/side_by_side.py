"""Strategies side by side on one batch: one record each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from hypergrad._foundation.checks import check_count, check_flag, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import environment
from hypergrad._foundation.timing import Compiled, compile_ahead, interleaved_medians
from hypergrad.bilevel import Hypergradient, Loss, half_mean_squared_error
from hypergrad.bilevel.arguments import check_is_strategy
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison.chunks import Chunk, Sums, add, in_chunks
from hypergrad.comparison.reference import Task, describe_reference, targets_of
from hypergrad.comparison.result import Comparison
from hypergrad.comparison.rows import (
    failure_of,
    record_of,
    row_on_chunk,
    solve_without_strategy,
)
from hypergrad.learning.devices import device_name
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["compare", "distinct_labels"]


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
    """Compare strategies on one batch: value, gradient, error, time, memory, statuses.

    For each: the loss; the norm of the gradient in `parameters`; its relative error
    `||grad - ref|| / ||ref||` and cosine against the reference; the median time of a hypergradient
    over interleaved repeats (compilation apart), also over that of the forward solve alone; peak
    memory as the compiled executable states it; the share of each status; products with K. The
    gradients are those of the samples that the reference is certified on, whose share is reported:
    one sample with wrong masks can have a gradient larger than all others together, and would
    dominate the error. A second error is that on the samples where the solution map is
    differentiable.

    **Arguments**: as for `hypergradient`; `parameters`, the parts of the problem that the gradient
    is taken in and compared in (`K` by default; what it costs is that of these alone); `reference`,
    by default `reference_hypergradient` (of a
    given one, the state it ended in is used, and which samples it is certified on);
    `error_bound=True` adds the bound on the error of the gradient of all samples in `parameters`,
    relative to the reference (a dash where the bound certifies not every sample), and the share of
    samples that it certifies;
    `piece`, the number of samples at a time: data `(samples, n)` of any size, read
    by rows (see `train`), with the memory of one piece. Everything is then over all samples; times
    are those of all pieces, memory and compilation those of one.

    **Returns**: a `Comparison`. A strategy that fails is a row with its reason; two of one label
    are two rows, numbered. What a strategy does not report (its products with K, its adjoint
    residual) is None, a dash in the table.

    **Warnings**: as for `hypergradient`, before a strategy runs.

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
    labelled = distinct_labels(_as_strategies(strategies))
    problem, solver, chunks = in_chunks(problem, x_tilde, x_true, solver, loss, piece)
    select_leaves(problem, parameters, "parameters")
    task = Task(problem, solver, loss, parameters)
    records, exact = _records(
        task, labelled, chunks, reference, repeats=repeats, with_bound=error_bound
    )
    about = environment() | {"device": device_name(), "dtype": str(problem.dtype)}
    return Comparison(records, describe_reference(exact), about)


def _records(
    task: Task,
    labelled: Mapping[str, AbstractStrategy],
    chunks: Iterable[Chunk],
    reference: Hypergradient | None,
    *,
    repeats: int,
    with_bound: bool,
) -> tuple[list[dict[str, Any]], Sums]:
    """Return a record per strategy, and the sums of the reference.

    Each program is compiled for the first chunk. A strategy that fails is skipped from then on.
    """
    exact: list[Sums] = []
    rows: dict[str, list[Sums]] = {label: [] for label in labelled}
    programs: dict[str, Compiled] = {}
    failures: dict[str, str] = {}
    # A strategy may have any label, so the forward solve has None.
    seconds: dict[str | None, float] = dict.fromkeys([None, *labelled], 0.0)
    forward: Compiled | None = None
    for chunk in chunks:
        targets = targets_of(task, chunk, reference)
        exact.append(targets.sums)
        arguments = (task.problem, chunk.x_tilde, task.solver)
        forward = forward or compile_ahead(solve_without_strategy, *arguments)
        calls: dict[str | None, Callable[[], Any]] = {None: functools.partial(forward, *arguments)}
        for label, strategy in labelled.items():
            if label in failures:
                continue
            try:
                row = row_on_chunk(
                    task, strategy, chunk, targets, programs.get(label), with_bound=with_bound
                )
            except Exception as error:  # one that fails must not end the comparison
                failures[label] = failure_of(error)
                continue
            rows[label].append(row.sums)
            programs[label], calls[label] = row.program, row.call
        for label, median in interleaved_medians(calls, repeats=repeats).items():
            seconds[label] += median
    total = add(exact)

    def record(label: str) -> dict[str, Any]:
        if label in failures:
            return {"strategy": label, "error": failures[label]}
        times = {
            "milliseconds": 1e3 * seconds[label],
            "over_forward": seconds[label] / seconds[None],
        }
        return record_of(label, programs[label], add(rows[label]), total) | times

    return [record(label) for label in labelled], total


def _as_strategies(strategies: Any) -> list[AbstractStrategy]:
    if not isinstance(strategies, Iterable) or isinstance(strategies, str):
        raise HypergradError(
            f"strategies must be a list of strategies; got {describe(strategies)}: put it in "
            "brackets, as in [hg.Truncation(k=1)]"
        )
    strategies = list(strategies)
    if not strategies:
        raise HypergradError(
            "strategies must name at least one; got none: try [hg.FullUnrolling()]"
        )
    for strategy in strategies:
        check_is_strategy("each of strategies", strategy)
    return strategies


def distinct_labels(
    strategies: Sequence[AbstractStrategy], *, taken: Container[str] = ()
) -> dict[str, AbstractStrategy]:
    """Return strategies by label; a label that is taken or repeated gets a number.

    >>> from hypergrad import Truncation
    >>> list(distinct_labels([Truncation(1), Truncation(2), Truncation(1)]))
    ['truncation:k=1', 'truncation:k=2', 'truncation:k=1 #2']
    """
    labelled: dict[str, AbstractStrategy] = {}
    for strategy in strategies:
        label, number = strategy.label, 1
        while label in labelled or label in taken:
            number += 1
            label = f"{strategy.label} #{number}"
        labelled[label] = strategy
    return labelled
