"""Whether the error bound holds, and how loose it is, on random problems.

Every draw is a problem of its own (K, weights, data, number of iterations, step ratio; one K in ten
with a repeated row, one with a nearly repeated one) with a few samples. Its hypergradient and the
bound are held against `Exact`, and for smooth F and G against a dense solve in NumPy as well. Draws
of one kind are one vmapped call. The number of iterations is not compiled in: all but the last few
are run ahead, and a strategy that unrolls sees the last few alone.

    python experiments/error_bound.py [--quick] [--out results/error_bound]

It goes on from the kinds of draws that it finds in the folder, if they have the same settings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

import hypergrad as hg
from hypergrad._foundation.records import environment, markdown_table
from hypergrad.bilevel.error_bound import ReturnedPair, StrongConvexity, bound_error
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, main


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Random problems, float64."""

    draws: int = 10_000
    """At least so many; every kind gets the same number."""
    samples: int = 3
    shapes: tuple[tuple[int, int], ...] = ((6, 9), (8, 8), (12, 8))
    """(m, n); which one depends on F and G."""
    iterations: tuple[int, int] = (5, 2000)
    every: int = 1
    """Of the kinds of draws, take one in so many."""
    seed: int = 0

    def quick(self) -> Config:
        """Ten draws of every twelfth kind."""
        return dataclasses.replace(self, draws=10 * len(kinds()[::12]), every=12)


_LAST = 5  # iterations that the strategy takes itself
_EXACT = hg.Exact()
_ROUNDING = 1e-13  # a relative error below it is one of the yardstick, too

FUNCTIONS_F = {
    "L1": lambda p: hg.L1(p.weights),
    "Huber": lambda p: hg.Huber(p.weights, p.smoothing),
    "Quadratic": lambda p: hg.Quadratic(p.weights),
    "ElasticNet": lambda p: hg.ElasticNet(p.weights, p.smoothing),
}
FUNCTIONS_G = {
    "Quadratic": lambda p: hg.Quadratic(p.ridge),
    "BoxQuadratic": lambda p: hg.BoxQuadratic(p.radius, p.ridge),
    "Box": lambda p: hg.Box(p.radius),
}
STRATEGIES: tuple[hg.AbstractStrategy, ...] = (
    hg.Truncation(1),
    hg.LimitFormula(hg.Steps(20)),
    hg.LimitFormula(hg.Tolerance(1e-6)),
    hg.LimitFormula(),
    hg.FullUnrolling(),
    hg.ErgodicUnrolling(),
)
SMOOTH = ("Huber", "Quadratic"), ("Quadratic",)

COLUMNS = {
    "group": "draws of",
    "draws": "draws",
    "active_set": "samples certified by the active set",
    "strong_convexity": "by strong convexity",
    "neither": "by neither",
    "bounds": "draws with a bound",
    "compared": "of which compared",
    "violations": "violations",
    "median": "looseness, median",
    "tenth": "looseness, 90 %",
    "largest": "looseness, largest",
}


class Kind(NamedTuple):
    """Draws that are one program: F, G, a strategy, and whether strong convexity is alone."""

    F: str
    G: str
    strategy: hg.AbstractStrategy
    alone: bool

    @property
    def is_smooth(self) -> bool:
        return self.F in SMOOTH[0] and self.G in SMOOTH[1]

    @property
    def regimes(self) -> str:
        return "strong convexity alone" if self.alone else "all"

    @property
    def key(self) -> dict[str, Any]:
        names = {"F": self.F, "G": self.G, "strategy": self.strategy.label}
        return {**names, "regimes": self.regimes}


class Parameters(NamedTuple):
    """The numbers of the draws, one row each."""

    K: Any
    weights: Any
    smoothing: Any
    ridge: Any
    radius: Any
    step_ratio: Any
    before: Any
    x_tilde: Any
    x_true: Any


def kinds() -> list[Kind]:
    """All of them; where the primal problem is smooth, with the second regime alone as well."""
    every = itertools.product(FUNCTIONS_F, FUNCTIONS_G, STRATEGIES, (False, True))
    return [kind for kind in itertools.starmap(Kind, every) if kind.is_smooth or not kind.alone]


def shape_of(kind: Kind, config: Config) -> tuple[int, int]:
    """One shape for each F and G, so that `Exact` is compiled once for them."""
    index = list(FUNCTIONS_F).index(kind.F) + list(FUNCTIONS_G).index(kind.G)
    return config.shapes[index % len(config.shapes)]


