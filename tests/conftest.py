"""Tests run in float64, under strict dtype promotion, with the package's shapes checked."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

# Compiling is nearly all that the tests do, and XLA's emitter of single fusions takes two thirds of
# it; narrow vectors are compiled sooner. (An unknown flag would end the process, so only where it
# has been seen.)
if version("jax").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        " --xla_cpu_prefer_vector_width=128"
    )

import jax
import jaxtyping
import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# One core for each worker, before JAX counts them: the threads of one get in the way of the others.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if _WORKER and hasattr(os, "sched_setaffinity"):
    _CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CORES[int(_WORKER) % len(_CORES)]})

# Tracing makes millions of objects and hardly a cycle. At Python's thresholds, searching all that
# was imported for cycles again and again takes a tenth of the time.
gc.set_threshold(200_000, 10, 10)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# A program that compiles quickly and runs a little longer is the better bargain (tests that read a
# compiled program ask for the `optimised` one). The processes that tests start do so, too.
jax.config.update("jax_disable_most_optimizations", True)
# The command line would keep programs in the user's cache. Processes that tests start keep none;
# this one keeps its own for as long as it lives, since modules make each other's programs again.
# (A folder for each worker: JAX may read a file that another process is still writing.)
_PROGRAMS = tempfile.mkdtemp(prefix="hypergrad-programs-")
atexit.register(shutil.rmtree, _PROGRAMS, ignore_errors=True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", _PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The draws of the property tests: the same few in every run, or `--hypothesis-profile thorough`.
# What they draw are seeds, of which none is simpler than another: nothing to shrink. What is
# compiled first may take its time.
_SEEDS = settings(phases=[Phase.generate], database=None, deadline=None)
settings.register_profile("everyday", _SEEDS, max_examples=5, derandomize=True)
settings.register_profile("thorough", _SEEDS, max_examples=100)
settings.load_profile("everyday")

# Every annotated function of the numerical core then checks the shapes of what it is given. It has
# to be in place before the package is imported for the first time.
_CORE = (
    "problem",
    "chambolle_pock",
    "adjoint",
    "strategies",
    "bilevel",
    "diagnostics",
)
install_import_hook([f"hypergrad.{module}" for module in _CORE], "beartype.beartype")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def _every_module_begins_alike() -> Iterator[None]:
    """Thousands of compiled programs in one process run into the system's limit of mappings.

    A module that compiles in another way must not slow down all that come after it.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.clear_caches()


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs as users get them."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def no_type_checker() -> Iterator[None]:
    """What users see: the runtime type checker of the other tests would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the limit formula: the reference, `Exact`, compiles ten times as long."""
    # Imported here, or the hook above would come too late.
    from hypergrad import LimitFormula
    from hypergrad.comparison import reference

    monkeypatch.setattr(reference, "Exact", lambda most: LimitFormula())
