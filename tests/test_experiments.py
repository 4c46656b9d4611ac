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


@pytest.mark.slow
def test_ten_kills_of_an_experiment_that_learns_change_nothing(tmp_path):
    """SIGKILL: the records of an undisturbed run, to the last digit, but for times."""
    with start(tmp_path / "whole") as process:
        begun = time.perf_counter()
        assert process.wait() == 0
    whole = time.perf_counter() - begun

    rng, kills = random.Random(0), 0
    while kills < 10:
        with start(tmp_path / "killed") as process:
            try:
                # A twentieth of the run in the mean, beyond what starting takes.
                process.wait(timeout=8 + rng.uniform(0.0, 0.1) * whole)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
        print(f"kill {kills}: {len(list((tmp_path / 'killed' / 'cells').glob('*.json')))} cells")
    assert kills == 10, f"finished after {kills} kills: nothing was left to disturb"
    with start(tmp_path / "killed") as process:
        assert process.wait() == 0
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
