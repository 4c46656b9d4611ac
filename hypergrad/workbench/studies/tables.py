"""Tables of a run, in Markdown and for the terminal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.terminal import WIDTH, terminal_table
from hypergrad.comparison import Comparison
from hypergrad.workbench.studies.baselines import CONVERGED_TOLERANCE
from hypergrad.workbench.studies.samples import StudyData
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = [
    "TABLE",
    "about_the_table",
    "learning_table",
    "nothing_gained",
    "report",
]

# The gain over the untrained operator (dB, held out) below which a hint is printed.
_GAIN = 0.1

# By how much the training loss has to rise, relative to its start, for the learning rate to be
# blamed: an epoch leaves out what does not fill a batch, so that it never stays quite the same.
_RISE = 0.05

TABLE = {
    "operator": "operator",
    "train_at_L": "training loss at L",
    "held_out_at_L": "held-out loss at L",
    "train_converged": "training loss, converged",
    "held_out_converged": "held-out loss, converged",
    "psnr_at_L": "held-out PSNR at L (dB)",
    "psnr_converged": "held-out PSNR, converged (dB)",
    "share_converged": "share converged",
    "best_epoch": "epoch kept",
    "seconds": "training time (s)",
}


def report(
    config: ImageStudy,
    samples: StudyData,
    comparison: Comparison,
    rows: list[dict[str, Any]],
    training: list[dict[str, Any]],
) -> str:
    parts = {"K": config.K, "F": config.F, "G": config.G, "loss": config.loss}
    usual = dataclasses.asdict(ImageStudy())
    given = [f"{name} = {text}" for name, text in parts.items() if text != usual[name]]
    own = f" Learned with {', '.join(given)} (the table is in the loss above)." if given else ""
    gained = nothing_gained(config, samples, rows, training)
    return (
        "# Hypergradients on one batch\n\n"
        f"{comparison.markdown()}\n\n"
        "# Learned operators\n\n"
        f"Loss: half the squared error a patch. L = {config.iterations}; converged: relative "
        f"residual below {CONVERGED_TOLERANCE:g}, at most {config.converged_iterations} "
        f"iterations. {len(samples.train)} training and {len(samples.held_out)} held-out samples, "
        f"{config.epochs} epochs, seed {config.seed}.{own} "
        f"{_ABOUT_THE_EPOCH} {_about_training_loss(config)}\n\n"
        f"{markdown_table(rows, TABLE)}\n" + (f"\n{gained}\n" if gained else "")
    )


def nothing_gained(
    config: ImageStudy,
    samples: StudyData,
    rows: list[dict[str, Any]],
    training: list[dict[str, Any]],
) -> str:
    """Explain why no strategy gained anything on held-out data; empty if one did.

    `training`, the records of all epochs: whether the loss rose decides what to change.
    """
    by_name = {row["operator"]: row for row in rows}
    # An average is compared with the average that is not learned, where there is one.
    pairs = {
        label: (by_name.get(f"untrained, {label}", by_name["untrained"]), row)
        for label, row in by_name.items()
        if "seconds" in row
    }
    gains = {label: end["psnr_at_L"] - start["psnr_at_L"] for label, (start, end) in pairs.items()}
    gains = {label: -math.inf if math.isnan(gain) else gain for label, gain in gains.items()}
    if not gains or max(gains.values()) > _GAIN:
        return ""
    best = max(gains, key=gains.__getitem__)
    start, end = pairs[best]
    losses = [record["train_loss"] for record in training if record["strategy"] == best]
    # A loss that is not a number has not stayed below, either.
    rose = losses and not losses[-1] <= (1 + _RISE) * losses[0]
    return (
        f"No strategy gained more than {_GAIN} dB on held-out data over the untrained operator: "
        f"{best} came from {start['psnr_at_L']:.2f} to {end['psnr_at_L']:.2f} dB (its training "
        f"loss from {start['train_at_L']:.4g} to {end['train_at_L']:.4g}). "
        + (_smaller_rate(config, losses) if rose else _another_start(config, len(samples.train)))
    )


def _smaller_rate(config: ImageStudy, losses: list[float]) -> str:
    rate, usual = config.learning_rate, ImageStudy().learning_rate
    smaller = usual if rate > usual else rate / 10
    return (
        f"Its training loss rose from {losses[0]:.4g} to {losses[-1]:.4g} as it learned: the "
        f"learning rate, {rate:g}, is too large. Give the same command with --learning-rate "
        f"{smaller:g} and another --out."
    )


def _another_start(config: ImageStudy, samples: int) -> str:
    at_random = config.K is not None and config.K.partition(":")[0] == "random"
    advice = (
        "give it more --epochs or another --learning-rate"
        if at_random
        else "start from a poor K: the same command with --K random --learning-rate 0.01 and "
        "another --out"
    )
    return (
        f"Either the start ({config.K or 'DCT and differences'}) is good already, or "
        f"{config.epochs} epochs on {samples} samples are too few. Such a run compares strategies "
        f"by their gradients and costs, not by what they learn. To see learning, {advice}."
    )


def learning_table(rows: list[dict[str, Any]], width: int = WIDTH) -> str:
    return terminal_table(
        rows,
        {
            "operator": "operator",
            "train_at_L": "train\nloss\nat L",
            "held_out_at_L": "held-out\nloss\nat L",
            "held_out_converged": "held-out\nloss\nconv.",
            "psnr_at_L": "PSNR\nat L\n(dB)",
            "psnr_converged": "PSNR\nconv.\n(dB)",
            "best_epoch": "epoch\nkept",
            "seconds": "train\ntime\n(s)",
        },
        width,
    )


def about_the_table(config: ImageStudy) -> str:
    """Describe each column of `learning_table`."""
    other = (
        ""
        if config.loss is None
        else f" This is not the loss that was learned by, {config.loss}: that one is train_loss "
        "and validation_loss in records.jsonl."
    )
    return (
        "Loss: half the squared norm of the error, a mean over samples; at L: after "
        f"{config.iterations} iterations, as it was learned; conv.: solved to a residual of "
        f"{CONVERGED_TOLERANCE:g}, {config.converged_iterations} iterations at most. PSNR: of the "
        f"held-out samples, peak 1. {_ABOUT_THE_EPOCH} Time: of learning alone, all epochs. "
        f"{_about_training_loss(config)}{other}"
    )


# Said beside each table.
_ABOUT_THE_EPOCH = (
    "Of each strategy the operator of the epoch with the smallest loss on held-out data is kept, "
    "saved and evaluated (0: the untrained one was best): its held-out loss is slightly too good."
)


def _about_training_loss(config: ImageStudy) -> str:
    """Why it is not that of the curves."""
    return (
        f"Training loss: of at most the first {config.held_out_samples} training samples (the "
        "curves and records.jsonl have that of all)."
    )
