"""Several devices against one, and against plain NumPy; what they do runs in `devices_job.py`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import devices_job
import jax
import numpy as np
import pytest
from devices_job import BY_SAMPLE, DATA, PATIENT, POSTER, PROBLEM, SAMPLES, SOLVER, TRUNCATION, WARM
from helpers import assert_close

import hypergrad as hg
from hypergrad.workbench.command_line import main as cli

# The same sums in another order.
RTOL = 1e-12
# And after some steps of Adam.
TRAINED = 1e-10
SIZES = ("1", "8")  # no other device, and as many as there are (runs below have 2 and 4)
TESTS = Path(__file__).parent


def _start(*arguments: str, count: int) -> subprocess.Popen:
    """A job with so many devices, JAX set up as in `conftest.py`."""
    settings = {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUM_CPU_DEVICES": str(count),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _results(job: subprocess.Popen) -> Any:
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    return json.loads(out.splitlines()[-1])  # gloo says first who is connected


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


# Two processes are those of the command line, with a job instead of the study.
COMMAND = """
import json, sys, jax
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import main as cli
def study(config, out, console, mesh):
    import devices_job
    given = [mesh.size, jax.local_device_count(), str(out), console.quiet]
    print(json.dumps(dict(devices_job.two_processes(out)) | {"given": given}))
image_study.run_image_study = study
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, Any]:
    job = str(TESTS / "devices_job.py")
    return _results(_start(job, str(tmp_path_factory.mktemp("one")), count=8))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def two_processes(out: str) -> list[dict[str, Any]]:
    words = ["-c", COMMAND, "train", "--devices", "2", "--out", out, "--processes", "2"]
    words += ["--coordinator", f"localhost:{_free_port()}", "--process"]
    jobs = [_start(*words, str(i), count=1) for i in range(2)]
    return [_results(job) for job in jobs]


# ------------------------------------------------------------------------------------ gradients


def _assert_is(batch: dict[str, Any], h: hg.Hypergradient) -> None:
    """The gradient on a mesh is that of `hypergradient`, statistics included."""
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(h.grad)]
    assert_close([np.asarray(leaf) for leaf in batch["grad"]], expected, RTOL)
    stats = h.solution.stats
    assert batch["loss"] == pytest.approx(float(h.value), rel=RTOL)
    assert batch["residual"] == pytest.approx(float(np.max(stats.residual)), rel=1e-9)
    assert batch["converged"] == int(np.sum(stats.status == hg.Status.CONVERGED))
    assert batch["near"] == SAMPLES


@pytest.fixture(scope="module")
def alone() -> hg.Hypergradient:
    return hg.hypergradient(PROBLEM, *DATA, solver=SOLVER, strategy=TRUNCATION)


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_one_device(size: str, one_process, alone) -> None:
    _assert_is(one_process["truncation"][size], alone)


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_the_poster(size: str, one_process) -> None:
    """Its recursion as a loop in NumPy."""
    in_K, in_F, in_G, _ = one_process["truncation"][size]["grad"]
    expected = POSTER.unrolled(*DATA, k=3)
    for leaf, wanted in zip((in_K, in_F, in_G), expected, strict=False):
        assert_close(np.asarray(leaf), np.asarray(wanted), RTOL)


def test_a_mesh_may_have_several_axes(one_process, alone) -> None:
    _assert_is(one_process["square"], alone)


def test_each_device_stops_by_itself(one_process) -> None:
    settings = {"solver": PATIENT, "strategy": hg.LimitFormula(hg.Tolerance(1e-6))}
    h = hg.hypergradient(PROBLEM, *DATA, **settings)
    _assert_is(one_process["patient"], h)
    # On one device for each pair of samples the longest solves would differ, so they do there.
    of_pairs = np.max(np.asarray(h.solution.stats.iterations).reshape(8, 2), axis=1)
    assert len(set(of_pairs)) > 1


def test_two_processes_give_that_gradient_too(two_processes, alone) -> None:
    for process in two_processes:
        _assert_is(process["truncation"], alone)


# ---------------------------------------------------------------------------------- collectives


def test_a_training_step_has_one_all_reduce_and_nothing_else(one_process) -> None:
    assert one_process["collectives"] == [{"all-reduce": 1}] * 2


def test_other_collectives_would_be_seen(one_process) -> None:
    seen = {"all-reduce": 2, "all-gather": 1, "collective-permute": 1}
    assert one_process["all kinds"] == seen


# ------------------------------------------------------------------------------------- training


def _assert_same_run(run: dict[str, Any], history: hg.History) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(history.problem)]
    assert_close([np.asarray(leaf) for leaf in run["leaves"]], leaves, TRAINED)
    for record, expected in zip(run["records"], history.records, strict=True):
        assert record["epoch"] == expected["epoch"]
        for name in expected.keys() - {"epoch", "seconds"}:
            numbers = [np.array(r[name], float) for r in (record, expected)]  # None is NaN
            np.testing.assert_allclose(*numbers, rtol=TRAINED, err_msg=name)


