"""The commands and options of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = [
    "COMMANDS",
    "Bench",
    "Command",
    "Compare",
    "DeviceOptions",
    "PartOptions",
    "Report",
    "Restore",
    "RunOptions",
    "Strategies",
    "Train",
]


def _default(words: str) -> Any:
    """Describe in the help what an option defaults to."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})")


def _help(*lines: str, default: str | None = None) -> Any:
    """Return a help text of several lines; a docstring would keep its line breaks."""
    hint = None if default is None else f"(default: {default})"
    return tyro.conf.arg(help=" ".join(lines), help_behavior_hint=hint)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Data, method and output of learning."""

    out: Annotated[Path | None, _default("results/<command>-<date>-<time>")] = None
    """Folder for the results. Given again with the same settings, the run goes on there."""
    quick: bool = False
    """The same job in miniature, as a smoke test."""
    seed: int = 0
    """Draw of patches, of the noise, and order of batches."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of everything."""
    data: Annotated[str | None, _default("photographs from scikit-image")] = None
    """Your data: a .npy of shape (samples, n), a folder of images or a folder of audio."""
    skip_unreadable: bool = False
    """Leave out files of a folder that cannot be used, and say which; an error otherwise."""
    patch: Annotated[int | None, _default("8")] = None
    """Pixels along each side of a patch of a picture."""
    frame: int = 160
    """Entries of a frame of sound."""
    bits: int = 3
    """Bits that sound is quantised to: what is observed of it."""
    rate: int = 8000
    """Rate of all sound files in Hz; nothing is resampled."""
    iterations: int = 100
    """L, the iterations of the lower level."""
    epochs: Annotated[int | None, _default("8, quick: 2")] = None
    """Passes through the training data."""
    batch_size: Annotated[int | None, _default("256, quick: 64")] = None
    """Samples per batch."""
    learning_rate: Annotated[
        float | None,
        _help(
            "Adam's largest rate: it rises from 0 over the first quarter of the steps, and falls",
            "to 0 again like a cosine.",
            default="5e-3; preset degenerate: 1e-3",
        ),
    ] = None
    noise: float = 0.1
    """Standard deviation of the noise on pictures in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """Custom components (`module:name`), imported from the working directory or the Python path."""

    preset: Annotated[
        Literal["square", "overcomplete", "degenerate"],
        _help(
            "Where K starts: square, the DCT without its constant row; overcomplete, the DCT and",
            "random rows with one weight a row (m = 2 n); degenerate, the DCT and differences:",
            "most samples have several gradients there.",
        ),
    ] = "square"
    K: Annotated[
        str | None,
        _help(
            "K's start in place of the preset's: dct, dct+random, dct+differences or random (a",
            "poor start; with options as in random:rows=96,seed=1), or module:function, which",
            "returns a matrix for the shape of a sample.",
            default="that of the preset",
        ),
    ] = None
    row_weights: Annotated[bool | None, _default("that of the preset")] = None
    """Learn one weight of F for each row of K, too."""
    F: Annotated[
        str,
        _help(
            "The regulariser: a function of hypergrad with its options, as in",
            "Huber:smoothing=0.01, or module:Class. A weight that is not given is chosen on",
            "training data.",
        ),
    ] = "L1"
    G: str = "Quadratic:weight=1.0"
    """The data term, named like F; its weight has to be given."""
    loss: Annotated[str | None, _default("half the squared error")] = None
    """The loss: module:function of x and x_true, a mean over the batch."""


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Several devices, of one process or of several: each takes its share of every batch."""

    devices: Annotated[int | None, _default("one where there is one process, else all")] = None
    """Devices of each process that learning uses; a CPU is taken for so many."""
    cluster: Annotated[
        bool,
        _help(
            "This is one of several processes that were started together (by SLURM's srun or Open",
            "MPI's mpirun, say), with the same words: JAX asks the scheduler for the three below.",
        ),
    ] = False
    coordinator: Annotated[str | None, _default("none")] = None
    """Without a scheduler: host:port of the first process, the same word for all."""
    processes: Annotated[int | None, _default("none")] = None
    """Number of processes."""
    process: Annotated[int | None, _default("none")] = None
    """Rank of this process (from 0); only 0 writes files."""


