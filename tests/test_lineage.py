"""What a model was trained on is one record, and each file keeps the form in which earlier releases wrote it."""

from typing import Any

import pytest
from pydantic import ValidationError

from refseg.config import load_recipe
from refseg.data.order import Cursor
from refseg.evaluation.origin import OriginOfModel, read_origin
from refseg.lineage import Ancestor, Lineage
from refseg.training.checkpoint_state import CheckpointState

LEAKS = {"refcocog/umd": {"refcoco/unc val": 5}}
ANCESTOR: dict[str, Any] = {
    "path": "/home/me/runs/toy", "weights_sha256": "a" * 64, "step": 3, "root": "/home/me/shards", "split": "train",
    "dataset": "mix/all", "dataset_digest": "b" * 64, "leaks_allowed": True, "leaks": LEAKS,
}  # fmt: skip
RECORDED: dict[str, Any] = {
    "dataset": "toy/refseg", "dataset_digest": "d" * 64, "leaks_allowed": False, "leaks": {}, "ancestors": [ANCESTOR],
}  # fmt: skip
"""As `environment.json`, `state.json` and the origin in `config.json` have it."""


def test_a_checkpoints_state_is_read_and_written_in_its_form() -> None:
    recipe = load_recipe("toy-quick", ["data.root=shards"])
    state = {
        "recipe": recipe.to_dict(), "step": 12, "epoch": 1, "window": {}, "best": None, "num_processes": 1,
        "cursor": Cursor(digest="d" * 64, seed=0, epoch=1, samples_done=0, order="images all").to_dict(),
        "dataset_folder": "/home/me/toy", "val_dataset_digest": "", "validation_due": False,
        "refseg_version": "0.1.0", **RECORDED,
    }  # fmt: skip

    found = CheckpointState.from_dict(state, where="state.json")

    assert found.to_dict() == state
    renamed = {"owes_validation" if key == "validation_due" else key: value for key, value in state.items()}
    assert CheckpointState.from_dict(renamed, where="state.json") == found  # the key's name in earlier releases
    own, before = found.lineage.training_sets
    assert own.roots == ("/home/me/toy", "shards")
    assert (own.dataset, own.split) == ("toy/refseg", "train")
    assert before == Ancestor(**ANCESTOR)


def test_scores_are_read_and_written_in_their_form() -> None:
    recorded = dict(RECORDED)
    scores = {
        "checkpoint": "runs/toy/checkpoints/step-00000012", "step": 12, "trained_on": recorded.pop("dataset"),
        "trained_on_digest": recorded.pop("dataset_digest"), **recorded, "data": "shards", "dataset": "refcoco/unc",
        "dataset_digest": "c" * 64, "split": "val", "num_processes": 2, "seconds": 1.5, "refseg": "0.1.0",
        "leak_check": {"num_shared": None, "num_images": 3, "says": "not compared"},
    }  # fmt: skip

    found = read_origin({**scores, "scores": {"oIoU": 0.5}, "of a later release": 1})

    assert isinstance(found, OriginOfModel)
    assert found.to_json() == scores
    assert found.lineage.dataset == "toy/refseg"
    assert found.scored_on == "refcoco/unc val"
    assert found.leak_warning.startswith("LEAKS ALLOWED: mix/all was mixed with training images")


def test_what_others_may_read_names_no_folder_of_this_machine() -> None:
    lineage = Lineage.from_json(RECORDED, split="train", root="/home/me/toy", recipe_root="/home/me/toy")

    shown = lineage.without_paths()

    assert "/home/me" not in repr(shown)
    assert shown.ancestors[0].path == "toy"
    assert shown.dataset_digest == lineage.dataset_digest


def test_a_model_that_is_trained_on_becomes_an_ancestor_with_the_folder_it_was_trained_from() -> None:
    lineage = Lineage.from_json(RECORDED, split="val", recipe_root="shards")

    ancestor = lineage.as_ancestor(path="runs/b", weights_sha256="e" * 64, step=7)

    assert (ancestor.dataset, ancestor.split, ancestor.root, ancestor.step) == ("toy/refseg", "val", "shards", 7)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"leaks": [1]}, ("leaks",)),
        ({"dataset": None}, ("dataset",)),
        ({"ancestors": [{**ANCESTOR, "step": "3"}]}, ("ancestors", 0, "step")),
        ({"ancestors": [{**ANCESTOR, "depth": 3}]}, ("ancestors", 0, "depth")),
    ],
)
def test_a_record_of_another_make_is_refused(changes: dict[str, Any], where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        Lineage.from_json({**RECORDED, **changes})

    assert caught.value.errors()[0]["loc"] == where
