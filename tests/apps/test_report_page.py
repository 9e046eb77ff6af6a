"""The pages of `refseg report` as a person uses them: in headless Chromium, without a server."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from refseg.cli import main
from refseg.data.index import ManifestIndex
from refseg.evaluation.comparison import Run, build_comparison
from refseg.evaluation.ground_truth import GroundTruth
from refseg.evaluation.origin import read_origin
from refseg.evaluation.protocols import ORIGINAL
from refseg.evaluation.report import RunRecord, build_report
from refseg.evaluation.results import Results
from refseg.evaluation.rows import Counted, RowFacts, make_table
from refseg.evaluation.scores import row_ious
from refseg.run_lengths import encode_runs

from .conftest import UNNAMED, Faults, Open

pytestmark = pytest.mark.slow

STICKS_OUT = """() => {
  const cards = [...document.querySelectorAll(".card, .panel, .example, .rules, .missing, main > section")];
  const found = [document.documentElement.scrollWidth - innerWidth];
  for (const card of cards) {
    const [left, right] = [card.getBoundingClientRect().left - 1, card.getBoundingClientRect().right + 1];
    for (const inner of card.querySelectorAll("*:not(svg *)")) {
      const box = inner.getBoundingClientRect(), scrolled = inner.parentElement.closest("pre, .scroll");
      if (!scrolled && box.width && (box.left < left || box.right > right)) found.push(inner.outerHTML.slice(0, 80));
    }
  }
  return found.filter((each) => typeof each === "string" || each > 0);
}"""


@pytest.fixture(scope="module")
def results(dataset: Path) -> Results:
    """Results of a model that finds each target some pixels too far to the right, the later the farther."""
    return results_of(dataset, 4)


def results_of(dataset: Path, sentences_per_pixel: int) -> Results:
    """The same; a target is one pixel farther away after so many sentences."""
    index = ManifestIndex.open(dataset, ["train"])
    row = np.repeat(np.arange(index.num_rows), np.diff(index.sentence_start))
    sentence = np.arange(index.num_sentences) - index.sentence_start[row]
    truth = GroundTruth(index, [ORIGINAL])
    targets = [truth.mask(ORIGINAL, int(r), int(s)) for r, s in zip(row, sentence, strict=True)]
    found = [np.roll(target, number // sentences_per_pixel, axis=1) for number, target in enumerate(targets)]
    pixels = [[(t & f).sum(), f.sum(), t.sum()] for t, f in zip(targets, found, strict=True)]
    counted = Counted(
        row=row,
        sentence=sentence,
        pixels=np.array(pixels, np.int64)[:, None],
        predictions=[[encode_runs(mask) for mask in found]],
    )
    facts = RowFacts(protocols=(ORIGINAL,), mask_rule="union", sentence_order="own", num_left_out=0)
    origin = read_origin({
        "checkpoint": "runs/toy/checkpoints/step-00001200", "step": 1200, "trained_on": "toy/refseg",
        "trained_on_digest": "a" * 64, "data": str(dataset), "dataset": "toy/refseg", "dataset_digest": "b" * 64,
        "split": "train",
    })  # fmt: skip
    return Results(rows=make_table(index, np.arange(index.num_rows), counted, facts), origin=origin)


def run_of(name: str, results: Results) -> Run:
    return Run(name=name, folder=f"runs/{name}", evaluation=f"runs/{name}/evaluation", results=[results])


@pytest.fixture(scope="module")
def pages(results: Results, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's report, the same without kept masks, that of given masks, and comparisons with and without masks."""
    metrics = [{"kind": "train", "step": step, "loss": 1 / step, "lr": 1e-5 * step} for step in (10, 20, 30)]
    run = RunRecord(
        name="toy",
        folder="runs/toy",
        evaluation="runs/toy/evaluation",
        metrics=metrics,
        recipe={"model": {"name": "fcnet"}},
        environment={},
    )
    bare = replace(results, rows=results.rows.drop_columns(["original_predicted_counts"]))
    given = replace(bare, origin=read_origin({**results.origin.to_json(), "predictions": "their/masks.jsonl"}))
    index = ManifestIndex.open(dataset, ["train"])
    further = replace(results, rows=results_of(dataset, 12).rows)
    written_at = datetime(2026, 1, 2, tzinfo=UTC)
    reports = {
        "report": build_report(run, [results], {"toy/refseg train": index}, written_at=written_at),
        "bare": build_report(run, [bare], {}, written_at=written_at),
        "given": build_report(run, [given], {}, written_at=written_at),
        "comparison": build_comparison(
            [run_of("toy", results), run_of("other", further)], {"toy/refseg train": index}, written_at=written_at
        ),
        "bare comparison": build_comparison([run_of("toy", results), run_of("other", given)], written_at=written_at),
    }
    folder = tmp_path_factory.mktemp("report")
    for name, report in reports.items():
        (folder / f"{name}.html").write_text(report.html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in reports}


