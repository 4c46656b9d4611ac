"""The search without a matrix: first-order iterations, and Newton steps by conjugate gradients.

For whole images, where neither K nor a factor of anything fits into memory. What takes over from
the first-order iterations is the same Newton step at the same active sets as in
`hypergrad.exact.search`; there is no path here, since with many thousands of kinks a damped step
gets nowhere, while the accelerated iterations do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hypergrad._foundation.checks import check_count
from hypergrad._foundation.samples import where
from hypergrad.adjoint import (
    LimitSystem,
    ReducedSystem,
    Unknowns,
    pair_norm,
    solve_least_squares,
)
from hypergrad.chambolle_pock import Iteration, ProxArguments, RestartedHalpern, State
from hypergrad.exact.active_sets import AbstractActiveSystem
from hypergrad.exact.normal_map import NormalMap
from hypergrad.exact.path import Found, judge_shortest
from hypergrad.exact.search import PLAIN_STEPS, AbstractSearch, ExactPair

# A burst is so long, or half as long as all before it: tries grow rare where they are in vain.
_FIRST_BURST, _GROWTH = 200, 2
_PASSES = 3  # of conjugate gradients in a solve: each takes the residual down by 8 digits


class KrylovSystem(AbstractActiveSystem):
    """The Jacobian of the normal map at `z`, solved with by conjugate gradients on its dual half.

    Where `G` is separable and has curvature in every coordinate, `I - D_P` can be divided by, and
    the kernel is dual. Conjugate gradients from zero tend to the solution of minimum norm. They
    stop where rounding of the data is all that is left: its part in the kernel would only be made
    large. Elsewhere (a weight of 0) both halves are solved for, by CGLS.

    **Cost**: 2 products with K per step, at most `max_steps` steps per pass; of CGLS 4 per step
    (which counts as two), at most `6 max_steps` steps; memory of some dual variables.
    """

    limit: LimitSystem
    max_steps: int = eqx.field(static=True)

    def _solve(
        self, right: Unknowns, size: Array, *, transposed: bool
    ) -> tuple[Unknowns, Int[Array, " batch"]]:
        """The unknowns and the steps; `size` is that of the data, which rounding is relative to."""
        eps = float(jnp.finfo(right[0].dtype).eps)
        products = self.limit.scaled, self.limit.scaled_transpose
        product, other = reversed(products) if transposed else products

        def on_both() -> tuple[Unknowns, Int[Array, " batch"]]:
            most = 2 * _PASSES * self.max_steps  # it squares the condition number
            unknowns, steps, _ = solve_least_squares(
                product, other, right, rtol=4 * eps, max_steps=most
            )
            return unknowns, 2 * steps

        if not self.limit.problem.G.separable:
            return on_both()
        reduced = ReducedSystem.of(self.limit)
        rounding = 4 * eps * (1 + jnp.max(reduced.V, axis=-1))

        def once_more(_: Array, carry: Any) -> Any:
            unknowns, steps = carry
            rest = jax.tree.map(jnp.subtract, right, product(unknowns))
            floor = rounding * jnp.maximum(size, pair_norm(unknowns))
            more, taken, _ = reduced.solve(
                rest, transposed=transposed, rtol=eps**0.5, floor=floor, max_steps=self.max_steps
            )
            return jax.tree.map(jnp.add, unknowns, more), steps + taken

        def on_dual() -> tuple[Unknowns, Int[Array, " batch"]]:
            nothing = jax.tree.map(jnp.zeros_like, right), jnp.zeros(size.shape, jnp.int32)
            return jax.lax.fori_loop(0, _PASSES, once_more, nothing)

        return jax.lax.cond(reduced.exists, on_dual, on_both)

    def newton_step(self, f: Unknowns, size: Array) -> tuple[Unknowns, Int[Array, " batch"]]:
        """The step for a right-hand side, and the steps of conjugate gradients that it took."""
        return self._solve(f, size, transposed=True)

    def kernel_part(self, w: Unknowns) -> Unknowns:
        return self.onto_kernel(w)[0]

    def random_unknowns(self) -> Unknowns:
        # Drawn by the program, which need not hold as many numbers then.
        key_P, key_D = jax.random.split(jax.random.key(0))
        z_D, z_P = self.limit.z
        return (
            jax.random.normal(key_P, z_P.shape, z_P.dtype),
            jax.random.normal(key_D, z_D.shape, z_D.dtype),
        )

    def onto_kernel(self, w: Unknowns) -> tuple[Unknowns, Int[Array, " batch"]]:
        """The projection of `w` onto the kernel, and the steps that it took."""
        if self.limit.problem.G.separable:  # the kernel is dual where G has curvature
            is_dual = ReducedSystem.of(self.limit).exists
            w = jnp.where(is_dual, 0.0, w[0]), w[1]
        else:
            is_dual = False
        seen = self.limit.scaled_transpose(w)
        (a, b), steps = self._solve(seen, pair_norm(w), transposed=True)
        return (jnp.where(is_dual, 0.0, w[0] - a), w[1] - b), steps

    def tangent_solution(self, right: Unknowns) -> Unknowns:
        return self._solve(right, pair_norm(right), transposed=True)[0]

    def adjoint_solution(self, right: Unknowns) -> tuple[Unknowns, Array, Array]:
        unknowns, steps = self._solve(right, pair_norm(right), transposed=False)
        return unknowns, steps, _products(steps)

    def rank(self, unique_D: Bool[Array, " batch"]) -> Int[Array, " batch"]:
        return jnp.full(unique_D.shape, -1, jnp.int32)


def _products(steps: Array) -> Array:
    """Products with K in a solve that took so many steps of conjugate gradients."""
    return 2 * steps + 6 * _PASSES


class _Search(NamedTuple):
    """Each sample's iterate, the best point found, and the cost so far."""

    iterate: Any
    found: Found
    finished: Bool[Array, " batch"]
    iterations: Int[Array, " batch"]
    newton_steps: Int[Array, " batch"]
    products: Int[Array, " batch"]


