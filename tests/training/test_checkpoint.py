import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from refseg.config import Recipe
from refseg.data.order import Cursor
from refseg.errors import CheckpointError
from refseg.lineage import Ancestor, Lineage
from refseg.models import build_model
from refseg.sealed import seal
from refseg.training.checkpoint import (
    TornCheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer,
    read_state,
    weights_file,
)
from refseg.training.checkpoint_state import Best, CheckpointState
from refseg.training.checkpoint_writer import save_checkpoint

SMALL = {"weight": torch.zeros(2)}
"""Weights of a checkpoint, for tests that do not build the model."""


@pytest.fixture
def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(recipe.model, input_size=recipe.data.input_size).state_dict()


def save(out: Path, recipe: Recipe, weights: dict[str, torch.Tensor], step: int, *, best: int | None = None) -> Path:
    state = CheckpointState(
        recipe=recipe,
        step=step,
        epoch=0,
        cursor=Cursor(digest="d" * 64, seed=0, epoch=0, samples_done=4 * step, order="images all"),
        window={"loss_sum": 0.5, "num_steps": 1},
        best=None if best is None else Best(overall_iou=0.25, step=best),
        num_processes=1,
        lineage=Lineage(
            dataset="toy/refseg",
            dataset_digest="d" * 64,
            split=recipe.data.train_split,
            root="/home/me/shards",
            recipe_root=recipe.data.root,
            ancestors=(
                Ancestor(
                    path="quickstart/run",
                    weights_sha256="a" * 64,
                    step=3,
                    root="shards",
                    split="train",
                    dataset="toy/refseg",
                    dataset_digest="b" * 64,
                    leaks={"refcocog/umd": {"refcoco/unc val": 5}},
                ),
            ),
        ),
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
    name: str, harm: str,
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

    assert latest_checkpoint(tmp_path) == before
    assert "damaged checkpoint" in caplog.text
    assert "trying the checkpoint before it" in caplog.text
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
        ({"format_version": 1}, "format version 1, expected 2; use the refseg release that wrote this checkpoint"),
        ({"recipe": {"model": {}}}, "mistakes in the recipe"),
    ],
)
def test_a_foreign_checkpoint_is_refused_not_passed_over(
    tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor], change: dict[str, object], message: str
) -> None:
    save(tmp_path, recipe, weights, 2)
    path = save(tmp_path, recipe, weights, 4) / "state.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **change})))

    with pytest.raises(CheckpointError, match=message):
        latest_checkpoint(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    name = next(iter(weights))
    folder = save(tmp_path, recipe, {key: value for key, value in weights.items() if key != name}, 2)

    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        load_checkpoint(folder)


def test_weights_of_another_type_are_refused_and_not_cast(
    tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]
) -> None:
    for step, dtype in ((2, torch.float16), (4, torch.float32)):
        cast = {name: tensor.to(dtype) for name, tensor in weights.items()}  # of whole numbers, too
        with pytest.raises(CheckpointError, match=r"\d+ weights of another type, the first is"):
            load_checkpoint(save(tmp_path, recipe, cast, step))


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no checkpoint, expected a run's folder"):
        load_checkpoint(tmp_path)


