"""Where training runs: on one device, or each batch shared out over several of them.

Every device computes the hypergradient of its own samples, from its own copy of the problem; what
is summed over the batch is one vector, and its sum over the devices the one collective operation of
a training step. The devices may belong to several processes, on one machine or on several: each of
them runs the same program on the same data, of which it hands its own devices their samples.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from hypergrad._foundation.checks import check_count, describe
from hypergrad._foundation.errors import HypergradError
from hypergrad.bilevel import Loss
from hypergrad.learning.checkpoints import from_stored, to_stored
from hypergrad.learning.warm_start import Visit, Visited
from hypergrad.problem.lower_level import LowerLevel

__all__ = [
    "AbstractPlacement",
    "OnMesh",
    "OneDevice",
    "count_collectives",
    "data_parallel",
    "device_name",
    "placement",
]

# How far a run is, its state and its records; and how that is looked up on a disk.
Stage = tuple[Any, list[dict[str, Any]]]
Load = Callable[[], Stage | None]


def device_name() -> str:
    """The model of JAX's default device, and of how many cores where it is a CPU.

    >>> device_name().startswith("CPU") == (jax.default_backend() == "cpu")
    True
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {os.cpu_count()} cores"


def data_parallel(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices of every process (of all that it has by default).

    **Errors**: a `ValueError` where a process has fewer.

    >>> data_parallel(1).size
    1
    """
    processes = range(jax.process_count())
    found = [jax.local_devices(process_index=i) for i in processes]
    fewest = min(map(len, found))
    if devices is not None:
        check_count("devices", devices)
        if devices > fewest:
            raise HypergradError(
                f"devices must be at most as many as a process has; got {devices}, and "
                f"{fewest} of {found[0][0].device_kind}: a CPU is taken for several by "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
            )
    return Mesh(np.concatenate([own[:devices] for own in found]), ("batch",))


def count_collectives(program: str) -> dict[str, int]:
    """How often each kind of collective operation occurs in the text of a compiled program.

    >>> count_collectives("%sum = f64[3]{0} all-reduce(%part), channel_id=1")
    {'all-reduce': 1}
    """
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    # An asynchronous one is a pair, start and done: the pair counts once.
    found = re.findall(rf" ({kinds}|collective-broadcast)(?:-start)?\(", program)
    return dict(Counter(found))


# -------------------------------------------------------------------------------------- placements


class AbstractPlacement(abc.ABC):
    """Where the parts of a training step lie, and who writes."""

    @property
    @abc.abstractmethod
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""

    @abc.abstractmethod
    def check(self, batch_size: int, *, warm: bool) -> None:
        """Raise a `ValueError` if a run cannot be placed so."""

    @abc.abstractmethod
    def check_loss(self, loss: Loss, x: Array, x_true: Array) -> None:
        """Raise a `ValueError` if a loss cannot be computed so."""

    @abc.abstractmethod
    def check_alike(self, fingerprint: Callable[[], str]) -> None:
        """Raise a `ValueError` in every process if they are not at the same run."""

    @abc.abstractmethod
    def visit(self, visit: Visit) -> Visit:
        """A visit to a whole batch."""

    @abc.abstractmethod
    def rows(self, rows: Any) -> Any:
        """Arrays with a row for each sample, from the host to where their samples are solved."""

    @abc.abstractmethod
    def everywhere(self, tree: Any) -> Any:
        """Arrays that every device needs."""

    @abc.abstractmethod
    def here(self, tree: Any) -> Any:
        """What is everywhere as arrays of this process alone."""

    @abc.abstractmethod
    def from_first(self, load: Load, start: Stage) -> Stage:
        """What the process that writes can load from its disk, else the start."""


class OneDevice(AbstractPlacement):
    """All on JAX's default device."""

    @property
    def writes(self) -> bool:
        return True

    def check(self, batch_size: int, *, warm: bool) -> None:
        pass

    def check_loss(self, loss: Loss, x: Array, x_true: Array) -> None:
        pass

    def check_alike(self, fingerprint: Callable[[], str]) -> None:
        pass

    def visit(self, visit: Visit) -> Visit:
        return visit

    def rows(self, rows: Any) -> Any:
        # JAX takes NumPy's rows as they are, in less time than to place them first.
        return rows

    def everywhere(self, tree: Any) -> Any:
        return tree

    def here(self, tree: Any) -> Any:
        return tree

    def from_first(self, load: Load, start: Stage) -> Stage:
        return load() or start


@dataclasses.dataclass(frozen=True)
class OnMesh(AbstractPlacement):
    """Each batch in equal shares on the devices of a mesh, over all of its axes.

    **Errors**: a `ValueError` for a mesh that is neither of this process alone nor of all.

    **Caveat**: with several processes on CPUs, JAX gives up if they first meet more than 30 s
    apart; later on they wait for each other.
    """

    mesh: Mesh

    def __post_init__(self) -> None:
        everyone, members = set(range(jax.process_count())), self._processes
        if members not in ({jax.process_index()}, everyone):
            raise HypergradError(
                "a mesh must be one of this process's devices, or hold some of every process; got "
                f"one of process {sorted(members)} in process {jax.process_index()} of "
                f"{len(everyone)}: try hypergrad.devices.data_parallel()"
            )

    @property
    def _processes(self) -> set[int]:
        return {device.process_index for device in self.mesh.devices.flat}

    @property
    def writes(self) -> bool:
        return min(self._processes) == jax.process_index()

    def check(self, batch_size: int, *, warm: bool) -> None:
        size = self.mesh.size
        if batch_size % size:
            advice = f"take {size * (batch_size // size) or size}"
            raise HypergradError(
                "batch_size must be a multiple of the number of devices; got "
                f"{batch_size} samples for {size} devices: {advice}"
            )
        if warm and len(self._processes) > 1:
            raise HypergradError(
                "warm_start must stay within one process, which keeps what visits leave; got "
                f"{len(self._processes)} processes: leave it out, or use the devices of one"
            )

    def check_loss(self, loss: Loss, x: Array, x_true: Array) -> None:
        shares = (self.mesh.size, -1, *x.shape[1:])
        parts = zip(x.reshape(shares), x_true.reshape(shares), strict=True)
        mean, whole = np.mean([float(loss(*part)) for part in parts]), float(loss(x, x_true))
        if not np.isclose(whole, mean, rtol=1e-3):
            raise HypergradError(
                "loss must be a mean over the samples where several devices share a batch; got "
                f"{whole:.6g} of a batch, and {mean:.6g} as the mean of its shares: divide a sum "
                "by the number of samples"
            )

    def check_alike(self, fingerprint: Callable[[], str]) -> None:
        if len(self._processes) == 1:
            return
        ours = np.frombuffer(bytes.fromhex(fingerprint()), np.uint8).astype(np.int32)
        axes = self.mesh.axis_names
        add = jax.shard_map(
            lambda row: jax.lax.psum(row[0], axes), mesh=self.mesh, in_specs=P(axes), out_specs=P()
        )
        # The mean over all: no digest but the same one is that in each of its bytes.
        total = jax.jit(add)(self.rows(np.tile(ours, (self.mesh.size, 1))))
        if np.any(np.asarray(total) != self.mesh.size * ours):
            raise HypergradError(
                "every process must train with the same arguments; got others in one of the "
                f"{len(self._processes)}: give them the same data and settings"
            )

    def visit(self, visit: Visit) -> Visit:
        whole, shared = P(), P(self.mesh.axis_names)

        def on_all(problem: LowerLevel, x_tilde: Array, x_true: Array, left: Any) -> Visited:
            arrays, rest = eqx.partition(problem, eqx.is_array)

            def on_one(arrays: LowerLevel, *rows: Any) -> tuple[Visited, Any]:
                own = visit(eqx.combine(arrays, rest), *rows)
                return _combine(own, self.mesh), own.left

            visited, left = jax.shard_map(
                on_one,
                mesh=self.mesh,
                in_specs=(whole, shared, shared, shared),
                out_specs=(whole, shared),
                # With it on, JAX would add a sum of its own to each derivative in the problem.
                check_vma=False,
            )(arrays, x_tilde, x_true, left)
            return visited._replace(left=left)

        return on_all

    def rows(self, rows: Any) -> Any:
        sharding = NamedSharding(self.mesh, P(self.mesh.axis_names))

        def place(rows: np.ndarray) -> Array:
            return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

        return jax.tree.map(place, rows)

    def everywhere(self, tree: Any) -> Any:
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, NamedSharding(self.mesh, P())), rest)

    def here(self, tree: Any) -> Any:
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), arrays), rest)

    def from_first(self, load: Load, start: Stage) -> Stage:
        if len(self._processes) == 1:
            return load() or start
        (state, records), error = start, None
        try:
            state, records = (load() if self.writes else None) or start
        except ValueError as refused:  # in every process, or the others would wait for this one
            error = str(refused)
        state, (records, error) = _broadcast(state, (records, error))
        if error is not None:
            raise HypergradError(error)
        return state, records


