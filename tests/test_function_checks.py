"""`check_function`: every false claim is found, and no true one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import DTYPES, FUNCTIONS, SIZE, Numbers

import hypergrad as hg
from hypergrad.problem.lower_level import cast_floats


class Altered(hg.AbstractFunction):
    """`weight ||v||_1`, with methods of it replaced."""

    replaced: dict[str, Callable[..., jax.Array]] = eqx.field(static=True, default_factory=dict)
    weight: float = 0.5

    def _taken(self, method: str, usual: Callable[..., jax.Array], *given: Any) -> jax.Array:
        return self.replaced.get(method, usual)(*given)

    def __call__(self, v):
        return self._taken("value", lambda v: self.weight * jnp.sum(jnp.abs(v), axis=-1), v)

    def prox(self, z, step):
        return self._taken("prox", lambda z, t: soft(z, t * self.weight), z, step)

    def prox_conjugate(self, z, step):
        return self._taken("dual", lambda z, _: jnp.clip(z, -self.weight, self.weight), z, step)

    def conjugate(self, y):
        return self._taken("conjugate", lambda y: jnp.full(y.shape[:-1], jnp.nan), y)


class SaidSeparable(Altered):
    """Said to be separable, which it is not."""

    separable = True


def soft(z: jax.Array, bound: Any) -> jax.Array:
    return z - jnp.clip(z, -bound, bound)


def normalised(z: jax.Array, axis: int | None) -> jax.Array:
    return z / jnp.maximum(1.0, jnp.linalg.norm(z, axis=axis, keepdims=True))


def in_ball(v: jax.Array) -> jax.Array:
    return jnp.where(jnp.linalg.norm(v, axis=-1) <= 1 + 1e-9, 0.0, jnp.inf)


def by_loop(z: jax.Array, bound: Any) -> jax.Array:
    return jax.lax.while_loop(lambda v: jnp.sum(v) > 1e9, lambda v: v * v, soft(z, bound))


WRONG = {
    # name: (what is put in the place of a method, words of the error)
    "a sum over the batch": ({"value": lambda v: jnp.sum(jnp.abs(v))}, r"__call__ .*axis=-1$"),
    "a number for a vector": ({"prox": lambda z, t: jnp.sum(z, -1)}, r"prox must return shape"),
    "another dtype": (
        {"prox": lambda z, t: soft(z, 0.5 * t).astype(jnp.float32)},
        r"prox must return shape \(6,\) and float64",
    ),
    "Python's if": ({"prox": lambda z, t: z if z[0] > 0 else -z}, "must take what JAX traces"),
    "a loop without reverse mode": (
        {"prox": lambda z, t: by_loop(z, 0.5 * t)},
        "differentiable in reverse mode; got ValueError",
    ),
    "a step forgotten": ({"prox": lambda z, t: soft(z, 0.5)}, "prox must minimise"),
    "a hundred thousandth": ({"prox": lambda z, t: 1.00001 * soft(z, 0.5 * t)}, "must minimise"),
    "another set": (
        {"value": in_ball, "prox": lambda z, t: jnp.clip(z, -1, 1)},
        "prox must lie where the value is finite; got a value of inf",
    ),
    "a norm of the batch": (
        {"value": in_ball, "prox": lambda z, t: normalised(z, None)},
        "prox must treat each sample of a batch",
    ),
    "no convex function": (
        {
            "value": lambda v: jnp.sum(jnp.where(v != 0, 1.0, 0.0), -1),
            "prox": lambda z, t: jnp.where(z**2 > 2 * t, z, 0.0),
        },
        "Altered must be convex",
    ),
    "a prox of the conjugate": ({"dual": lambda z, t: soft(z, t)}, "prox_conjugate must be z - "),
    "a conjugate": ({"conjugate": lambda y: jnp.sum(y**2, -1)}, "conjugate must satisfy"),
    "a derivative at 0": (
        {"prox": lambda z, t: jnp.sign(z) * jnp.maximum(jnp.sqrt(z**2) - 0.5 * t, 0)},
        r"prox must have finite derivatives, .* at z = \(0, 0, 0, 0, \.\.\.\)",
    ),
    "held fixed": (
        {"prox": lambda z, t: jax.lax.stop_gradient(soft(z, 0.5 * t))},
        "prox must have a derivative in z that agrees with finite differences",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_found(name):
    replaced, words = WRONG[name]
    if "prox" in replaced:  # and the other one by Moreau, as by default
        shrink = replaced["prox"]
        replaced = {"dual": lambda z, t: z - t * shrink(z / t, 1 / t)} | replaced
    with pytest.raises(ValueError, match=words) as caught:
        hg.check_function(Altered(replaced), 6)
    assert str(caught.value).startswith("Altered")
    assert "\n" not in str(caught.value)


def test_a_claim_is_checked():
    ball = {"value": in_ball, "prox": lambda z, t: hg.L2Ball(1.0).prox(z, t)}
    ball |= {"dual": lambda z, t: hg.L2Ball(1.0).prox_conjugate(z, t)}
    with pytest.raises(ValueError, match="SaidSeparable claims separable = True"):
        hg.check_function(SaidSeparable(ball), 6)


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="size must be a whole number"):
        hg.check_function(hg.L1(0.5), 0)
    with pytest.raises(ValueError, match=r"L1.weight must be a number or have shape \(6,\)"):
        hg.check_function(hg.L1([0.5, 1.0, 1.0, 0.5]), 6)


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_right_passes_the_check(first):
    """Half of the package side by side, which is one program, in a dtype; the rest is below."""
    parts = [make(Numbers(0)) for make in list(FUNCTIONS.values())[first::2]]
    f = cast_floats(hg.SeparableSum(parts, [SIZE] * len(parts)), list(DTYPES.values())[first])
    hg.check_function(f, SIZE * len(parts))


class Cancelling(hg.AbstractFunction):
    """Its prox is the difference of two large numbers where z is far below 0."""

    weight: float
    positive = ("weight",)

    def __call__(self, v):
        return -self.weight * jnp.sum(jnp.log(v), axis=-1)

    def prox(self, z, step):
        return (z + jnp.sqrt(z**2 + 4 * step * self.weight)) / 2


def test_what_cancels_in_single_precision_passes_the_check():
    with jax.enable_x64(False):
        assert Cancelling(0.1).prox(jnp.array([-300.0]), 1.0).dtype == jnp.float32
        hg.check_function(Cancelling(0.1), 96)


def test_a_positive_field_that_is_none_is_refused():
    class Misspelt(Cancelling):
        positive = ("wieght",)

    with pytest.raises(ValueError, match="positive must name fields of it; got wieght, which"):
        hg.LowerLevel(np.eye(3), Misspelt(0.1), hg.Quadratic(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_passes_the_check(name, dtype):
    for seed in range(3):
        hg.check_function(cast_floats(FUNCTIONS[name](Numbers(seed)), dtype), SIZE, seed=seed)
