"""Models of whole images: banks of filters, learned on crops and applied to any shape.

A model has one weight, or one learned convex potential, for each filter. Everything is in grey
values from 0 to 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from hypergrad._foundation.checks import check_count, check_number
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import claim_folder, write_jsonl
from hypergrad.bilevel import solve
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning import History, RandomCrops, WarmStart, train
from hypergrad.learning.saved_operator import SavedOperator
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, ConvexPotential, GroupL1, Quadratic
from hypergrad.problem.lower_level import LowerLevel, cast_floats
from hypergrad.strategies import AbstractStrategy, Truncation, parse_strategy
from hypergrad.workbench import data

__all__ = [
    "STEP_RATIO",
    "Form",
    "HeldOut",
    "ImageTraining",
    "Learning",
    "add_noise",
    "bank_model",
    "best_bank",
    "best_scale",
    "best_weight",
    "denoising",
    "form_of",
    "mean_psnr",
    "photographs_to_test",
    "solve_at",
    "split",
    "total_variation",
    "train_on_images",
    "training_images",
]

# Observations of images `(count, n)` of one shape: x_tilde, from the truth and a generator.
Observe = Callable[[np.ndarray, tuple[int, int], np.random.Generator], np.ndarray]
# The data term on images of a shape.
DataTerm = Callable[[tuple[int, int]], Any]

VALIDATION = 20  # photographs, of which nothing is learned
SIDE = 120  # of the part of each that judges
STEP_RATIO = 100.0

# Thresholds of a basis that are tried, in units of the noise.
BANK_WEIGHTS = (0.9, 1.1, 1.3, 1.5, 1.7)

# Knots of the learned potentials, in grey values that a filter of norm 1 answers with.
KNOTS = (0.005, 0.015, 0.04, 0.08, 0.15, 0.3)
LEAST_SLOPE = 0.001  # where they start: L1 to 0.05 dB, and able to bend


# ------------------------------------------------------------------------------------------ images


def training_images(
    folder: Path | None, skip: Callable[[str], object] | None = None
) -> Sequence[Any]:
    """The images of a folder, or those packaged with scikit-image."""
    if folder is not None:
        return data.ImageFolder(folder, skip)
    return [data.photograph(name) for name in data.PHOTOGRAPHS_TRAIN]


def photographs_to_test(folder: Path | None, count: int) -> dict[str, np.ndarray]:
    """The first test photographs, by name."""
    if folder is None:
        return {name: data.photograph(name) for name in data.PHOTOGRAPHS_HELD_OUT[:count]}
    images = data.ImageFolder(folder)
    return {images.names[i]: np.asarray(images[i]) for i in range(min(count, len(images)))}


def split(images: Sequence[Any]) -> tuple[Sequence[Any], list[Any]]:
    """Images to learn from, read when they are asked for, and the last twenty (or fifth)."""
    count = min(VALIDATION, max(1, len(images) // 5))
    return images[:-count], [np.asarray(image) for image in images[-count:]]


def add_noise(
    sigma: float, x_true: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Observe images of any shape with Gaussian noise; `observe` once sigma is given."""
    del shape
    return x_true + sigma * rng.standard_normal(x_true.shape)


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
        side = min(side, *(min(image.shape) for image in images))

        def middle(image: np.ndarray) -> np.ndarray:
            top, left = (np.array(image.shape) - side) // 2
            return image[top : top + side, left : left + side]

        x_true = np.stack([middle(image).ravel() for image in images])
        x_tilde = observe(x_true, (side, side), np.random.default_rng(0))
        return cls(x_tilde.astype(np.float32), x_true.astype(np.float32), side, data_term, L)

    def restore(self, problem: LowerLevel, *, depth: int = 1) -> np.ndarray:
        """The images restored by so many times L iterations."""
        shape = (self.side, self.side)
        return solve_at(problem, shape, self.data_term, self.x_tilde, depth * self.L)

    def __call__(self, problem: LowerLevel) -> float:
        """The half squared error of an image, in the geometric mean.

        Its PSNR is then the mean PSNR, by which restored photographs are compared; the arithmetic
        mean is that of the hardest images, and its best weights are smaller by a tenth.
        """
        errors = 0.5 * np.sum((self.restore(problem) - self.x_true) ** 2, axis=1)
        return float(np.exp(np.mean(np.log(errors))))

    def psnr(self, loss: float) -> float:
        """The mean PSNR of such a loss."""
        return float(-10 * np.log10(2 * loss / self.x_true.shape[1]))


def mean_psnr(x: np.ndarray, x_true: np.ndarray) -> float:
    """The mean over the images, which are rows, with peak 1."""
    return float(np.mean(-10 * np.log10(np.mean((np.float64(x) - x_true) ** 2, axis=1))))


# ------------------------------------------------------------------------------------------ models


def denoising(shape: tuple[int, int]) -> Quadratic:
    """The data term of denoising, the same for every shape."""
    del shape
    return Quadratic(1.0)


class Form(NamedTuple):
    """The number of filters, and the pixels along each side of one."""

    filters: int
    size: int


