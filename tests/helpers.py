"""The oracles of the tests: the posters' recursions as loops, and solvers that are no iteration.

Everything but the last three parts is NumPy and SciPy alone: neither JAX nor the package is in it.
The letters are those of the posters; samples are looped over, layers are looped over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from scipy.optimize import linprog, lsq_linear

import hypergrad as hg
from hypergrad.strategies import AbstractStrategy

# ----------------------------------------------------------------------------------- comparing


def relative_error(actual, expected) -> float:
    """`||actual - expected|| / ||expected||`; a zero has to be met exactly, a NaN is not met."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference, size = (float(np.linalg.norm(a)) for a in (actual - expected, expected))
    if difference == 0:
        return 0.0
    return difference / size if size > 0 else np.inf


def assert_close(actual, expected, rtol: float) -> None:
    """Every leaf of two pytrees, each leaf in its own norm."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        error = relative_error(a, b)
        assert error <= rtol, f"{jax.tree_util.keystr(path)}: {error:.1e} > {rtol:.1e}"


# ------------------------------------------------------------- the proxes, differentiated by hand


class Prox(NamedTuple):
    """A separable prox at z: its value, its slope in z, and its slope in the parameter."""

    value: np.ndarray
    slope: np.ndarray
    by_parameter: np.ndarray


class _Clip:
    """Projection onto `|z| <= parameter`: what L1 is on the dual side and Box on the primal one."""

    def __init__(self, parameter):
        self.parameter = np.asarray(parameter, float)

    def prox(self, z, step) -> Prox:
        del step
        inside = np.abs(z) < self.parameter
        value = np.where(inside, z, np.sign(z) * self.parameter)
        return Prox(value, np.where(inside, 1.0, 0.0), np.where(inside, 0.0, np.sign(z)))


class L1(_Clip):
    """`F = weight ||.||_1`, by the prox of `sigma F*`."""


class Box(_Clip):
    """`G = indicator of |r| <= radius`, by the prox of `tau G`."""


class Quadratic:
    """`G = (weight / 2) ||r||^2`."""

    def __init__(self, parameter):
        self.parameter = np.asarray(parameter, float)

    def prox(self, z, step) -> Prox:
        shrink = 1 / (1 + step * self.parameter)
        return Prox(shrink * z, shrink * np.ones_like(z), -step * shrink**2 * z)


# -------------------------------------------------------------------- the posters' two recursions


class Run(NamedTuple):
    """All iterates of one sample; index l is the iteration (there is no `z[0]`)."""

    r: list
    r_bar: list
    y: list
    z_D: list
    z_P: list


class Layer(NamedTuple):
    """One step of the delta recursion, taken at the iterate l."""

    l: int
    delta_P: np.ndarray
    delta_D: np.ndarray
    u_P: np.ndarray
    u_D: np.ndarray


class Gradient(NamedTuple):
    """Of the loss, in K, in the parameter of F, in that of G, and in x_tilde (one row a sample)."""

    K: np.ndarray
    F: np.ndarray
    G: np.ndarray
    x_tilde: np.ndarray


@dataclass(frozen=True)
class Poster:
    """A lower level with the numbers of its solver, as the posters have it."""

    K: np.ndarray
    F: L1
    G: Quadratic | Box
    tau: float
    sigma: float
    theta: float
    L: int

    # ---- forwards

    def run(self, x_tilde, start=None) -> Run:
        """The forward recursion for one sample, from zero or from `start = (r, r_bar, y)`."""
        m, n = self.K.shape
        r, r_bar, y = (np.zeros(n), np.zeros(n), np.zeros(m)) if start is None else start
        run = Run([r], [r_bar], [y], [None], [None])
        for l in range(self.L):
            run.z_D.append(run.y[l] + self.sigma * self.K @ (x_tilde + run.r_bar[l]))
            run.y.append(self.F.prox(run.z_D[l + 1], self.sigma).value)
            run.z_P.append(run.r[l] - self.tau * self.K.T @ run.y[l + 1])
            run.r.append(self.G.prox(run.z_P[l + 1], self.tau).value)
            run.r_bar.append(run.r[l + 1] + self.theta * (run.r[l + 1] - run.r[l]))
        return run

    def output(self, x_tilde, alpha=None, starts=None) -> tuple[np.ndarray, np.ndarray]:
        """`x = x_tilde + sum_l alpha_l r[l]` and `y = sum_l alpha_l y[l]`, one row a sample."""
        alpha = self._last() if alpha is None else alpha
        starts = [None] * len(x_tilde) if starts is None else starts
        runs = [self.run(x, start) for x, start in zip(x_tilde, starts, strict=True)]
        x = [sum(alpha[l - 1] * run.r[l] for l in range(1, self.L + 1)) for run in runs]
        y = [sum(alpha[l - 1] * run.y[l] for l in range(1, self.L + 1)) for run in runs]
        return x_tilde + np.array(x), np.array(y)

    def _last(self) -> np.ndarray:
        return np.eye(self.L)[-1]

    # ---- backwards

    def layers(self, run: Run, g, alpha, k: int, frozen: bool = False) -> list[Layer]:
        """k steps of the delta recursion, from the last iteration; frozen: all at the last one."""
        delta_P, delta_D, delta_bar_D = np.zeros_like(g), *np.zeros((2, len(self.K)))
        layers = []
        for j in range(k):
            l = self.L - j
            at = self.L if frozen else l
            alpha_l = alpha[l - 1] if l >= 1 else 0.0
            u_P = delta_P + self.sigma * self.K.T @ delta_bar_D + alpha_l * g
            delta_P = self.G.prox(run.z_P[at], self.tau).slope * u_P
            u_D = delta_D - self.tau * self.K @ delta_P
            old_delta_D = delta_D
            delta_D = self.F.prox(run.z_D[at], self.sigma).slope * u_D
            delta_bar_D = delta_D + self.theta * (delta_D - old_delta_D)
            layers.append(Layer(at, delta_P, delta_D, u_P, u_D))
        return layers

    def _gradient(self, delta_P, delta_D, u_P, u_D, run, x_bar, l) -> Gradient:
        """What one layer (or the sum of all) contributes, with `y[l]`, `z[l]` and an x."""
        in_F = u_D * self.F.prox(run.z_D[l], self.sigma).by_parameter
        in_G = u_P * self.G.prox(run.z_P[l], self.tau).by_parameter
        return Gradient(
            self.sigma * np.outer(delta_D, x_bar) - self.tau * np.outer(run.y[l], delta_P),
            in_F if self.F.parameter.ndim else np.sum(in_F),
            in_G if self.G.parameter.ndim else np.sum(in_G),
            self.sigma * self.K.T @ delta_D,
        )

    def unrolled(self, x_tilde, x_true, alpha=None, k=None) -> Gradient:
        """Variant (a): backpropagation through the last k iterations, each at its own iterate."""
        alpha, k = self._last() if alpha is None else alpha, self.L if k is None else k

        def one(x_tilde, g):
            run = self.run(x_tilde)
            for l, *deltas in self.layers(run, g, alpha, k):
                yield self._gradient(*deltas, run, x_tilde + run.r_bar[l - 1], l)

        return self._mean(x_tilde, x_true, alpha, one)

    def limit(self, x_tilde, x_true, k: int, *, frozen: bool) -> Gradient:
        """Variants (b) and (c): summed deltas of k layers, with the last x, y and z."""

        def one(x_tilde, g):
            run = self.run(x_tilde)
            layers = self.layers(run, g, self._last(), k, frozen)
            sums = [sum(layer[i] for layer in layers) for i in range(1, 5)]
            yield self._gradient(*sums, run, x_tilde + run.r[-1], self.L)

        return self._mean(x_tilde, x_true, self._last(), one)

    def _mean(self, x_tilde, x_true, alpha, one: Callable) -> Gradient:
        """Sum the contributions; the loss is `0.5 ||x - x_true||^2` averaged over the samples."""
        x, _ = self.output(x_tilde, alpha)
        g = (x - x_true) / len(x)
        parts = [list(one(*sample)) for sample in zip(x_tilde, g, strict=True)]
        every = [part for sample in parts for part in sample]
        in_x_tilde = [sum(part.x_tilde for part in sample) for sample in parts]
        shared = (sum(getattr(part, name) for part in every) for name in ("K", "F", "G"))
        return Gradient(*shared, g + np.array(in_x_tilde))

    # ---- its limit

    def limit_system(self, run: Run, g, g_y) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and right-hand side of the limit system in `(Delta_P, Delta_D)`, at the last z."""
        D_P = np.diag(self.G.prox(run.z_P[-1], self.tau).slope)
        D_D = np.diag(self.F.prox(run.z_D[-1], self.sigma).slope)
        matrix = np.block(
            [
                [np.eye(len(D_P)) - D_P, -self.sigma * D_P @ self.K.T],
                [self.tau * D_D @ self.K, np.eye(len(D_D)) - D_D],
            ]
        )
        return matrix, np.concatenate([D_P @ g, D_D @ g_y])

    def limit_solved(self, x_tilde, x_true) -> Gradient:
        """The limit formula at the last iterate, by the pseudo-inverse of its system."""

        def one(x_tilde, g):
            run, zero = self.run(x_tilde), np.zeros(len(self.K))
            matrix, right = self.limit_system(run, g, zero)
            Delta_P, Delta_D = np.split(np.linalg.pinv(matrix, 1e-10) @ right, [len(g)])
            U_P = Delta_P + self.sigma * self.K.T @ Delta_D + g
            U_D = Delta_D - self.tau * self.K @ Delta_P
            sums = (Delta_P, Delta_D, U_P, U_D)
            yield self._gradient(*sums, run, x_tilde + run.r[-1], self.L)

        return self._mean(x_tilde, x_true, self._last(), one)


