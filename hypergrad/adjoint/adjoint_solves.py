"""Methods for the sums `Delta_P`, `Delta_D` of the deltas."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count, check_fraction, spelt
from hypergrad._foundation.samples import magnitude, where
from hypergrad._foundation.status import Status
from hypergrad.adjoint.deltas import (
    DeltaSums,
    LimitSystem,
    PairMetric,
    adjoint_step,
    first_layer,
    sum_deltas,
    zeros_like,
)
from hypergrad.adjoint.linear_solves import (
    Unknowns,
    pair_norm,
    solve_least_squares,
    solver_label,
)
from hypergrad.adjoint.results import AdjointStats, Cotangent
from hypergrad.chambolle_pock import AdjointPair, ProxArguments, default_tolerance
from hypergrad.problem.lower_level import LowerLevel

Product = Callable[[Unknowns], Unknowns]


class AdjointProblem(NamedTuple):
    """The inputs of a backward solve: the end of a forward solve, and the loss gradient there.

    `system` is the limit system at the last iterate, `history` the prox arguments of the last ones;
    `earlier`, the sums of an earlier backward solve, is where the methods that support it start.
    """

    system: LimitSystem
    history: ProxArguments
    g: Cotangent
    earlier: AdjointPair | None = None


class AbstractAdjointSolve(eqx.Module):
    """A method for the sums `Delta_P`, `Delta_D`."""

    @property
    def iterates(self) -> int:
        """The number of last iterates that it uses."""
        return 1

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The method as it is written on the command line."""

    def with_tolerance(self, rtol: Array) -> AbstractAdjointSolve | None:
        """Return the method with another tolerance, or None if it has none."""
        return None

    @abc.abstractmethod
    def __call__(self, inputs: AdjointProblem) -> tuple[DeltaSums, AdjointStats]:
        """Return the sums and the statistics."""


class Steps(AbstractAdjointSolve):
    """The limit system by k steps of the delta recursion, all of them at the last state.

    Equals k iterations of the adjoint Chambolle-Pock method, from zero or from the adjoint part of
    `init`. 2 k products.

    >>> import hypergrad as hg
    >>> hg.LimitFormula(hg.Steps(5)).label
    'limit:steps=5'
    """

    k: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        check_count("k", self.k)

    @property
    def label(self) -> str:
        return f"steps={self.k}"

    def __call__(self, inputs: AdjointProblem) -> tuple[DeltaSums, AdjointStats]:
        return _sum_of_steps(inputs, self.k)


class LastIterates(AbstractAdjointSolve):
    """The sum of the deltas of the last k iterations, each at its iterate: the second poster.

    2 k products, memory `k (m + n)` per sample.

    >>> import hypergrad as hg
    >>> hg.LimitFormula(hg.LastIterates(5)).label
    'limit:last=5'
    """

    k: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        check_count("k", self.k)

    @property
    def iterates(self) -> int:
        return self.k

    @property
    def label(self) -> str:
        return f"last={self.k}"

    def __call__(self, inputs: AdjointProblem) -> tuple[DeltaSums, AdjointStats]:
        # Each layer is taken at another iterate, so no earlier solve can be continued.
        return _sum_of_steps(inputs._replace(earlier=None), self.k)


def _sum_of_steps(inputs: AdjointProblem, k: int) -> tuple[DeltaSums, AdjointStats]:
    system, history, g, earlier = inputs
    sums = sum_deltas(system.problem, system.sizes, history, g, k, earlier)
    residual, rounding = system.residual(sums, g)
    products = 2 * k + 2 + int(k > 1) + int(earlier is not None)
    tolerance = default_tolerance(g.x.dtype)
    return sums, AdjointStats.judge(k, residual, tolerance, rounding, products=products)


