import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from accelerate.utils import LoggerType

from refseg.config import Tracker, TrainConfig
from refseg.errors import RecipeError, TrainingError
from refseg.train import main
from refseg.training import launch
from refseg.training.launch import warn_about_missing_gpu, warn_about_other_precision

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


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
ACCELERATE = {**ALONE, "ACCELERATE_DYNAMO_MODE": "default"}


@pytest.mark.parametrize(
    ("environ", "set_by_user", "expected"),
    [
        ({}, False, 4),
        ({"OMP_NUM_THREADS": "1"}, False, 1),  # from a shell: nobody but a person can have set it
        ({"OMP_NUM_THREADS": "3"}, False, 3),
        ({"OMP_NUM_THREADS": " 2,1"}, False, 2),
        ({"OMP_NUM_THREADS": "1", **ALONE}, False, 1),  # a variable of accelerate's that people set, too
        ({"OMP_NUM_THREADS": "0"}, True, 4),
        ({"OMP_NUM_THREADS": "\u00b2"}, True, 4),
        ({"OMP_NUM_THREADS": "many"}, True, 4),
        ({"OMP_NUM_THREADS": "1", **TORCHRUN}, False, 4),
        ({"OMP_NUM_THREADS": "1", **TORCHRUN}, True, 1),
        ({"OMP_NUM_THREADS": "1", **TORCHRUN}, None, 4),
        ({"OMP_NUM_THREADS": "3", **TORCHRUN}, None, 3),
        ({"OMP_NUM_THREADS": "1", **ACCELERATE}, False, 4),
        ({"OMP_NUM_THREADS": "1", **ACCELERATE}, True, 1),
        ({"OMP_NUM_THREADS": "32", **ACCELERATE}, False, 4),  # its share of cores that this process may not use
    ],
)
def test_cores_are_shared_out_unless_a_person_set_the_threads(
    environ: dict[str, str], set_by_user: bool | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_set_for_launcher", lambda: set_by_user)

    assert launch.cpu_threads(environ, num_cores=9, num_local=2) == expected


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("variables", "arguments", "told"),
    [
        ({}, [], False),
        ({"OMP_NUM_THREADS": "1"}, [], True),
        ({}, ["--num_cpu_threads_per_process", "1"], True),
    ],
)
def test_what_a_set_for_launcher_is_read_from_its_environment_and_command_line(
    variables: dict[str, str], arguments: list[str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sh", "-c", "echo begun; read line", "launcher", *arguments]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sh:
        assert sh.stdout is not None
        sh.stdout.readline()  # until then the system may show a process without its arguments
        monkeypatch.setattr("os.getppid", lambda: sh.pid)
        assert launch._set_for_launcher() is told


@pytest.mark.parametrize(
    ("environ", "asked"),
    [({}, None), (ALONE, None), (ACCELERATE, signal.SIGTERM), ({**ACCELERATE, **TORCHRUN}, signal.SIGKILL)],
)
def test_only_a_process_of_a_launcher_ends_with_its_parent(
    environ: dict[str, str], asked: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shell in which a user set one of accelerate's variables may be closed while the run continues.
    found: list[object] = []
    for name in (*ACCELERATE, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(prctl=lambda _, number: found.append(number)))

    launch.die_with_launcher()

    assert found == ([] if asked is None else [asked])


def test_there_is_a_thread_for_every_process() -> None:
    assert launch.cpu_threads({}, num_cores=2, num_local=4) == 1


def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.precision: found 'bf16' without a GPU"):
        launch._refuse_gpu_settings(TrainConfig(precision="bf16"), 1)


@pytest.mark.parametrize(
    ("environ", "image_encoder", "reason"),
    [
        ({}, "clip_resnet101", "the recipe's image encoder is clip_resnet101"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "swin_base", "the recipe's image encoder is swin_base"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "tiny", "CUDA_VISIBLE_DEVICES is '0'"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "False"}, "", "with mixed precision bf16"),
    ],
)
def test_a_run_meant_for_a_gpu_is_not_left_to_the_cpu_silently(
    environ: dict[str, str], image_encoder: str, reason: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    warn_about_missing_gpu(environ, image_encoder=image_encoder)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "NO GPU IS USED" in caplog.text
    assert reason in caplog.text
    assert "ACCELERATE_USE_CPU=true" in caplog.text

    caplog.clear()
    for word in ({"ACCELERATE_USE_CPU": "true"}, {"CUDA_VISIBLE_DEVICES": "-1,-1"}):
        warn_about_missing_gpu({**environ, **word}, image_encoder=image_encoder)
    assert caplog.text == ""


@pytest.mark.parametrize("environ", [{}, {**ACCELERATE, "ACCELERATE_USE_CPU": "False"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_a_run_made_for_a_cpu_is_not_warned_about_gpus(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    warn_about_missing_gpu(environ, image_encoder="tiny")

    assert caplog.text == ""


def test_a_precision_of_the_launcher_that_is_not_the_recipes_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    for precision, holds in (("no", "bf16"), ("bf16", "bf16")):
        warn_about_other_precision({"ACCELERATE_MIXED_PRECISION": precision}, holds)
    assert caplog.text == ""

    warn_about_other_precision({"ACCELERATE_MIXED_PRECISION": "fp16"}, "no")
    assert "mixed precision fp16, which is not used: the precision is no" in caplog.text


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
        "refseg: error: train.trackers: found 'wandb', 'aim', which is not installed; "
        "pip install wandb 'aim<4', or leave it out\n"
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

    assert main(["toy", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == (
        f"refseg: error: --out {tmp_path}/file: is a file, expected a folder for the run\n"
    )
    monkeypatch.setattr("refseg.training.trainer.train", lambda _recipe, out: out.mkdir())
    assert main(["toy", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == (
        f"refseg: error: {tmp_path}/file: File exists; check the path, its permissions and the free disk space\n"
    )