def _broadcast(state: Any, about: Any) -> tuple[Any, Any]:
    """Arrays, and something that is JSON, from the first process to all."""
    from jax.experimental import multihost_utils

    arrays, rest = eqx.partition(state, eqx.is_array)
    stored = jax.tree.map(to_stored, arrays)  # not every dtype can be sent
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = (stored, np.resize(text, length))
    stored, text = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(sent))
    arrays = jax.tree.map(from_stored, stored, arrays)
    return eqx.combine(arrays, rest), json.loads(np.asarray(text).tobytes())


def placement(devices: int | Mesh | None) -> AbstractPlacement:
    """What `devices` of `train` stands for."""
    if devices is None:
        return OneDevice()
    if isinstance(devices, Mesh):
        return OnMesh(devices)
    if isinstance(devices, bool) or not isinstance(devices, int):
        raise HypergradError(
            "devices must be a number of devices, a jax.sharding.Mesh or None; got "
            f"{describe(devices)}: try hypergrad.devices.data_parallel()"
        )
    return OnMesh(data_parallel(devices))


def _combine(own: Visited, mesh: Mesh) -> Visited:
    """The visit to the whole batch from that of each device to its share, by one all-reduce.

    (What is left of each sample stays where it is.)
    """
    axes, size = mesh.axis_names, mesh.size
    loss, grad = jax.tree.map(lambda mean: mean / size, (own.loss, own.grad))
    # A maximum would be an all-reduce of its own: each device has a place in the sum instead.
    nothing = jnp.zeros(size, own.residual.dtype)
    residuals = nothing.at[jax.lax.axis_index(axes)].set(own.residual)
    vector, restore = ravel_pytree((loss, grad, own.converged, own.near, residuals))
    loss, grad, converged, near, residuals = restore(jax.lax.psum(vector, axes))
    return Visited(loss, grad, converged, near, jnp.max(residuals), None)
