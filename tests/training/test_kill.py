"""Runs killed by SIGKILL end as if nothing had happened."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import python

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_the_undisturbed_one() -> None:
    """At seeded points; `scripts/kill_training.py` says what is compared, and runs as many as one likes."""
    command = [python(), "scripts/kill_training.py", "--points", "4", "--seed", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 of 4 killed runs of 28 steps ended as the undisturbed one")
