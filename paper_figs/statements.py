"""Every statement of the two posters beside what was measured: an index, and a section for each.

    python paper_figs/statements.py [--records experiments/records] [--out paper_figs/statements.md]

A verdict follows from the records by the rule that is written beside it, which is applied to every
case; what is written here by hand is the rule, and what else might explain the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from _common import STORED, why_not
from _conclusions import CONCLUSIONS
from _findings import (
    ENOUGH,
    SAME,
    Finding,
    averages_descend_better,
    averages_improve_with_depth,
    averages_learn_better,
    averages_learn_better_converged,
    averages_learn_better_shrunk,
    averages_reach_early_layers,
    depth_is_needed,
    depth_is_needed_for_gradients,
    differentiable,
    early_layers_vanish,
    gradient_vanishes,
    hundred_iterations,
    kernels,
    kernels_where_saturated,
    limit_formula,
    one_delta,
    one_step_at_equal_seconds,
    one_step_is_enough,
    one_step_saves,
    recursion,
    resources,
    thirty_deltas,
    two,
)

from hypergrad._foundation.records import markdown_table, write_text
from hypergrad._foundation.statistics import verdict_of

WRITTEN = Path(__file__).parent / "statements.md"


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a poster says, how it is judged, and what else might explain the numbers."""

    poster: Literal["both", "ergodic", "few steps"]
    claim: str  # in at most twelve words
    says: str
    judge: Callable[[Path], Finding]
    rule: str
    figure: str
    caveat: str


PAIRED = (
    "uniform average: the interval of the paired difference is below 0 at every L of 100 and more"
)

