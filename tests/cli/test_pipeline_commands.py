"""`build-shards`, `verify` and `stats` as a user calls them: exit codes, one-line errors, JSON."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refseg.cli import main


@pytest.fixture
def data(shared_data: Path, tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    copy = tmp_path / "data"
    shutil.copytree(shared_data / "refer-mini", copy, copy_function=shutil.copyfile)
    for folder in (copy, *copy.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    return copy


def image_of(data: Path, image_id: int) -> Path:
    return data / f"images/mscoco/images/train2014/COCO_train2014_{image_id:012d}.jpg"


def build(data: Path, out: Path, *more: str, dataset: str = "refcocog/umd") -> int:
    return main(
        [
            "build-shards",
            dataset,
            "--annotations",
            str(data),
            "--out",
            str(out),
            "--workers",
            "1",
            "--accept-counts",
            *more,
        ]
    )


def test_build_verify_stats(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    assert build(data, out) == 0
    assert "built: 1 shard, 5 images, 5 refs, 9 sentences, 0 rejects" in capsys.readouterr().out
    assert build(data, out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["was_complete"], summary["refs"], summary["sentences"]) == (True, 5, 9)
    assert build(data, out) == 0
    assert "was already finished, nothing was changed" in capsys.readouterr().out

    assert main(["verify", str(out)]) == 0
    assert "no fault (everything checked)" in capsys.readouterr().out
    assert main(["verify", "--fast", "--json", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []

    assert main(["stats", str(out)]) == 0
    assert re.search(r"^test   refs  +5  +\S+  +5,023  differs", capsys.readouterr().out, re.MULTILINE)
    assert main(["stats", "--json", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["counts"] == {"images": 5, "refs": 5, "sentences": 9}


def test_verify_names_each_fault_and_exits_with_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    build(data, out)
    tar = bytearray((out / "test-00000.tar").read_bytes())
    tar[5000] ^= 1
    (out / "test-00000.tar").write_bytes(tar)
    capsys.readouterr()

    assert main(["verify", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test-00000.tar: found sha256 ")
    assert "found other image bytes, expected xxh3 " in lines[1]
    assert lines[1].endswith("or delete the folder and build the dataset again")
    assert lines[2] == f"{out}: 2 faults"
    assert main(["verify", str(out), "--json"]) == 1
    assert [fault["file"] for fault in json.loads(capsys.readouterr().out)["faults"]] == ["test-00000.tar"] * 2


class _Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def _point_nowhere(data: Path) -> None:
    path = data / "refcocog/refs(umd).p"
    refs = pickle.loads(path.read_bytes(), encoding="latin1")
    refs[2]["ann_id"] = 4471
    path.write_bytes(pickle.dumps(refs))


def _truncate(data: Path) -> None:
    path = image_of(data, 370162)
    path.write_bytes(path.read_bytes()[:-5000])


def _shrink(data: Path) -> None:
    Image.open(image_of(data, 370162)).resize((256, 256)).save(image_of(data, 370162))


BAD: dict[str, tuple[Any, int, str]] = {
    "missing image": (lambda data: image_of(data, 370162).unlink(), 1, "image 370162: found no file COCO_train2014_"),
    "dangling annotation": (_point_nowhere, 1, "annotation 4471 is not in instances.json; take both files from one"),
    "truncated JPEG": (_truncate, 1, "image 370162: COCO_train2014_000000370162.jpg cannot be decoded completely"),
    "size mismatch": (_shrink, 1, "is 256 x 256 pixels, expected 640 x 400 as annotated"),
    "malicious pickle": (
        lambda data: (data / "refcocog/refs(umd).p").write_bytes(pickle.dumps(_Malicious())),
        1,
        "refs(umd).p: the pickle uses posix.system, expected plain dicts",
    ),
    "wrong path": (lambda data: shutil.rmtree(data), 2, "no such folder; expected one that holds refcocog/"),
    "no images": (lambda data: shutil.rmtree(data / "images"), 2, "found none of the images"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_line_an_exit_code_and_no_folder(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, exit_code, message = BAD[name]
    spoil(data)

    assert build(data, tmp_path / "out") == exit_code

    printed = capsys.readouterr()
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line.startswith("refseg: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build-shards", "refcoko/unc", "--annotations", ".", "--out", "out"], "unknown dataset 'refcoko/unc'"),
        (
            ["build-shards", "refcoco", "--annotations", ".", "--out", "out"],
            "expected one of refcoco/unc, refcoco/google",
        ),
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["verify", "nowhere", "--workers", "0"], "--workers 0: expected 1 or more"),
        (["verify", "s4://bucket/nowhere"], "s4://bucket/nowhere: "),
        (["stats", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_calls_exit_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2

    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["build-shards", "verify", "stats"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])

    assert caught.value.code == 0
    assert f"example:\n  refseg {command} " in capsys.readouterr().out
