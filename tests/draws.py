"""What the property tests draw: numbers, functions with their parameters, operators, problems.

Hypothesis draws a seed, NumPy the numbers of it: thousands in no time. Half of them are magnitudes
over six decades (of float32 even products of six are finite), half a few that floating point holds
exactly, so that their products, sums and Euclidean norms (3, 4, 5) meet kinks exactly. Shapes are
few: each is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
from helpers import Convolution
from hypothesis import assume
from hypothesis import strategies as st

import hypergrad as hg
from hypergrad.problem.operators import (
    FFT,
    AbstractBoundary,
    AbstractConvolution,
    Direct,
    FilterBank,
    Operator,
    Periodic,
    Reflect,
    Symmetric,
    Valid,
    ZeroOutside,
    dct2,
    difference_operator,
    differences2,
    stack,
)

DTYPES = {"float32": jnp.float32, "float64": jnp.float64}

# ------------------------------------------------------------------------------------- numbers

GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
DECADES = 3.0


class Numbers:
    """A stream of them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"Numbers({self.rng.bit_generator.seed_seq.entropy})"

    def magnitudes(self, *shape: int) -> np.ndarray:
        """Positive; every row from the grid alone, from all decades, or from both."""
        rng = self.rng
        share = rng.choice([0.0, 0.5, 1.0], (*shape[:-1], 1) if shape else ())
        spread = 10.0 ** rng.uniform(-DECADES, DECADES, shape)
        return np.where(rng.random(shape) < share, rng.choice(GRID, shape), spread)

    def near_1(self, *shape: int) -> np.ndarray:
        """Positive, within half a decade of 1."""
        return 10.0 ** self.rng.uniform(-0.5, 0.5, shape)

    def weights(self, *shape: int) -> np.ndarray:
        """Positive, and now and then 0."""
        return np.where(self.rng.random(shape) < 0.1, 0.0, self.magnitudes(*shape))

    def entries(self, *shape: int) -> np.ndarray:
        """Of both signs; every row with its own share of zeros."""
        zeros = self.rng.random(shape) < self.rng.random((*shape[:-1], 1)) ** 2
        return np.where(zeros, 0.0, self.rng.choice([-1, 1], shape) * self.magnitudes(*shape))


numbers = st.builds(Numbers, st.integers(0, 2**32 - 1))

# ----------------------------------------------------------------------------------- functions

SIZE = 12  # more than 8, the members of a group that are taken one by one


def _sum(draw: Numbers) -> hg.SeparableSum:
    parts = hg.L1(draw.weights(2)), hg.L2Ball(draw.magnitudes()), hg.NonNegative()
    group = hg.GroupL1(draw.weights(), shape=(2, 2))
    return hg.SeparableSum((*parts, group), (2, 3, 3, 4))


# Every function of the package on vectors of this size; the first word is its class. (Entries span
# decades and are compared one by one, which a `DataFidelity` mixes: see test_forward_operators.py.)
FUNCTIONS = {
    "L1": lambda draw: hg.L1(draw.weights(SIZE)),
    "GroupL1": lambda draw: hg.GroupL1(draw.weights(), shape=(4, 3), axis=-1),
    "GroupL1 long": lambda draw: hg.GroupL1(draw.weights(), shape=(SIZE,)),
    "Huber": lambda draw: hg.Huber(draw.magnitudes(SIZE), draw.magnitudes(SIZE)),
    "ElasticNet": lambda draw: hg.ElasticNet(draw.weights(SIZE), draw.magnitudes(SIZE)),
    "ConvexPotential": lambda draw: hg.ConvexPotential(
        draw.weights(3, 2), np.cumsum(draw.magnitudes(2)), draw.weights(3)
    ),
    "ConvexPotential smooth": lambda draw: hg.ConvexPotential(
        draw.weights(SIZE, 2), np.cumsum(draw.magnitudes(2))
    ),
    "Quadratic": lambda draw: hg.Quadratic(draw.weights(SIZE), draw.entries(SIZE)),
    "Zero": lambda draw: hg.Zero(),
    "IndicatorZero": lambda draw: hg.IndicatorZero(),
    "Box": lambda draw: hg.Box(draw.magnitudes(SIZE)),
    "BoxQuadratic": lambda draw: hg.BoxQuadratic(draw.magnitudes(SIZE), draw.magnitudes(SIZE)),
    "L2Ball": lambda draw: hg.L2Ball(draw.magnitudes()),
    "NonNegative": lambda draw: hg.NonNegative(),
    "SeparableSum": _sum,
}

# ------------------------------------------------------------- problems whose solution is known


class Planted(NamedTuple):
    """A lower level with its saddle point: `x = x_tilde + r` and y are optimal to rounding."""

    problem: hg.LowerLevel
    x_tilde: np.ndarray
    state: hg.State


M, N = 6, 5  # of all problems here

PAIRS = {
    "L1+Quadratic": lambda draw: (
        hg.L1(draw.near_1(M)),
        hg.Quadratic(draw.near_1(N), draw.rng.standard_normal(N)),
    ),
    "GroupL1+ElasticNet": lambda draw: (
        hg.GroupL1(draw.near_1(), shape=(2, 3)),
        hg.ElasticNet(draw.near_1(N), draw.near_1(N)),
    ),
    "Huber+L2Ball": lambda draw: (
        hg.Huber(draw.near_1(M), draw.near_1(M)),
        hg.L2Ball(draw.near_1()),
    ),
    "L1+Box": lambda draw: (hg.L1(draw.near_1(M)), hg.Box(draw.near_1(N))),
}


