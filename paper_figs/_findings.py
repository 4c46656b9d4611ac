"""What was measured of each statement of the posters, by case, from the records.

A function for each: numbers in words, and whether every case is as the poster says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _common import Record, decibels_over, paired, read, select, values
from fig04_backprop_steps import ENOUGH, over_full, shares

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.statistics import Interval, group, mean_interval, paired_interval

UNIFORM = "ergodic:uniform"
AVERAGES = (UNIFORM, "ergodic:tail=0.5", "ergodic:linear")
ONE_STEP = ("truncation:k=1", "limit:steps=1")
SAME = 0.1  # dB: an invisible difference

Verdict = Literal["holds", "holds in part", "does not hold", "undecided"]
Case = bool | None
"""Whether a case holds; None where its interval contains the bound."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured, in words and numbers, and whether it is as the poster says, by case."""

    numbers: str
    cases: Sequence[Case]


# ------------------------------------------------------------------------------------- verdicts


def verdict_of(cases: Iterable[Case]) -> Verdict:
    """All, some, none of the cases; undecided where none holds and one might.

    >>> verdict_of([True, False]), verdict_of([None, False])
    ('holds in part', 'undecided')
    """
    cases = list(cases)
    if not cases:
        raise HypergradError("there must be a case to judge; got none: are the records quick ones?")
    if all(cases):
        return "holds"
    if any(cases):
        return "holds in part"
    return "undecided" if None in cases else "does not hold"


def below(interval: Interval, bound: float) -> Case:
    """Whether all of an interval is below a bound, or above (False); None: it is within.

    >>> below(Interval(1.0, 0.5, 5), 2.0), below(Interval(1.0, 0.5, 5), 1.2)
    (True, None)
    """
    if math.isnan(interval.half):
        return None
    return True if interval.high < bound else False if interval.low > bound else None


def above(interval: Interval, bound: float) -> Case:
    """The same the other way round."""
    return below(Interval(-interval.mean, interval.half, interval.samples), -bound)


# ------------------------------------------------------------------------------- in small words


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if abs(value) > 1e-14 else "< 1e-12 %"


def _percents(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} ± {100 * interval.half:.1f} %"


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in found.items())


def _by_problem(records: Sequence[Record]) -> dict[str, list[Record]]:
    names = dict.fromkeys(r["problem"] for r in records)
    return {name: select(records, problem=name) for name in names}


def _mean(records: Sequence[Record], column: str) -> Interval:
    return mean_interval(values(records, column))


# ----------------------------------------------------------------------------- formulas, layers


def recursion(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    worst = max(values(records, "formula_error"))
    return Finding(
        f"largest relative difference {worst:.1e} in {len(records)} cases (4 lower levels, last "
        "iterate and 3 averages, all L and seeds)",
        [worst < 1e-10],
    )


def differentiable(folder: Path) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="reference")
    numbers, cases = [], []
    for problem, mine in _by_problem(records).items():
        for place, same in group(mine, "place").items():
            share = _mean(same, "differentiable")
            cases.append(share.mean > 0.99)
            numbers.append(f"{problem}, {place}: {_percents(share)}")
    return Finding(
        "samples whose solution is certified, unique and away from every kink. "
        + "; ".join(numbers),
        cases,
    )


def _deepest(folder: Path) -> tuple[list[Record], int]:
    """Layers of the last iterate, and the largest L."""
    records = select(read(folder / "vanishing"), kind="depth", strategy="full")
    return records, max(r["L"] for r in records)


def _kernels(folder: Path, *, saturating: bool) -> Finding:
    records, deepest = _deepest(folder)
    numbers, cases = [], []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        if (problem != "nothing saturates") is not saturating:
            continue
        far = {
            column: float(np.median(values(mine, f"{column}_middle")))
            for column in ("to_kernel", "to_dual_kernel", "to_reduced")
        }
        cases += [far["to_kernel"] < 1e-6, far["to_dual_kernel"] < 1e-6]
        numbers.append(
            f"{problem}: δ_P is {far['to_kernel']:.1e} from ker K and {far['to_reduced']:.1e} from "
            f"the limit on the free coordinates; δ_D is {far['to_dual_kernel']:.1e} from ker Kᵀ"
        )
    return Finding(f"layer L/2 at L = {deepest}, relative. " + "; ".join(numbers), cases)


def kernels(folder: Path) -> Finding:
    return _kernels(folder, saturating=False)


def kernels_where_saturated(folder: Path) -> Finding:
    return _kernels(folder, saturating=True)


