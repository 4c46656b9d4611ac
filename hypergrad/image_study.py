"""The main job: strategies side by side on patches of photographs, from data to pictures.

Stages, each a function below: data; the untrained operator and its baselines, tuned on training
data; all strategies on one batch; K learned with each; every operator evaluated at L and at a
converged lower level; records, tables and figures.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

from hypergrad import data, operators, plotting
from hypergrad._checks import check_count, check_number
from hypergrad.baselines import (
    Converged,
    best_of,
    best_shrinkage,
    mean_loss,
    shrink,
    solve_to_tolerance,
)
from hypergrad.bilevel import Loss, half_mean_squared_error
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.comparison import Comparison, compare
from hypergrad.functions import AbstractFunction
from hypergrad.lower_level import LowerLevel
from hypergrad.own_parts import parse_function, parse_loss, parse_operator
from hypergrad.progress import progress_bar
from hypergrad.records import (
    claim_folder,
    environment,
    format_cell,
    markdown_table,
    write_json,
    write_jsonl,
    write_text,
)
from hypergrad.saved_operator import SavedOperator
from hypergrad.strategies import AbstractStrategy, ErgodicUnrolling, Truncation, parse_strategy
from hypergrad.training import History, solve_in_pieces, train

__all__ = ["ImageStudy", "run_image_study"]

# From observed rows (count, n) to restored ones.
Restorer = Callable[[np.ndarray], np.ndarray]

# Weights tried for each operator, in units of the noise (or of the observed error of own data).
_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3)

# "Converged" is a residual, never a number of iterations; the share that arrives is in the table.
_CONVERGED_TOLERANCE = 1e-6

TABLE = {
    "operator": "operator",
    "train_at_L": "training loss at L",
    "held_out_at_L": "held-out loss at L",
    "train_converged": "training loss, converged",
    "held_out_converged": "held-out loss, converged",
    "psnr_at_L": "held-out PSNR at L (dB)",
    "psnr_converged": "held-out PSNR, converged (dB)",
    "share_converged": "share converged",
    "seconds": "training time (s)",
}


@dataclasses.dataclass(frozen=True)
class ImageStudy:
    """The settings of one run."""

    strategies: tuple[str, ...] = ("full", "truncation:k=1", "ergodic", "limit:steps=10")
    iterations: int = 100
    samples: int = 6144
    held_out_samples: int = 1024
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3
    noise: float = 0.1
    patch: int = 8
    photograph: str = "camera"
    stride: int = 4
    tuning_samples: int = 512
    converged_iterations: int = 1000
    repeats: int = 5
    seed: int = 0
    dtype: str = "float64"
    data: str | None = None
    frame: int = 160
    bits: int = 3
    rate: int = 8000
    K: str | None = None
    F: str = "L1"
    G: str = "Quadratic:weight=1.0"
    loss: str | None = None

    def __post_init__(self):
        for name in ("iterations", "batch_size", "patch", "stride", "repeats"):
            check_count(name, getattr(self, name))
        for name in ("frame", "bits", "rate"):
            check_count(name, getattr(self, name))
        for name in ("samples", "held_out_samples", "tuning_samples"):
            check_count(name, getattr(self, name))
        check_count("epochs", self.epochs, least=0)
        check_count("seed", self.seed, least=0)
        for name in ("learning_rate", "noise"):
            check_number(name, getattr(self, name))

    def quick(self) -> ImageStudy:
        """The same job in miniature: a smoke test, not a result."""
        return dataclasses.replace(
            self,
            samples=256,
            held_out_samples=128,
            epochs=2,
            batch_size=64,
            stride=8,
            tuning_samples=64,
            converged_iterations=300,
            repeats=2,
        )


@dataclasses.dataclass(frozen=True)
class _Data:
    train: data.Samples
    held_out: data.Samples

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train.shape

    @property
    def noise(self) -> float:
        """Root mean square of what was observed against the truth: the primal scale."""
        return float(np.sqrt(np.mean((self.train.x_tilde - self.train.x_true) ** 2)))


# ------------------------------------------------------------------------------------- stages


def run_image_study(
    config: ImageStudy, out: Path, console: Console, devices: Mesh | None = None
) -> None:
    """Run all stages, write everything under `out`; finished training is taken from there.

    `devices` are those that learn: see `train`. A quiet console shows no progress, either.
    """
    started = time.perf_counter()
    strategies = {s.label: s for s in map(parse_strategy, config.strategies)}
    solver = ChambollePock(config.iterations)
    for strategy in strategies.values():
        strategy.check(solver)

    console.print("[bold]1/5[/] data")
    samples = _load(config)
    claim_folder(out, dataclasses.asdict(config))
    write_json(out / "environment.json", environment())
    solver = ChambollePock(config.iterations, primal_scale=samples.noise)
    console.print(f"    {len(samples.train)} training, {len(samples.held_out)} held-out patches")

    console.print("[bold]2/5[/] baselines, tuned on training data")
    problems = _tuned_problems(config, samples)
    for name, problem in problems.items():
        console.print(f"    {name}: F = {_in_words(problem.F)}")

    console.print("[bold]3/5[/] hypergradients on one batch")
    comparison = _compare(config, samples, problems["untrained"], solver, strategies)
    comparison.save(out)
    console.print(_terminal_table(comparison))

    console.print("[bold]4/5[/] learning K")
    with progress_bar(disable=console.quiet) as bar:
        histories = _train_all(
            config, samples, problems["untrained"], solver, strategies, out, bar, devices
        )

    console.print("[bold]5/5[/] evaluation, tables and figures")
    rows = _evaluate_all(config, samples, problems, histories, solver, strategies)
    training = list(_training_records(histories))
    write_jsonl(out / "records.jsonl", [*training, *rows])
    learned = {label: history.problem for label, history in histories.items()}
    restorers = {"untrained": _restorer(config, problems["untrained"], solver, Truncation(1))}
    for label, problem in learned.items():
        restorers[label] = _restorer(config, problem, solver, strategies[label])
    write_text(out / "table.md", _report(config, samples, comparison, rows))
    drawn = {"untrained": problems["untrained"], **learned}
    _draw(config, samples, drawn, restorers, training, rows, out)
    if any(record.get("relative_error") for record in comparison.records):
        plotting.save_figure(comparison.plot(), out / "comparison")
    console.print(_learning_table(rows))
    console.print(f"written to {out} in {time.perf_counter() - started:.0f} s")


def _load(config: ImageStudy) -> _Data:
    if config.data is not None:
        own = data.load_own(
            config.data,
            noise=config.noise,
            size=config.patch,
            frame=config.frame,
            bits=config.bits,
            rate=config.rate,
            seed=config.seed,
            most={"train": config.samples, "test": config.held_out_samples},
        )
        rng = np.random.default_rng(config.seed)
        return _Data(
            _subset(own["train"], config.samples, rng),
            _subset(own["test"], config.held_out_samples, rng),
        )
    settings = {"size": config.patch, "noise": config.noise}
    # Two seeds from one, so that training and held-out noise are not the same draw.
    return _Data(
        data.noisy_patches(
            data.PHOTOGRAPHS_TRAIN, config.samples, seed=2 * config.seed, **settings
        ),
        data.noisy_patches(
            data.PHOTOGRAPHS_HELD_OUT, config.held_out_samples, seed=2 * config.seed + 1, **settings
        ),
    )


def _subset(samples: data.Samples, count: int, rng: np.random.Generator) -> data.Samples:
    if len(samples) <= count:
        return samples
    return samples.take(np.sort(rng.choice(len(samples), count, replace=False)))


def _analysis_operators(config: ImageStudy, shape: tuple[int, ...]) -> dict[str, Any]:
    """DCT without its constant row, differences, and the untrained operator: both, or one's own."""
    if len(shape) == 2:
        dct = operators.dct2((shape[0], shape[1]), constant=False)
        differences = operators.differences2((shape[0], shape[1]))
    else:
        dct = operators.dct(shape[0], constant=False)
        differences = operators.differences(shape[0])
    return {
        "DCT": dct,
        "differences": differences,
        "untrained": operators.stack([dct, differences])
        if config.K is None
        else parse_operator(config.K, shape),
    }


