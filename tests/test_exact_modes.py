"""Forward mode, reverse mode and second derivatives of `Exact` and the limit formula."""

from __future__ import annotations

from operator import attrgetter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, relative_error
from jaxtyping import Array
from limits import LIMITS

import hypergrad as hg

TWO_WAYS = [hg.Exact(), hg.LimitFormula()]


@pytest.mark.parametrize("strategy", TWO_WAYS, ids=lambda s: s.label)
def test_forward_mode_is_central_differences_and_the_transpose_of_reverse_mode(strategy):
    limit = LIMITS["L1+Quadratic"]
    x_tilde, _ = limit.data()
    solver = limit.solver()
    problem = limit.problem()
    rng = np.random.default_rng(0)
    tangent = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), problem)
    # The oracle knows of no centre.
    tangent = eqx.tree_at(lambda p: p.G.center, tangent, jnp.zeros(()))

    def solved(problem, x_tilde):
        return hg.solve(problem, x_tilde, solver=solver, strategy=strategy).x

    x_tilde, moved = jnp.asarray(x_tilde), jnp.asarray(rng.standard_normal(x_tilde.shape))
    _, push = jax.linearize(solved, problem, x_tilde)
    pushed = push(tangent, moved)

    def at(t):
        p = {
            name: value + t * np.asarray(attrgetter(name)(tangent))
            for name, value in limit.parameters.items()
        }
        return np.array([limit.solve(p, x) for x in np.asarray(x_tilde) + t * np.asarray(moved)])

    assert relative_error(pushed, (at(1e-6) - at(-1e-6)) / 2e-6) <= 1e-7

    cotangent = jnp.asarray(rng.standard_normal(x_tilde.shape))
    d_problem, d_x_tilde = jax.linear_transpose(push, problem, x_tilde)(cotangent)
    leaves = zip(jax.tree.leaves(d_problem), jax.tree.leaves(tangent), strict=True)
    inner = sum(float(jnp.sum(a * b)) for a, b in leaves) + float(jnp.sum(d_x_tilde * moved))
    assert inner == pytest.approx(float(jnp.sum(cotangent * pushed)), rel=1e-10)


# With Exact what is mapped over is the same pushforward, and compiling it takes 20 s.
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(s, id=s.label, marks=[pytest.mark.slow] * isinstance(s, hg.Exact))
        for s in TWO_WAYS
    ],
)
def test_jacobians_in_either_mode_agree_under_jit_and_vmap(strategy):
    limit = LIMITS["L1+Box"]
    x_tilde, _ = limit.data()

    def solved(weight, x_tilde):
        problem = eqx.tree_at(lambda p: p.G.radius, limit.problem(), weight)
        return hg.solve(problem, x_tilde, solver=limit.solver(500), strategy=strategy).x

    radius = jnp.asarray(limit.parameters["G.radius"])
    forward = jax.jit(jax.vmap(jax.jacfwd(solved), (None, 0)))(radius, jnp.asarray(x_tilde))
    reverse = jax.jit(jax.vmap(jax.jacrev(solved), (None, 0)))(radius, jnp.asarray(x_tilde))
    assert_close(forward, reverse, 1e-10)
    assert np.linalg.norm(forward) > 0.1


@pytest.mark.parametrize(
    "strategy", [hg.Truncation(1), hg.LimitFormula(hg.Steps(1))], ids=lambda s: s.label
)
def test_forward_mode_elsewhere_is_one_clear_error(strategy):
    limit = LIMITS["L1+Quadratic"]
    x_tilde = jnp.asarray(limit.data()[0])

    def solved(x_tilde):
        return hg.solve(limit.problem(), x_tilde, solver=limit.solver(3), strategy=strategy).x

    with pytest.raises(TypeError, match="forward-mode") as error:
        jax.jvp(solved, (x_tilde,), (x_tilde,))
    assert len(str(error.value).splitlines()) == 1


# ----------------------------------------------------------------------------- second derivatives


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("Huber+Quadratic", hg.Exact()), ("GroupL1+Quadratic", hg.LimitFormula())],
    ids=["exact", "limit"],
)
def test_second_derivatives_are_central_differences_of_the_first(name, strategy):
    """Along a direction in K and the weight."""
    limit = LIMITS[name]
    problem, (x_tilde, x_true) = limit.problem(), limit.data()
    rng = np.random.default_rng(5)
    direction = jnp.asarray(rng.standard_normal(problem.K.shape))

    def loss(v: Array) -> Array:
        moved = eqx.tree_at(
            lambda p: (p.K, p.F.weight),
            problem,
            (problem.K + v[0] * direction, problem.F.weight * jnp.exp(v[1])),
        )
        x = hg.solve(moved, x_tilde, solver=limit.solver(4000), strategy=strategy).x
        return hg.half_mean_squared_error(x, jnp.asarray(x_true))

    gradient, zero, h = jax.jit(jax.grad(loss)), jnp.zeros(2), 1e-5
    expected = np.stack(
        [(gradient(zero + h * e) - gradient(zero - h * e)) / (2 * h) for e in jnp.eye(2)]
    )
    assert relative_error(jax.jacfwd(gradient)(zero), expected) <= 1e-6
