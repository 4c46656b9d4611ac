"""Learning rates for the experiments on photographs: one small budget for every strategy and L.

    python experiments/learning_rates.py [--quick] [--out results/learning_rates]

Every rate is tried for as many epochs as it will be used for (what is best for a third of them is
too large for all), from the same start and in the same order of batches, and judged on a photograph
of its own (`rocket`), at L and by what the strategy returns. What is found is stored with its
records; the other experiments read it.

About 12 minutes on 2 cores, a shard on each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from _images import Learning

import hypergrad as hg
from hypergrad.records import markdown_table, read_jsonl
from hypergrad.sweep import Cell, Record, Result, Workspace, main

STORED = Path(__file__).parent / "records" / "learning_rates" / "records.jsonl"

# The strategies of the two posters' figures.
AVERAGES = ("full", "ergodic:uniform", "ergodic:tail=0.5", "ergodic:linear")
DEPTHS = (10, 20, 50, 100, 200)
STEPS = (1, 2, 5, 10, 20, 50)
KINDS = ("truncation:k", "limit:last", "limit:steps")


def with_steps(k: int) -> list[str]:
    """The three k-step variants."""
    return [f"{kind}={k}" for kind in KINDS]


@dataclasses.dataclass(frozen=True)
class Config:
    """Rates of Adam, one cell for each strategy and L."""

    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2)
    depths: tuple[int, ...] = DEPTHS
    steps: tuple[int, ...] = STEPS
    learning: Learning = Learning()
    seed: int = 100
    """Not one of those that results are made from."""

    def quick(self) -> Config:
        """Two rates, two depths."""
        return dataclasses.replace(
            self, rates=(0.03, 0.1), depths=(10,), steps=(1,), learning=self.learning.quick()
        )


def cells(config: Config) -> list[Cell]:
    """Averages at every L; the k-step variants at L = 100."""
    cases = [(strategy, L) for strategy in AVERAGES for L in config.depths]
    cases += [(strategy, 100) for k in config.steps for strategy in with_steps(k)]
    return [
        Cell({"strategy": s, "L": L}, functools.partial(try_rates, config, s, L), cost=_cost(s, L))
        for s, L in cases
    ]


def _cost(strategy: str, L: int) -> float:
    return 3.5 * L if strategy in AVERAGES else 1.5 * L


def try_rates(config: Config, strategy: str, L: int, workspace: Workspace) -> Result:
    images = config.learning.draw(config.seed, choose=True)
    records = []
    for rate in config.rates:
        history = config.learning.learn(
            images,
            L=L,
            strategy=hg.parse_strategy(strategy),
            rate=rate,
            seed=config.seed,
            workspace=workspace.part(f"rate-{rate:g}"),
        )
        records.append({"rate": rate, "loss": float(history.column("validation_loss")[-1])})
    return Result(records)


def best_rate(records: Sequence[Record], strategy: str, L: int) -> float:
    """The rate of the least loss; beyond the largest L that was tried, that of the largest."""
    depth = min(L, max((r["L"] for r in records if r["strategy"] == strategy), default=L))
    tried = [r for r in records if (r["strategy"], r["L"]) == (strategy, depth)]
    if not tried:
        raise ValueError(
            f"a rate for {strategy} at L = {L} must have been looked for; got none in {STORED}: "
            "run experiments/learning_rates.py --store experiments/records/learning_rates"
        )
    losses = [np.inf if r["loss"] is None else r["loss"] for r in tried]
    return tried[int(np.argmin(losses))]["rate"]


@functools.cache
def stored_rate(strategy: str, L: int) -> float:
    """The rate found for a strategy at L by the stored run of this experiment."""
    return best_rate(read_jsonl(STORED) if STORED.exists() else [], strategy, L)


def report(config: Config, records: Sequence[Record]) -> str:
    """Loss by rate, the best rate last."""
    rows = []
    for strategy, L in dict.fromkeys((r["strategy"], r["L"]) for r in records):
        losses = {
            f"{r['rate']:g}": r["loss"] for r in records if (r["strategy"], r["L"]) == (strategy, L)
        }
        rows.append(
            {"strategy": strategy, "L": L, **losses, "best": best_rate(records, strategy, L)}
        )
    headings = {name: name for name in ("strategy", "L")}
    headings |= {f"{rate:g}": f"loss at rate {rate:g}" for rate in config.rates}
    return markdown_table(rows, headings | {"best": "best rate"}) + "\n"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("learning_rates", Config, cells, report)
