"""`refseg plan` says in words and in JSON what will be read."""

import json
from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.cli import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    draw_toy(folder / "source", num_images=20, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    return folder / "shards"


def test_the_page_names_steps_bytes_and_warnings(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "2x2", "--global-batch", "6", "--sampling", "images", "--expressions-per-image", "all"]
    assert main(["plan", str(shards), *options]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("toy/refseg train, digest ")
    assert "world     2 nodes x 2 processes, 2 workers each" in printed
    assert "warning: a global batch of 6 cannot be divided evenly among 4 processes" in printed


def test_the_json_holds_the_same_facts(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "1x2", "--global-batch", "4", "--sampling", "images", "--input-size", "32x64", "--json"]
    assert main(["plan", str(shards), *options]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["num_ranks"] == 2
    assert facts["steps"] * 4 + facts["dropped"] == facts["samples"]
    assert facts["diversity"]["images"] == 4
    assert facts["decoded_bytes"] % (3 * 32 * 64) == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--world", "8", "found '8', expected nodes x GPUs per node, for example 2x8"),
        ("--world", "0x8", "found '0x8', expected nodes x GPUs per node"),
        ("--input-size", "large", "found 'large', expected pixels, for example 480 or 320x480"),
        ("--expressions-per-image", "0", "found '0', expected a number or all"),
    ],
)
def test_an_option_that_is_none_is_wrong_usage(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "anywhere", option, value])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_fewer_than_no_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "anywhere", "--workers", "-3"]) == 2
    assert "--workers -3: expected 0 (the training process packs batches) or more" in capsys.readouterr().err
