"""Timing without a clock: what is compiled, what is counted, and who takes turns with whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad._foundation import timing

# ------------------------------------------------------------------------------- compile ahead


def test_compiling_does_not_run() -> None:
    seen = []

    def f(x):
        jax.debug.callback(lambda value: seen.append(float(value)), x)
        return 2 * x

    compiled = timing.compile_ahead(f, jnp.asarray(3.0))
    jax.effects_barrier()
    assert seen == []
    assert float(compiled.call()) == 6.0
    jax.effects_barrier()
    assert seen == [3.0]


def test_call_takes_its_own_arguments_and_others_of_their_shapes() -> None:
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
    compiled = timing.compile_ahead(lambda a, b: a @ b, a, b)
    np.testing.assert_allclose(compiled.call(), [3.0, 12.0])
    np.testing.assert_allclose(compiled(a, 2 * b), [6.0, 24.0])
    with pytest.raises(TypeError):
        compiled(a, jnp.ones((3, 1)))


def test_arguments_that_are_no_arrays_stay_what_they_are() -> None:
    compiled = timing.compile_ahead(lambda x, power: x**power, jnp.asarray(3.0), 2)
    assert float(compiled.call()) == 9.0


@pytest.mark.usefixtures("optimised")
def test_memory_counts_arguments_outputs_and_what_lies_between() -> None:
    def needs_the_square_matrix(x):
        outer = jnp.sin(x[:, None] * x[None, :])
        return outer @ (outer @ x)

    def peak(n: int) -> int:
        bytes_ = timing.compile_ahead(needs_the_square_matrix, jnp.ones(n)).peak_bytes
        assert bytes_ is not None
        return bytes_

    doubles = 8
    for n in (50, 200):
        assert peak(n) >= doubles * (n + n + n * n)
    assert peak(200) > 10 * peak(50)


def test_what_is_compiled_can_be_read() -> None:
    compiled = timing.compile_ahead(lambda a: a @ a, jnp.ones((4, 4)))
    assert "dot" in compiled.text
    assert compiled.compile_seconds > 0


# ---------------------------------------------------------------------------------- interleaved


def test_calls_take_turns_each_after_itself() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    medians = timing.interleaved_medians(calls, repeats=2)
    assert "".join(order) == 2 * "aabbcc"
    assert list(medians) == ["a", "b", "c"]


def test_medians_leave_out_what_follows_another(monkeypatch) -> None:
    now = 0.0
    takes = {
        "a": iter([100.0, 1.0, 20.0, 50.0, 30.0, 3.0]),
        "b": iter([100.0, 7.0, 20.0, 5.0, 30.0, 6.0]),
    }

    def call(name: str) -> None:
        nonlocal now
        now += next(takes[name])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {name: lambda name=name: call(name) for name in takes}
    assert timing.interleaved_medians(calls, repeats=3) == {"a": 3.0, "b": 6.0}


def test_the_clock_stops_when_the_result_is_there(monkeypatch) -> None:
    """A call returns at once; what counts is when its result is ready."""
    now = 0.0

    def wait(result: float) -> float:
        nonlocal now
        now += result
        return result

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing.jax, "block_until_ready", wait)
    assert timing.interleaved_medians({"a": lambda: 4.0}, repeats=1) == {"a": 4.0}


# -------------------------------------------------------------------------------------- floor


def _dots(jaxpr) -> int:
    """The matrix products that a jaxpr makes, those of a loop as often as it turns."""
    count = 0
    for equation in jaxpr.eqns:
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        turns = equation.params.get("length", 1)
        count += equation.primitive.name == "dot_general"
        count += turns * sum(map(_dots, inner))
    return count


@pytest.mark.parametrize("L", [1, 7])
def test_the_floor_is_two_products_an_iteration(L: int) -> None:
    K, x = jnp.ones((3, 2)), jnp.ones((4, 2))
    jaxpr = jax.make_jaxpr(lambda K, x: timing.matrix_products_alone(K, x, L))(K, x).jaxpr
    assert _dots(jaxpr) == 2 * L


def test_each_product_of_the_floor_feeds_the_next() -> None:
    rng = np.random.default_rng(0)
    K, x = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    actual = timing.matrix_products_alone(jnp.asarray(K), jnp.asarray(x), 5)
    expected = x @ np.linalg.matrix_power(K.T @ K, 5)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
