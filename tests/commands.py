"""Commands as a test gives them, in this process, and one study in miniature."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from hypergrad.workbench.command_line import main as cli

TINY = {
    "patch": 4, "stride": 4, "samples": 16, "held_out_samples": 16, "tuning_samples": 16,
    "epochs": 2, "batch_size": 8, "converged_iterations": 100, "repeats": 1,
}  # fmt: skip
LABELS = ("truncation:k=1", "ergodic:uniform")


class Ran(NamedTuple):
    """What a command gave: exit status, and the two streams."""

    status: int | str | None
    out: str
    err: str


def run(*arguments: object) -> Ran:
    """A command in this process; `--dtype` has to stay that of the tests."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | str | None = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # from the parser
            status = end.code
    return Ran(status, out.getvalue(), err.getvalue())


def assert_one_line(ran: Ran, status: int, *words: str) -> None:
    """The exit status, and on the error stream one line with these words."""
    assert ran.status == status, ran.err
    assert ran.err.startswith("hypergrad: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


def files_in(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix() for path in paths}
