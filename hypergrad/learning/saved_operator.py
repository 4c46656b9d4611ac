"""Save a learned operator in one file, with all that is needed to restore with it.

The file is a NumPy archive: arrays (`K`, `F.weight`, …), and `about`, JSON that describes the
objects they belong to. Reading it executes nothing: classes are looked up in a fixed table of this
package, or passed by the caller.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from hypergrad._foundation.checks import check_count, describe
from hypergrad._foundation.errors import HypergradError, reason_of
from hypergrad._foundation.records import to_json, write_npz
from hypergrad.chambolle_pock import ChambollePock, RestartedHalpern
from hypergrad.problem import functions, operators
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.problem.measurements import WithMeasurements
from hypergrad.problem.operators import AbstractOperator, matrix_of
from hypergrad.strategies import STRATEGIES, AbstractStrategy, parse_strategy

__all__ = ["SavedOperator", "load_operator"]

_FORMAT = 1


def _classes_of(room: ModuleType, *kinds: type) -> dict[str, type]:
    """Return the classes of these kinds that a room of the package names."""
    named = {name: cls for name, cls in vars(room).items() if isinstance(cls, type)}
    return {name: cls for name, cls in named.items() if issubclass(cls, kinds)}


_KINDS = (
    operators.AbstractOperator,
    operators.AbstractForward,
    operators.AbstractBoundary,
    operators.AbstractConvolution,
)
_OTHERS = (ChambollePock, RestartedHalpern, WithMeasurements)
_CLASSES = {
    **_classes_of(functions, functions.AbstractFunction),
    **_classes_of(operators, *_KINDS),
    **{cls.__name__: cls for cls in _OTHERS},
}
_NAMES = {cls: name for name, cls in _CLASSES.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class SavedOperator:
    """A learned lower level, and how to apply it.

    **Arguments**:

    - `problem`: with a matrix or an operator of this package as `K`.
    - `solver`, `strategy`: those of the training (the strategy matters if it changes the solution,
      as averages do).
    - `shape`: that of one sample before it was flattened, `(8, 8)` or `(160,)`; `(n + p,)` of a
      problem of `with_measurements`.
    - `stride`: the offset in entries between overlapping samples of an image or a sound; unused
      with a `FilterBank`, which restores whole images.
    - `rate`: in Hz for sound. Defaults to None.
    - `settings`: anything else to keep, as JSON values.

    **Errors**: a `HypergradError` if `shape` does not fit K, or a setting is out of range.

    >>> import hypergrad as hg, tempfile
    >>> problem = hg.LowerLevel(K=hg.operators.differences(4), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    >>> learned = hg.SavedOperator(problem, hg.ChambollePock(50), hg.Truncation(1), (4,), stride=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     learned.save(f"{folder}/operator.npz")
    ...     print(hg.load_operator(f"{folder}/operator.npz").problem.K.shape)
    (3, 4)
    """

    problem: LowerLevel
    solver: ChambollePock
    strategy: AbstractStrategy
    shape: tuple[int, ...]
    stride: int
    rate: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 2) or math.prod(self.shape) != self.problem.n:
            raise HypergradError(
                f"shape must be that of one sample, a row or a patch of n={self.problem.n} entries"
                f"; got {self.shape}: give the shape before flattening"
            )
        check_count("stride", self.stride)
        if self.stride > min(self.shape):
            raise HypergradError(
                f"stride must be at most the sides of a sample, {self.shape}; got {self.stride}: "
                "larger ones leave gaps"
            )
        if self.rate is not None:
            check_count("rate", self.rate)

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        **Errors**: a `HypergradError` for an operator of lineax that is no matrix, and for a
        strategy that has no command-line form.
        """
        arrays: dict[str, np.ndarray] = {}
        about = {
            "format": _FORMAT,
            "K": _describe(self.problem.K, "K", arrays),
            "F": _describe(self.problem.F, "F", arrays),
            "G": _describe(self.problem.G, "G", arrays),
            "solver": _describe(self.solver, "solver", arrays),
            "strategy": _spell(self.strategy),
            "shape": self.shape,
            "stride": self.stride,
            "rate": self.rate,
            "settings": self.settings,
        }
        write_npz(path, {**arrays, "about": np.array(to_json(about))})


def load_operator(path: str | Path, *, own: Iterable[type] = ()) -> SavedOperator:
    """Load an operator that `SavedOperator.save` (or `hypergrad train` or `compare`) wrote.

    **Arguments**: `path`, the file; `own`, the custom classes it was learned with (functions, a
    strategy), which the file names but does not import.

    **Errors**: FileNotFoundError if there is no file; a `HypergradError`, naming the file, for one
    that holds something else, or needs a class that was not passed.
    """
    path = Path(path)
    try:
        about, arrays = _read(path)
        classes = {**_CLASSES, **{_full_name(cls): cls for cls in own}}
        about.setdefault("K", {"array": "K"})  # files of matrices did not say so
        K, F, G, solver = (
            _rebuild(about[name], arrays, classes) for name in ("K", "F", "G", "solver")
        )
        return SavedOperator(
            LowerLevel(K=K, F=F, G=G),
            solver,
            _strategy(about["strategy"], classes),
            tuple(about["shape"]),
            about["stride"],
            about["rate"],
            about["settings"],
        )
    except OSError:
        raise
    except _UnknownClassError as error:
        raise HypergradError(f"{path} {error}") from None
    except Exception as error:  # a damaged or foreign archive makes its reader raise anything
        reason = reason_of(error).splitlines()[0]
        raise HypergradError(
            f"{path} must be an operator that `hypergrad train` or `compare` saved; got another "
            f"file ({reason}): name one that they saved"
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # np.load would advise to unpickle it
            raise HypergradError("not a NumPy archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    if "about" not in arrays:
        raise HypergradError(f"only arrays ({', '.join(arrays)}), without 'about'")
    return json.loads(str(arrays.pop("about"))), arrays


class _UnknownClassError(Exception):
    """Report a class in the file that is neither of this package nor passed by the caller."""

    def __init__(self, name: object):
        self.args = (
            f"was learned with {name}, which a file may name but not import: pass it by "
            f"--own {name} or load_operator(..., own=[...])",
        )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


# ---------------------------------------------------------------------------------- as JSON


def _describe(part: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return a part as JSON, and add its arrays to `arrays` by name."""
    if isinstance(part, lx.AbstractLinearOperator) and (matrix := matrix_of(part)) is not None:
        part = matrix
    if isinstance(part, (jax.Array, np.ndarray)):
        arrays[name] = np.asarray(part)
        return {"array": name}
    if isinstance(part, (tuple, list)):
        return [_describe(entry, f"{name}.{i}", arrays) for i, entry in enumerate(part)]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, np.dtype):
        return {"dtype": part.name}
    if isinstance(part, lx.AbstractLinearOperator) and not isinstance(part, AbstractOperator):
        raise HypergradError(
            f"{name} must be a matrix or an operator of hypergrad.operators to be saved; got "
            f"{describe(part)}: keep its arrays with numpy.savez, and rebuild it from them"
        )
    if not dataclasses.is_dataclass(part):
        raise HypergradError(
            f"{name} must be made of functions, numbers and arrays to be saved; got "
            f"{describe(part)}: keep it with your own code"
        )
    fields = {
        field.name: _describe(getattr(part, field.name), f"{name}.{field.name}", arrays)
        for field in dataclasses.fields(part)
    }
    cls = type(part)
    return {"class": _NAMES.get(cls, _full_name(cls)), "fields": fields}


def _rebuild(about: Any, arrays: Mapping[str, np.ndarray], classes: Mapping[str, type]) -> Any:
    if isinstance(about, list):
        return tuple(_rebuild(entry, arrays, classes) for entry in about)
    if not isinstance(about, dict):
        return about
    if "array" in about:
        return jnp.asarray(arrays[about["array"]])
    if "dtype" in about:  # as that of an array, which is of single precision without x64
        return jax.dtypes.canonicalize_dtype(about["dtype"])
    if about["class"] not in classes:
        raise _UnknownClassError(about["class"])
    fields = {k: _rebuild(entry, arrays, classes) for k, entry in about["fields"].items()}
    return classes[about["class"]](**fields)


def _spell(strategy: AbstractStrategy) -> dict[str, str]:
    """Return the class of a strategy and its options, as the command line writes them."""
    cls, options = type(strategy), strategy.label.partition(":")[2]
    about = {"class": _strategy_name(cls), "options": options}
    if not eqx.tree_equal(_strategy(about, {about["class"]: cls}), strategy):
        raise HypergradError(
            f"a strategy must have a command-line form to be saved; got {strategy}: use another "
            "one, or keep it with your own code"
        )
    return about


def _strategy_name(cls: type[AbstractStrategy]) -> str:
    return cls.name if STRATEGIES.get(cls.name) is cls else _full_name(cls)


def _strategy(about: Mapping[str, str], classes: Mapping[str, type]) -> AbstractStrategy:
    if about["class"] not in STRATEGIES and about["class"] not in classes:
        raise _UnknownClassError(about["class"])
    # The class is of this package, or already imported by the caller.
    return parse_strategy(":".join(filter(None, [about["class"], about["options"]])))
