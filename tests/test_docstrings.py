"""Every public name says what it is: the rules of DESIGN 3.6 that can be looked at."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from typing import Any

import pytest

import hypergrad as hg

# What calls return: their examples are those of the calls.
RETURNED = {
    "AdjointTrajectory", "Comparison", "Contraction", "ErrorBound", "History",
    "Hypergradient", "LossBound", "SampleErrors", "Solution", "SolverStats", "State", "StepsNeeded",
    "TargetReport", "Trace",
}  # fmt: skip
# What `train` makes of its `devices`: nobody builds one.
INSIDE = {"devices.Placement"}
# Their examples are those of others, and one of each is enough.
ELSEWHERE = {"load_operator": "SavedOperator", "reference_hypergradient": "Exact"}
# What `solve` and `hypergradient` say of them holds wherever they occur.
EVERYWHERE = {
    "problem", "x_tilde", "x_true", "solver", "strategy", "loss", "init", "K", "seed", "key",
}  # fmt: skip


def _public() -> dict[str, Any]:
    """Classes and functions by the name that a user writes behind `hg.`."""
    places = {"": hg, "operators.": hg.operators, "devices.": hg.devices}
    named = {
        place + name: value
        for place, module in places.items()
        for name, value in vars(module).items()
        if not name.startswith("_") and name in getattr(module, "__all__", vars(module))
    }
    return {
        name: value
        for name, value in named.items()
        if inspect.isclass(value) or inspect.isfunction(value)
        if value.__module__.startswith("hypergrad")
    }


PUBLIC = _public()
every_name = pytest.mark.parametrize("name", PUBLIC)


def doc(name: str) -> str:
    """The docstring that was written for it: an inherited one says nothing of it."""
    return inspect.cleandoc(vars(PUBLIC[name]).get("__doc__") or PUBLIC[name].__doc__ or "")


def parameters(name: str) -> list[str]:
    """What it is built or called with."""
    value = PUBLIC[name]
    if issubclass(type(value), enum.EnumMeta) or inspect.isabstract(value):
        return []
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    return list(inspect.signature(value).parameters)


def test_the_names_are_found() -> None:
    assert {"L1", "train", "operators.FilterBank", "devices.data_parallel"} <= set(PUBLIC)
    assert set(PUBLIC) >= RETURNED | INSIDE | set(ELSEWHERE)


@every_name
def test_it_begins_with_a_sentence(name: str) -> None:
    first = " ".join(doc(name).partition("\n\n")[0].split())
    assert re.match(r"[`(A-Z0-9].*[.:`]$", first), first


@every_name
def test_it_names_its_parameters(name: str) -> None:
    """Those that mean the same everywhere, `solve` and `hypergradient` name."""
    known = set() if name in ("solve", "hypergradient") else EVERYWHERE
    text = doc(name) + doc("solve") * (name == "hypergradient")  # "as for `solve`"
    missing = [p for p in parameters(name) if not re.search(rf"\b{p}(_i|_j)?\b", text)]
    assert not set(missing) - known


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - RETURNED - INSIDE))
def test_it_has_an_example(name: str) -> None:
    """A subclass of what is abstract is an example of it, the tutorial's strategy among them."""
    if not inspect.isabstract(PUBLIC[name]):
        assert ">>> " in doc(ELSEWHERE.get(name, name))


@pytest.mark.parametrize("name", [s.__name__ for s in hg.STRATEGIES.values()])
def test_a_strategy_says_its_formula_cost_caveat_and_source(name: str) -> None:
    text = doc(name)
    for word in ("**Cost**", "**Caveat**", "**Source**"):
        assert word in text, word
    assert re.search(r"\n\n {4}\S.*=", text), "the formula, on lines of its own"


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - RETURNED))
def test_what_takes_much_says_what_it_takes_and_gives(name: str) -> None:
    if len(parameters(name)) <= 5:
        return
    assert "**Arguments**" in doc(name)
    assert "**Returns**" in doc(name) or inspect.isclass(PUBLIC[name])