class Tolerance(AbstractAdjointSolve):
    """Steps at the last state until a delta is below `rtol` relative to g, each sample by itself.

    At most `most` steps; the status reports where they were used up (the sums may diverge: then
    the system is inconsistent, and there is no limit).

    >>> import hypergrad as hg
    >>> hg.LimitFormula(hg.Tolerance(1e-8)).label
    'limit:tolerance=1e-08'
    """

    rtol: float | Float[Array, ""] = 1e-6
    most: int = eqx.field(static=True, default=10_000)

    def __check_init__(self) -> None:
        check_fraction("rtol", self.rtol, "try 1e-6")
        check_count("most", self.most)

    @property
    def label(self) -> str:
        return f"tolerance={spelt(self.rtol)}"

    def with_tolerance(self, rtol: Array) -> AbstractAdjointSolve | None:
        return Tolerance(rtol, self.most)

    def __call__(self, inputs: AdjointProblem) -> tuple[DeltaSums, AdjointStats]:
        system, _, g, earlier = inputs
        problem, sizes, nothing = system.problem, system.sizes, zeros_like(g)
        metric = PairMetric.at(system)

        def one_more(carry: Any):
            state, sums, size, steps, done = carry
            new_state, terms = adjoint_step(problem, sizes, system.z, state, nothing)
            running = size > self.rtol
            sums = where(running, sums.plus(new_state, terms), sums)
            state = where(running, new_state, state)
            size = metric.size(state.delta_P, state.delta_D, g)
            return state, sums, size, jnp.where(running, done + 1, steps), done + 1

        def unfinished(carry: Any):
            *_, size, _, done = carry
            return jnp.any(size > self.rtol) & (done < self.most)

        state, sums = first_layer(problem, sizes, system.z, g, earlier)
        size = metric.size(state.delta_P, state.delta_D, g)
        steps = jnp.ones(g.x.shape[:-1], jnp.int32)
        carry = (state, sums, size, steps, jnp.ones((), jnp.int32))
        _, sums, size, steps, _ = jax.lax.while_loop(unfinished, one_more, carry)
        residual, _ = system.residual(sums, g)
        status = jnp.where(size <= self.rtol, Status.CONVERGED, Status.ITERATIONS_USED_UP)
        # A size that is not finite ends the loop, and so does a gradient that is not.
        residual = jnp.where(jnp.isfinite(size), residual, jnp.nan)
        products = 2 * steps + 2 + int(earlier is not None)
        return sums, AdjointStats.of(steps, residual, status, products)


class AbstractLinearSolve(AbstractAdjointSolve):
    """A method that solves the limit system or its transpose.

    Forward-mode differentiation needs the latter. `products_a_step` is the number of products with
    K in one step.
    """

    products_a_step: ClassVar[int]

    @abc.abstractmethod
    def solve(
        self, system: LimitSystem, right: Unknowns, *, transposed: bool
    ) -> tuple[Unknowns, Array, Array]:
        """Return the (scaled) unknowns, the steps taken, and which samples used them up."""

    def __call__(self, inputs: AdjointProblem) -> tuple[DeltaSums, AdjointStats]:
        # Always from zero: only that leads to the solution of minimum norm.
        system, g = inputs.system, inputs.g
        right = system.scaled_right_hand_side(g)
        unknowns, steps, used_up = self.solve(system, right, transposed=False)
        products = self.products_a_step * steps + 8
        return _judge_solution(system, unknowns, right, g, steps, used_up, products)


def _sides(system: LimitSystem, transposed: bool) -> tuple[Product, Product]:
    """Return the product of the system to be solved, and that of its transpose."""
    if transposed:
        return system.scaled_transpose, system.scaled
    return system.scaled, system.scaled_transpose


class AbstractKrylovSolve(AbstractLinearSolve):
    """A matrix-free Krylov method for all samples at once, in at most `most` steps.

    The default is `4 (m + n)`, since rounding makes it take more steps than the rank. `name` is the
    usual abbreviation.
    """

    most: eqx.AbstractVar[int | None]
    name: ClassVar[str]

    def __check_init__(self) -> None:
        if self.most is not None:
            check_count("most", self.most)

    @property
    def label(self) -> str:
        return self.name if self.most is None else f"{self.name}={self.most}"

    def max_steps(self, problem: LowerLevel) -> int:
        """Return `most`, or its default."""
        return 4 * sum(problem.shape) if self.most is None else self.most