# ----------------------------------------- the lower level solved by other means; one sample each


def solve_l1_quadratic(K, weight, ridge, x_tilde, smoothing=0.0) -> np.ndarray:
    """`L1(weight)` (or Huber with a smoothing) and `Quadratic(ridge)`.

    The dual is a least-squares problem in a box, `|| K^T y / sqrt(ridge) - sqrt(ridge) x_tilde ||^2
    + smoothing / weight ||y||^2`, which an active-set method solves exactly.
    """
    m, n = K.shape
    weight, root = np.full(m, weight), np.sqrt(np.full(n, ridge))
    A = np.vstack([K.T / root[:, None], np.diag(np.sqrt(smoothing / weight))])
    b = np.concatenate([root * x_tilde, np.zeros(m)])
    y = lsq_linear(A, b, bounds=(-weight, weight), method="bvls", tol=1e-15).x
    return x_tilde - K.T @ y / root**2


def solve_potential_quadratic(K, slopes, jump, knots, ridge, x_tilde) -> np.ndarray:
    """`ConvexPotential` of decreasing slopes, and `Quadratic(ridge)`.

    Such a potential is `jump |v|` and, for each knot t, a Huber function of smoothing t: `phi''` is
    the sum of the steps by which the slopes decrease at the knots.
    """
    rows = len(K) // len(slopes)
    steps = -np.diff(slopes, axis=1, append=0)
    weight = np.column_stack([np.broadcast_to(jump, len(slopes)), steps * np.array(knots)])
    weight = np.repeat(weight, rows, axis=0).T.ravel()
    smoothing = np.repeat([0.0, *knots], len(K))
    return solve_l1_quadratic(np.tile(K, (len(knots) + 1, 1)), weight, ridge, x_tilde, smoothing)


