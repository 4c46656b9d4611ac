"""What the experiments on photographs share: data, where K starts, and how a K is judged.

Patches of photographs with noise; `F = weight ||.||_1`, `G` quadratic. A K is judged at its L by
its last iterate and by the average, and at a converged lower level as it is and shrunk, so that
neither early stopping nor averaging passes for learning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg
from hypergrad.learning import solve_in_pieces
from hypergrad.problem import operators
from hypergrad.workbench import baselines, data
from hypergrad.workbench.sweep import Workspace

Optimizer = Literal["adam", "descent"]

SHAPE = (8, 8)
PIECE = 256  # samples that are solved at a time


@dataclasses.dataclass(frozen=True)
class Images:
    """Training samples, and others that nothing is learned from."""

    train: data.Samples
    held_out: data.Samples
    noise: float

    @property
    def training_pair(self) -> tuple[np.ndarray, np.ndarray]:
        return self.train.x_tilde, self.train.x_true

    @property
    def held_out_pair(self) -> tuple[np.ndarray, np.ndarray]:
        return self.held_out.x_tilde, self.held_out.x_true


def draw_images(
    seed: int,
    samples: int,
    held_out: int,
    *,
    noise: float = 0.1,
    choose: bool = False,
    dtype: Any = np.float32,
) -> Images:
    """Patches and noise of one seed; `choose` holds out the photograph that settings are chosen on.

    float32 by default: the forward and the backward products, which is all of the time, take half.
    """
    names = data.PHOTOGRAPHS_CHOOSE if choose else data.PHOTOGRAPHS_HELD_OUT
    # Two seeds from one, so that training and held-out noise are not the same draw.
    parts = (
        data.noisy_patches(data.PHOTOGRAPHS_TRAIN, samples, noise=noise, seed=2 * seed),
        data.noisy_patches(names, held_out, noise=noise, seed=2 * seed + 1),
    )
    train, others = (part.astype(dtype) for part in parts)
    return Images(train, others, noise)


def random_start(
    seed: int, weight: float, *, m: int = 128, dtype: Any = jnp.float32
) -> hg.LowerLevel:
    """An overcomplete random K of norm 1: where the effects of L and k show."""
    K = operators.random(m, 64, key=jax.random.key(seed)).astype(dtype)
    return hg.LowerLevel(K=K, F=hg.L1(weight), G=hg.Quadratic(1.0))


def solver(L: int, images: Images, *, step_ratio: float = 1.0) -> hg.ChambollePock:
    """L iterations, their steps in the units of the noise."""
    return hg.ChambollePock(L, step_ratio=step_ratio, primal_scale=images.noise)


def judge(problem: hg.LowerLevel, images: Images, L: int) -> dict[str, float]:
    """Held-out losses: at L, averaged over L, converged, and converged but shrunk.

    The shrinkage is fitted on as many training samples as are held out.
    """
    x_tilde, x_true = images.held_out_pair
    iterating = {"solver": solver(L, images), "piece": PIECE}
    last, _ = solve_in_pieces(problem, x_tilde, strategy=hg.Truncation(1), **iterating)
    average, _ = solve_in_pieces(problem, x_tilde, strategy=hg.ErgodicUnrolling(), **iterating)
    converged, share = solve_converged(problem, images, x_tilde)
    some = images.train.take(slice(0, len(images.held_out)))
    restored = solve_converged(problem, images, some.x_tilde).x
    a = baselines.best_shrinkage(some.x_tilde, restored, some.x_true)
    return {
        "held_out_at_L": baselines.mean_loss(last, x_true),
        "held_out_averaged": baselines.mean_loss(average, x_true),
        "held_out_converged": baselines.mean_loss(converged, x_true),
        "held_out_shrunk": baselines.mean_loss(baselines.shrink(x_tilde, converged, a), x_true),
        "shrinkage": a,
        "share_converged": share,
    }


def solve_converged(
    problem: hg.LowerLevel, images: Images, x_tilde: np.ndarray
) -> baselines.Converged:
    """The lower level until its residual is small, in the units of the noise."""
    # Rounding of float32 leaves residuals of up to 1e-5 where K has grown; at 1e-4 the loss is that
    # of the solution to three digits.
    tolerance = 1e-6 if problem.dtype == jnp.float64 else 1e-4
    return baselines.solve_to_tolerance(
        problem, x_tilde, primal_scale=images.noise, tolerance=tolerance, piece=PIECE
    )


def tune(K: Any, images: Images, weights: tuple[float, ...], rows: Any = 1.0) -> hg.LowerLevel:
    """K at the weight of F, times `rows`, that is best for as many training samples as held out."""
    some = images.train.take(slice(0, len(images.held_out)))
    candidates = (
        hg.LowerLevel(jnp.asarray(K, some.x_tilde.dtype), hg.L1(w * rows), hg.Quadratic(1.0))
        for w in weights
    )

    def restore(problem: hg.LowerLevel, x_tilde: Any) -> np.ndarray:
        return solve_converged(problem, images, np.asarray(x_tilde)).x

    return baselines.best_of(candidates, some.x_tilde, some.x_true, restore)


def judge_baselines(images: Images, weights: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Held-out losses of what is not learned by descent; each tuned on training samples."""
    x_tilde, x_true = images.held_out_pair
    some = images.train.take(slice(0, len(images.held_out)))
    dtype = x_tilde.dtype

    dct = operators.dct2(SHAPE, constant=False)
    row_weights = baselines.reciprocal_row_weights(dct, some.x_true).astype(dtype)
    tuned: Mapping[str, hg.LowerLevel] = {
        "dct": tune(dct, images, weights),
        "dct, row weights": tune(dct, images, weights, row_weights),
        "differences": tune(operators.differences2(SHAPE), images, weights),
    }
    losses = {"identity": {"held_out_converged": baselines.mean_loss(x_tilde, x_true)}}
    for name, problem in tuned.items():
        x, share = solve_converged(problem, images, x_tilde)
        losses[name] = {
            "held_out_converged": baselines.mean_loss(x, x_true),
            "share_converged": share,
            "weight": float(jnp.mean(problem.F.weight)),  # pyright: ignore[reportAttributeAccessIssue]
        }
    affine = baselines.best_affine(*images.training_pair)
    losses["affine"] = {"held_out_converged": baselines.mean_loss(affine(x_tilde), x_true)}
    return losses