@pytest.mark.parametrize("name", ["report", "bare", "given", "comparison", "bare comparison"])
def test_nothing_sticks_out_of_its_card_at_any_width(open_page: Open, pages: dict[str, Path], name: str) -> None:
    page = open_page(pages[name], width=360)

    for width in (360, 570, 800, 1200, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(STICKS_OUT) == [], width
    assert page.evaluate(UNNAMED) == []


def test_sorting_orders_all_examples_and_shows_each_once(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["report"])
    assert page.title() == "fcnet on toy/refseg train, 2026-01-02: toy – refseg report"
    shown = page.locator(".example:visible")
    ids, headings = shown.locator(".ids"), page.locator("h4.group:visible")
    drawn = ids.all_inner_texts()
    assert headings.all_inner_texts() == ["Best", "Worst", "Random"]
    assert len(set(drawn)) < len(drawn)

    page.get_by_label("Order").select_option(label="lowest IoU first")
    ious = [float(text) for text in shown.locator(".iou").all_inner_texts()]
    assert ious == sorted(ious)
    assert ious[0] < ious[-1]
    assert sorted(ids.all_inner_texts()) == sorted(set(drawn))
    assert headings.count() == 0
    assert page.locator(".tools output").inner_text() == f"{len(ious)} shown"

    page.get_by_label("Order").select_option("")
    assert ids.all_inner_texts() == drawn
    assert headings.count() == 3


def test_masks_are_outlines_that_m_fills_and_hides(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["report"])
    path = page.locator(".masks .prediction").first
    found = []
    for _ in range(4):
        style = path.evaluate("path => [getComputedStyle(path).fill, getComputedStyle(path).visibility]")
        found.append("none" if style[1] == "hidden" else "outline" if style[0] == "none" else "fill")
        assert page.get_by_role("radio", name=found[-1]).first.is_checked()
        page.keyboard.press("m")

    assert found == ["outline", "fill", "none", "outline"]


def test_a_comparison_shows_the_masks_of_both_runs_and_filters_who_is_right(
    open_page: Open, pages: dict[str, Path], results: Results, dataset: Path
) -> None:
    page = open_page(pages["comparison"])
    right = [row_ious(of_run.rows, ORIGINAL) > 0.5 for of_run in (results, results_of(dataset, 12))]
    gained = int((~right[0] & right[1]).sum())
    assert gained
    assert f"toy wrong, other right: {gained}" in page.locator(".note").all_inner_texts()[-1]

    page.get_by_label("Sentences").select_option(label="toy right, other wrong (0 of 0)")
    assert page.locator(".example:visible").count() == 0
    page.get_by_label("Sentences").select_option("wrong-right")
    shown = page.locator(".example:visible")
    assert shown.count() > 0
    for example in shown.all():
        ious = [float(text.split()[1]) for text in example.locator(".frames b").all_inner_texts()]
        assert ious[0] <= 50 < ious[1]
        assert example.locator(".up").inner_text() == f"{ious[1] - ious[0]:+.2f}"
    shown.first.locator(".open").nth(1).click()
    frames = page.get_by_role("dialog").locator(".frame")
    assert frames.count() == 3
    page.keyboard.press("+")
    page.keyboard.press("+")
    frames.first.evaluate("frame => frame.scrollTo(30, 20)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('dialog .frame')].every((f) => f.scrollLeft === 30 && f.scrollTop === 20)"
    )
    assert page.get_by_role("dialog").locator("output").inner_text() == "200 %"


@pytest.fixture(scope="module")
def report_page(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny run, with its maps."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    run = shutil.copytree(toy_run, out.parent / "run")
    assert main(["evaluate", str(run), "--save-predictions"]) == 0
    assert main(["report", str(run), "--explain", "--out", str(out)]) == 0
    return out


def test_examples_of_a_report_are_sorted_and_searched(open_page: Open, report_page: Path) -> None:
    page = open_page(report_page)
    listed = page.locator(".examples").first
    shares = "(group) => [...group.children].filter((f) => !f.hidden).map((f) => Number(f.dataset.target))"

    page.get_by_label("Order").select_option(label="largest target first")
    large = listed.evaluate(shares)
    assert large == sorted(large, reverse=True)
    assert len(set(large)) > 1
    page.get_by_label("Order").select_option(label="smallest target first")
    assert listed.evaluate(shares) == sorted(large)
    word = listed.locator("q").first.inner_text().strip("“”").split()[0]
    page.get_by_role("searchbox", name="Sentence").fill(word)
    assert 0 < len(listed.evaluate(shares)) <= len(large)
    assert all(word in text for text in page.locator("figure.example:not([hidden]) q").all_inner_texts())
    assert "shown" in page.locator(".tools output").inner_text()


def test_an_example_of_a_report_opens_with_its_maps(open_page: Open, report_page: Path) -> None:
    page = open_page(report_page)
    button = page.locator(".example .open").first
    sentence = page.locator(".example q").first.inner_text()
    button.focus()
    page.keyboard.press("Enter")

    dialog = page.get_by_role("dialog")
    assert dialog.locator("q").inner_text() == sentence
    assert dialog.get_by_alt_text("The picture once for each emphasis").evaluate("(map) => map.naturalWidth") > 500
    page.keyboard.press("ArrowRight")
    assert dialog.locator("q").inner_text() == page.locator(".example q").nth(1).inner_text()
    assert page.evaluate(UNNAMED) == []
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_the_report_fits_a_phone_and_names_its_controls(open_page: Open, report_page: Path) -> None:
    page = open_page(report_page, width=360)

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("name", ["report", "comparison", "bare comparison"])
def test_axe_finds_no_fault_in_reports(
    open_page: Open, axe_faults: Faults, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    page = open_page(pages[name], width=width, scheme=scheme)
    assert axe_faults(page) == []
    if name != "bare comparison":
        page.locator(".example .open").first.click()
        assert axe_faults(page) == []