STATEMENTS = (
    Statement(
        "both",
        "The gradient of L iterations is a sum over layers",
        "the gradient in K of L unrolled iterations is a sum over the layers, its factors given by "
        "a backward recursion",
        recursion,
        "within 1e-10 of JAX's own differentiation of the loop",
        "–",
        "the posters leave out the recursion's start, and where alpha_l enters",
    ),
    Statement(
        "both",
        "Proximal operators are smooth enough to differentiate (an assumption)",
        "(an assumption) the proximal operators are sufficiently smooth to take derivatives",
        differentiable,
        "at more than 99 % of the samples, for each lower level and K",
        "–",
        "a prox of L1 or Box has kinks: what counts is whether solutions sit on them",
    ),
    Statement(
        "ergodic",
        "δ_P and δ_D go to the kernels of K, Kᵀ",
        "under appropriate conditions delta_P goes to ker(K) and delta_D to ker(K^T) in some layer "
        "as L grows",
        kernels,
        "medians below 1e-6 relative to the loss's gradient, where no coordinate saturates",
        "fig02a",
        "the layer is L/2, which moves with L",
    ),
    Statement(
        "ergodic",
        "They do so where coordinates saturate",
        "(beyond these conditions) the deltas go to these kernels where coordinates saturate",
        kernels_where_saturated,
        "medians below 1e-6, for each lower level, both kernels",
        "fig02a",
        "there the limit is the kernel of the free rows and columns",
    ),
    Statement(
        "ergodic",
        "Early layers of unrolled iterations add nothing to the gradient",
        "unrolled iterations are prone to vanishing gradients: in the early layers",
        early_layers_vanish,
        "their half gives less than 0.1 % of the gradient, in each lower level",
        "fig02b",
        "an early layer of a converged iteration has nothing to say: its iterate is forgotten",
    ),
    Statement(
        "ergodic",
        "The gradient that K is learned by vanishes",
        "unrolled iterations are prone to vanishing gradients: the gradient that K is learned by",
        gradient_vanishes,
        "its norm falls below a tenth, in each lower level",
        "fig02a",
        "K is shared by all layers: what the early ones lose the late ones have; the loss itself "
        "is another one at another L",
    ),
    Statement(
        "ergodic",
        "Averages keep early layers in the gradient",
        "unrolling averages can help to mitigate that",
        averages_reach_early_layers,
        "for the uniform average the early half gives more than 1 %, in each lower level",
        "fig02b",
        "what early layers add is the derivative of iterates that are not converged: bias, not "
        "information on the solution",
    ),
    Statement(
        "ergodic",
        "Averages give lower losses at large L, by plain descent",
        "averages yield lower losses when L is increased (the figure; plain gradient descent)",
        averages_descend_better,
        "uniform average, as returned: the interval of the paired difference is below 0 at every L "
        "of 100 and more",
        "fig03c",
        "descent over batches; four rates for each strategy and L (at L = 400 the rate of 200)",
    ),
    Statement(
        "ergodic",
        "Averages give lower losses at large L, by Adam",
        "averages yield lower losses when L is increased, with Adam",
        averages_learn_better,
        PAIRED,
        "fig03c",
        "four rates for each strategy and L (at L = 400 the rate of 200); averages shrink towards "
        "what was observed",
    ),
    Statement(
        "ergodic",
        "… by Adam, judged at a converged lower level",
        "averages yield lower losses when L is increased, with Adam, at a converged lower level",
        averages_learn_better_converged,
        PAIRED,
        "fig03c",
        "rates are chosen by what is returned",
    ),
    Statement(
        "ergodic",
        "… by Adam, converged, and shrunk by a fitted factor",
        "averages yield lower losses when L is increased, with Adam, converged and shrunk by a "
        "factor fitted on training data",
        averages_learn_better_shrunk,
        PAIRED,
        "fig03c",
        "takes the shrinkage of averages out",
    ),
    Statement(
        "ergodic",
        "The loss of averages falls with L, more than the last iterate's",
        "the loss of averages falls as L is increased, more than that of last iterates",
        averages_improve_with_depth,
        "both intervals (largest L less least; that less the same of the last iterate) below 0",
        "fig03c",
        "an average over few iterations is near what was observed: so is the last of few",
    ),
    Statement(
        "few steps",
        "The argmin often needs a high number L of iterations",
        "the number L of iterations often needs to be high to approximate the argmin",
        depth_is_needed,
        "more than 100 for an error of 1e-2, worst sample, for at least one K (often, not always)",
        "fig01",
        "the step ratio and the scale of the data change it",
    ),
    Statement(
        "few steps",
        "Its gradient often needs a high number L of iterations",
        "the number L of iterations often needs to be high to approximate the gradient",
        depth_is_needed_for_gradients,
        "more than 100 for an error of 1e-2, worst sample, for at least one K",
        "fig01",
        "samples that are not differentiable are left out",
    ),
    Statement(
        "few steps",
        "Many iterations can be a problem for time and memory",
        "which can be a problem for computational resources",
        resources,
        "time and memory grow at least 0.7 times as fast as L",
        "fig01, fig06a",
        "memory is what the compiled program states; checkpoints trade it for time",
    ),
    Statement(
        "few steps",
        "The gradient tends to the limit formula",
        "if the sums of the deltas converge, the gradient tends to "
        "sigma Delta_D x*^T - tau y* Delta_P^T",
        limit_formula,
        "below 1e-6, or a hundred times what the rate of convergence predicts, median and worst",
        "fig01",
        "samples where the solution map is not differentiable (dependent active rows) are left out",
    ),
    Statement(
        "few steps",
        "100 iterations approximate the optimal pair",
        "100 iterations approximate the optimal pair",
        hundred_iterations,
        "within 1e-2 for the median and the worst sample, x and y, of either K",
        "fig01",
        "an easy K hides it",
    ),
    Statement(
        "few steps",
        "Thirty steps approximate Δ_P and Δ_D",
        "Delta_P and Delta_D can be approximated by a few steps: by 30",
        thirty_deltas,
        "the interval of the batch's cosine above 0.9, in each case",
        "fig05b, fig05c",
        "step ratio 1; for the linear programme other ratios are better (fig05c)",
    ),
    Statement(
        "few steps",
        "One step approximates Δ_P and Δ_D",
        "Delta_P and Delta_D can be approximated by a few steps: by one",
        one_delta,
        "the interval of the batch's cosine above 0.9, in each case",
        "fig05b, fig05c",
        "step ratio 1; a step that is not along the gradient may still learn",
    ),
    Statement(
        "few steps",
        "One step learns to the same loss at equal epochs",
        "one step is enough to obtain the same overall loss",
        one_step_is_enough,
        f"interval of the recovered share above {100 * ENOUGH:.0f} %, and no more than {SAME} dB "
        "behind, at L and converged",
        "fig04a, fig04c",
        "a rate for each k, tuned by the same budget; from a random K most of the gain is easy: "
        "hence the dB; 12 epochs",
    ),
    Statement(
        "few steps",
        "One step learns to the same loss at equal seconds",
        "one step is enough to obtain the same overall loss at equal seconds",
        one_step_at_equal_seconds,
        f"no more than {SAME} dB behind",
        "fig04c",
        "a quarter of the epochs is what the times of an epoch allow",
    ),
    Statement(
        "few steps",
        "One step saves time and memory",
        "one step saves a substantial amount of resources and time",
        one_step_saves,
        "less than half the time of an epoch, and less than half the memory",
        "fig04a, fig06a",
        "the forward solve is paid by every strategy",
    ),
)


