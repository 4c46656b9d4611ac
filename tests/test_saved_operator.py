"""Learned operators on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from restoring import ROWS, learned

import hypergrad as hg
from hypergrad import operators
from hypergrad._foundation.records import write_npz
from hypergrad.learning import saved_operator


class Scaled(hg.AbstractFunction):
    """A function of one's own."""

    weight: float = 1.0

    def __call__(self, v):
        return self.weight * jnp.sum(jnp.abs(v), axis=-1)

    def prox(self, z, step):
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * self.weight, 0.0)


class Mine(hg.AbstractDifferentiableStrategy):
    """A strategy of one's own."""

    k: int = eqx.field(static=True, default=2)
    name = "mine"

    def run(self, problem, x_tilde, solver, init):
        raise NotImplementedError


K = hg.operators.differences(6)
SAVED = {
    "as the command line does": learned((6,), rate=8000, settings={"epochs": 8, "data": None}),
    "a weight for each row": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K, F=hg.L1(jnp.arange(1.0, 6.0)), G=hg.BoxQuadratic(0.1, 2.0))
    ),
    "potentials, with a jump and without": dataclasses.replace(
        ROWS,
        problem=hg.LowerLevel(
            K=K,
            F=hg.ConvexPotential.from_l1(0.1, (0.1, 1.0), least_slope=0.01),
            G=hg.ConvexPotential([[1.0, 2.0], [0.5, 0.0]], (0.3, 0.4)),
        ),
    ),
    "parts in parts": dataclasses.replace(
        ROWS,
        problem=hg.LowerLevel(
            K=K, F=hg.SeparableSum([hg.Huber(0.1, 0.2), hg.NonNegative()], (2, 3)), G=hg.Zero()
        ),
    ),
    "groups": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K[:4], F=hg.GroupL1(0.3, (2, 2)), G=hg.Quadratic(1.0))
    ),
    "another solver and strategy": dataclasses.replace(
        ROWS,
        solver=hg.ChambollePock(
            40, step_ratio=3.0, tolerance=1e-5, acceleration=hg.RestartedHalpern()
        ),
        strategy=hg.LimitFormula(hg.Steps(7)),
    ),
    "an average": dataclasses.replace(ROWS, strategy=hg.ErgodicUnrolling(hg.Tail(0.25))),
    "float32": dataclasses.replace(
        ROWS, problem=hg.LowerLevel(K=K.astype(jnp.float32), F=hg.L1(0.5), G=hg.Zero())
    ),
}


@pytest.mark.parametrize("operator", SAVED.values(), ids=SAVED)
def test_what_is_saved_is_what_is_loaded(operator, tmp_path) -> None:
    operator.save(tmp_path / "operator.npz")
    again = hg.load_operator(tmp_path / "operator.npz")
    for name in ("problem", "solver", "strategy"):
        assert eqx.tree_equal(getattr(again, name), getattr(operator, name)), name
    for name in ("shape", "stride", "rate", "settings"):
        assert getattr(again, name) == getattr(operator, name)


def test_what_is_ones_own_has_to_be_handed_over(tmp_path) -> None:
    path = tmp_path / "operator.npz"
    problem = hg.LowerLevel(K=K, F=Scaled(0.25), G=hg.Quadratic(1.0))
    operator = dataclasses.replace(ROWS, problem=problem, strategy=Mine(3))
    operator.save(path)
    with pytest.raises(ValueError, match=f"learned with {__name__}:Scaled.*--own {__name__}:Sca"):
        hg.load_operator(path)
    with pytest.raises(ValueError, match=f"learned with {__name__}:Mine"):
        hg.load_operator(path, own=[Scaled])
    again = hg.load_operator(path, own=[Scaled, Mine])
    assert isinstance(again.problem.F, Scaled)
    assert again.problem.F.weight == 0.25
    assert again.strategy == Mine(3)


