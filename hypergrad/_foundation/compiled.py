"""Compiled functions: which of their arguments' numbers are arguments of the program."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from hypergrad._foundation.contents import PLAIN, contents_in_memory

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class _ByContents:
    """A Python object as an argument of a program: equal where its contents are."""

    def __init__(self, value: Any):
        self.value, self.contents = value, contents_in_memory(value)

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByContents) and self.contents == other.contents

    def __hash__(self) -> int:
        return hash(self.contents)


def as_arguments(tree: Any) -> Any:
    """A pytree as a compiled function takes it; `given_back` undoes it inside.

    Its arrays and its Python floats are arguments of the program: other numbers are not another
    program. Whole numbers, truth values and text are compiled in (they set lengths and choices),
    and so are objects and functions that are no pytrees, by their contents: where those change, the
    program is another one, and where they are equal, it is the same.
    """

    def as_argument(leaf: Any) -> Any:
        if eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, float):
            return jnp.asarray(leaf)  # as a float of Python does, it takes the dtype it meets
        if type(leaf) in PLAIN or (isinstance(leaf, types.FunctionType) and _is_fixed(leaf)):
            return leaf
        return _ByContents(leaf)

    return jax.tree.map(as_argument, tree)


def _is_fixed(function: types.FunctionType) -> bool:
    """Return whether a function is one of this package that closes over nothing."""
    module = function.__module__ or ""  # none for a function of `exec`
    return module.startswith("hypergrad.") and function.__closure__ is None


def given_back(tree: Any) -> Any:
    """Return the tree that `as_arguments` was given, with its floats as arrays."""
    return jax.tree.map(lambda leaf: leaf.value if isinstance(leaf, _ByContents) else leaf, tree)


def shape_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.eval_shape`, which by itself remembers what an object gave before it changed."""
    function = as_arguments(function)
    if isinstance(function, _ByContents):
        return jax.eval_shape(_first_of_equals(function), *arguments)
    return jax.eval_shape(lambda *arguments: given_back(function)(*arguments), *arguments)


@functools.lru_cache(maxsize=256)
def _first_of_equals(function: _ByContents) -> _ByContents:
    """The same object for equal contents: JAX keeps what it knows of a function as long as it."""
    return function


class Program(Generic[_Arguments, _Result]):
    """A function that is compiled for its arguments, as `as_arguments` says."""

    def __init__(self, function: Callable[_Arguments, _Result]):
        def program(arguments: Any, keywords: Any) -> _Result:
            call: Callable[..., _Result] = function
            return call(*given_back(arguments), **given_back(keywords))

        # Its name is that of the program, in what JAX logs and in profiles.
        name = getattr(function, "__name__", type(function).__name__)
        program.__name__ = program.__qualname__ = name
        self._jitted: Any = eqx.filter_jit(program)
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Result:
        return self._jitted(*as_arguments((arguments, keywords)))

    def lower(self, *arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> Any:
        """The program for these arguments, not yet compiled."""
        return self._jitted.lower(*as_arguments((arguments, keywords)))


def compiled(function: Callable[_Arguments, _Result]) -> Program[_Arguments, _Result]:
    """`equinox.filter_jit`, for arguments that may be Python objects with numbers in them."""
    return Program(function)
