"""Compiled regions compute the same function, without graph breaks, and are compiled once."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import python


@pytest.mark.slow
def test_two_graphs_serve_all_steps() -> None:
    script = Path(__file__).with_name("compiled_steps.py")
    done = subprocess.run([python(), script], capture_output=True, text=True, check=True, timeout=600)

    results = json.loads(done.stdout)
    # A third graph is the decoder's for any number of sentences, made when the number first changes.
    assert {name: (found["graphs"], found["breaks"]) for name, found in results.items()} == {
        "fcnet": (2, 0), "crformer": (2, 0), "lts": (2, 0), "cris": (2, 0), "varying": (3, 0),
    }  # fmt: skip
    assert max(found["error"] for found in results.values()) < 1e-4
