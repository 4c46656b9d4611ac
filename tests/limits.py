"""Lower levels by their parameters, solved and differentiated by other means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from helpers import (
    central_differences,
    relative_error,
    solve_group_quadratic,
    solve_l1_box,
    solve_l1_quadratic,
    solve_lasso,
    solve_potential_quadratic,
)

import hypergrad as hg

ENOUGH = 3000  # iterations, for every problem here to arrive at rounding


class Limit(NamedTuple):
    """A lower level by its parameters (`K`, `F.weight`, …): how the package and how SciPy solve it.

    The seeds are chosen so that the solution is not near a kink, and has coordinates on both sides.
    """

    seed: int
    parameters: dict[str, np.ndarray]
    F: Callable
    G: Callable
    solve: Callable

    def problem(self) -> hg.LowerLevel:
        p = {name: jnp.asarray(value) for name, value in self.parameters.items()}
        return hg.LowerLevel(p["K"], self.F(p), self.G(p))

    def solver(self, iterations: int = ENOUGH, ratio: float = 3.0) -> hg.ChambollePock:
        step = 0.99 / np.linalg.norm(self.parameters["K"], 2)
        return hg.ChambollePock(iterations, step / np.sqrt(ratio), step * np.sqrt(ratio))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, 7])
        x_tilde = rng.standard_normal((2, self.parameters["K"].shape[1]))
        return x_tilde, x_tilde + 0.3 * rng.standard_normal(x_tilde.shape)


def standard_normal(seed: int, stream: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, stream]).standard_normal(shape)


KNOTS = (0.15, 0.3, 0.6)

LIMITS = {
    "L1+Quadratic": Limit(
        3,
        {
            "K": standard_normal(3, 1, 5, 5) / 3,
            "F.weight": np.full(5, 0.4),
            "G.weight": np.array(1.1),
        },
        lambda p: hg.L1(p["F.weight"]),
        lambda p: hg.Quadratic(p["G.weight"]),
        lambda p, x: solve_l1_quadratic(p["K"], p["F.weight"], p["G.weight"], x),
    ),
    "L1 blocks+Quadratic": Limit(
        15,
        {
            "K": standard_normal(15, 1, 6, 5) / 3,
            "F.weight": np.array([0.3, 0.5]),
            "G.weight": np.array(1.1),
        },
        lambda p: hg.L1(p["F.weight"]),
        lambda p: hg.Quadratic(p["G.weight"]),
        lambda p, x: solve_l1_quadratic(p["K"], np.repeat(p["F.weight"], 3), p["G.weight"], x),
    ),
    "ConvexPotential+Quadratic": Limit(
        197,
        {
            "K": standard_normal(197, 1, 6, 5) / 3,
            "F.slopes": np.array([[0.9, 0.4, 0.1], [0.7, 0.5, 0.2]]),
            "F.jump": np.array([0.15, 0.1]),
            "G.weight": np.array(1.1),
        },
        lambda p: hg.ConvexPotential(p["F.slopes"], KNOTS, p["F.jump"]),
        lambda p: hg.Quadratic(p["G.weight"]),
        lambda p, x: solve_potential_quadratic(
            p["K"], p["F.slopes"], p["F.jump"], KNOTS, p["G.weight"], x
        ),
    ),
    "L1+Box": Limit(
        9,
        {
            "K": standard_normal(9, 2, 6, 4) / 3,
            "F.weight": np.random.default_rng([9, 9]).uniform(0.3, 0.5, 6),
            "G.radius": np.full(4, 0.4),
        },
        lambda p: hg.L1(p["F.weight"]),
        lambda p: hg.Box(p["G.radius"]),
        lambda p, x: solve_l1_box(p["K"], p["F.weight"], p["G.radius"], x),
    ),
    "Huber+Quadratic": Limit(
        6,
        {
            "K": standard_normal(6, 3, 5, 4) / 3,
            "F.weight": np.array(0.4),
            "F.smoothing": np.array(0.3),
            "G.weight": np.full(4, 1.1),
        },
        lambda p: hg.Huber(p["F.weight"], p["F.smoothing"]),
        lambda p: hg.Quadratic(p["G.weight"]),
        lambda p, x: solve_l1_quadratic(p["K"], p["F.weight"], p["G.weight"], x, p["F.smoothing"]),
    ),
    "GroupL1+Quadratic": Limit(
        7,
        {
            "K": np.eye(4, 5) + 0.2 * standard_normal(7, 4, 4, 5),
            "F.weight": np.array(0.4),
            "G.weight": np.array(1.1),
        },
        lambda p: hg.GroupL1(p["F.weight"], shape=(2, 2)),
        lambda p: hg.Quadratic(p["G.weight"]),
        lambda p, x: solve_group_quadratic(p["K"], p["F.weight"], p["G.weight"], x, (2, 2)),
    ),
    "Quadratic+L1": Limit(
        6,
        {
            "K": standard_normal(6, 5, 6, 4) / 3,
            "F.weight": np.array(1.2),
            "F.center": np.full(6, 0.3),
            "G.weight": np.array(0.2),
        },
        lambda p: hg.Quadratic(p["F.weight"], p["F.center"]),
        lambda p: hg.L1(p["G.weight"]),
        lambda p, x: solve_lasso(p["K"], p["F.weight"], p["F.center"], p["G.weight"], x),
    ),
}


@functools.cache
def solved_and_differentiated(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The independent solution, and the gradient of the loss in everything, entry by entry."""
    limit = LIMITS[name]
    x_tilde, x_true = limit.data()

    def solved(parameters, x_tilde):
        return np.array([limit.solve(parameters, x) for x in x_tilde])

    def loss(parameters, x_tilde):
        return 0.5 * np.mean(np.sum((solved(parameters, x_tilde) - x_true) ** 2, 1))

    gradients = {
        entry: central_differences(
            lambda value, entry=entry: loss(limit.parameters | {entry: value}, x_tilde), start
        )
        for entry, start in limit.parameters.items()
    }
    in_x_tilde = central_differences(lambda value: loss(limit.parameters, value), x_tilde)
    return solved(limit.parameters, x_tilde), gradients | {"x_tilde": in_x_tilde}