@pytest.fixture(scope="module")
def trained_alone() -> hg.History:
    return devices_job.learn()


def test_training_on_two_devices_is_training_on_one(one_process, trained_alone) -> None:
    _assert_same_run(one_process["trained"], trained_alone)


def test_warm_starts_work_on_the_devices_of_one_process(one_process) -> None:
    history = devices_job.learn(**WARM)
    _assert_same_run(one_process["warm"], history)
    counted = history.column("counted")
    assert np.any((counted > 0) & (counted < 1))


def test_parameters_that_differ_by_sample_go_with_their_samples(one_process) -> None:
    _assert_same_run(one_process["by sample"], devices_job.learn(**BY_SAMPLE))


def test_a_run_goes_on_with_another_number_of_devices(one_process, trained_alone) -> None:
    """From its second epoch, whose seconds it keeps; and with the same data on disk."""
    first, second = one_process["trained"], one_process["resumed"]
    _assert_same_run(second, trained_alone)
    assert second["records"][:3] == first["records"][:3]
    assert second["records"][3]["seconds"] != first["records"][3]["seconds"]


def test_two_processes_learn_what_one_learns(two_processes, trained_alone) -> None:
    for process in two_processes:
        _assert_same_run(process["first"], trained_alone)


def test_only_the_first_process_writes(two_processes) -> None:
    first, second = (process["files"] for process in two_processes)
    assert first == ["checkpoint-000002.npz", "checkpoint-000003.npz"]
    assert second == []


def test_the_first_process_tells_the_others_where_to_go_on(two_processes, trained_alone) -> None:
    """They find nothing on their own disks; and it is another number of devices again."""
    first, second = (process["again"] for process in two_processes)
    _assert_same_run(first, trained_alone)
    assert first["leaves"] == second["leaves"]
    assert first["records"][:3] == second["records"][:3] == two_processes[0]["first"]["records"][:3]


# --------------------------------------------------------------------------------------- errors

REFUSED = {
    "too many": "devices must be at most as many as a process has; got 9, and 8 of cpu",
    "batch": "batch_size must be a multiple of the number of devices; got 6 samples for 4",
    "small data": "batch_size must be a multiple of the number of devices; got 7 samples for 4",
    "sum": "loss must be a mean over the samples",
}
REFUSED_BY_BOTH = {
    "warm": "warm_start must stay within one process",
    "elsewhere": "a mesh must be one of this process's devices, or hold some of every process",
    "other seeds": "every process must train with the same arguments",
    "another run": "checkpoint-000003.npz must come from the same run",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_out_is_refused(name: str, one_process) -> None:
    assert REFUSED[name] in one_process["refused"][name]


@pytest.mark.parametrize("name", REFUSED_BY_BOTH)
def test_both_processes_refuse_what_one_cannot_do(name: str, two_processes) -> None:
    """An error in one alone would leave the other waiting."""
    for process in two_processes:
        assert REFUSED_BY_BOTH[name] in process["refused"][name]
        assert process["refused"][name].startswith("HypergradError: ")


@pytest.mark.parametrize(
    ("name", "error"), [("disk", "OSError: the disk fails"), ("bug", "KeyError: 'records'")]
)
def test_an_error_of_the_process_that_loads_reaches_the_other(name, error, two_processes) -> None:
    refusals = [process["refused"][name] for process in two_processes]
    assert refusals == [error, f"HypergradError: {error}"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (2, "got 2, and 1 of cpu: .*xla_force_host_platform_device_count=2"),
        (0, "devices must be a whole number of at least 1; got 0"),
        (True, "devices must be a number of devices, a jax.sharding.Mesh or None; got True"),
        ("all", "devices must be a number .* got 'all'"),
    ],
)
def test_devices_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hg.devices.Placement.of(given)


# --------------------------------------------------------------------------------- command line


def test_the_command_as_one_of_two_processes(two_processes, out: str) -> None:
    """Their one CPU is taken for two; the second process says nothing, and writes elsewhere."""
    given = [process["given"] for process in two_processes]
    assert [(size, here, where == out, quiet) for size, here, where, quiet in given] == [
        (4, 2, True, False),
        (4, 2, False, True),
    ]


WORDS: dict[str, tuple[Sequence[str], str]] = {
    "half of it": (("--process", "1"), "got --process"),
    "both ways": (("--cluster", "--process", "1"), "got --process, --cluster"),
    "none": (("--devices", "0"), "devices must be a whole number of at least 1"),
    "too late": (("--devices", "2"), "before backends are initialized"),
}


@pytest.mark.parametrize(("words", "message"), WORDS.values(), ids=WORDS)
def test_words_that_name_no_devices(words: Sequence[str], message: str, capsys) -> None:
    jax.devices()
    assert cli.main(["train", *words]) == 2
    assert message in capsys.readouterr().err
