"""First poster: do the gradients of unrolled iterations vanish, and do averages help?

    python experiments/vanishing.py [--quick] [--out results/vanishing]

The poster's statement is that there is a layer l0 with lim delta_P[l0] in ker(K) and
lim delta_D[l0] in ker(K^T) as L grows. Four lower levels, over seeds: one where no coordinate ever
saturates, which is what the statement needs; a smooth one; denoising; a linear programme. Where
coordinates saturate only the reduced statement can hold: on the free primal coordinates I and the
unsaturated dual ones J, delta_P,I goes to P_ker(K_JI) g_I. Measured are the adjoint variables over
the layer, their distances to both kernels as L grows, what each layer contributes to the gradient
in K, and the norm of that gradient, for the last iterate and for three averages. The gradient that
the recursion gives is compared with JAX's differentiation of the loop.

Budget: 10 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _gradients import Task, noisy_patches, quantiles, random_denoising, rounded

import hypergrad as hg
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import mean_interval
from hypergrad.chambolle_pock import ProxArguments, State, StepSizes, step
from hypergrad.problem import operators
from hypergrad.workbench import data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

STRATEGIES = ("full", "ergodic:uniform", "ergodic:tail=0.5", "ergodic:linear")


# ------------------------------------------------------------------------------------- problems


def nothing_saturates(seed: int, samples: int) -> Task:
    """F quadratic and G = 0: no prox ever clips. K has a kernel of dimension 32."""
    patches = noisy_patches(seed, samples)
    K = operators.random(32, 64, key=jax.random.key(seed)).astype(jnp.float64)
    problem = hg.LowerLevel(K, hg.Quadratic(1.0), hg.Zero())
    return Task(problem, patches.x_tilde, patches.x_true, 1.0)


def smooth(seed: int, samples: int) -> Task:
    """Huber + Quadratic on noisy patches: differentiable, but the dual variable is bounded."""
    task = random_denoising(seed, samples)
    problem = hg.LowerLevel(task.problem.K, hg.Huber(0.03, smoothing=0.03), hg.Quadratic(1.0))
    return dataclasses.replace(task, problem=problem)


def linear_programme(seed: int, samples: int, bits: int = 4) -> Task:
    """Total variation in the cells of a quantiser, on rows of a measured disparity map."""
    rows = data.disparity_rows("train", length=64, seed=seed)
    chosen = np.random.default_rng(seed).choice(len(rows), samples, replace=False)
    x_true, radius = rows.x_true[chosen], 2.0**-bits
    K = operators.differences(64).astype(jnp.float64)
    problem = hg.LowerLevel(K, hg.L1(1.0), hg.Box(radius))
    return Task(problem, data.quantise(x_true, bits), x_true, radius)


PROBLEMS: dict[str, Callable[[int, int], Task]] = {
    "nothing saturates": nothing_saturates,
    "smooth": smooth,
    "denoising": random_denoising,
    "linear programme": linear_programme,
}


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Adjoint variables over the layer and over L, float64."""

    depths: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    shown: int = 1000
    """The L whose layers are recorded one by one, one of `depths`."""
    lags: int = 24
    """How many of its layers, evenly spaced in the logarithm of L - l + 1."""
    seeds: int = 5
    samples: int = 16

    def quick(self) -> Config:
        """Two seeds, two depths."""
        return dataclasses.replace(self, depths=(10, 100), shown=100, lags=8, seeds=2, samples=4)


def cells(config: Config) -> list[Cell]:
    """One for each problem and seed."""
    if config.shown not in config.depths:
        raise HypergradError(f"shown must be one of {config.depths}; got {config.shown}")
    return [
        Cell(
            {"problem": problem, "seed": seed},
            functools.partial(look_at_layers, config, problem, seed),
        )
        for problem in PROBLEMS
        for seed in range(config.seeds)
    ]


# --------------------------------------------------------------------------------------- layers


