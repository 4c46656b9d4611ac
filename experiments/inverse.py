"""Inverse problems on photographs: deblurring, inpainting and Fourier sampling.

    python experiments/inverse.py --images train400 --test bsd68 [--quick] [--out results/inverse]

The lower level is `F(Kx) + (w/2) ||A (x - x_tilde)||^2` with `x_tilde = A^+ b` and measurements b
with noise of 2/255. For every A: total variation; a bank of DCT filters; a bank that was learned
for denoising; one that is learned for the problem, in as many seconds; and for the first A whatever
else is to be compared, such as L1 or another strategy (`--compared "potential 24x5x5 full"`). The
scale of F of all that is not learned for the problem is the best on held-out training photographs.
The middle of each test photograph is restored, by L iterations and by four times as many: the
latter count, and the difference shows how far the former were converged. Without folders, the
photographs of scikit-image are used: a miniature.

Budget: `seconds` for each learned model, and half as much again to choose its best epoch and to
restore the test photographs. A run that is interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad.workbench.studies.whole_images import (
    HeldOut,
    Learning,
    bank_model,
    best_scale,
    form_of,
    mean_psnr,
    photographs_to_test,
    split,
    total_variation,
    training_images,
)
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

Shape = tuple[int, int]

# Singular values of a blur below this share of the largest count as 0: they carry only noise.
CUTOFF = 0.02
# Total variation converges more slowly than a bank: it gets this many times the iterations.
TV_DEPTH = 4
# The threshold where the search for the best scale starts.
THRESHOLD = 0.1
LEAST_STEP = 1 / 16  # of the search for the scale of what was learned, as a power of 2


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Which problems, how models are learned for them, and for how long."""

    images: Path | None = None
    """Folder of training photographs; by default, those of scikit-image."""
    test: Path | None = None
    """Folder of test photographs; by default, those of scikit-image."""
    problems: tuple[str, ...] = ("Gaussian blur", "motion blur", "inpainting", "Fourier sampling")
    noise: float = 2.0
    """Standard deviation of the measurements' noise, in grey values of 255."""
    denoising_noise: float = 15.0
    """That of the denoising for which a bank is learned."""
    learned: tuple[str, ...] = ("potential 24x5x5 limit:steps=10",)
    """What is learned for every problem: kind of F, filters and strategy. The first is learned for
    denoising, too."""
    compared: tuple[str, ...] = (
        "potential 24x5x5 truncation:k=1",
        "potential 24x5x5 full",
        "l1 24x5x5 limit:steps=10",
        "potential 48x7x7 limit:steps=10",
    )
    """What else is learned for the first problem: by other strategies, other models."""
    seconds: float = 200.0
    photographs: int = 12
    """To restore, and as many training photographs to choose on."""
    L: int = 50
    """Iterations that restore a photograph."""
    side: int = 128
    """Of the part of a test photograph that is restored."""
    side_to_choose: int = 80
    """Of that of a training photograph."""
    learning: Learning = dataclasses.field(default_factory=lambda: Learning(crops=256, rounds=4))

    def sigma(self, problem: str) -> float:
        """The noise in grey values from 0 to 1."""
        return (self.denoising_noise if problem == "denoising" else self.noise) / 255

    def quick(self) -> Config:
        """Two filters learned for half a second, on a few small crops."""
        return dataclasses.replace(
            self,
            learned=("potential 2x3x3 limit:steps=10",),
            compared=("l1 2x3x3 truncation:k=1",),
            seconds=0.5,
            photographs=1,
            L=10,
            side=32,
            side_to_choose=24,
            learning=Learning(crop=16, crops=8, rounds=2, batch_size=4, L=5),
        )


# ---------------------------------------------------------------------------------- the problems


def bell(size: int = 9, sigma: float = 1.6) -> np.ndarray:
    """A Gaussian kernel of sum 1."""
    values = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return np.outer(values, values) / values.sum() ** 2


def half_of_pixels(shape: Shape) -> np.ndarray:
    """A mask of half of the pixels, at random places."""
    order = np.random.default_rng(0).permutation(shape[0] * shape[1])
    return (order % 2 == 0).reshape(shape)


def some_frequencies(shape: Shape, share: float = 0.3) -> np.ndarray:
    """A mask of a share of the frequencies, at random, low ones more often.

    With each frequency its opposite, which real images determine anyway.
    """
    rows, columns = (np.fft.fftfreq(size) for size in shape)
    rarity = rows[:, None] ** 2 + columns**2 + 0.05**2
    rank = rarity * np.random.default_rng(0).exponential(size=shape)
    rank = np.minimum(rank, np.roll(rank[::-1, ::-1], (1, 1), (0, 1)))
    return rank <= np.quantile(rank, share)


