"""`refseg evaluate` and `refseg report` over the real chain: toy shards, a tiny trained model, one process and two."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from safetensors.torch import load_file, save_file

from refseg.cli import main
from refseg.evaluation.protocols import PROTOCOLS
from refseg.evaluation.results import load_results, save_results
from refseg.evaluation.scores import score
from refseg.sealed import seal
from tests.warm_python import python

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def evaluated(toy_run: Path) -> Path:
    """The run with scores and control of its val split beside it."""
    assert main(["evaluate", str(toy_run), "--save-predictions"]) == 0
    assert main(["evaluate", str(toy_run), "--shuffled-sentences"]) == 0
    return toy_run


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_rows_and_scores_lie_beside_the_run(evaluated: Path) -> None:
    folder = evaluated / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == [
        "rows-toy.refseg-val-shuffled.parquet", "rows-toy.refseg-val.parquet",
        "scores-toy.refseg-val-shuffled.json", "scores-toy.refseg-val.json",
    ]  # fmt: skip
    rows, written = pq.read_table(folder / "rows-toy.refseg-val.parquet"), read(folder / "scores-toy.refseg-val.json")
    assert written["scores"] == score(rows).by_name()
    assert written["num_sentences"] == len(rows) > 50
    assert (written["dataset"], written["split"]) == ("toy/refseg", "val")
    assert any("> 0.5" in rule for rule in written["rules"])
    assert written["facts"]["sentence_order"] == "own"
    assert read(folder / "scores-toy.refseg-val-shuffled.json")["facts"]["sentence_order"] == "shuffled"


def test_validation_in_training_and_evaluation_give_the_same_scores(evaluated: Path) -> None:
    scores = read(evaluated / "evaluation" / "scores-toy.refseg-val.json")
    lines = [json.loads(line) for line in (evaluated / "metrics.jsonl").read_text().splitlines()]

    (validated,) = [line for line in lines if line["kind"] == "val" and line["step"] == scores["step"]]
    assert scores["scores"] == pytest.approx({name: validated[name] for name in scores["scores"]}, abs=1e-4)


def with_full_masks(run: Path, copy: Path) -> Path:
    """A copy of a run's checkpoint whose last layer says yes to every pixel, far from the threshold.

    What a few steps of training draw differs between machines, and the order of a sum may move a pixel over one half.
    """
    shutil.copytree(run / "checkpoints" / "step-00000012", copy)
    weights = load_file(copy / "model.safetensors")
    weights["head.predict.weight"].zero_()
    weights["head.predict.bias"].fill_(4.0)
    save_file(weights, copy / "model.safetensors")
    state = read(copy / "state.json")
    digest = xxhash.xxh3_128_hexdigest((copy / "model.safetensors").read_bytes())
    state["files"]["model.safetensors"] = {"num_bytes": (copy / "model.safetensors").stat().st_size, "xxh3_128": digest}
    (copy / "state.json").write_text(json.dumps(seal(state)))
    return copy


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one_under_every_protocol(toy_run: Path, tmp_path: Path) -> None:
    checkpoint = with_full_masks(toy_run, tmp_path / "step-00000012")
    asked = ["evaluate", str(checkpoint), "--protocol", "all", "--save-predictions"]
    assert main([*asked, "--out", str(tmp_path / "one")]) == 0
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "MASTER", "WORLD"))}
    command = [
        python(), "-m", "accelerate.commands.launch",
        "--config_file", str(ROOT / "refseg" / "configs" / "accelerate_cpu2.yaml"),
        "-m", "refseg", *asked, "--out", str(tmp_path / "two"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # one process speaks
    assert printed["num_processes"] == 2
    one, two = (
        pq.read_table(tmp_path / folder / "rows-toy.refseg-val-original+cris+lavt+lisa+rela.parquet")
        for folder in ("one", "two")
    )
    assert two.equals(one, check_metadata=True)
    assert all(np.any(one.column(f"{name}_intersection").to_numpy()) for name in PROTOCOLS)


def test_scores_are_printed_with_their_rules_and_the_log_has_the_progress_and_the_next_command(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.progress.SECONDS_BETWEEN_LINES", 0.0)
    assert main(["evaluate", str(evaluated), "--split", "testA", "--out", str(tmp_path)]) == 0

    printed = capsys.readouterr()
    assert "toy/refseg testA" in printed.out
    for name in ("oIoU", "mIoU", "Pr@0.5", "Pr@0.9", "probability > 0.5", "original size"):
        assert name in printed.out
    assert re.search(r"evaluate testA: 1 of \d+ batches", printed.err)
    assert printed.err.endswith(f"Next: refseg report {tmp_path}\n")


def test_an_unknown_split_names_those_there_are(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(evaluated), "--split", "testC", "--out", str(tmp_path)]) == 2

    assert "has no split 'testC'; expected some of train, val, testA, testB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_report_is_one_page_that_needs_nothing_else(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.progress.SECONDS_BETWEEN_LINES", 0.0)
    assert main(["report", str(evaluated), "--out", str(tmp_path / "page.html")]) == 0

    page = (tmp_path / "page.html").read_text()
    for outside in ("http:", "https:", "<script src", "<link", "url(", "@import"):
        assert outside not in page
    assert page.count("data:image/jpeg;base64,") > 6
    assert page.count('<svg class="chart"') == 4  # histogram and three curves
    assert "SHUFFLED CONTROL" in page
    assert "probability &gt; 0.5" in page
    assert read(evaluated / "evaluation" / "scores-toy.refseg-val.json")["dataset_digest"][:16] in page
    assert "| oIoU | mIoU | Pr@0.5 |" in (tmp_path / "page.md").read_text()
    assert re.search(r"draw examples of val: 1 of \d+ examples", capsys.readouterr().err)


def test_a_report_without_scores_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "run `refseg evaluate` first" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "gone")]) == 2
    assert "there is nothing at this path" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", "page.pdf"]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_is_not_drawn_over_other_pictures(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(evaluated / "evaluation", tmp_path / "evaluation")
    scores = tmp_path / "evaluation" / "scores-toy.refseg-val.json"
    scores.write_text(json.dumps(seal({**read(scores), "dataset_digest": "0" * 64})))

    assert main(["report", str(tmp_path)]) == 2

    assert "but val was scored on 000000000000" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_several_runs_are_put_side_by_side(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(evaluated / "evaluation", tmp_path / "copy" / "evaluation")

    assert main(["report", str(evaluated), str(tmp_path / "copy"), "--out", str(tmp_path / "both.html")]) == 0

    assert capsys.readouterr().out.split() == [str(tmp_path / "both.html"), str(tmp_path / "both.md")]
    assert "| run | copy | difference |" in (tmp_path / "both.md").read_text()
    assert "<td>+0.00</td>" in (tmp_path / "both.html").read_text()
    assert main(["report", str(evaluated), str(tmp_path / "gone")]) == 2
    assert "gone: no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_was_evaluated_into_is_reported_on_and_compared_like_a_run(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`refseg evaluate --out DIR` leaves what it writes in DIR itself."""
    out = shutil.copytree(evaluated / "evaluation", tmp_path / "out")

    assert main(["report", str(out)]) == 0
    assert f"--out {out}" in (out / "report.md").read_text()
    assert main(["report", str(evaluated), str(out), "--out", str(tmp_path / "both.html")]) == 0
    assert "| out | difference |" in (tmp_path / "both.md").read_text()
    capsys.readouterr()
    assert main(["report", str(evaluated), f"{evaluated}/../{evaluated.name}"]) == 2
    assert "expected each run once" in capsys.readouterr().err


def test_another_dataset_of_the_same_split_name_keeps_a_file_of_its_own(evaluated: Path, tmp_path: Path) -> None:
    (shown,) = load_results(evaluated / "evaluation")[:1]
    save_results(tmp_path, shown)
    save_results(tmp_path, replace(shown, origin=replace(shown.origin, dataset="refcoco/unc")))

    assert sorted(path.name for path in tmp_path.glob("scores-*")) == [
        "scores-refcoco.unc-val.json", "scores-toy.refseg-val.json",
    ]  # fmt: skip
    assert [found.origin.dataset for found in load_results(tmp_path)] == ["refcoco/unc", "toy/refseg"]
