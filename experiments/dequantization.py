"""Quantised speech: what a learned K restores of it, at 2 to 5 bits.

    python experiments/dequantization.py [--quick] [--speech FOLDER] [--out results/dequantization]

Frames of real speech, quantised; `F` = L1 with one weight a row; `G` keeps x in the cell of the
quantiser, alone (`box`: a linear programme) or with a quadratic term that prefers its centre
(`box+quadratic`). Learned are K (m = n from the DCT, m = 2n from the DCT of the frame on that of
its halves, both with small noise), the row weights and the weight of the quadratic. Baselines, all
tuned on training clips alone: identity; the DCT at its best weight and with one weight a row; the
untrained start; the best affine estimator; and of every lower level the shrunk step
`x_tilde + a r*`.

Everything is judged on clips that nothing was learned or fitted on, at its L and at a converged
lower level, and on a second speaker. (Rates, L and k were set by hand after a few trials with one
seed.) At 20 ms and 3 or 4 bits there are `seeds` seeds (data, noise
of the start, order of batches), elsewhere a single one, so no interval, and at 40 ms K has m = n
for the box and m = 2n for the other only. The first seed at 20 ms and 3 or 4 bits also restores
whole clips by overlapping frames; one is written as WAV into the run's folder, and where `pystoi`
and `pesq` are installed (`pip install hypergrad-jax[speech]`) they judge too.

Budget: 30 minutes on 2 cores (`--workers 2`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _clips import Restorer, Rows, restore_clips, si_sdr

import hypergrad as hg
from hypergrad._foundation.records import markdown_table
from hypergrad._foundation.statistics import group, mean_interval, paired_interval
from hypergrad.problem import operators
from hypergrad.problem.lower_level import cast_floats
from hypergrad.workbench import baselines, data
from hypergrad.workbench.sweep import AbstractSettings, Cell, Record, Result, Workspace, main

PIECE = 128  # frames that are solved at a time
# "Converged": the SNR then moves by less than 0.03 dB. Rounding of float32 leaves 1e-6.
TOLERANCE, MOST, STEP_RATIO = 5e-5, 2500, 10.0
SECOND_SPEAKER = "it_IT_m_Carlo"  # the folder beside that of the first
LOWER_LEVELS = ("box", "box+quadratic")
# Of the quadratic term, tried for what is not learned by descent; in units of the mean |K x|.
WEIGHTS = {2: (0.3, 1, 3, 10), 3: (1, 3, 6, 12, 25), 4: (5, 12, 25, 50, 100), 5: (25, 50, 100, 200)}


class Case(NamedTuple):
    """What is computed on the same data."""

    bits: int
    frame: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Learning:
    """How K is learned from one lower level.

    K of the box has norm 1, so it takes a smaller rate; its L is large, lest K learn to be stopped
    early.
    """

    L: int
    step_ratio: float
    k: int
    rate: float = 2e-3
    steps: int = 640
    batch_size: int = 128


@dataclasses.dataclass(frozen=True)
class Config(AbstractSettings):
    """Speech quantised to `bits`, in frames of so many samples."""

    speech: Path | None = None
    """Folder of WAV or FLAC files at 8 kHz; by default where the Debian package puts them."""
    second: Path | None = None
    """Of a second speaker; by default it_IT_m_Carlo beside the first, left out if not there."""
    bits: tuple[int, ...] = (2, 3, 4, 5)
    frames: tuple[int, ...] = (160, 320)
    seeds: int = 5
    """For the bits and the frame that results are claimed for; one seed elsewhere."""
    claimed_bits: tuple[int, ...] = (3, 4)
    claimed_frame: int = 160
    samples: int = 8192
    tuned_on: int = 256
    """Training frames that the baselines' weights and the shrinkage are fitted on."""
    held_out: int = 1024
    """Frames of 20 ms at least, and half as many longer ones: clips are taken whole."""
    clips: int = 6
    """Restored whole, by overlapping frames."""
    box: Learning = Learning(L=200, step_ratio=10.0, k=10, rate=5e-4, steps=256)
    quadratic: Learning = Learning(L=20, step_ratio=10.0, k=5)

    def quick(self) -> Config:
        """Short training at 3 bits, one seed."""
        few = {"steps": 8, "batch_size": 32}
        return dataclasses.replace(
            self,
            bits=(3,),
            frames=(160,),
            seeds=1,
            samples=128,
            tuned_on=64,
            held_out=64,
            clips=1,
            box=dataclasses.replace(self.box, L=20, **few),
            quadratic=dataclasses.replace(self.quadratic, L=20, **few),
        )

    def learning(self, lower_level: str) -> Learning:
        return self.box if lower_level == "box" else self.quadratic

    def is_claimed(self, bits: int, frame: int) -> bool:
        return bits in self.claimed_bits and frame == self.claimed_frame

    @property
    def folder(self) -> Path:
        return data.ASTERISK if self.speech is None else self.speech

    @property
    def second_folder(self) -> Path | None:
        if self.second is not None:
            return self.second
        beside = self.folder.parent / SECOND_SPEAKER
        return beside if beside.is_dir() else None


