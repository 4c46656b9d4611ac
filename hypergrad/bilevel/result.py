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

__all__ = ["Chosen", "Hypergradient"]


class Chosen(eqx.Module):
    """What `hypergradient(..., target_error=...)` chose, and whether it was enough.

    `iterations` and `steps` `(...)`: those of the forward and the adjoint solve, a sample, over all
    `rounds`; `tolerance` and `rtol`, where the last round stopped the two; `status`: CONVERGED (the
    target was reached), ITERATIONS_USED_UP, ROUNDING or, at the end of the precision,
    NOT_CERTIFIED.
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
            f"Chosen({reached}, {self.status.label}; at most {worst(self.iterations, '.0f')} "
            f"iterations and {worst(self.steps, '.0f')} adjoint steps in {self.rounds} rounds; "
            f"tolerance={worst(self.tolerance)}, rtol={worst(self.rtol)})"
        )


class Hypergradient(eqx.Module):
    """Everything about one hypergradient.

    `value`, the loss; `grad`, its gradient in the structure of the problem (`h.grad.K`,
    `h.grad.F.weight`; with `parameters`, None in what was not asked for); `grad_x_tilde (..., n)`;
    `grad_solver`, in the structure of the solver (`tau`, `sigma`, `theta`; zero for strategies
    whose limit does not depend on them; with `parameters` both are None); `solution`,
    with its `stats`; `adjoint`, how the backward solve went, and `adjoint_pair`, where it ended, of
    strategies that can go on from there; `error_bound`, where it was asked for, and `chosen`,
    where a target error was.
    """

    value: Float[Array, ""]
    grad: LowerLevel
    grad_x_tilde: Float[Array, "*batch n"] | None
    grad_solver: ChambollePock | None
    solution: Solution
    adjoint: AdjointStats
    adjoint_pair: AdjointPair | None
    error_bound: ErrorBound | None = None
    chosen: Chosen | None = None

    @property
    def state(self) -> State:
        """Where the forward and (if there is one) the adjoint solve ended: `init` of a next call.

        Put together when asked for: a compiled program would give out the pair a second time.
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
