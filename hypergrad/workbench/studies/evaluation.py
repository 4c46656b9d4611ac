"""Every operator at L and at a converged lower level, beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hypergrad.learning import History, solve_in_pieces
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import AbstractStrategy, ErgodicUnrolling, Truncation
from hypergrad.workbench import data
from hypergrad.workbench.baselines import best_shrinkage, mean_loss, shrink
from hypergrad.workbench.studies.baselines import converge
from hypergrad.workbench.studies.samples import Study

__all__ = ["Restorer", "evaluate_all", "make_restorer"]

# From observed rows (count, n) to restored ones.
Restorer = Callable[[np.ndarray], np.ndarray]


def make_restorer(study: Study, problem: LowerLevel, strategy: AbstractStrategy) -> Restorer:
    """Return a function that restores rows at L."""

    def restore(x_tilde: np.ndarray) -> np.ndarray:
        how = {"solver": study.solver, "strategy": strategy, "piece": study.piece}
        return solve_in_pieces(problem, x_tilde, **how)[0]

    return restore


def evaluate_all(
    study: Study, problems: Mapping[str, LowerLevel], histories: Mapping[str, History]
) -> list[dict[str, Any]]:
    """Baselines, then each learned operator: at L with its own strategy, and converged."""
    untrained = problems["untrained"]
    rows = _identity_and_shrinkage(study, untrained)
    for name, problem in problems.items():
        label = name if name == "untrained" else f"{name}, best weight"
        rows.append(_evaluate(study, label, problem, Truncation(1)))
    for strategy in study.strategies.values():
        if isinstance(strategy, ErgodicUnrolling):
            # The average alone changes the value: without this row it would pass for learning.
            label = f"untrained, {strategy.label}"
            rows.append(_evaluate(study, label, untrained, strategy))
    for label, history in histories.items():
        problem, epoch = history.best
        row = _evaluate(study, label, problem, study.strategies[label])
        rows.append(row | {"best_epoch": epoch, "seconds": history.records[-1]["seconds"]})
    return rows


def _evaluate(
    study: Study, name: str, problem: LowerLevel, strategy: AbstractStrategy
) -> dict[str, Any]:
    train, held_out = study.train_subset, study.samples.held_out
    at_L = make_restorer(study, problem, strategy)
    restored = at_L(held_out.x_tilde)
    train_converged = converge(study, problem, train.x_tilde).x
    converged, share_converged = converge(study, problem, held_out.x_tilde)
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


def _identity_and_shrinkage(study: Study, problem: LowerLevel) -> list[dict[str, Any]]:
    """`x_tilde` itself, and `x_tilde + a r*` with `a` fitted on training data."""
    train, held_out = study.train_subset, study.samples.held_out
    solved_train, solved_held_out = (
        converge(study, problem, part.x_tilde).x for part in (train, held_out)
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
