"""A training run on disk, so that it can be resumed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.records import write_npz

__all__ = ["Checkpoints", "from_stored", "to_stored"]

_CHECKPOINTS_KEPT = 2
_Records = list[dict[str, Any]]


class Checkpoints:
    """Numbered files in a folder, the last two kept: the arrays, the records, and whose they are.

    `run` says what makes the run what it is, by name: short words, or digests of what is long.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, str]):
        self.folder, self.run = Path(folder), dict(run)

    def save(self, epoch: int, state: Any, records: _Records) -> None:
        """Write a checkpoint, whole or not at all, and remove those before the last two."""
        leaves = jax.tree.leaves(eqx.filter(state, _is_array))
        arrays = {f"leaf{i:04d}": to_stored(leaf) for i, leaf in enumerate(leaves)}
        about = json.dumps({"run": self.run, "records": records})
        path = self.folder / f"checkpoint-{epoch:06d}.npz"
        write_npz(path, {**arrays, "about": np.array(about)})
        # Later ones than this are damaged, or it would have gone on from there: they do not count.
        behind = [old for old in self._files() if old <= path]
        killed = self.folder.glob(".checkpoint-*.part")  # while they were written
        for old in [*behind[_CHECKPOINTS_KEPT:], *killed]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def load(self, like: Any) -> tuple[Any, _Records] | None:
        """The newest checkpoint that can be read, or None; reports the damaged ones.

        **Errors**: a `ValueError` for a checkpoint that can be read and does not belong to the run;
        an `OSError` where the disk refuses, which is no damage of the file.
        """
        damaged: dict[Path, Exception] = {}
        found = None
        for path in self._files():
            content = path.read_bytes()  # where the disk refuses, the file is not damaged
            try:
                found = path, *_parsed(content)
                break
            except Exception as error:  # whatever a damaged archive makes its reader raise
                damaged[path] = error
        what = "the one before it is used"
        if found is None:
            what = f"no other in {self.folder} can be read, so training starts from its beginning"
        for path, error in damaged.items():
            print(f"checkpoint {path} is damaged ({error}): {what}")
        return None if found is None else self._checked(*found, like)

    def _checked(
        self,
        path: Path,
        leaves: list[np.ndarray],
        run: dict[str, str],
        records: _Records,
        like: Any,
    ) -> tuple[Any, _Records]:
        """What was read, in the places of the arrays of `like`."""
        # What else an operator or a function holds is the run's own, which is the same one.
        arrays, rest = eqx.partition(like, _is_array)
        template = jax.tree.leaves(arrays)
        other = _differences(run, self.run)
        if not other and list(map(_kind, leaves)) != [_kind(to_stored(t)) for t in template]:
            other = f"other arrays ({len(leaves)} where there are {len(template)} here)"
        if other:
            raise HypergradError(
                f"checkpoint {path} must come from the same run; got one of {other}: name another "
                "folder, or remove this one"
            )
        restored = map(from_stored, leaves, template)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), restored)
        return eqx.combine(arrays, rest), records


def _parsed(content: bytes) -> tuple[list[np.ndarray], dict[str, str], _Records]:
    """The arrays, whose run they are of, and the records."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        if "fingerprint" in about:  # before there were names for what makes a run
            return [], {}, about["records"]
        leaves = [stored[f"leaf{i:04d}"] for i in range(len(stored.files) - 1)]
        return leaves, dict(about["run"]), about["records"]


def _differences(stored: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """The names of what differs, with both values where they are words; empty if nothing does."""

    def difference(name: str) -> str:
        pair = [run.get(name, "none") for run in (stored, ours)]
        is_short = all(len(value) < 64 for value in pair)
        return f"another {name}" + (f" ({pair[0]}, not {pair[1]})" if is_short else "")

    if not stored:
        return "an earlier version of hypergrad"
    return ", ".join(difference(name) for name in ours if stored.get(name) != ours[name])


# ---- arrays as NumPy's files hold them


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape


def to_stored(leaf: Any) -> np.ndarray:
    """An array of NumPy's own dtypes: the data of a random key, the bits of a bfloat16."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def from_stored(stored: np.ndarray, template: Any) -> jax.Array:
    """What `to_stored` was given, an array like the template."""
    if _is_key(template):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(template))
    is_own = np.dtype(template.dtype).isbuiltin == 1
    return jnp.asarray(stored if is_own else stored.view(template.dtype))
