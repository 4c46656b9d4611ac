"""What the experiments on whole photographs share: images, models, training, and how to judge.

A model is a bank of filters with one weight, or one learned convex potential, for each filter. It
is learned on crops and applied to photographs of any shape. Everything is in float32, in grey
values from 0 to 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg
from hypergrad.problem import operators
from hypergrad.problem.lower_level import cast_floats
from hypergrad.workbench import data
from hypergrad.workbench.sweep import Workspace

# Observations of images `(count, n)` of one shape: x_tilde, from the truth and a generator.
Observe = Callable[[np.ndarray, tuple[int, int], np.random.Generator], np.ndarray]
# The data term on images of a shape.
DataTerm = Callable[[tuple[int, int]], Any]

VALIDATION = 20  # photographs, of which nothing is learned
SIDE = 120  # of the part of each that judges
STEP_RATIO = 100.0

# Knots of the learned potentials, in grey values that a filter of norm 1 answers with.
KNOTS = (0.005, 0.015, 0.04, 0.08, 0.15, 0.3)
LEAST_SLOPE = 0.01  # where they start: nearly L1, and able to bend


# ------------------------------------------------------------------------------------------ images


def training_images(folder: Path | None) -> Sequence[Any]:
    """The images of a folder, or those packaged with scikit-image."""
    if folder is not None:
        return data.ImageFolder(folder)
    return [data.photograph(name) for name in data.PHOTOGRAPHS_TRAIN]


def test_images(folder: Path | None, count: int) -> dict[str, np.ndarray]:
    """The first test photographs, by name."""
    if folder is None:
        return {name: data.photograph(name) for name in data.PHOTOGRAPHS_HELD_OUT[:count]}
    images = data.ImageFolder(folder)
    return {images.names[i]: np.asarray(images[i]) for i in range(min(count, len(images)))}


def split(images: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Images to learn from, and the last twenty (or fifth) to choose on."""
    count = min(VALIDATION, max(1, len(images) // 5))
    chosen = [np.asarray(images[i]) for i in range(len(images) - count, len(images))]
    return [images[i] for i in range(len(images) - count)], chosen


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """The middle of the photographs that are held out of training, observed once."""

    x_tilde: np.ndarray
    x_true: np.ndarray
    side: int
    data_term: DataTerm
    L: int

    @classmethod
    def of(
        cls, images: Sequence[Any], observe: Observe, data_term: DataTerm, *, side: int, L: int
    ) -> HeldOut:
        def middle(image: np.ndarray) -> np.ndarray:
            top, left = (np.array(image.shape) - side) // 2
            return image[top : top + side, left : left + side]

        x_true = np.stack([middle(image).ravel() for image in images])
        x_tilde = observe(x_true, (side, side), np.random.default_rng(0))
        return cls(x_tilde.astype(np.float32), x_true.astype(np.float32), side, data_term, L)

    def __call__(self, problem: hg.LowerLevel) -> float:
        """The half mean squared error, summed over the pixels, as the training loss is."""
        x = solve_at(problem, (self.side, self.side), self.data_term, self.x_tilde, self.L)
        return float(0.5 * np.mean(np.sum((x - self.x_true) ** 2, axis=1)))

    def psnr(self, problem: hg.LowerLevel) -> float:
        x = solve_at(problem, (self.side, self.side), self.data_term, self.x_tilde, self.L)
        return mean_psnr(x, self.x_true)


def mean_psnr(x: np.ndarray, x_true: np.ndarray) -> float:
    """The mean over the images, which are rows, with peak 1."""
    return float(np.mean(-10 * np.log10(np.mean((np.float64(x) - x_true) ** 2, axis=1))))


# ------------------------------------------------------------------------------------------ models


def bank_model(name: str, weight: float, shape: tuple[int, int], G: Any) -> hg.LowerLevel:
    """`l1 24x5x5` or `potential 48x7x7`: the DCT's filters without the constant one.

    `weight` is the threshold in a basis: that of each filter, times the `size**2` shifts that see a
    pixel.
    """
    kind, _, form = name.partition(" ")
    count, size, _ = (int(number) for number in form.split("x"))
    filters = np.asarray(operators.dct2((size, size), constant=False))[:count]
    K = operators.FilterBank(jnp.asarray(filters.reshape(-1, size, size)), shape)
    weights = jnp.full(count, weight / size**2)
    if kind == "l1":
        F: Any = hg.L1(weights)
    else:
        F = hg.ConvexPotential.from_l1(weights, KNOTS, least_slope=LEAST_SLOPE)
    return cast_floats(hg.LowerLevel(K=K, F=F, G=G), jnp.float32)


def total_variation(weight: float, shape: tuple[int, int], G: Any) -> hg.LowerLevel:
    """Isotropic, forward differences."""
    K = operators.difference_operator(shape)
    F = hg.GroupL1(weight, shape=(2, shape[0] * shape[1]))
    return cast_floats(hg.LowerLevel(K=K, F=F, G=G), jnp.float32)


def at_shape(problem: hg.LowerLevel, shape: tuple[int, int], data_term: DataTerm) -> hg.LowerLevel:
    """The same model for images of another shape; a learned weight of G is kept."""
    K: Any = problem.K
    if isinstance(K, operators.FilterBank):
        K, F = K.with_image_shape(shape), problem.F
    else:
        K = operators.difference_operator(shape)
        F = hg.GroupL1(problem.F.weight, shape=(2, shape[0] * shape[1]))  # pyright: ignore[reportAttributeAccessIssue]
    G = dataclasses.replace(data_term(shape), weight=problem.G.weight)  # pyright: ignore[reportAttributeAccessIssue]
    return cast_floats(hg.LowerLevel(K=K, F=F, G=G), jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _solve(problem: hg.LowerLevel, x_tilde: jax.Array, L: int) -> jax.Array:
    solver = hg.ChambollePock(L, step_ratio=STEP_RATIO)
    return hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(1)).x


def solve_at(
    problem: hg.LowerLevel,
    shape: tuple[int, int],
    data_term: DataTerm,
    x_tilde: np.ndarray,
    L: int,
) -> np.ndarray:
    """Restore images `(count, n)` of a shape."""
    return np.asarray(_solve(at_shape(problem, shape, data_term), jnp.asarray(x_tilde), L))


def best_weight(
    model: Callable[[float], hg.LowerLevel], held_out: HeldOut, weights: Sequence[float]
) -> hg.LowerLevel:
    """The model whose weight restores the held-out training photographs best."""
    return min((model(weight) for weight in weights), key=held_out)


# --------------------------------------------------------------------------------------- learning


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a model is learned on crops; each solve starts from the last state of its crop."""

    crop: int = 64
    crops: int = 128
    rounds: int = 20
    """Epochs that share their crops."""
    batch_size: int = 8
    L: int = 15
    rate: float = 5e-3
    """Of Adam for the filters; it falls like one over the square root of the step."""
    rate_of_logarithms: float = 2e-2
    """Of Adam for weights, slopes and jumps, which are learned in the log."""

    def learn(
        self,
        problem: hg.LowerLevel,
        images: Sequence[Any],
        observe: Observe,
        held_out: HeldOut,
        *,
        strategy: str,
        seconds: float,
        seed: int,
        workspace: Workspace,
    ) -> hg.History:
        shape = (self.crop, self.crop)
        crops = hg.RandomCrops(
            images,
            shape,
            noise=lambda x_true, rng: observe(x_true, shape, rng),
            count=self.crops,
            rounds=self.rounds,
            seed=seed,
        )
        return hg.train(
            problem,
            crops,
            validation=held_out,
            solver=hg.ChambollePock(self.L, step_ratio=STEP_RATIO),
            strategy=hg.parse_strategy(strategy),
            optimizer=self.optimizer(),
            epochs=100_000,
            seconds=seconds,
            batch_size=self.batch_size,
            seed=seed,
            checkpoint_dir=workspace.checkpoints,
            warm_start=hg.WarmStart(residual=0.05, most=60, share=0.5),
            trainable=lambda p: (p.K, p.F, p.G.weight),  # pyright: ignore[reportAttributeAccessIssue]
            project=zero_mean,
            progress=workspace.bar,
        )

    def optimizer(self) -> optax.GradientTransformation:
        def rate(step: Any) -> Any:
            return 1 / jnp.sqrt(1 + step / 200)

        def adam(most: float) -> optax.GradientTransformation:
            return optax.adam(lambda step: most * rate(step))

        def groups(problem: Any) -> Any:
            labels = jax.tree.map(lambda _: "logarithms", problem)
            return eqx.tree_at(lambda p: p.K.filters, labels, "filters")

        rates: Any = {"filters": adam(self.rate), "logarithms": adam(self.rate_of_logarithms)}
        return optax.multi_transform(rates, groups)


def zero_mean(problem: hg.LowerLevel) -> hg.LowerLevel:
    """Filters that do not see a constant image, so that brightness is kept."""
    K: Any = problem.K
    filters = K.filters - jnp.mean(K.filters, axis=(1, 2), keepdims=True)
    return dataclasses.replace(problem, K=dataclasses.replace(K, filters=filters))
