"""Return, and differentiate, a weighted average of the iterates."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hypergrad._foundation.checks import (
    as_inexact,
    check_finite,
    check_fraction,
    is_concrete,
    spelt,
)
from hypergrad._foundation.errors import HypergradError
from hypergrad.adjoint import (
    AdjointStats,
    Cotangent,
    Gradients,
    Tape,
    backpropagate,
)
from hypergrad.chambolle_pock import ChambollePock, Solution, State
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies._base import AbstractStrategy, Batch


class AbstractWeights(eqx.Module):
    """Weights `alpha_1, …, alpha_L` of the iterates; they add up to 1."""

    @abc.abstractmethod
    def __call__(self, L: int) -> Float[Array, " L"]:
        """The weights for L iterations."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The weights as they are written on the command line."""


class Uniform(AbstractWeights):
    """`alpha_l = 1 / L`: the average of the posters.

    >>> print(Uniform()(4))
    [0.25 0.25 0.25 0.25]
    """

    def __call__(self, L: int) -> Float[Array, " L"]:
        return jnp.full(L, 1 / L)

    @property
    def label(self) -> str:
        return "uniform"


class Tail(AbstractWeights):
    """Uniform over the last `fraction` of the iterates (at least one of them), 0 before.

    >>> print(Tail(0.5)(4))
    [0.  0.  0.5 0.5]
    """

    fraction: float | Float[Array, ""] = 0.5

    def __check_init__(self) -> None:
        check_fraction("Tail.fraction", self.fraction, "try 0.5", one_allowed=True)

    def __call__(self, L: int) -> Float[Array, " L"]:
        length = jnp.maximum(1.0, jnp.round(self.fraction * L))
        return jnp.where(jnp.arange(float(L)) >= L - length, 1 / length, 0.0)

    @property
    def label(self) -> str:
        return f"tail={spelt(self.fraction)}"


class LinearWeights(AbstractWeights):
    """`alpha_l = 2 l / (L (L + 1))`: late iterates count more.

    >>> print(LinearWeights()(4))
    [0.1 0.2 0.3 0.4]
    """

    def __call__(self, L: int) -> Float[Array, " L"]:
        return jnp.arange(1.0, L + 1) * (2 / (L * (L + 1)))

    @property
    def label(self) -> str:
        return "linear"


class Geometric(AbstractWeights):
    """`alpha_l` proportional to `rate^(L - l)`, `0 < rate < 1`.

    >>> print(Geometric(0.5)(2))
    [0.33333333 0.66666667]
    """

    rate: float | Float[Array, ""] = 0.9

    def __check_init__(self) -> None:
        check_fraction("Geometric.rate", self.rate, "use Uniform() for 1")

    def __call__(self, L: int) -> Float[Array, " L"]:
        powers = self.rate ** jnp.arange(L - 1, -1, -1.0)
        return powers / jnp.sum(powers)

    @property
    def label(self) -> str:
        return f"geometric={spelt(self.rate)}"


def _as_row(weights: Any) -> Array:
    return as_inexact(
        weights,
        "weights",
        rule="weights of the iterates, or one number an iteration",
        advice="pass Uniform(), Tail(0.5), LinearWeights(), Geometric(0.9) or an array",
    )


class Given(AbstractWeights):
    """Weights written out, one an iteration; they must add up to 1."""

    weights: Float[Array, " L"] = eqx.field(converter=_as_row)

    def __check_init__(self) -> None:
        if jnp.ndim(self.weights) != 1:
            raise HypergradError(
                f"weights must be one number an iteration; got shape {jnp.shape(self.weights)}"
            )
        check_finite("weights", self.weights)
        total = np.sum(np.asarray(self.weights)) if is_concrete(self.weights) else 1.0
        if abs(total - 1) > 1e-4:
            raise HypergradError(
                f"weights must add up to 1, so that the output is an average; got "
                f"{total:.6g}: divide them by their sum"
            )

    def __call__(self, L: int) -> Float[Array, " L"]:
        return self.weights

    @property
    def label(self) -> str:
        return "given"


def _as_weights(weights: Any) -> AbstractWeights:
    return weights if isinstance(weights, AbstractWeights) else Given(weights)


class ErgodicUnrolling(AbstractStrategy):
    """The gradient of the average `e[L] = sum_l alpha_l r[l]`, which is also what is returned.

        grad_K = sum_{l=1..L} sigma delta_D[l] (x_tilde + r_bar[l-1])^T - tau y[l] delta_P[l]^T

    by the delta recursion with `alpha_l g` added to its primal bracket in every iteration; `y` is
    averaged alike.

    **Arguments**: `weights`: `Uniform()`, `Tail(fraction)`, `LinearWeights()`, `Geometric(rate)`,
    or an array of L numbers that add up to 1.

    **Cost**: that of `FullUnrolling`.

    **Caveat**: another value, not only another gradient: the average is biased towards the start by
    O(1/L) (Uniform), which acts like shrinkage; compare with fitted shrinkage before concluding.

    **Source**: Brauer & Lorenz (first poster), "ergodic averages".

    >>> import hypergrad as hg
    >>> hg.ErgodicUnrolling(hg.Tail(0.5)).label
    'ergodic:tail=0.5'
    """

    weights: AbstractWeights = eqx.field(converter=_as_weights, default_factory=Uniform)
    name: ClassVar[str] = "ergodic"
    formula: ClassVar[str] = "the delta recursion with alpha_l g in every iteration"
    cost: ClassVar[str] = "time 3 solves, memory L (m + n) a sample"
    caveat: ClassVar[str] = "returns the average, biased towards the start (by O(1/L) if uniform)"
    differentiates_every_iteration: ClassVar[bool] = True
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "uniform": ("weights", Uniform),
        "tail": ("weights", Tail),
        "linear": ("weights", LinearWeights),
        "geometric": ("weights", Geometric),
    }

    def check(self, solver: ChambollePock) -> None:
        if solver.tolerance is not None:
            raise HypergradError(
                "ErgodicUnrolling must know the number of iterations, so it takes no tolerance; "
                "got tolerance set on the solver: drop it, or use Truncation or LimitFormula"
            )
        if isinstance(self.weights, Given):
            count = self.weights.weights.shape[0]
            if count != solver.iterations:
                raise HypergradError(
                    f"weights must hold one number an iteration; got {count} for "
                    f"iterations={solver.iterations}"
                )

    def forward(
        self, problem: LowerLevel, x_tilde: Batch, solver: ChambollePock, init: State | None
    ) -> tuple[Solution, Tape]:
        forward = solver.on(problem, x_tilde)
        start = forward.start(init)
        alpha = self.weights(solver.iterations).astype(x_tilde.dtype)

        def body(carry: Any, alpha_l: Array):
            state, e, y_mean = carry
            state, z = forward.iteration.step(state)
            return (state, e + alpha_l * state.r, y_mean + alpha_l * state.y), z

        zero = forward.start()
        (state, e, y), history = jax.lax.scan(body, (start, zero.r, zero.y), alpha)
        taken = jnp.full(x_tilde.shape[:-1], solver.iterations)
        average = forward.solution(State(e, e, y), taken)
        solution = Solution(average.x, y, average.stats, state)
        return solution, Tape(forward, start, history, alpha)

    def pullback(self, saved: Tape, cotangent: Cotangent) -> Gradients:
        dproblem, dx_tilde, dsolver, _ = backpropagate(saved, cotangent)
        L = saved.forward.solver.iterations
        stats = AdjointStats.exact(L, dx_tilde, products=4 * L)
        return Gradients(dproblem, dx_tilde, dsolver, stats)