def solve_l1_box(K, weight, radius, x_tilde) -> np.ndarray:
    """`L1(weight)` and `Box(radius)`: a linear programme in `r` and `s = |K (x_tilde + r)|`."""
    m, n = K.shape
    cost = np.concatenate([np.zeros(n), np.full(m, weight)])
    A = np.block([[K, -np.eye(m)], [-K, -np.eye(m)]])
    b = np.concatenate([-K @ x_tilde, K @ x_tilde])
    radius = np.full(n, radius)
    lower, upper = np.append(-radius, np.zeros(m)), np.append(radius, np.full(m, np.inf))
    result = linprog(cost, A_ub=A, b_ub=b, bounds=np.stack([lower, upper], 1), method="highs-ds")
    assert result.success, result.message
    return x_tilde + result.x[:n]


def solve_group_quadratic(K, weight, ridge, x_tilde, shape) -> np.ndarray:
    """`GroupL1(weight, shape, axis=0)` and `Quadratic(ridge)`, by projected gradients on the dual.

    With independent rows the dual is strongly convex, and this converges to rounding.
    """
    y, step = np.zeros(len(K)), ridge / np.linalg.norm(K, 2) ** 2
    for _ in range(1000):
        groups = (y + step * K @ (x_tilde - K.T @ y / ridge)).reshape(shape)
        before, size = y, np.linalg.norm(groups, axis=0)
        y = (groups * np.minimum(1, weight / size)).ravel()
    assert np.linalg.norm(y - before) <= 1e-15
    return x_tilde - K.T @ y / ridge