def form_of(text: str) -> Form:
    """Read the form of a bank.

    >>> form_of("24x5x5")
    Form(filters=24, size=5)
    """
    numbers = text.split("x")
    if len(numbers) != 3 or not all(n.isdigit() for n in numbers) or numbers[1] != numbers[2]:
        raise HypergradError(f"filters must be COUNTxSIZExSIZE; got {text!r}: try 24x5x5")
    form = Form(int(numbers[0]), int(numbers[1]))
    check_count("filters", form.filters, most=form.size**2 - 1)
    return form


def bank_model(
    form: Form, weight: float, shape: tuple[int, int], G: Any, *, potentials: bool = False
) -> LowerLevel:
    """The DCT's filters without the constant one, on images of a shape.

    `weight` is the threshold in a basis: that of each filter, times the `size**2` shifts that see a
    pixel. With `potentials`, one is learned for each filter; it starts there, as nearly L1.
    """
    count, size = form
    K = operators.dct_bank(size, shape, count=count)
    weights = jnp.full(count, weight / size**2)
    if potentials:
        F: Any = ConvexPotential.from_l1(weights, KNOTS, least_slope=LEAST_SLOPE)
    else:
        F = L1(weights)
    return cast_floats(LowerLevel(K=K, F=F, G=G), jnp.float32)


def total_variation(weight: float, shape: tuple[int, int], G: Any) -> LowerLevel:
    """Isotropic, forward differences."""
    K = operators.difference_operator(shape)
    F = GroupL1(weight, shape=(2, shape[0] * shape[1]))
    return cast_floats(LowerLevel(K=K, F=F, G=G), jnp.float32)


