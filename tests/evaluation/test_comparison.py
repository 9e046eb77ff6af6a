import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg.errors import UsageError
from refseg.evaluation.comparison import Run, build_comparison, load_runs, short_names
from refseg.evaluation.origin import read_origin
from refseg.evaluation.pages import Report
from refseg.evaluation.protocols import CRIS, LAVT, ORIGINAL
from refseg.evaluation.results import Results, save_results
from refseg.evaluation.rows import COUNTED

from .conftest import make_rows


def results(better: int, **fields: Any) -> Results:
    """Results of twenty sentences in twenty images, with IoUs of 0 to 40 % plus `better`."""
    random = np.random.default_rng(0)
    shares = random.integers(0, 41, 20) + better
    given = {
        key: fields.pop(key) for key in ("protocol", "sentence_order", "given_masks", "mask_rule") if key in fields
    }
    sentences = ({"image_id": n, "intersection": int(share), "union": 100} for n, share in enumerate(shares))
    rows = make_rows(*sentences, **given)
    origin = read_origin({
        "checkpoint": "run/step-1", "step": 1200, "dataset": "toy/refseg", "dataset_digest": "b" * 64, "split": "val",
        "trained_on": "mix/all", "trained_on_digest": "a" * 64, "data": "shards/toy", **fields,
    })  # fmt: skip
    return Results(rows=rows, origin=origin)


def build(**runs: list[Results]) -> Report:
    named = [
        Run(name=name, folder=name, evaluation=f"{name}/evaluation", results=found) for name, found in runs.items()
    ]
    return build_comparison(named, written_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))


def test_runs_stand_side_by_side_with_their_paired_differences() -> None:
    report = build(old=[results(0)], new=[results(2)], newest=[results(20)])

    (line,) = (line for line in report.markdown.splitlines() if line.startswith("| mIoU"))
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    old, new, newest = (100 * results(better).scores.mean_iou for better in (0, 2, 20))
    # Every sentence is better by the same two percent, so the difference is the same in every draw of images.
    assert cells == [
        "mIoU", f"{old:.2f}", f"{new:.2f}", "+2.00", "+2.00 to +2.00", "0.002",
        f"{newest:.2f}", "+20.00", "+20.00 to +20.00", "0.002",
    ]  # fmt: skip
    assert "old against new against newest" in report.markdown
    assert "- old: step 1,200 of run/step-1, trained on mix/all" in report.markdown
    assert "ot compared" not in report.markdown + report.html
    for text in (report.html, report.markdown):
        assert "toy/refseg val, protocol original" in text
        assert "Differences from old, each with the interval of 95% of 1,000 draws of images" in text
        assert "+20.00" in text
        assert "2026-01-02 03:04 UTC" in text
    for outside in ("http:", "https:", "<script", "<link", "url("):
        assert outside not in report.html


def test_only_what_was_scored_alike_is_compared_and_all_else_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = build(
            old=[results(0), results(0, split="testA"), results(0, split="testB", protocol=LAVT)],
            new=[results(1, split="testA"), results(1, sentence_order="shuffled"), results(1, split="testB")],
        )

    assert [line for line in report.markdown.splitlines() if line.startswith("## ")] == [
        "## toy/refseg testA, protocol original"
    ]
    reasons = (
        "toy/refseg val under original: new is not compared: new has no scores of toy/refseg val (it has toy/refseg "
        "testA under original, toy/refseg testB under original)",
        "toy/refseg testB under lavt: new is not compared: new has toy/refseg testB only under original",
        "toy/refseg testB under original: new has scores, old has none",
        "new toy/refseg val: a shuffled control, which is not a score of the model",
    )
    for reason in reasons:
        assert f"- {reason}\n" in report.markdown
        assert f"<li>{reason}</li>" in report.html
        assert f"not compared: {reason}" in caplog.text


