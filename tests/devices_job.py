"""Jobs that `test_devices.py` runs in other processes: JAX counts its devices when it starts.

    python devices_job.py FOLDER

prints one JSON object; the environment says how many devices it has. One of two processes imports
this when it has found the other one: the problem below is made of arrays of JAX.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import numpy as np
import optax
from helpers import L1, Poster, Quadratic, random_data, to_hypergrad
from jax.sharding import Mesh

import hypergrad as hg
from hypergrad.learning import make_update
from hypergrad.learning.checkpoints import Checkpoints
from hypergrad.learning.devices import Placement, count_collectives, data_parallel
from hypergrad.learning.variables import Variables, rescale_K
from hypergrad.learning.warm_start import make_batch_gradient

M, N, SAMPLES = 7, 5, 16
DATA = random_data(SAMPLES, N)
K = np.random.default_rng(1).standard_normal((M, N)) / 4
POSTER = Poster(K, L1(np.linspace(0.1, 0.4, M)), Quadratic(1.2), 0.4, 0.5, 1.0, 12)
PROBLEM, SOLVER = to_hypergrad(POSTER)
TRUNCATION = hg.Truncation(3)
# Samples need different numbers of iterations, and so do the devices that have them.
PATIENT = hg.ChambollePock(500, tolerance=1e-6)
# Some samples are near enough to count in some epochs, and others are not.
WARM = {
    "warm_start": hg.WarmStart(residual=1e-2, most=5, share=0.7),
    "strategy": hg.LimitFormula(hg.Steps(2)),
}


LEVELS = np.linspace(0.5, 2.0, SAMPLES)


def with_level(problem: hg.LowerLevel, level: Any) -> hg.LowerLevel:
    """Return the problem of a sample with a noise level."""
    return eqx.tree_at(lambda p: p.F.weight, problem, problem.F.weight * level)


BY_SAMPLE: dict[str, Any] = {
    **WARM,
    "data": (*DATA, LEVELS),
    "validation": (*DATA, LEVELS),
    "sample_problem": with_level,
}


def learn(folder: Path | None = None, **settings: Any) -> hg.History:
    """A run whose optimiser has a state, and with several leaves learned."""
    defaults = {"solver": SOLVER, "strategy": TRUNCATION, "optimizer": optax.adam(0.05)}
    defaults |= {"epochs": 3, "batch_size": 8, "seed": 3, "progress": False}
    defaults |= {"trainable": lambda p: (p.K, p.F.weight), "checkpoint_dir": folder}
    defaults |= {"validation": random_data(3, N, seed=7)}
    defaults |= {"measure": lambda p: {"size": float(np.sum(np.asarray(p.K) ** 2))}}
    settings = defaults | settings
    problem = settings.pop("problem", PROBLEM)
    return hg.train(problem, settings.pop("data", DATA), **settings)


def as_json(history: hg.History) -> dict[str, Any]:
    """A run as JSON."""
    leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(history.problem)]
    return {"leaves": leaves, "records": history.records}


def on_disk(folder: Path) -> list[np.ndarray]:
    """The data as memory maps."""
    files = [folder / f"{name}.npy" for name in ("x_tilde", "x_true")]
    for file, array in zip(files, DATA, strict=True):
        np.save(file, array)
    return [np.load(file, mmap_mode="r") for file in files]


def refusal(call: Callable[[], Any]) -> str:
    """The error of a call, with its class."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("it was not refused")


def refusal_of_disk(folder: Path, error: Exception) -> str:
    """The error of a run whose checkpoint cannot be loaded (in the process that loads it)."""
    with mock.patch.object(Checkpoints, "load", side_effect=error):
        return refusal(lambda: learn(folder, devices=2))


def gradient(mesh: Mesh, solver: hg.ChambollePock, strategy: hg.AbstractStrategy) -> dict[str, Any]:
    """The gradient of all data on a mesh: value, gradient, statistics."""
    place = Placement(mesh)
    on_mesh = eqx.filter_jit(
        place.shard(make_batch_gradient(solver, strategy, hg.half_mean_squared_error, None))
    )
    batch = on_mesh(place.replicate(PROBLEM), *place.rows(DATA), None)
    leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(batch.grad)]
    return {"grad": leaves} | {
        name: float(getattr(batch, name)) for name in ("loss", "converged", "near", "residual")
    }