def cells(config: Config) -> list[Cell]:
    """Baselines of every case and seed; K of m = n and m = 2n rows for both lower levels."""
    data.audio_files(config.folder)  # says how to get speech where there is none
    made = []
    for frame, bits in itertools.product(config.frames, config.bits):
        cost = (frame / 160) ** 2
        for seed in range(config.seeds if config.is_claimed(bits, frame) else 1):
            case = Case(bits, frame, seed)
            compute = functools.partial(compare_with_baselines, config, case)
            made.append(Cell({"part": "baselines", **case._asdict()}, compute, cost))
            for kind, times in _learned_at(config, frame):
                key = {"part": "learned", **case._asdict(), "G": kind, "m/n": times}
                compute = functools.partial(learn, config, case, kind, times)
                made.append(Cell(key, compute, cost * times * (2.0 if kind == "box" else 1.0)))
    return made


def _learned_at(config: Config, frame: int) -> list[tuple[str, int]]:
    """Lower levels and m / n: for other frames than the claimed one what takes least time."""
    if frame == config.claimed_frame:
        return [(lower_level, times) for lower_level in LOWER_LEVELS for times in (1, 2)]
    return [("box", 1), ("box+quadratic", 2)]


# ----------------------------------------------------------------------------------------- data


@functools.lru_cache(maxsize=8)
def _all_frames(folder: Path, frame: int, bits: int, split: data.Split) -> data.Samples:
    samples = data.speech_frames(folder, frame=frame, bits=bits, split=split, seed=0)
    return samples.astype(np.float32)


def whole_clips(samples: data.Samples, count: int, rng: np.random.Generator) -> data.Samples:
    """All frames of clips that are drawn one by one, until there are `count` at least."""
    order = rng.permutation(len(samples.source))
    sizes = np.bincount(samples.source_index, minlength=len(samples.source))
    drawn = 1 + int(np.searchsorted(np.cumsum(sizes[order]), count))
    return samples.take(np.isin(samples.source_index, order[:drawn]))


@dataclasses.dataclass(frozen=True)
class Speech:
    """Frames of training clips, of held-out clips, and of a second speaker where there is one."""

    train: data.Samples
    held_out: data.Samples
    second: data.Samples | None
    bits: int

    @property
    def radius(self) -> float:
        """Half a step of the quantiser."""
        return 2.0**-self.bits


