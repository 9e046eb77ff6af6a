"""`refseg models` prints the specified counts."""

import json

import pytest

from refseg.cli import main


def test_models_prints_the_specified_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0

    totals = {row["image_encoder"]: row["total"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert totals["clip_resnet50"] == 147_057_266
    assert totals["clip_resnet101"] == 162_902_130
    assert totals["swin_base"] == 190_047_882


def test_models_refuses_a_size_the_encoders_cannot_halve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--input-size", "100"]) == 2

    assert "found 100, expected a multiple of 32" in capsys.readouterr().err
