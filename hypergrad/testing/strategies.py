"""Check a strategy against `Exact` on a small problem."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.checks import describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats, Cotangent, Gradients
from hypergrad.bilevel import Hypergradient, half_mean_squared_error, hypergradient, solve
from hypergrad.bilevel.arguments import check_compatible, default_solver
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.functions import L1, Quadratic
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies._base import AbstractStrategy
from hypergrad.strategies.exact import Exact

__all__ = ["check_strategy"]

# Rows, columns, samples. Rows are independent, so that the dual solution is unique.
_M, _N, _BATCH = 4, 6, 3
# The same gradient in two ways: rounding, and what iterations to a tolerance leave of it.
_SAME = 1e-6
# A residual is relative to the loss gradient; the system may magnify it so much.
_CONDITION = 100.0
# Larger errors are never allowed, whatever residual is reported.
_MOST = 0.05


def check_strategy(strategy: AbstractStrategy, *, solver: ChambollePock | None = None) -> None:
    """Check a custom strategy on a small denoising problem, in double precision.

    A wrong gradient trains silently. This checks that

    - `forward` and `pullback` return the right types, shapes and dtypes, in float32 too;
    - the gradient of a batch is the mean of those of its samples;
    - `jit`, `vmap` and `grad` go through `solve`, to the gradient that `hypergradient` returns;
    - what it reports holds: the solution of a sample whose forward status is CONVERGED is the exact
      one, from zero and from the state of an earlier hypergradient (`init`); where its adjoint
      status is good from zero, its gradient (in every parameter and in `x_tilde`) is that of
      `Exact`, up to 100 times the residual that it reports.

    A strategy that reports UNKNOWN or ITERATIONS_USED_UP claims nothing about its gradient, which
    then is not compared with the exact one.

    **Arguments**: `strategy`; `solver`, by default 2,000 iterations, after which the lower level is
    solved to rounding. Give another one to a strategy that needs a tolerance.

    **Returns**: None.

    **Errors**: a `ValueError` with the rule that is broken, what the strategy returned, and what to
    do; also if the strategy raises.

    **Cost**: ten seconds, nearly all of it compiling.

    **Caveat**: one problem, whose solution is away from all kinks, proves nothing about others.

    >>> import hypergrad as hg
    >>> hg.check_strategy(hg.FullUnrolling())
    >>> class Half(hg.AbstractStrategy):
    ...     name = "half"
    ...     def forward(self, problem, x_tilde, solver, init):
    ...         return hg.FullUnrolling().forward(problem, x_tilde, solver, init)
    ...     def pullback(self, residuals, cotangent):
    ...         half = jax.tree.map(lambda g: g / 2, cotangent)
    ...         return hg.FullUnrolling().pullback(residuals, half)
    >>> try:
    ...     hg.check_strategy(Half())
    ... except ValueError as error:
    ...     print(str(error)[:79])
    half: a gradient with a good status must be the exact one; got a relative error
    """
    solver = ChambollePock(2000) if solver is None else default_solver(solver)
    check_compatible(strategy, solver)
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            _check_types(_cast(strategy, dtype), solver, _example(dtype))
        check = _Check(_cast(strategy, jnp.float64), solver, _example(jnp.float64))
        alone = check.samples()
        check.batch(alone)
        check.transformations(alone)
        check.claims(alone)


class _Example(NamedTuple):
    """A problem with its data."""

    problem: LowerLevel
    x_tilde: Array
    x_true: Array


def _example(dtype: Any) -> _Example:
    """Noisy steps and a well-conditioned K: a linear rate, and no coordinate near its kink."""
    rng = np.random.default_rng(0)
    K = np.linalg.qr(rng.standard_normal((_N, _M)))[0].T + 0.1 * rng.standard_normal((_M, _N))
    x_true = np.repeat(rng.standard_normal((_BATCH, 2)), _N // 2, axis=1)
    x_tilde = x_true + 0.3 * rng.standard_normal(x_true.shape)
    problem = LowerLevel(K=K, F=L1(0.3), G=Quadratic(1.0)).astype(dtype)
    return _Example(problem, jnp.asarray(x_tilde, dtype), jnp.asarray(x_true, dtype))


def _cast(strategy: AbstractStrategy, dtype: Any) -> AbstractStrategy:
    """Cast the arrays of a strategy to the dtype of the problem."""
    arrays, rest = eqx.partition(strategy, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda a: a.astype(dtype), arrays), rest)


def _in_words_of(strategy: AbstractStrategy, what: str, call: Callable[[], Any]) -> Any:
    """Call the user's code, and turn an exception into one line."""
    try:
        return call()
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise HypergradError(
            f"{strategy.label}: {what} must work on a batch of {_BATCH} samples; got "
            f"{type(error).__name__}: {first}"
        ) from error


# ------------------------------------------------------------------------------- types and shapes


