"""One hypergradient and everything about it."""

from __future__ import annotations

import equinox as eqx
from jaxtyping import Array, Float, Int

from hypergrad._foundation.printing import as_sentence, extent, worst
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats
from hypergrad.bilevel.error_bound import ErrorBound
from hypergrad.chambolle_pock import AdjointPair, ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel


class TargetReport(eqx.Module):
    """The settings that `hypergradient_to_target` chose, and whether the target was reached.

    `iterations` and `steps` `(...)` of the forward and the adjoint solve per sample, over all
    `rounds`; `tolerance` and `rtol` of the two in the last round; `status`: CONVERGED (the target
    was reached), ITERATIONS_USED_UP, ROUNDING or, at the end of the precision, NOT_CERTIFIED.
    """

    iterations: Int[Array, "*batch"]
    steps: Int[Array, "*batch"]
    tolerance: Float[Array, ""]
    rtol: Float[Array, ""]
    rounds: int = eqx.field(static=True)
    status: Status = eqx.field(static=True)

    @as_sentence
    def __repr__(self) -> str:
        reached = "target reached" if self.status.is_good else "target not reached"
        return (
            f"TargetReport({reached}, {self.status.label}; at most {worst(self.iterations, '.0f')} "
            f"iterations and {worst(self.steps, '.0f')} adjoint steps in {self.rounds} rounds; "
            f"tolerance={worst(self.tolerance)}, rtol={worst(self.rtol)})"
        )


class Hypergradient(eqx.Module):
    """One hypergradient and everything about it.

    `value`, the loss; `grad`, its gradient in the structure of the problem (`h.grad.K`,
    `h.grad.F.weight`; with `parameters`, None in all others); `grad_x_tilde (..., n)`;
    `grad_solver`, in the structure of the solver (`tau`, `sigma`, `theta`; zero for strategies
    whose limit does not depend on them; with `parameters` both are None); `solution`,
    with its `stats`; `adjoint`, the statistics of the backward solve, and `adjoint_pair`, its last
    iterate, of strategies that can continue from there; `error_bound`, if it was asked for;
    `chosen`, the `TargetReport` of `hypergradient_to_target`.
    """

    value: Float[Array, ""]
    grad: LowerLevel
    grad_x_tilde: Float[Array, "*batch n"] | None
    grad_solver: ChambollePock | None
    solution: Solution
    adjoint: AdjointStats
    adjoint_pair: AdjointPair | None
    error_bound: ErrorBound | None = None
    chosen: TargetReport | None = None

    @property
    def state(self) -> State:
        """The last state of the forward and (if there is one) the adjoint solve, as `init`.

        A property, since a compiled program would return the pair a second time.
        """
        forward = self.solution.state
        return State(forward.r, forward.r_bar, forward.y, self.adjoint_pair)

    @as_sentence
    def __repr__(self) -> str:
        lines = [
            f"value={extent(self.value, '.6g')}",
            f"  forward={self.solution.stats}",
            f"  adjoint={self.adjoint}",
        ]
        if self.error_bound is not None:
            lines.append(f"  error_bound={self.error_bound}")
        if self.chosen is not None:
            lines.append(f"  chosen={self.chosen}")
        inside = ",\n".join(lines)
        return f"Hypergradient({inside})"
