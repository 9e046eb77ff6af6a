"""`refseg convert-weights` says what it made, what it left out, and where a missing file is fetched."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refseg.cli import main


@pytest.fixture
def cris(tmp_path: Path) -> Path:
    state = {
        "module.backbone.visual.conv1.weight": torch.ones(2, 3, dtype=torch.float16),
        "module.neck.f1.weight": torch.ones(1),
        "module.neck.f2.weight": torch.ones(1),
    }
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "best_model.pth")
    return tmp_path / "best_model.pth"


def test_what_was_kept_and_left_out_is_printed(cris: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = cris.with_name("cris.safetensors")
    sha256 = hashlib.sha256(cris.read_bytes()).hexdigest()

    assert main(["convert-weights", "cris", str(cris), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 1 tensor, 6 numbers in float32",
        f"source SHA-256 {sha256}",
        "left out: epoch (1)",
        "left out: neck (2)",
    ]

    assert main(["convert-weights", "cris", str(cris), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out), "kind": "cris", "source_sha256": sha256, "num_tensors": 1, "num_parameters": 6,
        "left_out": {"neck": 2, "epoch": 1},
    }  # fmt: skip
    assert load_file(out)["visual.conv1.weight"].dtype == torch.float32


def test_a_missing_archive_is_an_error_with_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "RN50.pt"
    assert main(["convert-weights", "clip", str(path), "--out", str(tmp_path / "out")]) == 2

    sha256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
    assert capsys.readouterr().err == (
        f"refseg: error: {path}: no such file; fetch it by hand from\n"
        f"  https://openaipublic.azureedge.net/clip/models/{sha256}/RN50.pt\n"
    )


def test_an_archive_of_no_published_hash_needs_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "RN50.pt"
    path.write_bytes(b"no archive")
    sha256 = hashlib.sha256(b"no archive").hexdigest()
    command = ["convert-weights", "clip", str(path), "--out", str(tmp_path / "out")]

    assert main(command) == 1
    assert f"found SHA-256 {sha256}, expected that of a published archive" in capsys.readouterr().err
    assert main([*command, "--accept-hash", sha256]) == 1  # taken, and found to be something else
    assert "not a TorchScript archive, or a truncated or damaged one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("cris", ["--accept-hash", "0"], "--accept-hash: found kind cris, whose files have no published hashes"),
        (
            "clip",
            ["--allow-namespace"],
            "--allow-namespace: an archive of CLIP contains no Namespace; remove the option",
        ),
    ],
)
def test_options_of_another_kind_are_refused(
    cris: Path, capsys: pytest.CaptureFixture[str], kind: str, option: list[str], message: str
) -> None:
    assert main(["convert-weights", kind, str(cris), "--out", str(cris.with_name("out")), *option]) == 2

    assert message in capsys.readouterr().err
