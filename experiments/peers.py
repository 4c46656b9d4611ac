"""Exact beside the peers: natural patches, an easy and a hard K, the same iteration for all.

    python experiments/peers.py [--quick] [--out results/peers]

For K near the DCT (m = 63) and a random one (m = 128), F = 0.15 ||.||_1, G quadratic, float64: the
share of patches that `Exact` certifies, by status, and for it and every implicit peer the error of
the gradient in K, the time of a hypergradient and the statuses. The peers differentiate at the
state that `iterations` Chambolle-Pock iterations have arrived at; `Exact` finds its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import hypergrad as hg
from hypergrad import data, operators
from hypergrad.comparison import COLUMNS
from hypergrad.records import markdown_table
from hypergrad.sweep import Cell, Record, Result, main


@dataclasses.dataclass(frozen=True)
class Config:
    """Exact beside the implicit peers on natural patches, float64."""

    patches: int = 256
    iterations: int = 6000
    step_ratio: float = 100.0
    weight: float = 0.15
    noise: float = 0.1
    repeats: int = 3
    seed: int = 0

    def quick(self) -> Config:
        """A tenth of it."""
        return dataclasses.replace(self, patches=32, iterations=600, repeats=1)


STRATEGIES = (
    "exact",
    "limit:cgls",
    "jaxopt:normal_cg",
    "jaxopt:gmres",
    "jaxopt:bicgstab",
    "optimistix:gmres",
    "optimistix:bicgstab",
)


def _operators(seed: int) -> dict[str, jax.Array]:
    random = operators.random(128, 64, key=jax.random.key(seed))
    return {"dct, m = 63": operators.dct2((8, 8), constant=False), "random, m = 128": random}


def cells(config: Config) -> list[Cell]:
    """One for each K."""
    samples = data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, config.patches, noise=config.noise, seed=config.seed
    )
    return [
        Cell({"K": name}, lambda _, K=K: measure(config, K, samples))
        for name, K in _operators(config.seed).items()
    ]


def measure(config: Config, K: jax.Array, samples: data.Samples) -> Result:
    """The certificates, then every strategy against `Exact`."""
    solver = hg.ChambollePock(config.iterations, step_ratio=config.step_ratio)
    strategies = [hg.parse_strategy(text) for text in STRATEGIES]
    problem = hg.LowerLevel(K, hg.L1(config.weight), hg.Quadratic(1.0))
    pair = samples.x_tilde, samples.x_true
    reference = hg.hypergradient(problem, *pair, solver=solver, strategy=hg.Exact())
    stats = reference.solution.stats
    assert stats.rank is not None
    certificates = {
        "certified": float(jnp.mean((stats.residual <= 1e-12).astype(float))),
        "statuses": hg.Status.summary(stats.status),
        "least_rank": int(stats.rank.min()),
        "largest_rank": int(stats.rank.max()),
    }
    comparison = hg.compare(
        problem, *pair,
        solver=solver, strategies=strategies, repeats=config.repeats, reference=reference,
    )  # fmt: skip
    return Result([certificates | record for record in comparison.records])


def report(config: Config, records: Sequence[Record]) -> str:
    """A table for each K under its certificates."""
    parts = []
    for K in dict.fromkeys(record["K"] for record in records):
        rows = [record for record in records if record["K"] == K]
        first = rows[0]
        parts.append(
            f"# {K}\n\n{100 * first['certified']:.4g} % of {config.patches} patches certified "
            f"({first['statuses']}; rank {first['least_rank']} to {first['largest_rank']})\n\n"
            f"{markdown_table(rows, COLUMNS)}\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("peers", Config, cells, report)