def assert_is_gradient(h: hg.Hypergradient, expected: dict[str, np.ndarray], zero=1e-12) -> None:
    """Check against central differences, whose step of 1e-5 leaves an error of about 1e-10."""
    for entry, gradient in expected.items():
        actual = h.grad_x_tilde if entry == "x_tilde" else attrgetter(entry)(h.grad)
        if np.linalg.norm(gradient) <= 1e-8:
            # The vertices of a linear programme do not depend on its costs.
            assert entry == "F.weight"
            assert np.linalg.norm(actual) <= zero
        else:
            assert relative_error(actual, gradient) <= 1e-8, entry


def free_direction() -> tuple[hg.LowerLevel, np.ndarray, np.ndarray]:
    """A linear programme with fewer rows than columns.

    The first sample is so far out that every coordinate goes to its bound. The second one reaches
    `K x = 0` inside the box and may move along the kernel of K: it has no unique solution.
    """
    problem = hg.LowerLevel(standard_normal(0, 1, 2, 4), hg.L1(0.3), hg.Box(0.5))
    far = 30 * np.asarray(problem.K).sum(0)
    x_tilde = np.stack([far, 0.1 * standard_normal(0, 2, 4)])
    return problem, x_tilde, x_tilde + standard_normal(0, 3, 2, 4)


def no_fidelity() -> tuple[hg.LowerLevel, np.ndarray, np.ndarray]:
    """`argmin_x weight ||K x||_1`: the kernel of K, for both samples."""
    problem = hg.LowerLevel(standard_normal(0, 1, 2, 4), hg.L1(0.3), hg.Zero())
    return problem, standard_normal(0, 2, 2, 4), standard_normal(0, 3, 2, 4)
