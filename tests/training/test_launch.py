from pathlib import Path
from typing import get_args

import pytest
from accelerate.utils import LoggerType

from refseg.config import Tracker, TrainConfig
from refseg.errors import RecipeError, TrainingError
from refseg.train import main
from refseg.training import launch

ALONE = {"ACCELERATE_MIXED_PRECISION": "no"}


def test_one_process_where_several_were_asked_for_is_refused_with_the_command_that_works() -> None:
    # What `accelerate launch --cpu --num_processes 2` (1.15) gives the one process it starts.
    with pytest.raises(TrainingError, match=r"found 1 process.*--config_file refseg/configs/accelerate_cpu2\.yaml"):
        launch.refuse_missing_processes(1, {**ALONE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})


@pytest.mark.parametrize(
    ("num_processes", "environ"),
    [
        (1, {}),  # python refseg/train.py
        (1, ALONE),  # accelerate launch
        (1, {**ALONE, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1"}),  # torchrun --nproc_per_node 1
        (1, {"MASTER_ADDR": "node7"}),  # a cluster's own variable, without accelerate
        (2, {**ALONE, "MASTER_ADDR": "127.0.0.1"}),  # accelerate over MPI
    ],
)
def test_whoever_got_what_was_asked_for_may_train(num_processes: int, environ: dict[str, str]) -> None:
    launch.refuse_missing_processes(num_processes, environ)


@pytest.mark.parametrize(
    ("value", "set_by_person", "expected"),
    [(None, False, 4), ("1", False, 4), ("1", True, 1), ("3", False, 3)],
)
def test_cores_are_shared_out_unless_a_person_set_the_threads(
    value: str | None, set_by_person: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_launcher_has", lambda name: set_by_person)
    environ = {} if value is None else {"OMP_NUM_THREADS": value}

    assert launch.cpu_threads(environ, num_cores=9, num_local=2) == expected


def test_there_is_a_thread_for_every_process() -> None:
    assert launch.cpu_threads({}, num_cores=2, num_local=4) == 1


def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.precision: found 'bf16' without a GPU"):
        launch._refuse_gpu_settings(TrainConfig(precision="bf16"), 1)


def test_synchronised_batchnorm_without_gpus_is_refused_for_several_processes() -> None:
    launch._refuse_gpu_settings(TrainConfig(batchnorm="sync"), 1)
    with pytest.raises(RecipeError, match=r"train\.batchnorm: found 'sync' without GPUs"):
        launch._refuse_gpu_settings(TrainConfig(batchnorm="sync"), 2)


def test_trackers_that_are_not_installed_are_all_named_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("refseg.training.launch.die_with_launcher", lambda: None)
    monkeypatch.setattr(launch, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    trackers = "train.trackers=['wandb', 'tensorboard', 'aim']"

    assert main(["toy", "--out", str(tmp_path / "run"), "--set", trackers]) == 2
    assert capsys.readouterr().err == (
        "refseg: error: train.trackers: found 'wandb', 'aim', not installed here; "
        "pip install wandb 'aim<4', or leave them out\n"
    )
    assert not (tmp_path / "run").exists()


def test_every_tracker_that_a_recipe_may_name_is_one_of_accelerates() -> None:
    launch.refuse_missing_trackers(["tensorboard"])  # installed with refseg
    assert set(get_args(Tracker)) <= {str(tracker) for tracker in LoggerType}


def test_a_run_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("refseg.training.launch.die_with_launcher", lambda: None)
    monkeypatch.setattr("refseg.training.trainer.train", lambda _recipe, out: out.mkdir())

    assert main(["toy", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == (
        f"refseg: error: {tmp_path}/file: File exists; see to the path, its rights and space\n"
    )
