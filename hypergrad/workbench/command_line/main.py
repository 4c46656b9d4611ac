"""The command line: `hypergrad compare | train | restore | report | bench | strategies`.

Usage errors end with status 2, unusable data or settings with 1, an interruption with 130; in each
case with one line and without a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import tyro
from rich.console import Console

from hypergrad._foundation.errors import DATA, INTERRUPTED, USAGE, one_line, user_message
from hypergrad.workbench.command_line.commands import (
    COMMANDS,
    Bench,
    Command,
    Compare,
    DeviceOptions,
    PartOptions,
    Report,
    Restore,
    RunOptions,
    Strategies,
    Train,
)

if TYPE_CHECKING:  # imported once the settings of JAX are made
    from hypergrad.workbench.restored_files import Restored

__all__ = ["main"]

# Programs that took longer to compile (s) are kept on disk; reading one takes about a tenth of it.
_WORTH_KEEPING = 0.1

# JAX makes every device of a CPU, threads and all, before anything else happens.
_MOST_DEVICES = 4096


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        print(f"hypergrad {_version()}")
        return 0
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        console.print(f"hypergrad: {_no_command(words[0])}", markup=False)
        return USAGE
    command = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType] a union of dataclasses is a tyro type
        args=words,
        prog="hypergrad",
        description="Hypergradients of bilevel problems, side by side (--version: the version).",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    try:
        if isinstance(command, Strategies):
            _list_strategies()
        elif isinstance(command, Compare):
            _study("compare", command.run, command.parts, command.on, command.strategies)
        elif isinstance(command, Restore):
            _restore(command)
        elif isinstance(command, Report):
            _report(command)
        elif isinstance(command, Bench):
            return _bench(command)
        else:
            assert isinstance(command, Train)
            if command.images is not None:
                _train_on_images(command, command.images)
            else:
                _study("train", command.run, command.parts, command.on, (command.strategy,))
        sys.stdout.flush()  # here, where a full disk can still be told
    except _UsageError as error:
        console.print(f"hypergrad: {one_line(str(error))}", markup=False)
        return USAGE
    except _EndedError as ended:
        text, status = ended.args
        console.print(f"\nhypergrad: {text}", markup=False)
        return status
    except KeyboardInterrupt:
        console.print("\nhypergrad: interrupted; what is written is whole", markup=False)
        return INTERRUPTED
    except Exception as error:
        if (line := user_message(error)) is None:
            raise
        console.print(f"hypergrad: {line}", markup=False)
        return DATA
    return 0


def _version() -> str:
    """Return the installed version."""
    import importlib.metadata

    try:
        return importlib.metadata.version("hypergrad-jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown version (not installed)"


def _no_command(word: str) -> str:
    """Return what to say of a first word that is no command, with the nearest one."""
    import difflib

    nearest = difflib.get_close_matches(word, COMMANDS, n=1)
    meant = f"perhaps you meant {nearest[0]}; " if nearest else ""
    choices = ", ".join(COMMANDS)
    return one_line(
        f"a command must be one of {choices}; got {word!r}: {meant}see hypergrad --help"
    )


class _UsageError(Exception):
    """The words of the command line do not make sense."""


class _EndedError(Exception):
    """The user or the machine stopped a run; its arguments are the text and the exit status."""


def _ended(what: str, out: Path, status: int) -> _EndedError:
    """Says what is finished and how to go on."""
    done = ", ".join(sorted(path.name for path in out.glob("*.*"))) or "nothing yet"
    return _EndedError(
        f"{what}; finished and whole in {out}: {done}. "
        f"Give the same command with --out {out} to go on.",
        status,
    )


def _study(
    name: str,
    options: RunOptions,
    parts: PartOptions,
    on: DeviceOptions,
    strategies: tuple[str, ...],
) -> None:
    # The command line owns the process, so it may set JAX's global precision; the library may not.
    import jax

    jax.config.update("jax_enable_x64", options.dtype == "float64")
    if options.quick:
        _compile_quickly()
    _start_processes(on)
    _keep_programs()
    from hypergrad.chambolle_pock import ChambollePock
    from hypergrad.learning.devices import data_parallel
    from hypergrad.strategies import parse_strategy
    from hypergrad.workbench.command_line.specs import (
        check_operator_text,
        parse_function,
        parse_loss,
    )
    from hypergrad.workbench.studies import PRESETS, ImageStudy, run_image_study

    _look_for_modules_here()
    settings = ("epochs", "batch_size", "iterations", "learning_rate", "noise", "patch", "frame")
    given = {}
    for source, fields in (
        (options, (*settings, "bits", "rate", "seed", "dtype", "data", "skip_unreadable")),
        (parts, ("K", "row_weights", "F", "G", "loss")),
    ):
        values = {field: getattr(source, field) for field in fields}
        given |= {field: value for field, value in values.items() if value is not None}
    if options.patch is not None:  # the photograph at the end is cut into overlapping ones
        given["stride"] = max(1, options.patch // 2)
    several = on.devices is not None or jax.process_count() > 1
    try:
        usual = ImageStudy(strategies=strategies, **PRESETS[parts.preset]._asdict())
        config = dataclasses.replace(usual.quick() if options.quick else usual, **given)
        for text in strategies:
            parse_strategy(text).check(ChambollePock(config.iterations))
        parse_function(parts.F).example()
        parse_function(parts.G).built()
        check_operator_text(config.K)
        if parts.loss is not None:
            parse_loss(parts.loss)
        mesh = data_parallel(on.devices) if several else None
    except ValueError as error:
        raise _UsageError(error) from None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("results") / f"{name}-{stamp}"
    console = Console(highlight=False, soft_wrap=True, quiet=jax.process_index() > 0)
    try:
        with _folder_of_this_process(out) as folder:
            run_image_study(config, folder, console, mesh)
        if options.quick:
            console.print(
                f"smoke test: {config.epochs} epochs on at most {config.samples} samples, not a "
                "result"
            )
    except KeyboardInterrupt:
        raise _ended("interrupted", out, INTERRUPTED) from None
    except (OSError, MemoryError, RuntimeError) as error:
        # Before the folder is the run's, nothing can be lost, and another one may be wanted.
        if (line := user_message(error)) is None or not (out / "config.json").exists():
            raise
        raise _ended(line, out, DATA) from None


def _train_on_images(command: Train, images: Path) -> None:
    if command.run.quick:
        _compile_quickly()
    _keep_programs()
    from hypergrad.strategies import parse_strategy
    from hypergrad.workbench.studies.whole_images import ImageTraining, form_of, train_on_images

    run = command.run
    names = ("epochs", "batch_size", "learning_rate", "noise", "seed", "skip_unreadable")
    given = {name: getattr(run, name) for name in names}
    try:
        parse_strategy(command.strategy)
        form_of(command.filters)
        settings = ImageTraining(
            images=images,
            strategy=command.strategy,
            filters=command.filters,
            potentials=command.potentials,
            seconds=command.seconds,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise _UsageError(error) from None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = run.out or Path("results") / f"train-{stamp}"
    console = Console(highlight=False, soft_wrap=True)
    try:
        train_on_images(settings.quick() if run.quick else settings, out, console)
    except KeyboardInterrupt:
        raise _ended("interrupted", out, INTERRUPTED) from None


def _restore(options: Restore) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)  # an operator of float32 stays one
    _keep_programs()
    from hypergrad._foundation.specs import import_part
    from hypergrad.learning.saved_operator import load_operator
    from hypergrad.workbench.restored_files import restore_file, restore_folder

    _look_for_modules_here()
    try:
        own = [import_part(text) for text in options.own]
    except ValueError as error:
        raise _UsageError(error) from None
    operator = load_operator(options.operator, own=own)
    given = {"out": options.out, "truth": options.truth, "stride": options.stride}
    console = Console(highlight=False, soft_wrap=True)
    if not options.file.is_dir():
        restored = restore_file(operator, options.file, **given)
        console.print("\n".join(_in_words(restored)), markup=False)
        return
    skipped: list[str] = []

    def skip(why: str) -> None:
        skipped.append(why)
        console.print(f"skipped: {why}", markup=False)

    done = 0
    skip_or_not = skip if options.skip_unreadable else None
    for restored in restore_folder(operator, options.file, skip=skip_or_not, **given):
        console.print("; ".join(reversed(_in_words(restored))), markup=False)
        done += 1
    console.print(f"restored: {done}, skipped: {len(skipped)}")


def _in_words(restored: Restored) -> list[str]:
    """Report on a restored file; its path comes last."""
    words = []
    if restored.restored is not None:
        words.append(
            f"PSNR {restored.observed:.2f} dB observed, {restored.restored:.2f} dB restored"
        )
    if restored.clipped > 0:
        words.append(
            f"{100 * restored.clipped:.2g} % of the values lay outside what the file can hold, and "
            "are at the end of its range now"
        )
    return [*words, f"written to {restored.out}"]


def _look_for_modules_here() -> None:
    """Modules of the user's in this folder are found, too; what is installed comes first."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _start_processes(on: DeviceOptions) -> None:
    """Configure JAX before it looks for its devices."""
    import jax

    from hypergrad._foundation.checks import check_count

    words = {name: getattr(on, name) for name in ("coordinator", "processes", "process")}
    given = [f"--{name}" for name, value in words.items() if value is not None]
    if given and (on.cluster or len(given) < len(words)):
        raise _UsageError(
            "several processes must be given --coordinator, --processes and --process, or "
            f"--cluster alone; got {', '.join([*given, *['--cluster'] * on.cluster])}: add what is "
            "missing, or leave it to a scheduler"
        )
    if on.coordinator is not None and re.fullmatch(r"\S+:\d+", on.coordinator) is None:
        raise _UsageError(
            f"coordinator must be host:port; got {on.coordinator!r}: try {on.coordinator}:12345"
        )
    try:
        if on.devices is not None:
            check_count("devices", on.devices, most=_MOST_DEVICES)
            jax.config.update("jax_num_cpu_devices", on.devices)  # other devices stay as they are
        if on.cluster or given:
            jax.distributed.initialize(on.coordinator, on.processes, on.process)
    except (ValueError, RuntimeError) as error:
        raise _UsageError(f"JAX cannot start here: {error}") from None


