"""Keep the old names of what was renamed, with a warning."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, new_names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that finds its old names and warns.

    `new_names` maps an old name to where the object is now, `package.module:name`. It is a string,
    so that a room can point to one above it without importing it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 the hook of a module
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = new_names[name]
        warnings.warn(
            f"{module}.{name} has been renamed: use {new.replace(':', '.')}",
            DeprecationWarning,
            stacklevel=2,
        )
        return pkgutil.resolve_name(new)

    return __getattr__
