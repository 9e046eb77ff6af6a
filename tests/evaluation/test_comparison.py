from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg.errors import UsageError
from refseg.evaluation.comparison import Run, build_comparison, short_names
from refseg.evaluation.pages import Report
from refseg.evaluation.protocols import LAVT
from refseg.evaluation.results import Results

from .conftest import make_rows


def results(better: int, **fields: Any) -> Results:
    """Twenty sentences of twenty images, IoUs of 0 to 40 % and `better` more."""
    random = np.random.default_rng(0)
    shares = random.integers(0, 41, 20) + better
    given = {key: fields.pop(key) for key in ("protocol", "sentence_order", "given_masks") if key in fields}
    sentences = ({"image_id": n, "intersection": int(share), "union": 100} for n, share in enumerate(shares))
    rows = make_rows(*sentences, **given)
    origin = {
        "checkpoint": "run/step-1", "step": 1200, "dataset": "toy/refseg", "dataset_digest": "b" * 64, "split": "val",
        "trained_on": "mix/all", **fields,
    }  # fmt: skip
    return Results(rows=rows, origin=origin)


def build(**runs: list[Results]) -> Report:
    named = [Run(name=name, results=found) for name, found in runs.items()]
    return build_comparison(named, written_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))


def test_runs_stand_side_by_side_with_their_paired_differences() -> None:
    report = build(old=[results(0)], new=[results(2)], newest=[results(20)])

    (line,) = (line for line in report.markdown.splitlines() if line.startswith("| mIoU"))
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    old, new, newest = (100 * results(better).scores.mean_iou for better in (0, 2, 20))
    # The same two percent on every sentence: no draw of the images says otherwise.
    assert cells == [
        "mIoU", f"{old:.2f}", f"{new:.2f}", "+2.00", "+2.00 to +2.00", "0.002",
        f"{newest:.2f}", "+20.00", "+20.00 to +20.00", "0.002",
    ]  # fmt: skip
    assert "old against new against newest" in report.markdown
    assert "- old: step 1,200 of run/step-1" in report.markdown
    for text in (report.html, report.markdown):
        assert "toy/refseg val, protocol original" in text
        assert "Differences from old, each with 95% of 1,000 draws of the images" in text
        assert "+20.00" in text
        assert "2026-01-02 03:04 UTC" in text
    for outside in ("http:", "https:", "<script", "<link", "url("):
        assert outside not in report.html


def test_only_what_was_scored_alike_is_compared() -> None:
    report = build(
        old=[results(0), results(0, split="testA"), results(0, split="testB", protocol=LAVT)],
        new=[results(1, split="testA"), results(1, sentence_order="shuffled"), results(1, split="testB")],
    )

    assert [line for line in report.markdown.splitlines() if line.startswith("## ")] == [
        "## toy/refseg testA, protocol original"
    ]


def test_nothing_in_common_says_what_each_has() -> None:
    with pytest.raises(
        UsageError,
        match="nothing to compare with old: old has toy/refseg val under original; new has toy/refseg val under lavt",
    ):
        build(old=[results(0)], new=[results(0, protocol=LAVT)])


def test_runs_on_other_builds_of_the_dataset_are_not_compared() -> None:
    with pytest.raises(UsageError, match="old was scored on the build bbbbbbbbbbbb, new on cccccccccccc"):
        build(old=[results(0)], new=[results(0, dataset_digest="c" * 64)])


def test_rules_that_differ_are_both_said_and_leaks_stand_in_red() -> None:
    leaky = results(1, leaks_allowed=True, leaks={"refcoco/unc": {"toy/refseg val": 3}})
    report = build(old=[results(0)], new=[results(1, given_masks=True)], leaky=[leaky])

    assert "binary masks as given" in report.markdown
    assert "a pixel is object where probability > 0.5" in report.markdown
    assert report.markdown.count("Pr@X: share of sentences") == 2
    assert '<p class="leak" role="note">leaky: LEAKS ALLOWED' in report.html
    assert "- **leaky: LEAKS ALLOWED" in report.markdown


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert short_names([Path("/a/toy"), Path("/b/other")]) == ["toy", "other"]
    assert short_names([Path("/a/toy"), Path("/b/toy")]) == ["a/toy", "b/toy"]