def draw(count: int, shape: tuple[int, int], config: Config, number: int) -> Parameters:
    """Random problems, by NumPy: the same for any version of JAX."""
    rng, (m, n) = np.random.default_rng([config.seed, number]), shape

    def log_uniform(low: float, high: float, *sizes: int) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), sizes))

    K = rng.standard_normal((count, m, n)) / (np.sqrt(m) + np.sqrt(n))
    K = K * log_uniform(0.3, 3, count, 1, 1)
    kind_of_row = rng.uniform(size=count)
    repeated, nearly = kind_of_row < 0.1, kind_of_row > 0.9
    K[repeated, -1] = K[repeated, 0]
    K[nearly, -1] = K[nearly, 0] + 1e-7 * K[nearly, -1]
    x_true = rng.standard_normal((count, config.samples, n))
    noise = log_uniform(0.03, 1, count, 1, 1) * rng.standard_normal(x_true.shape)
    low, high = config.iterations
    return Parameters(
        K=K,
        weights=log_uniform(0.03, 1, count, 1) * rng.uniform(0.5, 1.5, (count, m)),
        smoothing=log_uniform(0.03, 0.5, count),
        ridge=log_uniform(0.3, 3, count),
        radius=log_uniform(0.1, 1, count),
        step_ratio=log_uniform(0.1, 10, count),
        before=np.round(log_uniform(low, high, count)).astype(np.int32) - _LAST,
        x_tilde=x_true + noise,
        x_true=x_true,
    )


def problem_of(kind: Kind, p: Parameters) -> hg.LowerLevel:
    return hg.LowerLevel(K=p.K, F=FUNCTIONS_F[kind.F](p), G=FUNCTIONS_G[kind.G](p))


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, eqx.if_array(0)))
def exact(kind: Kind, p: Parameters) -> tuple[hg.LowerLevel, Any]:
    """The yardstick and its statuses."""
    problem = problem_of(kind, p)
    h = hg.hypergradient(problem, p.x_tilde, p.x_true, strategy=_EXACT)
    return h.grad, h.solution.stats.status


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, eqx.if_array(0)))
def bounded(kind: Kind, p: Parameters) -> tuple[hg.LowerLevel, hg.ErrorBound]:
    """The hypergradient after `before` and a few more iterations, and its bound."""
    problem = problem_of(kind, p)
    solver = hg.ChambollePock(_LAST, step_ratio=p.step_ratio)
    forward = solver.on(problem, p.x_tilde)
    iteration = forward.iteration
    state = jax.lax.fori_loop(
        0, p.before, lambda _, state: iteration.step(state)[0], forward.start()
    )
    h = hg.hypergradient(
        problem, p.x_tilde, p.x_true,
        solver=solver, strategy=kind.strategy, init=state, error_bound=not kind.alone,
    )  # fmt: skip
    if h.error_bound is not None:
        return h.grad, h.error_bound
    pair = ReturnedPair(*iteration, h.solution.x, h.solution.y)
    batch = len(p.x_tilde)
    bound = bound_error(
        pair, h.grad, lambda _: h.grad, lambda x: (x - p.x_true) / batch,
        smoothness=1 / batch, regimes=(StrongConvexity(),),
    )  # fmt: skip
    return h.grad, bound


# ------------------------------------------------------------------------ the dense solve in NumPy


def dense_gradient(kind: Kind, p: Parameters) -> np.ndarray:
    """The gradient of one draw with smooth F and quadratic G, leaf after leaf as one vector."""
    K, w, s, mu = p.K, p.weights, p.smoothing, float(p.ridge)
    in_K, in_w, in_s, in_mu, in_center = np.zeros_like(K), np.zeros_like(w), 0.0, 0.0, 0.0
    for x_tilde, x_true in zip(p.x_tilde, p.x_true, strict=True):
        x = _minimise(kind, K, w, s, mu, x_tilde)
        g = (x - x_true) / len(p.x_tilde)
        y, S = _slope_and_curvature(kind, K @ x, w, s)
        v = np.linalg.solve(K.T @ (S[:, None] * K) + mu * np.eye(len(x)), g)
        in_K -= np.outer(y, v) + np.outer(S * (K @ v), x)
        in_w -= (K @ v) * y / w
        if kind.F == "Huber":
            in_s += np.sum((K @ v) * S * (K @ x) / s)  # S = w / s where it is not 0
        else:  # here the second parameter is the centre of the Quadratic
            in_s += np.sum((K @ v) * w)
        in_mu -= v @ (x - x_tilde)
        in_center += mu * np.sum(v)
    return np.concatenate([in_K.ravel(), in_w, [in_s, in_mu, in_center]])


def _slope_and_curvature(kind: Kind, v: Any, w: Any, s: Any) -> tuple[np.ndarray, np.ndarray]:
    if kind.F == "Quadratic":
        return w * v, w
    near = np.abs(v) <= s
    return w * np.where(near, v / s, np.sign(v)), np.where(near, w / s, 0.0)


def _minimise(kind: Kind, K: Any, w: Any, s: Any, mu: Any, x_tilde: Any) -> np.ndarray:
    """Newton steps, halved until the gradient's square in the metric of the Hessian falls."""

    def objective(x: np.ndarray) -> Any:
        v = np.abs(K @ x)
        near = kind.F == "Quadratic" or v <= s
        f = v**2 / 2 if kind.F == "Quadratic" else np.where(near, v**2 / (2 * s), v - s / 2)
        return np.sum(w * f) + mu / 2 * np.sum((x - x_tilde) ** 2)

    x = x_tilde
    for _ in range(200):
        y, S = _slope_and_curvature(kind, K @ x, w, s)
        gradient = K.T @ y + mu * (x - x_tilde)
        step = -np.linalg.solve(K.T @ (S[:, None] * K) + mu * np.eye(len(x)), gradient)
        if np.linalg.norm(step) <= 1e-14 * (1 + np.linalg.norm(x)):
            return x + step
        length = 1.0
        while length > 1e-3 and objective(x + length * step) > objective(x) + 0.1 * length * (
            gradient @ step
        ) + 1e-14 * abs(objective(x)):
            length /= 2
        x = x + length * step
    return x


