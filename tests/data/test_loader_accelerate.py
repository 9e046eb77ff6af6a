"""The loader in a real `accelerate launch`: processes of one machine and of two, on loopback."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refseg.data.index import ManifestIndex
from tests.ports import free_port
from tests.warm_python import python

from .conftest import Picture, Ref

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("accelerate_epoch.py")
Reports = list[dict[str, Any]]


@pytest.fixture(
    scope="module",
    # Processes, machines, global batch: five steps each, of 42 sentences.
    params=[
        (2, 1, 10),
        (3, 1, 9),
        (2, 2, 10),
    ],
    ids=["2 processes", "3 processes", "2 machines"],
)
def reports(
    request: pytest.FixtureRequest, dataset: Path, write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Reports:
    """Return the report of each rank."""
    num_processes, num_machines, global_batch = request.param
    out = tmp_path_factory.mktemp("accelerate")
    few = write(out / "few", {"train-00000": [Picture(1, (16, 16), (Ref(1, (0, 0, 4, 4), ("the only one",)),))]})
    port = str(free_port())
    # `--cpu` is not used, because with it accelerate silently starts one process.
    command = [
        *(python(), "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)),
        *("--num_machines", str(num_machines), "--main_process_ip", "127.0.0.1", "--main_process_port", port),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    script = [str(SCRIPT), str(dataset), str(few), str(out), str(global_batch)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", str(machine), *script],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for machine in range(num_machines)
    ]  # fmt: skip
    try:
        for machine in machines:
            said, _ = machine.communicate(timeout=300)
            assert machine.returncode == 0, said
    finally:
        for machine in machines:
            machine.kill()
            machine.communicate()
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(num_processes)]


def everything(index: ManifestIndex) -> list[list[int]]:
    """Return all sentences of the dataset as (row, position within the row)."""
    numbers = (index.sentence_start[1:] - index.sentence_start[:-1]).tolist()
    return [[row, sentence] for row in range(index.num_rows) for sentence in range(numbers[row])]


def test_all_processes_together_see_each_sentence_once_per_epoch(reports: Reports, train_index: ManifestIndex) -> None:
    # 42 sentences in global batches of 10 or 9: five steps on each rank, the last one uneven.
    assert [(report["world_size"], report["len"]) for report in reports] == [(len(reports), 5)] * len(reports)
    for epoch in range(2):
        steps = [report["epochs"][epoch] for report in reports]
        assert [len(batches) for batches in steps] == [5] * len(reports)
        assert len({len(batches[4]["pairs"]) for batches in steps}) > 1
        seen = [pair for batches in steps for batch in batches for pair in batch["pairs"]]
        assert sorted(seen) == everything(train_index)
    first = reports[0]["epochs"]
    assert [batch["pairs"] for batch in first[0]] != [batch["pairs"] for batch in first[1]]


def test_workers_live_through_epochs(reports: Reports) -> None:
    assert [report["same workers"] for report in reports] == [1] * len(reports)


def test_a_cursor_steers_the_prepared_loader(reports: Reports) -> None:
    for report in reports:
        assert report["resumed"] == [batch["pairs"] for batch in report["epochs"][1][3:]]


def test_evaluation_counts_each_sentence_once(reports: Reports, train_index: ManifestIndex) -> None:
    assert sorted(pair for report in reports for pair in report["evaluated"]) == everything(train_index)


def test_processes_without_a_sample_still_take_the_step(reports: Reports) -> None:
    assert [report["few"] for report in reports] == [[[[0, 0]]], *[[[]]] * (len(reports) - 1)]


def test_accelerate_sees_the_end_of_an_epoch(reports: Reports) -> None:
    # Gradients are applied every second step, and at the epoch's end, which accelerate must learn from the loader.
    for report in reports:
        for batches in report["epochs"]:
            assert [batch["sync"] for batch in batches] == [False, True, False, True, True]


def test_loaders_that_do_not_fit_together_are_refused_on_every_rank(reports: Reports) -> None:
    number = len(reports)
    same = ", ".join([f"(0, {number})"] * number)
    for report in reports:
        assert f"loaders of {number} processes were made for (rank, world size) [{same}]; give" in report["same rank"]
        assert f"loaders of {number} processes do not fit together (first row" in report["other seed"]
        assert f"loaders of {number} processes do not fit together (first row" in report["other split"]
