"""The status of a solve: one enumeration for both sides, one entry per sample."""

from __future__ import annotations

import enum
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from hypergrad._foundation.printing import shares


class Status(enum.IntEnum):
    """The way in which a forward or an adjoint solve ended.

    Stored in results as an integer array with one entry a sample; data, never only a warning.

    >>> Status.summary(np.array([0, 0, 1]))
    'converged 66.7 %, iterations used up 33.3 %'
    >>> Status(1)
    <Status.ITERATIONS_USED_UP: 1>
    """

    CONVERGED = 0
    """The residual is below the tolerance; for an adjoint, also: exact for what was unrolled.

    Only from `Exact` does it also say that the system was regular, and the dual solution unique.
    """
    ITERATIONS_USED_UP = 1
    """The iterations ended first, or the adjoint was cut off on purpose: see the residual."""
    MINIMUM_NORM = 2
    """Singular but consistent, solved with minimum norm (`Exact`; elsewhere it is CONVERGED)."""
    NONDIFFERENTIABLE = 3
    """On a kink, or the dual solution is one of several: so is the gradient (`Exact`)."""
    NOT_UNIQUE = 4
    """More than one lower-level solution; the one of minimum norm is returned (`Exact`)."""
    INCONSISTENT = 5
    """The linear system has no solution: the limit formula does not hold."""
    NOT_CERTIFIED = 6
    """The solver gave up, or no error bound came down to what was asked for."""
    NON_FINITE = 7
    """NaN or infinity came up."""
    ROUNDING = 8
    """Rounding stopped it above the tolerance: this precision resolves no smaller residual."""
    UNKNOWN = 9
    """The strategy does not know how good its adjoint is (JAX differentiated it)."""

    @property
    def is_good(self) -> bool:
        """Return whether the numbers can be used as they are; `throw=True` raises on the others."""
        return self in (Status.CONVERGED, Status.MINIMUM_NORM)

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.lower().replace("_", " ")

    @classmethod
    def summary(cls, status: Int[Array, "..."] | np.ndarray) -> str:
        """The share of each status in words, the most frequent first."""
        words = shares(status, cls)
        return words.removesuffix(" 100 %") if np.size(status) == 1 else words


_GOOD = np.array([status.value for status in Status if status.is_good], np.int32)


def throw_if_bad(tree: Any, status: Array, what: str) -> Any:
    """Return the tree; running it raises if a status is not good, and names the first of those."""
    bad = ~jnp.isin(status, _GOOD).ravel()
    messages = [
        f"{what} did not succeed for every sample, one is {code.label!r}: call with throw=False "
        "and see stats"
        for code in Status
    ]
    return eqx.branched_error_if(tree, bad, status.ravel()[jnp.argmax(bad)], messages)