def test_a_file_gets_nothing_imported(tmp_path, monkeypatch) -> None:
    """Not even what could be: a module in this folder that leaves a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("trap.py").write_text("open('sprung', 'w')\nclass Trap: pass\n")
    ROWS.save("operator.npz")
    with np.load("operator.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(str(arrays["about"]))
    for changed in (
        {"strategy": {"class": "trap:Trap", "options": ""}},
        {"F": {"class": "trap:Trap", "fields": {}}},
        {"solver": {"class": "os:system", "fields": {"command": "touch sprung"}}},
    ):
        write_npz("bad.npz", {**arrays, "about": np.array(json.dumps(about | changed))})
        with pytest.raises(ValueError, match="which a file may name but not import"):
            hg.load_operator("bad.npz")
    assert not Path("sprung").exists()


UNSAVABLE = {
    "no matrix": (
        {
            "problem": hg.LowerLevel(
                K=lx.DiagonalLinearOperator(jnp.ones(6)), F=hg.L1(0.1), G=hg.Zero()
            )
        },
        "K must be a matrix or an operator of hypergrad.operators to be saved",
    ),
    "a part that is none": (
        {
            "problem": hg.LowerLevel(
                K=operators.stack(K, lx.DiagonalLinearOperator(jnp.ones(6))),
                F=hg.L1(0.1),
                G=hg.Zero(),
            )
        },
        r"K\.operators\.1 must be a matrix or an operator",
    ),
    "weights that no word makes": (
        {"strategy": hg.ErgodicUnrolling(jnp.array([0.0, 0.5, 0.5]))},
        "strategy|option",
    ),
}


@pytest.mark.parametrize(("changed", "words"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_cannot_be_saved_is_said(changed, words: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(ROWS, **changed).save(tmp_path / "operator.npz")
    assert not list(tmp_path.iterdir())


def _archive(**arrays: Any):
    return lambda path: write_npz(path, {name: np.asarray(a) for name, a in arrays.items()})


FOREIGN = {
    "text": lambda path: path.write_text("no operator"),
    "empty": Path.touch,
    "arrays alone": _archive(K=np.ones((2, 3))),
    "half of it": lambda path: (ROWS.save(path), path.write_bytes(path.read_bytes()[:-200])),
    "no JSON": _archive(K=np.ones((2, 3)), about="{"),
    "a list": _archive(K=np.ones((2, 3)), about="[]"),
    "another's": _archive(K=np.ones((2, 3)), about='{"F": 3}'),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_refused_by_name(make, tmp_path) -> None:
    path = tmp_path / "operator.npz"
    make(path)
    with pytest.raises(ValueError, match=r"operator\.npz must be an operator that") as caught:
        hg.load_operator(path)
    assert "\n" not in str(caught.value)


WRONG = {
    "another size": {"shape": (5,)},
    "three axes": {"shape": (3, 2, 1)},
    "gaps": {"stride": 7},
    "no step": {"stride": 0},
    "no rate": {"rate": 0},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_settings_that_do_not_fit(changed) -> None:
    with pytest.raises(ValueError, match="; got "):
        dataclasses.replace(ROWS, **changed)


@pytest.mark.parametrize(
    "boundary",
    [operators.Symmetric(), operators.Reflect(), operators.Periodic(), operators.Valid()],
    ids=repr,
)
def test_a_filter_bank_is_saved_and_restores_images_of_any_shape(boundary, tmp_path) -> None:
    filters = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 2)))
    K = operators.FilterBank(filters, (8, 8), boundary, operators.FFT())
    problem = hg.LowerLevel(K, hg.L1(jnp.array([0.1, 0.2, 0.3])), hg.Quadratic(1.0))
    solver, strategy = hg.ChambollePock(30), hg.ErgodicUnrolling()
    hg.SavedOperator(problem, solver, strategy, (8, 8), stride=4).save(tmp_path / "bank.npz")
    model = hg.load_operator(tmp_path / "bank.npz")
    assert eqx.tree_equal(model.problem, problem)
    image = np.random.default_rng(1).random((13, 17, 2))
    restored = hg.restore(model, image)
    larger = hg.LowerLevel(K.with_image_shape((13, 17)), problem.F, problem.G)
    for channel in range(2):
        x_tilde = image[..., channel].reshape(1, -1)
        x = hg.solve(larger, x_tilde, solver=solver, strategy=strategy).x
        np.testing.assert_allclose(restored[..., channel], x.reshape(13, 17), rtol=1e-12)
    with pytest.raises(hg.HypergradError, match="not be larger than the image"):
        hg.restore(model, image[:2, :, 0])


def test_a_data_term_is_saved_with_its_forward_operator(tmp_path) -> None:
    for A in (
        operators.Mask(np.arange(6) % 2),
        operators.Blur(jnp.ones((2, 2)), (2, 3)),
        operators.FourierSampling(np.eye(2, 3), (2, 3)),
        operators.DenseForward.of(np.arange(12.0).reshape(2, 6)),
    ):
        problem = hg.LowerLevel(operators.differences(6), hg.L1(0.1), hg.DataFidelity(A, 2.0))
        saved = hg.SavedOperator(problem, hg.ChambollePock(5), hg.Truncation(1), (2, 3), stride=1)
        saved.save(tmp_path / "A.npz")
        assert eqx.tree_equal(hg.load_operator(tmp_path / "A.npz").problem, problem)


SHAPE = (4, 5)
BANK = operators.FilterBank(np.random.default_rng(2).standard_normal((2, 3, 3)), SHAPE)
TV = operators.difference_operator(SHAPE)
RADON = operators.Radon(SHAPE, np.linspace(0, np.pi, 3, endpoint=False))
OPERATORS: dict[str, Any] = {
    "differences": TV,
    "a projection": RADON,
    "a stack": operators.stack(BANK, TV, lx.MatrixLinearOperator(operators.dct2(SHAPE))),
}


def measured(K: Any) -> hg.LowerLevel:
    """Total variation with measurements by K."""
    problem = hg.LowerLevel(TV, hg.GroupL1(0.1, shape=(2, 20)), hg.Quadratic(0.5))
    return hg.with_measurements(problem, K, hg.Quadratic(2.0))


PROBLEMS = {name: hg.LowerLevel(K, hg.L1(0.1), hg.Quadratic(1.0)) for name, K in OPERATORS.items()}
PROBLEMS |= {f"measurements by {name}": measured(K) for name, K in OPERATORS.items()}


def saved_and_loaded(name: str, folder: Path) -> tuple[hg.SavedOperator, hg.SavedOperator]:
    problem = PROBLEMS[name]
    shape = SHAPE if problem.n == 20 else (problem.n,)
    operator = hg.SavedOperator(problem, hg.ChambollePock(20), hg.Truncation(1), shape, stride=1)
    operator.save(folder / "operator.npz")
    return operator, hg.load_operator(folder / "operator.npz")


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "stack" not in name])
def test_operators_of_the_package_are_saved_with_their_parts(name: str, tmp_path) -> None:
    """Every array and every setting, so that what is solved with them is the same, too."""
    operator, again = saved_and_loaded(name, tmp_path)
    assert eqx.tree_equal(again.problem, operator.problem)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "stack" in name])
def test_a_stack_that_is_loaded_solves_and_restores_as_the_saved_one(name: str, tmp_path) -> None:
    """A matrix in it may come back as another class than it was."""
    operator, again = saved_and_loaded(name, tmp_path)
    n = operator.problem.n
    x_tilde = np.random.default_rng(3).random((2, n))
    before, after = (
        hg.solve(saved.problem, x_tilde, solver=saved.solver, strategy=saved.strategy)
        for saved in (operator, again)
    )
    np.testing.assert_array_equal(after.x, before.x)
    np.testing.assert_array_equal(after.y, before.y)
    if n != 20:  # rows are restored as they are
        np.testing.assert_array_equal(hg.restore(again, x_tilde), hg.restore(operator, x_tilde))


def test_every_operator_of_the_package_can_be_loaded() -> None:
    """A class that is added later, too."""

    def subclasses(cls: type) -> set[type]:
        return {cls}.union(*map(subclasses, cls.__subclasses__()))

    found = {
        cls for cls in subclasses(operators.AbstractOperator) if cls.__module__[:10] == "hypergrad."
    }
    assert found <= set(saved_operator._CLASSES.values())
