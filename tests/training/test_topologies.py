"""One process, several processes and several machines give the same training up to rounding, and equal evaluations."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow.feather as feather
import pytest

from refseg.config import load_recipe
from refseg.evaluation.protocols import PROTOCOLS
from refseg.training import trainer
from refseg.training.checkpoint import read_state
from tests.ports import free_port
from tests.training.test_training_runs import TWO_PROCESSES, start, trace

WORKER = str(Path(__file__).with_name("train_and_evaluate.py"))


def launch(launches: Sequence[Sequence[str]], arguments: Sequence[str]) -> None:
    """Start the worker by one or more launchers, and wait for all."""
    runs: list[subprocess.Popen[str]] = [start([*options, WORKER, *arguments]) for options in launches]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), "\n".join(outputs)


def machines(count: int, processes: int) -> list[list[str]]:
    """Return the options of `accelerate launch` for each of several machines, all of which are this one."""
    port = str(free_port())
    return [
        [*TWO_PROCESSES, "--num_machines", str(count), "--machine_rank", str(rank), "--num_processes", str(processes),
         "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        for rank in range(count)
    ]  # fmt: skip


@pytest.mark.slow
def test_processes_and_machines_change_no_score_and_no_loss(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
    # BatchNorm sees only the samples of its process. With frozen statistics and without dropout, only the order of sums
    # differs.
    settings = [
        *overrides, "train.batchnorm=frozen", "model.dropout=0.0", "train.global_batch=12", "train.epochs=5",
        "train.max_steps=10", "train.checkpoint_every_steps=1000", "train.val_every_epochs=0", "train.trackers=[]",
        "data.cache_gigabytes=0",
    ]  # fmt: skip
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "alone")
    launches = {
        "1": [["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]],
        "2": [TWO_PROCESSES],
        "3": [[*TWO_PROCESSES, "--num_processes", "3", "--gpu_ids=-1,-1,-1"]],
        "2 x 1": machines(2, 2),
    }
    for name, options in launches.items():
        launch(options, [str(tmp_path / name), *settings])

    state = {name: read_state(tmp_path / name / "checkpoints" / "step-00000010") for name in launches}
    assert [state[name].num_processes for name in launches] == [1, 2, 3, 2]
    expected = [line["loss"] for line in trace(tmp_path / "alone")]
    assert len(expected) == 10
    rows = feather.read_table(tmp_path / "1" / "rows.arrow")
    assert len(rows) > 20
    kept = [name for name in rows.column_names if name.endswith("_predicted_counts")]
    assert kept == [f"{name}_predicted_counts" for name in PROTOCOLS]
    for name in PROTOCOLS:  # none of which compares empty masks alone, so that equal says something
        assert rows.column(f"{name}_intersection").to_numpy().sum() > 0, name
    for name in launches:
        assert [line["loss"] for line in trace(tmp_path / name)] == pytest.approx(expected, abs=1e-5), name
        assert feather.read_table(tmp_path / name / "rows.arrow").equals(rows, check_metadata=True), name
