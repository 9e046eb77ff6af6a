"""The loader under a real `accelerate launch` of two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg.data.index import ManifestIndex

SCRIPT = Path(__file__).with_name("accelerate_epoch.py")


@pytest.fixture(scope="module")
def reports(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank reports."""
    out = tmp_path_factory.mktemp("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Not `--cpu`: with it accelerate starts one process, silently.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
        *(str(SCRIPT), str(dataset), str(out)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_see_each_sentence_once_per_epoch(
    reports: list[dict[str, Any]], train_index: ManifestIndex
) -> None:
    numbers = (train_index.sentence_start[1:] - train_index.sentence_start[:-1]).tolist()
    everything = [(row, sentence) for row in range(21) for sentence in range(numbers[row])]

    # 42 sentences in global batches of 10: five steps on each rank.
    assert [(report["world_size"], report["len"]) for report in reports] == [(2, 5), (2, 5)]
    for epoch in range(2):
        steps = [report["epochs"][epoch] for report in reports]
        assert [len(batches) for batches in steps] == [5, 5]
        seen = [tuple(pair) for batches in steps for batch in batches for pair in batch["pairs"]]
        assert sorted(seen) == everything
    first = reports[0]["epochs"]
    assert [batch["pairs"] for batch in first[0]] != [batch["pairs"] for batch in first[1]]


def test_accelerate_sees_the_end_of_an_epoch(reports: list[dict[str, Any]]) -> None:
    # Gradients are applied every second step, and at the epoch's end, which accelerate must learn from the loader.
    for report in reports:
        for batches in report["epochs"]:
            assert [batch["sync"] for batch in batches] == [False, True, False, True, True]


def test_loaders_that_do_not_fit_together_are_refused_on_every_rank(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert "loaders of 2 processes were made for (rank, world size) [(0, 2), (0, 2)]; give" in report["same rank"]
        assert "loaders of 2 processes do not fit together (first row" in report["other seed"]
