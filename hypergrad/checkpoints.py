"""A training run on disk, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._rows import Rows
from hypergrad.records import write_npz

__all__ = ["Checkpoints", "fingerprint_of"]

_CHECKPOINTS_KEPT = 2


class Checkpoints:
    """Numbered files in a folder, the last two kept: the arrays, the records, a fingerprint."""

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder), fingerprint

    def save(self, epoch: int, state: Any, records: list[dict[str, Any]]) -> None:
        leaves = jax.tree.leaves(eqx.filter(state, _is_array))
        arrays = {f"leaf{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        about = json.dumps({"fingerprint": self.fingerprint, "records": records})
        path = self.folder / f"checkpoint-{epoch:06d}.npz"
        write_npz(path, {**arrays, "about": np.array(about)})
        # Later ones than this are damaged, or it would have gone on from there: they do not count.
        behind = [old for old in self._files() if old <= path]
        killed = self.folder.glob(".checkpoint-*.part")  # while they were written
        for old in [*behind[_CHECKPOINTS_KEPT:], *killed]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def load(self, like: Any) -> tuple[Any, list[dict[str, Any]]] | None:
        """The newest checkpoint that can be read, or None; a damaged one is passed over."""
        # What else an operator or a function holds is the run's own: its fingerprint says which.
        arrays, rest = eqx.partition(like, _is_array)
        template = jax.tree.leaves(arrays)
        for path in self._files():
            try:
                leaves, fingerprint, records = self._read(path, len(template))
                if fingerprint == self.fingerprint:
                    leaves = [_fitting(a, t) for a, t in zip(leaves, template, strict=True)]
            except Exception as error:  # whatever a damaged archive makes its reader raise
                print(f"checkpoint {path} is damaged ({error}): the one before it is used, if any")
                continue
            if fingerprint != self.fingerprint:
                raise ValueError(
                    f"checkpoint {path} must come from the same run; got one of other data or "
                    "settings: name another folder, or remove this one"
                )
            return eqx.combine(
                jax.tree.unflatten(jax.tree.structure(arrays), leaves), rest
            ), records
        return None

    @staticmethod
    def _read(path: Path, count: int) -> tuple[list[np.ndarray], str, list[dict[str, Any]]]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            # A checkpoint of another run may hold another number of leaves: that is not damage.
            ours = len(stored.files) == count + 1
            leaves = [stored[f"leaf{i:04d}"] for i in range(count)] if ours else []
            return leaves, about["fingerprint"] if ours else "another", about["records"]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array))


def _fitting(leaf: np.ndarray, template: Any) -> jax.Array:
    """A stored array in the place of one of the run's."""
    found, wanted = ((a.dtype, a.shape) for a in (leaf, template))
    if found != wanted:
        raise ValueError(f"an array is {found} instead of {wanted}")
    return jnp.asarray(leaf)


def fingerprint_of(*parts: Any) -> str:
    """A hash of what makes a run what it is; arrays by their bytes, samples piece by piece."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            for content in _contents(leaf):
                digest.update(content)
        digest.update(_without_addresses(str(jax.tree.structure(part))).encode())
    return digest.hexdigest()


def _contents(leaf: Any) -> Iterator[bytes]:
    if isinstance(leaf, Rows):
        yield from (piece.tobytes() for piece in leaf.pieces())
    elif _is_array(leaf):
        yield np.asarray(leaf).tobytes()
    else:
        yield _without_addresses(repr(leaf)).encode()


def _without_addresses(text: str) -> str:
    """Where a function lies in memory is another place in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
