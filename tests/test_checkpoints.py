"""Interrupted runs resume as if nothing had been; damaged checkpoints and other runs."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, relative_error
from training_runs import (
    DATA,
    EPOCHS,
    INTERRUPTIONS,
    LIMIT,
    SAMPLES,
    M,
    N,
    assert_same_run,
    checkpoint_name,
    run,
    small_problem,
    untimed,
    with_entry,
    within_epoch_3,
)

import hypergrad as hg
from hypergrad.learning import loop
from hypergrad.learning.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def undisturbed() -> hg.History:
    return run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run; to be copied before it is touched."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda f: f.__name__)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    interrupt, undisturbed, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [checkpoint_name(1), checkpoint_name(2)]
    history = run(tmp_path)
    assert_same_run(history, undisturbed)
    assert np.all(np.diff(history.column("seconds")) > 0)
    assert sorted(os.listdir(tmp_path)) == [checkpoint_name(3), checkpoint_name(4)]


def test_an_interrupted_run_with_functions_in_it_goes_on_alike(tmp_path, monkeypatch) -> None:
    """Made anew, as in another process: where a function lies in memory says nothing."""

    def with_functions(folder: Path | None = None) -> hg.History:
        structure = jax.ShapeDtypeStruct((N,), jnp.float64)
        K = lx.FunctionLinearOperator(lambda v: jnp.diff(v), structure)
        solve = hg.JaxoptImplicit(lambda matvec, b: hg.JaxoptGMRES()(matvec, b))
        problem = hg.LowerLevel(K, hg.L1(0.1), hg.Quadratic(1.0))
        return run(folder, problem=problem, strategy=solve, trainable=lambda p: p.F.weight)

    with monkeypatch.context() as patch:
        within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            with_functions(tmp_path)
    history, expected = with_functions(tmp_path), with_functions()
    assert untimed(history) == untimed(expected)
    assert_close(history.problem.F, expected.problem.F, 0.0)


def test_an_interrupted_run_with_warm_starts_goes_on_alike(tmp_path, monkeypatch) -> None:
    """Each sample's states come back from the checkpoint, without which it would be another run."""
    settings = {"warm_start": hg.WarmStart(residual=1e-2, most=5, share=0.0), **LIMIT}
    with monkeypatch.context() as patch:
        within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **settings)
    forgetful = Path(shutil.copytree(tmp_path, tmp_path.parent / "forgetful"))
    undisturbed = run(**settings)
    assert_same_run(run(tmp_path, **settings), undisturbed)

    with np.load(forgetful / checkpoint_name(2)) as stored:
        arrays = dict(stored)
    states = [name for name, array in arrays.items() if array.shape in ((SAMPLES, N), (SAMPLES, M))]
    assert len(states) == 5
    np.savez(forgetful / checkpoint_name(2), **arrays | {n: 0 * arrays[n] for n in states})
    other = run(forgetful, **settings)
    assert relative_error(other.problem.K, undisturbed.problem.K) > 1e-6


def test_a_finished_run_is_not_run_again(finished, undisturbed, monkeypatch) -> None:
    def no_more(*args):
        pytest.fail("an epoch was begun")

    monkeypatch.setattr(loop, "batches", no_more)
    again = run(finished)
    assert_same_run(again, undisturbed)
    assert again.records == run(finished).records  # the seconds too
    assert sorted(os.listdir(finished)) == [checkpoint_name(3), checkpoint_name(4)]


# ---------------------------------------------------------------------- damaged checkpoints


class _Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garble(path: Path) -> None:
    path.write_bytes(b"\x93garbage" * 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit_of_the_numbers(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY") + 128 + 3] ^= 1  # behind the header of the first array
    path.write_bytes(bytes(content))


def _plant_a_pickle(path: Path) -> None:
    bomb = np.array([_Bomb(path.parent / "exploded")], dtype=object)
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {"leaf0000": bomb})


def _lose_the_records(path: Path) -> None:
    np.savez(path, leaf0000=np.zeros(3))


def _mark_as_encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] ^= 1  # the flags of the first entry
    path.write_bytes(bytes(content))


def _another_compression(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] ^= 1
    path.write_bytes(bytes(content))


def _one_bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _lose_the_fingerprint(path: Path) -> None:
    np.savez(path, about=np.array("{}"))


