"""A published folder gives back the model from which it was written; a folder that cannot is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from refseg.config import Recipe, make_recipe
from refseg.errors import CheckpointError, UsageError
from refseg.lineage import Lineage
from refseg.models import build_model
from refseg.models.hub_folder import PublishedModel
from refseg.sealed import seal

LEAKS = {"refcocog/umd": {"refcoco/unc val": 5}}


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> Recipe:
    sections = {
        "model": {
            "name": getattr(request, "param", "fcnet"),
            "image_encoder": "tiny", "dim": 32, "num_heads": 4, "num_decoder_layers": 1, "ffn_dim": 64,
            "image_weights": "/home/me/weights/clip.safetensors",
        },
        "data": {"root": "/home/me/shards", "val_root": "s3://mine/val", "input_size": [64, 96], "num_tokens": 9},
        "train": {"lr": 0.25},
    }  # fmt: skip
    return make_recipe(sections, where="test")


@pytest.fixture
def published(recipe: Recipe) -> PublishedModel:
    torch.manual_seed(0)
    model = build_model(recipe.model, input_size=recipe.data.input_size)
    lineage = Lineage(dataset="mix", dataset_digest="d" * 64, split="train", leaks_allowed=True, leaks=LEAKS)
    return PublishedModel(model=model, recipe=recipe, lineage=lineage, step=12, epoch=2, num_processes=4)


@pytest.mark.parametrize("recipe", ["fcnet", "crformer", "lts", "cris"], indirect=True)
def test_what_is_saved_is_what_is_loaded(published: PublishedModel, tmp_path: Path) -> None:
    folder = published.save_pretrained(tmp_path / "out" / "fcnet", card="# fcnet\n")
    found = PublishedModel.from_pretrained(folder)

    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["fcnet"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # a user who may read one file may read all
    assert found.lineage == published.lineage
    assert (found.step, found.epoch, found.num_processes) == (12, 2, 4)
    assert not found.model.training
    expected = published.model.state_dict()
    assert set(found.model.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.model.state_dict().items())


def test_the_config_holds_what_the_numbers_depend_on_and_no_path(published: PublishedModel, tmp_path: Path) -> None:
    published.save_pretrained(tmp_path / "fcnet")
    text = (tmp_path / "fcnet" / "config.json").read_text()

    config = json.loads(text)
    assert config["model"]["name"] == "fcnet"
    assert (config["data"]["input_size"], config["data"]["num_tokens"]) == ([64, 96], 9)
    assert config["data"]["geometry"] == "letterbox"
    assert config["preprocessing"]["image_mean"] == [0.485, 0.456, 0.406]
    assert config["preprocessing"]["tokenizer"]["name"] == "clip-bpe"
    assert config["train"]["lr"] == 0.25
    assert "/home/me" not in text
    assert "s3://" not in text
    assert config["model"]["image_weights"] == "clip.safetensors"
    assert not (tmp_path / "fcnet" / "README.md").exists()


def test_nothing_is_written_over(published: PublishedModel, tmp_path: Path) -> None:
    (tmp_path / "fcnet").mkdir()

    with pytest.raises(UsageError, match=r"fcnet: already exists, expected a new folder; remove it or choose"):
        published.save_pretrained(tmp_path / "fcnet")


def _set(keys: str, value: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        *outer, last = keys.split(".")
        for key in outer:
            config = config[key]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", "pt"), "config.json: not the configuration of a refseg model"),
        (_set("format_version", 1), "expected 2; use the refseg release that wrote this folder: "),
        (_set("model.depth", 3), r"model.depth: unknown key(.|\n)*use the refseg release that wrote this folder"),
        (lambda config: config.pop("origin"), "unexpected content ('origin'); fetch it again"),
        (_set("preprocessing.image_mean", [0.5, 0.5, 0.5]), "found preprocessing {'image_mean': [0.5, 0.5, 0.5],"),
        (_set("preprocessing.tokenizer.vocab_sha256", "0"), "'vocab_sha256': '0'}}, expected {'image_mean'"),
        (_set("model", []), "model: found []; expected a section; its model is named by model.name"),
        (_set("model.dim", 4_000_000), "config.json: unexpected content ("),
        (lambda config: (config.pop("refseg"), config["model"].update(depth=3)), "wrote this folder: unknown"),
        (_set("origin.step", "12"), "config.json: unexpected content ("),
        (_set("origin", []), "config.json: unexpected content ("),
        (_set("weights_sha256", "0"), "config.json expects 0; fetch it again"),
        (
            _set("model.ffn_dim", 32),
            "model.safetensors: missing, or not the weights of the model in config.json",
        ),
    ],
)
def test_a_config_of_another_make_is_refused(
    published: PublishedModel, tmp_path: Path, change: Any, message: str
) -> None:
    path = published.save_pretrained(tmp_path / "fcnet") / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(seal(config)))

    with pytest.raises(CheckpointError, match=message if "|" in message else re.escape(message)):
        PublishedModel.from_pretrained(tmp_path / "fcnet")


@pytest.mark.parametrize(
    "change",
    [
        _set("origin.step", 13), _set("origin.leaks_allowed", False), _set("origin.dataset_digest", "e" * 64),
        _set("train.lr", 0.5), _set("data.num_tokens", 10), lambda config: config["origin"].pop("leaks"),
    ],
)  # fmt: skip
def test_a_config_that_was_changed_is_refused(published: PublishedModel, tmp_path: Path, change: Any) -> None:
    path = published.save_pretrained(tmp_path / "fcnet") / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"config\.json: changed since it was written .*; fetch it again"):
        PublishedModel.from_pretrained(tmp_path / "fcnet")


def test_damaged_and_missing_weights_are_refused(published: PublishedModel, tmp_path: Path) -> None:
    path = published.save_pretrained(tmp_path / "fcnet") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: found SHA-256 \w{64}, config\.json expects \w{64};"
    ):
        PublishedModel.from_pretrained(tmp_path / "fcnet")

    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing, or not the weights of the model"):
        PublishedModel.from_pretrained(tmp_path / "fcnet")


def test_a_folder_without_config_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; expected a folder that `refseg publish`"):
        PublishedModel.from_pretrained(tmp_path)

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(.*\); fetch it again"):
        PublishedModel.from_pretrained(tmp_path)