def few(better: int, number: int) -> Results:
    """The same results without some sentences."""
    whole = results(better)
    return replace(whole, rows=whole.rows.slice(0, number))


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        (lambda: results(3, split="testA"), "third has no scores of toy/refseg val (it has toy/refseg testA under"),
        (lambda: results(3, dataset="toy/other"), "third has no scores of toy/refseg val (it has toy/other val under"),
        (lambda: results(3, protocol=LAVT), "third has toy/refseg val only under lavt"),
        (
            lambda: results(3, protocol=replace(ORIGINAL, threshold=0.35, precision_comparison=">=")),
            "third was scored by other rules of original: threshold 0.35 instead of 0.5, precision_comparison >= "
            "instead of >",
        ),
        (
            lambda: results(3, dataset_digest="c" * 64, mask_rule="legacy"),
            "old was scored on the build bbbbbbbbbbbb (mask rule union, 20 sentences), third on cccccccccccc (mask "
            "rule legacy, 20 sentences); evaluate both on one build",
        ),
        (lambda: few(3, 15), "the sentences differ: 20 of old, 15 of third"),
        (lambda: results(3, sentence_order="shuffled"), "third has no scores of toy/refseg val (it has none)"),
    ],
    ids=["split", "dataset", "protocol", "rules", "build", "sentences", "control"],
)
def test_a_run_that_cannot_stand_beside_the_others_is_named_with_the_reason(
    third: Callable[[], Results], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = build(old=[results(0)], new=[results(2)], third=[third()])

    said = f"third is not compared: {reason}"
    assert f"- **{said}" in report.markdown
    assert f'<p class="missing" role="note">{said.replace(">", "&gt;")}' in report.html
    assert f"toy/refseg val, protocol original: {said}" in caplog.text
    (line,) = (line for line in report.markdown.splitlines() if line.startswith("| mIoU"))
    assert "+2.00" in line
    assert "+3.00" not in line
    assert "- third: step" not in report.markdown
    # With no other run there is nothing to compare, and the error gives the same reason.
    with pytest.raises(UsageError) as caught:
        build(old=[results(0)], third=[third()])
    assert f"nothing to compare with old: toy/refseg val under original: {said}" in str(caught.value)


def test_scores_of_one_split_that_are_there_twice_are_compared_once_if_they_are_the_same() -> None:
    both = make_rows({"intersection": 1, "union": 2}, protocols=(ORIGINAL, CRIS))
    for name in COUNTED:
        both = both.append_column(f"cris_{name}", both.column(f"original_{name}"))
    own = results(0)
    again = replace(own, rows=both)
    alone = replace(own, rows=make_rows({"intersection": 1, "union": 2}))
    stale = replace(own, rows=make_rows({"intersection": 2, "union": 2}), origin=replace(own.origin, step=9))

    assert build(old=[alone, again], new=[alone]).markdown.count("## toy/refseg val, protocol original") == 1
    with pytest.raises(UsageError) as caught:
        build(old=[alone], new=[stale, again])
    assert (
        "has different scores of toy/refseg val under original in scores-toy.refseg-val.json (step 9 of run/step-1) "
        "and in scores-toy.refseg-val-original+cris.json (step 1,200 of run/step-1), expected one set of scores; "
    ) in str(caught.value)


def test_rules_that_differ_are_both_said_and_leaks_stand_in_red() -> None:
    leaky = results(1, leaks_allowed=True, leaks={"refcoco/unc": {"toy/refseg val": 3}})
    report = build(old=[results(0)], new=[results(1, given_masks=True)], leaky=[leaky])

    assert "binary masks as given" in report.markdown
    assert "a pixel belongs to the object if its probability > 0.5" in report.markdown
    assert report.markdown.count("Pr@X: share of sentences") == 2
    assert '<p class="leak" role="note">leaky: LEAKS ALLOWED' in report.html
    assert "- **leaky: LEAKS ALLOWED" in report.markdown


def test_a_run_is_not_compared_with_itself() -> None:
    run = Run(name="one", folder="one", evaluation="one", results=[results(0)])
    with pytest.raises(UsageError, match="found one, one; expected each run once"):
        build_comparison([run, run], written_at=datetime(2026, 1, 2, tzinfo=UTC))


def test_a_run_is_the_same_however_its_path_is_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    save_results(first / "evaluation", results(0))
    save_results(second, results(1))

    assert [(run.name, len(run.results)) for run in load_runs([first, second])] == [("a", 1), ("b", 1)]
    for again in (first, tmp_path / "b" / ".." / "a", first / "evaluation"):
        with pytest.raises(UsageError, match=rf"found {first}, {second}, {again}; expected each run once"):
            load_runs([first, second, again])


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert short_names([Path("/a/toy"), Path("/b/other")]) == ["toy", "other"]
    assert short_names([Path("/a/toy"), Path("/b/toy")]) == ["a/toy", "b/toy"]
