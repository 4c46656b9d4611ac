"""Nothing stale, nothing compiled twice without need: objects with numbers in them."""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import random_data

import hypergrad as hg
from hypergrad._foundation.compiled import compiled
from hypergrad._foundation.contents import contents_in_memory, contents_on_disk
from hypergrad.diagnostics import contraction_factor
from hypergrad.workbench.benchmark._compilations import count_compilations

N = 5
x_tilde, x_true = random_data(3, N)
PROBLEM = hg.LowerLevel(K=hg.operators.differences(N), F=hg.L1(0.1), G=hg.Quadratic(1.0))
FACTOR = 100.0


def _hypergradient(
    loss: Any = hg.bilevel.half_mean_squared_error,
    strategy: hg.AbstractStrategy | None = None,
    problem: hg.LowerLevel = PROBLEM,
) -> hg.Hypergradient:
    strategy = hg.Truncation(1) if strategy is None else strategy
    solver = hg.ChambollePock(10)
    return hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy, loss=loss)


def _value(loss: Any) -> float:
    return float(_hypergradient(loss).value)


@compiled
def _sum_of_numbers(strategy: Any) -> Any:
    """The smallest one with a strategy in it."""
    return sum(
        jnp.sum(leaf) for leaf in jax.tree.leaves(eqx.filter(strategy, eqx.is_inexact_array))
    )


@compiled
def _program(loss: Any) -> Any:
    """The smallest one with a loss in it; those of the package take theirs in the same way."""
    return loss(jnp.asarray(x_tilde), jnp.asarray(x_true))


def _weighted(c: Any, x: Any, x_true: Any) -> Any:
    return jnp.mean(c * (x - x_true) ** 2)


# ------------------------------------------------------------- losses whose numbers change


class _Plain:
    c: Any = 1.0

    def __call__(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)

    def method(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)


class _Slots:
    __slots__ = ("c",)

    def __init__(self) -> None:
        self.c = 1.0

    def __call__(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)


@dataclasses.dataclass
class _Compared:
    """Not hashable, since it compares by its fields."""

    c: float = 1.0

    def __call__(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)


class _Property:
    inner = 1.0

    @property
    def c(self) -> float:
        return self.inner

    def __call__(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)


class _Holding(eqx.Module):
    part: Any

    def __call__(self, x: Any, x_true: Any) -> Any:
        return self.part(x, x_true)


class _Settings:
    c = 1.0


GLOBAL, GLOBALS = 1.0, {"c": 1.0}


Changing = tuple[Any, Callable[[], object]]  # a loss, and what changes its factor to FACTOR


def _attribute(make: Callable[[], Any], name: str = "c", value: Any = FACTOR) -> Changing:
    loss = make()
    return loss, lambda: setattr(loss, name, value)


def _with_array(c: Any) -> _Plain:
    loss = _Plain()
    loss.c = c
    return loss


def _class_attribute() -> Changing:
    class Local(_Plain):
        c = 1.0

    return Local(), lambda: setattr(Local, "c", FACTOR)


def _numpy_in_place() -> Changing:
    loss = _with_array(np.ones(N))
    return loss, lambda: loss.c.__imul__(FACTOR)


def _bound_method() -> Changing:
    loss = _Plain()
    return loss.method, lambda: setattr(loss, "c", FACTOR)


def _nested() -> Changing:
    inner = _Plain()
    parts = {"inner": [inner]}
    return lambda *xs: parts["inner"][0](*xs), lambda: setattr(inner, "c", FACTOR)


def _in_a_module() -> Changing:
    inner = _Plain()
    return _Holding(inner), lambda: setattr(inner, "c", FACTOR)


def _in_a_closure(c: Any) -> Changing:
    return lambda *xs: _weighted(c[0], *xs), lambda: c.__setitem__(0, FACTOR)


def _array_in_a_closure() -> Changing:
    c = np.ones(N)
    return lambda *xs: _weighted(c, *xs), lambda: c.__imul__(FACTOR)


def _name_in_a_closure() -> Changing:
    c = 1.0

    def change() -> None:
        nonlocal c
        c = FACTOR

    return lambda *xs: _weighted(c, *xs), change


def _function_in_a_closure() -> Changing:
    inner, change = _in_a_closure([1.0])
    return lambda *xs: inner(*xs), change


def _two_object_arrays() -> Changing:
    first, second = np.array([1.0, None]), np.array([1.0, None])
    return (lambda *xs: _weighted(first[0] * second[0], *xs)), lambda: second.__setitem__(0, FACTOR)


