"""Tables of a run, in Markdown and for the terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.terminal import WIDTH, terminal_table
from hypergrad.comparison import Comparison
from hypergrad.workbench.studies.baselines import CONVERGED_TOLERANCE
from hypergrad.workbench.studies.samples import StudyData
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = [
    "GAIN",
    "TABLE",
    "about_the_table",
    "gains",
    "in_one_line",
    "learning_table",
    "nothing_gained",
    "remarks",
    "report",
    "shown_gains",
    "ssim_fell",
    "still_improving",
]

# The gain over the untrained operator (dB, held out) below which a hint is printed.
GAIN = 0.1

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
    below = "".join(f"\n{text}\n" for text in remarks(config, samples, rows, training))
    return (
        "# Hypergradients on one batch\n\n"
        f"{comparison.markdown()}\n\n"
        "# Learned operators\n\n"
        f"Loss: half the squared error a patch. L = {config.iterations}; converged: relative "
        f"residual below {CONVERGED_TOLERANCE:g}, at most {config.converged_iterations} "
        f"iterations. {len(samples.train)} training and {len(samples.held_out)} held-out samples, "
        f"{config.epochs} epochs, seed {config.seed}.{own} "
        f"{_ABOUT_THE_EPOCH} {_about_training_loss(config)}\n\n"
        f"{markdown_table(rows, TABLE)}\n{below}"
    )


def in_one_line(config: ImageStudy, samples: StudyData, shape: tuple[int, int]) -> str:
    """Describe the problem: K (m × n), L, noise, and how many samples there are."""
    kind = "patches" if len(samples.shape) == 2 else "samples"
    return (
        f"K = {config.K} ({shape[0]} × {shape[1]}), L = {config.iterations}, noise "
        f"{samples.noise:.2g}; {len(samples.train)} training, {len(samples.held_out)} held-out "
        f"{kind}"
    )


def gains(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the gain of each learned operator on held-out data at L, in dB.

    Each is compared with the untrained operator restored in the same way: averaging alone improves
    a result, and must not pass for learning.
    """
    return {
        label: end["psnr_at_L"] - start["psnr_at_L"] for label, (start, end) in _pairs(rows).items()
    }


def shown_gains(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return `gains`, and of what is not learned the gain at a converged lower level, in order.

    Learned operators come first, each kind by its gain.
    """
    learned = gains(rows)
    untrained = next(row for row in rows if row["operator"] == "untrained")["psnr_converged"]
    others = {
        row["operator"]: row["psnr_converged"] - untrained
        for row in rows
        if row["operator"] not in learned
    }
    parts = (sorted(part.items(), key=lambda item: -item[1]) for part in (learned, others))
    return {label: gain for part in parts for label, gain in part}


def _pairs(rows: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return of each learned operator its row and that of its start, which comes first."""
    by_name = {row["operator"]: row for row in rows}
    return {
        label: (by_name.get(f"untrained, {label}", by_name["untrained"]), row)
        for label, row in by_name.items()
        if "seconds" in row
    }


def remarks(
    config: ImageStudy,
    samples: StudyData,
    rows: list[dict[str, Any]],
    training: list[dict[str, Any]],
) -> list[str]:
    """Return what the table calls for: another start, rate or number of epochs; often nothing."""
    found = [nothing_gained(config, samples, rows, training), still_improving(config.epochs, rows)]
    return list(filter(None, found))


def still_improving(epochs: int, rows: list[dict[str, Any]]) -> str:
    """Name the strategies whose last epoch is the best; empty without any."""
    labels = [row["operator"] for row in rows if row.get("best_epoch") == epochs > 0]
    if not labels:
        return ""
    return (
        f"Still improving in the last epoch: {', '.join(labels)}. More --epochs (and another "
        "--out) may gain more."
    )


def ssim_fell(
    photograph: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Name the strategies whose photograph gained PSNR but lost SSIM by learning; often empty.

    >>> start, learned = {"psnr": 26.0, "ssim": 0.75}, {"psnr": 26.5, "ssim": 0.7}
    >>> rows = [{"operator": "full", "best_epoch": 8}]
    >>> ssim_fell({"untrained": start, "full": learned}, rows).partition(")")[0]
    'On the photograph SSIM fell by learning while PSNR rose: full (0.750 to 0.700'
    """

    def metric(name: str, what: str) -> float:
        value = photograph.get(name, {}).get(what)
        return math.nan if value is None else value

    start = metric("untrained", "ssim")
    learned = [str(row.get("operator")) for row in rows if row.get("best_epoch")]
    fell = [
        f"{name} ({start:.3f} to {metric(name, 'ssim'):.3f})"
        for name in learned
        if metric(name, "psnr") > metric("untrained", "psnr")
        and round(metric(name, "ssim"), 3) < round(start, 3)
    ]
    if not fell:
        return ""
    return (
        f"On the photograph SSIM fell by learning while PSNR rose: {', '.join(fell)}. Learning "
        "minimises the squared error, which PSNR measures and SSIM does not."
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
    found = {label: -math.inf if math.isnan(gain) else gain for label, gain in gains(rows).items()}
    if not found or max(found.values()) > GAIN:
        return ""
    best = max(found, key=found.__getitem__)
    start, end = _pairs(rows)[best]
    losses = [record["train_loss"] for record in training if record["strategy"] == best]
    # A loss that is not a number has not stayed below, either.
    rose = losses and not losses[-1] <= (1 + _RISE) * losses[0]
    return (
        f"No strategy gained more than {GAIN} dB on held-out data over the untrained operator: "
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
    at_random = config.K.partition(":")[0] == "random"
    advice = (
        "give it more --epochs or another --learning-rate"
        if at_random
        else "start from a poor K: the same command with --K random --learning-rate 0.01 and "
        "another --out"
    )
    return (
        f"Either the start ({config.K}) is good already, or {config.epochs} epochs on {samples} "
        "samples are too few. Such a run compares strategies by their gradients and costs, not by "
        f"what they learn. To see learning, {advice}."
    )


def learning_table(rows: list[dict[str, Any]], width: int = WIDTH) -> str:
    """Lay out the learned operators by their gain, and below a rule what is not learned."""
    gained, by_name = shown_gains(rows), {row["operator"]: row for row in rows}

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        texts = {name: row.get(name) for name in ("psnr_at_L", "psnr_converged")}
        return {
            "operator": row["operator"],
            "gain": f"{gained[row['operator']]:+.2f}",
            **{name: None if value is None else f"{value:.2f}" for name, value in texts.items()},
            "best_epoch": row.get("best_epoch"),
            "seconds": None if "seconds" not in row else f"{row['seconds']:.2g}",
        }

    return terminal_table(
        [shown(by_name[label]) for label in gained],
        {
            "operator": "operator",
            "gain": "gain\n(dB)",
            "psnr_at_L": "PSNR\nat L",
            "psnr_converged": "PSNR\nconv.",
            "best_epoch": "epoch\nkept",
            "seconds": "time\n(s)",
        },
        width,
        rule_after=len(gains(rows)),
    )


def about_the_table(config: ImageStudy) -> str:
    """Explain the columns of `learning_table`."""
    other = (
        ""
        if config.loss is None
        else f" PSNR is not the loss that was learned by, {config.loss}: that one is train_loss "
        "and validation_loss in records.jsonl."
    )
    return (
        f"PSNR (dB) on held-out samples, after L = {config.iterations} iterations and at a "
        "converged lower level. Gain: over the untrained operator restored in the same way; below "
        "the rule nothing is learned, and the gain is that at convergence. The epoch kept is the "
        f"best on held-out data, which flatters it slightly.{other}"
    )


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
