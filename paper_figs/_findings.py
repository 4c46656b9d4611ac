"""What was measured of each statement of the posters, by case, from the records.

A function for each: the numbers, and whether every case is as the poster says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from _common import Record, decibels_over, paired, read, select, values
from fig04_backprop_steps import ENOUGH, over_full, shares

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.statistics import (
    Case,
    Interval,
    above,
    below,
    group,
    mean_interval,
    paired_interval,
)

UNIFORM = "ergodic:uniform"
AVERAGES = (UNIFORM, "ergodic:tail=0.5", "ergodic:linear")
ONE_STEP = ("truncation:k=1", "limit:steps=1")
SAME = 0.1  # dB: an invisible difference


@dataclasses.dataclass(frozen=True)
class Row:
    """A number of a case; `holds` where it is judged."""

    case: str
    quantity: str
    value: float | Interval | str
    holds: Case = None
    judged: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured: the number to remember, and all of them, by case."""

    key: str
    rows: Sequence[Row]
    judged_together: Sequence[Case] | None = None

    @property
    def cases(self) -> Sequence[Case]:
        if self.judged_together is not None:
            return self.judged_together
        return [row.holds for row in self.rows if row.judged]


# ------------------------------------------------------------------------------- in small words


def two(value: float | Interval | str) -> str:
    """Write a number, or a mean with its half width, with two significant digits.

    >>> two(198.4), two(0.00012), two(Interval(0.3905, 0.074, 5)), two(float("inf"))
    ('200', '1.2e-04', '0.39 ± 0.074', 'none tried')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        return f"{two(value.mean)} ± {two(value.half)}"
    if math.isinf(value):
        return "none tried"
    rounded = float(f"{value:.1e}")
    plain = rounded == 0 or 1e-3 <= abs(rounded) < 1e5
    return f"{rounded:g}" if plain else f"{rounded:.1e}"


def _percent(value: float) -> float | str:
    return 100 * value if abs(value) > 1e-14 else "< 1e-12"


def _percents(interval: Interval) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.half, interval.samples)


def _span(numbers: Iterable[float]) -> str:
    numbers = list(numbers)
    return f"{two(min(numbers))} to {two(max(numbers))}"


def _by_problem(records: Sequence[Record]) -> dict[str, list[Record]]:
    names = dict.fromkeys(r["problem"] for r in records)
    return {name: select(records, problem=name) for name in names}


def _mean(records: Sequence[Record], column: str) -> Interval:
    return mean_interval(values(records, column))


# ----------------------------------------------------------------------------- formulas, layers


def recursion(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    worst = max(values(records, "formula_error"))
    case = f"{len(records)} cases: 4 lower levels, last iterate and 3 averages, all L and seeds"
    row = Row(case, "largest relative difference", worst, worst < 1e-10)
    return Finding(f"difference {two(worst)}", [row])


def differentiable(folder: Path) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="reference")
    rows, shares_found = [], []
    name = "samples certified, unique and away from every kink (%)"
    for problem, mine in _by_problem(records).items():
        for place, same in group(mine, "place").items():
            share = _mean(same, "differentiable")
            shares_found.append(100 * share.mean)
            rows.append(Row(f"{problem}, {place}", name, _percents(share), share.mean > 0.99))
    return Finding(f"{_span(shares_found)} % of samples", rows)


def _deepest(folder: Path) -> tuple[list[Record], int]:
    """Layers of the last iterate, and the largest L."""
    records = select(read(folder / "vanishing"), kind="depth", strategy="full")
    return records, max(r["L"] for r in records)


def _kernels(folder: Path, *, saturating: bool) -> Finding:
    records, deepest = _deepest(folder)
    names = {
        "to_kernel": "δ_P from ker K",
        "to_dual_kernel": "δ_D from ker Kᵀ",
        "to_reduced": "δ_P from the limit on the free coordinates",
    }
    rows = []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        if (problem != "nothing saturates") is not saturating:
            continue
        for column, name in names.items():
            far = float(np.median(values(mine, f"{column}_middle")))
            judged = column != "to_reduced"
            case = f"{problem}, layer L/2, L = {deepest}"
            rows.append(Row(case, f"{name}, relative", far, judged and far < 1e-6, judged))
    worst = max((row for row in rows if row.judged), key=lambda row: float(str(row.value)))
    return Finding(f"at most {two(worst.value)} from a kernel", rows)


def kernels(folder: Path) -> Finding:
    return _kernels(folder, saturating=False)


def kernels_where_saturated(folder: Path) -> Finding:
    return _kernels(folder, saturating=True)


EARLY = "part of the gradient from the first half of the layers (%)"


def early_layers_vanish(folder: Path) -> Finding:
    records, deepest = _deepest(folder)
    by_problem = _by_problem(select(records, L=deepest))
    found = {problem: _mean(mine, "early_share").mean for problem, mine in by_problem.items()}
    rows = [
        Row(f"{problem}, L = {deepest}", EARLY, _percent(share), abs(share) < 1e-3)
        for problem, share in found.items()
    ]
    return Finding(f"0 to {two(100 * max(found.values()))} % of the gradient", rows)


def gradient_vanishes(folder: Path) -> Finding:
    records, deepest = _deepest(folder)
    shallow = min(r["L"] for r in records)
    kept = {
        problem: float(
            np.mean(values(select(mine, L=deepest), "gradient"))
            / np.mean(values(select(mine, L=shallow), "gradient"))
        )
        for problem, mine in _by_problem(records).items()
    }
    name = f"norm of the gradient in K at L = {deepest} over that at L = {shallow}"
    rows = [Row(problem, name, ratio, ratio < 0.1) for problem, ratio in kept.items()]
    return Finding(f"{_span(kept.values())} times its norm at L = {shallow}", rows)


def averages_reach_early_layers(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    deepest = max(r["L"] for r in records)
    rows, uniform = [], []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        for strategy, same in group(mine, "strategy").items():
            share, judged = _mean(same, "early_share").mean, strategy == UNIFORM
            uniform += [100 * share] * judged
            case = f"{problem}, {strategy}, L = {deepest}"
            rows.append(Row(case, EARLY, _percent(share), judged and share > 0.01, judged))
    return Finding(f"{UNIFORM}: {_span(uniform)} %", rows)


# ------------------------------------------------------------------------------------- learning


def _learned(folder: Path, run: str) -> list[Record]:
    return select(read(folder / "ergodic_depth"), run=run, kind="learned")


def _excess(learned: Sequence[Record], strategy: str, L: int, column: str) -> Interval:
    """The loss of an average less that of the last iterate, paired over seeds: below 0 is good."""
    at_L = select(learned, L=L)
    ours, theirs = paired(column, *(select(at_L, strategy=name) for name in (strategy, "full")))
    return paired_interval(ours, theirs)


def _averages_learn_better(folder: Path, run: str, column: str) -> Finding:
    learned = _learned(folder, run)
    deep = [L for L in sorted({r["L"] for r in learned}) if L >= 100]
    base = _mean(select(learned, strategy="full", L=deep[-1]), column)
    rows = [Row(f"full, L = {deep[-1]}", "held-out loss", base, judged=False)]
    for strategy in [s for s in AVERAGES if select(learned, strategy=s)]:
        for L in deep:
            excess, judged = _excess(learned, strategy, L, column), strategy == UNIFORM
            holds = below(excess, 0.0) if judged else None
            name = "held-out loss less that of the last iterate"
            rows.append(Row(f"{strategy}, L = {L}", name, excess, holds, judged))
    first = _excess(learned, UNIFORM, deep[0], column)
    return Finding(f"L = {deep[0]}: {two(first)}", rows)


def averages_descend_better(folder: Path) -> Finding:
    return _averages_learn_better(folder, "descent", "held_out_returned")


def averages_learn_better(folder: Path) -> Finding:
    return _averages_learn_better(folder, "adam", "held_out_returned")


def averages_learn_better_converged(folder: Path) -> Finding:
    return _averages_learn_better(folder, "adam", "held_out_converged")


def averages_learn_better_shrunk(folder: Path) -> Finding:
    return _averages_learn_better(folder, "adam", "held_out_shrunk")


def averages_improve_with_depth(folder: Path) -> Finding:
    learned, column = _learned(folder, "adam"), "held_out_returned"
    depths = sorted({r["L"] for r in learned})
    ends = depths[-1], depths[0]

    def fall(strategy: str) -> np.ndarray:
        mine = select(learned, strategy=strategy)
        deep, shallow = paired(column, *(select(mine, L=L) for L in ends))
        return deep - shallow

    falls = {strategy: mean_interval(fall(strategy)) for strategy in ("full", *AVERAGES)}
    more = paired_interval(fall(UNIFORM), fall("full"))
    name = f"held-out loss at L = {ends[0]} less that at L = {ends[1]}"
    rows = [
        Row(strategy, name, change, below(change, 0.0), strategy == UNIFORM)
        for strategy, change in falls.items()
    ]
    rows.append(Row(f"{UNIFORM} less full", name, more, below(more, 0.0)))
    return Finding(f"{UNIFORM}: {two(falls[UNIFORM])}", rows)


# ------------------------------------------------------------------------------- depth and cost


def _needed(folder: Path, kind: str, words: str) -> Finding:
    records = select(read(folder / "solver_depth"), kind=kind)
    rows, worst = [], {}
    for problem, mine in _by_problem(records).items():
        for level in ("median", "worst"):
            for error in (1e-2, 1e-6):
                needed = _first_below(mine, level, error)
                name = f"least L tried with {words} within {error:.0e}, every seed"
                value = f"{needed:g}" if math.isfinite(needed) else needed
                rows.append(Row(f"{problem}, {level} sample", name, value, judged=False))
                if (level, error) == ("worst", 1e-2):
                    worst[problem] = needed
    hardest = max(worst, key=lambda problem: worst[problem])
    key = f"{hardest}, worst sample: L = {worst[hardest]:g}"
    return Finding(key, rows, [any(needed > 100 for needed in worst.values())])


def _first_below(records: Sequence[Record], level: str, error: float) -> float:
    for L in sorted({r["L"] for r in records}):
        if max(values(select(records, L=L), level)) <= error:
            return L
    return np.inf


def depth_is_needed(folder: Path) -> Finding:
    return _needed(folder, "iterate", "x[L]")


def depth_is_needed_for_gradients(folder: Path) -> Finding:
    return _needed(folder, "unrolled", "the gradient of L iterations")


def resources(folder: Path) -> Finding:
    costs = select(read(folder / "solver_depth"), kind="cost", what="full")
    at, deepest = {r["L"]: r for r in costs}, max(r["L"] for r in costs)
    if deepest <= 100:
        raise HypergradError(f"costs must reach beyond L = 100; got {deepest}: run it in full")
    found = {
        name: at[deepest][column] / at[100][column]
        for column, name in (("milliseconds", "time"), ("megabytes", "memory"))
    }
    case = f"full unrolling, from L = 100 to {deepest}"
    rows = [
        Row(case, f"growth of {name} (factor)", ratio, ratio > 0.7 * deepest / 100)
        for name, ratio in found.items()
    ]
    name = f"memory at L = {deepest}, 64 samples (MB)"
    rows.append(Row("full unrolling", name, at[deepest]["megabytes"], judged=False))
    key = ", ".join(f"{two(ratio)} times the {name}" for name, ratio in found.items())
    return Finding(f"{key} for {deepest // 100} times L", rows)


def limit_formula(folder: Path) -> Finding:
    records = read(folder / "solver_depth")
    deepest = max(r["L"] for r in select(records, kind="unrolled"))
    rows, errors = [], []
    for problem, mine in _by_problem(records).items():
        for level in ("median", "worst"):
            error, predicted = (
                max(values(select(mine, kind=kind, L=deepest), level))
                for kind in ("unrolled", "predicted")
            )
            errors.append(error)
            case = f"{problem}, {level} sample, L = {deepest}"
            holds = error < max(1e-6, 100 * predicted)
            rows.append(Row(case, "relative distance, largest over seeds", error, holds))
            rows.append(Row(case, "rate^L predicts", predicted, judged=False))
        share = _percents(_mean(select(mine, kind="rate"), "good"))
        rows.append(Row(problem, "differentiable samples with a gradient (%)", share, judged=False))
    return Finding(f"largest distance {two(max(errors))}", rows)


def hundred_iterations(folder: Path) -> Finding:
    records = read(folder / "solver_depth")
    rows, errors = [], []
    for problem, mine in _by_problem(records).items():
        for kind, name in (("iterate", "x"), ("dual", "y")):
            at_100 = select(mine, kind=kind, L=100)
            for level in ("median", "worst"):
                errors.append(max(values(at_100, level)))
                words = f"relative distance of {name}[100] from {name}*, largest over seeds"
                holds = errors[-1] < 1e-2
                rows.append(Row(f"{problem}, {level} sample", words, errors[-1], holds))
    return Finding(f"largest distance {two(max(errors))}", rows)


# --------------------------------------------------------------------------------- few steps


def _few_deltas(folder: Path, k: int) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="errors", ratio=1.0)
    label = f"limit:{'steps' if k == 1 else 'last'}={k}"
    rows, cosines = [], []
    for problem, mine in _by_problem(records).items():
        for place, same in group(select(mine, strategy=label), "place").items():
            at_100 = [{"cosine": r["cosine_batch"][r["L"].index(100)]} for r in same]
            cosine = _mean(at_100, "cosine")
            cosines.append(cosine.mean)
            name = f"cosine of {label} to the exact gradient, batch, L = 100"
            rows.append(Row(f"{problem}, {place}", name, cosine, above(cosine, 0.9)))
    return Finding(f"cosine {_span(cosines)}", rows)


def thirty_deltas(folder: Path) -> Finding:
    return _few_deltas(folder, 30)


def one_delta(folder: Path) -> Finding:
    return _few_deltas(folder, 1)


JUDGED_AT = {"held_out_converged": "converged", "held_out_at_L": "at L"}


def one_step_is_enough(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    learned = select(records, kind="learned")
    rows = []
    for strategy in ONE_STEP:
        mine = select(learned, strategy=strategy)
        for column, name in JUDGED_AT.items():
            share = mean_interval(shares(records, mine, column))
            gain = mean_interval(over_full(records, mine, column))
            case = f"{strategy}, {name}"
            words = "share of the gain of full unrolling (%)"
            rows.append(Row(case, words, _percents(share), above(share, ENOUGH)))
            rows.append(Row(case, "PSNR over full unrolling (dB)", gain, above(gain, -SAME)))
    key = f"{two(rows[1].value)} dB over full"
    return Finding(key, [*rows, *_gradient_left(records), *_more_steps(records)])


def _gradient_left(records: Sequence[Record]) -> list[Row]:
    """The exact gradient where one step stops, and the cosine of one step's to it."""
    mine = select(records, kind="gradient", method="truncation:k=1")
    start, end = (select(mine, place=place) for place in ("start", "end of k=1"))
    left = mean_interval(np.divide(*paired("exact_norm", end, start)))
    norm, cosine = "exact gradient's norm over that at the start (%)", "its cosine to that of k = 1"
    return [
        Row("where k = 1 stops", norm, _percents(left), judged=False),
        Row("where k = 1 stops", cosine, _mean(end, "cosine"), judged=False),
    ]