def _default() -> Changing:
    c = [1.0]

    def loss(x: Any, x_true: Any, c: list[float] = c) -> Any:
        return _weighted(c[0], x, x_true)

    return loss, lambda: c.__setitem__(0, FACTOR)


def _function_attribute() -> Changing:
    def loss(x: Any, x_true: Any) -> Any:
        return _weighted(loss.c, x, x_true)  # pyright: ignore[reportFunctionMemberAccess]

    loss.c = 1.0  # pyright: ignore[reportFunctionMemberAccess]
    return loss, lambda: setattr(loss, "c", FACTOR)


def _global() -> Changing:
    return (lambda *xs: _weighted(GLOBAL, *xs)), lambda: globals().__setitem__("GLOBAL", FACTOR)


def _global_dictionary() -> Changing:
    return (lambda *xs: _weighted(GLOBALS["c"], *xs)), lambda: GLOBALS.__setitem__("c", FACTOR)


def _global_class() -> Changing:
    return (lambda *xs: _weighted(_Settings.c, *xs)), lambda: setattr(_Settings, "c", FACTOR)


def _partial() -> Changing:
    c = np.ones(N)
    return functools.partial(_weighted, c), lambda: c.__imul__(FACTOR)


def _partial_with_another_keyword() -> Changing:
    loss = functools.partial(lambda x, x_true, c: _weighted(c, x, x_true), c=1.0)
    return loss, lambda: loss.keywords.__setitem__("c", FACTOR)


class _Decorator:
    """A decorator that keeps a number beside the function that it wraps."""

    def __init__(self, function: Callable[..., Any], c: float):
        functools.update_wrapper(self, function)
        self.c = c

    def __call__(self, x: Any, x_true: Any) -> Any:
        return self.c * self.__wrapped__(x, x_true)  # pyright: ignore


CHANGES: dict[str, Callable[[], Changing]] = {
    "plain": lambda: _attribute(_Plain),
    "slots": lambda: _attribute(_Slots),
    "compared": lambda: _attribute(_Compared),
    "property": lambda: _attribute(_Property, "inner"),
    "decorated": lambda: _attribute(lambda: _Decorator(functools.partial(_weighted, 1.0), 1.0)),
    "jax_array": lambda: _attribute(lambda: _with_array(jnp.ones(N)), value=jnp.full(N, FACTOR)),
    "class_attribute": _class_attribute,
    "numpy_in_place": _numpy_in_place,
    "bound_method": _bound_method,
    "nested": _nested,
    "in_a_module": _in_a_module,
    "list_in_a_closure": lambda: _in_a_closure([1.0]),
    "deque_in_a_closure": lambda: _in_a_closure(collections.deque([1.0])),
    "buffer_in_a_closure": lambda: _in_a_closure(array.array("d", [1.0])),
    "array_in_a_closure": _array_in_a_closure,
    "name_in_a_closure": _name_in_a_closure,
    "function_in_a_closure": _function_in_a_closure,
    "two_object_arrays": _two_object_arrays,
    "default": _default,
    "function_attribute": _function_attribute,
    "global": _global,
    "global_dictionary": _global_dictionary,
    "global_class": _global_class,
    "partial": _partial,
    "partial_with_another_keyword": _partial_with_another_keyword,
}


