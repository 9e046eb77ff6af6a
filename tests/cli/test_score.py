"""`refseg score` over the real chain: what `refseg evaluate` saved, handed on as another project's masks would be."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refseg.cli import main
from refseg.run_lengths import draw_runs


@pytest.fixture(scope="module")
def saved(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of testA with the masks of two protocols."""
    out = tmp_path_factory.mktemp("saved")
    arguments = ["--split", "testA", "--protocol", "original", "lavt", "--save-predictions", "--out", str(out)]
    assert main(["evaluate", str(toy_run), *arguments]) == 0
    return out / "rows-toy.refseg-testA-original+lavt.parquet"


@pytest.fixture
def shards(toy_run: Path) -> str:
    return str(toy_run.parent / "shards")


def scores_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["score", *arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_saved_predictions_score_as_they_did(saved: Path, shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(saved.with_name(saved.stem.replace("rows", "scores") + ".json").read_text())

    again = scores_of(capsys, str(saved), "--data", shards, "--split", "testA", "--protocol", "original", "lavt")

    assert again["scores"] == before["scores"]
    assert again["intervals"] == before["intervals"]
    assert again["other_protocols"]["lavt"]["scores"] == before["other_protocols"]["lavt"]["scores"]
    assert any("binary masks as given" in rule for rule in again["rules"])


def test_jsonl_and_pngs_of_the_same_masks_score_alike_and_a_report_shows_them(
    saved: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, folder = tmp_path / "masks.jsonl", tmp_path / "masks"
    folder.mkdir()
    with lines.open("w") as file:
        for row in pq.read_table(saved).to_pylist():
            size, counts = (row["height"], row["width"]), row["original_predicted_counts"]
            record = {"ref_id": row["ref_id"], "sent_id": row["sent_id"], "size": size, "counts": counts}
            file.write(json.dumps(record) + "\n")
            mask = draw_runs(np.array(counts, np.uint32), size)
            Image.fromarray(mask).save(folder / f"{row['ref_id']}_{row['sent_id']}.png")
    asked = ("--data", shards, "--split", "testA", "--protocol", "all")

    of_lines = scores_of(capsys, str(lines), *asked, "--out", str(tmp_path / "theirs"))
    of_folder = scores_of(capsys, str(folder), *asked)

    assert of_lines["scores"] == of_folder["scores"]
    assert of_lines["other_protocols"] == of_folder["other_protocols"]
    assert list(of_lines["other_protocols"]) == ["cris", "lavt", "lisa", "rela"]
    assert Path(of_lines["rows"]).parent == tmp_path / "theirs" / "evaluation"
    assert main(["report", str(tmp_path / "theirs")]) == 0
    page = (tmp_path / "theirs" / "report.md").read_text()
    assert f"masks of {lines}" in page
    assert f"refseg score {lines} --data {shards} --split testA --protocol original cris lavt lisa rela" in page
    for name in ("oIoU", "gIoU", "T-acc", "protocol rela: masks compared at 480 x 480"):
        assert name in page
    assert "data:image" not in (tmp_path / "theirs" / "report.html").read_text()


def test_masks_are_kept_at_each_protocols_size_and_shown_where_asked_for(
    saved: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--data", shards, "--split", "testA", "--protocol", "original", "rela", "--save-predictions")
    lines, out = tmp_path / "masks.jsonl", tmp_path / "theirs"
    names = ("ref_id", "sent_id", "size", "counts")
    with lines.open("w") as file:
        for row in pq.read_table(saved).to_pylist():
            values = (row["ref_id"], row["sent_id"], [row["height"], row["width"]], row["original_predicted_counts"])
            file.write(json.dumps(dict(zip(names, values, strict=True))) + "\n")

    kept = Path(scores_of(capsys, str(lines), *asked, "--out", str(out))["rows"])

    for row, before in zip(pq.read_table(kept).to_pylist(), pq.read_table(saved).to_pylist(), strict=True):
        assert row["original_predicted_counts"] == before["original_predicted_counts"]
        assert sum(row["rela_predicted_counts"]) == 480 * 480
        assert sum(row["rela_predicted_counts"][1::2]) == row["rela_predicted_area"]
    assert main(["report", str(out)]) == 0
    assert "data:image" in (out / "report.html").read_text()
    assert main(["score", str(lines), *asked]) == 2
    assert "--save-predictions: found no --out" in capsys.readouterr().err


def test_scores_are_printed_with_intervals_rules_and_progress(
    saved: Path, shards: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.progress.SECONDS_BETWEEN_LINES", 0.0)
    assert main(["score", str(saved), "--data", shards, "--split", "testA"]) == 0

    printed, told = capsys.readouterr()
    assert re.search(r"score testA: 1 of \d+ masks", told)
    assert "Next" not in told  # nothing was kept for a report
    assert f"toy/refseg testA, masks of {saved}" in printed
    for said in ("oIoU", "Pr@0.9", " %  [", "intervals: 95% of 1,000 draws of the images", "protocol original"):
        assert said in printed
    assert "rows:" not in printed


def test_a_score_that_no_sentence_counts_for_is_a_dash_and_null_in_json(
    saved: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every toy sentence has a target: under `rela` there is nothing for N-acc to count.
    lines = tmp_path / "masks.jsonl"
    with lines.open("w") as file:
        for row in pq.read_table(saved).to_pylist():
            ids = {name: row[name] for name in ("ref_id", "sent_id")}
            size, counts = [row["height"], row["width"]], row["original_predicted_counts"]
            file.write(json.dumps({**ids, "size": size, "counts": counts}) + "\n")
    asked = (str(lines), "--data", shards, "--split", "testA", "--protocol", "rela")

    printed = scores_of(capsys, *asked, "--out", str(tmp_path / "theirs"))
    assert (printed["scores"]["N-acc"], printed["intervals"]["N-acc"]) == (None, [None, None])
    assert main(["score", *asked]) == 0
    assert "  N-acc        –    no sentence counts for this score" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "theirs")]) == 0
    assert "| rela | N-acc | – | – to – |" in (tmp_path / "theirs" / "report.md").read_text()
    assert "nan" not in json.dumps(printed)


def test_what_cannot_be_scored_says_what_to_do(
    saved: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", shards, "--split", "testA"]
    assert main(["score", str(tmp_path / "gone.jsonl"), *data]) == 2
    assert "gone.jsonl: no such file or folder" in capsys.readouterr().err
    assert main(["score", str(saved), *data, "--protocol", "mine"]) == 2
    assert "unknown protocol 'mine'; expected one of original, cris" in capsys.readouterr().err
    assert main(["score", str(saved), *data, "--protocol", "cris"]) == 1
    assert "masks of protocol original, lavt, expected those of cris" in capsys.readouterr().err
    assert main(["score", str(saved), "--data", shards, "--split", "testB"]) == 1
    assert "found no mask of split testB, but" in capsys.readouterr().err
    shutil.copy(saved, tmp_path / "masks.npz")
    assert main(["score", str(tmp_path / "masks.npz"), *data]) == 2
    assert "expected a folder of PNGs or a file that ends in .parquet, .json or .jsonl" in capsys.readouterr().err
