"""One strategy over all pieces, and the forward solve that its time is held against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.status import Status
from hypergrad._foundation.timing import Compiled, compile_ahead
from hypergrad.bilevel import Hypergradient, Loss, half_mean_squared_error, hypergradient
from hypergrad.bilevel.error_bound import Regime
from hypergrad.chambolle_pock import ChambollePock, Solution
from hypergrad.comparison.pieces import Piece
from hypergrad.comparison.reference import Judged, Reference, over_all, statistics_of
from hypergrad.diagnostics._gradients import flat
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy

__all__ = ["Forward", "Row", "one_hypergradient", "reason_of", "solve_without_strategy"]


def one_hypergradient(
    problem: LowerLevel,
    x_tilde: Array,
    x_true: Array,
    solver: ChambollePock,
    strategy: AbstractStrategy,
    loss: Loss = half_mean_squared_error,
    parameters: Callable[[LowerLevel], Any] | None = None,
) -> Hypergradient:
    """`hypergradient` with its arguments by position, as what is compiled ahead takes them."""
    return hypergradient(
        problem, x_tilde, x_true,
        solver=solver, strategy=strategy, loss=loss, parameters=parameters,
    )  # fmt: skip


def solve_without_strategy(problem: LowerLevel, x_tilde: Array, solver: ChambollePock) -> Solution:
    """Return the solution with its certificate, and nothing saved for a backward pass."""
    return solver.on(problem, x_tilde).solve()


def reason_of(error: Exception) -> str:
    """What failed, in one line: a failure is a row of a table."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first_line}"


class Forward:
    """The forward solve alone: what a hypergradient's time is held against."""

    def __init__(self, problem: LowerLevel, solver: ChambollePock):
        self.problem, self.solver, self.seconds = problem, solver, 0.0
        self.compiled: Compiled | None = None

    def look_at(self, piece: Piece) -> Callable[[], Any]:
        arguments = (self.problem, piece.x_tilde, self.solver)
        self.compiled = self.compiled or compile_ahead(solve_without_strategy, *arguments)
        return functools.partial(self.compiled, *arguments)


class Row:
    """One strategy over all pieces."""

    def __init__(self, label: str, strategy: AbstractStrategy, judge: Reference):
        self.label, self.strategy, self.judge, self.seconds = label, strategy, judge, 0.0
        self.compiled: Compiled | None = None
        self.error: str | None = None
        self.loss, self.bound, self.certified = 0.0, None, 0.0
        self.gradients: dict[str, Any] = dict.fromkeys(judge.gradients, 0.0)
        self.stats: list[dict[str, Any]] = []

    def look_at(
        self, piece: Piece, judged: Judged, *, with_bound: bool
    ) -> Callable[[], Any] | None:
        """Take a piece in; what is to be timed, or None where the strategy has failed."""
        if self.error is not None:
            return None
        try:
            return self._take_in(piece, judged, with_bound=with_bound)
        except Exception as error:  # one that fails is a row with its reason, not the end of all
            self.error = reason_of(error)
            return None

    def _take_in(self, piece: Piece, judged: Judged, *, with_bound: bool) -> Callable[[], Any]:
        judge = self.judge
        arguments = (judge.problem, piece.x_tilde, piece.x_true, judge.solver, self.strategy)
        on_all = (*arguments, judged.on_all, judge.parameters)
        if self.compiled is None:
            self.compiled = compile_ahead(one_hypergradient, *on_all)
        call = functools.partial(self.compiled, *on_all)
        h = call()
        self.loss += piece.share * piece.mean_loss(h, judge.loss)
        self.stats.append(jax.tree.map(piece.of_real, statistics_of(h.solution.stats, h.adjoint)))
        for name, on_some in judged.on_some.items():
            found = judge.gradient(self.compiled(*arguments, on_some, judge.parameters))
            self.gradients[name] += piece.scale * found
        if with_bound:
            self._take_in_bound(piece)
        return call

    def _take_in_bound(self, piece: Piece) -> None:
        """The bound on the error of all samples' gradient, and on how many of them it stands."""
        judge = self.judge
        x_tilde, x_true = piece.x_tilde, piece.x_true
        if not piece.real.all():
            x_tilde, x_true = x_tilde[piece.real], x_true[piece.real]
        bound = hypergradient(
            judge.problem, x_tilde, x_true,
            solver=judge.solver, strategy=self.strategy, loss=judge.loss,
            parameters=judge.parameters, error_bound=True,
        ).error_bound  # fmt: skip
        assert bound is not None
        part = piece.share * flat(judge.parameters(bound.grad))
        self.bound = part if self.bound is None else self.bound + part
        held = np.asarray(bound.certified) != Regime.NEITHER
        self.certified += piece.share * float(np.mean(held))

    def record(self, forward_seconds: float) -> dict[str, Any]:
        if self.error is not None:
            return {"strategy": self.label, "error": self.error}
        assert self.compiled is not None
        stats, peak = over_all(self.stats), self.compiled.peak_bytes
        record = {
            "strategy": self.label,
            "loss": self.loss,
            "compile_seconds": self.compiled.compile_seconds,
            "peak_megabytes": None if peak is None else peak / 1e6,
            "forward_status": Status.summary(stats["forward_status"]),
            "forward_residual": _number(jnp.max(stats["forward_residual"])),
            "adjoint_status": Status.summary(stats["adjoint_status"]),
            "adjoint_residual": _number(jnp.max(stats["adjoint_residual"])),
            "products": None if stats["products"] is None else float(np.mean(stats["products"])),
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
