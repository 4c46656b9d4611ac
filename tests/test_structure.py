"""The house: rooms, the one list, abstract or final classes, an untouched JAX."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hypergrad as hg

PACKAGE = Path(hg.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", SOURCES)


# -------------------------------------------------------------------------------------- rooms

# From the ground up. A room imports from rooms before it; `workbench`, the last, is no library.
ROOMS = [
    *("_foundation", "plotting", "problem", "chambolle_pock", "adjoint", "exact", "strategies"),
    *("bilevel", "diagnostics", "learning", "comparison", "testing", "workbench"),
]
JAX = {"jax", "jaxlib", "equinox", "lineax", "optax", "optimistix", "jaxopt"}


def room(module: str) -> str:
    """`hypergrad.strategies.limit` to `strategies`; the front and `__main__` have none."""
    return module.partition(".")[2].partition(".")[0]


def imports(module: str) -> Iterator[str]:
    """All that a module imports, inside its functions too; submodules where they are meant."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in SOURCES else base


def inside(module: str) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == "hypergrad"}


def test_the_walk_sees_imports():
    """The tests below would pass on an empty list."""
    assert "hypergrad.problem.functions" in inside("hypergrad.problem.lower_level")
    assert "hypergrad.problem.operators" in inside("hypergrad")  # from … import operators
    assert "hypergrad.strategies._base" in inside("hypergrad.strategies")
    assert "jax.numpy" in set(imports("hypergrad.problem.operators.products"))
    assert "optax" in set(imports("hypergrad.learning.updates"))  # in a function
    assert "hypergrad._foundation.statistics" in inside("hypergrad.plotting.parts")
    assert len(SOURCES) > 15


def test_the_package_is_its_rooms():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert entries == {*ROOMS, "__init__.py", "__main__.py", "py.typed"}


@every_module
def test_imports_go_down(module):
    """Nothing in the library imports the workbench, and no room one above it."""
    if room(module) in ROOMS:
        above = ROOMS[ROOMS.index(room(module)) + 1 :]
        assert not {name for name in inside(module) if room(name) in ["", *above]}


def all_inside(module: str) -> set[str]:
    """A module, all of ours that it imports, all that these import, and so on."""
    found, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name in SOURCES and name not in found:
            found.add(name)
            queue += inside(name)
    return found


@pytest.mark.parametrize("module", [m for m in SOURCES if room(m) == "plotting"])
def test_nothing_that_draws_imports_jax(module):
    reached = {name.partition(".")[0] for inner in all_inside(module) for name in imports(inner)}
    assert not reached & JAX


@pytest.mark.parametrize("module", [m for m in SOURCES if m.startswith("hypergrad.strategies.")])
def test_no_strategy_knows_another(module):
    siblings = {name for name in inside(module) if name.startswith("hypergrad.strategies")}
    assert siblings <= {"hypergrad.strategies._base", "hypergrad.strategies._implicit_peer"}


@every_module
def test_no_module_is_long(module):
    """One that grows beyond this is to be split into rooms."""
    assert len(SOURCES[module].read_text().splitlines()) <= 500


@every_module
def test_errors_of_ours_are_a_class_of_ours(module):
    """A plain ValueError counts as a bug and shows its traceback on the command line."""
    raised = {ast.unparse(node) for node in ast.walk(TREES[module]) if isinstance(node, ast.Raise)}
    assert not [text for text in raised if text.startswith("raise ValueError")]
    assert issubclass(hg.HypergradError, ValueError)


def test_the_public_names_are_those_that_are_imported():
    imported = {
        alias.name
        for node in TREES["hypergrad"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert len(hg.__all__) == len(set(hg.__all__))
    assert set(hg.__all__) == imported - {"Any", "functions", "lower_level", "renamed"}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (hg, "Chosen", hg.TargetReport),
        (hg, "LeastSquares", hg.CGLS),
        (hg, "Linear", hg.LinearWeights),
        (hg.operators, "check_operator", hg.check_operator),
    ],
)
def test_old_names_are_found_with_a_warning(module, old, new):
    with pytest.warns(DeprecationWarning, match="renamed"):
        assert getattr(module, old) is new


def test_the_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()


# ------------------------------------------------------------------------------------ classes


def classes() -> list[type]:
    """Every class that the package defines (importing `__main__` would run it)."""
    found = []
    for name in SOURCES:
        if name != "hypergrad.__main__":
            members = vars(importlib.import_module(name)).values()
            found += [c for c in members if isinstance(c, type) and c.__module__ == name]
    return found


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "hypergrad"


def test_classes_are_abstract_or_final():
    """`Abstract…` means that a method is missing; nobody subclasses a class that lacks none."""
    assert {hg.L1, hg.Truncation, hg.AbstractFunction} <= set(classes())  # they are being found
    wrong = []
    for cls in classes():
        if cls.__name__.lstrip("_").startswith("Abstract") != inspect.isabstract(cls):
            wrong.append(f"{cls}: a name with Abstract if and only if a method is missing")
        for base in filter(is_ours, cls.__mro__[1:]):
            if not inspect.isabstract(base):
                wrong.append(f"{cls} extends {base}, which is concrete")
    assert not wrong


@every_module
def test_no_super(module):
    """A method is implemented once."""
    names = {node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)}
    assert "super" not in names


def concrete_subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from concrete_subclasses(subclass)


def test_every_strategy_is_in_the_list():
    classes()  # they have to be imported to be seen
    package = {cls for cls in concrete_subclasses(hg.AbstractStrategy) if is_ours(cls)}
    assert package == set(hg.STRATEGIES.values())


@pytest.mark.parametrize("name", hg.STRATEGIES)
def test_strategies_are_listed_under_their_own_names(name):
    strategy = hg.STRATEGIES[name]
    assert vars(strategy)["name"] == name
    for described in ("formula", "cost", "caveat"):
        assert vars(strategy)[described], f"the table needs the {described} of {name}"
    # The label is what one types: it leads back to the same strategy.
    assert hg.parse_strategy(strategy().label) == strategy()


# -------------------------------------------------------------------------- JAX's configuration

MAY_CONFIGURE = {
    "hypergrad.workbench.command_line.main",
    "hypergrad.workbench.sweep.workers",  # in the processes that it starts
    "hypergrad.__main__",
}


def touches_jax_config(tree: ast.AST) -> bool:
    """`jax.config`, however it is spelt; a context manager of JAX is local and does not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config":
            return True
        from_jax = isinstance(node, ast.ImportFrom) and node.module == "jax"
        if from_jax and "config" in {alias.name for alias in node.names}:
            return True
    return False


def test_the_walk_sees_jax_config():
    assert touches_jax_config(TREES["hypergrad.workbench.command_line.main"])
    assert touches_jax_config(ast.parse("from jax import config as c"))
    assert not touches_jax_config(ast.parse("config = jax.numpy"))


@pytest.mark.parametrize("module", [m for m in SOURCES if m not in MAY_CONFIGURE])
def test_the_library_leaves_jax_as_it_is(module):
    assert not touches_jax_config(TREES[module])


IMPORT = """
import json, sys, jax
before = dict(jax.config.values)
import hypergrad
changed = [name for name, value in jax.config.values.items() if before.get(name) != value]
json.dump({"modules": sorted(sys.modules), "changed": changed}, sys.stdout)
"""


def test_import_is_light_and_silent():
    """No peer (they are optional), no figures, no data, no warning, no setting changed."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert "hypergrad.bilevel" in result["modules"]
    assert not {"jaxopt", "optimistix", "optax", "rich", "matplotlib", "skimage"} & set(
        result["modules"]
    )
    assert result["changed"] == []
