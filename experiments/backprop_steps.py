"""The second poster's figure: is backpropagating one step enough, and why?

    python experiments/backprop_steps.py [--quick] [--out results/backprop_steps]

K is learned at L = 100 by the three k-step variants (truncation; the deltas of the last iterates in
the limit formula; steps at the last state) and by full unrolling, over seeds, each at the learning
rate that `learning_rates.py` found for it; and by full unrolling for the few epochs that it has
time for while one step has all of them, with a rate and a schedule of its own. Then, at the K that
one step starts from and at the K that it ends at: the exact gradients of many batches beside the
k-step ones (bias against the noise of a batch, batches that point uphill); and what more steps gain
from there, exact ones beside those of one step and of full unrolling.

Budget: 30 minutes on 2 cores (`--workers 2`; half of it the exact gradients).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _images import PIECE, Images, Learning, judge, judge_baselines, solver
from learning_rates import STEPS, stored_rate, with_steps

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import Interval, group, mean_interval, recovered_share
from hypergrad._foundation.timing import compile_ahead
from hypergrad.comparison import differentiable_samples, solve_without_strategy
from hypergrad.problem.lower_level import cast_floats
from hypergrad.workbench import baselines
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# Tried for the baselines.
WEIGHTS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """K learned at L by k steps, over seeds."""

    L: int = 100
    steps: tuple[int, ...] = STEPS
    seeds: int = 5
    learning: Learning = Learning()
    batches: int = 32
    """Whose gradients are compared, in float64."""
    more_steps: int = 100
    more_rate: float = 1e-3
    """Of Adam for the steps from where one step ends."""
    short_epochs: int = 3
    """Of full unrolling, a quarter of all: an epoch takes it about four times as long as one step
    (see the part on time)."""
    short_rates: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4)
    """Of Adam, tried for them on the photograph to choose on."""
    choose_seed: int = 100
    timed_epochs: int = 5
    timed_rounds: int = 3
    """Times are medians over the epochs of all rounds, in which the strategies take turns."""

    def quick(self) -> Config:
        """Two seeds, two k."""
        return dataclasses.replace(
            self,
            steps=(1, 5),
            seeds=2,
            batches=4,
            more_steps=3,
            short_epochs=1,
            short_rates=(0.1,),
            timed_epochs=2,
            timed_rounds=1,
            learning=self.learning.quick(),
        )

    @property
    def strategies(self) -> list[str]:
        return ["full"] + [strategy for k in self.steps for strategy in with_steps(k)]

    def rate(self, strategy: str) -> float:
        return stored_rate(strategy, self.L)


def cells(config: Config) -> list[Cell]:
    """Times of one epoch; training of every strategy and seed; baselines and gradients of each."""
    key: dict[str, Any] = {"part": "time", "strategy": None, "seed": 0}
    made = [Cell(key, functools.partial(compare_times, config), cost=8.0)]
    for seed in range(config.seeds):
        key = {"part": "baselines", "strategy": None, "seed": seed}
        made.append(Cell(key, functools.partial(compare_with_baselines, config, seed), cost=0.3))
        for strategy in config.strategies:
            key = {"part": "training", "strategy": strategy, "seed": seed}
            cost = 4.0 if strategy == "full" else 1 + 2 * steps_of(strategy) / config.L
            made.append(Cell(key, functools.partial(learn, config, strategy, seed), cost))
        key = {"part": "short", "strategy": "full", "seed": seed}
        made.append(Cell(key, functools.partial(learn_in_short, config, seed), cost=5.0))
        key = {"part": "gradients", "strategy": None, "seed": seed}
        made.append(Cell(key, functools.partial(compare_gradients, config, seed), cost=8.0))
    return made


def steps_of(strategy: str) -> int:
    return int(strategy.rpartition("=")[2])


# ------------------------------------------------------------------------------------- training


def learn(config: Config, strategy: str, seed: int, workspace: Workspace) -> Result:
    """One training run, epoch by epoch, and what the K that it ends at is worth."""
    images = config.learning.draw(seed)
    rate = config.rate(strategy)
    history = config.learning.learn(
        images,
        L=config.L,
        strategy=hg.parse_strategy(strategy),
        rate=rate,
        seed=seed,
        workspace=workspace,
    )
    end = {"kind": "learned", "rate": rate, **judge(history.problem, images, config.L)}
    curve = [{"kind": "epoch", **record} for record in history.records]
    arrays = {"K": np.asarray(history.problem.K)} if seed == 0 else {}
    return Result([*curve, end], arrays)


def learn_in_short(config: Config, seed: int, workspace: Workspace) -> Result:
    """Full unrolling in the time that one step takes for all epochs."""
    learning = dataclasses.replace(config.learning, epochs=config.short_epochs)

    def learned(images: Images, rate: float, seed: int, part: str) -> hg.History:
        return learning.learn(
            images,
            L=config.L,
            strategy=hg.FullUnrolling(),
            rate=rate,
            seed=seed,
            workspace=workspace.part(part),
        )

    others = learning.draw(config.choose_seed, choose=True)
    losses = [
        learned(others, rate, config.choose_seed, f"rate-{rate:g}").column("validation_loss")[-1]
        for rate in config.short_rates
    ]
    rate, images = config.short_rates[int(np.argmin(losses))], learning.draw(seed)
    problem = learned(images, rate, seed, "chosen").problem
    about = {"kind": "short", "rate": rate, "epochs": config.short_epochs}
    return Result([{**about, **judge(problem, images, config.L)}])


def compare_with_baselines(config: Config, seed: int, workspace: Workspace) -> Result:
    """Baselines and the untrained K on the same data."""
    del workspace
    images = config.learning.draw(seed)
    rows = judge_baselines(images, WEIGHTS)
    rows["untrained"] = judge(config.learning.start(seed), images, config.L)
    return Result([{"kind": "baseline", "baseline": name, **row} for name, row in rows.items()])


# ----------------------------------------------------------------------------------------- time


def compare_times(config: Config, workspace: Workspace) -> Result:
    """Seconds of an epoch of training, and of the forward solves of its batches alone, in turns."""
    images, start = config.learning.draw(0), config.learning.start(0)
    iterations = solver(config.L, images)
    forward = compile_ahead(
        solve_without_strategy,
        start,
        images.train.x_tilde[: config.learning.batch_size],
        iterations,
    )

    def forward_epochs() -> list[float]:
        seconds = []
        for rows_of_epoch in _batches_of_epochs(config):
            begun = time.perf_counter()
            for rows in rows_of_epoch:
                # What training does at least: the samples to the device, a number back.
                float(forward(start, images.train.x_tilde[rows], iterations).x[0, 0])
            seconds.append(time.perf_counter() - begun)
        return seconds

    def training_epochs(strategy: str) -> list[float]:
        history = hg.train(
            start,
            images.training_pair,
            solver=iterations,
            strategy=hg.parse_strategy(strategy),
            epochs=config.timed_epochs,
            batch_size=config.learning.batch_size,
            progress=workspace.bar,
        )
        return list(np.diff(history.column("seconds")))

    seconds: dict[str, list[float]] = {name: [] for name in ["forward", *config.strategies]}
    for _ in range(config.timed_rounds):
        for name, found in seconds.items():
            found += forward_epochs() if name == "forward" else training_epochs(name)
    median = {name: float(np.median(found)) for name, found in seconds.items()}
    records = [
        {
            "kind": "time",
            "method": name,
            "seconds": value,
            "over_forward": value / median["forward"],
        }
        for name, value in median.items()
    ]
    return Result(records)


def _batches_of_epochs(config: Config) -> list[list[np.ndarray]]:
    """As many batches as training sees."""
    size, rng = config.learning.batch_size, np.random.default_rng(0)
    orders = (rng.permutation(config.learning.samples) for _ in range(config.timed_epochs))
    return [np.split(order[: len(order) // size * size], len(order) // size) for order in orders]


# ------------------------------------------------------------------------------------ gradients


def compare_gradients(config: Config, seed: int, workspace: Workspace) -> Result:
    """Gradients of many batches at the start and at the end of one-step training; more steps.

    The K at its end is learned once more here: a cell knows of no other.
    """
    images = config.learning.draw(seed)
    one_step = config.learning.learn(
        images,
        L=config.L,
        strategy=hg.Truncation(1),
        rate=config.rate("truncation:k=1"),
        seed=seed,
        workspace=workspace,
    )
    places = {"start": config.learning.start(seed), "end of k=1": one_step.problem}
    records = []
    for place, problem in places.items():
        records += gradient_records(config, place, cast_floats(problem, jnp.float64), images, seed)
    end = cast_floats(one_step.problem, jnp.float64)
    for label in ("exact", "truncation:k=1", "full"):
        records += more_steps(config, end, label, images, seed)
    return Result(records)


def _batches(config: Config, images: Images, seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    size = config.learning.batch_size
    return [rng.choice(len(images.train), size, replace=False) for _ in range(count)]


def gradient_records(
    config: Config, place: str, problem: hg.LowerLevel, images: Images, seed: int
) -> list[Record]:
    """Over batches: bias of the mean, noise of one, cosines, and how many point uphill."""
    labels = config.strategies
    gradients: dict[str, list[np.ndarray]] = {label: [] for label in ["exact", *labels]}
    differentiable = []
    for rows in _batches(config, images, seed, config.batches):
        pair = images.train.x_tilde[rows].astype(float), images.train.x_true[rows].astype(float)
        for label in gradients:
            h = hg.hypergradient(
                problem, *pair, solver=solver(config.L, images), strategy=hg.parse_strategy(label)
            )
            gradients[label].append(np.asarray(h.grad.K).ravel())
            if label == "exact":
                differentiable.append(np.mean(differentiable_samples(h)))
    exact = np.array(gradients.pop("exact"))
    noise = np.sqrt(np.mean(np.sum((exact - exact.mean(axis=0)) ** 2, axis=1)))
    at = {"kind": "gradient", "place": place, "differentiable": float(np.mean(differentiable))}
    return [
        {**at, "method": label, "noise": float(noise), **_against(np.array(values), exact)}
        for label, values in gradients.items()
    ]


def _against(ours: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """A method's gradients beside the exact ones, both `(batches, entries)`."""
    mean, exact_mean = ours.mean(axis=0), exact.mean(axis=0)
    products = np.sum(ours * exact, axis=1)
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
    size, exact_size = float(np.linalg.norm(mean)), float(np.linalg.norm(exact_mean))
    cosine_of_means = float(mean @ exact_mean) / (size * exact_size)
    return {
        "norm": size,
        "exact_norm": exact_size,
        "bias": float(np.linalg.norm(mean - exact_mean)),
        # The scale of a gradient is nothing to Adam: the bias that is left at the best one.
        "scaled_bias": exact_size * float(np.sqrt(max(0.0, 1 - cosine_of_means**2))),
        "cosine": float(np.mean(products / sizes)),
        "cosine_of_means": cosine_of_means,
        "uphill": float(np.mean(products < 0)),
    }