# ------------------------------------------------------------------------------------ the draws


def _rows(tree: Any) -> np.ndarray:
    """Every draw as one vector, leaf after leaf."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def measure(kind: Kind, number: int, count: int, config: Config) -> Result:
    """Measure all draws of one kind."""
    if kind.strategy == STRATEGIES[0] and not kind.alone:
        jax.clear_caches()  # other F or G; all programs together exceed the system's mappings
    p = draw(count, shape_of(kind, config), config, number)
    truth, status = exact(kind._replace(strategy=_EXACT, alone=False), p)
    grad, bound = bounded(kind, p)
    truth, grad = _rows(truth), _rows(grad)
    records = []
    for i in range(count):
        codes = np.asarray(bound.certified[i])
        row = {
            "m": p.K.shape[1],
            "n": p.K.shape[2],
            "iterations": int(p.before[i]) + _LAST,
            "samples": len(codes),
            "active_set": int(np.sum(codes == hg.Regime.ACTIVE_SET)),
            "strong_convexity": int(np.sum(codes == hg.Regime.STRONG_CONVEXITY)),
            "bound": float(bound.total[i]),
            "norm": float(np.linalg.norm(truth[i])),
            "yardstick_converged": bool(np.all(np.asarray(status[i]) == hg.Status.CONVERGED)),
            "error": float(np.linalg.norm(grad[i] - truth[i])),
            "error_to_dense": None,
        }
        if kind.is_smooth:
            mine = dense_gradient(kind, Parameters(*(a[i] for a in p)))
            row["error_to_dense"] = float(np.linalg.norm(grad[i] - mine))
        records.append(row)
    return Result(records)


# ------------------------------------------------------------------------------------- the table


def summarise(group: str, records: Sequence[Record]) -> dict[str, Any]:
    """One line of the table. A violation of either yardstick is one."""
    samples = sum(r["samples"] for r in records)
    share = {
        name: sum(r[name] for r in records) / samples for name in ("active_set", "strong_convexity")
    }
    held = [r for r in records if r["bound"] is not None and np.isfinite(r["bound"])]
    compared = [r for r in held if r["yardstick_converged"]]
    violations = sum(
        r["error"] > r["bound"]
        or (r["error_to_dense"] is not None and r["error_to_dense"] > r["bound"])
        for r in compared
    )
    looseness = [
        r["bound"] / r["error"] for r in compared if r["error"] > _ROUNDING * r["norm"]
    ] or [np.nan]

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    return {
        "group": group,
        "draws": len(records),
        "active_set": percent(share["active_set"]),
        "strong_convexity": percent(share["strong_convexity"]),
        "neither": percent(1 - sum(share.values())),
        "bounds": len(held),
        "compared": len(compared),
        "violations": violations,
        "median": f"{np.median(looseness):.3g}",
        "tenth": f"{np.quantile(looseness, 0.9):.3g}",
        "largest": f"{np.max(looseness):.3g}",
    }


def table(records: Sequence[Record]) -> str:
    """All draws; then by F, G, strategy and regimes."""
    lines = [summarise("all", records)]
    for key in ("F", "G", "strategy", "regimes"):
        for value in dict.fromkeys(r[key] for r in records):
            chosen = [r for r in records if r[key] == value]
            lines.append(summarise(f"{key} = {value}", chosen))
    return markdown_table(lines, COLUMNS)


def report(config: Config, records: Sequence[Record]) -> str:
    """The table with what it was made from."""
    about, settings = environment(), dataclasses.asdict(config)
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        "# The error bound on random problems\n\n"
        "Made by `python experiments/error_bound.py`. Looseness is the bound over the true error, "
        f"of the draws whose relative error is above {_ROUNDING:g}. Compared are the draws on "
        "whose samples the yardstick converged.\n\n"
        f"{table(records)}\n\n"
        f"Config: {', '.join(f'{name}={value}' for name, value in settings.items())}.\n\n"
        f"Environment: Python {about['python']}, {about['platform']}, {about['processor']}, "
        f"{about['cores']} cores; {packages}.\n"
    )


def cells(config: Config) -> list[Cell]:
    """One for each kind of draws."""
    chosen = list(enumerate(kinds()))[:: config.every]
    count = -(-config.draws // len(chosen))
    return [
        Cell(kind.key, lambda _, kind=kind, number=number: measure(kind, number, count, config))
        for number, kind in chosen
    ]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("error_bound", Config, cells, report)
