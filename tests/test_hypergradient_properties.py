"""Laws that hypergradients obey, at problems that hypothesis draws.

Everyday few draws, the same in every run; `pytest --hypothesis-profile thorough` draws twenty times
as many, `-m "slow or not slow"` for every strategy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from draws import DTYPES, PAIRS, Level, Numbers, degenerate, generic, numbers, planted
from helpers import relative_error
from hypothesis import assume, given
from jax.flatten_util import ravel_pytree

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.adjoint import LimitSystem
from hypergrad.chambolle_pock import ProxArguments
from hypergrad.problem.lower_level import cast_floats


def assert_close(actual: Any, expected: Any, rtol: float) -> None:
    """All leaves as one vector: one alone may be 0 in exact arithmetic, and rounding here."""
    assert relative_error(ravel_pytree(actual)[0], ravel_pytree(expected)[0]) <= rtol


# ------------------------------------------------------------------------------ the limit formula


def step_sizes(draw: Numbers, K: Any) -> dict[str, float]:
    """Random ones, as long as they may be; and a random theta."""
    norm, ratio = np.linalg.norm(K, 2), 10.0 ** draw.rng.uniform(-1, 1)
    return {"tau": 0.95 * ratio / norm, "sigma": 0.95 / ratio / norm, "theta": draw.rng.uniform()}


@eqx.filter_jit
def limit_matrix(problem, sizes, x_tilde, state):
    """Of the limit system in scaled unknowns."""
    m, n = problem.shape
    tau, sigma, _ = sizes
    z_D = state.y + sigma * problem.K @ (x_tilde + state.r)
    z_P = state.r - tau * problem.K.T @ state.y
    z = ProxArguments(z_D, z_P)
    unit = jnp.eye(n + m)
    columns = jax.vmap(LimitSystem(problem, sizes, z).scaled)((unit[:, :n], unit[:, n:]))
    return jnp.concatenate(columns, axis=1)


@pytest.mark.parametrize("pair", PAIRS)
@given(draw=numbers)
def test_limit_formula_does_not_depend_on_tau_sigma_and_theta(pair, draw):
    """At an optimal pair, its system solved exactly: gradients in K, F, G and x_tilde."""
    problem, x_tilde, state = planted(draw, pair)
    x_true = x_tilde + draw.rng.standard_normal(len(x_tilde))
    found, condition = [], 1.0
    for sizes in (step_sizes(draw, problem.K) for _ in range(2)):
        solver = hg.ChambollePock(1, **sizes)
        matrix = limit_matrix(problem, solver.step_sizes(problem), jnp.asarray(x_tilde), state)
        condition = max(condition, np.linalg.cond(matrix))
        # A singular system has no one solution (nor is it solved by LU).
        assume(condition < 1e6)
        h = hg.hypergradient(
            problem,
            x_tilde,
            x_true,
            solver=solver,
            strategy=hg.LimitFormula(lx.LU()),
            init=state,
        )
        # The pair is a solution, and at a kink only by the rarest chance.
        assert h.solution.stats.residual < 1e-12
        assume(h.solution.stats.margin > 1e-6)
        found.append((h.grad, h.grad_x_tilde))
    assert_close(*found, rtol=1e-13 * condition)


# ------------------------------------------------------------------------------- every strategy

# Iterations of which nothing needs to converge: the laws hold for whatever a strategy computes.
ITERATIONS = 8
EVERYDAY = ["full", "truncation:k=3", "limit:cgls"]
PEERS = ["jaxopt:gmres", "optimistix:gmres"]
SLOW = [
    "full:checkpoints=3",
    "forward",
    "ergodic:uniform",
    "limit:steps=4",
    "limit:last=3",
    "piggyback",
    "exact",
    *PEERS,
    "optimistix-checkpointed",
]
every_strategy = pytest.mark.parametrize(
    "label", [*EVERYDAY, *(pytest.param(label, marks=pytest.mark.slow) for label in SLOW)]
)
# Where the system is singular, the solver of a peer ends at one of many solutions (their caveat):
# in another order at another one.
every_own_strategy = pytest.mark.parametrize(
    "label",
    [*EVERYDAY, *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW if s not in PEERS)],
)


class Affine(eqx.Module):
    """`scale loss + shift`, both of which may change without a new program."""

    scale: jax.Array
    shift: jax.Array

    def __call__(self, x, x_true):
        return self.scale * hg.half_mean_squared_error(x, x_true) + self.shift


def differentiated(drawn: Level, sizes, label: str, scale=1.0, shift=0.0) -> hg.Hypergradient:
    """The one program of a strategy, for all tests."""
    dtype = drawn.problem.dtype
    return hg.hypergradient(
        *drawn,
        solver=hg.ChambollePock(ITERATIONS, **sizes),
        strategy=hg.parse_strategy(label),
        loss=Affine(jnp.asarray(scale, dtype), jnp.asarray(shift, dtype)),
    )


@every_strategy
@given(draw=numbers)
def test_gradient_of_a_scaled_and_shifted_loss(label, draw):
    """To the last bit, by a power of 2 or by 0, which round nothing: whatever the condition."""
    drawn = generic(draw)
    sizes = step_sizes(draw, drawn.problem.K)
    scale = draw.rng.choice([-1.0, 0.0, 1.0], p=[0.45, 0.1, 0.45]) * 2.0 ** draw.rng.integers(
        -40, 40
    )
    h = differentiated(drawn, sizes, label)
    scaled = differentiated(drawn, sizes, label, scale, shift=draw.rng.standard_normal())
    gradients = [(a.grad, a.grad_x_tilde, a.grad_solver) for a in (h, scaled)]
    for g, got in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_array_equal(got, scale * np.asarray(g))


class Permutation(NamedTuple):
    """`S v = signs v[order]`, on the last axis."""

    order: np.ndarray
    signs: np.ndarray

    def __call__(self, v: Any) -> np.ndarray:
        return self.signs * np.asarray(v)[..., self.order]


def permutations(draw: Numbers) -> tuple[Permutation, Permutation]:
    """Of rows and columns, both signed; within the parts, and of groups as wholes."""
    rng = draw.rng
    groups = rng.permuted([[2, 4], [3, 5]], axis=1)[rng.permutation(2)]
    rows = np.concatenate([rng.permutation(2), groups.T.ravel()])
    columns = np.concatenate([rng.permutation(2), 2 + rng.permutation(3)])
    return tuple(Permutation(o, rng.choice([-1.0, 1.0], len(o))) for o in (rows, columns))


def permuted(problem: hg.LowerLevel, rows: Permutation, columns: Permutation) -> hg.LowerLevel:
    """`K` to `S_m K S_n^T`, and the parameters of F and G along with its rows and columns."""
    (weights, _), (_, box) = problem.F.parts, problem.G.parts
    in_box = columns.order[2:] - 2
    return eqx.tree_at(
        lambda p: (p.K, p.F.parts[0].weight, p.G.parts[1].radius, p.G.parts[1].weight),
        problem,
        (
            jnp.asarray(rows(columns(problem.K).T).T),
            weights.weight[rows.order[:2]],
            box.radius[in_box],
            box.weight[in_box],
        ),
    )


@every_own_strategy
@given(draw=numbers)
def test_signed_permutations_come_along(label, draw):
    """Another order and other signs of rows and columns: those of the gradient."""
    drawn = generic(draw)
    sizes = step_sizes(draw, drawn.problem.K)
    rows, columns = permutations(draw)
    turned = Level(
        permuted(drawn.problem, rows, columns), columns(drawn.x_tilde), columns(drawn.x_true)
    )
    h, of_turned = (differentiated(d, sizes, label) for d in (drawn, turned))
    # Where a coordinate is so near a kink, rounding decides; and a gradient that is so large is
    # that of a nearly singular system.
    assume(np.min(h.solution.stats.margin) > 1e-8)
    assume(np.linalg.norm(h.grad.K) < 1e5)
    grad = permuted(h.grad, rows, columns)
    expected = grad, columns(h.grad_x_tilde), h.grad_solver
    got = of_turned.grad, of_turned.grad_x_tilde, of_turned.grad_solver
    # Rounding in another order, multiplied by the condition of a linear solve: below 1e-10 in a
    # hundred draws of each strategy of everyday.
    assert_close(got, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64], ids=DTYPES
)
@every_strategy
@given(draw=numbers)
def test_nothing_becomes_nan(label, dtype, draw):
    """At kinks, at zeros of groups and balls, and where the system of the limit is singular."""
    drawn = degenerate(draw)
    sizes = step_sizes(draw, drawn.problem.K)
    drawn = Level(*cast_floats((drawn.problem, *map(jnp.asarray, drawn[1:])), dtype))
    h = differentiated(drawn, sizes, label)
    finite, numbers_at_least = [h.value, h.solution.x, h.solution.y], [h.solution.stats]
    # A linear solver of another package may break down where the system is singular: then the
    # status has to say so.
    if label not in PEERS or not np.any(h.adjoint.status == Status.NON_FINITE):
        finite += [h.grad, h.grad_x_tilde, h.grad_solver]
        numbers_at_least += [h.adjoint]
    for path, leaf in jax.tree.leaves_with_path(finite):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    # A gap and a margin may be infinite.
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(numbers_at_least))
