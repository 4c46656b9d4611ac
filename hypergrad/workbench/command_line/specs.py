"""The lower level's functions and operator, and the loss, as the command line names them.

`name` or `module:name` with options, in the grammar of `hypergrad._foundation.specs`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.checks import as_inexact, check_count, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.specs import Spec, call_part, parse_spec
from hypergrad.bilevel import Loss
from hypergrad.problem import functions, operators
from hypergrad.problem.functions import AbstractFunction
from hypergrad.testing import check_function

__all__ = [
    "NamedFunction",
    "check_operator_text",
    "dct",
    "differences",
    "parse_function",
    "parse_loss",
    "parse_operator",
]


class NamedFunction(NamedTuple):
    """A convex function that is not built yet: `make(**options)`, perhaps with another weight."""

    text: str
    make: Callable[..., Any]
    options: dict[str, Any]

    @property
    def weight_is_free(self) -> bool:
        """Return whether a `weight` is missing, and therefore chosen on data."""
        return "weight" not in self.options and "weight" in _parameters(self.make)

    def built(self, **more: float) -> AbstractFunction:
        """Return the function.

        **Errors**: a `HypergradError` where the options do not make one.
        """
        given = {**self.options, **more}
        weight = _parameters(self.make).get("weight")
        if weight is not None and weight.default is weight.empty and "weight" not in given:
            raise HypergradError(
                f"{self.text!r} needs the option 'weight'; write {self.text}:weight=…"
            )
        f = call_part(self.text, self.make, **given)
        if not isinstance(f, AbstractFunction):
            raise HypergradError(
                f"{self.text!r} must give a hypergrad.AbstractFunction; got {describe(f)}: name a "
                "subclass of it, or a function that returns one"
            )
        return f

    def example(self) -> AbstractFunction:
        """Return the function, with weight 1 where that is free."""
        return self.built(weight=1.0) if self.weight_is_free else self.built()

    def check(self, size: int) -> None:
        """Check a custom function on vectors of this size, with weight 1 where that is free.

        **Errors**: the `HypergradError` of `check_function`, after the text of the function.
        """
        if self.make in vars(functions).values():
            return
        f = self.example()
        try:
            check_function(f, size)
        except HypergradError as error:
            raise HypergradError(f"{self.text!r}: {error}") from None


def parse_function(text: str) -> NamedFunction:
    """Return a convex function from `Class[:options]` or `module:name[:options]`.

    `module:name` is a subclass of `AbstractFunction`, or a function that returns such a function.

    **Errors**: a `HypergradError` that lists the choices.

    >>> import jax.numpy as jnp
    >>> print(parse_function("Huber:weight=0.5,smoothing=1").built()(jnp.array([2.0])))
    0.75
    >>> parse_function("Huber:smoothing=0.5").weight_is_free
    True
    """
    spec = _parse(text, {n: f for n, f in vars(functions).items() if _is_built_in(f)}, "a function")
    return NamedFunction(text, spec.target, _checked_options(spec))


def parse_operator(text: str, shape: tuple[int, ...]) -> Float[Array, "m n"]:
    """Return the matrix K `(m, n)` of `name[:options]` or `module:name[:options]`.

    `module:name` is a function of the shape of one sample, `(8, 8)` or `(160,)`, whose product is
    `n`. The names are:

    - `dct`: the DCT without its constant row, `m = n - 1`; 2-D for patches.
    - `dct+random`: the same above random rows of norm 1 and mean 0; `rows` in all, `2 n` by
      default, drawn by `seed`.
    - `dct+differences`: the same above all differences of neighbours.
    - `random`: `rows` (`2 n` by default) of independent normal entries drawn by `seed`, scaled to
      norm 1: a poor start.

    **Raises**: `HypergradError` if the text does not give such a matrix.

    >>> parse_operator("random:rows=5,seed=1", (2, 2)).shape
    (5, 4)
    >>> parse_operator("dct", (8, 8)).shape
    (63, 64)
    """
    spec, options = _operator_spec(text)
    K = call_part(text, spec.target, shape, **options)
    K = as_inexact(K, f"what {text!r} returns", rule="an (m, n) matrix", advice="return an array")
    n = math.prod(shape)
    if K.ndim != 2 or K.shape[1] != n:
        raise HypergradError(
            f"{text!r} must return a matrix (m, {n}) for samples of shape {shape}; got shape "
            f"{K.shape}: one column for each entry of a sample"
        )
    return K


def check_operator_text(text: str) -> None:
    """Check the name and options of an operator before there are samples.

    **Errors**: a `HypergradError`, as `parse_operator`.
    """
    spec, options = _operator_spec(text)
    if spec.part in _OPERATORS:
        call_part(text, spec.target, (2,), **options)


def _operator_spec(text: str) -> tuple[Spec, dict[str, Any]]:
    spec = _parse(text, _OPERATORS, "an operator")
    return spec, _checked_options(spec, data=1)


def dct(shape: tuple[int, ...]) -> Float[Array, "m n"]:
    if len(shape) == 2:
        return operators.dct2((shape[0], shape[1]), constant=False)
    return operators.dct(shape[0], constant=False)


def differences(shape: tuple[int, ...]) -> Float[Array, "m n"]:
    if len(shape) == 2:
        return operators.differences2((shape[0], shape[1]))
    return operators.differences(shape[0])


def _dct_and_random(
    shape: tuple[int, ...], *, rows: int | None = None, seed: int = 0
) -> Float[Array, "m n"]:
    n = math.prod(shape)
    m = 2 * n if rows is None else rows
    check_count("rows", m, least=n)
    check_count("seed", seed, least=0)
    random = jax.random.normal(jax.random.key(seed), (m - n + 1, n))
    random -= jnp.mean(random, axis=1, keepdims=True)
    random /= jnp.linalg.norm(random, axis=1, keepdims=True)
    return jnp.concatenate([dct(shape), random])


def _dct_and_differences(shape: tuple[int, ...]) -> Float[Array, "m n"]:
    return jnp.concatenate([dct(shape), differences(shape)])


def _random(
    shape: tuple[int, ...], *, rows: int | None = None, seed: int = 0
) -> Float[Array, "m n"]:
    n = math.prod(shape)
    m = 2 * n if rows is None else rows
    check_count("rows", m)
    check_count("seed", seed, least=0)
    return operators.random(m, n, key=jax.random.key(seed))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "dct": dct,
    "dct+random": _dct_and_random,
    "dct+differences": _dct_and_differences,
    "random": _random,
}


def parse_loss(text: str) -> Loss:
    """Return the loss `loss(x, x_true)` of `module:name[:options]`, one number per batch.

    **Errors**: a `HypergradError` for what is no function, or does not take the options.
    """
    spec = _parse(text, {}, "a loss")
    return functools.partial(spec.target, **_checked_options(spec, data=2))


def _is_built_in(f: Any) -> bool:
    is_function = isinstance(f, type) and issubclass(f, AbstractFunction)
    return is_function and not inspect.isabstract(f)


def _parse(text: str, known: Mapping[str, Any], what: str) -> Spec:
    spec = parse_spec(text, known, what)
    if not callable(spec.target):
        got = describe(spec.target)
        raise HypergradError(f"{text!r} must name a class or a function; got {got}: name another")
    return spec


def _checked_options(spec: Spec, *, data: int = 0) -> dict[str, Any]:
    """Return the options, which `spec.target` takes behind `data` arguments that are no options.

    **Errors**: a `HypergradError` for an unknown option, and for a missing one (except a weight,
    which may be chosen on data).
    """
    parameters = _parameters(spec.target).values()
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters):
        spec.check_options(None)
        return spec.options
    behind = (p for i, p in enumerate(parameters) if i >= data or p.kind is p.KEYWORD_ONLY)
    named = {p.name: p for p in behind if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    spec.check_options(named)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in (*spec.options, "weight"):
            raise HypergradError(
                f"{spec.part!r} needs the option {name!r}; write {spec.part}:{name}=…"
            )
    return spec.options


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters by name; none where a compiled function does not list them."""
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}