def _check_types(strategy: AbstractStrategy, solver: ChambollePock, example: _Example) -> None:
    """Check types and shapes by tracing, without computing anything."""
    problem, x_tilde, _ = example
    solver = cast_floats(solver, x_tilde.dtype)

    def forward(problem: LowerLevel, x_tilde: Array) -> Any:
        return strategy.forward(problem, x_tilde, solver, None)

    def pullback(problem: LowerLevel, x_tilde: Array) -> Any:
        solution, kept = strategy.forward(problem, x_tilde, solver, None)
        return strategy.pullback(kept, Cotangent(solution.x, jnp.zeros_like(solution.y)))

    shapes = functools.partial(eqx.filter_eval_shape, problem=problem, x_tilde=x_tilde)
    returned = _in_words_of(strategy, "forward", lambda: shapes(forward))
    _check_forward(strategy, returned, x_tilde.dtype)
    gradients = _in_words_of(strategy, "pullback", lambda: shapes(pullback))
    _check_pullback(strategy, gradients, problem)


def _check_forward(strategy: AbstractStrategy, returned: Any, dtype: Any) -> None:
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    solution: Any = returned[0] if is_pair else returned
    if not (is_pair and isinstance(solution, Solution)):
        raise HypergradError(
            f"{strategy.label}: forward must return a pair, a hypergrad.Solution and what the "
            f"pullback needs; got {describe(returned)}: return solver.solution(...), kept"
        )
    stats = solution.stats
    expected = {
        "x": (solution.x, (_BATCH, _N), dtype),
        "y": (solution.y, (_BATCH, _M), dtype),
        "stats.status": (stats.status, (_BATCH,), jnp.integer),
        "stats.iterations": (stats.iterations, (_BATCH,), jnp.integer),
        "stats.residual": (stats.residual, (_BATCH,), dtype),
    }
    _check_leaves(f"{strategy.label}: forward", expected)


def _check_pullback(strategy: AbstractStrategy, gradients: Any, problem: LowerLevel) -> None:
    method, stats = f"{strategy.label}: pullback", getattr(gradients, "stats", None)
    if not (isinstance(gradients, Gradients) and isinstance(stats, AdjointStats)):
        raise HypergradError(
            f"{method} must return hypergrad.Gradients whose stats are hypergrad.AdjointStats; got "
            f"{describe(gradients)} with {describe(stats)}: see the docstrings of the two"
        )
    counts = {name: getattr(stats, name) for name in ("steps", "products")}
    expected: dict[str, tuple[Any, tuple[int, ...], Any]] = {
        "x_tilde": (gradients.x_tilde, (_BATCH, _N), problem.dtype),
        "stats.status": (stats.status, (_BATCH,), jnp.integer),
        "stats.residual": (stats.residual, (_BATCH,), problem.dtype),
        **{
            f"stats.{name}": (count, (_BATCH,), jnp.integer)
            for name, count in counts.items()
            if count is not None  # it is not known
        },
    }
    floats = jax.tree.leaves_with_path(eqx.filter(problem, eqx.is_inexact_array))
    found = jax.tree.leaves(gradients.problem)
    if not isinstance(gradients.problem, LowerLevel) or len(found) != len(floats):
        raise HypergradError(
            f"{method} must return the gradient in every float leaf of the problem, in its "
            f"structure; got {len(found)} leaves in a {type(gradients.problem).__name__} instead "
            f"of {len(floats)}: zeros where nothing depends on one, as eqx.filter_vjp returns them"
        )
    for (path, leaf), gradient in zip(floats, found, strict=True):
        expected[f"problem{jax.tree_util.keystr(path)}"] = (gradient, leaf.shape, leaf.dtype)
    _check_leaves(method, expected)


def _check_leaves(method: str, expected: dict[str, tuple[Any, tuple[int, ...], Any]]) -> None:
    """Check the shape and dtype of each leaf."""
    for name, (leaf, shape, dtype) in expected.items():
        is_array = hasattr(leaf, "dtype")
        if not (is_array and leaf.shape == shape and jnp.issubdtype(leaf.dtype, dtype)):
            kind = "whole numbers" if dtype is jnp.integer else dtype
            got = f"shape {leaf.shape} and {leaf.dtype}" if is_array else describe(leaf)
            raise HypergradError(
                f"{method} must return {name} of shape {shape} and {kind} for x_tilde of shape "
                f"{(_BATCH, _N)}; got {got}: the batch comes first, and the dtype is that of the "
                "problem"
            )


# -------------------------------------------------------------------------------- what is computed


