"""The distribution of the error of a strategy over the samples."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.printing import as_sentence, worst
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.samples import float_vector, magnitude
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats, Cotangent
from hypergrad.bilevel.arguments import (
    Data,
    Loss,
    check_compatible,
    flatten_batch,
    half_mean_squared_error,
    prepare,
    prepare_hypergradient,
    restore_batch,
)
from hypergrad.chambolle_pock import ChambollePock, SolverStats
from hypergrad.diagnostics._gradients import (
    Factors,
    check_learnable,
    form_norm,
    layer_factors,
    loss_gradient,
)
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.operators import Operator, bilinear_gradient, matrix_of
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.strategies.limit import LimitFormula

__all__ = ["SampleErrors", "are_certified", "per_sample_errors"]

# Nearer to a kink than this (relative to its size if it has one), rounding may decide the side.
_LEAST_MARGIN = 1e-6


def are_certified(stats: SolverStats, adjoint: AdjointStats) -> Bool[Array, "*batch"]:
    """Samples on which both solves converged, away from every kink: where a gradient is trusted.

    **Caveat**: where active rows of K are dependent, the dual solution and with it the gradient
    depend on the start and the step sizes, by a few per cent; that is not detected here.
    """
    converged = (stats.status == Status.CONVERGED) & (adjoint.status == Status.CONVERGED)
    # An unknown margin (NaN) does not count against a sample.
    return converged & ~(stats.margin < _LEAST_MARGIN)


class SampleErrors(eqx.Module):
    """The gradient of each sample in K compared with that of a reference.

    `cosine`, `relative_error` and `certified`, `(...)`: the last says where the reference can be
    trusted. A cosine is NaN where one of the two gradients is 0.

    Printing it gives quantiles over the certified samples.
    """

    cosine: Float[Array, "*batch"]
    relative_error: Float[Array, "*batch"]
    certified: Bool[Array, "*batch"]

    def quantiles(
        self, levels: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9, 1.0)
    ) -> dict[str, list[Any]]:
        """Quantiles over the certified samples; None where there are none.

        The errors are sorted upwards and the cosines downwards, so that the worst is last in both.
        """

        def upwards(values: Array | np.ndarray) -> list[float] | list[None]:
            kept = np.asarray(values)[np.asarray(self.certified, bool)]
            kept = np.sort(kept[~np.isnan(kept)])
            if not kept.size:
                return [None] * len(levels)
            # No interpolation: an error may be infinite.
            return kept[np.ceil(np.array(levels) * (kept.size - 1)).astype(int)].tolist()

        cosine = [None if c is None else -c for c in upwards(-self.cosine)]
        return {"cosine": cosine, "relative_error": upwards(self.relative_error)}

    def table(self) -> str:
        """The quantiles as a Markdown table."""
        columns = {"name": "samples", "cosine": "cosine", "relative_error": "relative error"}
        names = ("best", "10 %", "median", "90 %", "worst")
        rows = zip(names, *self.quantiles().values(), strict=True)
        return markdown_table([dict(zip(columns, row, strict=True)) for row in rows], columns)

    @as_sentence
    def __repr__(self) -> str:
        share = worst(self.certified, ".3g", of=lambda certified: 100 * np.mean(certified))
        return (
            f"SampleErrors of {np.size(self.certified)} samples, {share} % certified\n"
            f"{self.table()}"
        )


def per_sample_errors(
    problem: LowerLevel,
    x_tilde: Data,
    x_true: Data,
    *,
    solver: ChambollePock | None = None,
    strategy: AbstractStrategy,
    reference: AbstractStrategy | None = None,
    reference_solver: ChambollePock | None = None,
    loss: Loss = half_mean_squared_error,
    piece: int = 16,
) -> SampleErrors:
    """Return cosine and relative error of the gradient in K for each sample.

    The gradient of a batch can hide a few samples that are completely wrong, and errors that
    cancel. The gradient of sample i is the part of the batch's gradient that goes through it.

    **Arguments**: as for `hypergradient`; `reference`, by default `LimitFormula()`, and
    `reference_solver`, by default the `solver`: give one that converges. `piece`, how many samples
    at a time have their gradient written out, where that is needed.

    **Returns**: a `SampleErrors`; printed, a table of quantiles.

    **Errors**: as for `hypergradient`; a `ValueError` for an operator without parameters.

    **Cost**: both hypergradients once. Where both strategies give `Delta` (the limit formula does)
    and K is a matrix, the rest is algebra with matrices of rank 4 that are not written out:
    `8 (m + n)` numbers per sample. Otherwise each sample of a strategy that does not is solved and
    pulled back once more by itself (`jax.lax.map` over pieces), without the gain of a batch, and
    `2 piece m n` numbers are kept.

    **Caveat**: the reference counts as the truth where it is `certified`, and only there.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> x_true = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    >>> errors = hg.per_sample_errors(problem, x_true + 0.1, x_true, strategy=hg.Truncation(k=1),
    ...                               solver=hg.ChambollePock(iterations=300))
    >>> errors.cosine.shape, bool(jnp.all(errors.relative_error > 0.1))
    ((2,), True)
    """
    check_count("piece", piece)
    reference = LimitFormula() if reference is None else reference
    reference_solver = solver if reference_solver is None else reference_solver
    _, _, reference_solver, _ = prepare(problem, x_tilde, reference_solver, None)
    check_compatible(reference, reference_solver)
    problem, x_tilde, x_true, solver, _ = prepare_hypergradient(
        problem, x_tilde, x_true, solver, strategy, loss, None
    )
    check_learnable("K", problem.K)
    methods = (strategy, solver), (reference, reference_solver)
    return _per_sample_errors(problem, x_tilde, x_true, methods, loss, piece)


@compiled
def _per_sample_errors(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    methods: tuple[tuple[AbstractStrategy, ChambollePock], ...],
    loss: Loss,
    piece: int,
) -> SampleErrors:
    batch = x_tilde.shape[:-1]
    rows = flatten_batch(x_tilde, batch)
    ours, exact = (_SampleGradients.of(problem, rows, x_true, *method, loss) for method in methods)
    if matrix_of(problem.K) is not None and ours.factors and exact.factors:
        products = _compare_factors(problem.K, ours.factors, exact.factors)
    else:
        products = jax.lax.map(
            lambda i: _compare_vectors(ours.written_out(problem, i), exact.written_out(problem, i)),
            jnp.arange(len(rows)),
            batch_size=min(piece, len(rows)),
        )
    inner, norm, exact_norm, difference = products
    # 0 where nothing is missing, infinite where there is nothing to compare with.
    error = jnp.where(difference == 0, 0.0, difference / exact_norm)
    certified = are_certified(exact.stats, exact.adjoint)
    return restore_batch(SampleErrors(inner / (norm * exact_norm), error, certified), batch)


class _SampleGradients(eqx.Module):
    """The parts of one strategy that give the gradient in K of each sample.

    `factors` holds them if the strategy gives `Delta`; `stats` and `adjoint` describe the solves.
    """

    strategy: AbstractStrategy
    solver: ChambollePock
    x_tilde: Float[Array, "batch n"]
    g: Float[Array, "batch n"]
    factors: Factors | None
    stats: SolverStats
    adjoint: AdjointStats

    @classmethod
    def of(
        cls,
        problem: LowerLevel,
        rows: Array,
        x_true: Array,
        strategy: AbstractStrategy,
        solver: ChambollePock,
        loss: Loss,
    ) -> _SampleGradients:
        """Compute one hypergradient of the whole batch."""
        solution, saved = strategy.forward(problem, rows, solver, None)
        g = loss_gradient(loss, solution, x_true)
        gradients = strategy.pullback(saved, g)
        factors = None
        if gradients.adjoint is not None:
            sizes = solver.step_sizes(problem)
            factors = layer_factors(sizes, gradients.adjoint, solution.x, solution.y)
        return cls(strategy, solver, rows, g.x, factors, solution.stats, gradients.stats)

    def written_out(self, problem: LowerLevel, i: Array) -> Array:
        """Return the gradient of sample i in K as one vector."""
        if self.factors is not None:
            pairs = jax.tree.map(lambda side: side[i], self.factors)
            return float_vector(bilinear_gradient(problem.K, *pairs))
        x_tilde, g = self.x_tilde[i][None], self.g[i][None]
        solution, saved = self.strategy.forward(problem, x_tilde, self.solver, None)
        cotangent = Cotangent(g, jnp.zeros_like(solution.y))
        return float_vector(self.strategy.pullback(saved, cotangent).problem.K)


def _compare_vectors(ours: Array, exact: Array) -> tuple[Array, ...]:
    """Return inner product, both norms and that of the difference, of one sample, rescaled."""
    unit = magnitude(ours, exact)
    ours, exact = ours / unit, exact / unit
    norms = (jnp.linalg.norm(v) for v in (ours, exact, ours - exact))
    return ours @ exact, *norms


def _of_unit_size(ours: Factors, exact: Factors) -> tuple[Factors, Factors]:
    """Divide both by one power of two per sample, so that squares neither under- nor overflow."""
    lefts, rights = zip(*ours, *exact, strict=True)
    unit_left, unit_right = magnitude(*lefts)[..., None], magnitude(*rights)[..., None]

    def divided(factors: Factors) -> Factors:
        return tuple((left / unit_left, right / unit_right) for left, right in factors)

    return divided(ours), divided(exact)


def _compare_factors(K: Operator, ours: Factors, exact: Factors) -> tuple[Array, ...]:
    """Compare the gradients of a batch, from their factors alone."""
    ours, exact = _of_unit_size(ours, exact)
    inner = sum(
        jnp.sum(left * other_left, axis=-1) * jnp.sum(right * other_right, axis=-1)
        for left, right in ours
        for other_left, other_right in exact
    )
    difference = *ours, *((-left, right) for left, right in exact)
    return jnp.asarray(inner), *(form_norm(K, f) for f in (ours, exact, difference))
