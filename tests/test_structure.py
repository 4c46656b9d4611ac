"""The house of DESIGN.md: floors, the one list, abstract or final classes, an untouched JAX."""

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


# ------------------------------------------------------------------------------------- floors

# From the ground up: a module imports from lower floors only. A new module gets its floor here.
HOUSE = """
    _contents  _imports  _printing  _samples
    _checks  status
    _compiled  _rows  functions._base
    timing
    operators._base  operators.boundaries  operators.convolutions  operators.products
    operators.filter_bank  operators.image_differences
    operators.norm  operators.usual
    operators.laws
    operators
    functions._blocks  functions._evidence
    functions.indicators  functions.laws  functions.norms  functions.smooth  functions.sums
    functions
    lower_level
    chambolle_pock.iteration
    chambolle_pock.residuals
    chambolle_pock.certificate
    chambolle_pock.acceleration
    chambolle_pock.solver
    chambolle_pock
    adjoint.linear_solves  adjoint.results
    adjoint.recursion
    adjoint.limit_system  adjoint.unrolled
    adjoint.delta_solves
    adjoint.conjugate_gradients
    adjoint
    newton.smoothing
    newton.active_sets
    newton.normal_map
    newton.path
    newton.search
    newton.matrix_free
    newton
    error_bound.result
    error_bound._base
    error_bound.active_set  error_bound.strong_convexity
    error_bound.bound
    error_bound
    strategies._base
    strategies._implicit_peer
    strategies.*
    strategies
    bilevel.arguments  bilevel.losses  bilevel.result
    bilevel.passes
    bilevel.differentiable  bilevel.target_error
    bilevel.hypergradients
    bilevel
    own_parts  strategy_checks
    diagnostics._gradients
    diagnostics.contraction  diagnostics.samples  diagnostics.trajectory
    diagnostics.steps
    diagnostics
    checkpoints  variables  visits
    devices
    training.pairs  training.pieces  training.result
    training.updates
    training.loop
    training
    comparison.pieces  comparison.result
    comparison.reference
    comparison.rows
    comparison.side_by_side
    comparison
    saved_operator
    restoration
    restored_files
    baselines
    image_study.contents  image_study.settings
    image_study.samples
    image_study.baselines  image_study.learning
    image_study.evaluation  image_study.tables
    image_study.pictures
    image_study.stages
    image_study
    benchmark._compilations  benchmark._on_devices
    benchmark.*
    benchmark
    cli
    __main__
"""
FLOORS = {name: i for i, names in enumerate(HOUSE.split("\n")) for name in names.split()}
# What `import hypergrad` offers: nothing inside imports it back.
FLOORS[""] = len(FLOORS)
# Files and figures: no JAX, and only each other, in a house of their own beside the first.
ANNEXE = """
    _arrays  commands  data._checks  door  plotting._checks  progress  records  statistics
    data.samples  terminal
    data._files  data.disparity  data.measures  data.photographs
    data.speech
    data.own
    data
    plotting.styles
    plotting.parts  plotting.saving
    plotting.curves  plotting.pictures
    plotting  sweep
"""
ANNEXE_FLOORS = {name: i for i, names in enumerate(ANNEXE.split("\n")) for name in names.split()}
JAX = {"jax", "jaxlib", "equinox", "lineax", "optax", "optimistix", "jaxopt"}


def short(module: str) -> str:
    """`hypergrad.strategies.limit` to `strategies.limit`."""
    return module.removeprefix("hypergrad").removeprefix(".")


def floor(module: str) -> int:
    """Those of the annexe are all below the house."""
    name = short(module)
    if name in ANNEXE_FLOORS:
        return ANNEXE_FLOORS[name] - len(ANNEXE_FLOORS)
    # One strategy knows no other, and one section of the benchmark neither.
    return FLOORS[name] if name in FLOORS else FLOORS[f"{name.rpartition('.')[0]}.*"]


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
    assert "hypergrad.functions" in inside("hypergrad.lower_level")
    assert "hypergrad.operators" in inside("hypergrad")  # from hypergrad import operators
    assert "hypergrad.strategies._base" in inside("hypergrad.strategies")
    assert "jax.numpy" in set(imports("hypergrad.operators.products"))
    assert "optax" in set(imports("hypergrad.training.updates"))  # in a function
    assert "hypergrad.statistics" in inside("hypergrad.plotting.parts")  # if TYPE_CHECKING
    assert len(SOURCES) > 15


@every_module
def test_every_module_has_a_floor(module):
    assert isinstance(floor(module), int)


@every_module
def test_imports_go_down(module):
    wrong = {name for name in inside(module) if floor(name) >= floor(module)}
    assert not wrong, f"{module} is on floor {floor(module)} and imports {wrong}"


@pytest.mark.parametrize("module", [m for m in SOURCES if short(m) in ANNEXE_FLOORS])
def test_files_and_figures_need_no_jax(module):
    assert not {name.partition(".")[0] for name in imports(module)} & JAX


@pytest.mark.parametrize("module", [m for m in SOURCES if m.startswith("hypergrad.strategies.")])
def test_no_strategy_knows_another(module):
    siblings = {name for name in inside(module) if name.startswith("hypergrad.strategies")}
    assert siblings <= {"hypergrad.strategies._base", "hypergrad.strategies._implicit_peer"}


@every_module
def test_no_module_is_long(module):
    """One that grows beyond this is to be split into rooms."""
    assert len(SOURCES[module].read_text().splitlines()) <= 500


def test_the_public_names_are_those_that_are_imported():
    (public,) = (n for n in TREES["hypergrad"].body if isinstance(n, ast.Assign))
    imported = {
        alias.name
        for node in TREES["hypergrad"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert ast.literal_eval(public.value) == hg.__all__
    assert set(hg.__all__) == imported
    assert len(hg.__all__) == len(imported)


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

MAY_CONFIGURE = {"hypergrad.cli", "hypergrad.__main__"}


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
    assert touches_jax_config(TREES["hypergrad.cli"])
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
