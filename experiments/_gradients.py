"""What the experiments on the quality of gradients share: lower levels with data, and the gradient
of every sample in K beside the exact one.

Everything in float64: rounding of float32 flips active sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _images import Images, random_start

import hypergrad as hg
from hypergrad.chambolle_pock import StepSizes, step
from hypergrad.problem import operators
from hypergrad.workbench import data

# Samples whose gradients are written out at a time: they fit into the cache of a core.
_PIECE = 16


# -------------------------------------------------------------------------------------- problems


@dataclasses.dataclass(frozen=True)
class Task:
    """A lower level with data; `primal_scale`, the size of r in the units of the data."""

    problem: hg.LowerLevel
    x_tilde: np.ndarray
    x_true: np.ndarray
    primal_scale: float

    def solver(self, L: int, step_ratio: float = 1.0) -> hg.ChambollePock:
        """L iterations, their steps written out (the operator norm is paid once)."""
        solver = hg.ChambollePock(L, step_ratio=step_ratio, primal_scale=self.primal_scale)
        return solver.with_step_sizes(self.problem)


def noisy_patches(seed: int, samples: int, noise: float = 0.1) -> data.Samples:
    """8×8 patches of the training photographs with noise."""
    return data.noisy_patches(data.PHOTOGRAPHS_TRAIN, samples, noise=noise, seed=2 * seed)


def random_denoising(seed: int, samples: int, *, weight: float = 0.03, noise: float = 0.1) -> Task:
    """Noisy patches, an overcomplete random K, L1 + Quadratic."""
    patches = noisy_patches(seed, samples, noise)
    problem = random_start(seed, weight, dtype=jnp.float64)
    return Task(problem, patches.x_tilde, patches.x_true, noise)


def dct_denoising(seed: int, samples: int, *, weight: float = 0.1, noise: float = 0.1) -> Task:
    """The same with the DCT without its constant row: orthonormal rows, the easy case."""
    patches = noisy_patches(seed, samples, noise)
    K = operators.dct2((8, 8), constant=False).astype(jnp.float64)
    problem = hg.LowerLevel(K, hg.L1(weight), hg.Quadratic(1.0))
    return Task(problem, patches.x_tilde, patches.x_true, noise)


def quantised(images: Images, bits: int) -> Images:
    """The same patches in [-1, 1], observed through a quantiser; its radius is their scale."""

    def part(samples: data.Samples) -> data.Samples:
        x_true = 2 * samples.x_true - 1
        x_tilde = data.quantise(x_true, bits).astype(x_true.dtype)
        return dataclasses.replace(samples, x_tilde=x_tilde, x_true=x_true)

    return Images(part(images.train), part(images.held_out), 2.0**-bits)


# ----------------------------------------------------------------------------- states on the way


@eqx.filter_jit
def _advance(
    problem: hg.LowerLevel, x_tilde: jax.Array, sizes: StepSizes, state: hg.State, count: jax.Array
) -> hg.State:
    """`count` iterations; their number is not compiled in."""
    return jax.lax.fori_loop(0, count, lambda _, s: step(problem, x_tilde, sizes, s)[0], state)


def states(task: Task, solver: hg.ChambollePock, marks: Sequence[int]) -> dict[int, hg.State]:
    """The states after so many iterations each, on one way."""

    def on_the_way() -> Iterator[tuple[int, hg.State]]:
        x_tilde = jnp.asarray(task.x_tilde)
        sizes = solver.step_sizes(task.problem)
        state, done = solver.start(task.problem, x_tilde), 0
        for mark in sorted(set(marks)):
            state = _advance(task.problem, x_tilde, sizes, state, jnp.asarray(mark - done))
            done = mark
            yield mark, state

    return dict(on_the_way())


# --------------------------------------------------------------------------- gradients by sample


@eqx.filter_jit
def _recorded_gradients(
    problem: hg.LowerLevel,
    x_tilde: jax.Array,
    x_true: jax.Array,
    solver: hg.ChambollePock,
    strategy: hg.AbstractStrategy,
    init: hg.State | None,
) -> jax.Array:
    """Gradient in K of each sample, by going back through it alone."""

    def of_one(sample: Any):
        h = hg.hypergradient(problem, *sample[:2], solver=solver, strategy=strategy, init=sample[2])
        return jnp.asarray(h.grad.K).ravel()

    return jax.lax.map(of_one, (x_tilde, x_true, init), batch_size=_PIECE)


@eqx.filter_jit
def _written_out(sizes: StepSizes, x: jax.Array, y: jax.Array, sums: Any) -> jax.Array:
    """`sigma Delta_D x^T - tau y Delta_P^T` of each sample, times the size of the batch.

    The loss of a batch is a mean: in its `Delta` every sample counts only 1 / size.
    """
    left = sizes.sigma * sums.Delta_D[:, :, None] * x[:, None, :]
    right = sizes.tau * y[:, :, None] * sums.Delta_P[:, None, :]
    return (len(x) * (left - right)).reshape(len(x), -1)


def sample_gradients(
    task: Task,
    solver: hg.ChambollePock,
    strategy: hg.AbstractStrategy,
    init: hg.State | None = None,
) -> np.ndarray:
    """The gradient in K of the loss of each sample, `(samples, m n)`.

    A strategy that sees the last k iterations only may be given `init`, the state at L - k, and a
    solver of k iterations: these are the numbers of L iterations.
    """
    if isinstance(strategy, hg.LimitFormula):
        h = hg.hypergradient(
            task.problem, task.x_tilde, task.x_true, solver=solver, strategy=strategy, init=init
        )
        sizes = solver.step_sizes(task.problem)
        return np.asarray(_written_out(sizes, h.solution.x, h.solution.y, h.state.adjoint))
    pair = jnp.asarray(task.x_tilde), jnp.asarray(task.x_true)
    return np.asarray(_recorded_gradients(task.problem, *pair, solver, strategy, init))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Solution, state (without an adjoint part) and gradient of each sample by `Exact`.

    `differentiable`: unique, differentiable, and both solves certified; `good`, those of them whose
    gradient is not 0, so that there is something to be relative to.
    """

    x: np.ndarray
    state: hg.State
    gradients: np.ndarray
    differentiable: np.ndarray
    good: np.ndarray

    @property
    def shares(self) -> dict[str, float]:
        """Of the samples that are differentiable, and of those that are good."""
        found = {"differentiable": self.differentiable, "good": self.good}
        return {name: float(np.mean(which)) for name, which in found.items()}