# The operator A on images of a shape.
FORWARD: dict[str, Callable[[Shape], Any]] = {
    "Gaussian blur": lambda shape: hg.operators.Blur(bell(), shape),
    "motion blur": lambda shape: hg.operators.Blur(np.full((1, 9), 1 / 9), shape),
    "inpainting": lambda shape: hg.operators.Mask(half_of_pixels(shape)),
    "Fourier sampling": lambda shape: hg.operators.FourierSampling(some_frequencies(shape), shape),
    "denoising": lambda shape: hg.operators.Mask(np.ones(shape)),
}


def data_term(problem: str, shape: Shape) -> hg.DataFidelity:
    return hg.DataFidelity(FORWARD[problem](shape))


def measure(
    problem: str, sigma: float, x_true: np.ndarray, shape: Shape, rng: np.random.Generator
) -> Any:
    """Noisy measurements of images."""
    A = FORWARD[problem](shape)
    noise = sigma * rng.standard_normal(x_true.shape).astype(x_true.dtype)
    is_blur = isinstance(A, hg.operators.Blur)
    return A(x_true) + noise if is_blur else A(x_true + noise)


def observe(
    problem: str, sigma: float, x_true: np.ndarray, shape: Shape, rng: np.random.Generator
) -> np.ndarray:
    """`x_tilde = A^+ b`."""
    b = measure(problem, sigma, x_true, shape, rng)
    return np.asarray(hg.operators.pseudo_inverse(FORWARD[problem](shape), b, cutoff=CUTOFF))


def observed_images(
    config: Config, problem: str, images: Sequence[Any], side: int, *, depth: int = 1
) -> HeldOut:
    """The middle of images, observed once, and solves of `depth` times L iterations."""
    return HeldOut.of(
        images,
        functools.partial(observe, problem, config.sigma(problem)),
        functools.partial(data_term, problem),
        side=side,
        L=depth * config.L,
    )


def images_to_choose_on(config: Config, problem: str, *, depth: int = 1) -> HeldOut:
    """Training photographs of which nothing is learned."""
    _, others = split(training_images(config.images))
    some = others[: config.photographs]
    return observed_images(config, problem, some, config.side_to_choose, depth=depth)


def images_to_restore(config: Config, problem: str, *, depth: int = 1) -> HeldOut:
    photographs = [*photographs_to_test(config.test, config.photographs).values()]
    return observed_images(config, problem, photographs, config.side, depth=depth)


# -------------------------------------------------------------------------------------- the cells


def cells(config: Config) -> list[Cell]:
    """What is not learned, what is learned for denoising, and what for each problem."""
    if not set(config.problems) <= set(FORWARD):
        raise hg.HypergradError(
            f"problems must be of {', '.join(FORWARD)}; got {config.problems}: choose from them"
        )
    made = [
        Cell(
            {"part": "baselines", "problem": problem}, functools.partial(baselines, config, problem)
        )
        for problem in config.problems
    ]
    model, strategy = model_and_strategy(config.learned[0])
    key = {"part": "denoising", "model": model, "strategy": strategy}
    made.append(Cell(key, functools.partial(learn_for_denoising, config, model, strategy)))
    todo = [(problem, text) for problem in config.problems for text in config.learned]
    todo += [(config.problems[0], text) for text in config.compared]
    for problem, text in dict.fromkeys(todo):
        model, strategy = model_and_strategy(text)
        key = {"part": "learned", "problem": problem, "model": model, "strategy": strategy}
        compute = functools.partial(learn_for_problem, config, problem, model, strategy)
        made.append(Cell(key, compute))
    return made


def model_and_strategy(text: str) -> tuple[str, str]:
    model, _, strategy = text.rpartition(" ")
    return model, strategy


def judge(
    config: Config, problem: str, model: hg.LowerLevel, *, depth: int = 1
) -> tuple[dict[str, float], np.ndarray]:
    """The PSNR on the test photographs, and the first one restored."""
    test = images_to_restore(config, problem, depth=depth)
    x, more = test.restore(model), test.restore(model, depth=4)
    found = {"psnr": mean_psnr(more, test.x_true), "psnr_at_L": mean_psnr(x, test.x_true)}
    return found, as_picture(more[0])


def as_picture(x: np.ndarray) -> np.ndarray:
    """A square image in 256 greys."""
    side = math.isqrt(x.size)
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8).reshape(side, side)