def _compile_quickly() -> None:
    """Skip optimisations, since nearly all that a smoke test does is to compile.

    CPU seconds of `compare --quick` without kept programs: 139; without optimisations 112; without
    XLA's emitter of single fusions, too, 77.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version__.startswith("0.10."):  # an unknown flag would end the process
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


@contextlib.contextmanager
def _folder_of_this_process(out: Path) -> Generator[Path]:
    """Return the folder to write to; all processes write what the first one writes."""
    import jax

    if jax.process_index() == 0:
        yield out
        return
    with tempfile.TemporaryDirectory() as nowhere:
        yield Path(nowhere)


def _keep_programs() -> None:
    """Let JAX keep what it compiles in the user's cache, so that the next run need not.

    Only where it is not set already: `JAX_COMPILATION_CACHE_DIR` names another folder,
    `JAX_ENABLE_COMPILATION_CACHE=false` has none. Without a folder to write to, nothing is kept.
    """
    import jax

    settled, folder = jax.config.values, _cache_folder()
    if not settled["jax_enable_compilation_cache"] or folder is None:
        return
    if settled["jax_compilation_cache_dir"] is None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _cache_folder() -> Path | None:
    """Return the cache folder of this system; None for a user without a home."""
    try:
        return platformdirs.user_cache_path("hypergrad", appauthor=False) / "programs"
    except RuntimeError:
        return None


def _report(options: Report) -> None:
    from hypergrad._foundation.records import write_text
    from hypergrad.workbench.studies.contents import PAGE
    from hypergrad.workbench.studies.report_page import report_page

    if not options.runs:
        raise _UsageError("report needs at least one folder of a run; got none: name one")
    out = options.out or options.runs[0] / PAGE
    if out.suffix != ".html":
        raise _UsageError(f"out must be a file that ends in .html; got {out}: name one")
    write_text(out, report_page(options.runs))
    print(f"written to {out}")


def _bench(options: Bench) -> int:
    import jax

    # Sections say themselves where they want float32.
    jax.config.update("jax_enable_x64", True)
    from hypergrad.workbench.benchmark import Benchmark, cells, report
    from hypergrad.workbench.sweep import Options, run_experiment

    try:
        benchmark = Benchmark(only=options.only) if options.only else Benchmark()
    except ValueError as error:
        raise _UsageError(error) from None
    sweep = Options(benchmark, options.out, options.quick)
    return run_experiment("bench", sweep, cells, report)


def _list_strategies() -> None:
    from hypergrad.strategies import STRATEGIES

    indent = max(map(len, STRATEGIES)) + 1
    # A pipe has no width: one line for each.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    margin = " " * indent
    wrap = textwrap.TextWrapper(
        width, initial_indent=margin, subsequent_indent=f"{margin}  ", break_on_hyphens=False
    )
    for name, strategy in STRATEGIES.items():
        options = [
            *strategy.choices,
            *(
                f"{field.name}=…"
                for field in dataclasses.fields(strategy)
                if field.type in (int, "int", "int | None")
            ),
        ]
        lines = [strategy.formula, f"cost: {strategy.cost}", f"caveat: {strategy.caveat}"]
        if options:
            lines.append(f"options: {', '.join(options)}")
        print(f"{name:<{indent}}" + "\n".join(map(wrap.fill, lines))[indent:])
    guides = Path(__file__).parents[1] / "guides"
    print(f"\nWhen each misleads, and which figure shows it: {guides / 'strategies.md'}")


if __name__ == "__main__":
    sys.exit(main())
