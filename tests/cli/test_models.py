"""`refseg models` prints the specified counts."""

import json

import pytest

from refseg.cli import main


def test_models_counts_every_model_with_every_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0

    rows = {(row["model"], row["image_encoder"]): row for row in json.loads(capsys.readouterr().out)["models"]}
    assert {model for model, _ in rows} == {"fcnet", "crformer", "lts", "cris"}
    assert rows["fcnet", "clip_resnet50"]["total_parameters"] == 147_057_266
    assert rows["fcnet", "clip_resnet101"]["total_parameters"] == 162_902_130
    assert rows["fcnet", "swin_base"]["total_parameters"] == 190_047_882
    assert rows["fcnet", "clip_resnet101"]["total_macs"] == 82_693_304_320


def test_models_refuses_a_size_the_encoders_cannot_halve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--input-size", "100"]) == 2

    assert "found 100, expected a multiple of 32" in capsys.readouterr().err
