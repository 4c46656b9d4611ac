"""The bound as it is returned."""

from __future__ import annotations

import enum

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from hypergrad._foundation.printing import as_sentence, extent, shares, worst
from hypergrad.problem.lower_level import LowerLevel


class Regime(enum.IntEnum):
    """The regime that certifies the bound for a sample.

    >>> Regime.summary(np.array([1, 1, 0, 1]))
    'active set 75 %, neither 25 %'
    """

    NEITHER = 0
    """No bound is known: a kink too near, a singular system, or functions that no regime knows."""
    ACTIVE_SET = 1
    """The affine pieces at the solution are known, and the system in them is regular."""
    STRONG_CONVEXITY = 2
    """F and G are smooth and G strongly convex."""

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.lower().replace("_", " ")

    @classmethod
    def summary(cls, regime: Int[Array, "..."] | np.ndarray) -> str:
        """The share of each regime in words, the most frequent first."""
        return shares(regime, cls)


class ErrorBound(eqx.Module):
    """Bounds on the distance of a hypergradient from the true one, in Euclidean norms.

    `total`, over all float leaves of the problem; `grad`, one bound a leaf, in the structure of the
    problem; both infinite unless every sample is certified. `certified (...)`, a `Regime` a sample.
    `on_certified`, a bound as `total` is one, for the part of the gradient that the loss sends
    through the certified samples: what the strategy gives for a loss gradient that is 0 elsewhere.
    """

    total: Float[Array, ""]
    grad: LowerLevel
    certified: Int[Array, "*batch"]
    on_certified: Float[Array, ""]

    @as_sentence
    def __repr__(self) -> str:
        summary, codes = shares(self.certified, Regime), np.asarray(self.certified)
        missing = int(np.sum(codes == Regime.NEITHER))
        if not missing:
            return f"ErrorBound({extent(self.total, '.2g')}; certified: {summary})"
        rest = "" if missing == codes.size else f"; without them {worst(self.on_certified, '.2g')}"
        return (
            f"ErrorBound(no bound holds: {missing} of {codes.size} samples are not certified{rest};"
            f" certified: {summary})"
        )