def solve_lasso(K, weight, center, l1, x_tilde) -> np.ndarray:
    """`F = Quadratic(weight, center)`, `G = L1(l1)`: the one sign pattern of r that is optimal."""
    target = center - K @ x_tilde
    for signs in map(np.array, itertools.product((-1, 0, 1), repeat=len(x_tilde))):
        on, r = signs != 0, np.zeros(len(x_tilde))
        A = weight * K[:, on].T @ K[:, on]
        r[on] = np.linalg.solve(A, weight * K[:, on].T @ target - l1 * signs[on])
        slope = weight * K.T @ (target - K @ r)
        if np.all(np.sign(r) == signs) and np.all(np.abs(slope[~on]) <= l1):
            return x_tilde + r
    raise AssertionError("no sign pattern is optimal")


def central_differences(f: Callable, p, step: float = 1e-5) -> np.ndarray:
    """The gradient of a scalar function of an array, entry by entry; the error is O(step^2)."""
    p = np.asarray(p, float)
    gradient = np.empty_like(p)
    for i in np.ndindex(p.shape):
        moved = np.zeros_like(p)
        moved[i] = step
        gradient[i] = (f(p + moved) - f(p - moved)) / (2 * step)
    return gradient


# ------------------------------------------------ the iteration as a scan that JAX differentiates


class Shifts(NamedTuple):
    """Perturbations `(L, ...)` added to the iterates; their gradients are the adjoint variables."""

    z_D: jax.Array
    y: jax.Array
    z_P: jax.Array
    r: jax.Array

    @classmethod
    def zero(cls, m: int, n: int, L: int) -> Shifts:
        return cls(*(jnp.zeros((L, size)) for size in (m, m, n, n)))


def plain_scan(problem, x_tilde, tau, sigma, theta, L, *, start=None, shifts=None):
    """`r[1..L]`, `r_bar[1..L]`, `y[1..L]` of one sample, nothing by hand: what autodiff sees."""
    K, F, G = problem.K, problem.F, problem.G
    K = K if isinstance(K, lx.AbstractLinearOperator) else lx.MatrixLinearOperator(K)
    m, n = K.out_size(), K.in_size()
    start = (jnp.zeros(n), jnp.zeros(n), jnp.zeros(m)) if start is None else start
    shifts = Shifts.zero(m, n, L) if shifts is None else shifts

    def body(state, shift):
        r, r_bar, y = state
        z_D = y + sigma * K.mv(x_tilde + r_bar) + shift.z_D
        new_y = F.prox_conjugate(z_D, sigma) + shift.y
        z_P = r - tau * K.transpose().mv(new_y) + shift.z_P
        new_r = G.prox(z_P, tau) + shift.r
        state = new_r, new_r + theta * (new_r - r), new_y
        return state, state

    return jax.lax.scan(body, start, shifts, length=L)[1]


# --------------------------------------------------------------------------- problems, strategies


class Convolution(lx.AbstractLinearOperator):
    """`v -> kernel * v` where they overlap fully: an operator whose parameters are no matrix."""

    kernel: jax.Array
    size: int = eqx.field(static=True)

    def mv(self, vector):
        return jnp.convolve(vector, self.kernel, mode="valid")

    def as_matrix(self):
        return jax.vmap(self.mv, out_axes=1)(jnp.eye(self.size, dtype=self.kernel.dtype))

    def transpose(self):
        return lx.FunctionLinearOperator(self.mv, self.in_structure()).transpose()

    def in_structure(self):
        return jax.ShapeDtypeStruct((self.size,), self.kernel.dtype)

    def out_structure(self):
        return jax.ShapeDtypeStruct((self.size - len(self.kernel) + 1,), self.kernel.dtype)


for _property in (lx.is_symmetric, lx.is_positive_semidefinite, lx.is_negative_semidefinite):
    _property.register(Convolution)(lambda operator: False)