@eqx.filter_jit
def _iterates(
    problem: hg.LowerLevel, x_tilde: jax.Array, sizes: StepSizes, start: State, L: int
) -> tuple[jax.Array, jax.Array, jax.Array, ProxArguments]:
    """`x_tilde + r_bar[l-1]`, `y[l]` and `r[l]` of all l, and the last prox arguments."""

    def body(state: State, _):
        new, z = step(problem, x_tilde, sizes, state)
        return new, (x_tilde + state.r_bar, new.y, new.r, z)

    x_bar, y, r, z = jax.lax.scan(body, start, None, length=L)[1]
    return x_bar, y, r, jax.tree.map(lambda history: history[-1], z)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Everything over the layers of one strategy at one L; norms relative to that of g.

    `primal`, `dual`: `||delta_P||`, `||delta_D||` (the latter times `sqrt(sigma / tau)`, which
    gives both one unit); `to_kernel`, `to_dual_kernel`, their distances from ker K and ker K^T;
    `to_reduced`, that of `delta_P,I` from its limit in the reduced statement; all `(L, samples)`.
    `pairs` are the factors of what a layer adds to the gradient in K.
    """

    primal: np.ndarray
    dual: np.ndarray
    to_kernel: np.ndarray
    to_dual_kernel: np.ndarray
    to_reduced: np.ndarray
    limit: np.ndarray
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]

    def gradient(self, layers: slice | int) -> np.ndarray:
        """What these layers add to the gradient of the batch in K."""

        def rows(side: np.ndarray) -> np.ndarray:
            return side[layers].reshape(-1, side.shape[-1])

        return np.sum([rows(left).T @ rows(right) for left, right in self.pairs], axis=0)

    @property
    def whole(self) -> np.ndarray:
        """Return the sum over all layers: the gradient of the batch in K."""
        return self.gradient(slice(None))


def layers_of(task: Task, label: str, L: int) -> tuple[Layers, Record]:
    """The layers of a strategy, and how the forward solve ended."""
    strategy, solver = hg.parse_strategy(label), task.solver(L)
    sizes, x_tilde = solver.step_sizes(task.problem), jnp.asarray(task.x_tilde)
    start = solver.start(task.problem, x_tilde)
    x_bar, y, r, z = _iterates(task.problem, x_tilde, sizes, start, L)
    averaged = isinstance(strategy, hg.ErgodicUnrolling)
    alpha = np.asarray(strategy.weights(L)) if averaged else np.eye(L)[-1]
    x = task.x_tilde + np.tensordot(alpha, np.asarray(r), 1)
    size = np.linalg.norm(x - task.x_true, axis=1) / len(x)
    trajectory = hg.adjoint_trajectory(
        task.problem, task.x_tilde, task.x_true, solver=solver, strategy=strategy
    )
    delta_P, delta_D = np.asarray(trajectory.delta_P), np.asarray(trajectory.delta_D)
    tau, sigma = float(sizes.tau), float(sizes.sigma)
    unit = np.sqrt(sigma / tau) / size
    left, values, right = np.linalg.svd(np.asarray(task.problem.K), full_matrices=False)
    seen = values > 1e-10 * values[0]
    layers = Layers(
        primal=np.linalg.norm(delta_P, axis=-1) / size,
        dual=np.linalg.norm(delta_D, axis=-1) * unit,
        to_kernel=np.linalg.norm(delta_P @ right[seen].T, axis=-1) / size,
        to_dual_kernel=np.linalg.norm(delta_D @ left[:, seen], axis=-1) * unit,
        to_reduced=np.asarray(trajectory.distance) / size,
        limit=np.linalg.norm(np.asarray(trajectory.limit_P), axis=-1) / size,
        pairs=(
            (sigma * delta_D, np.asarray(x_bar)),
            (-tau * np.asarray(y), delta_P),
        ),
    )
    free_P, free_D = _prox_derivatives(task.problem, sizes, z)
    data_of = x_tilde, jnp.asarray(task.x_true)
    plain = np.asarray(
        _by_differentiation(task.problem, *data_of, sizes, start, jnp.asarray(alpha))
    )
    return layers, {
        "formula_error": rounded(
            float(np.linalg.norm(layers.whole - plain) / np.linalg.norm(plain))
        ),
        "saturated_primal": rounded(float(np.mean(free_P == 0))),
        "saturated_dual": rounded(float(np.mean(free_D == 0))),
        "residual": quantiles(np.asarray(trajectory.stats.residual), [0.5])[0],
    }


@eqx.filter_jit
def _by_differentiation(
    given: hg.LowerLevel,
    x_tilde: jax.Array,
    x_true: jax.Array,
    sizes: StepSizes,
    start: State,
    alpha: jax.Array,
) -> jax.Array:
    """The gradient in K by JAX's own differentiation of the loop: no recursion of the poster's."""

    def loss(K: jax.Array) -> jax.Array:
        problem = dataclasses.replace(given, K=K)
        r = _iterates(problem, x_tilde, sizes, start, len(alpha))[2]
        return hg.half_mean_squared_error(x_tilde + jnp.tensordot(alpha, r, 1), x_true)

    return jax.grad(loss)(jnp.asarray(given.K))


def _prox_derivatives(
    problem: hg.LowerLevel, sizes: StepSizes, z: ProxArguments
) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals of both prox derivatives (all functions here are separable)."""

    def diagonal(prox: Callable[[Any], Any], at: jax.Array) -> np.ndarray:
        _, pull = jax.vjp(prox, at)
        return np.asarray(pull(jnp.ones_like(at))[0])

    return (
        diagonal(lambda v: problem.G.prox(v, sizes.tau), z.z_P),
        diagonal(lambda v: problem.F.prox_conjugate(v, sizes.sigma), z.z_D),
    )


