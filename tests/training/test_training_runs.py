"""Whole runs on 24 toy scenes, which take seconds on one thread, so that traces are equal bit for bit."""

import errno
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from refseg.config import Recipe, load_recipe
from refseg.data.index import ManifestIndex
from refseg.errors import CheckpointError, RecipeError, TrainingError
from refseg.sealed import seal
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint, read_state
from refseg.training.run_files import read_metrics
from refseg.training.run_folder import lock_run
from tests.warm_python import python

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ["--config_file", str(ROOT / "refseg" / "configs" / "accelerate_cpu2.yaml")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def unbroken(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of an uninterrupted run of `recipe`, which the first test that needs it trains."""
    return {"out": tmp_path_factory.mktemp("runs") / "unbroken"}


def unbroken_run(recipe: Recipe, unbroken: dict[str, Path]) -> Path:
    if not unbroken["out"].exists():
        trainer.train(recipe, unbroken["out"])
    return unbroken["out"]


def trace(out: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without the clock."""
    clock = ("samples_per_second", "seconds_per_step", "data_wait_share", "seconds")
    return [{key: value for key, value in line.items() if key not in clock} for line in read_metrics(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


def assert_same_run(out: Path, reference: Path) -> None:
    assert trace(out) == trace(reference)
    expected = weights(reference)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())


def start(arguments: list[str], *, executable: str = "") -> "subprocess.Popen[str]":
    """`accelerate launch`, by the warm Python unless another is given."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "MASTER", "WORLD"))}
    return subprocess.Popen(
        [executable or python(), "-m", "accelerate.commands.launch", *arguments],
        cwd=ROOT,
        env={**environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_leaves_its_trace_its_settings_and_its_checkpoints(recipe: Recipe, unbroken: dict[str, Path]) -> None:
    out = unbroken_run(recipe, unbroken)

    lines = trace(out)
    assert [(line["kind"], line["step"]) for line in lines] == [("train", i) for i in range(1, 13)] + [("val", 12)]
    assert all(line["loss"] > 0 for line in lines[:12])
    assert {"oIoU", "mIoU", "Pr@0.5"} <= set(lines[12])
    assert json.loads((out / "recipe.json").read_text()) == recipe.to_dict()
    facts = json.loads((out / "environment.json").read_text())
    checkpoint = load_checkpoint(out)
    assert (facts["dataset"], facts["dataset_digest"]) == ("toy/refseg", checkpoint.dataset_digest)
    assert facts["val_dataset_digest"] == checkpoint.dataset_digest
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert (facts["cores"], facts["num_processes"]) == (len(os.sched_getaffinity(0)), 1)
    assert facts["device"] == facts["cpu"] != ""
    assert facts["memory_gigabytes"] > 0
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", facts["git_commit"] or "0" * 40)
    assert (checkpoint.step, checkpoint.recipe) == (12, recipe)
    assert checkpoint.state.cursor is not None
    assert checkpoint.state.cursor.samples_done == 0  # the third epoch's start
    assert checkpoint.state.epoch == checkpoint.state.cursor.epoch == 2


@pytest.mark.slow
def test_on_a_cpu_it_is_the_same_who_decodes(
    overrides: list[str], recipe: Recipe, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    on_device = ["data.decode=device", "data.cache_gigabytes=0", "data.num_workers=1"]
    trainer.train(load_recipe("toy-quick", [*overrides, *on_device]), tmp_path / "run")

    assert_same_run(tmp_path / "run", unbroken_run(recipe, unbroken))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6, 7])
def test_a_stopped_run_goes_on_to_the_same_end(
    overrides: list[str], recipe: Recipe, unbroken: dict[str, Path], tmp_path: Path, stop: int
) -> None:
    # 4: at a checkpoint; 6: between two epochs; 7: within an epoch.
    reference = unbroken_run(recipe, unbroken)

    trainer.train(load_recipe("toy-quick", [*overrides, f"train.max_steps={stop}"]), tmp_path)
    trainer.train(recipe, tmp_path)

    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_lines_of_several_steps_survive_a_stop_between_them(overrides: list[str], tmp_path: Path) -> None:
    sparse = [*overrides, "train.log_every_steps=5", "train.val_every_epochs=0"]
    trainer.train(load_recipe("toy-quick", sparse), tmp_path / "a")
    trainer.train(load_recipe("toy-quick", sparse), tmp_path / "b")
    # After a SIGKILL in step 11 there are the checkpoint of step 8, and lines up to step 10.
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000012")
    trainer.train(load_recipe("toy-quick", sparse), tmp_path / "b")

    assert [line["step"] for line in trace(tmp_path / "b")] == [5, 10, 12]
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_a_damaged_last_checkpoint_costs_its_steps_only(
    recipe: Recipe, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    reference = unbroken_run(recipe, unbroken)
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    (out / "checkpoints" / "step-00000012" / "optimizer.pt").write_bytes(b"torn")
    trainer.train(recipe, out)

    assert_same_run(out, reference)


def test_a_finished_run_is_left_as_it_is(recipe: Recipe, unbroken: dict[str, Path]) -> None:
    out = unbroken_run(recipe, unbroken)
    before = trace(out)
    result = trainer.train(recipe, out)

    assert (result.step, result.checkpoint.name, trace(out)) == (12, "step-00000012", before)
    assert result.best is not None


def test_a_finished_run_on_a_read_only_file_system_is_finished(
    recipe: Recipe, unbroken: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = unbroken_run(recipe, unbroken)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    really_open = Path.open

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    def open_to_read(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return refuse(path) if set(mode) & set("wax+") else really_open(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_to_read)
    for name in ("unlink", "replace", "rename"):
        monkeypatch.setattr(Path, name, refuse)

    assert trainer.train(recipe, out).step == 12
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_recipe_in_the_same_folder_is_refused(
    overrides: list[str], recipe: Recipe, unbroken: dict[str, Path]
) -> None:
    out = unbroken_run(recipe, unbroken)
    other = load_recipe("toy-quick", [*overrides, "train.lr=1", "model.dim=64", "train.keep_checkpoints=5"])

    with pytest.raises(RecipeError, match=r"holds a run of another recipe \(model\.dim, train\.lr differ\)"):
        trainer.train(other, out)


def test_pretrained_files_are_not_read_again_and_may_have_moved(
    overrides: list[str], recipe: Recipe, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    reference = unbroken_run(recipe, unbroken)
    trainer.train(load_recipe("toy-quick", [*overrides, "train.max_steps=7"]), tmp_path)
    # This name would be refused for this encoder if it were checked.
    trainer.train(load_recipe("toy-quick", [*overrides, "model.image_weights=moved", "model.text_weights=x"]), tmp_path)

    assert_same_run(tmp_path, reference)


def test_another_dataset_under_the_same_name_is_refused(
    recipe: Recipe, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken_run(recipe, unbroken), out)
    for folder in (out / "checkpoints").glob("step-*"):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(seal({**state, "dataset_digest": "f" * 64})))

    with pytest.raises(RecipeError, match="holds a run on toy/refseg with digest ffffffffffff"):
        trainer.train(recipe, out)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = trainer._Trainer._train_step

    def failing(self: trainer._Trainer, batch: Any) -> torch.Tensor:
        loss = train_step(self, batch)
        return loss * torch.nan if self.step == 6 else loss

    monkeypatch.setattr(trainer._Trainer, "_train_step", failing)

    with pytest.raises(
        TrainingError,
        match=r"became nan at or shortly before step 7; the last checkpoint is .*04; start again in another --out",
    ):
        trainer.train(recipe, tmp_path)


def test_a_checkpoint_knows_from_any_folder_what_it_was_trained_on(
    overrides: list[str],
    toy_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(toy_shards.parent)
    changes = [*overrides, "data.root=shards", "data.val_split=train", "train.max_steps=1", "train.trackers=[]"]
    trainer.train(load_recipe("toy-quick", changes), tmp_path)

    assert "24 of the 24 images of data.val_split train are training images (toy/refseg train is the" in caplog.text
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(tmp_path).state.lineage.roots == (str(toy_shards), "shards")


def test_weights_that_are_no_numbers_are_never_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = trainer._Trainer._train_step

    def failing(self: trainer._Trainer, batch: Any) -> torch.Tensor:
        loss = train_step(self, batch)
        if self.step == 7:
            next(self.model.parameters()).data.fill_(torch.inf)
        return loss

    monkeypatch.setattr(trainer._Trainer, "_train_step", failing)

    with pytest.raises(TrainingError, match="weights"):
        trainer.train(recipe, tmp_path)
    assert load_checkpoint(tmp_path).step == 4


def test_a_disk_that_refuses_a_checkpoint_ends_the_run_with_its_reason(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refseg.training.checkpoint_writer.torch.save", full)

    with pytest.raises(CheckpointError, match=r"step-00000004: cannot be written \(.*No space left on device\)"):
        trainer.train(recipe, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_frozen_batchnorm_keeps_its_statistics(overrides: list[str], tmp_path: Path) -> None:
    recipe = load_recipe("toy-quick", [*overrides, "train.batchnorm=frozen", "train.max_steps=2"])
    trainer.train(recipe, tmp_path)

    means = [tensor for name, tensor in weights(tmp_path).items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_two_runs_in_one_folder_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with (
        lock_run(tmp_path),
        pytest.raises(TrainingError, match=rf"process {os.getpid()} on .* is training into this folder"),
    ):
        trainer.train(recipe, tmp_path)
    with lock_run(tmp_path):
        pass


@pytest.mark.slow
def test_two_processes_see_every_sentence_once_an_epoch_and_train_as_one(
    overrides: list[str], toy_shards: Path, tmp_path: Path
) -> None:
    # BatchNorm sees half of the samples on each of two processes. With frozen statistics and without dropout, only the
    # order of sums differs.
    same = ["train.batchnorm=frozen", "model.dropout=0.0", "data.sampling=sentence", "data.expressions_per_image=1"]
    settings = [*overrides, *same, "data.remainder=pad", "train.global_batch=32", "train.val_every_epochs=1"]
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "one")
    worker = str(Path(__file__).with_name("trace_ranks.py"))
    output, _ = (run := start([*TWO_PROCESSES, worker, "toy-quick", str(tmp_path / "two"), *settings])).communicate(
        timeout=300
    )
    assert run.returncode == 0, output

    index = ManifestIndex.open(toy_shards, ["train"])
    steps_per_epoch = -(-index.num_sentences // 32)
    everything = {
        (row, sentence)
        for row in range(index.num_rows)
        for sentence in range(index.sentence_start[row + 1] - index.sentence_start[row])
    }
    ranks = [json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert abs(len(ranks[0]) - len(ranks[1])) <= 32
    for epoch in range(12 // steps_per_epoch):
        seen = Counter(
            (row, sentence) for step, row, sentence in (*ranks[0], *ranks[1]) if step // steps_per_epoch == epoch
        )
        assert set(seen) == everything
        assert set(seen.values()) == {1}

    one, two = trace(tmp_path / "one"), trace(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    losses = [[line["loss"] for line in lines if line["kind"] == "train"] for lines in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert read_state(tmp_path / "two" / "checkpoints" / "step-00000012").num_processes == 2


def test_the_launcher_that_starts_one_process_for_two_is_refused(overrides: list[str], tmp_path: Path) -> None:
    run = start(
        [
            "--cpu",
            "--num_processes",
            "2",
            "refseg/train.py",
            "toy-quick",
            "--out",
            str(tmp_path / "run"),
            "--set",
            *overrides,
        ]
    )
    output, _ = run.communicate(timeout=300)

    assert run.returncode == 1
    assert "refseg: error: found 1 process" in output
    assert "--config_file refseg/configs/accelerate_cpu2.yaml" in output
    assert not (tmp_path / "run").exists()


def test_wrong_usage_is_one_line_and_2(tmp_path: Path) -> None:
    command = [python(), "refseg/train.py", "toy-quick", "--out", str(tmp_path), "--set", "train.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "train.lrr: unknown key; did you mean lr?" in done.stderr
    assert "Traceback" not in done.stderr
