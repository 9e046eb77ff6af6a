"""Validation on a part of a split uses the same images in every run, with the same rows as for the whole split."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.evaluate import evaluate_model
from refseg.models import build_model
from refseg.training import trainer
from refseg.training.run_files import read_metrics
from refseg.training.validation import choose_images


def test_a_smaller_part_is_within_a_larger_one_and_does_not_hang_on_the_split_read_with_it(toy_shards: Path) -> None:
    index = ManifestIndex.open(toy_shards, ["val"])
    three, five = choose_images(index, 3), choose_images(index, 5)

    assert three is not None
    assert five is not None
    assert (len(three), len(five)) == (3, 5)
    assert set(three.tolist()) <= set(five.tolist())
    assert five.tolist() == sorted(five.tolist()) != list(range(5))
    assert index.image_id[three].tolist() == [25, 29, 30]


@pytest.mark.parametrize("num_images", [0, 8, 1000])
def test_none_chosen_or_all_is_the_whole_split(num_images: int, toy_shards: Path) -> None:
    assert choose_images(ManifestIndex.open(toy_shards, ["val"]), num_images) is None


def test_rows_of_a_part_are_those_of_the_whole(toy_shards: Path, overrides: list[str]) -> None:
    recipe = load_recipe("toy-quick", overrides)
    index = ManifestIndex.open(toy_shards, ["val"])
    torch.manual_seed(0)
    model = build_model(recipe.model, input_size=(64, 64)).eval()
    chosen = choose_images(index, 3)
    assert chosen is not None

    whole, part = (
        evaluate_model(
            model,
            index,
            accelerator=Accelerator(cpu=True),
            geometry=Geometry(kind="letterbox", size=(64, 64), mean=model.image_mean),
            num_tokens=17,
            images_per_batch=1,
            only_images=only,
        )
        for only in (None, chosen)
    )

    ids = set(index.image_id[chosen].tolist())
    expected = [row for row in whole.to_pylist() if row["image_id"] in ids]
    assert {row["image_id"] for row in expected} == ids
    assert part.to_pylist() == expected


def test_a_run_validates_on_as_many_images_as_its_recipe_says(overrides: list[str], tmp_path: Path) -> None:
    trainer.train(load_recipe("toy-quick", [*overrides, "train.val_images=3", "train.trackers=[]"]), tmp_path)

    index = ManifestIndex.open(load_recipe("toy-quick", overrides).data.root, ["val"])
    chosen = choose_images(index, 3)
    assert chosen is not None
    rows = [row for image in chosen for row in range(index.row_start[image], index.row_start[image + 1])]
    sentences = sum(int(index.sentence_start[row + 1] - index.sentence_start[row]) for row in rows)
    assert [line["num_sentences"] for line in read_metrics(tmp_path) if line["kind"] == "val"] == [sentences]
