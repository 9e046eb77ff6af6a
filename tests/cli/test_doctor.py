"""`refseg doctor` says in words and in JSON what holds a run up."""

import json
from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.cli import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    draw_toy(folder / "source", num_images=12, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    return folder / "shards"


def test_the_page_names_stages_rate_and_bottleneck(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch", "4", "--workers", "1", "--worker-kind", "processes", "--input-size", "64", "--seconds", "0.3"]
    assert main(["doctor", str(shards), *options, "--samples-per-second", "0.001"]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("toy/refseg train, 4 samples by ref in a batch\n")
    for stage in ("read", "hash", "decode", "resize", "masks", "tokens and packing", "hand-off", "receive"):
        assert f"\n{stage:<20} " in printed
    assert "samples/s from 1 worker" in printed
    assert "bottleneck: model\n" in printed
    assert " with data.cache_gigabytes = 1 from the second epoch" in printed


def test_a_recipe_gives_the_settings_and_its_models_step(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    options = ["--recipe", "toy-quick", "--batch", "2", "--workers", "0", "--seconds", "0.3"]
    assert main(["doctor", str(shards), *options, "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["by_image"]  # toy-quick samples images
    assert facts["needed"] > 0
    assert facts["bottleneck"]
    assert facts["cached_share"] == 1  # toy-quick has a cache of decoded images
    assert facts["worker_seconds"] == pytest.approx(
        sum(facts["stages"][stage] for stage in ("from the cache", "masks", "tokens and packing"))
    )
    assert (tmp_path / "decoded").is_dir()


def test_the_share_of_the_cache_is_printed(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    options = ["--batch", "4", "--input-size", "64", "--seconds", "0.3", "--cache-gigabytes", "0.01"]
    assert main(["doctor", str(shards), *options]) == 0
    assert "100 % of the images come from the cache of decoded images" in capsys.readouterr().out


def test_the_environment_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", str(tmp_path), "--env"]) == 0
    printed = capsys.readouterr().out
    assert "\npython " in printed
    assert "write megabytes per second" in printed
    assert main(["doctor", str(tmp_path), "--env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["disk"]["folder"] == str(tmp_path)


def test_wrong_usage_is_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert "found no DIR; expected a dataset's folder, or --env" in capsys.readouterr().err
    assert main(["doctor", str(shards), "--recipe", "toy-quick", "--input-size", "96"]) == 2
    assert (
        "found --input-size and --recipe, whose model has another input size; give one of them"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--samples-per-second", "0", "above 0"),
        ("--samples-per-second", "nan", "above 0"),
        ("--samples-per-second", "-5", "above 0"),
        ("--workers", "-2", "at least 0"),
        ("--batch", "0", "at least 1"),
        ("--batch", "100000", "expected at most"),
        ("--cache-gigabytes", "-1", "at least 0"),
        ("--cache-gigabytes", "inf", "at least 0"),
        ("--seconds", "0", "above 0"),
    ],
)
def test_a_number_that_cannot_be_is_named(
    shards: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
) -> None:
    assert main(["doctor", str(shards), option, value]) == 2
    message = capsys.readouterr().err
    assert f"{option} {value}" in message.replace(f"{value}.0", value)
    assert expected in message
