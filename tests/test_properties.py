"""Laws that every function and every operator obeys, at numbers that hypothesis draws.

Everyday few draws, the same in every run; `pytest --hypothesis-profile thorough` draws twenty times
as many: 10,000 points for every function, dtype and law.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import DTYPES, FUNCTIONS, OPERATORS, SIZE, Numbers, numbers
from hypothesis import given

import hypergrad as hg
from hypergrad.problem.lower_level import cast_floats
from hypergrad.problem.operators import (
    Operator,
    apply,
    apply_transpose,
    bilinear_gradient,
    dense_matrix,
    operator_shape,
)

every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
ROWS = 100


def test_every_function_is_drawn():
    public = {name for name, f in vars(hg.functions).items() if isinstance(f, type)}
    elsewhere = {"AbstractFunction", "DataFidelity"}  # the latter: see draws.py
    assert {name.split()[0] for name in FUNCTIONS} == public - elsewhere


# ----------------------------------------------------------------------------------- functions


def rounded(a: Any, dtype: Any) -> np.ndarray:
    """Numbers that the dtype has, in double precision: the test itself should not round."""
    return np.asarray(a, dtype).astype(float)


def points(draw: Numbers, dtype: Any) -> np.ndarray:
    return rounded(draw.entries(ROWS, SIZE), dtype)


class Drawn(NamedTuple):
    """A function with points `(ROWS, SIZE)` and a step."""

    f: hg.AbstractFunction
    z: np.ndarray
    step: float


def drawn(draw: Numbers, name: str, dtype: Any) -> Drawn:
    f = cast_floats(FUNCTIONS[name](draw), dtype)
    return Drawn(f, points(draw, dtype), float(rounded(draw.magnitudes(), dtype)))


class Evaluation(NamedTuple):
    """All that a function computes, in double precision from here on."""

    prox: np.ndarray
    prox_conjugate: np.ndarray
    value: np.ndarray
    conjugate: np.ndarray
    margin: np.ndarray
    piece: np.ndarray | None


# One program for a function and dtype: compiling is what costs.
@jax.jit
def _evaluate(f: hg.AbstractFunction, z: jax.Array, step: jax.Array) -> tuple:
    p, q = f.prox(z, step), f.prox_conjugate(z, step)
    return p, q, f(z), f.conjugate(z), f.margin(z, step), f.piece(z, step)


def evaluate(f: hg.AbstractFunction, z: np.ndarray, step: float, dtype: Any) -> Evaluation:
    got = _evaluate(f, jnp.asarray(z, dtype), jnp.asarray(step, dtype))
    return Evaluation(*(a if a is None else np.asarray(a, float) for a in got))


def eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def squared(*vectors: Any) -> np.ndarray:
    """The sum of their squared norms, row by row."""
    return sum(np.sum(np.asarray(v, float) ** 2, axis=-1) for v in vectors)


def next_row(a: Any) -> np.ndarray:
    return np.roll(a, 1, axis=0)


@every_dtype
@every_function
@given(draw=numbers)
def test_moreau(name, dtype, draw):
    f, z, step = drawn(draw, name, dtype)
    q = evaluate(f, z, step, dtype).prox_conjugate
    p = step * evaluate(f, z / step, 1 / step, dtype).prox
    # A handful of roundings in each of the two, and one for each member of a group.
    rounding = 16 * eps(dtype) * (np.abs(z) + np.abs(q) + np.abs(p))
    assert np.all(np.abs(p + q - z) <= rounding)


@every_dtype
@every_function
@given(draw=numbers)
def test_proxes_are_firmly_non_expansive(name, dtype, draw):
    """`<p - p', z - z'> >= ||p - p'||^2`."""
    f, z, step = drawn(draw, name, dtype)
    got = evaluate(f, z, step, dtype)
    for p in (got.prox, got.prox_conjugate):
        moved = p - next_row(p)
        rest = z - next_row(z) - moved
        # The error of p, some eps of p and z, times the length of either factor.
        rounding = 32 * eps(dtype) * squared(z, next_row(z), p, next_row(p))
        assert np.all(np.sum(moved * rest, axis=-1) >= -rounding)


@every_dtype
@every_function
@given(draw=numbers)
def test_nothing_beats_the_prox(name, dtype, draw):
    """`phi(v) >= phi(p) + ||v - p||^2 / 2` for what the prox minimises, near by and far away.

    Perturbed in any direction, and towards other points of the domain.
    """
    f, z, step = drawn(draw, name, dtype)
    p = evaluate(f, z, step, dtype).prox

    def phi(v):
        return step * evaluate(f, v, step, dtype).value + squared(v - z) / 2

    least = phi(p)
    assert np.all(np.isfinite(least))
    length = 10.0 ** draw.rng.uniform(-6, 0, (ROWS, 1))
    # A domain has a slack of 64 roundings of 1 at the least, and v may make use of it.
    slack = 64 * eps(dtype) * np.sum(np.abs(z - p), axis=-1)
    for direction in (draw.entries(ROWS, SIZE), next_row(p) - p):
        v = rounded(p + length * direction, dtype)
        # The error of p costs as much as that of z in the value; both sides round.
        rounding = 256 * eps(dtype) * (phi(v) + least + squared(z, p)) + slack
        assert np.all(phi(v) - least >= squared(v - p) / 2 - rounding)


@every_dtype
@every_function
@given(draw=numbers)
def test_proxes_lie_in_their_domains(name, dtype, draw):
    """To the slack of the indicators; outside, the primal-dual gap would be infinite."""
    f, z, step = drawn(draw, name, dtype)
    got = evaluate(f, z, step, dtype)
    assert np.all(np.isfinite(evaluate(f, got.prox, step, dtype).value))
    assert np.all(np.isfinite(evaluate(f, got.prox_conjugate, step, dtype).conjugate))


@every_dtype
@every_function
@given(draw=numbers)
def test_prox_is_affine_on_a_piece(name, dtype, draw):
    f, z, step = drawn(draw, name, dtype)
    got = evaluate(f, z, step, dtype)
    assert np.all(got.margin >= 0)
    if got.piece is None:
        return
    between = evaluate(f, (z + next_row(z)) / 2, step, dtype).prox
    error = np.abs(between - (got.prox + next_row(got.prox)) / 2)
    size = sum(np.abs(a) + np.abs(next_row(a)) for a in (z, got.prox))
    same = got.piece == next_row(got.piece)
    assert np.all((error <= 16 * eps(dtype) * size) | ~same)


# ---- derivatives


class OfProx(NamedTuple):
    """Of a prox: along ones in all its arguments, and two cotangents pulled back to them."""

    pushed: jax.Array
    pulled: tuple[hg.AbstractFunction, jax.Array, jax.Array]


@jax.jit
def derivatives(f, z, step, cotangents):
    """Of both proxes, and of the value and the conjugate."""

    def of_prox(prox) -> OfProx:
        arguments = (f, z, step)
        _, pushed = jax.jvp(prox, arguments, jax.tree.map(jnp.ones_like, arguments))
        return OfProx(pushed, jax.vmap(jax.vjp(prox, *arguments)[1])(cotangents))

    def of_value(value):
        ones = jax.tree.map(jnp.ones_like, (f, z))
        at, pull = jax.vjp(value, f, z)
        return at, pull(jnp.ones_like(at)), jax.jvp(value, (f, z), ones)[1]

    values = of_value(lambda f, v: f(v)), of_value(lambda f, v: f.conjugate(v))
    return of_prox(hg.functions.prox), of_prox(hg.functions.prox_conjugate), values


def is_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@every_dtype
@every_function
@given(draw=numbers)
def test_derivatives_are_finite_and_symmetric(name, dtype, draw):
    """At kinks and at zeros, too: the Jacobian of a prox is taken by its transpose everywhere."""
    f, z, step = drawn(draw, name, dtype)
    c, d = cotangents = np.stack([points(draw, dtype), points(draw, dtype)])
    arrays = cast_floats(tuple(map(jnp.asarray, (z, step, cotangents))), dtype)
    *of_proxes, of_values = derivatives(f, *arrays)
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(of_values))
    for pushed, pulled in of_proxes:
        assert is_finite((pushed, pulled))
        J_c, J_d = np.asarray(pulled[1], float)
        # Projections onto a sphere cancel; the Jacobian is at most 1.
        rounding = 32 * eps(dtype) * np.sqrt(squared(c) * squared(d))
        assert np.all(np.abs(np.sum(J_c * d - J_d * c, axis=-1)) <= rounding)
        # Forwards is backwards: <c, J 1> = <J^T c, 1>, over all arguments.
        terms = [np.asarray(leaf[0], float).ravel() for leaf in jax.tree.leaves(pulled)]
        terms = np.concatenate([*terms, -np.ravel(c * np.asarray(pushed, float))])
        assert abs(np.sum(terms)) <= 64 * eps(dtype) * np.sum(np.abs(terms))


# ----------------------------------------------------------------------------------- operators


@eqx.filter_jit
def products(K: Operator, x: jax.Array, y: jax.Array) -> tuple:
    """With both sides, as a matrix, and differentiated in the parameters."""
    return apply(K, x), apply_transpose(K, y), dense_matrix(K), bilinear_gradient(K, (y, x))


@every_dtype
@pytest.mark.parametrize("name", OPERATORS)
@given(draw=numbers)
def test_adjoints_and_gradients_of_operators(name, dtype, draw):
    """`<K x, y> = <x, K^T y>`, and what Euler says of the gradient of it in the parameters."""
    kind = OPERATORS[name]
    K = cast_floats(kind.make(draw, dtype), dtype)
    m, n = operator_shape(K)
    x, y = (rounded(draw.entries(3, size), dtype) for size in (n, m))
    *both, matrix, gradient = products(K, jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    K_x, KT_y, matrix = (np.asarray(a, float) for a in (*both, matrix))
    # A transform rounds relative to the whole vector, and so is the size of an operator taken.
    K_size, x_size, y_size = map(np.linalg.norm, (matrix, x, y))
    rounding = 16 * eps(dtype) * K_size
    assert np.linalg.norm(K_x - x @ matrix.T) <= rounding * x_size
    assert np.linalg.norm(KT_y - y @ matrix) <= rounding * y_size
    form = np.sum(K_x * y)
    assert abs(form - np.sum(x * KT_y)) <= rounding * x_size * y_size
    if kind.degree is not None:
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(K), strict=True)
        parts = [np.vdot(np.asarray(g, float), np.asarray(p, float)) for g, p in pairs]
        assert abs(sum(parts) - kind.degree * form) <= 4 * rounding * x_size * y_size
