"""The field's benchmark: denoised photographs of BSD68, by what was learned on other photographs.

    python experiments/bsd68.py --images train400 --test bsd68 [--quick] [--out results/bsd68]

The lower level is `F(Kx) + (w/2) ||x - x_tilde||^2`, K a bank of filters, F one weight or one
learned convex potential for each. Models are learned on crops of `--images`, a folder of
photographs, for equal seconds by each strategy; those of `--test` are only restored (68 of them in
the data set called BSD68 or Set68). Photograph i of the sorted names gets the noise
`level / 255 * numpy.random.default_rng([68, i]).standard_normal(shape)`, neither clipped nor
rounded. Weights of what is not learned are chosen on training photographs. Without folders, the
photographs of scikit-image are used: a miniature, not the benchmark.

Budget: `seconds` for each learned model, and two to five minutes on a core to choose its epoch
and to restore the 68 photographs. A run that is interrupted goes on; finished models are not
learned again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import mean_interval
from hypergrad.workbench.studies.whole_images import (
    STEP_RATIO,
    HeldOut,
    Learning,
    add_noise,
    best_bank,
    best_scale,
    best_weight,
    denoising,
    form_of,
    mean_psnr,
    photographs_to_test,
    solve_at,
    split,
    total_variation,
    training_images,
)
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# In units of the noise.
TV_WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.9)


# Total variation converges more slowly than a bank: it gets this many times the iterations.
TV_DEPTH = 4

LEAST_STEP = 1 / 16  # of the search for the scale of F, as a power of 2

NEAR = 0.05  # dB, of a held-out PSNR that is as good as the best


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Which noise, which models, how they are learned, and for how long."""

    images: Path | None = None
    """Folder of training photographs; by default, those of scikit-image."""
    test: Path | None = None
    """Folder of test photographs; by default, those of scikit-image."""
    levels: tuple[int, ...] = (25,)
    """Standard deviations of the noise, in grey values of 255."""
    models: tuple[str, ...] = (
        "noisy",
        "total variation",
        "dct 24x5x5",
        "l1 24x5x5",
        "l1 48x7x7",
        "potential 24x5x5",
    )
    compared: str = "l1 24x5x5"
    """The model that is learned by every strategy; the others by the first."""
    strategies: tuple[str, ...] = ("limit:steps=10", "truncation:k=1", "full")
    seconds: float = 90.0
    """Of the updates of the compared model."""
    longer: float = 360.0
    """Of those of the others."""
    seeds: int = 3
    """For the compared model by the first strategy; one for all others."""
    photographs: int = 68
    L: int = 100
    """Iterations that restore a test photograph."""
    side: int = 120
    """Of the parts of held-out training photographs that choose the best epoch."""
    learning: Learning = dataclasses.field(default_factory=Learning)

    def quick(self) -> Config:
        """Two filters learned for a second, on a few small crops."""
        return dataclasses.replace(
            self,
            levels=(25,),
            models=("noisy", "total variation", "dct 2x3x3", "l1 2x3x3", "potential 2x3x3"),
            compared="l1 2x3x3",
            strategies=("truncation:k=1", "limit:steps=10"),
            seconds=0.5,
            longer=0.5,
            seeds=1,
            photographs=1,
            L=10,
            side=32,
            learning=Learning(crop=16, crops=8, rounds=2, batch_size=4, L=5),
        )


def cells(config: Config) -> list[Cell]:
    """Every model once; the compared one by every strategy, and by the first for every seed."""
    made = []
    for seed, level, model in itertools.product(range(config.seeds), config.levels, config.models):
        key = {"level": level, "model": model}
        if not _is_learned(model) and seed == 0:
            made.append(Cell(key, functools.partial(not_learned, config, level, model), 300.0))
        for strategy in strategies_of(config, model, seed):
            names = {**key, "strategy": strategy, "seed": seed}
            compute = functools.partial(learn, config, level, model, strategy, seed)
            made.append(Cell(names, compute, seconds_of(config, model) + 300))
    return made


def strategies_of(config: Config, model: str, seed: int = 0) -> tuple[str, ...]:
    """Those that a model is learned by."""
    if not _is_learned(model) or (seed > 0 and model != config.compared):
        return ()
    return config.strategies if model == config.compared and seed == 0 else config.strategies[:1]


def seconds_of(config: Config, model: str) -> float:
    return config.seconds if model == config.compared else config.longer


def _is_learned(model: str) -> bool:
    return model.startswith(("l1 ", "potential "))


def held_out_of(config: Config, level: int, images: Sequence[Any]) -> HeldOut:
    observe = functools.partial(add_noise, level / 255)
    return HeldOut.of(images, observe, denoising, side=config.side, L=config.L)


def restore_test(
    config: Config, level: int, problem: hg.LowerLevel | None, *, depth: int = 1
) -> list[float]:
    """The PSNR of each test photograph; None restores nothing."""
    found = []
    photographs = photographs_to_test(config.test, config.photographs)
    for i, image in enumerate(photographs.values()):
        noise = np.random.default_rng([68, i]).standard_normal(image.shape)
        x_true = image.reshape(1, -1)
        x = x_tilde = x_true + level / 255 * noise.reshape(1, -1)
        if problem is not None:
            x = solve_at(problem, image.shape, denoising, x_tilde, depth * config.L)
        found.append(mean_psnr(x, x_true))
    return found


