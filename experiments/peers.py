"""Exact beside the peers: natural patches, an easy and a hard K, the same iteration for all.

    python experiments/peers.py [--quick] [--out results/peers]

For K near the DCT (m = 63) and a random one (m = 128), F = 0.15 ||.||_1, G quadratic, float64: the
share of patches that `Exact` certifies, by status, and for it and every implicit peer the error of
the gradient in K, the time of a hypergradient and the statuses. The peers differentiate at the
state that `iterations` Chambolle-Pock iterations have arrived at; `Exact` finds its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

import hypergrad as hg
from hypergrad import data, operators
from hypergrad.records import write_json, write_text


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
    quick: bool = False
    """A tenth of it: a smoke test, not a result."""
    out: Path = Path("results/peers")


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


def run(config: Config) -> None:
    """Compare on both problems; print and write what came out."""
    out = config.out
    samples = data.noisy_patches(
        data.PHOTOGRAPHS_TRAIN, config.patches, noise=config.noise, seed=config.seed
    )
    solver = hg.ChambollePock(config.iterations, step_ratio=config.step_ratio)
    strategies = [hg.parse_strategy(text) for text in STRATEGIES]
    write_json(out / "config.json", dataclasses.asdict(config) | {"out": str(out)})
    for name, K in _operators(config.seed).items():
        problem = hg.LowerLevel(K, hg.L1(config.weight), hg.Quadratic(1.0))
        pair = samples.x_tilde, samples.x_true
        reference = hg.hypergradient(problem, *pair, solver=solver, strategy=hg.Exact())
        stats = reference.solution.stats
        assert stats.rank is not None
        certified = float(jnp.mean((stats.residual <= 1e-12).astype(float)))
        heading = (
            f"{name}: {100 * certified:.4g} % of {config.patches} patches certified "
            f"({hg.Status.summary(stats.status)}; rank {int(stats.rank.min())} to "
            f"{int(stats.rank.max())})"
        )
        comparison = hg.compare(
            problem, *pair,
            solver=solver, strategies=strategies, repeats=config.repeats, reference=reference,
        )  # fmt: skip
        print(f"{heading}\n\n{comparison}\n", flush=True)
        folder = out / name.partition(",")[0]
        comparison.save(folder)
        write_text(folder / "certificates.md", f"{heading}\n")


def main(config: Config) -> None:
    jax.config.update("jax_enable_x64", True)
    if config.quick:
        config = dataclasses.replace(config, patches=32, iterations=600, repeats=1)
    run(config)


if __name__ == "__main__":
    main(tyro.cli(Config))
