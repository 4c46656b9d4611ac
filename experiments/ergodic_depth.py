"""The first poster's figure: does unrolling averages yield lower losses when L is increased?

    python experiments/ergodic_depth.py [--quick] [--out results/ergodic_depth]

K is learned by full unrolling of the last iterate and of three averages, at several L and over
seeds: by Adam, and, for the last iterate and the uniform average, by plain gradient descent over
batches, as on the poster; each at the rate that `learning_rates.py` found for it. An average is
biased towards what was observed, which acts like shrinkage: so every K, the untrained one first, is
judged as it is returned, at L, averaged, converged, and converged but shrunk by a fitted factor.

Budget: 20 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from _images import Learning, judge, judge_baselines
from learning_rates import AVERAGES, DESCENDING, stored_rate

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group, mean_interval
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# Tried for the baselines.
WEIGHTS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.25)


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """K learned by averages and by the last iterate, at several L, over seeds."""

    depths: tuple[int, ...] = (10, 20, 50, 100, 200, 400)
    seeds: int = 5
    deepest_seeds: int = 3
    """Seeds at the largest L, which takes as long as all others together."""
    learning: Learning = Learning()

    def quick(self) -> Config:
        """Two depths, two seeds, one at the largest."""
        return dataclasses.replace(
            self,
            depths=(10, 20),
            seeds=2,
            deepest_seeds=1,
            learning=self.learning.quick(),
        )

    def seeds_at(self, L: int) -> int:
        return self.deepest_seeds if max(self.depths) == L else self.seeds


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell: what is done with which seed, strategy and L (None: of no matter)."""

    run: Literal["baselines", "untrained", "adam", "descent"]
    seed: int
    strategy: str | None = None
    L: int = 0


def cells(config: Config) -> list[Cell]:
    """What is not learned; Adam and descent with their strategies, every L and seed."""
    made = [
        _cell(config, compare_with_baselines, Case("baselines", s), 30) for s in range(config.seeds)
    ]
    for L in config.depths:
        for seed in range(config.seeds_at(L)):
            made.append(_cell(config, judge_untrained, Case("untrained", seed, None, L), 15))
            cases = [Case("adam", seed, strategy, L) for strategy in AVERAGES]
            cases += [Case("descent", seed, strategy, L) for strategy in DESCENDING]
            made += [_cell(config, learn, case, 15 + L) for case in cases]
    return made


def _cell(config: Config, compute: Callable[..., Result], case: Case, cost: float) -> Cell:
    return Cell(dataclasses.asdict(case), functools.partial(compute, config, case), cost)


# ------------------------------------------------------------------------------ not learned


def compare_with_baselines(config: Config, case: Case, workspace: Workspace) -> Result:
    """Baselines on the data of one seed; they know no L."""
    del workspace
    rows = judge_baselines(config.learning.draw(case.seed), WEIGHTS)
    return Result([{"kind": "baseline", "baseline": name, **row} for name, row in rows.items()])


def judge_untrained(config: Config, case: Case, workspace: Workspace) -> Result:
    """The K that learning starts from, judged as the learned ones are."""
    del workspace
    images, start = config.learning.draw(case.seed), config.learning.start(case.seed)
    return Result([{"kind": "untrained", **judge(start, images, case.L)}])


# ---------------------------------------------------------------------------------- learned


def learn(config: Config, case: Case, workspace: Workspace) -> Result:
    """By Adam or plain descent, at the stored rate."""
    assert case.strategy is not None
    assert case.run == "adam" or case.run == "descent"
    rate = stored_rate(case.strategy, case.L, case.run)
    images = config.learning.draw(case.seed)
    history = config.learning.learn(
        images,
        L=case.L,
        strategy=hg.parse_strategy(case.strategy),
        rate=rate,
        seed=case.seed,
        workspace=workspace,
        optimizer=case.run,
    )
    last = history.records[-1]
    end = {
        "kind": "learned",
        "rate": rate,
        "seconds": last["seconds"],
        # By what the strategy returns: the last iterate at L, or its average.
        "held_out_returned": last["validation_loss"],
        **judge(history.problem, images, case.L),
    }
    columns = ("epoch", "train_loss", "validation_loss")
    curve = [{"kind": "epoch"} | {name: r[name] for name in columns} for r in history.records]
    return Result([*curve, end])


# ----------------------------------------------------------------------------------- report


HEADINGS = {
    "strategy": "strategy",
    "L": "L",
    "rate": "rate",
    "held_out_returned": "as returned",
    "held_out_at_L": "last iterate at L",
    "held_out_averaged": "uniform average over L",
    "held_out_converged": "converged",
    "held_out_shrunk": "converged, shrunk",
    "shrinkage": "shrunk by",
    "share_converged": "share converged",
    "seeds": "seeds",
}


def report(config: Config, records: Sequence[Record]) -> str:
    """Held-out losses (means and 95 % intervals over seeds), by run, strategy and L."""
    parts = []
    for run in ("untrained", "adam", "descent"):
        mine = [r for r in records if r["run"] == run and r["kind"] in ("untrained", "learned")]
        rows = [
            _row(list(same)) for same in group(mine, lambda r: (r["strategy"], r["L"])).values()
        ]
        parts.append(f"# {run.capitalize()}\n\nHeld-out loss\n\n{markdown_table(rows, HEADINGS)}\n")
    found = group((r for r in records if r["run"] == "baselines"), "baseline")
    rows = [
        {"baseline": name, "loss": mean_interval([r["held_out_converged"] for r in same])}
        for name, same in found.items()
    ]
    table = markdown_table(rows, {"baseline": "baseline", "loss": "held-out loss, converged"})
    seeds = f"{config.seeds} seeds, {config.deepest_seeds} at L = {max(config.depths)}."
    return "\n".join([*parts, f"# Baselines\n\n{table}\n\n{seeds}\n"])


def _row(same: Sequence[Record]) -> dict[str, Any]:
    first = same[0]
    row: dict[str, Any] = {key: first.get(key) for key in ("strategy", "L", "rate")}
    for column in HEADINGS:
        if first.get(column) is not None and column not in row:
            row[column] = mean_interval([r[column] for r in same])
    return row | {"seeds": len(same)}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("ergodic_depth", Config, cells, report)
