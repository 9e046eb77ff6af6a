import json
import logging
from pathlib import Path

import pytest
import torch

from refseg.config import Recipe
from refseg.errors import CheckpointError
from refseg.models import build_model
from refseg.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer,
    read_state,
    save_checkpoint,
)
from refseg.training.checkpoint_state import Best, CheckpointState


@pytest.fixture
def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(recipe.model, input_size=recipe.data.input_size).state_dict()


def save(out: Path, recipe: Recipe, weights: dict[str, torch.Tensor], step: int, *, best: int | None = None) -> Path:
    state = CheckpointState(
        recipe=recipe,
        step=step,
        epoch=0,
        cursor={"samples_done": step},
        window={"loss_sum": 0.5, "num_steps": 1},
        best=None if best is None else Best(overall_iou=0.25, step=best),
        dataset="toy/refseg",
        dataset_digest="d" * 64,
        num_processes=1,
    )
    return save_checkpoint(
        out / "checkpoints",
        state,
        weights={"model.safetensors": weights},
        optimizer={"optimizer": {"step": torch.tensor(step)}},
        keep=2,
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, recipe, weights, 7)
    loaded = load_checkpoint(tmp_path)

    assert (loaded.step, loaded.recipe, loaded.folder) == (7, recipe, folder)
    assert not loaded.model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    assert load_optimizer(folder)["optimizer"]["step"] == 7
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "optimizer.pt", "state.json"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    for step, best in ((2, None), (4, 4), (6, 4), (8, 4), (10, 4)):
        save(tmp_path, recipe, weights, step, best=best)

    assert [folder.name[-2:] for folder in list_checkpoints(tmp_path)] == ["04", "08", "10"]
    assert load_checkpoint(tmp_path).step == 4  # a run's folder means its best
    assert load_checkpoint(tmp_path / "checkpoints" / "step-00000010").step == 10
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name[0] == ".") == []


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, name: str, harm: str,
) -> None:  # fmt: skip
    before, torn = save(tmp_path, recipe, weights, 2), save(tmp_path, recipe, weights, 4)
    content = bytearray((torn / name).read_bytes())
    if harm == "remove":
        (torn / name).unlink()
    elif harm == "cut":
        (torn / name).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        (torn / name).write_bytes(content)
    monkeypatch.setattr(logging.getLogger("refseg"), "propagate", True)

    assert latest_checkpoint(tmp_path) == before
    assert "damaged checkpoint" in caplog.text
    assert "going back to the one before" in caplog.text
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_checkpoint(torn)


def test_a_run_with_nothing_but_torn_checkpoints_is_not_begun_anew(
    tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]
) -> None:
    (save(tmp_path, recipe, weights, 2) / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged; restore one or choose another --out"):
        latest_checkpoint(tmp_path)


def test_a_half_written_checkpoint_is_none(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    folder = save(tmp_path, recipe, weights, 2)
    folder.rename(folder.with_name(".step-00000002.part"))

    assert latest_checkpoint(tmp_path) is None
    assert save(tmp_path, recipe, weights, 2) == folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lightning"}, "not a refseg checkpoint"),
        ({"format_version": 2}, "found checkpoint format version 2, expected 1; use the refseg release that wrote it"),
        ({"recipe": {"model": {}}}, "mistakes in the recipe"),
    ],
)
def test_a_foreign_checkpoint_is_refused_not_passed_over(
    tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor], change: dict[str, object], message: str
) -> None:
    save(tmp_path, recipe, weights, 2)
    path = save(tmp_path, recipe, weights, 4) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(CheckpointError, match=message):
        latest_checkpoint(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    name = next(iter(weights))
    folder = save(tmp_path, recipe, {key: value for key, value in weights.items() if key != name}, 2)

    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        load_checkpoint(folder)


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no checkpoint, expected a run's folder"):
        load_checkpoint(tmp_path)


def test_the_state_reads_back_as_written(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    state = read_state(save(tmp_path, recipe, weights, 3, best=3))

    assert (state.best, state.cursor, state.window) == (
        Best(overall_iou=0.25, step=3), {"samples_done": 3}, {"loss_sum": 0.5, "num_steps": 1},
    )  # fmt: skip