DAMAGES = [
    _truncate,
    _garble,
    _empty,
    _flip_a_bit_of_the_numbers,
    _plant_a_pickle,
    _lose_the_records,
    _mark_as_encrypted,
    _another_compression,
    _one_bare_array,
    _lose_the_fingerprint,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__[1:])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, capsys) -> None:
    """And closed, so that the garbage collector has nothing to warn of."""
    checkpoints = Checkpoints(tmp_path, {"seed": "3"})
    for epoch in (3, 4):
        checkpoints.save(epoch, [np.full(5, float(epoch))], [{"epoch": epoch}])
    damage(tmp_path / checkpoint_name(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, records = checkpoints.load([np.zeros(5)])
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]
    np.testing.assert_array_equal(state, [np.full(5, 3.0)])
    assert records == [{"epoch": 3}]
    assert sorted(os.listdir(tmp_path)) == [checkpoint_name(3), checkpoint_name(4)]
    out = capsys.readouterr().out
    assert f"{tmp_path / checkpoint_name(4)} is damaged" in out
    assert "the one before it is used" in out


def test_a_run_goes_on_from_before_the_damage(finished, undisturbed, tmp_path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    _truncate(folder / checkpoint_name(4))
    assert_same_run(run(folder), undisturbed)
    assert sorted(os.listdir(folder)) == [checkpoint_name(3), checkpoint_name(4)]


def test_with_all_of_them_damaged_it_starts_anew(finished, undisturbed, tmp_path, capsys) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for epoch in (3, 4):
        _truncate(folder / checkpoint_name(epoch))
    assert_same_run(run(folder), undisturbed)
    out = capsys.readouterr().out
    assert out.count("is damaged") == 2
    assert out.count(f"no other in {folder} can be read, so training starts") == 2


# ------------------------------------------------------------------------------- other runs

x_tilde, x_true = DATA
_ERGODIC = {"strategy": hg.ErgodicUnrolling(np.full(10, 0.1)), "epochs": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 4},
    "data": {"data": (with_entry(x_tilde, 0.0), x_true)},
    "truth": {"data": (x_tilde, with_entry(x_true, 0.0))},
    "strategy": {"strategy": hg.Truncation(2)},
    "solver": {"solver": hg.ChambollePock(10, step_ratio=2.0)},
    "problem": {"problem": small_problem(0.31)},
    "epochs": {"epochs": EPOCHS + 1},
    "batch_size": {"batch_size": 4},
    "learning rate": {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1 + 1e-9, 8))},
    "schedule, in its last steps": {
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 8, alpha=1e-6))
    },
    "optimizer": {"optimizer": optax.sgd(0.1)},
    "loss": {"loss": lambda x, x_true: jnp.mean(jnp.abs(x - x_true))},
    "projection": {"project": lambda p: eqx.tree_at(lambda q: q.K, p, jnp.round(p.K, 3))},
    "validation": {"validation": DATA},
    "warm starts": {"warm_start": True},
    "what is learned": {"trainable": lambda p: (p.K, p.G.weight)},
    "how much is learned": {"trainable": lambda p: p.K},
}


def _refused(folder: Path, settings: dict[str, Any]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"checkpoint .* must come from the same run"):
        run(folder, **settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(settings, finished) -> None:
    _refused(finished, settings)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path) -> None:
    rising = np.arange(1.0, 11.0) / 55
    run(tmp_path, **_ERGODIC)
    _refused(tmp_path, _ERGODIC | {"strategy": hg.ErgodicUnrolling(rising)})


def test_the_error_names_what_differs(finished) -> None:
    with pytest.raises(ValueError, match=r"another number of epochs \(4, not 5\), another seed"):
        run(finished, epochs=EPOCHS + 1, seed=4)
    with pytest.raises(ValueError, match=r"got one of another optimizer: name another folder"):
        run(finished, optimizer=optax.adam(1.0))
    with pytest.raises(ValueError, match=r"what is learned \(\.K, \.F\.weight, not \.K\)"):
        run(finished, trainable=lambda p: p.K)


def test_an_optimizer_that_was_used_is_the_same_one(tmp_path) -> None:
    """The schedule keeps its numbers as floats once it has been called."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 8))
    first = run(tmp_path, optimizer=optimizer)
    assert run(tmp_path, optimizer=optimizer).records == first.records
    fresh = optax.adam(optax.cosine_decay_schedule(0.1, 8))
    assert run(tmp_path, optimizer=fresh).records == first.records


def test_a_rate_in_the_state_of_the_optimizer_counts(tmp_path) -> None:
    adam = optax.inject_hyperparams(optax.adam)
    run(tmp_path, optimizer=adam(0.1))
    _refused(tmp_path, {"optimizer": adam(0.2)})
    assert_same_run(run(tmp_path, optimizer=adam(0.1)), run(optimizer=adam(0.1)))


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path) -> None:
    about = np.array('{"fingerprint": "0123", "records": []}')
    np.savez(tmp_path / checkpoint_name(4), leaf0000=np.zeros(3), about=about)
    _refused(tmp_path, {})


def test_a_checkpoint_is_of_no_version_of_jax(finished, monkeypatch) -> None:
    """No program is looked at: its text is another one in every version."""
    monkeypatch.delattr(type(eqx.filter_jit(jnp.sin).lower(x_tilde)), "as_text")
    assert run(finished).records[-1]["epoch"] == EPOCHS


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "raw keys": lambda: optax.chain(optax.add_noise(1.0, 0.5, 0), optax.adam(0.01)),
    "keys": lambda: optax.chain(optax.add_noise(1.0, 0.5, jax.random.key(3)), optax.sgd(0.01)),
    "bfloat16": lambda: optax.adam(0.01, mu_dtype=jnp.bfloat16),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 8)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_state_of_an_optimizer_is_kept(make, tmp_path, monkeypatch, capsys) -> None:

    def trained(folder: Path | None = None) -> hg.History:
        return run(folder, optimizer=make(), validation=None)

    with monkeypatch.context() as patch:
        within_epoch_3(patch)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    history = trained(tmp_path)
    assert_same_run(history, trained())
    assert history.records == trained(tmp_path).records
    assert "damaged" not in capsys.readouterr().out


def test_a_checkpoint_with_other_arrays_is_no_damage(finished, tmp_path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with np.load(folder / checkpoint_name(4)) as stored:
        arrays = dict(stored)
    np.savez(folder / checkpoint_name(4), **arrays | {"leaf0000": np.zeros(7, np.float32)})
    with pytest.raises(ValueError, match="same run; got one of other arrays"):
        run(folder)


def test_a_disk_that_refuses_is_no_damage(finished, monkeypatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="input/output error"):
        run(finished)