def early_layers_vanish(folder: Path) -> Finding:
    records, deepest = _deepest(folder)
    by_problem = _by_problem(select(records, L=deepest))
    found = {problem: _mean(mine, "early_share") for problem, mine in by_problem.items()}
    return Finding(
        f"part of the gradient that the first half of the layers gives at L = {deepest}. "
        + _listed({problem: _percent(share.mean) for problem, share in found.items()}),
        [abs(share.mean) < 1e-3 for share in found.values()],
    )


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
    return Finding(
        f"norm of the gradient in K at L = {deepest} over that at L = {shallow}. "
        + _listed({problem: f"{ratio:.3g}" for problem, ratio in kept.items()}),
        [ratio < 0.1 for ratio in kept.values()],
    )


def averages_reach_early_layers(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    deepest = max(r["L"] for r in records)
    numbers, cases = [], []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        found = {s: _mean(same, "early_share") for s, same in group(mine, "strategy").items()}
        cases.append(found[UNIFORM].mean > 0.01)
        parts = {strategy: _percent(share.mean) for strategy, share in found.items()}
        numbers.append(f"{problem}: {_listed(parts)}")
    return Finding(
        f"part of the gradient that the first half of the layers gives at L = {deepest}. "
        + "; ".join(numbers),
        cases,
    )


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
    numbers, cases = [], []
    for strategy in [s for s in AVERAGES if select(learned, strategy=s)]:
        excess = {L: _excess(learned, strategy, L, column) for L in deep}
        if strategy == UNIFORM:
            cases = [below(one, 0.0) for one in excess.values()]
        parts = _listed({f"L = {L}": one for L, one in excess.items()})
        numbers.append(f"{strategy}: {parts}")
    return Finding(
        f"held-out loss less that of the last iterate (which has {base} at L = {deep[-1]}). "
        + "; ".join(numbers),
        cases,
    )


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
    return Finding(
        f"held-out loss as returned at L = {ends[0]} less that at L = {ends[1]}. {_listed(falls)}; "
        f"{UNIFORM} less full: {more}",
        [below(falls[UNIFORM], 0.0), below(more, 0.0)],
    )


# ------------------------------------------------------------------------------- depth and cost


def _needed(folder: Path, kind: str, words: str) -> Finding:
    records = select(read(folder / "solver_depth"), kind=kind)
    numbers, cases = [], []
    for problem, mine in _by_problem(records).items():
        for level in ("median", "worst"):
            needed = {error: _first_below(mine, level, error) for error in (1e-2, 1e-6)}
            if level == "worst":
                cases.append(needed[1e-2] > 100)
            numbers.append(f"{problem}, {level} sample: {needed[1e-2]:g} and {needed[1e-6]:g}")
    return Finding(
        f"the least L that was tried at which {words} is within 1e-2 and 1e-6 with every seed "
        "(inf: with none that was tried). " + "; ".join(numbers),
        [any(cases)],
    )


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
    ratios = [at[deepest][c] / at[100][c] for c in ("milliseconds", "megabytes")]
    return Finding(
        f"full unrolling from L = 100 to {deepest}: {ratios[0]:.3g} times the time, "
        f"{ratios[1]:.3g} times the memory ({at[deepest]['megabytes']:.3g} MB for 64 samples)",
        [ratio > 0.7 * deepest / 100 for ratio in ratios],
    )


def limit_formula(folder: Path) -> Finding:
    records = read(folder / "solver_depth")
    deepest = max(r["L"] for r in select(records, kind="unrolled"))
    numbers, cases = [], []
    for problem, mine in _by_problem(records).items():
        found = {
            (kind, level): max(values(select(mine, kind=kind, L=deepest), level))
            for kind in ("unrolled", "predicted")
            for level in ("median", "worst")
        }
        for level in ("median", "worst"):
            error, predicted = found["unrolled", level], found["predicted", level]
            cases.append(error < max(1e-6, 100 * predicted))
            numbers.append(
                f"{problem}, {level} sample: {error:.1e} (rate^L predicts {predicted:.1e})"
            )
        share = _percents(_mean(select(mine, kind="rate"), "good"))
        numbers[-1] += f", on the {share} that are differentiable with a gradient"
    return Finding(
        f"relative distance of the gradient of {deepest} iterations from the formula at the exact "
        "pair, the largest over seeds. " + "; ".join(numbers),
        cases,
    )


def hundred_iterations(folder: Path) -> Finding:
    records = read(folder / "solver_depth")
    numbers, cases = [], []
    for problem, mine in _by_problem(records).items():
        for kind, name in (("iterate", "x"), ("dual", "y")):
            at_100 = select(mine, kind=kind, L=100)
            errors = {level: max(values(at_100, level)) for level in ("median", "worst")}
            cases += [error < 1e-2 for error in errors.values()]
            numbers.append(
                f"{problem}, {name}: {errors['median']:.1e} (median), {errors['worst']:.1e} (worst)"
            )
    return Finding(
        "relative distances of x[100], y[100] from x*, y*, the largest over seeds. "
        + "; ".join(numbers),
        cases,
    )


# --------------------------------------------------------------------------------- few steps


def _few_deltas(folder: Path, k: int) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="errors", ratio=1.0)
    label = f"limit:{'steps' if k == 1 else 'last'}={k}"
    numbers, cases = [], []
    for problem, mine in _by_problem(records).items():
        for place, same in group(select(mine, strategy=label), "place").items():
            at_100 = [{"cosine": r["cosine_batch"][r["L"].index(100)]} for r in same]
            cosine = _mean(at_100, "cosine")
            cases.append(above(cosine, 0.9))
            numbers.append(f"{problem}, {place}: {cosine}")
    return Finding(
        f"cosine of the batch's gradient ({label}, L = 100) to the exact one. "
        + "; ".join(numbers),
        cases,
    )


