"""A training step on all devices against one on one of them, in a process of its own.

Run by the section `devices`; prints its measurements as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from hypergrad._foundation.timing import interleaved_medians
from hypergrad.bilevel import half_mean_squared_error
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.learning import make_update
from hypergrad.learning.devices import Placement, count_collectives, data_parallel
from hypergrad.learning.variables import Variables
from hypergrad.learning.warm_start import ComputeGradient, make_batch_gradient
from hypergrad.problem import operators
from hypergrad.problem.functions import L1, Quadratic
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import Truncation

__all__ = []


def _relative_difference(tree: Any, reference: Any) -> float:
    """The largest of its leaves."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    return max(
        float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
        for a, b in pairs
        if np.any(np.asarray(b))
    )


def _gradient(
    place: Placement, compute_gradient: ComputeGradient, problem: LowerLevel, rows: Any
) -> LowerLevel:
    on_place = eqx.filter_jit(place.shard(compute_gradient))
    x_tilde, x_true = place.rows(rows)
    return on_place(place.replicate(problem), x_tilde, x_true, None).grad


def _step(place: Placement, compute_gradient: ComputeGradient, problem: LowerLevel, rows: Any):
    """A step of training as a call, rows brought from the host, and its compiled text."""
    optimizer, variables = optax.adam(1e-3), Variables(problem, lambda p: p.K)
    update = make_update(variables, place.shard(compute_gradient), optimizer, None, 0.0)
    state = place.replicate((problem, optimizer.init(variables.free(problem))))
    compiled = update.lower(*state, *place.rows(rows), None).compile()
    return lambda: compiled(*state, *place.rows(rows), None), compiled.compiled.as_text()


def measure(m: int, n: int, batch: int, iterations: int, repeats: int) -> dict[str, Any]:
    """The gradient, the collectives and the time of a step."""
    rng = np.random.default_rng(0)
    x_true = rng.standard_normal((batch, n))
    rows = (x_true + 0.1 * rng.standard_normal((batch, n)), x_true)
    K = operators.random(m, n, key=jax.random.key(0))
    problem = LowerLevel(K=K, F=L1(0.15), G=Quadratic(1.0))
    compute_gradient = make_batch_gradient(
        ChambollePock(iterations), Truncation(1), half_mean_squared_error, None
    )
    one, several = Placement(), Placement(data_parallel())
    gradients = [_gradient(place, compute_gradient, problem, rows) for place in (several, one)]
    (step, text), (alone, _) = (
        _step(place, compute_gradient, problem, rows) for place in (several, one)
    )
    seconds = interleaved_medians({"several": step, "one": alone}, repeats=repeats)
    collectives = count_collectives(text)
    all_reduces = collectives.pop("all-reduce", 0)
    return {
        "relative_difference": _relative_difference(*gradients),
        "all_reduces": all_reduces,
        "other_collectives": sum(collectives.values()),
        "milliseconds": 1e3 * seconds["several"],
        "over_one_device": seconds["several"] / seconds["one"],
    }


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    address, processes, process = (told.pop(name) for name in ("address", "processes", "process"))
    if processes > 1:
        jax.distributed.initialize(address, processes, process)
    print(json.dumps(measure(**told)))
