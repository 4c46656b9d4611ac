"""Parts of the lower level and the loss by name, as a command line gives them.

A name is `Class` of `hypergrad.functions`, `random` for an operator, or `module:attribute` for what
is the user's own; options follow as `:field=value,field=value`, their values Python literals.
Naming a module imports it: only words that the user has typed belong here, never what a file says.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from hypergrad._foundation.checks import as_inexact, check_count, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.imports import imported
from hypergrad.bilevel import Loss
from hypergrad.problem import functions, operators
from hypergrad.problem.functions import AbstractFunction
from hypergrad.testing import check_function

__all__ = [
    "NamedFunction",
    "check_operator_text",
    "import_part",
    "parse_function",
    "parse_loss",
    "parse_operator",
]

_OWN = "module:name of your own, with options as in module:name:weight=0.1"


class NamedFunction(NamedTuple):
    """A convex function that is not built yet: `make(**options)`, perhaps at another weight."""

    text: str
    make: Callable[..., Any]
    options: dict[str, Any]

    @property
    def weight_is_free(self) -> bool:
        """Whether it takes a `weight` that was not given: that is chosen on data, then."""
        return "weight" not in self.options and "weight" in _parameters(self.make)

    def built(self, **more: float) -> AbstractFunction:
        """The function itself.

        **Errors**: a `ValueError` where the options do not make one.
        """
        given = {**self.options, **more}
        weight = _parameters(self.make).get("weight")
        if weight is not None and weight.default is weight.empty and "weight" not in given:
            raise HypergradError(
                f"{self.text!r} needs the option 'weight'; write {self.text}:weight=…"
            )
        f = _call(self.text, functools.partial(self.make, **given))
        if not isinstance(f, AbstractFunction):
            raise HypergradError(
                f"{self.text!r} must give a hypergrad.AbstractFunction; got {describe(f)}: name a "
                "subclass of it, or a function that returns one"
            )
        return f

    def example(self) -> AbstractFunction:
        """The function, at weight 1 where that is free."""
        return self.built(weight=1.0) if self.weight_is_free else self.built()

    def check(self, size: int) -> None:
        """Look whether a function of one's own obeys the laws, on vectors of this size.

        Where its weight is free, at weight 1. Those of hypergrad are not looked at again.

        **Errors**: the `ValueError` of `check_function`, after the words that name the function.
        """
        if self.make in vars(functions).values():
            return
        try:
            check_function(self.example(), size)
        except ValueError as error:
            raise HypergradError(f"{self.text!r}: {error}") from None


def parse_function(text: str) -> NamedFunction:
    """A convex function from `Class[:options]` or `module:name[:options]`.

    `module:name` is a subclass of `AbstractFunction`, or a function that returns such a function.

    **Errors**: a `ValueError` that says what there is.

    >>> import jax.numpy as jnp
    >>> print(parse_function("Huber:weight=0.5,smoothing=1").built()(jnp.array([2.0])))
    0.75
    >>> parse_function("Huber:smoothing=0.5").weight_is_free
    True
    """
    named = {name: f for name, f in vars(functions).items() if _is_built_in(f)}
    make, options = _made_by(text, named, "a function must be one of")
    return NamedFunction(text, make, _options_for(make, options, text))


def parse_operator(text: str, shape: tuple[int, ...]) -> Float[Array, "m n"]:
    """The matrix K `(m, n)` that `random[:options]` or `module:name[:options]` gives.

    `name` is a function of the shape of one sample, `(8, 8)` or `(160,)`; `n` is its product.
    `random` has `rows`, `2 n` by default, of independent normal entries, and norm 1: a poor start.
    Its `seed` is 0 by default.

    **Errors**: a `ValueError` for what gives no such matrix.

    >>> parse_operator("random:rows=5,seed=1", (2, 2)).shape
    (5, 4)
    """
    K = _call(text, functools.partial(_operator_maker(text), shape))
    K = as_inexact(K, f"what {text!r} returns", rule="an (m, n) matrix", advice="return an array")
    n = math.prod(shape)
    if K.ndim != 2 or K.shape[1] != n:
        raise HypergradError(
            f"{text!r} must return a matrix (m, {n}) for samples of shape {shape}; got shape "
            f"{K.shape}: one column for each entry of a sample"
        )
    return K


def check_operator_text(text: str) -> None:
    """Check all of `random[:options]` or `module:name[:options]` that the shape has no part in.

    Before there are samples: the name, its options and, of `random`, their values.

    **Errors**: a `ValueError`, as `parse_operator`.
    """
    make = _operator_maker(text)
    if make.func is _random_operator:
        _call(text, functools.partial(make, (1,)))


def _operator_maker(text: str) -> functools.partial[Any]:
    make, options = _made_by(text, _OPERATORS, "an operator must be")
    return functools.partial(make, **_options_for(make, options, text, data=1))


def _random_operator(
    shape: tuple[int, ...], *, rows: int | None = None, seed: int = 0
) -> Float[Array, "m n"]:
    n = math.prod(shape)
    m = 2 * n if rows is None else rows
    check_count("rows", m)
    check_count("seed", seed, least=0)
    return operators.random(m, n, key=jax.random.key(seed))


_OPERATORS: dict[str, Callable[..., Any]] = {"random": _random_operator}


def parse_loss(text: str) -> Loss:
    """The loss `loss(x, x_true)` that `module:name[:options]` is, one number for a whole batch.

    **Errors**: a `ValueError` for what is no function, or does not take the options.
    """
    loss, options = _own(text)
    return functools.partial(loss, **_options_for(loss, options, text, data=2))


def import_part(text: str) -> Any:
    """What `module:name` is.

    **Errors**: a `ValueError` for what cannot be imported, whatever it is that the module raises.
    """
    module, _, name = text.partition(":")
    if not (module and name):
        raise HypergradError(f"a part of your own must be {_OWN}; got {text!r}: name both")
    try:
        return imported(module, name)
    except ImportError as error:
        raise HypergradError(f"{module}:{name} must be importable; got {error}") from None


def _is_built_in(f: Any) -> bool:
    is_function = isinstance(f, type) and issubclass(f, AbstractFunction)
    return is_function and not inspect.isabstract(f)


def _made_by(
    text: str, named: Mapping[str, Callable[..., Any]], rule: str
) -> tuple[Callable[..., Any], str]:
    """What makes a part, one of those that have a name or one's own, and the options behind it."""
    name, _, options = text.partition(":")
    if name in named:
        return named[name], options
    if options:
        return _own(text)
    raise HypergradError(f"{rule} {', '.join(named)}, or {_OWN}; got {text!r}: choose one")


