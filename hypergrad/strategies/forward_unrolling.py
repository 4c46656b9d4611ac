"""Differentiate every iteration, forwards: one derivative a parameter, carried along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hypergrad.adjoint import AdjointStats, Cotangent, Gradients
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch

# So many derivatives are carried along at once, and the iteration itself once for all of them: more
# would save iterations and take memory.
_AT_ONCE = 4
# Up to so many forward solves there is no warning.
_FEW_SOLVES = 500


class _Saved(NamedTuple):
    problem: LowerLevel
    x_tilde: Batch
    solver: ChambollePock
    init: State | None
    taken: Int[Array, " batch"]


class ForwardUnrolling(AbstractStrategy):
    """The gradient of `x[L]` through all L iterations, in forward mode.

        grad_p = <g, dx[L]/dp>,     dx[L]/dp from dx[0]/dp = 0 by the differentiated iteration

    one scalar p after the other: each entry of each float leaf of the problem and of the solver,
    and each coordinate of x_tilde (at once for the whole batch, since samples do not depend on
    each other).

    **Cost**: p + n derivatives for p scalars and x_tilde, each about 2 solves (about 1 outside K),
    and a solve for every 4 of them; memory for 4 derivatives of a state, whatever L. So it is for a
    K with few parameters (a kernel, a scale). `hypergradient(..., parameters=lambda p: p.F.weight)`
    and `compare` differentiate the chosen parameters alone, and so does `jax.jit(jax.grad(...))`
    through `solve`. A `UserWarning` tells the cost before it runs where it is above 500 solves.

    **Caveat**: exact for the iterations taken, also where the lower level is not converged; and
    then it is the gradient of another problem. Unlike `FullUnrolling` it takes a tolerance, since
    nothing is stored: each sample is differentiated through the iterations that it took. `solve`
    has reverse mode only here as well: for a derivative in one direction, `jax.jvp` goes through
    `run`, which is plain JAX (as it goes through `solve` with `Exact` or `LimitFormula()`).

    **Source**: forward-mode hypergradients are in Franceschi et al. 2017; for this iteration it is
    the transpose of Brauer & Lorenz (first poster), "Results".

    >>> import hypergrad as hg
    >>> hg.ForwardUnrolling().label
    'forward'
    """

    name: ClassVar[str] = "forward"
    formula: ClassVar[str] = "<g, dx[L]/dp>, the derivative carried through all L iterations"
    cost: ClassVar[str] = "time 2 solves a scalar parameter and n more, memory independent of L"
    caveat: ClassVar[str] = "exact for the finite L only; for few parameters, and no dense K"
    differentiates_every_iteration: ClassVar[bool] = True

    def run(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> Solution:
        """All iterations, in plain JAX."""
        return solver.on(problem, x_tilde).solve(init)

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, _Saved]:
        solution = self.run(problem, x_tilde, solver, init)
        return solution, _Saved(problem, x_tilde, solver, init, solution.stats.iterations)

    def pullback(self, saved: _Saved, cotangent: Cotangent) -> Gradients:
        wanted = jax.tree.map(eqx.is_inexact_array, (saved.problem, saved.solver))
        return self._gradients(saved, cotangent, wanted, with_x_tilde=True)

    def partial_pullback(
        self, saved: _Saved, cotangent: Cotangent, wanted: LowerLevel
    ) -> Gradients:
        nothing = jax.tree.map(lambda _: False, saved.solver)
        gradients = self._gradients(saved, cotangent, (wanted, nothing), with_x_tilde=False)
        return gradients._replace(solver=None)

    def cost_warning(
        self, problem: LowerLevel, solver: ChambollePock, wanted: LowerLevel | None
    ) -> str | None:
        chosen = eqx.filter(problem, eqx.is_inexact_array if wanted is None else wanted)
        counts = {
            jax.tree_util.keystr(path).lstrip("."): leaf.size
            for path, leaf in jax.tree.leaves_with_path(chosen)
        }
        if wanted is None:
            in_solver = jax.tree.leaves(eqx.filter(solver, eqx.is_inexact_array))
            counts |= {"x_tilde": problem.n, "the solver": len(in_solver)}
        total = sum(counts.values())
        if 2 * total <= _FEW_SOLVES:
            return None
        each = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        return (
            f"forward differentiates {total:,} numbers one after the other ({each}), about "
            f"{float(f'{2 * total:.2g}'):,.0f} forward solves: pass parameters=, as in lambda p: "
            "p.F.weight, to differentiate few, or take FullUnrolling or Truncation"
        )

    def _gradients(
        self, saved: _Saved, cotangent: Cotangent, wanted: Any, *, with_x_tilde: bool
    ) -> Gradients:
        problem, x_tilde, solver, init, taken = saved
        learned, rest = eqx.partition((problem, solver), wanted)
        leaves, structure = jax.tree.flatten(learned)

        def output(leaves: list[Array], x_tilde: Array) -> Cotangent:
            problem, solver = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
            solution = self.run(problem, x_tilde, solver, init)
            return Cotangent(solution.x, solution.y)

        def in_samples(moved: Cotangent) -> Array:
            products = jax.tree.map(jnp.multiply, moved, cotangent)
            return jnp.sum(products.x, axis=-1) + jnp.sum(products.y, axis=-1)

        def in_leaf(i: int, leaf: Array) -> tuple[Array, Array]:
            """A loop of its own for each leaf, so that one whose gradient is not used goes away.

            With the gradient, which samples made it finite.
            """

            def along(j: Array) -> tuple[Array, Array]:
                e_j = jnp.zeros(leaf.size, leaf.dtype).at[j].set(1.0).reshape(leaf.shape)
                moved = _derivative(
                    lambda p: output([*leaves[:i], p, *leaves[i + 1 :]], x_tilde), leaf, e_j
                )
                samples = in_samples(moved)
                return jnp.sum(samples), jnp.isfinite(samples)

            sums, finite = _for_each(along, leaf.size)
            return sums.reshape(leaf.shape), jnp.all(finite, axis=0)

        def along_x_tilde(j: Array) -> Array:
            e_j = jnp.zeros_like(x_tilde).at[:, j].set(1.0)
            return in_samples(_derivative(lambda x: output(leaves, x), x_tilde, e_j))

        found = [in_leaf(i, leaf) for i, leaf in enumerate(leaves)]
        dproblem, dsolver = jax.tree.unflatten(structure, [gradient for gradient, _ in found])
        finite, counts = [good for _, good in found], [leaf.size for leaf in leaves]
        dx_tilde = None
        if with_x_tilde:
            dx_tilde = _for_each(along_x_tilde, problem.n).T
            finite.append(jnp.all(jnp.isfinite(dx_tilde), axis=-1))
            counts.append(problem.n)

        in_K = sum(leaf.size for leaf in jax.tree.leaves(learned[0].K))
        good = jnp.where(jnp.stack(finite, axis=-1), 0.0, jnp.nan).astype(x_tilde.dtype)
        stats = AdjointStats.exact(taken, good, products=taken * _products(counts, in_K))
        return Gradients(dproblem, dx_tilde, dsolver, stats)


def _derivative(f: Callable[[Array], Cotangent], at: Array, direction: Array) -> Cotangent:
    return jax.jvp(f, (at,), (direction,))[1]


def _for_each(f: Callable[[Array], Any], count: int) -> Any:
    return jax.lax.map(f, jnp.arange(count), batch_size=_AT_ONCE)


def _products(counts: list[int], in_K: int) -> int:
    """Products with K an iteration: 2 a derivative, 2 more where K itself moves, and the state."""
    return 2 * (in_K + sum(count + -(-count // _AT_ONCE) for count in counts))
