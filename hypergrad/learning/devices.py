"""Train on one device, or split each batch over several.

Every device computes the hypergradient of its share of the batch, with a copy of the problem. All
sums over the batch form one vector, and a training step has one collective operation: the sum of
that vector over the devices. The devices may belong to several processes, on one machine or on
several. Each process runs the same program on the same data and sends its devices their samples.
"""

from __future__ import annotations

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
from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad.bilevel import Loss
from hypergrad.learning.checkpoints import from_stored, to_stored
from hypergrad.learning.warm_start import BatchGradient, ComputeGradient
from hypergrad.problem.lower_level import LowerLevel

__all__ = ["Placement", "count_collectives", "data_parallel", "device_name"]

# The state of a run and its records.
Progress = tuple[Any, list[dict[str, Any]]]


def device_name() -> str:
    """Return the model of JAX's default device; for a CPU, its number of cores.

    >>> device_name().startswith("CPU") == (jax.default_backend() == "cpu")
    True
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {os.cpu_count()} cores"


def data_parallel(devices: int | None = None) -> Mesh:
    """Return a mesh of the first `devices` devices of every process (by default, of all).

    **Errors**: a `HypergradError` if a process has fewer.

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
                f"{fewest} of {found[0][0].device_kind}: to split a CPU, set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
            )
    return Mesh(np.concatenate([own[:devices] for own in found]), ("batch",))


def count_collectives(program: str) -> dict[str, int]:
    """Count the collective operations in the text of a compiled program, by kind.

    >>> count_collectives("%sum = f64[3]{0} all-reduce(%part), channel_id=1")
    {'all-reduce': 1}
    """
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    # An asynchronous operation is a pair, start and done, and counts once.
    found = re.findall(rf" ({kinds}|collective-broadcast)(?:-start)?\(", program)
    return dict(Counter(found))


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a training run: those of `mesh`, in all its axes, or JAX's default device.

    On a mesh, each batch is split into equal shares. On the default device (`mesh` None) nothing is
    split or moved, so that training costs no more than a plain JAX program.

    **Errors**: a `HypergradError` for a mesh that is neither of this process alone nor of all.

    **Caveat**: with several processes on CPUs, JAX gives up if their first collective operations
    start more than 30 s apart; later ones wait.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, devices: int | Mesh | None) -> Placement:
        """Return the placement for the argument `devices` of `train`."""
        if devices is None or isinstance(devices, Mesh):
            return cls(devices)
        if isinstance(devices, bool) or not isinstance(devices, int):
            raise HypergradError(
                "devices must be a number of devices, a jax.sharding.Mesh or None; got "
                f"{describe(devices)}: try hypergrad.devices.data_parallel()"
            )
        return cls(data_parallel(devices))

    def __post_init__(self) -> None:
        everyone, members = set(range(jax.process_count())), self._processes
        if members not in ({jax.process_index()}, everyone):
            raise HypergradError(
                "a mesh must be one of this process's devices, or hold some of every process; got "
                f"one of process {sorted(members)} in process {jax.process_index()} of "
                f"{len(everyone)}: try hypergrad.devices.data_parallel()"
            )

    @property
    def _size(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def _processes(self) -> set[int]:
        if self.mesh is None:
            return {jax.process_index()}
        return {device.process_index for device in self.mesh.devices.flat}

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return min(self._processes) == jax.process_index()

    def check(self, batch_size: int, *, warm: bool) -> None:
        """Raise an error if the devices cannot share a batch or keep warm starts."""
        if batch_size % self._size:
            size = self._size * (batch_size // self._size) or self._size
            raise HypergradError(
                "batch_size must be a multiple of the number of devices; got "
                f"{batch_size} samples for {self._size} devices: take {size}"
            )
        if warm and len(self._processes) > 1:
            raise HypergradError(
                "warm_start must stay within one process, which stores the state of every sample; "
                f"got {len(self._processes)} processes: leave it out, or use the devices of one"
            )

    def check_loss(self, loss: Loss, x: Array, x_true: Array) -> None:
        """Raise an error if a loss is not the mean of the losses of the shares."""
        if self._size == 1:
            return
        shares = (self._size, -1, *x.shape[1:])
        parts = zip(x.reshape(shares), x_true.reshape(shares), strict=True)
        mean, whole = np.mean([float(loss(*part)) for part in parts]), float(loss(x, x_true))
        if not np.isclose(whole, mean, rtol=1e-3, atol=0):
            raise HypergradError(
                "loss must be a mean over the samples where several devices share a batch; got "
                f"{whole:.6g} of a batch, and {mean:.6g} as the mean of its shares: divide a sum "
                "by the number of samples"
            )

    def check_alike(self, fingerprint: Callable[[], str]) -> None:
        """Raise an error in every process if they do not all train the same run."""
        if self.mesh is None or len(self._processes) == 1:
            return
        digest = np.frombuffer(bytes.fromhex(fingerprint()), np.uint8).astype(np.int32)
        axes = self.mesh.axis_names
        extremes = jax.shard_map(
            lambda row: (jax.lax.pmin(row[0], axes), jax.lax.pmax(row[0], axes)),
            mesh=self.mesh,
            in_specs=P(axes),
            out_specs=P(),
        )
        least, largest = jax.jit(extremes)(self.rows(np.tile(digest, (self._size, 1))))
        if np.any(np.asarray(least) != np.asarray(largest)):
            raise HypergradError(
                "every process must train with the same arguments; got others in one of the "
                f"{len(self._processes)}: give them the same data and settings"
            )

    def shard(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """Return a function that computes the gradient of a batch, each device for its share."""
        mesh = self.mesh
        if mesh is None:
            return compute_gradient
        whole, shared = P(), P(mesh.axis_names)

        def on_all(problem: LowerLevel, *rows: Any) -> BatchGradient:
            arrays, rest = eqx.partition(problem, eqx.is_array)

            def on_one(arrays: LowerLevel, *rows: Any) -> tuple[BatchGradient, Any]:
                share = compute_gradient(eqx.combine(arrays, rest), *rows)
                return _combine(share, mesh), share.next_state

            gradient, next_state = jax.shard_map(
                on_one,
                mesh=mesh,
                in_specs=(whole, *(shared for _ in rows)),
                out_specs=(whole, shared),
                # With it on, JAX would sum each derivative in the problem separately.
                check_vma=False,
            )(arrays, *rows)
            return gradient._replace(next_state=next_state)

        return on_all

    def rows(self, rows: Any, *, axis: int = 0) -> Any:
        """Send arrays with a row for each sample, along an axis, to the devices that hold them."""
        if self.mesh is None:  # JAX takes NumPy's rows as they are, faster than placed ones
            return rows
        sharding = NamedSharding(self.mesh, P(*[None] * axis, self.mesh.axis_names))

        def place(rows: np.ndarray) -> Array:
            return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

        return jax.tree.map(place, rows)

    def replicate(self, tree: Any) -> Any:
        """Copy the arrays of a pytree to every device."""
        if self.mesh is None:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, NamedSharding(self.mesh, P())), rest)

    def to_host(self, tree: Any) -> Any:
        """Return a replicated pytree as arrays on this process's default device."""
        if self.mesh is None:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), arrays), rest)

    def load(self, load: Callable[[], Progress | None], start: Progress) -> Progress:
        """Return what the process that writes can load from its disk, else `start`."""
        if len(self._processes) == 1:
            return load() or start
        (state, records), failure = start, None
        try:
            state, records = (load() if self.writes else None) or start
        except Exception as error:  # sent to all processes: without it they would wait for ever
            failure = error
        reason = None if failure is None else reason_of(failure)
        state, (records, reason) = _broadcast(state, (records, reason))
        if failure is not None:
            raise failure
        if reason is not None:
            raise HypergradError(reason)
        return state, records