def planted(draw: Numbers, pair: str) -> Planted:
    """Nothing is solved: K is moved, by two ranks, to where a random pair is optimal.

    `y` is a subgradient of F at `v` and `w` one of G at `r`. With `K x = v` and `K^T y = -w` the
    pair is a saddle point; the two agree where `<y, v> = -<w, x>`, which x is drawn for.
    """
    F, G = PAIRS[pair](draw)
    z_D, z_P = 2 * draw.rng.standard_normal(M), 2 * draw.rng.standard_normal(N)
    v, r = np.asarray(F.prox(jnp.asarray(z_D), 1.0)), np.asarray(G.prox(jnp.asarray(z_P), 1.0))
    y, w = z_D - v, z_P - r
    assume(np.any(w))  # else y and v would have to be orthogonal
    x = draw.rng.standard_normal(N)
    x -= (w @ x + y @ v) * w / (w @ w)
    K = draw.rng.standard_normal((M, N)) / np.sqrt(M)
    a, b = v - K @ x, -w - K.T @ y  # what K lacks
    K += np.outer(a, x) / (x @ x) + np.outer(y, b) / (y @ y)
    K -= (y @ a) * np.outer(y, x) / (x @ x) / (y @ y)
    state = hg.State(*map(jnp.asarray, (r, r, y)))
    return Planted(hg.LowerLevel(K, F, G), x - r, state)


# ------------------------------------------------------------------------------------ operators

IMAGE = (3, 4)
_PIXELS = 12


class Kind(NamedTuple):
    """Operators of one structure: how one is drawn, and its degree in its own parameters."""

    make: Callable[[Numbers, Any], Operator]  # of a dtype, or cast to it later
    degree: int | None = 1  # None: it has none


def _bank(size: tuple[int, int], boundary: AbstractBoundary, way: AbstractConvolution) -> Kind:
    def make(draw: Numbers, dtype: Any) -> FilterBank:
        filters = draw.entries(2, *size)
        filters[0, 0, 0] = 1.0  # not all 0
        return FilterBank(filters, IMAGE, boundary, way)

    return Kind(make)


def _diagonal(draw: Numbers, dtype: Any) -> Operator:
    return lx.DiagonalLinearOperator(jnp.asarray(draw.entries(_PIXELS)))


def _composed(draw: Numbers, dtype: Any) -> Operator:
    A, d = jnp.asarray(draw.entries(7, _PIXELS)), jnp.asarray(draw.entries(_PIXELS))
    return lx.MatrixLinearOperator(A) @ lx.DiagonalLinearOperator(d)


def _stacked(draw: Numbers, dtype: Any) -> Operator:
    return stack(
        draw.entries(7, _PIXELS), OPERATORS["valid"].make(draw, dtype), _diagonal(draw, dtype)
    )


OPERATORS = {
    "array": Kind(lambda draw, dtype: jnp.asarray(draw.entries(7, _PIXELS))),
    "DCT": Kind(lambda draw, dtype: dct2(IMAGE)),
    "differences": Kind(lambda draw, dtype: differences2(IMAGE)),
    "image differences": Kind(lambda draw, dtype: difference_operator(IMAGE, dtype), degree=None),
    "diagonal": Kind(_diagonal),
    "composed": Kind(_composed, degree=2),
    "stacked": Kind(_stacked),
    "convolution": Kind(lambda draw, dtype: Convolution(jnp.asarray(draw.entries(3)), _PIXELS)),
    # Even, odd, and as large as the image.
    "symmetric": _bank((2, 3), Symmetric(), Direct()),
    "reflect": _bank((2, 3), Reflect(), Direct()),
    "valid": _bank((2, 3), Valid(), Direct()),
    "zero outside": _bank((2, 3), ZeroOutside(), Direct()),
    "periodic": _bank((2, 3), Periodic(), Direct()),
    "symmetric by FFT": _bank(IMAGE, Symmetric(), FFT()),
    "reflect by FFT": _bank(IMAGE, Reflect(), FFT()),
    "valid by FFT": _bank(IMAGE, Valid(), FFT()),
    "zero outside by FFT": _bank(IMAGE, ZeroOutside(), FFT()),
    "periodic by FFT": _bank(IMAGE, Periodic(), FFT()),
}

# ------------------------------------------------------------- problems with all kinds of kinks


class Level(NamedTuple):
    """A lower level with two samples and their truth."""

    problem: hg.LowerLevel
    x_tilde: np.ndarray
    x_true: np.ndarray


def level(K: Any, weights: Any, group: Any, radius: Any, box: Any, ridge: Any) -> hg.LowerLevel:
    """Rows 0, 1 under an L1, (2, 4), (3, 5) groups; columns 0, 1 in a ball, the rest in a box."""
    F = hg.SeparableSum((hg.L1(weights), hg.GroupL1(group, shape=(2, 2))), (2, 4))
    G = hg.SeparableSum((hg.L2Ball(radius), hg.BoxQuadratic(box, ridge)), (2, 3))
    return hg.LowerLevel(K, F, G)


def generic(draw: Numbers) -> Level:
    """Away from kinks, but for the rarest chance."""
    normal = draw.rng.standard_normal
    problem = level(
        normal((M, N)) / 3,
        0.3 * draw.near_1(2),
        0.3 * draw.near_1(),
        draw.near_1(),
        draw.near_1(3),
        draw.near_1(3),
    )
    return Level(problem, normal((2, N)), normal((2, N)))


def degenerate(draw: Numbers) -> Level:
    """Zeros, kinks met exactly, equal and empty rows, weights of 0."""
    K = draw.entries(M, N)
    K[draw.rng.integers(M)] = K[draw.rng.integers(M)]
    K[0, 0] = K[0, 0] or 1.0  # not all 0
    weights = draw.weights(2), draw.weights(), draw.magnitudes(), *draw.magnitudes(2, 3)
    return Level(level(K, *weights), draw.entries(2, N), draw.entries(2, N))