def _more_steps(records: Sequence[Record]) -> list[Row]:
    """What steps of each kind change from there."""
    rows = []
    for method, same in group(select(records, kind="more"), "method").items():
        steps = group(same, "step")
        change = mean_interval(np.subtract(*paired("loss", steps[max(steps)], steps[0])))
        case = f"{max(steps)} more steps of {method} from there"
        rows.append(Row(case, "change of the held-out loss", change, judged=False))
    return rows


def one_step_at_equal_seconds(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    short = select(records, kind="short")
    mine = select(records, kind="learned", strategy="truncation:k=1")
    words = f"PSNR over {short[0]['epochs']} epochs of full unrolling, tuned for them (dB)"
    rows = []
    for column, name in JUDGED_AT.items():
        gain = mean_interval(decibels_over(*paired(column, mine, short)))
        rows.append(Row(f"truncation:k=1, {name}", words, gain, above(gain, -SAME)))
    return Finding(f"{two(rows[0].value)} dB over full", rows)


def one_step_saves(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    times = {r["method"]: r for r in select(records, kind="time")}
    costs = select(read(folder / "cost"), L=100, batch=64, n=64)
    one = select(costs, strategy="truncation:k=1")[0]["megabytes"]
    full = select(costs, strategy="full")[0]["megabytes"]
    over = [times[name]["over_forward"] for name in ("truncation:k=1", "full")]
    epoch, memory = "an epoch of training (its forward solves)", "memory of a hypergradient (MB)"
    rows = [
        Row("truncation:k=1", epoch, over[0], over[0] < 0.5 * over[1]),
        Row("full, L = 100", epoch, over[1], judged=False),
        Row("truncation:k=1", memory, one, one < 0.5 * full),
        Row("full, L = 100", memory, full, judged=False),
    ]
    return Finding(f"{two(over[0])} forward solves an epoch, full {two(over[1])}", rows)