def start_of(config: Config, problem: str, model: str, held_out: HeldOut) -> hg.LowerLevel:
    """The bank of the DCT at its best scale, for crops."""
    kind, _, form = model.partition(" ")
    shape = (config.learning.crop, config.learning.crop)
    G, is_potential = data_term(problem, shape), kind == "potential"
    bank = bank_model(form_of(form), THRESHOLD, shape, G, potentials=is_potential)
    return best_scale(bank, held_out)


def baselines(config: Config, problem: str, workspace: Workspace) -> Result:
    """What is observed; total variation and the bank of the DCT, each at its best scale."""
    del workspace
    shape = (config.side, config.side)
    tv = total_variation(THRESHOLD, shape, data_term(problem, shape))
    tv = best_scale(tv, images_to_choose_on(config, problem, depth=TV_DEPTH))
    form = config.learned[0].split()[1]
    dct = start_of(config, problem, f"l1 {form}", images_to_choose_on(config, problem))

    x_true = images_to_restore(config, problem).x_true
    b = measure(problem, config.sigma(problem), x_true, shape, np.random.default_rng(0))
    observed = np.asarray(b if jnp.isrealobj(b) else FORWARD[problem](shape).transpose(b))
    records: list[Record] = [{"method": "observed", "psnr": mean_psnr(observed, x_true)}]
    arrays = {"truth": as_picture(x_true[0]), "observed": as_picture(observed[0])}
    for method, model, depth in (("total variation", tv, TV_DEPTH), ("DCT", dct, 1)):
        found, arrays[method] = judge(config, problem, model, depth=depth)
        records.append({"method": method, **found})
    return Result(records, arrays)


def learn(
    config: Config, problem: str, model: str, strategy: str, workspace: Workspace
) -> tuple[hg.LowerLevel, dict[str, float]]:
    """The best model by validation, at its best scale, and its record."""
    images, _ = split(training_images(config.images))
    held_out = images_to_choose_on(config, problem)
    history = config.learning.learn(
        start_of(config, problem, model, held_out),
        images,
        functools.partial(observe, problem, config.sigma(problem)),
        held_out,
        strategy=hg.parse_strategy(strategy),
        seconds=config.seconds,
        checkpoint_dir=workspace.checkpoints,
        progress=workspace.bar,
    )
    start, best = history.records[0], history.records[history.best.epoch]
    about = {"epochs": history.records[-1]["epoch"], "epoch": history.best.epoch}
    about |= {"seconds": best["seconds"], "counted": history.records[-1]["counted"]}
    about |= {"validation_start": held_out.psnr(start["validation_loss"])}
    about |= {"validation": held_out.psnr(best["validation_loss"])}
    return best_scale(history.best.problem, held_out, LEAST_STEP), about


def learn_for_denoising(config: Config, model: str, strategy: str, workspace: Workspace) -> Result:
    """A bank learned for denoising, at its best scale for every problem."""
    bank, about = learn(config, "denoising", model, strategy, workspace)
    records, arrays = [], {}
    for problem in config.problems:
        held_out = images_to_choose_on(config, problem)
        found, arrays[problem] = judge(config, problem, best_scale(bank, held_out))
        method = f"learned for denoising, {model}"
        records.append({"problem": problem, "method": method, **found, **about})
    return Result(records, arrays)


def learn_for_problem(
    config: Config, problem: str, model: str, strategy: str, workspace: Workspace
) -> Result:
    """A bank learned for a problem by one strategy, from the DCT at its best scale."""
    best, about = learn(config, problem, model, strategy, workspace)
    found, picture = judge(config, problem, best)
    method = f"learned for the problem, {model}, {strategy}"
    return Result([{"method": method, **found, **about}], {"picture": picture})


# ----------------------------------------------------------------------------------------- report


def table(config: Config, records: Sequence[Record]) -> str:
    """The mean PSNR of the test photographs, a row for each method."""
    rows: dict[str, dict[str, Any]] = {}
    for r in records:
        row = rows.setdefault(r["method"], {"method": r["method"]})
        row[r["problem"]] = f"{r['psnr']:.2f}"
    headings = {"method": "PSNR (dB)", **{problem: problem for problem in config.problems}}
    return markdown_table([*rows.values()], headings)


def report(config: Config, records: Sequence[Record]) -> str:
    """The table, and how far L iterations are from convergence."""
    moved = max(abs(r["psnr"] - r["psnr_at_L"]) for r in records if "psnr_at_L" in r)
    return (
        f"{table(config, records)}\n\nMean of {config.photographs} photographs. With a quarter of "
        f"the iterations no PSNR differs by more than {moved:.2f} dB.\n"
    )


if __name__ == "__main__":
    main("inverse", Config, cells, report)