def look_at_layers(config: Config, name: str, seed: int, workspace: Workspace) -> Result:
    """Every strategy at every L; the layers of one L one by one."""
    del workspace
    task, records = PROBLEMS[name](seed, config.samples), []
    for label in STRATEGIES:
        for L in config.depths:
            layers, end = layers_of(task, label, L)
            at = {"strategy": label, "L": L}
            records.append({"kind": "depth", **at, **_over_depth(layers, L), **end})
            if config.shown == L:
                records.append({"kind": "layers", **at, **_over_layers(config, layers, L)})
    return Result(records)


COLUMNS = ("primal", "dual", "to_kernel", "to_dual_kernel", "to_reduced")


def _over_depth(layers: Layers, L: int) -> dict[str, Any]:
    """In the first layer and in the middle one: medians over the samples; and the gradient."""
    middle = (L - 1) // 2
    found = {
        f"{column}_{place}": quantiles(getattr(layers, column)[layer], [0.5])[0]
        for column in COLUMNS
        for place, layer in (("first", 0), ("middle", middle))
    }
    worst = quantiles(layers.to_reduced[middle], [1.0])[0]
    whole = float(np.linalg.norm(layers.whole))
    # Along the whole gradient, so that early and late parts add up to 1.
    early = float(np.sum(layers.gradient(slice(0, L // 2)) * layers.whole)) / (whole**2 or np.nan)
    return found | {
        "to_reduced_worst": worst,
        "limit": quantiles(layers.limit, [0.5])[0],
        "gradient": rounded(whole),
        "early_share": rounded(early),
    }


def _over_layers(config: Config, layers: Layers, L: int) -> dict[str, Any]:
    """Medians over the samples of chosen layers, and their shares of the gradient."""
    lags = np.unique(np.round(np.geomspace(1, L, config.lags)).astype(int)) - 1
    whole = np.linalg.norm(layers.whole)
    columns = {
        column: [quantiles(getattr(layers, column)[L - 1 - lag], [0.5])[0] for lag in lags]
        for column in ("primal", "dual")
    }
    parts = (layers.gradient(int(L - 1 - lag)) for lag in lags)
    share = [rounded(float(np.linalg.norm(part) / whole)) for part in parts]
    return {"lag": lags.tolist(), **columns, "share": share}


# --------------------------------------------------------------------------------------- report


def report(config: Config, records: Sequence[Record]) -> str:
    """Where the statement holds, and the gradients, at the largest L."""
    last = config.depths[-1]

    def mean(column: str, **values: Any) -> str:
        found = [r for r in records if all(r[key] == value for key, value in values.items())]
        numbers = [r[column] for r in found if r[column] is not None]
        return str(mean_interval(numbers)) if numbers else "-"

    kernels = [
        {"problem": problem, "L": L}
        | {
            column: mean(column, kind="depth", problem=problem, strategy="full", L=L)
            for column in STATEMENT
        }
        for problem in PROBLEMS
        for L in config.depths
    ]
    gradients = [
        {"problem": problem, "strategy": strategy}
        | {
            str(L): mean("gradient", kind="depth", problem=problem, strategy=strategy, L=L)
            for L in config.depths
        }
        | {"early": mean("early_share", kind="depth", problem=problem, strategy=strategy, L=last)}
        for problem in PROBLEMS
        for strategy in STRATEGIES
    ]
    first = markdown_table(kernels, {"problem": "problem", "L": "L", **STATEMENT})
    headings = {"problem": "problem", "strategy": "strategy"}
    headings |= {str(L): f"norm of the gradient, L = {L}" for L in config.depths}
    second = markdown_table(gradients, headings | {"early": f"of the first half, L = {last}"})
    return f"{first}\n\n{second}\n"


STATEMENT = {
    "saturated_primal": "saturated primal",
    "saturated_dual": "saturated dual",
    "residual": "residual",
    "primal_middle": "delta_P at L/2",
    "to_kernel_middle": "from ker K",
    "to_reduced_middle": "from its reduced limit",
    "limit": "reduced limit",
    "dual_middle": "delta_D at L/2",
    "to_dual_kernel_middle": "from ker K^T",
    "primal_first": "delta_P at 1",
    "to_kernel_first": "from ker K, at 1",
}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("vanishing", Config, cells, report)
