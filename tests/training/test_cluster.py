"""Launching: the shipped configurations, and the job script with a scheduler that the test simulates."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from refseg.train import EXAMPLE
from tests.ports import free_port
from tests.training.test_training_runs import ROOT
from tests.warm_python import python

CONFIGS = ROOT / "refseg" / "configs"
SCRIPT = ROOT / "scripts" / "train.sbatch"

PLAYED = {
    # Starts two tasks; ends as the task with the highest code did.
    "srun": """
while [[ $1 == --* ]]; do shift; done
for id in 0 1; do SLURM_PROCID=$id SLURM_LOCALID=$id "$@" & pids+=($!); done
echo "${pids[@]}" > "$PLAY/pids"
highest=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; ((code > highest)) && highest=$code; done
exit $highest
""",
    "scancel": '[[ $* == "--signal=TERM $SLURM_JOB_ID.0" ]] || exit 9\nkill -TERM $(cat "$PLAY/pids")',
    "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; echo node2; else echo "$@" >> "$PLAY/requeued"; fi',
}


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("accelerate_gpu1", "NO", 1, 1),
        ("accelerate_gpu8", "MULTI_GPU", 1, 8),
        ("accelerate_gpu2x8", "MULTI_GPU", 2, 16),
        ("accelerate_cpu2", "MULTI_GPU", 1, 2),  # tests of training start it
    ],
)
def test_a_configuration_is_read_as_it_is_meant(name: str, kind: str, machines: int, processes: int) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))

    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.mixed_precision == "no"


def test_every_configuration_is_tried() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == [
        "accelerate_cpu2", "accelerate_gpu1", "accelerate_gpu2x8", "accelerate_gpu8"
    ]  # fmt: skip
    assert "accelerate_cpu2.yaml" in EXAMPLE


def start_job(folder: Path, arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """The job script, under commands of Slurm that start two processes here."""
    for name, text in PLAYED.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    # The script derives the port from the job's id: 20000 + id % 20000.
    slurm = {"JOB_ID": str(free_port() - 20_000), "JOB_NODELIST": "node[1-2]", "NTASKS": "2", "NTASKS_PER_NODE": "2"}
    environ = {
        **os.environ, **{f"SLURM_{key}": value for key, value in slurm.items()},
        "PATH": f"{folder}:{os.environ['PATH']}", "PLAY": str(folder), "PYTHON": python(), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [str(SCRIPT), *arguments], cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_a_preempted_job_saves_and_is_queued_again(overrides: list[str], tmp_path: Path) -> None:
    settings = ["train.epochs=500", "train.max_steps=3000", "train.checkpoint_every_steps=100000", "train.trackers=[]"]
    run = tmp_path / "run"
    command = ["toy-quick", "--out", str(run), "--set", *overrides, *settings, "train.val_every_epochs=0"]
    job = start_job(tmp_path, command)
    assert job.stdout is not None
    for line in job.stdout:
        if "step 6/" in line:
            break
    job.send_signal(signal.SIGTERM)  # as --signal=B:TERM@180 does: the script alone
    output, _ = job.communicate(timeout=300)

    assert job.returncode == 75, output
    assert "stopped by SIGTERM after step" in output
    assert re.fullmatch(r"requeue \d+\n", (tmp_path / "requeued").read_text())
    assert len(list((run / "checkpoints").glob("step-*"))) == 1


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = start_job(tmp_path, ["no-such-recipe", "--out", str(tmp_path / "run")])
    output, _ = job.communicate(timeout=300)

    assert job.returncode == 2
    assert "no such recipe" in output
    assert not (tmp_path / "requeued").exists()
