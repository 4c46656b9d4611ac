"""Every statement of the two posters beside what was measured, as a Markdown table.

    python paper_figs/statements.py [--records experiments/records] [--out paper_figs/statements.md]

A verdict follows from the records by the rule that is written beside it: nothing here is a result.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from _common import STORED, Record, read, select
from fig04_backprop_steps import ENOUGH, shares_at_equal_epochs, shares_at_equal_seconds

from hypergrad.records import markdown_table, write_text
from hypergrad.statistics import Interval, group, mean_interval, paired_interval

WRITTEN = Path(__file__).parent / "statements.md"
AVERAGES = ("ergodic:uniform", "ergodic:tail=0.5", "ergodic:linear")
ONE_STEP = ("truncation:k=1", "limit:last=1", "limit:steps=1")

Verdict = Literal["holds", "holds in part", "does not hold"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured, in words and numbers, and what follows by the rule."""

    numbers: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a poster says, how it is judged, and what else might explain the numbers."""

    poster: Literal["both", "ergodic", "few steps"]
    says: str
    judge: Callable[[Path], Finding]
    rule: str
    figure: str
    confound: str


def verdict_of(held: Iterable[bool]) -> Verdict:
    """Of cases: all, some, none.

    >>> verdict_of([True, False])
    'holds in part'
    """
    held = list(held)
    return "holds" if all(held) else "holds in part" if any(held) else "does not hold"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _percents(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} ± {100 * interval.half:.1f} %"


def _by_problem(records: Sequence[Record]) -> dict[str, list[Record]]:
    names = dict.fromkeys(r["problem"] for r in records)
    return {name: select(records, problem=name) for name in names}


# ----------------------------------------------------------------------------- formulas, limits


def recursion(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    worst = max(r["formula_error"] for r in records)
    return Finding(
        f"largest relative difference {worst:.1e} in {len(records)} cases (4 lower levels, last "
        "iterate and 3 averages, all L and seeds)",
        verdict_of([worst < 1e-10]),
    )


def kernels(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth", strategy="full")
    deepest = max(r["L"] for r in records)
    numbers, held = [], []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        far = {
            column: float(np.median([r[column] for r in mine]))
            for column in ("to_kernel_middle", "to_dual_kernel_middle", "to_reduced_middle")
        }
        held.append(max(far["to_kernel_middle"], far["to_dual_kernel_middle"]) < 1e-6)
        numbers.append(
            f"{problem}: δ_P is {far['to_kernel_middle']:.1e} from ker K, "
            f"{far['to_reduced_middle']:.1e} from the reduced limit; δ_D "
            f"{far['to_dual_kernel_middle']:.1e} from ker Kᵀ"
        )
    return Finding(f"layer L/2 at L = {deepest}. " + "; ".join(numbers), verdict_of(held))


def vanishing(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth", strategy="full")
    shallow, deepest = min(r["L"] for r in records), max(r["L"] for r in records)
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        share = mean_interval([r["early_share"] for r in select(mine, L=deepest)])
        norm = {L: np.mean([r["gradient"] for r in select(mine, L=L)]) for L in (shallow, deepest)}
        kept = norm[deepest] / norm[shallow]
        held += [share.mean < 1e-3, kept < 0.1]
        numbers.append(
            f"{problem}: the first half of the layers gives {_percent(share.mean)} of the "
            f"gradient, whose norm is {kept:.2g} times that at L = {shallow}"
        )
    return Finding(f"L = {deepest}. " + "; ".join(numbers), verdict_of(held))


def mitigation(folder: Path) -> Finding:
    records = select(read(folder / "vanishing"), kind="depth")
    deepest = max(r["L"] for r in records)
    numbers, held = [], []
    for problem, mine in _by_problem(select(records, L=deepest)).items():
        shares = {
            strategy: mean_interval([r["early_share"] for r in same])
            for strategy, same in group(mine, "strategy").items()
        }
        last = shares["full"].mean
        held += [shares[strategy].mean > 10 * max(last, 1e-12) for strategy in AVERAGES]
        listed = ", ".join(f"{name} {_percent(share.mean)}" for name, share in shares.items())
        numbers.append(f"{problem}: {listed}")
    return Finding(
        f"part of the gradient that the first half of the layers gives at L = {deepest}. "
        + "; ".join(numbers),
        verdict_of(held),
    )


# ------------------------------------------------------------------------------------- learning


def _learned(folder: Path, run: str) -> list[Record]:
    return select(read(folder / "ergodic_depth"), run=run, kind="learned")


def _gain_over_full(learned: Sequence[Record], strategy: str, L: int, column: str) -> Interval:
    """The loss of an average less that of the last iterate, paired over seeds."""

    def losses(name: str) -> list[float]:
        same = select(learned, strategy=name, L=L)
        return [r[column] for r in sorted(same, key=lambda r: r["seed"])]

    return paired_interval(losses(strategy), losses("full"))


def averages_learn_better(folder: Path) -> Finding:
    learned = _learned(folder, "adam")
    deep = [L for L in sorted({r["L"] for r in learned}) if L >= 100]
    numbers, held = [], []
    for column, name in (("held_out_returned", "as returned"), ("held_out_converged", "converged")):
        for strategy in AVERAGES:
            gains = {L: _gain_over_full(learned, strategy, L, column) for L in deep}
            held += [gain.high < 0 for gain in gains.values()]
            listed = ", ".join(f"L = {L}: {gain}" for L, gain in gains.items())
            numbers.append(f"{strategy}, {name}: {listed}")
    return Finding(
        "held-out loss less that of the last iterate (Adam). " + "; ".join(numbers),
        verdict_of(held),
    )


def averages_descend_better(folder: Path) -> Finding:
    learned = _learned(folder, "descent")
    numbers, held = [], []
    for L in sorted({r["L"] for r in learned}):
        loss = {r["strategy"]: r["held_out_returned"] for r in select(learned, L=L)}
        if L >= 100:
            held.append(loss["ergodic:uniform"] < loss["full"])
        numbers.append(f"L = {L}: {loss['full']:.4f} and {loss['ergodic:uniform']:.4f}")
    return Finding(
        "held-out loss as returned, last iterate and uniform average (one seed, no interval). "
        + "; ".join(numbers),
        verdict_of(held),
    )


def averages_improve_with_depth(folder: Path) -> Finding:
    learned = _learned(folder, "adam")
    depths = sorted({r["L"] for r in learned})
    numbers, held = [], []
    for strategy in ("full", *AVERAGES):
        mine = group(select(learned, strategy=strategy), "L")
        losses = {L: mean_interval([r["held_out_returned"] for r in mine[L]]) for L in depths}
        if strategy != "full":
            held.append(losses[depths[-1]].high < losses[depths[0]].low)
        listed = ", ".join(f"{loss.mean:.4f}" for loss in losses.values())
        numbers.append(f"{strategy}: {listed}")
    return Finding(
        f"held-out loss as returned at L = {', '.join(map(str, depths))}. " + "; ".join(numbers),
        verdict_of(held),
    )


# ------------------------------------------------------------------------------- depth and cost


def depth_is_needed(folder: Path) -> Finding:
    records = select(read(folder / "solver_depth"), kind="unrolled")
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        for level in ("median", "worst"):
            needed = [_first_below(mine, level, error) for error in (1e-2, 1e-6)]
            held.append(needed[0] > 100)
            numbers.append(f"{problem}, {level} sample: {needed[0]:g} and {needed[1]:g}")
    return Finding(
        "L at which the gradient is within 1e-2 and 1e-6 of the exact one (every seed; inf: not "
        "reached). " + "; ".join(numbers),
        verdict_of(held),
    )


def _first_below(records: Sequence[Record], level: str, error: float) -> float:
    for L in sorted({r["L"] for r in records}):
        if all(r[level] <= error for r in select(records, L=L)):
            return L
    return np.inf


def resources(folder: Path) -> Finding:
    costs = select(read(folder / "solver_depth"), kind="cost", what="full")
    at = {r["L"]: r for r in costs}
    deepest = max(at)
    time, memory = (at[deepest][c] / at[100][c] for c in ("milliseconds", "megabytes"))
    return Finding(
        f"full unrolling from L = 100 to {deepest}: {time:.3g} times the time, {memory:.3g} times "
        f"the memory ({at[deepest]['megabytes']:.3g} MB for 64 samples)",
        verdict_of([time > 0.7 * deepest / 100, memory > 0.7 * deepest / 100]),
    )


def limit_formula(folder: Path) -> Finding:
    records = read(folder / "solver_depth")
    deepest = max(r["L"] for r in select(records, kind="unrolled"))
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        unrolled = select(mine, kind="unrolled", L=deepest)
        errors = {level: max(r[level] for r in unrolled) for level in ("median", "worst")}
        certified = mean_interval([r["certified"] for r in select(mine, kind="rate")])
        held += [errors["median"] < 1e-6, errors["worst"] < 1e-6]
        numbers.append(
            f"{problem}: {errors['median']:.1e} in the median, {errors['worst']:.1e} for the worst "
            f"sample, on the {_percents(certified)} that are certified"
        )
    return Finding(
        f"relative distance of the gradient of {deepest} iterations from the formula at the exact "
        "pair (largest over seeds). " + "; ".join(numbers),
        verdict_of(held),
    )


def hundred_iterations(folder: Path) -> Finding:
    records = select(read(folder / "solver_depth"), kind="iterate", L=100)
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        errors = {level: max(r[level] for r in mine) for level in ("median", "worst")}
        held += [error < 1e-2 for error in errors.values()]
        numbers.append(f"{problem}: {errors['median']:.1e} (median), {errors['worst']:.1e} (worst)")
    return Finding(
        "relative distance of x[100] from x*, largest over seeds. " + "; ".join(numbers),
        verdict_of(held),
    )


# --------------------------------------------------------------------------------- few steps


def few_deltas(folder: Path) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="errors", ratio=1.0)
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        for place in dict.fromkeys(r["place"] for r in mine):
            found = {}
            for k in (1, 10, 30):
                same = select(mine, place=place, strategy=f"limit:last={k}")
                column = [r["cosine_batch"][r["L"].index(100)] for r in same]
                found[k] = mean_interval(column)
            held += [found[30].low > 0.9, found[1].low > 0.9]
            listed = ", ".join(f"k = {k}: {cosine}" for k, cosine in found.items())
            numbers.append(f"{problem}, {place}: {listed}")
    return Finding(
        "cosine of the batch's gradient (deltas of the last k iterates, L = 100) to the exact one. "
        + "; ".join(numbers),
        verdict_of(held),
    )


def one_step_is_enough(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    numbers, held = [], []
    for strategy in ONE_STEP:
        for column, name in (("held_out_converged", "converged"), ("held_out_at_L", "at L")):
            share = mean_interval(shares_at_equal_epochs(records, strategy, column))
            held.append(share.low >= ENOUGH)
            numbers.append(f"{strategy}, {name}: {_percents(share)}")
    seconds = mean_interval(shares_at_equal_seconds(records, "truncation:k=1"))
    return Finding(
        "recovered share of full unrolling's gain at equal epochs. " + "; ".join(numbers) + "; at "
        f"equal seconds (truncation:k=1, at L): {_percents(seconds)}",
        verdict_of(held),
    )


def one_step_saves(folder: Path) -> Finding:
    records = read(folder / "backprop_steps")
    times = {r["method"]: r for r in select(records, kind="time")}
    costs = select(read(folder / "cost"), L=100, k=1, batch=64, n=64)
    memory = {r["strategy"]: r["megabytes"] for r in costs}
    full = select(read(folder / "cost"), strategy="full", L=100, batch=64, n=64)[0]["megabytes"]
    one, whole = times["truncation:k=1"], times["full"]
    held = [one["seconds"] < 0.5 * whole["seconds"], memory["truncation:k=1"] < 0.5 * full]
    return Finding(
        f"an epoch of training: {one['over_forward']:.2f} times its forward solves with k = 1, "
        f"{whole['over_forward']:.2f} with all L = 100; memory of a hypergradient "
        f"{memory['truncation:k=1']:.3g} and {full:.3g} MB",
        verdict_of(held),
    )


def differentiable(folder: Path) -> Finding:
    records = select(read(folder / "gradient_quality"), kind="reference")
    numbers, held = [], []
    for problem, mine in _by_problem(records).items():
        for place in dict.fromkeys(r["place"] for r in mine):
            share = mean_interval([r["good"] for r in select(mine, place=place)])
            held.append(share.mean > 0.99)
            numbers.append(f"{problem}, {place}: {_percents(share)}")
    return Finding(
        "samples whose solution is certified to be unique and differentiable. "
        + "; ".join(numbers),
        verdict_of(held),
    )


STATEMENTS = (
    Statement(
        "both",
        "the gradient in K of L unrolled iterations is a sum over the layers, its factors given by "
        "a backward recursion",
        recursion,
        "within 1e-10 of JAX's own differentiation of the loop",
        "fig02b",
        "the posters leave out the recursion's start, and where alpha_l enters; at a kink the "
        "derivative of a prox is a convention (here 0 for a clip)",
    ),
    Statement(
        "both",
        "the proximal operators are sufficiently smooth to take derivatives",
        differentiable,
        "more than 99 % of the samples",
        "fig05a",
        "L1 and Box are smooth nowhere on their kinks; almost everywhere is not everywhere where "
        "active rows of K are dependent",
    ),
    Statement(
        "ergodic",
        "under appropriate conditions delta_P goes to ker(K) and delta_D to ker(K^T) in some layer "
        "as L grows",
        kernels,
        "medians below 1e-6 relative to the loss's gradient, in each of four lower levels",
        "fig02a",
        "the conditions: where coordinates saturate it is the kernel of the rows and columns that "
        "are free",
    ),
    Statement(
        "ergodic",
        "learning through unrolled iterations is prone to vanishing gradients",
        vanishing,
        "in each lower level: the first half of the layers gives less than 0.1 %; and the norm of "
        "the whole gradient falls below a tenth",
        "fig02a, fig02b",
        "K is shared by all layers: what the early ones lose the late ones have",
    ),
    Statement(
        "ergodic",
        "unrolling averages instead can help to mitigate that",
        mitigation,
        "the first half of the layers gives more than ten times what it gives for the last iterate",
        "fig02b",
        "contributions of early layers are those of iterates that are not converged: a bias "
        "against the limit, not information",
    ),
    Statement(
        "ergodic",
        "averages yield lower losses when L is increased (the figure), with Adam",
        averages_learn_better,
        "the interval of the paired difference lies below 0, for L of 100 and more, as returned "
        "and converged",
        "fig03a, fig03b",
        "averages shrink towards what was observed; the rate of each is tuned by the same budget "
        "(four rates, on another photograph)",
    ),
    Statement(
        "ergodic",
        "the same with plain gradient descent, as on the poster",
        averages_descend_better,
        "lower for every L of 100 and more",
        "fig03b",
        "one seed; the rate is the best of four",
    ),
    Statement(
        "ergodic",
        "the loss of averages falls as L is increased",
        averages_improve_with_depth,
        "the interval at the largest L lies below that at the least",
        "fig03b",
        "an average over few iterations is near what was observed: so is the last of few",
    ),
    Statement(
        "few steps",
        "the number L of unrolled iterations often needs to be high",
        depth_is_needed,
        "more than 100 for an error of 1e-2, for either K, median and worst sample",
        "fig01",
        "near the DCT it does not; the step ratio and the scale of the data change it",
    ),
    Statement(
        "few steps",
        "which can be a problem for computational resources",
        resources,
        "time and memory grow at least 0.7 times as fast as L",
        "fig01, fig06",
        "memory is what the compiled program states; checkpoints trade it for time",
    ),
    Statement(
        "few steps",
        "if the sums of the deltas converge, the gradient tends to "
        "sigma Delta_D x*^T - tau y* Delta_P^T",
        limit_formula,
        "below 1e-6 in the median and for the worst sample",
        "fig01",
        "samples where the solution map is not differentiable (dependent active rows) are left out",
    ),
    Statement(
        "few steps",
        "100 iterations approximate the optimal pair",
        hundred_iterations,
        "within 1e-2 for the median and the worst sample of either K",
        "fig01",
        "as for L: an easy K hides it",
    ),
    Statement(
        "few steps",
        "Delta_P and Delta_D can be approximated by the deltas of a few last steps",
        few_deltas,
        "a cosine of 0.9 and more, at k = 1 and at k = 30",
        "fig05b, fig05c",
        "step ratio 1; for the linear programme the ratio decides (fig05c)",
    ),
    Statement(
        "few steps",
        "one step is enough to obtain the same overall loss",
        one_step_is_enough,
        "the interval of the recovered share lies at 95 % or above, for each variant, at L and "
        "converged",
        "fig04a, fig04c",
        "a rate for each k, tuned by the same small budget; k = 1 wants a smaller one",
    ),
    Statement(
        "few steps",
        "and saves a substantial amount of resources and time",
        one_step_saves,
        "less than half the time of an epoch, and less than half the memory",
        "fig04a, fig06",
        "the forward solve is paid by every strategy",
    ),
)


def table(folder: Path) -> str:
    """All statements, judged by the records in `folder`."""
    rows = []
    for statement in STATEMENTS:
        finding = statement.judge(folder)
        row = {field: getattr(statement, field) for field in ("poster", "says", "rule")}
        rows.append(
            {
                **row,
                "verdict": f"**{finding.verdict}**",
                "numbers": finding.numbers,
                "figure": statement.figure,
                "confound": statement.confound,
            }
        )
    headings = {
        "poster": "poster",
        "says": "what it says",
        "verdict": "verdict",
        "numbers": "measured (mean ± 95 % interval over seeds)",
        "rule": "holds if",
        "figure": "figure",
        "confound": "confound",
    }
    return markdown_table(rows, headings)


INTRODUCTION = """# The posters' statements

Written by `python paper_figs/statements.py` from the stored records of the experiments. A verdict
follows from the numbers by the rule beside it: *holds* in all of its cases, *in part* in some.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description="The posters' statements, judged by the records.")
    parser.add_argument("--records", type=Path, default=STORED)
    parser.add_argument("--out", type=Path, default=WRITTEN)
    options = parser.parse_args()
    try:
        write_text(options.out, f"{INTRODUCTION}{table(options.records)}\n")
    except ValueError as error:
        print(f"statements: {error}", file=sys.stderr)
        sys.exit(1)
    print(options.out)


if __name__ == "__main__":
    main()
