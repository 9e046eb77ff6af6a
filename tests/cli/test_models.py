"""`refseg models` prints the specified counts."""

import json

import pytest
import torch

from refseg.cli import main
from refseg.model_config import ModelConfig
from refseg.models import build_model
from refseg.models.cost import Cost


def parameters_alone(config: ModelConfig, *, input_size: tuple[int, int], num_tokens: int) -> Cost:
    """Stands for `count_cost`, which is tested apart: the model is built, but not run on shapes."""
    with torch.device("meta"):
        model = build_model(config, input_size=input_size)
    return Cost(
        parameters={"all": sum(parameter.numel() for parameter in model.parameters())},
        macs={}, image_macs=1, text_macs=1, expression_macs=1,
    )  # fmt: skip


def test_models_counts_those_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.models.cost.count_cost", parameters_alone)

    assert main(["models", "--json", "--encoder", "clip_resnet101", "--model", "fcnet", "cris"]) == 0

    rows = {(row["model"], row["image_encoder"]): row for row in json.loads(capsys.readouterr().out)["models"]}
    assert list(rows) == [("fcnet", "clip_resnet101"), ("cris", "clip_resnet101")]
    assert rows["fcnet", "clip_resnet101"]["total_parameters"] == 162_902_130
    assert rows["fcnet", "clip_resnet101"]["total_macs"] == 3
    assert rows["cris", "clip_resnet101"]["published"] == "188.85 M, 79.45 G"


@pytest.mark.slow
def test_models_counts_every_model_with_every_encoder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.models.cost.count_cost", parameters_alone)

    assert main(["models"]) == 0

    out = capsys.readouterr().out
    assert "swin_base        480   190.048" in out
    assert sum(line.startswith(("fcnet", "crformer", "lts", "cris")) for line in out.splitlines()) == 20 + 3


def test_models_names_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--encoder", "vgg"]) == 2

    assert "--encoder: found vgg, expected some of clip_resnet50" in capsys.readouterr().err


def test_models_refuses_a_size_the_encoders_cannot_halve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--input-size", "100"]) == 2

    assert "found 100, expected a multiple of 32" in capsys.readouterr().err
