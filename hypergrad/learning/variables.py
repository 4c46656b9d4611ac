"""What is learned, and in what: the leaves of a problem as free variables."""

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
from hypergrad.problem.functions import AbstractFunction
from hypergrad.problem.lower_level import LowerLevel, select_leaves
from hypergrad.problem.operators import FilterBank, operator_norm

__all__ = ["K_is_a_gauge", "Variables", "rescale_K"]


def _child(node: Any, key: Any) -> Any:
    """One step along a key path."""
    match key:
        case jax.tree_util.SequenceKey(idx=index):
            return node[index]
        case jax.tree_util.DictKey(key=name):
            return node[name]
        case jax.tree_util.GetAttrKey(name=name):
            return getattr(node, name)
        case _:
            return None  # inside a pytree of another kind, where nothing declares itself positive


def _positive_mask(problem: LowerLevel) -> Any:
    """True for the leaves that their function declares positive."""

    def is_positive(path: tuple[Any, ...], _: Any) -> bool:
        *way, last = path
        node: Any = problem
        for key in way:
            node = _child(node, key)
        return isinstance(node, AbstractFunction) and getattr(last, "name", None) in node.positive

    return jax.tree_util.tree_map_with_path(is_positive, problem)


class Variables:
    """Between the problem and the free variables that the optimiser sees (None where fixed)."""

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
        """The learned leaves as they are written after the problem: `.K, .F.weight`."""
        leaves = jax.tree_util.tree_leaves_with_path(self.mask)
        return ", ".join(jax.tree_util.keystr(path) for path, learned in leaves if learned)

    def _flagged(self, problem: LowerLevel) -> Iterator[tuple[bool, Array]]:
        leaves = jax.tree.leaves(eqx.filter(problem, self.mask))
        return zip(jax.tree.leaves(self.in_log), leaves, strict=True)

    def free(self, problem: LowerLevel) -> Any:
        """The learned leaves, positive ones as their logarithm."""
        learned = eqx.filter(problem, self.mask)
        return jax.tree.map(lambda log, p: jnp.log(p) if log else p, self.in_log, learned)

    def problem(self, free: Any, problem: LowerLevel) -> LowerLevel:
        """The problem with its learned leaves set from the free variables."""
        learned = jax.tree.map(lambda log, v: jnp.exp(v) if log else v, self.in_log, free)
        return eqx.combine(learned, problem)

    def gradient(self, gradient: LowerLevel, problem: LowerLevel) -> Any:
        """The gradient in the free variables: `d/d log p = p d/dp`."""
        gradient, learned = eqx.filter((gradient, problem), (self.mask, self.mask))
        return jax.tree.map(lambda log, g, p: g * p if log else g, self.in_log, gradient, learned)


# Operators that are linear in what is learned of them.
_LINEAR = (jax.Array, lx.MatrixLinearOperator, FilterBank)


def rescale_K(problem: LowerLevel) -> LowerLevel:
    """K at norm 1: its scale is a gauge there, and would drift."""
    norm = operator_norm(problem.K)
    floats, rest = eqx.partition(problem.K, eqx.is_inexact_array)
    K = eqx.combine(jax.tree.map(lambda leaf: leaf / norm, floats), rest)
    return eqx.tree_at(lambda p: p.K, problem, K)


def K_is_a_gauge(problem: LowerLevel, variables: Variables) -> bool:
    """Whether K is learned although its scale changes nothing, and can be scaled."""
    is_learned = any(jax.tree.leaves(variables.mask.K))
    return problem.scale_of_K_is_free and is_learned and isinstance(problem.K, _LINEAR)
