"""The command line: `hypergrad compare | train | restore | bench | strategies`.

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
from typing import Annotated, Literal

import tyro
from rich.console import Console

from hypergrad.door import DATA, INTERRUPTED, USAGE, explained, one_line, parsing

__all__ = ["main"]

# Programs that took longer to compile (s) are kept on disk; reading one takes about a tenth of it.
_WORTH_KEEPING = 0.1

# JAX makes every device of a CPU, threads and all, before anything else happens.
_MOST_DEVICES = 4096


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What every command that computes takes."""

    out: Path | None = None
    """Folder for the results. Given again with the same settings, the run goes on there.
    (default: results/<command>-<date>-<time>)"""
    quick: bool = False
    """The same job in miniature, as a smoke test."""
    seed: int = 0
    """Draw of patches, of the noise, and order of batches."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of everything."""
    data: str | None = None
    """Own data: a .npy of shape (samples, n), a folder of images or a folder of audio.
    (default: photographs from scikit-image)"""
    patch: int | None = None
    """Pixels along each side of a patch of a picture. (default: 8)"""
    frame: int = 160
    """Entries of a frame of sound."""
    bits: int = 3
    """Bits that sound is quantised to: what is observed of it."""
    rate: int = 8000
    """Rate of all sound files in Hz; nothing is resampled."""
    iterations: int = 100
    """L, the iterations of the lower level."""
    epochs: int | None = None
    """Passes through the training data. (default: 8, quick: 2)"""
    batch_size: int | None = None
    """Samples a batch. (default: 256, quick: 64)"""
    learning_rate: float = 1e-3
    """Adam's rate at the start; it falls to 0 like a cosine. (The default was chosen on a
    photograph of its own, `rocket`.)"""
    noise: float = 0.1
    """Standard deviation of the noise on pictures in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """Parts of one's own; a module is looked for where Python looks, and in this folder."""

    K: str | None = None
    """Where K starts: random (a poor start, where learning shows; with options as in
    random:rows=96,seed=1), or module:function, which returns a matrix for the shape of a sample.
    (default: DCT and differences)"""
    F: str = "L1"
    """The regulariser: a function of hypergrad with its options, as in Huber:smoothing=0.01, or
    module:Class. A weight that is not given is chosen on training data."""
    G: str = "Quadratic:weight=1.0"
    """The data term, likewise; its weight has to be given."""
    loss: str | None = None
    """What is learned by: module:function of x and x_true, a mean over the batch.
    (default: half the squared error)"""


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Several devices, of one process or of several: each takes its share of every batch."""

    devices: int | None = None
    """Devices of each process that learning uses; a CPU is taken for so many. (default: one where
    there is one process; all where there are several)"""
    cluster: bool = False
    """This is one of several processes that were started together (by SLURM's srun or Open MPI's
    mpirun, say), with the same words: JAX asks the scheduler for the three below."""
    coordinator: str | None = None
    """Without a scheduler: host:port of the first process, the same word for all."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which of them this is, from 0 on; only 0 writes files."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare strategies on photographs: one batch, training, tables and figures (the main job)."""

    strategies: tuple[str, ...] = ("full", "truncation:k=1", "ergodic", "limit:steps=10")
    """Strategies, separated by spaces: a name from `hypergrad strategies` with its options, as in
    truncation:k=5, or module:Class."""
    run: RunOptions = RunOptions()
    parts: PartOptions = PartOptions()
    on: DeviceOptions = DeviceOptions()


@dataclasses.dataclass(frozen=True)
class Train:
    """Learn K with one strategy; writes the operator, its records and figures."""

    strategy: str = "truncation:k=1"
    """The strategy, as in `compare`."""
    run: RunOptions = RunOptions()
    parts: PartOptions = PartOptions()
    on: DeviceOptions = DeviceOptions()


@dataclasses.dataclass(frozen=True)
class Restore:
    """Apply a learned operator to a picture, a sound or rows: a file of the kind it learned on."""

    file: Annotated[Path, tyro.conf.Positional]
    """What was observed: PNG, JPEG, TIFF; WAV, FLAC; or a .npy of shape (samples, n)."""
    operator: Path
    """The operator_….npz that `train` or `compare` saved."""
    out: Path | None = None
    """The file to write; one that exists is never written over.
    (default: <name>-restored beside the file)"""
    truth: Path | None = None
    """The true file, where there is one: then the PSNR is told."""
    stride: int | None = None
    """From one patch or frame to the next; 1 averages most and takes longest.
    (default: half a patch)"""
    own: tuple[str, ...] = ()
    """module:Class of your own that it was learned with, separated by spaces: a file may not name
    code that runs."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure time and memory as ratios within one run: the benchmark."""

    only: tuple[str, ...] = ()
    """Sections to run, separated by spaces. (default: all)"""
    out: Path | None = None
    """Folder for the results. Given again, the run goes on there. (default: results/bench)"""
    quick: bool = False
    """Every section in miniature, as a smoke test."""
    shard: str = "0/1"
    """i/n: every n-th measurement from number i on; all shards share one folder."""


@dataclasses.dataclass(frozen=True)
class Strategies:
    """List the strategies: formula, cost, caveat and options."""


_Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Restore, tyro.conf.subcommand("restore")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Strategies, tyro.conf.subcommand("strategies")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with parsing("hypergrad"):
        command = tyro.cli(
            _Command,  # pyright: ignore[reportArgumentType] a union of dataclasses is a tyro type
            args=arguments,
            prog="hypergrad",
            description="Hypergradients of bilevel problems, side by side.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    try:
        if isinstance(command, Strategies):
            _list_strategies()
        elif isinstance(command, Compare):
            _study("compare", command.run, command.parts, command.on, command.strategies)
        elif isinstance(command, Restore):
            _restore(command)
        elif isinstance(command, Bench):
            return _bench(command)
        else:
            assert isinstance(command, Train)
            _study("train", command.run, command.parts, command.on, (command.strategy,))
        sys.stdout.flush()  # here, where a full disk can still be told
    except _UsageError as error:
        console.print(f"hypergrad: {one_line(str(error))}", markup=False)
        return USAGE
    except _EndedError as ended:
        text, status = ended.args
        console.print(f"\nhypergrad: {text}", markup=False)
        return status
    except Exception as error:
        if (line := explained(error)) is None:
            raise
        console.print(f"hypergrad: {line}", markup=False)
        return DATA
    return 0


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
    _start_processes(on)
    _keep_programs()
    from hypergrad.chambolle_pock import ChambollePock
    from hypergrad.devices import data_parallel
    from hypergrad.image_study import ImageStudy, run_image_study
    from hypergrad.own_parts import parse_function, parse_loss
    from hypergrad.strategies import parse_strategy

    _look_for_modules_here()
    settings = ("epochs", "batch_size", "iterations", "learning_rate", "noise", "patch", "frame")
    given = {
        field: getattr(options, field)
        for field in (*settings, "bits", "rate")
        if getattr(options, field) is not None
    }
    if options.patch is not None:  # the photograph at the end is cut into overlapping ones
        given["stride"] = max(1, options.patch // 2)
    several = on.devices is not None or jax.process_count() > 1
    try:
        config = dataclasses.replace(
            ImageStudy().quick() if options.quick else ImageStudy(),
            strategies=strategies,
            seed=options.seed,
            dtype=options.dtype,
            data=options.data,
            **dataclasses.asdict(parts),
            **given,
        )
        for text in strategies:
            parse_strategy(text).check(ChambollePock(config.iterations))
        parse_function(parts.F).at_weights([1.0])
        parse_function(parts.G).built()
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
        if (line := explained(error)) is None or not (out / "config.json").exists():
            raise
        raise _ended(line, out, DATA) from None


def _restore(options: Restore) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)  # an operator of float32 stays one
    _keep_programs()
    from hypergrad.own_parts import import_part
    from hypergrad.restored_files import restore_file
    from hypergrad.saved_operator import load_operator

    _look_for_modules_here()
    try:
        own = [import_part(text) for text in options.own]
    except ValueError as error:
        raise _UsageError(error) from None
    restored = restore_file(
        load_operator(options.operator, own=own),
        options.file,
        out=options.out,
        truth=options.truth,
        stride=options.stride,
    )
    console = Console(highlight=False, soft_wrap=True)
    if restored.restored is not None:
        console.print(
            f"PSNR {restored.observed:.2f} dB observed, {restored.restored:.2f} dB restored"
        )
    if restored.clipped > 0:
        console.print(
            f"{100 * restored.clipped:.2g} % of the values lay outside what the file can hold, and "
            "are at the end of its range now"
        )
    console.print(f"written to {restored.out}", markup=False)


def _look_for_modules_here() -> None:
    """Modules of the user's in this folder are found, too; what is installed comes first."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _start_processes(on: DeviceOptions) -> None:
    """What has to be said to JAX before it looks for its devices."""
    import jax

    from hypergrad._checks import check_count

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


@contextlib.contextmanager
def _folder_of_this_process(out: Path) -> Generator[Path]:
    """Where it writes: what others than the first one write is what the first one writes, too."""
    import jax

    if jax.process_index() == 0:
        yield out
        return
    with tempfile.TemporaryDirectory() as nowhere:
        yield Path(nowhere)


def _keep_programs() -> None:
    """Let JAX keep what it compiles in the user's cache, so that the next run need not.

    Only where nobody has settled it already: `JAX_COMPILATION_CACHE_DIR` names another folder,
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
    """Where this system keeps what can be made again; None for a user without a home."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        # The XDG convention: a relative path does not count.
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        caches = named if named.is_absolute() else home / ".cache"
    return caches / "hypergrad" / "programs"


def _bench(options: Bench) -> int:
    import jax

    # Sections say themselves where they want float32.
    jax.config.update("jax_enable_x64", True)
    from hypergrad.benchmark import Benchmark, cells, report
    from hypergrad.sweep import Options, run_experiment

    try:
        benchmark = Benchmark(only=options.only) if options.only else Benchmark()
    except ValueError as error:
        raise _UsageError(error) from None
    sweep = Options(benchmark, options.out, options.quick, options.shard)
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


if __name__ == "__main__":
    sys.exit(main())
