"""Learning rates for the experiments on photographs: one small budget for every strategy and L.

    python experiments/learning_rates.py [--quick] [--out results/learning_rates]

Every rate is tried for as many epochs as it will be used for (what is best for a third of them is
too large for all), from the same start and in the same order of batches, and judged on a photograph
of its own (`rocket`), at L and by what the strategy returns. What is found is stored with its
records; the other experiments read it.

Budget: 15 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _images import Learning, Optimizer

import hypergrad as hg
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import markdown_table, read_jsonl
from hypergrad._foundation.statistics import group
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

STORED = Path(__file__).parent / "records" / "learning_rates" / "records.jsonl"

# The strategies of the two posters' figures; by plain gradient descent, as on the posters, two.
AVERAGES = ("full", "ergodic:uniform", "ergodic:tail=0.5", "ergodic:linear")
DESCENDING = ("full", "ergodic:uniform")
DEPTHS = (10, 20, 50, 100, 200)
STEPS = (1, 2, 5, 10, 20, 50)
KINDS = ("truncation:k", "limit:last", "limit:steps")


def with_steps(k: int) -> list[str]:
    """The three k-step variants (two where k = 1: the last iterate is the last state)."""
    return [f"{kind}={k}" for kind in KINDS if (kind, k) != ("limit:last", 1)]


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Rates of Adam and of plain descent, one cell for each strategy and L."""

    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2)
    descent_rates: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0)
    depths: tuple[int, ...] = DEPTHS
    steps: tuple[int, ...] = STEPS
    learning: Learning = Learning()
    seed: int = 100
    """Not one of those that results are made from."""

    def quick(self) -> Config:
        """Two rates, two depths."""
        return dataclasses.replace(
            self,
            rates=(0.03, 0.1),
            descent_rates=(10.0, 30.0),
            depths=(10,),
            steps=(1,),
            learning=self.learning.quick(),
        )


def cells(config: Config) -> list[Cell]:
    """Averages and one step at every L, the other k-step variants at L = 100; plain descent."""
    everywhere = [*AVERAGES, "truncation:k=1"]
    at_100 = [s for k in config.steps for s in with_steps(k) if s not in everywhere]
    made = [_cell(config, "adam", strategy, L) for strategy in everywhere for L in config.depths]
    made += [_cell(config, "adam", strategy, 100) for strategy in at_100]
    made += [
        _cell(config, "descent", strategy, L) for strategy in DESCENDING for L in config.depths
    ]
    return made


def _cell(config: Config, optimizer: Optimizer, strategy: str, L: int) -> Cell:
    key: dict[str, Any] = {"optimizer": optimizer, "strategy": strategy, "L": L}
    compute = functools.partial(try_rates, config, optimizer, strategy, L)
    return Cell(key, compute, cost=(3.5 if strategy in AVERAGES else 1.5) * L)


def try_rates(
    config: Config, optimizer: Optimizer, strategy: str, L: int, workspace: Workspace
) -> Result:
    """The loss at the end with every rate."""
    images = config.learning.draw(config.seed, choose=True)
    records = []
    for rate in config.rates if optimizer == "adam" else config.descent_rates:
        history = config.learning.learn(
            images,
            L=L,
            strategy=hg.parse_strategy(strategy),
            rate=rate,
            seed=config.seed,
            workspace=workspace.part(f"rate-{rate:g}"),
            optimizer=optimizer,
        )
        records.append({"rate": rate, "loss": float(history.column("validation_loss")[-1])})
    return Result(records)


def best_rate(
    records: Sequence[Record], strategy: str, L: int, optimizer: Optimizer = "adam"
) -> float:
    """The rate of the least loss; beyond the largest L that was tried, that of the largest."""
    mine = [r for r in records if (r["optimizer"], r["strategy"]) == (optimizer, strategy)]
    depth = min(L, max((r["L"] for r in mine), default=L))
    tried = [r for r in mine if r["L"] == depth]
    if not tried:
        raise HypergradError(
            f"a rate for {strategy} at L = {L} must have been looked for; got none in {STORED}: "
            "run experiments/learning_rates.py --store experiments/records/learning_rates"
        )
    losses = [np.inf if r["loss"] is None else r["loss"] for r in tried]
    return tried[int(np.argmin(losses))]["rate"]


@functools.cache
def stored_rate(strategy: str, L: int, optimizer: Optimizer = "adam") -> float:
    """The rate found for a strategy at L by the stored run of this experiment."""
    return best_rate(read_jsonl(STORED) if STORED.exists() else [], strategy, L, optimizer)


def report(config: Config, records: Sequence[Record]) -> str:
    """Loss by rate, the best rate last, with a star where it is at an end of those tried."""
    parts = []
    tried: dict[Optimizer, tuple[float, ...]] = {
        "adam": config.rates,
        "descent": config.descent_rates,
    }
    for optimizer, rates in tried.items():
        mine = [r for r in records if r["optimizer"] == optimizer]
        rows = []
        for (strategy, L), same in group(mine, lambda r: (r["strategy"], r["L"])).items():
            best = best_rate(records, strategy, L, optimizer)
            losses = {f"{r['rate']:g}": r["loss"] for r in same}
            star = "*" if best in (min(rates), max(rates)) else ""
            rows.append({"strategy": strategy, "L": L, **losses, "best": f"{best:g}{star}"})
        headings = {name: name for name in ("strategy", "L")}
        headings |= {f"{rate:g}": f"loss at rate {rate:g}" for rate in rates}
        table = markdown_table(rows, headings | {"best": "best rate"})
        parts.append(f"# {optimizer.capitalize()}\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("learning_rates", Config, cells, report)
