"""Runs that are killed by SIGKILL and resumed end as uninterrupted ones."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import python

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_the_undisturbed_one() -> None:
    """Kill runs at seeded points; `scripts/kill_training.py` describes the comparison and runs more points."""
    command = [python(), "scripts/kill_training.py", "--points", "4", "--seed", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 of 4 killed runs of 28 steps ended as the undisturbed one")