def thirty_deltas(folder: Path) -> Finding:
    return _few_deltas(folder, 30)


def one_delta(folder: Path) -> Finding:
    return _few_deltas(folder, 1)


def one_step_is_enough(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    learned = select(records, kind="learned")
    numbers, cases = [], []
    for strategy in ONE_STEP:
        mine = select(learned, strategy=strategy)
        for column, name in (("held_out_converged", "converged"), ("held_out_at_L", "at L")):
            share = mean_interval(shares(records, mine, column))
            gain = mean_interval(over_full(records, mine, column))
            cases += [above(share, ENOUGH), above(gain, -SAME)]
            numbers.append(f"{strategy}, {name}: {_percents(share)} of the gain, {gain} dB over it")
    numbers += [_gradient_left(records), _more_steps(records)]
    return Finding("against full unrolling at equal epochs. " + "; ".join(numbers), cases)


def _gradient_left(records: Sequence[Record]) -> str:
    """The exact gradient where one step stops, and the cosine of one step's to it."""
    mine = select(records, kind="gradient", method="truncation:k=1")
    start, end = (select(mine, place=place) for place in ("start", "end of k=1"))
    left = mean_interval(np.divide(*paired("exact_norm", end, start)))
    cosine = _mean(end, "cosine")
    return (
        f"where k = 1 stops the exact gradient has {_percents(left)} of its norm at the start, and "
        f"a cosine of {cosine} to that of k = 1"
    )


def _more_steps(records: Sequence[Record]) -> str:
    """What steps of each kind change from there."""
    changes = {}
    for method, same in group(select(records, kind="more"), "method").items():
        steps = group(same, "step")
        change = mean_interval(np.subtract(*paired("loss", steps[max(steps)], steps[0])))
        changes[f"{max(steps)} more steps of {method} from there"] = f"loss {change}"
    return _listed(changes)


def one_step_at_equal_seconds(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    short = select(records, kind="short")
    mine = select(records, kind="learned", strategy="truncation:k=1")
    numbers, cases = [], []
    for column, name in (("held_out_converged", "converged"), ("held_out_at_L", "at L")):
        gain = mean_interval(decibels_over(*paired(column, mine, short)))
        cases.append(above(gain, -SAME))
        numbers.append(f"{name}: {gain} dB over it")
    return Finding(
        f"truncation:k=1 against {short[0]['epochs']} epochs of full unrolling, with a rate and a "
        "schedule for them. " + "; ".join(numbers),
        cases,
    )


def one_step_saves(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    times = {r["method"]: r for r in select(records, kind="time")}
    costs = select(read(folder / "cost"), L=100, batch=64, n=64)
    one = select(costs, strategy="truncation:k=1")[0]["megabytes"]
    full = select(costs, strategy="full")[0]["megabytes"]
    over = [times[name]["over_forward"] for name in ("truncation:k=1", "full")]
    return Finding(
        f"an epoch of training takes {over[0]:.2f} times its forward solves with k = 1, "
        f"{over[1]:.2f} times with all L = 100; a hypergradient {one:.3g} and {full:.3g} MB",
        [over[0] < 0.5 * over[1], one < 0.5 * full],
    )
