"""The commands of the README, and the strategy of the tutorial.

The Python of both is run as it is written in test_guides.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg
from hypergrad.problem.lower_level import cast_floats

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "hypergrad/workbench/guides/comparing.md").read_text(encoding="utf-8")
STRATEGY = re.findall(r"```python\n(.*?)```", TUTORIAL, flags=re.DOTALL)[0]


def test_the_first_commands_are_the_main_job_and_the_tests():
    """Scripts take them from here, the second one that of continuous integration."""
    commands = re.findall(r"```bash\n(.*?)\n```", README, flags=re.DOTALL)
    assert [line.rpartition("/")[2] for line in commands[:2]] == ["hypergrad compare", "pytest"]


def patient_strategy():
    """As in a file of its own: this file's `from __future__` is not to be inherited."""
    namespace: dict[str, Any] = {}
    exec(compile(STRATEGY, "comparing.md", "exec", dont_inherit=True), namespace)
    return namespace["PatientOneStep"]


def test_the_new_strategy_is_short():
    lines = [line for line in STRATEGY.splitlines() if line.strip()]
    assert len(lines) < 30


def test_the_new_strategy_is_truncation_from_a_better_start(key):
    # By its definition: with patience p and L iterations it takes p (L - 1) + 1 iterations and
    # differentiates the last one.
    keys = jax.random.split(key, 2)
    problem = hg.LowerLevel(
        K=hg.operators.random(7, 5, key=keys[0]), F=hg.L1(0.1), G=hg.Quadratic(1.0)
    )
    x_tilde = jax.random.normal(keys[1], (3, 5))
    x_true = jnp.zeros_like(x_tilde)
    mine = hg.hypergradient(
        problem, x_tilde, x_true, solver=hg.ChambollePock(10), strategy=patient_strategy()(3)
    )
    same = hg.hypergradient(
        problem, x_tilde, x_true, solver=hg.ChambollePock(28), strategy=hg.Truncation(1)
    )
    for a, b in zip(
        jax.tree.leaves((mine.value, mine.grad, mine.grad_x_tilde)),
        jax.tree.leaves((same.value, same.grad, same.grad_x_tilde)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_the_new_strategy_with_a_tolerance(key):
    # A while loop cannot be differentiated in reverse: what comes before must be held fixed whole.
    problem = hg.LowerLevel(K=hg.operators.random(7, 5, key=key), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    solver = hg.ChambollePock(5000, tolerance=1e-10)
    h = hg.hypergradient(
        problem, jnp.ones((2, 5)), jnp.zeros((2, 5)), solver=solver, strategy=patient_strategy()()
    )
    assert np.all(np.asarray(h.solution.stats.status) == hg.Status.CONVERGED)


def test_the_new_strategy_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(STRATEGY, encoding="utf-8")
    parse = "import hypergrad as hg; print(hg.parse_strategy('mine:PatientOneStep:patience=3'))"
    result = subprocess.run(
        [sys.executable, "-c", parse],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "PatientOneStep(patience=3)"


def test_float32_and_float64_agree_on_the_quick_start(key):
    problem = hg.LowerLevel(K=hg.operators.differences(12), F=hg.L1(0.1), G=hg.Quadratic(1.0))
    x_tilde = jax.random.normal(key, (3, 12))
    x64 = hg.solve(problem, x_tilde, strategy=hg.Truncation(1)).x
    x32 = hg.solve(
        cast_floats(problem, jnp.float32),
        x_tilde.astype(jnp.float32),
        strategy=hg.Truncation(1),
    ).x
    assert x32.dtype == jnp.float32
    np.testing.assert_allclose(x32, x64, atol=1e-5)
