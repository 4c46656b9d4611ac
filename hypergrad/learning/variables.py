"""Map the learned leaves of a problem to the free variables of the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.samples import safe_norm
from hypergrad.problem.functions import AbstractFunction
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.problem.operators import FilterBank, operator_norm

__all__ = ["Variables", "rescale_K", "scale_is_free"]


def _child(node: Any, key: Any) -> Any:
    """Return the child of a pytree node at a key."""
    match key:
        case jax.tree_util.SequenceKey(idx=index):
            return node[index]
        case jax.tree_util.DictKey(key=name):
            return node[name]
        case jax.tree_util.GetAttrKey(name=name):
            return getattr(node, name)
        case _:
            return None  # a pytree of another kind declares no positive leaves


def _positive_mask(problem: LowerLevel) -> Any:
    """Return a pytree that is True at the leaves that their function declares positive."""

    def is_positive(path: tuple[Any, ...], _: Any) -> bool:
        *parents, last = path
        node: Any = problem
        for key in parents:
            node = _child(node, key)
        return isinstance(node, AbstractFunction) and getattr(last, "name", None) in node.positive

    return jax.tree_util.tree_map_with_path(is_positive, problem)


class Variables:
    """Convert between the problem and the optimiser's free variables (None for fixed leaves)."""

    def __init__(self, problem: LowerLevel, trainable: Callable[[LowerLevel], Any]):
        self.mask = select_leaves(problem, trainable, "trainable")
        self.in_log = eqx.filter(_positive_mask(problem), self.mask)
        for log, leaf in self._flagged(problem):
            if log and not np.all(np.asarray(leaf) > 0):
                raise HypergradError(
                    "a positive leaf is learned in the log, so it must start above 0; got "
                    f"{np.min(leaf):g}"
                )

    @property
    def names(self) -> str:
        """The paths of the learned leaves in the problem: `.K, .F.weight`."""
        leaves = jax.tree_util.tree_leaves_with_path(self.mask)
        return ", ".join(jax.tree_util.keystr(path) for path, learned in leaves if learned)

    def _flagged(self, problem: LowerLevel) -> Iterator[tuple[bool, Array]]:
        leaves = jax.tree.leaves(eqx.filter(problem, self.mask))
        return zip(jax.tree.leaves(self.in_log), leaves, strict=True)

    def free(self, problem: LowerLevel) -> Any:
        """Return the learned leaves, positive ones as their logarithm."""
        learned = eqx.filter(problem, self.mask)
        return jax.tree.map(lambda log, p: jnp.log(p) if log else p, self.in_log, learned)

    def problem(self, free: Any, problem: LowerLevel) -> LowerLevel:
        """Return the problem with its learned leaves set from the free variables."""
        learned = jax.tree.map(lambda log, v: jnp.exp(v) if log else v, self.in_log, free)
        return eqx.combine(learned, problem)

    def gradient(self, gradient: LowerLevel, problem: LowerLevel) -> Any:
        """Return the gradient in the free variables: `d/d log p = p d/dp`."""
        gradient, learned = eqx.filter((gradient, problem), (self.mask, self.mask))
        return jax.tree.map(lambda log, g, p: g * p if log else g, self.in_log, gradient, learned)

    def error_bound(self, bounds: LowerLevel, problem: LowerLevel) -> Array:
        """Return a bound on the error of that gradient, from one on each leaf of the problem's."""
        bounds, learned = eqx.filter((bounds, problem), (self.mask, self.mask))
        in_free = jax.tree.map(
            lambda log, e, p: jnp.max(p) * e if log else e, self.in_log, bounds, learned
        )
        return safe_norm(jnp.stack(jax.tree.leaves(in_free)))


# Operators that are linear in their learned arrays.
_LINEAR = (jax.Array, lx.MatrixLinearOperator, FilterBank)


def rescale_K(problem: LowerLevel) -> LowerLevel:
    """Rescale K to norm 1: where its scale is free, it would drift."""
    norm = operator_norm(problem.K)
    floats, rest = eqx.partition(problem.K, eqx.is_inexact_array)
    K = eqx.combine(jax.tree.map(lambda leaf: leaf / norm, floats), rest)
    return eqx.tree_at(lambda p: p.K, problem, K)


def scale_is_free(problem: LowerLevel, variables: Variables) -> bool:
    """Return whether K is learned, can be rescaled, and its scale does not change the solution."""
    is_learned = any(jax.tree.leaves(variables.mask.K))
    return problem.scale_of_K_is_free and is_learned and isinstance(problem.K, _LINEAR)
