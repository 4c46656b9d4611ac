"""Save a training run to disk and resume it."""

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
    """Numbered files in a folder: the arrays and records of a run; the last two files are kept.

    `run` identifies the run, by name: short values as they are, and digests of long ones.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, str]):
        self.folder, self.run = Path(folder), dict(run)

    def save(self, epoch: int, state: Any, records: _Records) -> None:
        """Write a checkpoint atomically, and remove all before the last two."""
        leaves = jax.tree.leaves(eqx.filter(state, _is_array))
        arrays = {f"leaf{i:04d}": to_stored(leaf) for i, leaf in enumerate(leaves)}
        about = json.dumps({"run": self.run, "records": records})
        path = self.folder / f"checkpoint-{epoch:06d}.npz"
        write_npz(path, {**arrays, "about": np.array(about)})
        # Later ones are damaged, or the run would have continued from them: they do not count.
        earlier = [old for old in self._files() if old <= path]
        unfinished = self.folder.glob(".checkpoint-*.part")  # of a process that was killed
        for old in [*earlier[_CHECKPOINTS_KEPT:], *unfinished]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def load(self, like: Any) -> tuple[Any, _Records] | None:
        """Return the newest checkpoint that can be read, or None; report the damaged ones.

        **Errors**: a `HypergradError` for a readable checkpoint of another run; an `OSError` if the
        disk fails, which does not mean that the file is damaged.
        """
        damaged: dict[Path, Exception] = {}
        found = None
        for path in self._files():
            content = path.read_bytes()  # if the disk fails, the file is not damaged
            try:
                found = path, *_parsed(content)
                break
            except Exception as error:  # whatever a damaged archive makes its reader raise
                damaged[path] = error
        consequence = "the one before it is used"
        if found is None:
            consequence = f"no other in {self.folder} can be read, so training starts anew"
        for path, error in damaged.items():
            print(f"checkpoint {path} is damaged ({error}): {consequence}")
        return None if found is None else self._checked(*found, like)

    def _checked(
        self,
        path: Path,
        leaves: list[np.ndarray],
        run: dict[str, str],
        records: _Records,
        like: Any,
    ) -> tuple[Any, _Records]:
        """Return `like` with its arrays replaced, after checking that they are of the same run."""
        # Whatever else an operator or a function holds is that of the run, which is the same.
        arrays, rest = eqx.partition(like, _is_array)
        template = jax.tree.leaves(arrays)
        differences = _differences(run, self.run)
        if not differences and list(map(_kind, leaves)) != [_kind(to_stored(t)) for t in template]:
            differences = f"other arrays ({len(leaves)} where there are {len(template)} here)"
        if differences:
            raise HypergradError(
                f"checkpoint {path} must come from the same run; got one of {differences}: "
                "name another folder, or remove this one"
            )
        restored = map(from_stored, leaves, template)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), restored)
        return eqx.combine(arrays, rest), records


def _parsed(content: bytes) -> tuple[list[np.ndarray], dict[str, str], _Records]:
    """Return the arrays, the run they belong to, and the records."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        if "fingerprint" in about:  # of versions that did not name the parts of a run
            return [], {}, about["records"]
        leaves = [stored[f"leaf{i:04d}"] for i in range(len(stored.files) - 1)]
        return leaves, dict(about["run"]), about["records"]


def _differences(stored: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Name what differs, with both values if they are short; empty if nothing does."""

    def difference(name: str) -> str:
        pair = [run.get(name, "none") for run in (stored, ours)]
        is_short = all(len(value) < 64 for value in pair)
        return f"another {name}" + (f" ({pair[0]}, not {pair[1]})" if is_short else "")

    if not stored:
        return "an earlier version of hypergrad"
    return ", ".join(difference(name) for name in ours if stored.get(name) != ours[name])


# ---- arrays in NumPy's files


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape


def to_stored(leaf: Any) -> np.ndarray:
    """Convert to an array of NumPy's dtypes: the data of a random key, the bits of a bfloat16."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def from_stored(stored: np.ndarray, template: Any) -> jax.Array:
    """Invert `to_stored`, for an array like the template."""
    if _is_key(template):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(template))
    is_numpy = np.dtype(template.dtype).isbuiltin == 1
    return jnp.asarray(stored if is_numpy else stored.view(template.dtype))