def random_poster(
    G: type, m: int, n: int, *, L: int, per_entry: bool = False, theta: float = 1.0, seed: int = 0
) -> Poster:
    """A random K of norm near 1, and weights at which some coordinates saturate and some do not."""
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((m, n)) / (np.sqrt(m) + np.sqrt(n))
    spread_F = rng.uniform(0.7, 1.3, m) if per_entry else 1.0
    spread_G = rng.uniform(0.7, 1.3, n) if per_entry else 1.0
    F, G = L1(0.5 * spread_F), G((1.0 if G is Quadratic else 0.4) * spread_G)
    step = 0.9 / np.linalg.norm(K, 2)
    return Poster(K, F, G, tau=0.8 * step, sigma=1.25 * step, theta=theta, L=L)


def unsaturated_poster(L: int) -> Poster:
    """Weights and radii so large that no coordinate ever reaches them; K has a kernel."""
    rows = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 3)))[0].T
    K = np.array([[1.0], [0.8], [0.6]]) * rows
    return Poster(K, L1(50.0), Box(50.0), tau=0.8, sigma=1.2, theta=1.0, L=L)


def saturated_poster(L: int) -> Poster:
    """Rows 1 and 2 saturate, and coordinate 1; 2, 3, 4 are free and row 3 is not saturated.

    `|x_1 + x_2| + |x_1 - x_2|` does not depend on x_2 where `|x_1|` is larger. Without that, as
    many coordinates are free as rows are unsaturated, and the reduced kernel is trivial.
    """
    K = np.array([[0.7, 0.7, 0, 0], [0.7, -0.7, 0, 0], [0, 0, 0.6, 0.5]])
    return Poster(K, L1(0.3), Box(0.5), tau=0.8, sigma=1.2, theta=1.0, L=L)


SATURATED = np.array([[2.0, 0.3, 0.1, -0.05], [-1.8, 0.2, 0.05, 0.08]])


def convolution_poster(L: int) -> tuple[Poster, hg.LowerLevel, hg.ChambollePock, list[np.ndarray]]:
    """Return a convolution, as a matrix and an operator, with its derivatives in the kernel.

    Entry `(i, i + 2 - j)` of the matrix is `kernel[j]`.
    """
    kernel, shifts = np.array([0.5, -0.4, 0.2]), [np.eye(5, 7, 2 - j) for j in range(3)]
    K = sum(entry * shift for entry, shift in zip(kernel, shifts, strict=True))
    poster = Poster(K, L1(0.3), Quadratic(1.0), tau=0.7, sigma=0.9, theta=1.0, L=L)
    problem, solver = to_hypergrad(poster)
    problem = hg.LowerLevel(Convolution(jnp.asarray(kernel), size=7), problem.F, problem.G)
    return poster, problem, solver, shifts


def random_data(batch: int, n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`x_tilde` and `x_true`, `(batch, n)`."""
    rng = np.random.default_rng([seed, n])
    x_true = rng.standard_normal((batch, n))
    return x_true + 0.3 * rng.standard_normal((batch, n)), x_true


def to_hypergrad(poster: Poster) -> tuple[hg.LowerLevel, hg.ChambollePock]:
    """The same problem and solver, of the package."""
    G = {Quadratic: hg.Quadratic, Box: hg.Box}[type(poster.G)](jnp.asarray(poster.G.parameter))
    F = hg.L1(jnp.asarray(poster.F.parameter))
    problem = hg.LowerLevel(K=jnp.asarray(poster.K), F=F, G=G)
    return problem, hg.ChambollePock(poster.L, poster.tau, poster.sigma, poster.theta)


def gradient_of(h: hg.Hypergradient) -> Gradient:
    """A hypergradient of L1 with Quadratic or Box, in the form of the oracle."""
    G = h.grad.G
    in_G = G.radius if isinstance(G, hg.Box) else G.weight
    return Gradient(*map(np.asarray, (h.grad.K, h.grad.F.weight, in_G, h.grad_x_tilde)))


def strategies_for_contract(L: int) -> list[AbstractStrategy]:
    """Every strategy of the one list as it comes, and the variants that take other paths."""
    rising = np.arange(1.0, L + 1) ** 2
    return [
        *(strategy() for strategy in hg.STRATEGIES.values()),
        hg.ErgodicUnrolling(rising / rising.sum()),
        hg.LimitFormula(hg.Steps(2)),
        hg.LimitFormula(hg.LastIterates(3)),
        hg.LimitFormula(hg.Tolerance(1e-2)),
    ]