COLUMNS = {
    "number": "nr",
    "claim": "claim",
    "verdict": "verdict (cases)",
    "key": "key number",
    "figure": "figure",
}
LONG = {"case": "case", "quantity": "quantity", "value": "value", "holds": "holds"}
WORDS = {True: "yes", False: "no", None: "undecided"}


def judged(statement: Statement, folder: Path) -> Finding | None:
    """What was measured; None, and why on standard error, without records."""
    try:
        finding = statement.judge(folder)
        verdict_of(finding.cases)
        return finding
    except Exception as error:
        print(f"{statement.judge.__name__}: {why_not(error, folder)}", file=sys.stderr)
        return None


def index(found: Sequence[tuple[Statement, Finding | None]]) -> str:
    """A line for each claim: verdict, key number, figure."""
    rows = []
    for number, (statement, finding) in enumerate(found, 1):
        row = {"number": f"[{number}](#{number})", "claim": statement.claim}
        row |= {"verdict": "not measured", "key": "–", "figure": _linked(statement.figure)}
        if finding:
            held = sum(case is True for case in finding.cases)
            counted = f" ({held} of {len(finding.cases)})" if len(finding.cases) > 1 else ""
            row |= {"verdict": f"**{verdict_of(finding.cases)}**{counted}", "key": finding.key}
        rows.append(row)
    return markdown_table(rows, COLUMNS)


def _linked(figures: str) -> str:
    """Names of figures, linked to the stored pictures."""
    stored = {name.partition("_")[0]: name for name in CONCLUSIONS}
    links = [f"[{f}]({stored[f]}.webp)" if f in stored else f for f in figures.split(", ")]
    return ", ".join(links)


def section(number: int, statement: Statement, finding: Finding | None) -> str:
    """What the poster says, the rule, all numbers, and what else might explain them."""
    lines = [
        f"## {number}",
        f"**{statement.claim}.** Poster ({statement.poster}): {statement.says}.",
        f"Holds if: {statement.rule}.",
    ]
    if finding:
        rows = [
            {"case": row.case, "quantity": row.quantity, "value": two(row.value),
             "holds": WORDS[row.holds] if row.judged else "–"}
            for row in finding.rows
        ]  # fmt: skip
        lines.append(markdown_table(rows, LONG))
    return "\n\n".join([*lines, f"Caveat: {statement.caveat}."])


INTRODUCTION = """# The posters' statements

Written by `python paper_figs/statements.py` from the stored records of the experiments. A verdict
follows from the numbers by the rule of its section: *holds* in all of its cases, *in part* in some
of them, *does not hold* in any, *undecided* where none holds and the interval of one contains the
bound. Numbers with a dash in the last column are not judged. Losses are ½‖x − x†‖² per patch of
8×8 pixels, on two photographs that nothing was learned or chosen on; ± is a 95 % interval over
seeds (initial noise, draw of the data, order of batches), not over photographs."""


def document(folder: Path) -> str:
    """The index of all statements, and a section for each."""
    found = [(statement, judged(statement, folder)) for statement in STATEMENTS]
    sections = [section(number, *pair) for number, pair in enumerate(found, 1)]
    return "\n\n".join([INTRODUCTION, index(found), *sections]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="The posters' statements, judged by the records.")
    parser.add_argument("--records", type=Path, default=STORED)
    parser.add_argument("--out", type=Path, default=WRITTEN)
    options = parser.parse_args()
    text = document(options.records)
    try:
        write_text(options.out, text)
    except OSError as error:
        print(f"statements: {why_not(error, options.records)}", file=sys.stderr)
        return 1
    print(options.out)
    return 1 if "not measured" in text else 0


if __name__ == "__main__":
    sys.exit(main())