def exact_reference(task: Task) -> Reference:
    """The truth, by `Exact`; it does not depend on step sizes."""
    solver = task.solver(1)
    h = hg.hypergradient(
        task.problem, task.x_tilde, task.x_true, solver=solver, strategy=hg.Exact()
    )
    sizes = solver.step_sizes(task.problem)
    gradients = np.asarray(_written_out(sizes, h.solution.x, h.solution.y, h.state.adjoint))
    size = np.linalg.norm(gradients, axis=1)
    converged = hg.Status.CONVERGED
    differentiable = np.asarray(h.solution.stats.status) == converged
    differentiable &= np.asarray(h.adjoint.status) == converged
    good = differentiable & (size > 1e-9 * np.max(size, initial=0.0))
    state = hg.State(h.state.r, h.state.r_bar, h.state.y)
    return Reference(np.asarray(h.solution.x), state, gradients, differentiable, good)


# ------------------------------------------------------------------------------------ in numbers

Number = float | None


def rounded(value: float) -> Number:
    """Four significant digits, which is more than a figure shows; None where not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def quantiles(values: np.ndarray, levels: Sequence[float]) -> list[Number]:
    """Quantiles of what is a number; None where nothing is."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not values.size:
        return [None] * len(levels)
    # One of the values: an infinite one has no neighbours.
    return [rounded(v) for v in np.quantile(values, levels, method="inverted_cdf")]


def relative_errors(ours: np.ndarray, reference: Reference) -> np.ndarray:
    """`|| ours - exact || / || exact ||` of each good sample."""
    exact = reference.gradients[reference.good]
    difference = np.linalg.norm(ours[reference.good] - exact, axis=1)
    return difference / np.linalg.norm(exact, axis=1)


def cosines(ours: np.ndarray, reference: Reference) -> np.ndarray:
    """Cosine of each good sample to the exact gradient; NaN where ours is 0."""
    ours, exact = ours[reference.good], reference.gradients[reference.good]
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
    return np.sum(ours * exact, axis=1) / np.where(sizes > 0, sizes, np.nan)


def batch_errors(ours: np.ndarray, reference: Reference) -> tuple[Number, Number]:
    """Relative error and cosine of the gradient of the batch, that of the good samples."""
    if not np.any(reference.good):
        return None, None
    mean, exact = (g[reference.good].mean(axis=0) for g in (ours, reference.gradients))
    size, exact_size = np.linalg.norm(mean), np.linalg.norm(exact)
    cosine = float(mean @ exact / (size * exact_size)) if size > 0 else np.nan
    return rounded(float(np.linalg.norm(mean - exact) / exact_size)), rounded(cosine)