@dataclasses.dataclass(frozen=True)
class Learning:
    """How K is learned in an experiment, but for the strategy, L and the rate."""

    samples: int = 4096
    held_out: int = 1024
    epochs: int = 12
    batch_size: int = 128
    weight: float = 0.03
    """Of F. A random K starts with it near its best; K's scale is learned."""
    rows: int = 128

    def quick(self) -> Learning:
        """A smoke test."""
        return dataclasses.replace(self, samples=256, held_out=128, epochs=2, batch_size=64)

    def draw(self, seed: int, *, choose: bool = False) -> Images:
        return draw_images(seed, self.samples, self.held_out, choose=choose)

    def start(self, seed: int) -> hg.LowerLevel:
        return random_start(seed, self.weight, m=self.rows)

    def learn(
        self,
        images: Images,
        *,
        L: int,
        strategy: hg.AbstractStrategy,
        rate: float,
        seed: int,
        workspace: Workspace,
        optimizer: Optimizer = "adam",
        problem: hg.LowerLevel | None = None,
    ) -> hg.History:
        """Adam (or plain descent over batches), its rate falling like a cosine.

        The seed draws K's start and the order of the batches; `images` have their own.
        """
        steps = self.epochs * (self.samples // self.batch_size)
        schedule = optax.cosine_decay_schedule(rate, steps)
        return hg.train(
            self.start(seed) if problem is None else problem,
            images.training_pair,
            validation=images.held_out_pair,
            solver=solver(L, images),
            strategy=strategy,
            optimizer=optax.adam(schedule) if optimizer == "adam" else optax.sgd(schedule),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
            checkpoint_dir=workspace.checkpoints,
            progress=workspace.bar,
        )
