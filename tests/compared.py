"""The problem, the data and the strategies of the tests of `compare`."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from helpers import random_data

import hypergrad as hg

WEIGHT, L = 0.4, 40
SOLVER = hg.ChambollePock(L)
# Two odd samples: one at a kink, which has no gradient, and one that takes its time.
KINK, SLOW = 1, 3
DIFFERENTIABLE = [0, 2, 3, 4, 5]


class Doubled(hg.AbstractStrategy):
    """A strategy of the user's: full unrolling, twice."""

    name: ClassVar[str] = "doubled"

    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        gradients = hg.FullUnrolling().pullback(residuals, cotangent)
        twice = jax.tree.map(lambda g: 2 * g, eqx.filter(gradients.problem, eqx.is_inexact_array))
        return gradients._replace(problem=twice)


class Failing(hg.AbstractStrategy):
    """Another one, which does not work."""

    name: ClassVar[str] = "failing"

    def forward(self, problem, x_tilde, solver, init):
        return hg.FullUnrolling().forward(problem, x_tilde, solver, init)

    def pullback(self, residuals, cotangent):
        raise RuntimeError("no luck today\nand a second line about it")


STRATEGIES = [hg.FullUnrolling(), Failing(), hg.Truncation(1), Doubled(), hg.Truncation(L + 1)]
WORKING = ["full", "truncation:k=1", "doubled"]


def matrix() -> np.ndarray:
    """Independent rows; the last one sees the last coordinate alone."""
    K = np.zeros((4, 5))
    K[:3, :4] = np.random.default_rng(0).standard_normal((3, 4))
    K /= np.linalg.norm(K, 2)
    K[3, 4] = 0.01
    return K


def problem() -> hg.LowerLevel:
    return hg.LowerLevel(K=matrix(), F=hg.L1(WEIGHT), G=hg.Quadratic(1.0))


def samples() -> tuple[np.ndarray, np.ndarray]:
    x_tilde, x_true = random_data(6, 5)
    # The dual variable of the last row walks to its bound in steps of about 0.004 times this.
    x_tilde[:, 4] = x_true[:, 4] = 20.0
    x_tilde[SLOW, 4] = x_true[SLOW, 4] = 3e-4
    # K x = 0 in the first rows, with a dual variable of exactly the weight.
    K = matrix()[:3, :4]
    in_kernel = np.linalg.svd(K)[2][-1]
    x_tilde[KINK, :4] = in_kernel + K.T @ [WEIGHT, 0.1, -0.1]
    return x_tilde, x_true


def row_of(comparison: hg.Comparison, label: str) -> dict[str, Any]:
    (row,) = (record for record in comparison.records if record["strategy"] == label)
    return row
