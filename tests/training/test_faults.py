"""Faults during a run: each ends it with the reason, and with an undamaged checkpoint from which it can resume."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refseg.config import load_recipe
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.errors import CheckpointError, DatasetError, TrainingError
from refseg.training import step, trainer
from refseg.training.checkpoint import latest_checkpoint, load_checkpoint
from refseg.training.run_files import MetricsLog, read_metrics
from refseg.training.stopping import report_rank_death
from tests.disk import file_size_limit
from tests.training.test_training_runs import ROOT, TWO_PROCESSES, start

QUIET = ["train.val_every_epochs=0", "train.trackers=[]", "data.cache_gigabytes=0"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[trainer._Trainer], object]], None]:
    """Call a function before a step of the run."""
    train_step = trainer._Trainer._train_step

    def at(step: int, action: Callable[[trainer._Trainer], object]) -> None:
        def noted(self: trainer._Trainer, batch: Batch) -> Tensor:
            if self.step == step:
                action(self)
            return train_step(self, batch)

        monkeypatch.setattr(trainer._Trainer, "_train_step", noted)

    return at


def spoil_image(shards: Path, image: int) -> None:
    """Change one byte within the JPEG of a training image."""
    index = ManifestIndex.open(shards, ["train"])
    with (shards / "train-00000.tar").open("r+b") as file:
        file.seek(int(index.image_offset[image] + index.image_bytes[image] // 2))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_checkpoint_before(
    overrides: list[str], tmp_path: Path, before_step: Any
) -> None:
    recipe = load_recipe("toy-quick", [*overrides, *QUIET])

    with file_size_limit() as limit:
        before_step(5, lambda _: limit(50_000))
        with pytest.raises(CheckpointError, match=r"step-00000008: cannot be written \(.*free disk space"):
            trainer.train(recipe, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert latest_checkpoint(tmp_path) is not None


def test_a_disk_that_refuses_a_line_of_the_log_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0)
    with file_size_limit() as limit:
        limit(20)
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
            log.write("train", 1, {"loss": 0.5})
    log.close()
    assert read_metrics(tmp_path) == []


def test_a_batch_with_nan_ends_the_run_and_spoils_no_checkpoint(
    overrides: list[str], tmp_path: Path, before_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("toy-quick", [*overrides, *QUIET, "train.log_every_steps=100"])
    normalise = step.normalise

    def spoil(running: trainer._Trainer) -> None:
        monkeypatch.setattr(step, "normalise", lambda *given: normalise(*given) * torch.nan)

    before_step(5, spoil)

    with pytest.raises(TrainingError, match=r"loss became nan at or shortly before step 8; the last checkpoint .*0004"):
        trainer.train(recipe, tmp_path)
    weights = load_checkpoint(tmp_path).model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_gradient_without_a_finite_norm_ends_the_run(overrides: list[str], tmp_path: Path, before_step: Any) -> None:
    # The loss of this step is finite, but the weights after it are not.
    def spoil(running: trainer._Trainer) -> None:
        weight = next(parameter for parameter in running.model.parameters() if parameter.requires_grad)
        weight.register_hook(lambda gradient: gradient * torch.inf)

    recipe = load_recipe("toy-quick", [*overrides, *QUIET, "train.clip_norm=1"])
    before_step(5, spoil)

    with pytest.raises(TrainingError, match=r"gradient's norm became (inf|nan) at or shortly before step 6; .*0004"):
        trainer.train(recipe, tmp_path)


@pytest.mark.slow
def test_a_loss_that_grows_beyond_measure_ends_the_run_and_may_be_let_go_on(
    overrides: list[str], tmp_path: Path, before_step: Any
) -> None:
    def spoil(running: trainer._Trainer) -> None:
        with torch.no_grad():
            for parameter in running.model.head.parameters():
                parameter.mul_(100)

    before_step(5, spoil)

    with pytest.raises(
        TrainingError,
        match=r"the loss rose from [\d.]+ at the start to [\d.e+]+ \(train.divergence_factor 10\) .* step 6; .*0004",
    ):
        trainer.train(load_recipe("toy-quick", [*overrides, *QUIET]), tmp_path / "a")
    trainer.train(load_recipe("toy-quick", [*overrides, *QUIET, "train.divergence_factor=0"]), tmp_path / "b")


def test_a_shard_that_is_damaged_while_it_is_read_ends_the_run_and_is_named(
    overrides: list[str], toy_shards: Path, tmp_path: Path, before_step: Any
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(toy_shards, shards)
    recipe = load_recipe("toy-quick", [*overrides, *QUIET, f"data.root={shards}"])
    before_step(5, lambda _: [spoil_image(shards, image) for image in range(24)])

    with pytest.raises(DatasetError, match=r"train-00000\.tar: image \d+ .*: the shard is damaged"):
        trainer.train(recipe, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 4


@pytest.mark.parametrize(
    "text", ["Connection closed by peer [127.0.0.1]:5", "NCCL Error 1", "Broken pipe", "[gloo] Timed out"]
)
def test_the_death_of_another_process_has_one_error(text: str) -> None:
    with pytest.raises(TrainingError, match="another process of the run ended"), report_rank_death(2):
        raise RuntimeError(text)


def test_other_errors_and_those_of_one_process_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), report_rank_death(2):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="socket"), report_rank_death(1):
        raise RuntimeError("socket")
    with pytest.raises(DatasetError, match="socket"), report_rank_death(2):
        raise DatasetError("socket")


def start_two(out: Path, overrides: list[str]) -> "subprocess.Popen[str]":
    """A long run of two processes, which has done 6 steps."""
    longer = ["train.epochs=500", "train.max_steps=3000", "train.checkpoint_every_steps=1000000"]
    run = start(
        [*TWO_PROCESSES, "refseg/train.py", "toy-quick", "--out", str(out), "--set", *overrides, *QUIET, *longer]
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "step 6/" in line:
            break
    return run


def ends_early(run: "subprocess.Popen[str]") -> str:
    """Return the output of a run that must end by itself before its last step."""
    output, _ = run.communicate(timeout=300)
    assert run.returncode != 0
    return output


def ranks_of(out: Path) -> dict[int, int]:
    """Process ids of the ranks that train into a folder."""
    ranks = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(out) in (process / "cmdline").read_text().split("\0"):
                environ = dict(entry.partition("=")[::2] for entry in (process / "environ").read_text().split("\0"))
                if "RANK" in environ:
                    ranks[int(environ["RANK"])] = int(process.name)
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_a_message(rank: int, overrides: list[str], tmp_path: Path) -> None:
    run = start_two(tmp_path, overrides)
    ranks = ranks_of(tmp_path)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[rank], signal.SIGKILL)

    output = ends_early(run)
    assert "another process of the run ended or cannot be reached" in output
    assert "Signal 9 (SIGKILL) received" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())


@pytest.mark.slow
def test_a_fault_of_one_rank_ends_the_others(overrides: list[str], toy_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(toy_shards, shards)
    run = start_two(tmp_path / "run", [*overrides, f"data.root={shards}"])
    spoil_image(shards, 7)

    output = ends_early(run)
    assert "train-00000.tar: image" in output
    assert "another process of the run ended" in output
    assert str(ROOT / "refseg") not in output  # no traceback but the launcher's
