"""The grammar of parts that are named by text: `name[:options]` or `module:name[:options]`.

Options are separated by commas: `field=value`, with a Python literal as value, or a word alone.
Naming a module imports it: only text that the user typed belongs here, never text from a file.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hypergrad._foundation.errors import HypergradError, reason_of


class Spec(NamedTuple):
    """A parsed text.

    `part`, the text without options; `target`, the object that it names; `arguments`, the value of
    each option in a tuple, which is empty for a word alone.
    """

    text: str
    part: str
    target: Any
    arguments: dict[str, tuple[Any, ...]]

    @property
    def options(self) -> dict[str, Any]:
        """The values of all options that have one."""
        return {name: values[0] for name, values in self.arguments.items() if values}

    def check_options(self, names: Collection[str] | None, words: Collection[str] = ()) -> None:
        """Check that all options are among `names` (None: any name will do), and have a value.

        Options among `words` need none.
        """
        for option, values in self.arguments.items():
            if names is not None and option not in names:
                choose = f"choose {', '.join(names)}" if names else "it takes none"
                raise HypergradError(
                    f"Unknown option {option!r} for {self.part!r}; {choose}{_near(option, names)}"
                )
            if not values and option not in words:
                raise HypergradError(
                    f"{self.part!r} needs a value for the option {option!r}; write {option}=…"
                )


def parse_spec(text: str, known: Mapping[str, Any], what: str) -> Spec:
    """Parse `name[:options]`, of a known name, or `module:name[:options]`.

    `what` names the kind of part in errors.

    **Errors**: a `HypergradError` that lists the known names, or quotes what the module raises.

    >>> parse_spec("floor:digits=2,exact", {"floor": round}, "a function").arguments
    {'digits': (2,), 'exact': ()}
    >>> parse_spec("math:pi", {}, "a number").target
    3.141592653589793
    """
    part, _, options = text.partition(":")
    if part in known:
        return Spec(text, part, known[part], _parse_options(options, text))
    near, names = _near(part, known), ", ".join(known)
    rule = f"{what} must be {'one of ' * (len(known) > 1)}{names}{', or ' * bool(known)}module:name"
    name, _, options = options.partition(":")
    if not (part and name.replace(".", "").isidentifier()):
        raise HypergradError(f"{rule}; got {text!r}{near}: choose one")
    part = f"{part}:{name}"
    try:
        target = import_part(part)
    except HypergradError as error:
        raise HypergradError(f"{rule}; got {text!r}{near}: {error}") from None
    return Spec(text, part, target, _parse_options(options, text))


def call_part(text: str, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return `make(*args, **options)`; arguments that it refuses are the mistake of `text`."""
    try:
        return make(*args, **options)
    except HypergradError as error:
        raise HypergradError(f"{text!r}: {error}") from None
    except (TypeError, ValueError) as error:
        raise HypergradError(f"{text!r} does not fit what it names: {error}") from None


def import_part(part: str) -> Any:
    """Return what `module:name` names.

    **Errors**: a `HypergradError` of one line, whatever the module raises, with the place.
    """
    module, _, name = part.partition(":")
    if not (module and name):
        raise HypergradError(f"a custom part must be module:name; got {part!r}: name both")
    try:
        return pkgutil.resolve_name(part)
    except ModuleNotFoundError as error:
        itself = f"{module}.".startswith(f"{error.name}.")
        reason = f"{error}: {'is its folder on PYTHONPATH?' if itself else 'install it'}"
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        reason = f"{reason_of(error)}{_place(error)}"
    raise HypergradError(f"{part} must be importable; got {reason}")


def _place(error: BaseException) -> str:
    """Return where a module raised an error; a syntax error names the place itself."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    by_python = last.filename.startswith("<") or last.filename in (
        pkgutil.__file__,
        importlib.__file__,
    )
    if by_python or isinstance(error, SyntaxError):
        return ""
    return f" ({Path(last.filename).name}, line {last.lineno})"


def _near(name: str, names: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (perhaps {nearest[0]})" if nearest else ""


def _parse_options(options: str, text: str) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    pending = ""
    for piece in options.split(","):
        pending = f"{pending},{piece}" if pending else piece.strip()
        word, equals, literal = (part.strip() for part in pending.partition("="))
        try:
            values = (ast.literal_eval(literal),) if equals else ()
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
            continue  # its value may hold commas
        if word in found:
            raise HypergradError(f"{text!r} must give each option once; got {word} twice")
        if pending:
            found[word] = values
        pending = ""
    if pending:
        raise HypergradError(
            f"option {pending!r} in {text!r} must be name=value with a Python literal as value: "
            "write for example weight=0.1"
        )
    return found