class CGLS(AbstractKrylovSolve):
    """The limit system solved by CGLS, all samples at once, matrix-free: the default.

    Works for every system: where it is singular but consistent the result is the solution of
    minimum norm, where it is inconsistent the status reports it. 4 products with K per step.

    **Arguments**: `most`, the maximum number of steps (by default `4 (m + n)`).

    >>> CGLS().label, CGLS(most=20).label
    ('cgls', 'cgls=20')
    """

    most: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "cgls"
    products_a_step: ClassVar[int] = 4

    def solve(
        self, system: LimitSystem, right: Unknowns, *, transposed: bool
    ) -> tuple[Unknowns, Array, Array]:
        rtol = 4 * float(jnp.finfo(right[0].dtype).eps)
        unknowns, steps, arrived = solve_least_squares(
            *_sides(system, transposed), right, rtol=rtol, max_steps=self.max_steps(system.problem)
        )
        return unknowns, steps, ~arrived


class LinearSolve(AbstractLinearSolve):
    """The limit system by `solver`, a lineax one, sample by sample (mapped over the batch).

    A dense solver builds an `(m + n)^2` matrix per sample; a singular system breaks most solvers.
    The residual decides the status, whatever the solver reports. A step takes at least two
    products.

    >>> import hypergrad as hg, lineax as lx
    >>> hg.LimitFormula(hg.LinearSolve(lx.LU())).label
    'limit:lu'
    """

    solver: lx.AbstractLinearSolver[Any]
    products_a_step: ClassVar[int] = 2

    @property
    def label(self) -> str:
        return solver_label(self.solver)

    def solve(
        self, system: LimitSystem, right: Unknowns, *, transposed: bool
    ) -> tuple[Unknowns, Array, Array]:
        def solve_sample(z: ProxArguments, b: Unknowns) -> tuple[Any, Any, Any]:
            sample = LimitSystem(system.problem, system.sizes, z)
            product, _ = _sides(sample, transposed)
            operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: b))
            unit = magnitude(*b)  # its tolerances are absolute, too
            b = b[0] / unit, b[1] / unit
            solution = lx.linear_solve(operator, b, self.solver, throw=False)
            used_up = solution.result == lx.RESULTS.max_steps_reached
            p, d = solution.value
            return (unit * p, unit * d), solution.stats.get("num_steps", 0), used_up

        unknowns, steps, used_up = jax.vmap(solve_sample)(system.z, right)
        return unknowns, jnp.asarray(steps).astype(jnp.int32), used_up


def _judge_solution(
    system: LimitSystem,
    unknowns: Unknowns,
    right: Unknowns,
    g: Cotangent,
    steps: Array,
    used_up: Array,
    products: Array,
) -> tuple[DeltaSums, AdjointStats]:
    """Return the sums, with a status by the residual, whatever the solver reports.

    Where the residual is large, the gradient of its square shows whether this is a least-squares
    solution: then there is no better one, and the system is inconsistent.
    """
    sums = system.sums(unknowns, g)
    residual, rounding = system.residual(sums, g)
    tolerance = float(jnp.finfo(residual.dtype).eps) ** 0.5
    misfit = jax.tree.map(jnp.subtract, right, system.scaled(unknowns))
    gradient = system.scaled_transpose(misfit)
    status = jnp.where(used_up, Status.ITERATIONS_USED_UP, Status.NOT_CERTIFIED)
    at_minimum = pair_norm(gradient) <= tolerance * pair_norm(misfit)
    status = jnp.where(at_minimum, Status.INCONSISTENT, status)
    stats = AdjointStats.judge(
        steps, residual, tolerance, rounding, products=products, otherwise=status
    )
    return sums, stats
