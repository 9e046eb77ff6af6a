"""Gradient accumulation, weight averaging, early stopping and trackers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refseg.config import Recipe, load_recipe
from refseg.data.batch import Batch
from refseg.errors import PreemptedError, RecipeError
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint
from refseg.training.run_files import read_metrics
from refseg.training.step import split_batch
from refseg.training.stopping import Preemption
from tests.training.test_training_runs import assert_same_run, trace

pytestmark = pytest.mark.slow

QUIET = ["train.val_every_epochs=0", "train.trackers=[]"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)


def test_a_batch_is_split_between_images() -> None:
    index = torch.tensor([0, 0, 1, 2, 2, 2])
    ids = torch.arange(6)[:, None]
    batch = Batch(
        images=torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2),
        image_index=index,
        masks=torch.zeros(6, 2, 2, dtype=torch.uint8),
        token_ids=ids,
        token_mask=torch.ones(6, 1, dtype=torch.bool),
        row_index=ids[:, 0],
        sentence_index=ids[:, 0],
        is_pad=torch.zeros(6, dtype=torch.bool),
        num_global=torch.tensor(6),
    )

    parts = split_batch(batch, 2)

    assert [part.token_ids[:, 0].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]
    assert [part.image_index.tolist() for part in parts] == [[0, 0, 1], [0, 0, 0]]
    assert [part.images[:, 0, 0, 0].tolist() for part in parts] == [[0, 1], [2]]
    assert len(split_batch(batch, 8)) == 3


def test_an_accumulated_step_is_the_step_of_the_whole_batch(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, *QUIET, "train.batchnorm=frozen", "model.dropout=0.0", "train.max_steps=6"]
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "whole")
    trainer.train(load_recipe("toy-quick", [*settings, "train.accumulate_steps=3"]), tmp_path / "parts")

    whole, parts = ([line["loss"] for line in trace(tmp_path / out)] for out in ("whole", "parts"))
    assert parts == pytest.approx(whole, abs=1e-5)


def test_the_average_follows_the_weights_and_is_what_is_loaded(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, *QUIET, "train.ema_decay=0.75", "train.checkpoint_every_steps=1", "train.max_steps=3",
                "train.keep_checkpoints=9"]  # fmt: skip
    trainer.train(load_recipe("toy-quick", settings), tmp_path)

    name = "head.predict.weight"
    folders = [tmp_path / f"checkpoints/step-{step:08d}" for step in (1, 2, 3)]
    weights, averages = (
        [load_file(f / file)[name] for f in folders] for file in ("model.safetensors", "average.safetensors")
    )
    for step in (1, 2):
        torch.testing.assert_close(averages[step], 0.75 * averages[step - 1] + 0.25 * weights[step])
    assert torch.equal(load_checkpoint(tmp_path).model.state_dict()[name], averages[2])
    assert not torch.equal(weights[2], averages[2])


def test_a_run_with_an_average_goes_on_bit_for_bit(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "train.ema_decay=0.9", "train.trackers=[]"]
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "whole")
    trainer.train(load_recipe("toy-quick", [*settings, "train.max_steps=7"]), tmp_path / "stopped")
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "stopped")

    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    last = [load_file(tmp_path / out / "checkpoints/step-00000012/average.safetensors") for out in ("whole", "stopped")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_run_ends_when_validations_stop_getting_better(overrides: list[str], tmp_path: Path) -> None:
    # With a learning rate near zero, no validation is better than the first.
    settings = [*overrides, "train.epochs=8", "train.max_steps=48", "train.val_every_epochs=1", "train.patience=2",
                "train.lr=1e-20", "train.batchnorm=frozen", "train.trackers=[]"]  # fmt: skip
    result = trainer.train(load_recipe("toy-quick", settings), tmp_path)

    assert result.best is not None
    assert (result.best.step, result.step) == (6, 18)
    assert load_checkpoint(tmp_path / "checkpoints/step-00000018").step == 18


def test_splits_that_are_not_there_are_named_together(overrides: list[str], toy_shards: Path, tmp_path: Path) -> None:
    recipe = load_recipe("toy-quick", [*overrides, "data.train_split=trian", "data.val_split=vla"])

    with pytest.raises(RecipeError) as error:
        trainer.train(recipe, tmp_path)
    known = "expected some of train, val, testA, testB"
    assert str(error.value).splitlines() == [
        f"data.train_split: {toy_shards}: toy/refseg has no split 'trian'; {known}; did you mean train?; name one "
        "with data.train_split=",
        f"data.val_split: {toy_shards}: toy/refseg has no split 'vla'; {known}; did you mean val?; name one "
        "with data.val_split=, or train without validation: train.val_every_epochs=0",
    ]


def test_patience_without_validation_is_refused(overrides: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"train\.patience: counts validations"):
        load_recipe("toy-quick", [*overrides, "train.patience=2", "train.val_every_epochs=0"])


def test_tensorboard_gets_the_numbers(recipe: Recipe, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer.train(recipe, tmp_path)

    events = EventAccumulator(str(tmp_path / "refseg"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert losses == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines]
    assert "val/oIoU" in events.Tags()["scalars"]


def test_a_validation_that_was_due_when_the_run_left_comes_first(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*overrides, "train.epochs=3", "train.max_steps=18", "train.val_every_epochs=1", "train.trackers=[]"]
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "whole")
    asked = iter([False] * 5 + [True])  # after step 6, the end of an epoch
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "is_requested", lambda self, accelerator: next(asked))
        with pytest.raises(PreemptedError, match="after step 6 of 18; all work is saved"):
            trainer.train(load_recipe("toy-quick", settings), tmp_path / "left")
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "left")

    assert_same_run(tmp_path / "left", tmp_path / "whole")
    assert load_checkpoint(tmp_path / "left").step == load_checkpoint(tmp_path / "whole").step


def test_a_run_that_ended_by_patience_is_left_as_it_is(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [*overrides, "train.epochs=8", "train.max_steps=48", "train.val_every_epochs=1", "train.patience=1",
                "train.lr=1e-20", "train.batchnorm=frozen", "train.trackers=[]"]  # fmt: skip
    first = trainer.train(load_recipe("toy-quick", settings), tmp_path)
    (tmp_path / "environment.json").unlink()
    caplog.clear()
    with caplog.at_level("INFO", logger="refseg.training.trainer"):
        again = trainer.train(load_recipe("toy-quick", [*settings, "train.log_every_steps=7"]), tmp_path)

    assert first.step == again.step == 12
    said = [record.getMessage() for record in caplog.records if record.name == "refseg.training.trainer"]
    assert said == [f"{tmp_path} is complete: all 12 steps are done"]
    kept = json.loads((tmp_path / "recipe.json").read_text())
    assert kept["train"]["log_every_steps"] == 1  # no step was made with 7
    assert not (tmp_path / "environment.json").is_file()
