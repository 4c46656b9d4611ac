"""Errors of this package, and how a command reports errors: mistakes in one line, bugs in full.

Usage errors end with status 2, unusable data or settings and a failing machine with 1, an
interruption with 130.
"""

from __future__ import annotations

import errno
from pathlib import Path

USAGE, DATA, INTERRUPTED = 2, 1, 130


class HypergradError(ValueError):
    """A rule that arguments, data or settings break; the message says what to do.

    >>> import hypergrad as hg
    >>> try:
    ...     hg.Truncation(0)
    ... except hg.HypergradError as error:
    ...     print(error)
    k must be a whole number of at least 1; got 0: pass k=1 or more
    """

    # Python knows no signature of an exception without it, and help() would show none.
    def __init__(self, message: object) -> None:
        ValueError.__init__(self, message)


HypergradError.__module__ = "hypergrad"  # its public name, in tracebacks

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


def user_message(error: Exception) -> str | None:
    """Return what to tell the user in one line; None for a bug, whose traceback is of more use.

    >>> user_message(FileNotFoundError(2, "No such file or directory", "noisy.png"))
    'there is no file noisy.png'
    >>> user_message(HypergradError("k must be at least 1; got 0: pass k=1 or more"))
    'k must be at least 1; got 0: pass k=1 or more'
    >>> user_message(ValueError("a bug")) is None
    True
    """
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return one_line(_MEMORY.format(str(error)[:100] or "Python has none left"))
    if isinstance(error, OSError):
        return one_line(_system_error(error))
    return one_line(str(error)) if isinstance(error, (ImportError, HypergradError)) else None


def reason_of(error: BaseException) -> str:
    """Return the kind of an error and its message, to quote within another error.

    >>> reason_of(IsADirectoryError(21, "Is a directory", "photos"))
    'IsADirectoryError: photos is a folder, pass a file'
    """
    if isinstance(error, HypergradError):
        return str(error)
    message = _system_error(error) if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {message}"


def _system_error(error: OSError) -> str:
    """Return what the system refused, without its number."""
    if error.errno is None:  # of a library
        return str(error)
    name = "what was asked for" if error.filename is None else str(error.filename)
    if error.errno == errno.ENOTDIR:
        above = (str(folder) for folder in Path(name).parents if folder.is_file())
        name = next(above, name)
    return _REFUSED.get(error.errno, f"{error.strerror}: {{}}").format(name)


def one_line(text: str) -> str:
    """Return the text without line breaks, which even the name of a file can hold.

    >>> one_line("a name with a\\nline break")
    'a name with a line break'
    """
    return " ".join(text.split())