def draw(config: Config, case: Case) -> Speech:
    """The data of one seed, in float32."""
    bits, frame, seed = case
    rng = np.random.default_rng([seed, bits, frame])
    train = _all_frames(config.folder, frame, bits, "train")
    count = min(config.samples, len(train))
    test = _all_frames(config.folder, frame, bits, "test")
    held_out = config.held_out * 160 // frame
    second = None
    if config.second_folder is not None:
        others = _all_frames(config.second_folder, frame, bits, "test")
        second = whole_clips(others, held_out // 2, rng)
    chosen = train.take(rng.choice(len(train), count, replace=False))
    return Speech(chosen, whole_clips(test, held_out, rng), second, bits)


# ------------------------------------------------------------------------------------ lower level


def start_operator(frame: int, times: int, seed: int) -> np.ndarray:
    """The orthonormal DCT; for m = 2n on top of the DCTs of both halves; and a little noise."""
    rng = np.random.default_rng([seed, frame, times])
    K = np.asarray(operators.dct(frame))
    if times == 2:
        K = np.concatenate([K, np.kron(np.eye(2), np.asarray(operators.dct(frame // 2)))])
    return K + 0.02 / np.sqrt(frame) * rng.standard_normal(K.shape)


def lower_level_of(
    K: np.ndarray, row_weights: Any, kind: str, speech: Speech, weight: float = 1.0
) -> hg.LowerLevel:
    """In float32: the products, which are all of the time, take half."""
    radius = speech.radius
    G = hg.Box(radius) if kind == "box" else hg.BoxQuadratic(radius, weight)
    problem = hg.LowerLevel(K=jnp.asarray(K), F=hg.L1(row_weights), G=G)
    return cast_floats(problem, jnp.float32)


def solve(problem: hg.LowerLevel, x_tilde: Rows) -> baselines.Converged:
    """Until the residual is small: for a linear programme that takes thousands of iterations."""
    return baselines.solve_to_tolerance(
        problem, x_tilde, tolerance=TOLERANCE, most=MOST, step_ratio=STEP_RATIO, piece=PIECE
    )


def at_best_weight(
    K: np.ndarray, row_weights: Any, kind: str, speech: Speech, some: data.Samples
) -> hg.LowerLevel:
    """With the weight of the quadratic term that restores training frames best (a box has none)."""
    if kind == "box":
        return lower_level_of(K, row_weights, kind, speech)
    candidates = (lower_level_of(K, row_weights, kind, speech, w) for w in WEIGHTS[speech.bits])
    return baselines.best_of(
        candidates, some.x_tilde, some.x_true, lambda p, x: solve(p, np.asarray(x)).x
    )


# -------------------------------------------------------------------------------------- judging


def judge_restored(x: Rows, samples: data.Samples) -> dict[str, float]:
    """SNR of all frames, and the means over clips of SNR and SI-SDR of their loud frames."""
    clips = [samples.source_index == i for i in np.unique(samples.source_index)]
    pairs = [(x[rows].ravel(), samples.x_true[rows].ravel()) for rows in clips]
    return {
        "snr": data.snr(x, samples.x_true),
        "clip_snr": float(np.mean([data.snr(*pair) for pair in pairs])),
        "si_sdr": float(np.mean([si_sdr(*pair) for pair in pairs])),
    }


def judge(
    problem: hg.LowerLevel, speech: Speech, some: data.Samples, learning: Learning
) -> dict[str, float]:
    """A lower level at a converged solution, at L, and shrunk (fitted on training frames)."""
    held_out = speech.held_out
    x, share = solve(problem, held_out.x_tilde)
    judged = judge_restored(x, held_out)
    if speech.second is not None:
        second = solve(problem, speech.second.x_tilde).x
        judged["second_snr"] = data.snr(second, speech.second.x_true)
    solver = hg.ChambollePock(learning.L, step_ratio=learning.step_ratio)
    at_L = hg.solve(problem, held_out.x_tilde, solver=solver, strategy=hg.Truncation(1))
    a = baselines.best_shrinkage(some.x_tilde, solve(problem, some.x_tilde).x, some.x_true)
    return {
        **judged,
        "snr_at_L": data.snr(np.asarray(at_L.x), held_out.x_true),
        "residual_at_L": float(np.median(np.asarray(at_L.stats.residual))),
        "snr_shrunk": data.snr(baselines.shrink(held_out.x_tilde, x, a), held_out.x_true),
        "shrinkage": a,
        "share_converged": share,
    }


# ----------------------------------------------------------------------------------------- cells


def compare_with_baselines(config: Config, case: Case, workspace: Workspace) -> Result:
    """What is not learned by descent, on the same frames."""
    speech = draw(config, case)
    held_out, some = speech.held_out, speech.train.take(slice(0, config.tuned_on))
    affine = baselines.best_affine(speech.train.x_tilde, speech.train.x_true)
    records: list[Record] = []
    for name, restore in {"identity": np.asarray, "affine": affine}.items():
        record = {"method": name, **judge_restored(restore(held_out.x_tilde), held_out)}
        if (second := speech.second) is not None:
            record["second_snr"] = data.snr(restore(second.x_tilde), second.x_true)
        records.append(record)
    dct = np.asarray(operators.dct(case.frame))
    overcomplete = start_operator(case.frame, 2, case.seed)
    starts = {
        "dct": (dct, np.ones(case.frame)),
        "dct, row weights": (dct, _row_weights(dct, speech)),
        "untrained, m = 2n": (overcomplete, _row_weights(overcomplete, speech)),
    }
    restorers: dict[str, Restorer] = {"identity": np.asarray}
    for kind, (name, (K, row_weights)) in itertools.product(LOWER_LEVELS, starts.items()):
        problem = at_best_weight(K, row_weights, kind, speech, some)
        judged = judge(problem, speech, some, config.learning(kind))
        records.append({"method": name, "G": kind, "weight": _weight(problem), **judged})
        if (name, kind) == ("dct", "box+quadratic"):
            restorers["dct"] = functools.partial(_restore, problem)
    records = [{"kind": "baseline", **record} for record in records]
    clips = _clips_of(config, case, restorers, workspace)
    return Result([*records, *clips.records], clips.arrays)


def _clips_of(
    config: Config, case: Case, restorers: Mapping[str, Restorer], workspace: Workspace
) -> Result:
    """Whole clips, for one seed of each case that results are claimed for."""
    if case.seed > 0 or not config.is_claimed(case.bits, case.frame):
        return Result([])
    return restore_clips(
        config.folder, config.clips, case.bits, case.frame, restorers, workspace.files
    )


def _row_weights(K: np.ndarray, speech: Speech) -> Any:
    return baselines.reciprocal_row_weights(jnp.asarray(K), speech.train.x_true)


def _restore(problem: hg.LowerLevel, x_tilde: Rows) -> Rows:
    return solve(problem, x_tilde).x


def _weight(problem: hg.LowerLevel) -> float | None:
    return float(problem.G.weight) if isinstance(problem.G, hg.BoxQuadratic) else None


def _learned_leaves(problem: hg.LowerLevel) -> Any:
    """K, the row weights, and the weight of the quadratic term if there is one."""
    learned = (problem.K, problem.F.weight)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(problem.G, hg.BoxQuadratic):
        return *learned, problem.G.weight
    return learned


def learn(config: Config, case: Case, kind: str, times: int, workspace: Workspace) -> Result:
    """One training run, and what the K that it ends at is worth."""
    speech, learning = draw(config, case), config.learning(kind)
    some = speech.train.take(slice(0, config.tuned_on))
    K = start_operator(case.frame, times, case.seed)
    history = hg.train(
        at_best_weight(K, _row_weights(K, speech), kind, speech, some),
        (speech.train.x_tilde, speech.train.x_true),
        solver=hg.ChambollePock(learning.L, step_ratio=learning.step_ratio),
        strategy=hg.Truncation(learning.k),
        optimizer=optax.adam(optax.cosine_decay_schedule(learning.rate, learning.steps)),
        epochs=-(-learning.steps // (len(speech.train) // learning.batch_size)),
        batch_size=learning.batch_size,
        seed=case.seed,
        checkpoint_dir=workspace.checkpoints,
        trainable=_learned_leaves,
        progress=workspace.bar,
    )
    problem, last = history.problem, history.records[-1]
    record = {
        "kind": "learned",
        "method": f"learned, m = {'2' if times == 2 else ''}n",
        "weight": _weight(problem),
        "train_loss": last["train_loss"],
        "seconds": last["seconds"],
        **judge(problem, speech, some, learning),
    }
    if (kind, times) != ("box+quadratic", 2):
        return Result([record])
    restorers = {"learned": functools.partial(_restore, problem)}
    clips = _clips_of(config, case, restorers, workspace)
    return Result([record, *clips.records], clips.arrays)


# ---------------------------------------------------------------------------------------- report


COLUMNS = {
    "frame": "frame (samples)",
    "bits": "bits",
    "G": "G",
    "method": "method",
    "seeds": "seeds",
    "snr": "SNR (dB)",
    "gain": "gain over the identity (dB)",
    "over_dct": "over the DCT at its best weight (dB)",
    "at_L": "gain at L (dB)",
    "shrunk": "gain, shrunk (dB)",
    "share": "share converged",
    "clip_snr": "gain, mean over clips (dB)",
    "si_sdr": "gain in SI-SDR (dB)",
    "second_snr": "gain, second speaker (dB)",
}
OF_CLIPS = {"snr": "SNR (dB)", "si_sdr": "SI-SDR (dB)", "stoi": "STOI", "pesq": "PESQ"}


def report(config: Config, records: Sequence[Record]) -> str:
    """SNR of every method by case, its gain over the identity and over the best DCT."""
    judged = [r for r in records if r["kind"] in ("baseline", "learned")]
    identity = {_case(r): r for r in judged if r["method"] == "identity"}
    dct = {_case(r): r for r in judged if (r["method"], r.get("G")) == ("dct", "box+quadratic")}

    def gain(rows: Sequence[Record], column: str, over: Mapping[Case, Record], its: str) -> str:
        return str(paired_interval([r[column] for r in rows], [over[_case(r)][its] for r in rows]))

    by_method = group(judged, lambda r: (r["frame"], r["bits"], r.get("G"), r["method"]))
    table = []
    for (frame, bits, kind, method), rows in sorted(by_method.items(), key=lambda i: i[0][:2]):
        row = {"frame": frame, "bits": bits, "G": kind, "method": method, "seeds": len(rows)}
        row["snr"] = mean_interval([r["snr"] for r in rows])
        row["gain"] = gain(rows, "snr", identity, "snr")
        row["over_dct"] = gain(rows, "snr", dct, "snr")
        if kind is not None:
            row["at_L"] = gain(rows, "snr_at_L", identity, "snr")
            row["shrunk"] = gain(rows, "snr_shrunk", identity, "snr")
            row["share"] = float(np.mean([r["share_converged"] for r in rows]))
        for column in ("clip_snr", "si_sdr", "second_snr"):
            if column in rows[0]:
                row[column] = gain(rows, column, identity, column)
        table.append(row)
    clips = group((r for r in records if r["kind"] == "clip"), lambda r: (r["bits"], r["method"]))
    of_clips = [
        {"bits": bits, "method": method, "clips": len(found)}
        | {column: _mean(r[column] for r in found) for column in OF_CLIPS}
        for (bits, method), found in clips.items()
    ]
    headings = {"bits": "bits", "method": "method", "clips": "whole clips", **OF_CLIPS}
    return f"{markdown_table(table, COLUMNS)}\n\n{markdown_table(of_clips, headings)}\n"


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, without what an optional package that is not installed leaves out."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _case(record: Record) -> Case:
    return Case(record["bits"], record["frame"], record["seed"])


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main("dequantization", Config, cells, report)