def _converged(config: ImageStudy, samples: _Data, problem: LowerLevel, x_tilde: Any) -> Converged:
    return solve_to_tolerance(
        problem,
        x_tilde,
        primal_scale=samples.noise,
        tolerance=_CONVERGED_TOLERANCE,
        most=config.converged_iterations,
        piece=config.batch_size,
    )


def _tuned_problems(config: ImageStudy, samples: _Data) -> dict[str, LowerLevel]:
    """Each operator with the weight that is best at a converged lower level on training data."""
    few = samples.train.take(slice(0, config.tuning_samples))
    problems = {}

    def restore(problem: LowerLevel, x_tilde: Any) -> np.ndarray:
        return _converged(config, samples, problem, x_tilde).x

    G, weights = parse_function(config.G).built(), [a * samples.noise for a in _WEIGHTS]
    for name, K in _analysis_operators(config, samples.shape).items():
        # What is not learned stays what it is, whatever F is: something to be held against.
        F = parse_function(config.F if name == "untrained" else "L1")
        candidates = [LowerLevel(K=K, F=f, G=G) for f in F.at_weights(weights)]
        problems[name] = best_of(candidates, few.x_tilde, few.x_true, restore)
    return problems


def _in_words(F: AbstractFunction) -> str:
    """Its class, and its parameters that are one number."""
    fields = ((field.name, getattr(F, field.name)) for field in dataclasses.fields(F))
    arrays = ((name, np.asarray(value)) for name, value in fields)
    numbers = [f"{name}={a:.3g}" for name, a in arrays if a.ndim == 0 and a.dtype.kind in "fiu"]
    return f"{type(F).__name__}({', '.join(numbers)})"