def test_the_state_reads_back_as_written(tmp_path: Path, recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
    state = read_state(save(tmp_path, recipe, weights, 3, best=3))

    assert (state.best, state.window) == (Best(overall_iou=0.25, step=3), {"loss_sum": 0.5, "num_steps": 1})
    assert state.cursor == Cursor(digest="d" * 64, seed=0, epoch=0, samples_done=12, order="images all")
    assert state.lineage.ancestors[0].leaks == {"refcocog/umd": {"refcoco/unc val": 5}}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within JSON, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def edits(value: Any) -> list[Any]:
    """Return replacements for a value: an empty one, one of another type, and one of its own type."""
    kinds: list[Any] = [None, [value]]
    kinds += [value + 1, str(value)] if type(value) in (int, float) else []
    kinds += [value[:-1]] if isinstance(value, str) and value else []
    kinds += [not value, int(value)] if isinstance(value, bool) else []
    kinds += [type(value)()] if value and isinstance(value, dict | list) else []
    return [kind for kind in kinds if json.dumps(kind) != json.dumps(value)]


def edited(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `state.json` with one field removed, added or changed, with a description of the change."""
    for path in places(fields):
        for change in ("remove", *edits(at(fields, path))):
            copy = json.loads(json.dumps(fields))
            if change == "remove":
                del at(copy, path[:-1])[path[-1]]
            else:
                at(copy, path[:-1])[path[-1]] = change
            yield f"{path} {change!r}", copy
    yield "an unknown field", {**fields, "more": 1}


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_no_edit_of_a_field_of_the_state_is_accepted(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe, SMALL, 3, best=3)
    path = folder / "state.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields))  # the same fields in another layout
    assert read_state(folder).step == 3

    accepted = []
    copies = list(edited(fields))
    for what, copy in copies:
        path.write_text(json.dumps(copy))
        try:
            read_state(folder)
        except CheckpointError:
            continue
        accepted.append(what)
    assert accepted == []
    assert len(copies) > 400


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("step",), 4, "found step 4, but the folder is named after step 3"),
        (("step",), "3", "valid integer"),
        (("epoch",), 1, "epoch 1 does not agree with the cursor"),
        (("cursor", "epoch"), 1, "epoch 0 does not agree with the cursor"),
        (("cursor",), None, "unexpected content"),
        (("cursor", "samples_done"), -4, "whole"),
        (("best", "step"), 5, "the best checkpoint is that of the later step 5"),
        (("best",), [], "unexpected content"),
        (("ancestors", 0), {}, "Missing required argument|Field required"),
        (("files",), [], "valid dictionary"),
        (("files",), {}, "model.safetensors was changed after it was written"),
        (("num_processes",), 0, "greater than or equal to 1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_even_with_the_hash_of_their_content(
    tmp_path: Path, recipe: Recipe, path: tuple[Any, ...], value: Any, message: str
) -> None:
    folder = save(tmp_path, recipe, SMALL, 3, best=3)
    fields = json.loads((folder / "state.json").read_text())
    at(fields, path[:-1])[path[-1]] = value
    (folder / "state.json").write_text(json.dumps(seal(fields)))

    with pytest.raises(TornCheckpointError, match=message):
        read_state(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"step": 3'])
def test_a_state_that_is_not_a_json_object_is_damage(tmp_path: Path, recipe: Recipe, content: bytes) -> None:
    before, torn = save(tmp_path, recipe, SMALL, 2), save(tmp_path, recipe, SMALL, 4)
    (torn / "state.json").write_bytes(content)

    assert latest_checkpoint(tmp_path) == before


def test_averaged_weights_that_the_state_does_not_know_are_not_taken(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe, SMALL, 2)
    (folder / "average.safetensors").write_bytes((folder / "model.safetensors").read_bytes())

    with pytest.raises(TornCheckpointError, match=r"average\.safetensors was changed after it was written"):
        read_state(folder)


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path, recipe: Recipe) -> None:
    # The resumed run would remove it.
    save(tmp_path, recipe, SMALL, 2)
    path = save(tmp_path, recipe, SMALL, 4) / "optimizer.pt"
    path.unlink()
    path.mkdir()

    with pytest.raises(CheckpointError, match=r"optimizer\.pt: cannot be read \(Is a directory\)"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["step-00000010\n", "step-00000099", "", None])
def test_the_best_checkpoint_is_the_one_of_the_newest_state_whatever_the_file_best_says(
    tmp_path: Path, recipe: Recipe, text: str | None
) -> None:
    for step, best in ((4, 4), (8, 4), (10, 4)):
        save(tmp_path, recipe, SMALL, step, best=best)
    mark = tmp_path / "checkpoints" / "best"
    assert mark.read_text() == "step-00000004\n"
    mark.unlink() if text is None else mark.write_text(text)

    assert weights_file(tmp_path).parent.name == "step-00000004"


def test_a_best_checkpoint_that_is_gone_is_not_replaced_by_another(tmp_path: Path, recipe: Recipe) -> None:
    best, newest = save(tmp_path, recipe, SMALL, 4, best=4), save(tmp_path, recipe, SMALL, 8, best=4)
    best.rename(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match=rf"folder of the run's best checkpoint does not.*such as {newest}"):
        weights_file(tmp_path)
    assert read_state(tmp_path / "elsewhere").step == 4  # a copy by any name
