"""Experiments that learn, killed at random moments: `pytest -m slow tests/test_experiments.py`."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
# What a clock says is not what a run gives.
TIMES = {"seconds"}


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, EXPERIMENTS / "ergodic_depth.py", "--quick", "--out", out]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def records(out: Path) -> list[dict]:
    lines = (out / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def wait_for_a_file(folder: Path, process: subprocess.Popen) -> None:
    """Until the run has written one, however fast the machine is."""

    def files() -> set[Path]:
        return {path for path in folder.rglob("*") if path.suffix != ".tmp"}

    before = files()
    while process.poll() is None and files() <= before:
        time.sleep(0.01)


@pytest.mark.slow
def test_ten_kills_of_an_experiment_that_learns_change_nothing(tmp_path):
    """SIGKILL: the records of an undisturbed run, to the last digit, but for times."""
    with start(tmp_path / "whole") as process:
        assert process.wait() == 0
    rng, killed = random.Random(0), tmp_path / "killed"
    for kill in range(10):
        with start(killed) as process:
            wait_for_a_file(killed, process)
            time.sleep(rng.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, f"finished after {kill} kills"
        print(f"kill {kill + 1}: {len(list((killed / 'cells').glob('*.json')))} cells")
    with start(killed) as process:
        assert process.wait() == 0
    assert records(killed) == records(tmp_path / "whole")
