"""What is learned, how good it gets, and a whole photograph restored with it.

    python experiments/operators.py [--quick] [--out results/operators]

Recipes to learn K, and weights of its rows, from several analysis operators that each start at
their best weight: K alone from the DCT; K and row weights; overcomplete ones. Everything is judged
on held-out photographs at a converged lower level, beside the DCT and differences (anisotropic
total variation) at the weights that are best on training data, over seeds. The K of the first seed
are kept, and restore a whole photograph.

Budget: 10 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _images import (
    SHAPE,
    Images,
    draw_images,
    judge,
    judge_baselines,
    solve_converged,
    solver,
    tune,
)

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group, mean_interval, paired_interval
from hypergrad.problem import operators
from hypergrad.workbench import baselines, data
from hypergrad.workbench.studies.learning import (
    K_alone,
    K_and_row_weights,
    scale_weight_updates,
    with_row_weights,
)
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# Tried for what is not learned and for what learning starts from.
WEIGHTS = (0.02, 0.025, 0.035, 0.05, 0.065, 0.08, 0.1, 0.12, 0.15, 0.2)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one operator is learned."""

    name: str
    start: str
    """A key of `starts`."""
    row_weights: bool = True
    """Whether F's weights, one a row, are learned too."""
    strategy: str = "truncation:k=10"
    rate: float = 1e-3
    """Of Adam for K; it falls like a cosine."""


# Rates by a few runs, compared on the photograph to choose on: what starts well wants small ones.
RECIPES = (
    Recipe("K alone", "dct", row_weights=False, rate=5e-3),
    Recipe("K and row weights", "dct", rate=5e-3),
    Recipe("2 n, from DCT and random rows", "dct, random", rate=5e-3),
    Recipe("2 n, from differences and DCT", "differences, dct"),
    Recipe("2.7 n, from DCT and differences", "dct, differences"),
    Recipe("2.7 n, one step", "dct, differences", strategy="truncation:k=1"),
    Recipe("2.7 n, limit formula", "dct, differences", strategy="limit:steps=10"),
    Recipe("4 n, from all three", "dct, differences, random"),
)