class MatrixFree(AbstractSearch):
    """For `Exact`, of K only products: whole images.

    Accelerated Chambolle-Pock iterations in bursts, after each of them Newton steps at the active
    sets reached, by conjugate gradients on the dual half, as for the adjoint. Where G is not
    separable or not strongly convex (a mask, a weight of 0) these are CGLS on both halves.

    **Arguments**: `iterations`, at most so many of the first-order method; `steps`, at most so
    many of conjugate gradients per solve (of CGLS six times as many).

    **Cost**: memory of some dual variables, whatever n. Iterations until the active sets are near.

    **Caveat**: where free rows depend on each other (more filters than pixels that they leave free,
    GroupL1 of flat regions) it takes many thousands of iterations; what has not arrived is
    NOT_CERTIFIED. Where CGLS uses up its steps (a blur that removes frequencies almost entirely)
    the kernel is not known, and the status may be worse than the solution deserves. The rank in the
    certificate is -1, not known. Where the shortest dual solution would have to leave its set on
    the way, the one that was found is kept: one of several.

    **Source**: the same as `Exact`; Hestenes & Stiefel 1952.

    >>> import hypergrad as hg
    >>> hg.Exact(search=hg.MatrixFree(iterations=500)).label
    'exact:most=150,matrix-free=500'
    """

    iterations: int = eqx.field(static=True, default=20_000)
    steps: int = eqx.field(static=True, default=1_000)

    def __check_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_count("steps", self.steps)

    @property
    def label(self) -> str:
        return f"matrix-free={self.iterations}"

    def __call__(
        self,
        iteration: Iteration,
        start: State,
        *,
        max_steps: int | Int[Array, ""],
    ) -> ExactPair:
        problem, x_tilde, sizes = iteration
        normal_map, method = NormalMap(*iteration), RestartedHalpern()

        def pair_of(iterate: Any) -> tuple[Array, Array]:
            state = method.state(iterate)
            return state.r, state.y

        def burst(search: _Search) -> _Search:
            done = jnp.max(search.iterations)
            length = jnp.maximum(_FIRST_BURST, done // _GROWTH)
            length = jnp.minimum(length, self.iterations - done)
            iterate = method.advance(iteration, search.iterate, length)
            iterate = where(search.finished, search.iterate, iterate)
            running = ~search.finished
            new, taken, products = self._polish(normal_map, pair_of(iterate), running)
            better = running & (new.accepted | (new.residual < search.found.residual))
            found = where(better, new, search.found)
            return _Search(
                iterate=iterate,
                found=found,
                finished=search.finished | found.accepted | ~jnp.isfinite(new.residual),
                iterations=search.iterations + jnp.where(running, length, 0),
                newton_steps=search.newton_steps + jnp.where(running, taken, 0),
                products=search.products + jnp.where(running, products, 0),
            )

        def unfinished(search: _Search) -> Array:
            may_continue = search.iterations < self.iterations
            may_continue = may_continue & (search.newton_steps < max_steps)
            return jnp.any(~search.finished & may_continue)

        iterate = method.begin(iteration, start)
        none = jnp.zeros(len(x_tilde), jnp.int32)
        z = normal_map.arguments(*pair_of(iterate))
        search = _Search(iterate, Found.nothing(z), none > 0, none, none, none)
        search = jax.lax.while_loop(unfinished, burst, search)
        z = search.found.z
        system = KrylovSystem(LimitSystem(problem, sizes, z), self.steps)
        return ExactPair.at(z, system, search.iterations, search.products)

    def _polish(
        self, normal_map: NormalMap, pair: tuple[Array, Array], running: Array
    ) -> tuple[Found, Array, Array]:
        """Newton steps, and from the best point to the pair of minimum norm; what that took."""
        z = normal_map.arguments(*pair)
        none = jnp.zeros(running.shape, z.z_P.dtype)
        precise = 100 * float(jnp.finfo(none.dtype).eps)

        def system_at(z: ProxArguments) -> KrylovSystem:
            return KrylovSystem(LimitSystem(normal_map.problem, normal_map.sizes, z), self.steps)

        def step(carry: Any) -> Any:
            now, best, taken, products = carry
            system, z = system_at(now.z), now.z
            f, size = normal_map(z, none), pair_norm(normal_map.scaled(z))
            by, steps = system.newton_step(jax.tree.map(jnp.negative, f), size)
            wanted = running & (now.residual > precise)
            now = Found.at(normal_map, where(wanted, normal_map.moved(z, none + 1, by), z))
            best = where(now.residual < best.residual, now, best)
            products = products + jnp.where(wanted, _products(steps) + 4, 0)
            return now, best, taken + 1, products

        def unpolished(carry: Any) -> Array:
            now, _, taken, _ = carry
            return (taken < PLAIN_STEPS) & jnp.any(running & (now.residual > precise))

        first, nothing = Found.at(normal_map, z), jnp.zeros(none.shape, jnp.int32)
        carry = (first, first, jnp.zeros((), jnp.int32), nothing)
        _, best, taken, products = jax.lax.while_loop(unpolished, step, carry)
        z = best.z
        r, y = normal_map.pair(z, none)
        kernel, steps = system_at(z).onto_kernel(normal_map.scaled(ProxArguments(y, r)))
        # No path leads here: where something sits on its kink, another pair may be shorter.
        shortest = normal_map.moved(z, none - 1, kernel)
        # Where the shortest is none, since it would leave its set, what is one is good enough.
        found = judge_shortest(normal_map, shortest, best, running)
        found = found._replace(accepted=found.accepted | best.feasible)
        return found, taken, products + _products(steps)