def not_learned(config: Config, level: int, model: str, workspace: Workspace) -> Result:
    """Nothing restored, total variation, or a bank of the DCT, each at its best weight."""
    del workspace
    sigma, depth = level / 255, 1
    held_out = held_out_of(config, level, split(training_images(config.images))[1])
    if model == "noisy":
        problem = None
    elif model == "total variation":
        depth, shape = TV_DEPTH, (config.side, config.side)
        problem = best_weight(
            lambda weight: total_variation(weight, shape, hg.Quadratic(1.0)),
            dataclasses.replace(held_out, L=depth * held_out.L),
            [factor * sigma for factor in TV_WEIGHTS],
        )
    else:
        form = form_of(model.removeprefix("dct "))
        problem = best_bank(form, sigma, config.side, held_out)
    psnr = restore_test(config, level, problem, depth=depth)
    return Result([{"kind": "result", "psnr": float(np.mean(psnr))}], {"psnr": np.array(psnr)})


def learn(
    config: Config, level: int, model: str, strategy: str, seed: int, workspace: Workspace
) -> Result:
    """One model learned by one strategy, from the DCT at its best weight; then its best scale."""
    images, others = split(training_images(config.images))
    held_out = held_out_of(config, level, others)
    side, sigma = config.learning.crop, level / 255
    kind, _, form = model.partition(" ")
    is_potential = kind == "potential"
    start = best_bank(form_of(form), sigma, side, held_out, potentials=is_potential)
    history = config.learning.learn(
        start,
        images,
        functools.partial(add_noise, sigma),
        held_out,
        strategy=hg.parse_strategy(strategy),
        seconds=seconds_of(config, model),
        seed=seed,
        checkpoint_dir=workspace.checkpoints,
        progress=workspace.bar,
    )
    best = best_scale(history.best.problem, held_out, LEAST_STEP)
    curve = [
        {
            "kind": "epoch",
            **{name: record[name] for name in ("epoch", "seconds", "converged", "counted")},
            "validation_psnr": held_out.psnr(record["validation_loss"]),
        }
        for record in history.records
    ]
    psnr = restore_test(config, level, best)
    saved = hg.SavedOperator(
        best,
        hg.ChambollePock(config.L, step_ratio=STEP_RATIO),
        hg.Truncation(1),
        (side, side),
        stride=side,
    )
    workspace.files.mkdir(parents=True, exist_ok=True)
    saved.save(workspace.files / "operator.npz")
    K: Any = best.K
    arrays = {"psnr": np.array(psnr), "filters": np.asarray(K.filters)}
    arrays |= {f"F{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(best.F))}
    final = {"kind": "result", "epoch": history.best.epoch, "psnr": float(np.mean(psnr))}
    return Result([final, *curve], arrays)


# ------------------------------------------------------------------------------------------ report


def report(config: Config, records: Sequence[Record]) -> str:
    """The mean PSNR on the test photographs, and the seconds until a held-out PSNR is passed."""
    results = [r for r in records if r["kind"] == "result"]
    rows = []
    for level, model in itertools.product(config.levels, config.models):
        for strategy in strategies_of(config, model) or ("-",):
            key = {"level": level, "model": model}
            chosen = key if strategy == "-" else {**key, "strategy": strategy}
            psnr = [r["psnr"] for r in results if chosen.items() <= r.items()]
            near = "-" if strategy == "-" else seconds_to_best(records, chosen)
            psnr_and_interval = f"{mean_interval(psnr)}" if psnr else "not run"
            rows.append({**key, "strategy": strategy, "psnr": psnr_and_interval, "near": near})
    headings = {"level": "noise", "model": "model", "strategy": "strategy", "psnr": "PSNR (dB)"}
    headings["near"] = f"seconds to {NEAR} dB below the best"
    return f"{markdown_table(rows, headings)}\n"


def seconds_to_best(records: Sequence[Record], chosen: dict[str, Any]) -> str:
    """When the held-out PSNR came near the best of all strategies; the mean over the seeds."""
    epochs = [r for r in records if r["kind"] == "epoch"]
    model = {name: chosen[name] for name in ("level", "model")}.items()
    found = []
    for seed in {r["seed"] for r in epochs if chosen.items() <= r.items()}:
        rivals = [r for r in epochs if model <= r.items() and r["seed"] == seed]
        goal = max(r["validation_psnr"] for r in rivals) - NEAR
        mine = [r for r in rivals if r["strategy"] == chosen["strategy"]]
        found += [min((r["seconds"] for r in mine if r["validation_psnr"] >= goal), default=None)]
    return f"{mean_interval(found)}" if found and None not in found else "not reached"


if __name__ == "__main__":
    main("bsd68", Config, cells, report)