def _loss(config: ImageStudy) -> Loss:
    return half_mean_squared_error if config.loss is None else parse_loss(config.loss)


def _compare(
    config: ImageStudy,
    samples: _Data,
    problem: LowerLevel,
    solver: ChambollePock,
    strategies: Mapping[str, AbstractStrategy],
) -> Comparison:
    batch = samples.train.take(slice(0, config.batch_size))
    return compare(
        problem,
        batch.x_tilde,
        batch.x_true,
        solver=solver,
        strategies=list(strategies.values()),
        loss=_loss(config),
        repeats=config.repeats,
    )


def _train_all(
    config: ImageStudy,
    samples: _Data,
    problem: LowerLevel,
    solver: ChambollePock,
    strategies: Mapping[str, AbstractStrategy],
    out: Path,
    bar: Progress,
    devices: Mesh | None,
) -> dict[str, History]:
    held_out = (samples.held_out.x_tilde, samples.held_out.x_true)
    steps = config.epochs * (len(samples.train) // min(config.batch_size, len(samples.train)))
    schedule = optax.cosine_decay_schedule(config.learning_rate, max(steps, 1))
    histories: dict[str, History] = {}
    for label, strategy in strategies.items():
        history = train(
            problem,
            (samples.train.x_tilde, samples.train.x_true),
            validation=held_out,
            solver=solver,
            strategy=strategy,
            optimizer=optax.adam(schedule),
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            loss=_loss(config),
            checkpoint_dir=out / "checkpoints" / _file_name(label),
            progress=bar,
            devices=devices,
        )
        histories[label] = history
        # Written after each strategy: an interruption loses none that is finished.
        write_jsonl(out / "records.jsonl", _training_records(histories))
        saved = _saved(config, samples, history.problem, solver, strategy)
        saved.save(out / f"operator_{_file_name(label)}.npz")
    return histories


def _saved(
    config: ImageStudy,
    samples: _Data,
    problem: LowerLevel,
    solver: ChambollePock,
    strategy: AbstractStrategy,
) -> SavedOperator:
    """What was learned, with all that it takes to restore by it."""
    is_sound = len(samples.shape) == 1 and config.data is not None and Path(config.data).is_dir()
    return SavedOperator(
        problem,
        solver,
        strategy,
        samples.shape,
        stride=max(1, min(samples.shape) // 2),
        rate=config.rate if is_sound else None,
        settings=dataclasses.asdict(config),
    )


def _training_records(histories: Mapping[str, History]) -> Iterator[dict[str, Any]]:
    for label, history in histories.items():
        for record in history.records:
            yield {"kind": "training", "strategy": label, **record}


def _file_name(label: str) -> str:
    return label.replace(":", "_").replace("=", "-").replace(",", "_").replace(".", "p")


# --------------------------------------------------------------------------------- evaluation


def _restorer(
    config: ImageStudy, problem: LowerLevel, solver: ChambollePock, strategy: AbstractStrategy
) -> Restorer:
    def restore(x_tilde: np.ndarray) -> np.ndarray:
        # One size of piece throughout the job, that of a batch: one compilation a strategy.
        return solve_in_pieces(
            problem, x_tilde, solver=solver, strategy=strategy, piece=config.batch_size
        )[0]

    return restore


def _evaluate_all(
    config: ImageStudy,
    samples: _Data,
    problems: Mapping[str, LowerLevel],
    histories: Mapping[str, History],
    solver: ChambollePock,
    strategies: Mapping[str, AbstractStrategy],
) -> list[dict[str, Any]]:
    """Baselines, then each learned operator: at L with its own strategy, and converged."""
    untrained = problems["untrained"]
    rows = _identity_and_shrinkage(config, samples, untrained)
    for name, problem in problems.items():
        label = name if name == "untrained" else f"{name}, best weight"
        rows.append(_evaluate(config, samples, label, problem, solver, Truncation(1)))
    for strategy in strategies.values():
        if isinstance(strategy, ErgodicUnrolling):
            # The average alone changes the value: without this row it would pass for learning.
            label = f"untrained, {strategy.label}"
            rows.append(_evaluate(config, samples, label, untrained, solver, strategy))
    for label, history in histories.items():
        row = _evaluate(config, samples, label, history.problem, solver, strategies[label])
        rows.append(row | {"seconds": history.records[-1]["seconds"]})
    return rows


def _train_subset(config: ImageStudy, samples: _Data) -> data.Samples:
    """As many training samples as there are held-out ones: what the evaluation costs."""
    return samples.train.take(slice(0, config.held_out_samples))


def _evaluate(
    config: ImageStudy,
    samples: _Data,
    name: str,
    problem: LowerLevel,
    solver: ChambollePock,
    strategy: AbstractStrategy,
) -> dict[str, Any]:
    train, held_out = _train_subset(config, samples), samples.held_out
    at_L = _restorer(config, problem, solver, strategy)
    restored = at_L(held_out.x_tilde)
    train_converged = _converged(config, samples, problem, train.x_tilde).x
    converged, share_converged = _converged(config, samples, problem, held_out.x_tilde)
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


def _identity_and_shrinkage(
    config: ImageStudy, samples: _Data, problem: LowerLevel
) -> list[dict[str, Any]]:
    """`x_tilde` itself, and `x_tilde + a r*` with `a` fitted on training data."""
    train, held_out = _train_subset(config, samples), samples.held_out
    solved_train, solved_held_out = (
        _converged(config, samples, problem, part.x_tilde).x for part in (train, held_out)
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


# ------------------------------------------------------------------------- tables and pictures


def _draw(
    config: ImageStudy,
    samples: _Data,
    problems: Mapping[str, LowerLevel],
    restorers: Mapping[str, Restorer],
    training: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    out: Path,
) -> None:
    """All pictures; `problems` and `restorers` hold the untrained and each learned operator."""
    save, shape = plotting.save_figure, samples.shape
    baselines = {
        row["operator"]: row["held_out_converged"]
        for row in rows
        # The best one that is not learned; another loss than that of the rows has no such line.
        if config.loss is None and row["operator"] == "differences, best weight"
    }
    words = {} if config.loss is None else {"loss": config.loss}
    over_epochs = plotting.plot_loss_curves(training, x="epoch", baselines=baselines, **words)
    over_seconds = plotting.plot_loss_curves(training, x="seconds", baselines=baselines, **words)
    save(over_epochs, out / "loss_over_epochs")
    save(over_seconds, out / "loss_over_seconds")
    if len(shape) != 2:
        return
    patch = (shape[0], shape[1])
    for label, problem in problems.items():
        x_true = jnp.asarray(samples.held_out.x_true, problem.dtype)
        use = np.mean(np.abs(np.asarray(operators.apply(problem.K, x_true))), axis=0)
        picture = plotting.plot_operator(np.asarray(problem.K), patch, title=label, use=use)
        save(picture, out / f"operator_{_file_name(label)}")
    save(plotting.plot_patches(_some_patches(samples, restorers), patch), out / "patches")
    if config.data is None:
        _draw_photograph(config, restorers, out)


def _some_patches(samples: _Data, restorers: Mapping[str, Restorer]) -> dict[str, np.ndarray]:
    """Six held-out patches, the most structured of the first ones: flat ones show nothing."""
    candidates = samples.held_out.take(slice(0, 64))
    chosen = candidates.take(np.argsort(-np.std(candidates.x_true, axis=1))[:6])
    restored = {label: restore(chosen.x_tilde) for label, restore in restorers.items()}
    return {"noisy": chosen.x_tilde, **restored, "truth": chosen.x_true}


def _draw_photograph(config: ImageStudy, restorers: Mapping[str, Restorer], out: Path) -> None:
    from skimage.metrics import structural_similarity

    truth = data.photograph(config.photograph)
    rng = np.random.default_rng([config.seed, 1])
    observed = truth + config.noise * rng.standard_normal(truth.shape)
    pictures = {"observed": observed}
    for label, restore in restorers.items():
        pictures[label] = _restore_photograph(config, observed, restore)
    metrics = {
        name: {
            "psnr": data.psnr(picture, truth),
            "ssim": float(structural_similarity(truth, picture, data_range=1.0)),  # pyright: ignore[reportArgumentType]
        }
        for name, picture in pictures.items()
    }
    pictures["truth"] = truth
    figure = plotting.plot_photograph(pictures, truth=truth, metrics=metrics)
    plotting.save_figure(figure, out / f"photograph_{config.photograph}")
    write_json(out / "photograph.json", metrics)


def _restore_photograph(config: ImageStudy, observed: np.ndarray, restore: Restorer) -> np.ndarray:
    """Every patch by itself, overlaps averaged."""
    size, stride = config.patch, config.stride
    patches = data.all_patches(observed, size=size, stride=stride)
    return data.assemble(restore(patches), observed.shape, size=size, stride=stride)


def _report(
    config: ImageStudy, samples: _Data, comparison: Comparison, rows: list[dict[str, Any]]
) -> str:
    parts = {"K": config.K, "F": config.F, "G": config.G, "loss": config.loss}
    usual = dataclasses.asdict(ImageStudy())
    given = [f"{name} = {text}" for name, text in parts.items() if text != usual[name]]
    own = f" Learned with {', '.join(given)} (the table is in the loss above)." if given else ""
    return (
        "# Hypergradients on one batch\n\n"
        f"{comparison}\n\n"
        "# Learned operators\n\n"
        f"Loss: half the squared error a patch. L = {config.iterations}; converged: relative "
        f"residual below {_CONVERGED_TOLERANCE:g}, at most {config.converged_iterations} "
        f"iterations. {len(samples.train)} training and {len(samples.held_out)} held-out samples, "
        f"{config.epochs} epochs, seed {config.seed}.{own}\n\n"
        f"{markdown_table(rows, TABLE)}\n"
    )


def _terminal_table(comparison: Comparison) -> Any:
    return _table(
        comparison.records,
        {
            "strategy": "strategy",
            "relative_error": "rel. error",
            "cosine": "cosine",
            "milliseconds": "time (ms)",
            "over_forward": "/ forward",
            "peak_megabytes": "MB",
            "error": "error",
        },
    )


def _learning_table(rows: list[dict[str, Any]]) -> Any:
    return _table(
        rows,
        {
            "operator": "operator",
            "train_at_L": "train, L",
            "held_out_at_L": "held out, L",
            "held_out_converged": "converged",
            "psnr_at_L": "dB, L",
            "psnr_converged": "dB, conv.",
            "seconds": "s",
        },
    )


def _table(records: list[dict[str, Any]], columns: Mapping[str, str]) -> Any:
    """A table for the terminal; columns that are empty everywhere are left out."""
    from rich.table import Table

    used = {
        key: heading
        for key, heading in columns.items()
        if any(record.get(key) is not None for record in records)
    }
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(used.values()):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for record in records:
        table.add_row(*(format_cell(record.get(key)) for key in used))
    return table