class _Check:
    """A strategy on the example, in several ways that have to agree."""

    def __init__(self, strategy: AbstractStrategy, solver: ChambollePock, example: _Example):
        self.strategy, self.solver, self.example = strategy, solver, example

    def _hypergradient(
        self, strategy: AbstractStrategy, rows: Any, init: State | None = None
    ) -> Hypergradient:
        problem, x_tilde, x_true = self.example
        return _in_words_of(
            strategy,
            "hypergradient" if init is None else "hypergradient from an earlier state (init)",
            lambda: hypergradient(
                problem, x_tilde[rows], x_true[rows],
                solver=self.solver, strategy=strategy, init=init,
            ),
        )  # fmt: skip

    def samples(self) -> list[Hypergradient]:
        """The hypergradient of each sample by itself."""
        return [self._hypergradient(self.strategy, slice(i, i + 1)) for i in range(_BATCH)]

    def batch(self, alone: list[Hypergradient]) -> None:
        """Compare the gradient of the batch, whose loss is the mean, with that of the samples."""
        together = self._hypergradient(self.strategy, slice(None))
        mean = jax.tree.map(lambda *g: sum(g) / _BATCH, *(_floats(h.grad) for h in alone))
        self._same(
            "the gradient of a batch must be the mean of those of its samples",
            _floats(together.grad),
            mean,
            "let no sample see another: act on the last axis alone",
        )
        in_batch = jnp.asarray(together.grad_x_tilde)  # of a mean over the batch
        for name, whole, parts in (
            ("x", together.solution.x, [h.solution.x for h in alone]),
            ("y", together.solution.y, [h.solution.y for h in alone]),
            ("grad_x_tilde", _BATCH * in_batch, [jnp.asarray(h.grad_x_tilde) for h in alone]),
        ):
            self._same(
                f"{name} of a sample must be the same in a batch as alone",
                whole,
                jnp.concatenate(parts),
                "let no sample see another: act on the last axis alone",
            )

    def transformations(self, alone: list[Hypergradient]) -> None:
        """`solve` under `jit(grad)` of the batch, and under `jit(vmap(grad))` of its samples."""
        problem, x_tilde, x_true = self.example

        def loss(problem: LowerLevel, x_tilde: Array, x_true: Array) -> Array:
            x = solve(problem, x_tilde, solver=self.solver, strategy=self.strategy).x
            return half_mean_squared_error(x, x_true)

        gradient = eqx.filter_grad(loss)
        each = eqx.filter_vmap(gradient, in_axes=(None, 0, 0))
        stacked = jax.tree.map(lambda *g: jnp.stack(g), *(_floats(h.grad) for h in alone))
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), stacked)
        for name, transformed, expected in (
            ("jit and grad", gradient, mean),
            ("jit, vmap and grad", each, stacked),
        ):
            found = _in_words_of(
                self.strategy,
                f"solve under {name}",
                lambda f=transformed: eqx.filter_jit(f)(problem, x_tilde, x_true),
            )
            self._same(
                f"the gradient of solve under {name} must be that of hypergradient",
                _floats(found),
                expected,
                "leave out whatever depends on being traced or mapped",
            )

    def claims(self, alone: list[Hypergradient]) -> None:
        """Compare what it reports for each sample with `Exact`."""
        for i, h in enumerate(alone):
            rows = slice(i, i + 1)
            exact = self._hypergradient(Exact(), rows)
            again = self._hypergradient(self.strategy, rows, h.state)
            for found in (h, again):
                self._check_report(found)
                if found.solution.stats.status[0] == Status.CONVERGED:
                    self._same(
                        "a solution that is CONVERGED must be the exact one",
                        found.solution.x,
                        exact.solution.x,
                        "report the status that solver.solution(...) finds",
                    )
            # Not `again`: it may be exact for a run that has the solution as its fixed start.
            converged = h.solution.stats.status[0] == Status.CONVERGED
            if converged and Status(int(h.adjoint.status[0])).is_good:
                self._same(
                    "a gradient with a good status must be the exact one",
                    (_floats(h.grad), h.grad_x_tilde),
                    (_floats(exact.grad), exact.grad_x_tilde),
                    "correct the pullback, or claim less: a residual (hg.AdjointStats.judge), or "
                    "nothing (hg.AdjointStats.unknown)",
                    allowed=min(_SAME + _CONDITION * float(h.adjoint.residual[0]), _MOST),
                )

    def _check_report(self, h: Hypergradient) -> None:
        """Check that status codes exist and residuals are not negative."""
        codes, residual = np.asarray(h.adjoint.status), np.asarray(h.adjoint.residual)
        if not np.all(np.isin(codes, list(Status))) or np.any(residual < 0):
            raise HypergradError(
                f"{self.strategy.label}: an adjoint must have a hg.Status and a residual of at "
                f"least 0 (NaN: unknown); got {codes.tolist()} and {residual.tolist()}: make it by "
                "hg.AdjointStats.judge, exact or unknown"
            )

    def _same(
        self, rule: str, found: Any, expected: Any, advice: str, *, allowed: float = _SAME
    ) -> None:
        """Compare every leaf, relative to its size (at least a thousandth of the largest)."""
        size = max(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(expected))
        for (where, error), leaf in zip(
            _differences(found, expected), jax.tree.leaves(expected), strict=True
        ):
            relative = error / max(float(jnp.linalg.norm(leaf)), 1e-3 * size)
            if not relative <= allowed:
                raise HypergradError(
                    f"{self.strategy.label}: {rule}; got a relative error of {relative:.2g}"
                    f"{where}: {advice}"
                )


def _floats(gradient: LowerLevel) -> Any:
    return eqx.filter(gradient, eqx.is_inexact_array)


def _differences(found: Any, expected: Any) -> Iterator[tuple[str, float]]:
    """Yield the name of each leaf and the distance between the two trees there."""
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        name = jax.tree_util.keystr(path)
        yield f" in {name.lstrip('.')}" if name else "", float(jnp.linalg.norm(a - b))
