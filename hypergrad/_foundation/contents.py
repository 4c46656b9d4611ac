"""The contents of a Python value: its numbers, and the user's code that it runs.

JAX compiles a Python object by its identity, so that a loss whose numbers have changed gives the
value of before. Two values with equal contents here compute the same, and the other way round
contents are equal for objects that were made twice, a lambda in a loop or in another process.

The numbers of an object or a function are those of its attributes, its class, its closure, its
defaults and the globals that its code names. Libraries are taken as they are: of a function or a
class that is installed the code and the globals do not count, what it closes over does. Not seen
are numbers behind an attribute of a module, in a file, or in an object that Python cannot look
into.
"""

from __future__ import annotations

import abc
import array
import collections
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The types of immutable values that compare by their contents.
PLAIN = (type(None), bool, int, float, complex, str, bytes)
_INSTALLED = {Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "purelib", "platlib")}
_INSTALLED.add(Path(__file__).parent)


def contents_in_memory(value: Any) -> Hashable:
    """The contents as a key that holds in this process; a JAX array counts by its identity.

    >>> numbers = [1.0]
    >>> before = contents_in_memory(lambda x: numbers[0] * x)
    >>> numbers[0] = 2.0
    >>> before == contents_in_memory(lambda x: numbers[0] * x)
    False
    """
    return _InMemory().of(value)


def contents_on_disk(value: Any) -> str:
    """A digest of the contents that holds in other processes and for other versions of JAX.

    >>> contents_on_disk({"rate": 0.1}) == contents_on_disk({"rate": 0.1})
    True
    """
    return hashlib.sha256(repr(_OnDisk().of(value)).encode()).hexdigest()


class AbstractContents(abc.ABC):
    """A walk through a value; what it meets again is named by when it came first."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, Any]] = {}

    @abc.abstractmethod
    def plain(self, value: Any) -> Hashable:
        """Return a key that differs between numbers and texts."""

    @abc.abstractmethod
    def array(self, array: jax.Array) -> Hashable:
        """Return a key that differs between JAX arrays."""

    @abc.abstractmethod
    def code(self, function: types.FunctionType) -> Hashable:
        """Return a key that differs between the code of functions."""

    @abc.abstractmethod
    def opaque(self, value: Any) -> Hashable:
        """Return a key that differs between opaque values."""

    def of(self, value: Any) -> Hashable:
        if type(value) in PLAIN:
            return self.plain(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self.of(value.tolist()) if value.dtype.hasobject else _of_numbers(value)
        if isinstance(value, jax.Array):
            return self.array(value)
        if isinstance(value, (tuple, frozenset)):  # made anew from equal parts they are equal
            return self._of_parts(value)
        if id(value) in self.met:
            return "met", self.met[id(value)][0]
        # Kept alive, since the address of what is gone is given to another object.
        self.met[id(value)] = len(self.met), value
        return self._of_parts(value)

    def _of_parts(self, value: Any) -> Hashable:
        match value:
            case tuple() | list() | collections.deque():
                return self.of(type(value)), tuple(map(self.of, value))
            case set() | frozenset():
                return self.of(type(value)), tuple(sorted(map(self.of, value), key=repr))
            case bytearray() | array.array():
                return self.of(type(value)), bytes(value)
            case Mapping():
                return self.of(type(value)), self._of_items(value.items())
            case types.FunctionType():
                return self._of_function(value)
            case types.MethodType() | classmethod() | staticmethod():
                bound = getattr(value, "__self__", None)
                return "method", self.of(value.__func__), self.of(bound)
            case functools.partial():
                return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
            case property():
                return "property", self.of(value.fget)
            case types.ModuleType():
                return "module", value.__name__
            case type():
                return self._of_class(value)
            case _:
                return self._of_object(value)

    def _of_object(self, value: Any) -> Hashable:
        if (inside := getattr(value, "__wrapped__", None)) is not None:  # jitted, or cached
            own = self._of_items(getattr(value, "__dict__", {}).items())
            return "wrapped", self.of(type(value)), self.of(inside), own
        attributes = _attributes(value)
        if attributes is None:
            return self.opaque(value)
        return "object", self.of(type(value)), self._of_items(attributes.items())

    def _of_items(self, items: Iterable[tuple[Any, Any]]) -> Hashable:
        return tuple((self.of(key), self.of(part)) for key, part in items)

    def _of_function(self, function: types.FunctionType) -> Hashable:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        inside = {name: _inside(cell) for name, cell in cells}
        outside = {}
        if not _is_installed(function.__module__):
            known = function.__globals__
            outside = {name: known[name] for name in _names(function.__code__) if name in known}
        return (
            self.code(function),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            *(self._of_items(part.items()) for part in (inside, outside, vars(function))),
        )

    def _of_class(self, cls: type) -> Hashable:
        name = "class", cls.__module__, cls.__qualname__
        if _is_installed(cls.__module__):
            return name
        # What Python itself keeps there is no number of the user's; special methods are.
        own = {
            name: part
            for name, part in vars(cls).items()
            if isinstance(part, types.FunctionType) or not re.fullmatch("__.*__|_abc_impl", name)
        }
        return name, self._of_items(own.items()), tuple(map(self.of, cls.__bases__))


class _InMemory(AbstractContents):
    def plain(self, value: Any) -> Hashable:
        return type(value).__name__, repr(value)

    def array(self, array: jax.Array) -> Hashable:
        return _Same(array)

    def code(self, function: types.FunctionType) -> Hashable:
        return function.__code__

    def opaque(self, value: Any) -> Hashable:
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return value


class _OnDisk(AbstractContents):
    def plain(self, value: Any) -> Hashable:
        # A schedule of optax makes floats of its whole numbers when it is called first.
        is_whole = isinstance(value, float) and value.is_integer()
        return repr(int(value) if is_whole else value)

    def array(self, array: jax.Array) -> Hashable:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        return _of_numbers(np.asarray(array))

    def code(self, function: types.FunctionType) -> Hashable:
        name = function.__module__, function.__qualname__
        return name if _is_installed(function.__module__) else _instructions(function.__code__)

    def opaque(self, value: Any) -> Hashable:
        # Where an object lies in memory is another place in every process.
        return type(value).__qualname__, re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class _Same:
    """Equal to itself alone; holds the object, so that its place in memory is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _of_numbers(array: np.ndarray | np.generic) -> Hashable:
    about = type(array).__name__, str(array.dtype), array.shape
    bytes_of_it = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return about, hashlib.sha256(bytes_of_it.data).hexdigest()


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, in slots too; None where Python cannot look into it."""
    slots: dict[str, Any] = {}
    for cls in type(value).__mro__:
        if not _is_installed(cls.__module__):
            names = vars(cls).get("__slots__", ())
            names = (names,) if isinstance(names, str) else names
            slots |= {name: getattr(value, name, None) for name in names}
    if not slots and not hasattr(value, "__dict__"):
        return None
    return {**getattr(value, "__dict__", {}), **slots}


def _inside(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names in a function, and in the functions and comprehensions within it."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for part in inner for n in _names(part))]))


def _instructions(code: types.CodeType) -> Hashable:
    """Code without the place where it stands."""
    constants = tuple(
        _instructions(part) if isinstance(part, types.CodeType) else repr(part)
        for part in code.co_consts
    )
    return code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Return whether a module belongs to Python, to an installed package or to this one."""
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if file is None:
        return found is not None and module != "__main__"
    return not _INSTALLED.isdisjoint(Path(file).parents)