# Compiling a hypergradient takes a second: a few of them every day.
IN_HYPERGRADIENTS = ("compared", "numpy_in_place", "list_in_a_closure", "global")
PLACES = [
    *(pytest.param(_program, make, id=f"program-{name}") for name, make in CHANGES.items()),
    *(
        pytest.param(
            _value, make, id=f"value-{name}",
            marks=[pytest.mark.slow] * (name not in IN_HYPERGRADIENTS),
        )
        for name, make in CHANGES.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("value", "make"), PLACES)
def test_a_loss_that_has_changed_has_its_new_value(value, make, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "GLOBAL", 1.0)
    monkeypatch.setitem(GLOBALS, "c", 1.0)
    monkeypatch.setattr(_Settings, "c", 1.0)
    loss, change = make()
    before = float(value(loss))
    assert count_compilations(lambda: value(loss)) == 0
    change()
    assert float(value(loss)) == pytest.approx(FACTOR * before)


def test_a_loss_that_returns_another_shape_is_refused_then_too() -> None:
    loss = _Plain()
    _value(loss)
    loss.c = jnp.ones((2, 1, 1, 1))
    assert np.isfinite(_value(loss))
    loss.__class__ = type("Rows", (_Plain,), {"__call__": lambda self, x, t: jnp.sum(x - t, -1)})
    with pytest.raises(ValueError, match="one float for the whole batch"):
        _value(loss)


SETTINGS: dict[str, Any] = {"solver": hg.ChambollePock(10)}
ELSEWHERE: dict[str, Callable[[Any], float]] = {
    "the deltas": lambda loss: float(
        hg.adjoint_trajectory(
            PROBLEM, x_tilde, x_true, loss=loss, strategy=hg.Truncation(2), **SETTINGS
        ).norm_P.max()
    ),
    "training": lambda loss: hg.train(
        PROBLEM, (x_tilde, x_true), loss=loss, strategy=hg.Truncation(2), epochs=1,
        progress=False, **SETTINGS,
    ).records[-1]["train_loss"],
    "a comparison": lambda loss: hg.compare(
        PROBLEM, x_tilde, x_true, loss=loss, strategies=[hg.Truncation(2)], repeats=1, **SETTINGS
    ).records[0]["gradient_norm"],
}  # fmt: skip


@pytest.mark.usefixtures("quick_reference")
@pytest.mark.parametrize("look", ELSEWHERE.values(), ids=ELSEWHERE)
def test_it_has_its_new_value_everywhere(look) -> None:
    """What is looked at scales with the loss."""
    loss = _Compared()
    before = look(loss)
    loss.c = FACTOR
    assert look(loss) == pytest.approx(FACTOR * before)


# ------------------------------------------------------------------- programs that are kept


class _Module(eqx.Module):
    c: Any

    def __call__(self, x: Any, x_true: Any) -> Any:
        return _weighted(self.c, x, x_true)


class _Scaled(hg.Truncation):
    """A strategy with a float of its own; the field is no array."""

    rate: float = 1.0
    name = "scaled"

    def pullback(self, residuals: Any, cotangent: Any) -> Any:
        return super().pullback(residuals, jax.tree.map(lambda g: self.rate * g, cotangent))


LOSSES: dict[str, Callable[[float], Any]] = {
    "a module": _Module,
    "a module with an array": lambda c: _Module(jnp.asarray(c)),
    "a module with a number of NumPy": lambda c: _Module(np.float64(c)),
    "jax.tree_util.Partial": lambda c: jax.tree_util.Partial(_weighted, c),
}
STRATEGIES: dict[str, Callable[[float], hg.AbstractStrategy]] = {
    "Tolerance": lambda c: hg.LimitFormula(hg.Tolerance(1e-3 * c)),
    "Geometric": lambda c: hg.ErgodicUnrolling(hg.Geometric(0.5 * c)),
    "Tail": lambda c: hg.ErgodicUnrolling(hg.Tail(0.5 * c)),
    "lineax": lambda c: hg.LimitFormula(lx.GMRES(rtol=1e-8 * c, atol=1e-8 * c)),
    "optimistix": lambda c: hg.OptimistixImplicit(lx.GMRES(1e-8 * c, 1e-8 * c)),
    "jaxopt, normal CG": lambda c: hg.JaxoptImplicit(hg.JaxoptNormalCG(1e-8 * c)),
    "jaxopt, GMRES": lambda c: hg.JaxoptImplicit(hg.JaxoptGMRES(1e-8 * c)),
    "jaxopt, BiCGStab": lambda c: hg.JaxoptImplicit(hg.JaxoptBiCGStab(1e-8 * c)),
    "a strategy of the user's": lambda c: _Scaled(1, c),
}


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_with_another_number_is_not_another_program(make) -> None:
    number = _sum_of_numbers(make(1.0))
    assert count_compilations(lambda: _sum_of_numbers(make(1.5))) == 0
    assert _sum_of_numbers(make(1.5)) != number


@pytest.mark.parametrize("name", ["Tail", "lineax", "jaxopt, GMRES", "a strategy of the user's"])
def test_a_hypergradient_with_another_number_is_not_another_program(name) -> None:
    """The same of the program that is in use, for one of each kind."""
    make = STRATEGIES[name]
    jax.block_until_ready(_hypergradient(strategy=make(1.0)))
    assert count_compilations(lambda: _hypergradient(strategy=make(1.5))) == 0


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_a_loss_with_another_number_is_not_another_program(make) -> None:
    value = _program(make(1.0))
    assert count_compilations(lambda: _program(make(1.5))) == 0
    assert _program(make(1.5)) == pytest.approx(1.5 * value)


def test_the_other_number_counts() -> None:
    grad = _hypergradient().grad.K
    for rate in (2.0, 3.0):
        found = _hypergradient(strategy=_Scaled(1, rate)).grad.K
        assert np.asarray(found) == pytest.approx(rate * np.asarray(grad))
    rough, fine = (
        _hypergradient(strategy=hg.LimitFormula(hg.Tolerance(rtol))).adjoint.steps
        for rtol in (0.5, 1e-9)
    )
    assert np.all(np.asarray(rough) < np.asarray(fine))


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.35, 0.5, 1.0])
def test_weights_of_a_tail_are_those_of_a_plain_loop(fraction) -> None:
    length = max(1, round(fraction * 10))
    expected = [0.0] * (10 - length) + [1 / length] * length
    given = jax.jit(lambda fraction: eqx.tree_at(lambda t: t.fraction, hg.Tail(), fraction)(10))
    assert np.asarray(hg.Tail(fraction)(10)) == pytest.approx(expected)
    assert np.asarray(given(fraction)) == pytest.approx(expected)


