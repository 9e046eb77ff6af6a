"""Runs that start from the weights of another run: which weights, their origin, and their training sets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refseg.apps.publish import publish
from refseg.config import Recipe, load_recipe
from refseg.data.index import ManifestIndex
from refseg.errors import CheckpointError, RecipeError, UsageError
from refseg.evaluation.leak_check import check_leaks, leak_warning, refuse_leaks
from refseg.lineage import Ancestor, Lineage
from refseg.models.weight_files import file_sha256
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint, load_optimizer
from refseg.training.start_weights import load_start_weights
from tests.training.test_training_runs import TWO_PROCESSES, assert_same_run, start

pytestmark = pytest.mark.slow

QUIET = ["train.val_every_epochs=0", "train.trackers=[]", "train.max_steps=2"]
STILL = ["train.lr=1e-20", "train.batchnorm=frozen", "model.dropout=0.0"]
"""Overrides of a recipe whose weights do not change."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ancestors")


@pytest.fixture
def ancestor(overrides: list[str], made: Path) -> Path:
    """Two steps with averaged weights, trained once for all tests."""
    out = made / "run"
    if not out.exists():
        trainer.train(load_recipe("toy-quick", [*overrides, *QUIET, "train.ema_decay=0.5", "train.seed=5"]), out)
    return out