def collectives(mesh: Mesh, problem: hg.LowerLevel, strategy: hg.AbstractStrategy) -> dict:
    """Those of a whole training step, compiled as users get it, a projection included."""
    place, optimizer = Placement(mesh), optax.adam(0.1)
    variables = Variables(problem, lambda p: p)
    one = make_batch_gradient(SOLVER, strategy, hg.half_mean_squared_error, None)
    update = make_update(variables, place.shard(one), optimizer, rescale_K, 0.0)
    state = place.replicate((problem, optimizer.init(variables.free(problem))))
    x_tilde, x_true = DATA
    lowered = update.lower(*state, *place.rows((x_tilde, x_true, None)))
    return count_collectives(lowered.compile().compiled.as_text())


def every_collective(mesh: Mesh) -> dict[str, int]:
    """Of a program that is known to have several of them."""
    axis, whole = "batch", jax.P()

    def program(x):
        largest = jax.lax.pmax(x, axis)
        everything = jax.lax.all_gather(x, axis)
        shifted = jax.lax.ppermute(x, axis, [(i, (i + 1) % 8) for i in range(8)])
        return jax.lax.psum(x * largest, axis), everything, shifted

    specs = {"in_specs": jax.P(axis), "out_specs": (whole, whole, jax.P(axis))}
    mapped = jax.jit(jax.shard_map(program, mesh=mesh, check_vma=False, **specs))
    return count_collectives(mapped.lower(np.ones(16)).compile().as_text())


# ------------------------------------------------------------------------------------------- jobs


def one_process(folder: Path) -> Iterator[tuple[str, Any]]:
    meshes = {str(size): data_parallel(size) for size in (1, 8)}
    yield "truncation", {name: gradient(mesh, SOLVER, TRUNCATION) for name, mesh in meshes.items()}
    square = jax.make_mesh((2, 4), ("rows", "columns"), (jax.sharding.AxisType.Auto,) * 2)
    yield "square", gradient(square, SOLVER, TRUNCATION)
    yield "patient", gradient(meshes["8"], PATIENT, hg.LimitFormula(hg.Tolerance(1e-6)))

    yield "warm", as_json(learn(devices=4, **WARM))
    yield "by sample", as_json(learn(devices=4, **BY_SAMPLE))
    yield "trained", as_json(learn(folder, devices=2))
    (folder / "checkpoint-000003.npz").unlink()
    yield "resumed", as_json(learn(folder, devices=4, data=on_disk(folder)))

    yield (
        "refused",
        {
            "too many": refusal(lambda: learn(devices=9)),
            "batch": refusal(lambda: learn(devices=4, batch_size=6)),
            "small data": refusal(lambda: learn(devices=4, data=random_data(7, N), batch_size=8)),
            "sum": refusal(lambda: learn(devices=2, loss=lambda x, t: 0.5 * ((x - t) ** 2).sum())),
        },
    )
    jax.config.update("jax_disable_most_optimizations", False)
    yield "all kinds", every_collective(meshes["8"])
    box = hg.LowerLevel(K=PROBLEM.K, F=PROBLEM.F, G=hg.Box(0.3))
    yield (
        "collectives",
        [
            collectives(data_parallel(2), PROBLEM, TRUNCATION),
            collectives(meshes["8"], box, hg.LimitFormula(hg.Steps(3))),
        ],
    )


def two_processes(own: Path) -> Iterator[tuple[str, Any]]:
    yield "truncation", gradient(data_parallel(), SOLVER, TRUNCATION)
    yield "first", as_json(learn(own, devices=2))
    yield "files", sorted(path.name for path in own.glob("*"))
    for path in own.glob("checkpoint-000003.npz"):
        path.unlink()
    # The others have nothing on their disks: the first one tells them.
    yield "again", as_json(learn(own, devices=1))

    other_seed = {"seed": jax.process_index()}
    elsewhere = Mesh(jax.local_devices(process_index=1 - jax.process_index()), "batch")
    yield (
        "refused",
        {
            "warm": refusal(lambda: learn(devices=2, warm_start=True)),
            "elsewhere": refusal(lambda: learn(devices=elsewhere)),
            "other seeds": refusal(lambda: learn(devices=2, **other_seed)),
            "another run": refusal(lambda: learn(own, devices=2, seed=4)),
            "disk": refusal_of_disk(own, OSError("the disk fails")),
            "bug": refusal_of_disk(own, KeyError("records")),
        },
    )


if __name__ == "__main__":
    print(json.dumps(dict(one_process(Path(sys.argv[1])))))