def at_shape(problem: LowerLevel, shape: tuple[int, int], data_term: DataTerm) -> LowerLevel:
    """The same model for images of another shape; a learned weight of G is kept."""
    K: Any = problem.K
    G = dataclasses.replace(data_term(shape), weight=problem.G.weight)  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(K, operators.FilterBank):
        return total_variation(problem.F.weight, shape, G)  # pyright: ignore[reportAttributeAccessIssue]
    return cast_floats(LowerLevel(K=K.with_image_shape(shape), F=problem.F, G=G), jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _solve(problem: LowerLevel, x_tilde: jax.Array, L: int) -> jax.Array:
    solver = ChambollePock(L, step_ratio=STEP_RATIO)
    return solve(problem, x_tilde, solver=solver, strategy=Truncation(1)).x


def solve_at(
    problem: LowerLevel,
    shape: tuple[int, int],
    data_term: DataTerm,
    x_tilde: np.ndarray,
    L: int,
) -> np.ndarray:
    """Restore images `(count, n)` of a shape."""
    rows = jnp.asarray(x_tilde, jnp.float32)
    return np.asarray(_solve(at_shape(problem, shape, data_term), rows, L))


def best_weight(
    model: Callable[[float], LowerLevel], held_out: HeldOut, weights: Sequence[float]
) -> LowerLevel:
    """The model whose weight restores the held-out training photographs best."""
    return min((model(weight) for weight in weights), key=held_out)


def best_scale(
    problem: LowerLevel, held_out: Callable[[LowerLevel], float], least_step: float = 0.5
) -> LowerLevel:
    """The model with F scaled so that the held-out photographs are restored best.

    A bank that was learned for one problem serves another so. What is scaled is the weight of G,
    whose ratio to F alone matters: that is one number for every F. Steps of a factor 4 as long as
    they help, then of 2, then of its roots, down to `2 ** least_step`.
    """

    @functools.cache
    def scaled(exponent: float) -> LowerLevel:
        return eqx.tree_at(lambda p: p.G.weight, problem, problem.G.weight * 2.0**-exponent)  # pyright: ignore[reportAttributeAccessIssue]

    loss = functools.cache(lambda exponent: held_out(scaled(exponent)))
    best, step = 0.0, 2.0
    while step >= least_step:
        nearer = min((best, best - step, best + step), key=loss)
        step = step / 2 if nearer == best else step
        best = nearer
    return scaled(best)


def best_bank(
    form: Form, sigma: float, side: int, held_out: HeldOut, *, potentials: bool = False
) -> LowerLevel:
    """The bank of the DCT for denoising at its best weight, on images of `side` pixels squared."""

    def model(weight: float) -> LowerLevel:
        return bank_model(form, weight, (side, side), Quadratic(1.0), potentials=potentials)

    return best_weight(model, held_out, [factor * sigma for factor in BANK_WEIGHTS])


# --------------------------------------------------------------------------------------- learning


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a model is learned on crops; each solve starts from the last state of its crop."""

    crop: int = 64
    crops: int = 512
    rounds: int = 2
    """Epochs that share their crops."""
    batch_size: int = 8
    L: int = 15
    rate: float = 2e-2
    """Of Adam, also for the logarithms of weights and slopes; it falls like one over the step."""

    def learn(
        self,
        problem: LowerLevel,
        images: Sequence[Any],
        observe: Observe,
        held_out: HeldOut,
        *,
        strategy: AbstractStrategy,
        seconds: float | None,
        epochs: int = 1_000_000,
        seed: int = 0,
        checkpoint_dir: Path | None = None,
        progress: Any = True,
    ) -> History:
        shape = (self.crop, self.crop)
        crops = RandomCrops(
            images,
            shape,
            noise=lambda x_true, rng: observe(x_true, shape, rng),
            count=self.crops,
            rounds=self.rounds,
            seed=seed,
            dtype="float32",
        )
        return train(
            problem,
            crops,
            validation=held_out,
            solver=ChambollePock(self.L, step_ratio=STEP_RATIO),
            strategy=strategy,
            optimizer=optax.adam(lambda step: self.rate / (1 + step / 150)),
            epochs=epochs,
            seconds=seconds,
            batch_size=self.batch_size,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            warm_start=WarmStart(residual=0.05, most=60, share=0.5),
            trainable=lambda p: (p.K, p.F),
            project=blind_to_constants,
            progress=progress,
        )


def blind_to_constants(problem: LowerLevel) -> LowerLevel:
    """Make every filter zero-mean, so that brightness is kept."""
    K: Any = problem.K
    return dataclasses.replace(problem, K=operators.zero_mean(K))


# ------------------------------------------------------------------------------------ the command


@dataclasses.dataclass(frozen=True)
class ImageTraining:
    """The settings of `hypergrad train --images`."""

    images: Path
    strategy: str = "truncation:k=1"
    filters: str = "24x5x5"
    potentials: bool = False
    noise: float = 0.1
    seconds: float = 600.0
    epochs: int = 1_000_000
    batch_size: int = 8
    learning_rate: float = 2e-2
    crop: int = 64
    crops: int = 512
    side: int = SIDE
    L: int = 100
    """Iterations that restore a photograph."""
    seed: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name in ("noise", "seconds", "learning_rate"):
            check_number(name, getattr(self, name))
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)

    def quick(self) -> ImageTraining:
        """The same job in miniature: a smoke test, not a result."""
        small = {"crop": 16, "crops": 8, "side": 32, "L": 20, "epochs": 2, "batch_size": 4}
        return dataclasses.replace(self, **small)


def train_on_images(settings: ImageTraining, out: Path, console: Console) -> None:
    """Learn a bank for denoising; write `operator.npz`, `records.jsonl` and `loss.png`.

    Started again with the same folder and settings, it goes on there.
    """
    sigma, shape = settings.noise, (settings.crop, settings.crop)

    def skip(why: str) -> None:
        console.print(f"skipped: {why}", markup=False)

    observe = functools.partial(add_noise, sigma)
    images = training_images(settings.images, skip if settings.skip_unreadable else None)
    if len(images) < 2:
        raise HypergradError(
            f"a folder must hold two images or more, to learn from and to choose on; got "
            f"{len(images)} in {settings.images}: add others"
        )
    # Without the budget: a finished run may be given more seconds.
    claim_folder(out, {"job": "train on images", **_without_places(settings), "seconds": None})
    learned_from, others = split(images)
    held_out = HeldOut.of(others, observe, denoising, side=settings.side, L=settings.L)
    form, strategy = form_of(settings.filters), parse_strategy(settings.strategy)
    start = best_bank(form, sigma, settings.crop, held_out, potentials=settings.potentials)
    observed = mean_psnr(held_out.x_tilde, held_out.x_true)
    console.print(
        f"K = {settings.filters} filters, F = "
        f"{'a convex potential' if settings.potentials else 'L1 with a weight'} for each; noise "
        f"{sigma:g}; {len(learned_from)} images to learn from, {len(others)} to choose on",
        markup=False,
    )
    learning = Learning(
        settings.crop,
        settings.crops,
        batch_size=settings.batch_size,
        rate=settings.learning_rate,
    )
    history = learning.learn(
        start,
        learned_from,
        observe,
        held_out,
        strategy=strategy,
        seconds=settings.seconds,
        epochs=settings.epochs,
        seed=settings.seed,
        checkpoint_dir=out / "checkpoints",
    )
    write_jsonl(out / "records.jsonl", history.records)
    solver = ChambollePock(settings.L, step_ratio=STEP_RATIO)
    about = _without_places(settings)
    operator = SavedOperator(
        history.best.problem, solver, strategy, shape, stride=settings.crop, settings=about
    )
    operator.save(out / "operator.npz")
    history.plot().savefig(out / "loss.png", dpi=150)
    psnr = [held_out.psnr(record["validation_loss"]) for record in history.records]
    best, last = history.best.epoch, history.records[-1]
    console.print(
        f"PSNR on the images to choose on: observed {observed:.2f} dB, DCT at its best weight "
        f"{psnr[0]:.2f} dB, learned {psnr[best]:.2f} dB (epoch {best} of {last['epoch']}, "
        f"{last['seconds']:.0f} s)\n"
        f"hypergrad restore PHOTOGRAPH --operator {out / 'operator.npz'}",
        markup=False,
    )


def _without_places(settings: ImageTraining) -> dict[str, Any]:
    """The settings as they are recorded: of the folder its name (the rest is one machine's)."""
    return {**dataclasses.asdict(settings), "images": settings.images.name}