# The names of their boxes in the help.
_Run = Annotated[RunOptions, tyro.conf.arg(name="data and learning")]
_Parts = Annotated[PartOptions, tyro.conf.arg(name="problem")]
_On = Annotated[DeviceOptions, tyro.conf.arg(name="device")]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare strategies: one batch, training, tables and figures (the main job)."""

    strategies: Annotated[
        tuple[str, ...],
        _help(
            "Strategies, separated by spaces: a name from `hypergrad strategies` with its",
            "options, as in truncation:k=5, or module:Class.",
        ),
    ] = ("full", "truncation:k=1", "ergodic", "limit:steps=10", "limit:cgls")
    run: _Run = RunOptions()
    parts: _Parts = PartOptions()
    on: _On = DeviceOptions()


@dataclasses.dataclass(frozen=True)
class Train:
    """Learn K with one strategy; writes the operator, its records and figures."""

    strategy: str = "truncation:k=1"
    """The strategy, as in `compare`."""
    images: Annotated[
        Path | None,
        _help(
            "A folder of photographs: learn a bank of filters on random crops of whole images, in",
            "place of a K on patches. The last fifth (at most 20) of the sorted files chooses the",
            "best epoch. Uses, of the options below, out, quick, seed, skip-unreadable, epochs,",
            "batch-size, learning-rate and noise.",
            default="none",
        ),
    ] = None
    filters: str = "24x5x5"
    """With --images: the number of filters and their pixels, COUNTxSIZExSIZE."""
    potentials: bool = False
    """With --images: learn one convex potential for each filter; otherwise one weight."""
    seconds: float = 600.0
    """With --images: no epoch begins after so many seconds of updates."""
    run: _Run = RunOptions()
    parts: _Parts = PartOptions()
    on: _On = DeviceOptions()


@dataclasses.dataclass(frozen=True)
class Restore:
    """Apply a learned operator to a file, or to each file of a folder."""

    file: Annotated[Path, tyro.conf.Positional]
    """The observed file: PNG, JPEG, TIFF; WAV, FLAC; a .npy of shape (samples, n); or a folder."""
    operator: Path
    """The operator_….npz that `train` or `compare` saved."""
    out: Annotated[Path | None, _default("<name>-restored beside it")] = None
    """The file or the folder to write; one that exists is never written over."""
    truth: Annotated[Path | None, _default("none")] = None
    """Ground truth; reports the PSNR. Of a folder: one with the same names."""
    skip_unreadable: bool = False
    """Leave out files of a folder that cannot be used, and say which; an error otherwise."""
    stride: Annotated[int | None, _default("half a patch")] = None
    """From one patch or frame to the next; 1 averages most and takes longest."""
    own: Annotated[
        tuple[str, ...],
        _help(
            "module:Class of your own that it was learned with, separated by spaces: a file may",
            "not name code that runs.",
            default="none",
        ),
    ] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """Put runs on one page, side by side: tables, curves and pictures."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint=""),
    ] = ()
    """Folders of runs of `compare` or `train`."""
    out: Annotated[Path | None, _default("report.html in the first folder")] = None
    """The page to write, a .html; one that exists is replaced."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure time and memory as ratios within one run: the benchmark."""

    only: Annotated[tuple[str, ...], _default("all")] = ()
    """Sections to run, separated by spaces."""
    out: Annotated[Path | None, _default("results/bench")] = None
    """Folder for the results. Given again, the run goes on there."""
    quick: bool = False
    """Every section in miniature, as a smoke test."""


@dataclasses.dataclass(frozen=True)
class Strategies:
    """List the strategies: formula, cost, caveat and options."""


Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Restore, tyro.conf.subcommand("restore")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Strategies, tyro.conf.subcommand("strategies")]
)

COMMANDS = ("compare", "train", "restore", "report", "bench", "strategies")
