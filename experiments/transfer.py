"""What was learned for one number of iterations, used at another; and learned step sizes.

    python experiments/transfer.py [--quick] [--out results/transfer]

K is learned at one L (full unrolling; one step) and tested at others and converged: a matrix of
held-out losses over seeds. Then tau, sigma and theta are what is learned, K staying what it is, so
that L iterations come near the truth, or near the solution; tested at other L, too, beside the
default steps.

Budget: 10 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _images import PIECE, SHAPE, Images, Learning, solve_converged, solver, tune
from jaxtyping import Array, Float
from learning_rates import stored_rate

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group, mean_interval
from hypergrad.chambolle_pock import StepSizes
from hypergrad.learning import solve_in_pieces
from hypergrad.problem import operators
from hypergrad.workbench import baselines
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

# What K is learned by.
STRATEGIES = ("full", "truncation:k=1")
# Tried for the operators whose step sizes are learned.
WEIGHTS = (0.02, 0.035, 0.05, 0.08, 0.12, 0.17)
GOALS = ("truth", "solution")


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """L of learning, L of testing, and how step sizes are learned."""

    learned_at: tuple[int, ...] = (10, 20, 50, 100)
    tested_at: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    seeds: int = 5
    learning: Learning = Learning()
    steps_learned_at: tuple[int, ...] = (10, 20)
    step_size_updates: int = 200
    step_size_rate: float = 0.05
    """Of Adam, for log tau, log sigma and theta."""
    step_size_samples: int = 512

    def quick(self) -> Config:
        """Two L, two seeds."""
        return dataclasses.replace(
            self,
            learned_at=(10, 20),
            tested_at=(10, 50),
            seeds=2,
            learning=self.learning.quick(),
            steps_learned_at=(10,),
            step_size_updates=20,
            step_size_samples=128,
        )


def fixed_operators() -> dict[str, np.ndarray]:
    """Those whose step sizes are learned."""
    dct = np.asarray(operators.dct2(SHAPE, constant=False))
    differences = np.asarray(operators.differences2(SHAPE))
    return {"differences": differences, "DCT and differences": np.concatenate([dct, differences])}


def cells(config: Config) -> list[Cell]:
    """K by strategy, L and seed; step sizes by operator, goal, L and seed."""
    made = []
    for seed in range(config.seeds):
        for strategy in STRATEGIES:
            for L in config.learned_at:
                key: dict[str, Any] = {"learned": "K", "strategy": strategy, "L": L, "seed": seed}
                compute = functools.partial(transfer_K, config, strategy, L, seed)
                made.append(Cell(key, compute, cost=20 + (L if strategy == "full" else L / 3)))
        for operator in fixed_operators():
            for L in config.steps_learned_at:
                key = {"learned": "steps", "operator": operator, "L": L, "seed": seed}
                compute = functools.partial(transfer_steps, config, operator, L, seed)
                made.append(Cell(key, compute, cost=30.0))
    return made


# ---------------------------------------------------------------------------------------- K


def transfer_K(config: Config, strategy: str, L: int, seed: int, workspace: Workspace) -> Result:
    """K learned at L; held-out losses at every L of testing, and converged."""
    images = config.learning.draw(seed)
    history = config.learning.learn(
        images,
        L=L,
        strategy=hg.parse_strategy(strategy),
        rate=stored_rate(strategy, L),
        seed=seed,
        workspace=workspace,
    )
    x_tilde, x_true = images.held_out_pair
    records = []
    for tested in config.tested_at:
        x = _solve(history.problem, x_tilde, solver(tested, images))
        records.append({"tested": tested, "loss": baselines.mean_loss(x, x_true)})
    converged, share = solve_converged(history.problem, images, x_tilde)
    loss = baselines.mean_loss(converged, x_true)
    return Result([*records, {"tested": None, "loss": loss, "share_converged": share}])


def _solve(problem: hg.LowerLevel, x_tilde: np.ndarray, with_: hg.ChambollePock) -> np.ndarray:
    return solve_in_pieces(problem, x_tilde, solver=with_, strategy=hg.Truncation(1), piece=PIECE)[
        0
    ]


# ------------------------------------------------------------------------------- step sizes


class Free(NamedTuple):
    """What is learned of a solver."""

    log_tau: Float[Array, ""]
    log_sigma: Float[Array, ""]
    theta: Float[Array, ""]

    @staticmethod
    def of(given: hg.ChambollePock) -> Free:
        tau, sigma, theta = _numbers(given)
        return Free(jnp.log(tau), jnp.log(sigma), theta)

    def solver(self, L: int) -> hg.ChambollePock:
        return hg.ChambollePock(L, jnp.exp(self.log_tau), jnp.exp(self.log_sigma), self.theta)


def _numbers(given: hg.ChambollePock) -> StepSizes:
    """tau, sigma and theta (or the derivatives in them) that are written out in a solver."""
    assert given.tau is not None
    assert given.sigma is not None
    return StepSizes(given.tau, given.sigma, given.theta)


def learn_steps(
    config: Config, problem: hg.LowerLevel, images: Images, goal: np.ndarray, L: int
) -> Free:
    """Adam on log tau, log sigma and theta, from the default steps; `goal` is what x is to be."""
    rate = optax.cosine_decay_schedule(config.step_size_rate, config.step_size_updates)
    optimizer = optax.adam(rate)
    free = Free.of(solver(L, images).with_step_sizes(problem))
    x_tilde = jnp.asarray(images.train.x_tilde[: len(goal)])

    @eqx.filter_jit
    def update(free: Free, state: Any):
        h = hg.hypergradient(
            problem, x_tilde, goal, solver=free.solver(L), strategy=hg.FullUnrolling()
        )
        assert h.grad_solver is not None  # all parameters are asked for
        tau, sigma, theta = _numbers(h.grad_solver)
        # Positive numbers in the log: d / d log tau = tau d / d tau.
        gradient = Free(tau * jnp.exp(free.log_tau), sigma * jnp.exp(free.log_sigma), theta)
        updates, state = optimizer.update(gradient, state, free)
        free = optax.apply_updates(free, updates)  # pyright: ignore[reportAssignmentType]
        return free._replace(theta=jnp.clip(free.theta, 0.0, 1.0)), state

    state = optimizer.init(free)
    for _ in range(config.step_size_updates):
        free, state = update(free, state)
    return free


def transfer_steps(
    config: Config, operator: str, L: int, seed: int, workspace: Workspace
) -> Result:
    """Default and learned steps at every L of testing: held-out loss and distance to the limit."""
    del workspace
    images = config.learning.draw(seed)
    problem = tune(fixed_operators()[operator], images, WEIGHTS)
    part = images.train.take(slice(0, config.step_size_samples))
    goals = {
        "truth": part.x_true,
        "solution": solve_converged(problem, images, part.x_tilde).x,
    }
    steps = {"default": Free.of(solver(L, images).with_step_sizes(problem))}
    steps |= {goal: learn_steps(config, problem, images, goals[goal], L) for goal in GOALS}
    x_tilde, x_true = images.held_out_pair
    limit, share = solve_converged(problem, images, x_tilde)
    norm = float(operators.operator_norm(problem.K))
    records = []
    for goal, free in steps.items():
        about = {
            "goal": goal,
            "tau_sigma_norm2": float(jnp.exp(free.log_tau + free.log_sigma)) * norm**2,
            "sigma_over_tau": float(jnp.exp(free.log_sigma - free.log_tau)),
            "theta": float(free.theta),
        }
        for tested in config.tested_at:
            # Steps longer than the theory allows are no error here: it shows what they do.
            x = _iterate(problem, x_tilde, free, tested)
            distance = np.linalg.norm(x - limit) / np.linalg.norm(limit - x_tilde)
            loss = baselines.mean_loss(x, x_true)
            records.append(about | {"tested": tested, "loss": loss, "distance": float(distance)})
    converged = {"tested": None, "loss": baselines.mean_loss(limit, x_true), "goal": "default"}
    return Result([*records, converged | {"distance": 0.0, "share_converged": share}])


@eqx.filter_jit
def _iterate(problem: hg.LowerLevel, x_tilde: Any, free: Free, L: int) -> Any:
    # Inside a jitted function the steps are traced, and their length is not refused.
    return hg.solve(problem, x_tilde, solver=free.solver(L), strategy=hg.Truncation(1)).x


# ----------------------------------------------------------------------------------- report


def report(config: Config, records: Sequence[Record]) -> str:
    """Held-out losses by L of learning and of testing; step sizes."""
    tested = [*config.tested_at, None]
    names = {L: "converged" if L is None else f"L = {L}" for L in tested}
    parts = []
    for strategy in STRATEGIES:
        rows = []
        for L in config.learned_at:
            mine = [r for r in records if (r.get("strategy"), r["L"]) == (strategy, L)]
            rows.append({"L": L} | _by_tested(mine, names, "loss"))
        table = markdown_table(rows, {"L": "learned at"} | {n: n for n in names.values()})
        parts.append(f"# K by {strategy}: held-out loss at the L it is tested at\n\n{table}\n")
    for column, title in (("loss", "held-out loss"), ("distance", "distance to the limit")):
        mine = [r for r in records if r["learned"] == "steps"]
        rows = []
        for key, same in group(mine, lambda r: (r["operator"], r["L"], r["goal"])).items():
            row: dict[str, Any] = {"operator": key[0], "L": key[1], "goal": key[2]}
            for number in ("tau_sigma_norm2", "sigma_over_tau", "theta"):
                row[number] = mean_interval([r[number] for r in same if number in r])
            rows.append(row | _by_tested(same, names, column))
        headings = {
            "operator": "operator",
            "L": "learned at",
            "goal": "steps",
            "tau_sigma_norm2": "tau sigma norm²",
            "sigma_over_tau": "sigma / tau",
            "theta": "theta",
        }
        table = markdown_table(rows, headings | {n: n for n in names.values()})
        parts.append(f"# Step sizes: {title}\n\n{table}\n")
    return "\n".join(parts)


def _by_tested(records: Sequence[Record], names: dict[Any, str], column: str) -> dict[str, Any]:
    found = group(records, "tested")
    return {
        name: mean_interval([r[column] for r in found[L]])
        for L, name in names.items()
        if L in found
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("transfer", Config, cells, report)