def _broadcast(state: Any, about: Any) -> tuple[Any, Any]:
    """Send the arrays of a pytree, and a value that JSON can hold, from the first process."""
    from jax.experimental import multihost_utils

    arrays, rest = eqx.partition(state, eqx.is_array)
    stored = jax.tree.map(to_stored, arrays)  # not every dtype can be sent
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = (stored, np.resize(text, length))
    stored, text = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(sent))
    arrays = jax.tree.map(from_stored, stored, arrays)
    return eqx.combine(arrays, rest), json.loads(np.asarray(text).tobytes())


def _combine(share: BatchGradient, mesh: Mesh) -> BatchGradient:
    """Combine the gradients of the shares into that of the batch, by one all-reduce.

    The states of the samples stay on their devices.
    """
    axes, size = mesh.axis_names, mesh.size
    loss, grad = jax.tree.map(lambda mean: mean / size, (share.loss, share.grad))
    # A maximum would be a second all-reduce, so each device has an entry of the sum instead.
    zeros = jnp.zeros(size, share.residual.dtype)
    residuals = zeros.at[jax.lax.axis_index(axes)].set(share.residual)
    vector, restore = ravel_pytree((loss, grad, share.converged, share.near, residuals))
    loss, grad, converged, near, residuals = restore(jax.lax.psum(vector, axes))
    return BatchGradient(loss, grad, converged, near, jnp.max(residuals), None)