@pytest.fixture
def fine_tune(overrides: list[str], ancestor: Path) -> list[str]:
    return [*overrides, *QUIET, *STILL, f"train.init_from={ancestor}"]


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(load_checkpoint(run).folder / name)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_starts_with_the_averaged_weights_of_another_and_an_optimiser_of_its_own(
    fine_tune: list[str], ancestor: Path, tmp_path: Path
) -> None:
    result = trainer.train(load_recipe("toy-quick", fine_tune), tmp_path)

    assert same(weights(tmp_path), weights(ancestor, "average.safetensors"))
    assert not same(weights(tmp_path), weights(ancestor, "model.safetensors"))
    assert result.step == 2
    state = load_optimizer(result.checkpoint)["optimizer"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {2}


def test_what_it_started_from_is_written_down_over_generations(
    fine_tune: list[str], ancestor: Path, toy_shards: Path, tmp_path: Path
) -> None:
    trainer.train(load_recipe("toy-quick", fine_tune), tmp_path / "child")
    grandchild = load_recipe("toy-quick", [*fine_tune, f"train.init_from={tmp_path / 'child'}"])
    trainer.train(grandchild, tmp_path / "grandchild")

    first, second = load_checkpoint(tmp_path / "grandchild").state.lineage.ancestors
    digest = ManifestIndex.open(toy_shards, ["train"]).descriptor.digest
    assert (first.path, second.path) == (str(tmp_path / "child"), str(ancestor))
    average = load_checkpoint(ancestor).folder / "average.safetensors"
    assert second.weights_sha256 == file_sha256(average)
    assert (second.dataset, second.dataset_digest, second.split) == ("toy/refseg", digest, "train")
    assert (second.root, second.step) == (str(toy_shards), 2)
    facts = json.loads((tmp_path / "grandchild" / "environment.json").read_text())
    assert [each["weights_sha256"] for each in facts["ancestors"]] == [first.weights_sha256, second.weights_sha256]


def test_a_published_model_is_started_from_and_keeps_its_ancestors_without_their_paths(
    fine_tune: list[str], ancestor: Path, tmp_path: Path
) -> None:
    trainer.train(load_recipe("toy-quick", fine_tune), tmp_path / "child")
    publish(tmp_path / "child", tmp_path / "published")
    again = load_recipe("toy-quick", [*fine_tune, f"train.init_from={tmp_path / 'published'}"])
    trainer.train(again, tmp_path / "run")

    assert same(weights(tmp_path / "run"), weights(ancestor, "average.safetensors"))
    assert str(tmp_path) not in (tmp_path / "published/config.json").read_text()
    assert str(ancestor) not in (tmp_path / "published/config.json").read_text()
    card = (tmp_path / "published/README.md").read_text()
    assert f"| started from | {ancestor.name} at step 2, trained on toy/refseg, digest" in card
    assert str(ancestor) not in card
    published, before = load_checkpoint(tmp_path / "run").state.lineage.ancestors
    assert (published.path, published.root) == (str(tmp_path / "published"), "")
    assert (before.path, before.root) == (ancestor.name, "")


def test_a_model_of_another_architecture_is_refused_with_what_to_set(fine_tune: list[str], tmp_path: Path) -> None:
    other = load_recipe("toy-quick", [*fine_tune, "model.alpha=sigmoid", "model.egm_heads=2", "model.dropout=0.3"])

    with pytest.raises(RecipeError) as error:
        trainer.train(other, tmp_path / "run")

    assert str(error.value).splitlines()[1:] == [
        "  model.egm_heads is absent in that model, 2 in the recipe",
        '  model.alpha is "linear" in that model, "sigmoid" in the recipe',
        '  use that architecture (--set model.alpha="linear"; leave out model.egm_heads), or leave out train.init_from',
    ]
    assert "step-00000002 holds a model of another architecture" in str(error.value)


def test_another_input_size_has_its_native_grid_resized(fine_tune: list[str], ancestor: Path, tmp_path: Path) -> None:
    trainer.train(load_recipe("toy-quick", [*fine_tune, "data.input_size=96"]), tmp_path)

    before, after = weights(ancestor, "average.safetensors"), weights(tmp_path)
    name = "egm.attention.query.weight"
    assert (before[name].shape[1], after[name].shape[1]) == (4 * 4, 6 * 6)
    # The sum of a kernel over the grid is kept, except for the error of resizing at the borders.
    torch.testing.assert_close(after[name].sum(1), before[name].sum(1), rtol=0.05, atol=0.05)
    assert torch.equal(after["head.predict.weight"], before["head.predict.weight"])


def test_pretrained_files_are_neither_read_nor_needed(fine_tune: list[str]) -> None:
    # This name would be refused for this encoder if it were checked.
    recipe = load_recipe("toy-quick", [*fine_tune, "model.image_weights=nowhere", "model.text_weights=nowhere"])

    assert load_start_weights(recipe).tensors


@pytest.mark.parametrize("what", ["nowhere", "a file", "another"])
def test_what_is_no_model_is_refused(fine_tune: list[str], tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("no model")
    if what == "another":
        place.mkdir()
        (place / "config.json").write_text('{"format": "another"}')
    recipe = load_recipe("toy-quick", [*fine_tune, f"train.init_from={place}"])

    with pytest.raises(CheckpointError, match=r"found no checkpoint, expected a run's folder|not the configuration of"):
        trainer.train(recipe, tmp_path / "run")


def test_a_run_goes_on_when_the_weights_it_started_from_are_moved_or_gone(
    overrides: list[str], ancestor: Path, tmp_path: Path
) -> None:
    shutil.copytree(ancestor, tmp_path / "here")
    settings = [*overrides, "train.trackers=[]", "train.max_steps=9"]
    started = [*settings, f"train.init_from={tmp_path / 'here'}"]
    trainer.train(load_recipe("toy-quick", started), tmp_path / "whole")
    for name in ("gone", "moved", "unsaid"):
        trainer.train(load_recipe("toy-quick", [*started, "train.max_steps=5"]), tmp_path / name)
    (tmp_path / "here").rename(tmp_path / "there")

    trainer.train(load_recipe("toy-quick", started), tmp_path / "gone")
    trainer.train(load_recipe("toy-quick", [*settings, f"train.init_from={tmp_path / 'there'}"]), tmp_path / "moved")
    trainer.train(load_recipe("toy-quick", settings), tmp_path / "unsaid")

    for name in ("gone", "moved", "unsaid"):
        assert_same_run(tmp_path / name, tmp_path / "whole")
        assert (
            load_checkpoint(tmp_path / name).state.lineage.ancestors
            == load_checkpoint(tmp_path / "whole").state.lineage.ancestors
        )


def test_a_run_that_began_from_other_weights_is_not_gone_on_with(
    fine_tune: list[str], overrides: list[str], ancestor: Path, tmp_path: Path
) -> None:
    plain = [*overrides, *QUIET, *STILL]
    trainer.train(load_recipe("toy-quick", plain), tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"holds a run that started without train.init_from, .* choose another --out"):
        trainer.train(load_recipe("toy-quick", fine_tune), tmp_path / "plain")

    trainer.train(load_recipe("toy-quick", fine_tune), tmp_path / "tuned")
    other = load_recipe("toy-quick", [*plain, f"train.init_from={tmp_path / 'plain'}"])
    with pytest.raises(
        RecipeError, match=rf"started from {ancestor} \(weights with SHA-256 \w+\), but train.init_from n"
    ):
        trainer.train(other, tmp_path / "tuned")


def test_images_that_an_ancestor_was_trained_on_are_a_leak(
    fine_tune: list[str], ancestor: Path, toy_shards: Path, tmp_path: Path
) -> None:
    # Trained on the split val itself; only the ancestor has seen train.
    trainer.train(load_recipe("toy-quick", [*fine_tune, "data.train_split=val"]), tmp_path)
    trained_on = load_checkpoint(tmp_path).state.lineage.training_sets

    train = check_leaks(trained_on, ManifestIndex.open(toy_shards, ["train"]))
    assert train.num_shared == train.num_images == 24
    assert train.says.endswith(f"toy/refseg train is the training set (by {ancestor}, whose weights it started from)")
    with pytest.raises(UsageError, match=r"24 of its 24 images were trained on .* add --allow-leak"):
        refuse_leaks(train, where="toy train")
    assert check_leaks(trained_on[:1], ManifestIndex.open(toy_shards, ["train"])).num_shared == 0

    test = check_leaks(trained_on, ManifestIndex.open(toy_shards, ["testA"]))
    assert test.num_shared == 0
    gone = replace(trained_on[1], root="", dataset="a/b", dataset_digest="f" * 64)
    unknown = check_leaks([trained_on[0], gone], ManifestIndex.open(toy_shards, ["testA"]))
    assert unknown.num_shared is None
    assert "not compared with the training images of a/b" in unknown.says


def test_an_ancestors_mix_with_leaks_stands_beside_every_score() -> None:
    model = Lineage(dataset="custom/mine", dataset_digest="")
    leaks = {"refcoco/unc": {"refcocog/umd val": 3}}
    mix = Ancestor(
        path="runs/mix",
        weights_sha256="",
        step=1,
        dataset="mix/all",
        dataset_digest="",
        leaks_allowed=True,
        leaks=leaks,
    )

    honest = replace(model, ancestors=(replace(mix, leaks_allowed=False),))
    assert leak_warning(honest, None, scored="refcocog/umd val") == ""
    warning = leak_warning(replace(model, ancestors=(mix,)), None, scored="refcocog/umd val")
    assert warning.startswith(
        "LEAKS ALLOWED: mix/all was mixed with training images that are in evaluation splits of its members"
    )
    assert "images of refcocog/umd val trained on: 3 by way of refcoco/unc" in warning


def test_validation_on_a_split_that_is_not_there_says_what_to_set(overrides: list[str], tmp_path: Path) -> None:
    recipe = load_recipe("toy-quick", [*overrides, "data.val_split=nope"])

    with pytest.raises(RecipeError, match=r"no split 'nope'; expected some of train, .* train.val_every_epochs=0$"):
        trainer.train(recipe, tmp_path)


def test_a_batch_larger_than_the_dataset_says_what_to_set(overrides: list[str], tmp_path: Path) -> None:
    recipe = load_recipe("toy-quick", [*overrides, *QUIET, "train.global_batch=64", "data.remainder=drop"])

    with pytest.raises(UsageError, match=r"24 samples, fewer than one global batch of 64.* remainder = \"pad\""):
        trainer.train(recipe, tmp_path)


def test_two_processes_start_from_the_same_weights(fine_tune: list[str], ancestor: Path, tmp_path: Path) -> None:
    command = ["refseg/train.py", "toy-quick", "--out", str(tmp_path / "run"), "--set", *fine_tune]
    output, _ = (run := start([*TWO_PROCESSES, *command])).communicate(timeout=300)

    assert run.returncode == 0, output
    assert output.count("starting from") == 1
    assert same(weights(tmp_path / "run"), weights(ancestor, "average.safetensors"))


def test_the_shipped_recipe_needs_no_split_but_train() -> None:
    recipe: Recipe = load_recipe("finetune-toy")

    assert (recipe.train.val_every_epochs, recipe.data.remainder) == (0, "pad")
    assert not recipe.model.random_start  # it is refused without `train.init_from`
    model = recipe.model.model_copy(update={"random_start": True})
    assert model == load_recipe("toy").model == load_recipe("toy-quick").model
