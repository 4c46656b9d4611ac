"""The door of every command: what ends it early is told in one line, a bug by its traceback.

Usage errors end with status 2, unusable data or settings and a machine that fails with 1, an
interruption with 130.
"""

from __future__ import annotations

import contextlib
import dis
import errno
import io
import re
import sys
import sysconfig
from collections.abc import Generator
from pathlib import Path

__all__ = ["DATA", "INTERRUPTED", "USAGE", "explained", "one_line", "parsing", "reason_of"]

USAGE, DATA, INTERRUPTED = 2, 1, 130

# What the system refuses, in words that name the file and say what to do.
_FULL = "no space left for {}: make room, or name a folder on another disk"
_CLOSED = (
    "no permission for {}: ask for it, or name a file that can be read, or a folder that can be "
    "written to"
)
_REFUSED = {
    errno.ENOENT: "there is no file {}",
    errno.EISDIR: "{} is a folder, pass a file",
    errno.ENOTDIR: "{} is a file, pass a folder",
    errno.EEXIST: "{} exists already: name another one",
    errno.ENAMETOOLONG: "the name {} is too long: choose a shorter one",
    errno.ELOOP: "{} is a link that leads back to itself: pass what it should lead to",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "{} is read-only: name a folder that can be written to",
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EIO: "the disk fails at {}: name a folder on another one",
}
_MEMORY = (
    "memory ran out ({}): take a smaller batch, a smaller patch or frame, fewer samples, float32, "
    "or a strategy whose memory does not grow with the iterations"
)

_PACKAGE = str(Path(__file__).parent)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@contextlib.contextmanager
def parsing(program: str) -> Generator[None]:
    """What the parser of a command line refuses, in one line instead of a frame of many.

    >>> with parsing("program"):
    ...     words = "parsed"
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        if said.getvalue():
            print(f"{program}: {_sentences(said.getvalue())}", file=sys.stderr)
        raise
    sys.stderr.write(said.getvalue())


def _sentences(framed: str) -> str:
    """What a frame is about, what it says, the nearest option that there is, where to find all."""
    title, *rows = (row.strip("╭─╮│| ") for row in framed.splitlines())
    parts: list[list[str]] = [[]]
    for row in rows:
        if re.search(r"\w", row):
            parts[-1].append(row)
        else:
            parts.append([])
    message, *more = [" ".join(part) for part in parts if part] or [""]
    nearest = [f"Perhaps you meant {p[1]}" for p in parts if p and p[0].startswith("Perhaps you")]
    message = message if message.startswith(title) else f"{title}: {message}"
    return one_line(". ".join(part.rstrip(". ") for part in (message, *nearest, *more[-1:])))


def explained(error: Exception) -> str | None:
    """What to tell the user in one line; None for a bug, whose traceback is of more use.

    A `ValueError` tells the rule that was broken where this package or a script raised it. From
    within a library it is a bug, as is every `TypeError`.

    >>> explained(FileNotFoundError(2, "No such file or directory", "noisy.png"))
    'there is no file noisy.png'
    >>> explained(TypeError("a bug")) is None
    True
    """
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return one_line(_MEMORY.format(str(error)[:100] or "Python has none left"))
    if isinstance(error, OSError):
        return one_line(_system_error(error))
    if isinstance(error, ImportError) or (isinstance(error, ValueError) and _is_said(error)):
        return one_line(str(error))
    return None


def reason_of(error: BaseException) -> str:
    """Say of which kind an error is, and its message, within an error of one's own.

    >>> reason_of(IsADirectoryError(21, "Is a directory", "photos"))
    'IsADirectoryError: photos is a folder, pass a file'
    """
    message = _system_error(error) if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {message}"


def _system_error(error: OSError) -> str:
    """What the system refused, without its number."""
    if error.errno is None:  # of a library
        return str(error)
    name = "what was asked for" if error.filename is None else str(error.filename)
    if error.errno == errno.ENOTDIR:
        above = (str(folder) for folder in Path(name).parents if folder.is_file())
        name = next(above, name)
    return _REFUSED.get(error.errno, f"{error.strerror}: {{}}").format(name)


def _is_said(error: ValueError) -> bool:
    """Whether a `raise` of the package or of a script said it, and no library did."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return True
    # A library that is compiled has no frame of its own: its error seems to come from our line.
    code = last.tb_frame.f_code
    if code.co_code[last.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return False
    file = code.co_filename
    return file.startswith(_PACKAGE) or not file.startswith(("<", *_INSTALLED))


def one_line(text: str) -> str:
    """Without line breaks, whatever a file is called.

    >>> one_line("a name with a\\nline break")
    'a name with a line break'
    """
    return " ".join(text.split())
