"""What `module:name` names in the words of a user."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any

from hypergrad._foundation.errors import reason_of


def imported(module: str, name: str) -> Any:
    """`name` of `module`, wherever it stands.

    **Errors**: an `ImportError` of one line, whatever it is that the module raises, and where.

    >>> imported("math", "pi")
    3.141592653589793
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        itself = f"{module}.".startswith(f"{error.name}.")
        advice = "is its folder on PYTHONPATH?" if itself else "install it"
        raise ImportError(f"{error}: {advice}") from None
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise ImportError(f"{reason_of(error)}{_place(error)}") from None


def _place(error: BaseException) -> str:
    """Where a module raised it; a syntax error says so itself, and what Python refuses has none."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    refused = last.filename.startswith("<") or last.filename in (__file__, importlib.__file__)
    if refused or isinstance(error, SyntaxError):
        return ""
    return f" ({Path(last.filename).name}, line {last.lineno})"
