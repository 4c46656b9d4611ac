"""Curves, learned operators, patches and a restored photograph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hypergrad import plotting
from hypergrad._foundation.records import write_json, write_npz
from hypergrad.diagnostics import ssim
from hypergrad.problem import operators
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.workbench import data
from hypergrad.workbench.studies.evaluation import Restorer
from hypergrad.workbench.studies.learning import file_name
from hypergrad.workbench.studies.samples import Study, StudyData
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = ["draw"]


def draw(
    study: Study,
    problems: Mapping[str, LowerLevel],
    restorers: Mapping[str, Restorer],
    training: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    out: Path,
) -> dict[str, dict[str, float]]:
    """Draw all pictures; return PSNR and SSIM of the photograph, where there is one.

    `problems` and `restorers` hold the untrained and each learned operator.
    """
    config, samples, save = study.config, study.samples, plotting.save_figure
    shape = samples.shape
    baselines = {
        row["operator"]: row["held_out_converged"]
        for row in rows
        # The best one that is not learned; another loss than that of the rows has no such line.
        if config.loss is None and row["operator"] == "total variation, best weight"
    }
    words = {} if config.loss is None else {"loss": config.loss}
    over_epochs = plotting.plot_loss_curves(training, x="epoch", baselines=baselines, **words)
    over_seconds = plotting.plot_loss_curves(training, x="seconds", baselines=baselines, **words)
    save(over_epochs, out / "loss_over_epochs")
    save(over_seconds, out / "loss_over_seconds")
    if len(shape) != 2:
        return {}
    patch = (shape[0], shape[1])
    for label, problem in problems.items():
        x_true = jnp.asarray(samples.held_out.x_true, problem.dtype)
        use = np.mean(np.abs(np.asarray(operators.apply(problem.K, x_true))), axis=0)
        picture = plotting.plot_operator(np.asarray(problem.K), patch, title=label, use=use)
        save(picture, out / f"operator_{file_name(label)}")
    save(plotting.plot_patches(_some_patches(samples, restorers), patch), out / "patches")
    return _draw_photograph(config, restorers, out) if config.data is None else {}


def _some_patches(samples: StudyData, restorers: Mapping[str, Restorer]) -> dict[str, np.ndarray]:
    """Six held-out patches, the most structured of the first ones: flat ones show nothing."""
    candidates = samples.held_out.take(slice(0, 64))
    chosen = candidates.take(np.argsort(-np.std(candidates.x_true, axis=1))[:6])
    restored = {label: restore(chosen.x_tilde) for label, restore in restorers.items()}
    return {"observed": chosen.x_tilde, **restored, "truth": chosen.x_true}


def _draw_photograph(
    config: ImageStudy, restorers: Mapping[str, Restorer], out: Path
) -> dict[str, dict[str, float]]:
    truth = data.photograph(config.photograph)
    rng = np.random.default_rng([config.seed, 1])
    observed = truth + config.noise * rng.standard_normal(truth.shape)
    pictures = {"observed": observed}
    for label, restore in restorers.items():
        pictures[label] = _restore_photograph(config, observed, restore)
    metrics = {
        name: {"psnr": data.psnr(picture, truth), "ssim": ssim(picture, truth)}
        for name, picture in pictures.items()
    }
    pictures["truth"] = truth
    figure = plotting.plot_photograph(pictures, truth=truth, metrics=metrics)
    plotting.save_figure(figure, out / f"photograph_{config.photograph}")
    write_json(out / "photograph.json", metrics)
    levels = {
        name: np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
        for name, picture in pictures.items()
    }
    write_npz(out / f"photograph_{config.photograph}.npz", levels, compress=True)
    return metrics


def _restore_photograph(config: ImageStudy, observed: np.ndarray, restore: Restorer) -> np.ndarray:
    """Every patch by itself, overlaps averaged."""
    size, stride = config.patch, config.stride
    patches = data.all_patches(observed, size=size, stride=stride)
    return data.assemble(restore(patches), observed.shape, size=size, stride=stride)
