"""`check_strategy`: what keeps its promises passes, and each kind of a broken one is named."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_differences, solve_l1_quadratic

import hypergrad as hg
from hypergrad.testing.strategies import _example

ONE_STEP = hg.Truncation(k=1)


class Wrapped(hg.AbstractStrategy):
    """Full unrolling, for the faults below."""

    name: ClassVar[str] = "wrapped"

    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        return hg.FullUnrolling().pullback(residuals, cotangent)


class Scaled(Wrapped):
    def pullback(self, residuals, cotangent):
        return hg.FullUnrolling().pullback(residuals, jax.tree.map(lambda g: 1.03 * g, cotangent))


class WrongInTheWeight(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(
            problem=eqx.tree_at(lambda p: p.F.weight, g.problem, 1.03 * g.problem.F.weight)
        )


class Boastful(Wrapped):
    """One step, said to be exact."""

    def forward(self, problem, x_tilde, solver, init):
        return ONE_STEP.forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        g = ONE_STEP.pullback(residuals, cotangent)
        return g._replace(stats=hg.AdjointStats.exact(1, g.x_tilde, products=4))


class BoastfulRun(hg.AbstractDifferentiableStrategy):
    """The same by JAX."""

    name: ClassVar[str] = "boastful"

    def run(self, problem, x_tilde, solver, init):
        sizes = solver.step_sizes(problem)
        fixed = hg.stop_gradient((problem, x_tilde, sizes))
        state, taken = solver.approach(*fixed, solver.start(problem, x_tilde, init), keep=1)
        state, _ = hg.record(problem, x_tilde, sizes, state, 1)
        return solver.solution(problem, x_tilde, sizes, state, taken + 1)

    def adjoint_stats(self, solution, dx_tilde):
        return hg.AdjointStats.exact(None, dx_tilde, products=None)


class Modest(BoastfulRun):
    """The same again, which claims nothing."""

    name: ClassVar[str] = "modest"

    def adjoint_stats(self, solution, dx_tilde):
        return hg.AdjointStats.unknown(dx_tilde)


class WrongSolution(Wrapped):
    def forward(self, problem, x_tilde, solver, init):
        solution, kept = hg.FullUnrolling().forward(problem, x_tilde, solver, init)
        return eqx.tree_at(lambda s: s.x, solution, 1.01 * solution.x), kept


class SeesItsNeighbours(Wrapped):
    def pullback(self, residuals, cotangent):
        mixed = jax.tree.map(lambda g: g + 0.01 * jnp.mean(g, axis=0), cotangent)
        return hg.FullUnrolling().pullback(residuals, mixed)


class MeansInsteadOfSums(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(problem=jax.tree.map(lambda leaf: leaf / len(g.x_tilde), g.problem))


class ForgetsABatch(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(x_tilde=g.x_tilde[0])


class OneStatus(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        stats = eqx.tree_at(lambda s: s.status, g.stats, jnp.zeros((), jnp.int32))
        return g._replace(stats=stats)


class DoubleResidual(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        residual = g.stats.residual.astype(jnp.float64)
        return g._replace(stats=eqx.tree_at(lambda s: s.residual, g.stats, residual))


class NoProblem(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(problem=eqx.tree_at(lambda p: p.F.weight, g.problem, None))


class Tuple(Wrapped):
    def pullback(self, residuals, cotangent):
        return tuple(hg.FullUnrolling().pullback(residuals, cotangent))


class NoStats(Wrapped):
    def pullback(self, residuals, cotangent):
        return hg.FullUnrolling().pullback(residuals, cotangent)._replace(stats=None)


class NegativeResidual(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(stats=eqx.tree_at(lambda s: s.residual, g.stats, g.stats.residual - 1))


class NoSuchStatus(Wrapped):
    def pullback(self, residuals, cotangent):
        g = hg.FullUnrolling().pullback(residuals, cotangent)
        return g._replace(stats=eqx.tree_at(lambda s: s.status, g.stats, g.stats.status + 99))


class OnlyASolution(Wrapped):
    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)[0]


class Raises(Wrapped):
    def pullback(self, residuals, cotangent):
        raise RuntimeError("no luck\nin two lines")


class LooksAtNumbers(Wrapped):
    def forward(self, problem, x_tilde, solver, init):
        if float(jnp.max(x_tilde)) > 0:
            return hg.FullUnrolling().forward(problem, x_tilde, solver, init)
        raise AssertionError


FAULTS = {
    Scaled: "a gradient with a good status must be the exact one; got a relative error of 0.03",
    WrongInTheWeight: "a gradient with a good status must be the exact one; got a relative error",
    Boastful: "a gradient with a good status must be the exact one; got a relative error",
    BoastfulRun: "a gradient with a good status must be the exact one; got a relative error",
    WrongSolution: "a solution that is CONVERGED must be the exact one; got a relative error",
    SeesItsNeighbours: "the gradient of a batch must be the mean of those of its samples",
    MeansInsteadOfSums: "the gradient of a batch must be the mean of those of its samples",
    ForgetsABatch: r"must return x_tilde of shape \(3, 6\) and float32 .*; got shape \(6,\)",
    OneStatus: r"must return stats.status of shape \(3,\) and whole numbers .*; got shape \(\)",
    DoubleResidual: r"stats.residual of shape \(3,\) and float32 .*; got shape \(3,\) and float64",
    NoProblem: "must return the gradient in every float leaf of the problem",
    Tuple: r"pullback must return hypergrad.Gradients whose stats are .*; got tuple with None",
    NoStats: "whose stats are hypergrad.AdjointStats; got Gradients with None",
    NegativeResidual: r"a residual of at least 0 \(NaN: unknown\); got",
    NoSuchStatus: r"must have a hg.Status and a residual",
    OnlyASolution: "forward must return a pair, a hypergrad.Solution and .*; got Sol",
    Raises: "pullback must work on a batch of 3 samples; got RuntimeError: no luck$",
    LooksAtNumbers: "forward must work on a batch of 3 samples; got ConcretizationTypeError",
}


@pytest.mark.parametrize("strategy", FAULTS, ids=lambda cls: cls.__name__)
def test_each_kind_of_fault_is_named(strategy) -> None:
    with pytest.raises(ValueError, match=FAULTS[strategy]) as caught:
        hg.check_strategy(strategy())
    assert str(caught.value).startswith(f"{strategy.name}: ")


@pytest.mark.parametrize(
    "strategy",
    [
        Wrapped(),
        Modest(),
        hg.Truncation(k=1),
        hg.LimitFormula(hg.Tolerance(1e-3)),
        hg.OptimistixImplicit(),
    ],
    ids=lambda s: s.label,
)
def test_what_keeps_its_promises_passes(strategy) -> None:
    """One that is exact, one that claims nothing, one cut off, one to a tolerance, one by JAX."""
    hg.check_strategy(strategy)


@pytest.mark.slow
@pytest.mark.parametrize("name", hg.STRATEGIES)
def test_every_strategy_of_the_package_passes(name: str) -> None:
    hg.check_strategy(hg.STRATEGIES[name]())


def test_the_usual_errors_come_first() -> None:
    with pytest.raises(ValueError, match="strategy must be a hypergrad strategy; got 'full'"):
        hg.check_strategy("full")
    with pytest.raises(ValueError, match="takes no tolerance"):
        hg.check_strategy(hg.FullUnrolling(), solver=hg.ChambollePock(10, tolerance=1e-6))


def test_the_example_has_one_gradient_far_from_kinks() -> None:
    """`Exact` on it is right, by central differences of a direct solver."""
    problem, x_tilde, x_true = _example(jnp.float64)
    h = hg.hypergradient(problem, x_tilde, x_true, strategy=hg.Exact())
    assert np.all(np.asarray(h.solution.stats.margin) > 0.05)
    assert np.all(np.asarray(h.adjoint.status) == hg.Status.CONVERGED)

    def loss(K: np.ndarray) -> float:
        x = [solve_l1_quadratic(K, 0.3, 1.0, np.asarray(row)) for row in x_tilde]
        return 0.5 * np.mean(np.sum((np.array(x) - np.asarray(x_true)) ** 2, axis=-1))

    numbers = central_differences(loss, np.asarray(problem.K), step=1e-6)
    error = np.linalg.norm(np.asarray(h.grad.K) - numbers) / np.linalg.norm(numbers)
    assert error < 1e-6
    assert min(float(jnp.linalg.norm(g)) for g in (h.grad.K, h.grad.F.weight, h.grad_x_tilde)) > 0.1
