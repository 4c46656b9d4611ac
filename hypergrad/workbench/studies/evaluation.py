"""Every operator at L and at a converged lower level, beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning import History, solve_in_pieces
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import AbstractStrategy, ErgodicUnrolling, Truncation
from hypergrad.workbench import data
from hypergrad.workbench.baselines import best_shrinkage, mean_loss, shrink
from hypergrad.workbench.studies.baselines import converge
from hypergrad.workbench.studies.samples import StudyData, piece_size
from hypergrad.workbench.studies.settings import ImageStudy

__all__ = ["Restorer", "evaluate_all", "make_restorer"]

# From observed rows (count, n) to restored ones.
Restorer = Callable[[np.ndarray], np.ndarray]


def make_restorer(
    piece: int, problem: LowerLevel, solver: ChambollePock, strategy: AbstractStrategy
) -> Restorer:
    """Rows restored `piece` at a time (`piece_size`)."""

    def restore(x_tilde: np.ndarray) -> np.ndarray:
        solved = solve_in_pieces(problem, x_tilde, solver=solver, strategy=strategy, piece=piece)
        return solved[0]

    return restore


def evaluate_all(
    config: ImageStudy,
    samples: StudyData,
    problems: Mapping[str, LowerLevel],
    histories: Mapping[str, History],
    solver: ChambollePock,
    strategies: Mapping[str, AbstractStrategy],
) -> list[dict[str, Any]]:
    """Baselines, then each learned operator: at L with its own strategy, and converged."""
    untrained = problems["untrained"]
    rows = _identity_and_shrinkage(config, samples, untrained)
    for name, problem in problems.items():
        label = name if name == "untrained" else f"{name}, best weight"
        rows.append(_evaluate(config, samples, label, problem, solver, Truncation(1)))
    for strategy in strategies.values():
        if isinstance(strategy, ErgodicUnrolling):
            # The average alone changes the value: without this row it would pass for learning.
            label = f"untrained, {strategy.label}"
            rows.append(_evaluate(config, samples, label, untrained, solver, strategy))
    for label, history in histories.items():
        problem, epoch = history.best
        row = _evaluate(config, samples, label, problem, solver, strategies[label])
        rows.append(row | {"best_epoch": epoch, "seconds": history.records[-1]["seconds"]})
    return rows


def _train_subset(config: ImageStudy, samples: StudyData) -> data.Samples:
    """As many training samples as there are held-out ones: what the evaluation costs."""
    return samples.train.take(slice(0, config.held_out_samples))


def _evaluate(
    config: ImageStudy,
    samples: StudyData,
    name: str,
    problem: LowerLevel,
    solver: ChambollePock,
    strategy: AbstractStrategy,
) -> dict[str, Any]:
    train, held_out = _train_subset(config, samples), samples.held_out
    at_L = make_restorer(piece_size(config, samples), problem, solver, strategy)
    restored = at_L(held_out.x_tilde)
    train_converged = converge(config, samples, problem, train.x_tilde).x
    converged, share_converged = converge(config, samples, problem, held_out.x_tilde)
    return {
        "kind": "evaluation",
        "operator": name,
        "train_at_L": mean_loss(at_L(train.x_tilde), train.x_true),
        "train_converged": mean_loss(train_converged, train.x_true),
        "held_out_at_L": mean_loss(restored, held_out.x_true),
        "held_out_converged": mean_loss(converged, held_out.x_true),
        "psnr_at_L": data.psnr(restored, held_out.x_true),
        "psnr_converged": data.psnr(converged, held_out.x_true),
        "share_converged": share_converged,
    }


def _identity_and_shrinkage(
    config: ImageStudy, samples: StudyData, problem: LowerLevel
) -> list[dict[str, Any]]:
    """`x_tilde` itself, and `x_tilde + a r*` with `a` fitted on training data."""
    train, held_out = _train_subset(config, samples), samples.held_out
    solved_train, solved_held_out = (
        converge(config, samples, problem, part.x_tilde).x for part in (train, held_out)
    )
    fitted = best_shrinkage(train.x_tilde, solved_train, train.x_true)
    rows = []
    for name, a in (("identity", 0.0), (f"untrained, shrunk by a = {fitted:.2f}", fitted)):
        x_train = shrink(train.x_tilde, solved_train, a)
        x_held_out = shrink(held_out.x_tilde, solved_held_out, a)
        rows.append(
            {
                "kind": "evaluation",
                "operator": name,
                "train_converged": mean_loss(x_train, train.x_true),
                "held_out_converged": mean_loss(x_held_out, held_out.x_true),
                "psnr_converged": data.psnr(x_held_out, held_out.x_true),
            }
        )
    return rows