def _own(text: str) -> tuple[Callable[..., Any], str]:
    """What `module:name` names, and the options behind it."""
    module, _, rest = text.partition(":")
    name, _, options = rest.partition(":")
    part = import_part(f"{module}:{name}")
    if not callable(part):
        raise HypergradError(
            f"{text!r} must name a class or a function; got {describe(part)}: name another"
        )
    return part, options


def _options_for(
    make: Callable[..., Any], options: str, text: str, *, data: int = 0
) -> dict[str, Any]:
    """The options that `make` takes, behind so many arguments that are no options.

    **Errors**: a `ValueError` for an option that `make` does not take, and for one that it needs
    (but for a weight, which may be chosen on data).
    """
    found, taken = _parse_options(options, text), _parameters(make).values()
    if not taken or any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return found
    behind = (p for i, p in enumerate(taken) if i >= data or p.kind is p.KEYWORD_ONLY)
    named = {p.name: p for p in behind if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    part = text.removesuffix(f":{options}")
    for name in found:
        if name not in named:
            choose = f"choose {', '.join(named)}" if named else "it takes none"
            raise HypergradError(f"Unknown option {name!r} for {part!r}; {choose}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in (*found, "weight"):
            raise HypergradError(f"{part!r} needs the option {name!r}; write {part}:{name}=…")
    return found


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name; none where it is compiled, and says nothing of them."""
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}


def _parse_options(options: str, text: str) -> dict[str, Any]:
    """`weight=0.1,shape=(2, 8)`, as the arguments of a call."""
    try:
        call = ast.parse(f"_({options})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(w.arg for w in call.keywords):
            raise HypergradError("an option without a name")
        if len({word.arg for word in call.keywords}) < len(call.keywords):
            raise HypergradError("an option that is given twice")
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, TypeError, ValueError) as error:
        raise HypergradError(
            f"options must be field=value with Python literals, separated by commas; got "
            f"{options!r} in {text!r} ({error}): write for example weight=0.1,smoothing=0.01"
        ) from None


def _call(text: str, make: Callable[[], Any]) -> Any:
    """Its result; what its signature does not take is the user's words."""
    try:
        return make()
    except TypeError as error:
        raise HypergradError(f"{text!r} does not fit what it names: {error}") from None