def test_equal_functions_share_a_program() -> None:
    """A lambda in a loop is the same program, as long as what it closes over is the same."""

    def make(c: float) -> Callable[..., Any]:
        return lambda x, x_true: _weighted(c, x, x_true)

    first = float(_program(make(1.0)))
    assert count_compilations(lambda: _program(make(1.0))) == 0
    assert _program(make(FACTOR)) == pytest.approx(FACTOR * first)
    other = lambda x, x_true: _weighted(1.0, x, x_true) + 1.0  # noqa: E731 a lambda is what is tested
    assert _program(other) == pytest.approx(first + 1.0)


def test_a_loss_may_hold_traced_numbers() -> None:
    def value(c: Any) -> Any:
        loss = _Plain()
        loss.c = c
        return _hypergradient(loss).value

    assert float(jax.jit(value)(FACTOR)) == pytest.approx(FACTOR * float(value(1.0)))
    assert float(jax.jit(value)(1.0)) == pytest.approx(float(value(1.0)))


def test_a_function_with_a_python_object_in_it_is_never_stale() -> None:
    class Shrunk(hg.AbstractFunction):
        settings: Any

        def __call__(self, v: Any) -> Any:
            return self.settings.c * jnp.sum(jnp.abs(v), axis=-1)

        def prox(self, z: Any, step: Any) -> Any:
            kink = step * self.settings.c
            return jnp.sign(z) * jnp.maximum(jnp.abs(z) - kink, 0.0)

    settings = types.SimpleNamespace(c=0.1)
    problem = hg.LowerLevel(K=PROBLEM.K, F=Shrunk(settings), G=PROBLEM.G)
    for weight in (0.1, 0.3):
        settings.c = weight
        fresh = Shrunk(types.SimpleNamespace(c=weight))
        expected = hg.LowerLevel(K=PROBLEM.K, F=fresh, G=PROBLEM.G)
        found = _hypergradient(problem=problem).solution.x
        exact = _hypergradient(problem=expected).solution.x
        assert np.asarray(found) == pytest.approx(np.asarray(exact))
        factors = (contraction_factor(p, x_tilde).stats.residual for p in (problem, expected))
        assert np.asarray(next(factors)) == pytest.approx(np.asarray(next(factors)))


# ----------------------------------------------------------------------------- contents


def test_contents_end_where_values_hold_themselves() -> None:
    loop: list[Any] = [1.0]
    loop.append(loop)

    def again(x: float) -> Any:
        return again(x) if loop else x

    assert contents_in_memory(again) == contents_in_memory(again)
    assert contents_on_disk(again) == contents_on_disk(again)


@pytest.mark.parametrize("contents", [contents_in_memory, contents_on_disk])
def test_contents_tell_values_apart(contents) -> None:
    values = [1, 1.5, True, "1", (1,), [1], {1: 1}, {1}, None, 0.0, -1, np.ones(1), np.ones(2)]
    values += [np.ones(1, np.float32), np.array([1, "a"], object), int, slice(1)]
    values += [lambda x: x + 1, lambda x: x - 1, lambda x: x + 2, lambda y: y.a, np.dtype("f4")]
    assert len({contents(value) for value in values}) == len(values)