def starts(seed: int) -> dict[str, np.ndarray]:
    """Analysis operators, all rows of norm 1 and blind to the mean, by what they stack."""
    dct = np.asarray(operators.dct2(SHAPE, constant=False))
    differences = np.asarray(operators.differences2(SHAPE)) / math.sqrt(2)
    random = np.random.default_rng([seed, 2]).standard_normal((81, dct.shape[1]))
    random -= random.mean(axis=1, keepdims=True)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    return {
        "dct": dct,
        "dct, random": np.concatenate([dct, random[:65]]),
        # The DCT rows of lowest frequency along the first axis make it twice as many as entries.
        "differences, dct": np.concatenate([differences, dct[:16]]),
        "dct, differences": np.concatenate([dct, differences]),
        "dct, differences, random": np.concatenate([dct, differences, random]),
    }


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Recipes over seeds."""

    recipes: tuple[str, ...] = tuple(recipe.name for recipe in RECIPES)
    seeds: int = 5
    samples: int = 16384
    held_out: int = 1024
    epochs: int = 10
    batch_size: int = 256
    L: int = 100
    weights_rate: float = 10.0
    """Of the logarithms of the weights, in units of the rate."""
    photograph: str = "camera"
    stride: int = 4
    crop: tuple[int, int, int] = (56, 165, 144)
    """Top, left and size of what is stored of the photograph."""

    def quick(self) -> Config:
        """Two recipes, two seeds."""
        return dataclasses.replace(
            self,
            recipes=(RECIPES[0].name, RECIPES[4].name),
            seeds=2,
            samples=512,
            held_out=256,
            epochs=2,
            stride=8,
        )

    def draw(self, seed: int, *, choose: bool = False) -> Images:
        return draw_images(seed, self.samples, self.held_out, choose=choose)


def cells(config: Config) -> list[Cell]:
    """Baselines of every seed, then every recipe and seed."""
    made = [
        Cell(
            {"recipe": None, "seed": seed}, functools.partial(compare_with_baselines, config, seed)
        )
        for seed in range(config.seeds)
    ]
    for recipe in RECIPES:
        if recipe.name not in config.recipes:
            continue
        rows = len(starts(0)[recipe.start])
        for seed in range(config.seeds):
            key = {"recipe": recipe.name, "seed": seed}
            compute = functools.partial(learn, config, recipe, seed)
            made.append(Cell(key, compute, cost=1 + rows / 30))
    return made


# ---------------------------------------------------------------------------------- learning


def learn(config: Config, recipe: Recipe, seed: int, workspace: Workspace) -> Result:
    """One operator learned and judged; the first seed's restores the photograph."""
    images = config.draw(seed)
    start = tune(starts(seed)[recipe.start], images, WEIGHTS)
    weight = jnp.asarray(start.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    rows, steps = start.m, config.epochs * (config.samples // config.batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.rate, steps))
    if recipe.row_weights:
        start = with_row_weights(start)
        optimizer = scale_weight_updates(optimizer, config.weights_rate)
    history = hg.train(
        start,
        images.training_pair,
        solver=solver(config.L, images),
        strategy=hg.parse_strategy(recipe.strategy),
        optimizer=optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        checkpoint_dir=workspace.checkpoints,
        trainable=K_and_row_weights if recipe.row_weights else K_alone,
        progress=workspace.bar,
    )
    problem, last = history.problem, history.records[-1]
    learned = {
        "kind": "learned",
        "m": rows,
        "strategy": recipe.strategy,
        "rate": recipe.rate,
        "start_weight": float(weight),
        "seconds": last["seconds"],
        "train_loss": last["train_loss"],
        "held_out_start": _converged_loss(start, images),
        # On another photograph: a figure that shows one recipe may choose it by this.
        "choose_converged": _converged_loss(problem, config.draw(seed, choose=True)),
        **judge(problem, images, config.L),
    }
    if seed > 0:
        return Result([learned])
    record, crop = restore_photograph(config, problem, images)
    x = np.asarray(images.held_out.x_true)
    use = np.mean(np.abs(np.asarray(operators.apply(problem.K, jnp.asarray(x)))), axis=0)
    weights = np.asarray(problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    # Half precision is enough for a picture.
    K = np.asarray(problem.K).astype(np.float16)
    arrays = {"K": K, "use": (weights * use).astype(np.float32), "picture": crop}
    return Result([learned, record], arrays)


def _converged_loss(problem: hg.LowerLevel, images: Images) -> float:
    x_tilde, x_true = images.held_out_pair
    return baselines.mean_loss(solve_converged(problem, images, x_tilde).x, x_true)


# ------------------------------------------------------------------------------ photographs


def restore_photograph(
    config: Config, problem: hg.LowerLevel | None, images: Images
) -> tuple[Record, np.ndarray]:
    """PSNR and SSIM of the whole photograph, and its crop; as observed without a problem.

    Every patch is restored by itself, to convergence; overlaps are averaged.
    """
    truth = data.photograph(config.photograph)
    noise = np.random.default_rng([0, 1]).standard_normal(truth.shape)
    picture = truth + images.noise * noise
    if problem is not None:
        patches = data.all_patches(picture, size=SHAPE[0], stride=config.stride)
        x = solve_converged(problem, images, patches.astype(problem.dtype)).x
        picture = data.assemble(x, truth.shape, size=SHAPE[0], stride=config.stride)
    record = {
        "kind": "photograph",
        "psnr": data.psnr(picture, truth),
        "ssim": hg.ssim(picture, truth),
    }
    return record, _crop(config, picture)


def _crop(config: Config, picture: np.ndarray) -> np.ndarray:
    """What is stored of a photograph: a part of it, in 256 greys."""
    top, left, size = config.crop
    part = picture[top : top + size, left : left + size]
    return np.round(255 * np.clip(part, 0, 1)).astype(np.uint8)


def compare_with_baselines(config: Config, seed: int, workspace: Workspace) -> Result:
    """What is not learned on the data of one seed; of the first one, photographs too."""
    del workspace
    images = config.draw(seed)
    rows = judge_baselines(images, WEIGHTS)
    records: list[Record] = [{"kind": "baseline", "baseline": n, **row} for n, row in rows.items()]
    if seed > 0:
        return Result(records)
    truth = data.photograph(config.photograph)
    arrays = {"truth": _crop(config, truth)}
    problems: dict[str, hg.LowerLevel | None] = {"identity": None}
    for name, K in (
        ("dct", operators.dct2(SHAPE, constant=False)),
        ("differences", operators.differences2(SHAPE)),
    ):
        problems[name] = tune(K, images, WEIGHTS)
    for name, problem in problems.items():
        record, arrays[name] = restore_photograph(config, problem, images)
        records.append({**record, "baseline": name})
    return Result(records, arrays)


# ----------------------------------------------------------------------------------- report


def decibels(loss: float) -> float:
    """PSNR of patches (peak 1) from `0.5 ||x - x_true||^2` a patch.

    >>> decibels(0.5 * 64 * 0.01)
    20.0
    """
    return 10 * math.log10(math.prod(SHAPE) / (2 * loss))


def psnr_by_seed(records: Sequence[Record], column: str = "held_out_converged") -> dict[Any, Any]:
    """`{name: [PSNR of every seed]}` of baselines and recipes."""
    mine = [r for r in records if r["kind"] in ("baseline", "learned")]
    groups = group(mine, lambda r: r["recipe"] or r["baseline"])
    return {
        name: [decibels(r[column]) for r in sorted(same, key=lambda r: r["seed"])]
        for name, same in groups.items()
    }


def report(config: Config, records: Sequence[Record]) -> str:
    """PSNR of held-out patches, gains over the DCT and total variation, and the photograph."""
    found, rows = psnr_by_seed(records), []
    for name, values in found.items():
        same = [r for r in records if (r["recipe"] or r.get("baseline")) == name]
        learned = [r for r in same if r["kind"] == "learned"]
        row: dict[str, Any] = {
            "name": name,
            "psnr": mean_interval(values),
            "over_dct": paired_interval(values, found["dct"]),
            "over_tv": paired_interval(values, found["differences"]),
        }
        if learned:
            row |= {"m": learned[0]["m"], "strategy": learned[0]["strategy"]}
            starts_at = [decibels(r["held_out_start"]) for r in learned]
            at_L = [decibels(r["held_out_at_L"]) for r in learned]
            row |= {"start": mean_interval(starts_at), "at_L": mean_interval(at_L)}
            row["train"] = mean_interval([decibels(r["train_loss"]) for r in learned])
            row["seconds"] = mean_interval([r["seconds"] for r in learned])
            row["share"] = min(r["share_converged"] for r in learned)
        photographs = [r for r in same if r["kind"] == "photograph"]
        for r in photographs:
            row |= {"photograph": r["psnr"], "ssim": r["ssim"]}
        rows.append(row)
    headings = {
        "name": "operator",
        "m": "m",
        "strategy": "strategy",
        "start": "start (dB)",
        "psnr": "held out, converged (dB)",
        "over_dct": "over the DCT (dB)",
        "over_tv": "over total variation (dB)",
        "at_L": f"at L = {config.L} (dB)",
        "train": "training, last epoch (dB)",
        "share": "least share converged",
        "seconds": "training time (s)",
        "photograph": f"{config.photograph} (dB)",
        "ssim": "SSIM",
    }
    return f"{markdown_table(rows, headings)}\n\n{config.seeds} seeds; 95 % intervals.\n"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("operators", Config, cells, report)