def more_steps(
    config: Config, problem: hg.LowerLevel, label: str, images: Images, seed: int
) -> list[Record]:
    """The held-out loss along more steps from where one step has ended, all on the same batches."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.more_rate, config.more_steps))
    iterations, strategy = solver(config.L, images), hg.parse_strategy(label)
    K = jnp.asarray(problem.K)
    state = optimizer.init(K)
    x_tilde, x_true = (part.astype(float) for part in images.held_out_pair)

    def record(step: int) -> Record:
        x = baselines.solve_to_tolerance(problem, x_tilde, primal_scale=images.noise, piece=PIECE).x
        loss = baselines.mean_loss(x, x_true)
        return {"kind": "more", "method": label, "step": step, "loss": loss}

    records = [record(0)]
    for step, rows in enumerate(_batches(config, images, seed + 1000, config.more_steps), 1):
        pair = images.train.x_tilde[rows].astype(float), images.train.x_true[rows].astype(float)
        h = hg.hypergradient(problem, *pair, solver=iterations, strategy=strategy)
        updates, state = optimizer.update(h.grad.K, state)
        K = jnp.asarray(optax.apply_updates(K, updates))
        problem = dataclasses.replace(problem, K=K)
        if step % max(1, config.more_steps // 10) == 0:
            records.append(record(step))
    return records


# --------------------------------------------------------------------------------------- report


def recovered(records: Sequence[Record], strategy: str, column: str) -> Interval:
    """The share of full unrolling's gain over the untrained K, over seeds."""
    untrained = {r["seed"]: r[column] for r in records if r.get("baseline") == "untrained"}
    learned = {(r["strategy"], r["seed"]): r[column] for r in records if r["kind"] == "learned"}
    losses = ([learned[name, seed] for seed in untrained] for name in (strategy, "full"))
    return mean_interval(recovered_share(list(untrained.values()), *losses))


def report(config: Config, records: Sequence[Record]) -> str:
    """The share of full unrolling's gain that each variant recovers at equal epochs."""
    learned = group((r for r in records if r["kind"] == "learned"), "strategy")
    last = [r for r in records if r.get("epoch") == config.learning.epochs]
    seconds = group(last, "strategy")
    rows = [
        {
            "strategy": name,
            "rate": learned[name][0]["rate"],
            "at_L": mean_interval([r["held_out_at_L"] for r in learned[name]]),
            "converged": mean_interval([r["held_out_converged"] for r in learned[name]]),
            "share": recovered(records, name, "held_out_converged"),
            "seconds": mean_interval([r["seconds"] for r in seconds[name]]),
        }
        for name in config.strategies
    ]
    headings = {
        "strategy": "strategy",
        "rate": "rate",
        "at_L": "held-out loss at L",
        "converged": "converged",
        "share": "recovered share of the gain",
        "seconds": "seconds",
    }
    return markdown_table(rows, headings) + "\n"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("backprop_steps", Config, cells, report)
