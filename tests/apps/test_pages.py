"""The pages of `refseg browse` as a person uses them: in headless Chromium, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from refseg.apps import browse
from refseg.apps.browse import write_browse_page
from refseg.data.index import ManifestIndex
from refseg.evaluation.origin import read_origin
from refseg.evaluation.outlines import outline_path
from refseg.evaluation.protocols import ORIGINAL
from refseg.evaluation.results import Results, save_results
from refseg.evaluation.rows import Counted, RowFacts, make_table
from refseg.run_lengths import encode_runs

from .conftest import UNNAMED, Faults, Open

pytestmark = pytest.mark.slow

CONTRAST = """(element) => {
  const linear = (share) => share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((channel) => linear(channel / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element), found = [style.color, style.backgroundColor].map(luminance);
  return (Math.max(...found) + 0.05) / (Math.min(...found) + 0.05);
}"""
"""WCAG 2.1, contrast ratio; both colours are opaque."""


@pytest.fixture(scope="module")
def browse_page(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with its parts beside it in a folder."""
    return write_browse_page(dataset, tmp_path_factory.mktemp("browse") / "folder").path


@pytest.fixture(scope="module", params=["folder", "one.html"])
def either_page(
    request: pytest.FixtureRequest, browse_page: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """That page, and one with all parts in it, which it reads in another way and then treats alike."""
    if request.param == "folder":
        return browse_page
    return write_browse_page(dataset, tmp_path_factory.mktemp("browse") / request.param).path


@pytest.fixture(scope="module")
def rows(dataset: Path) -> list[dict[str, Any]]:
    names = [entry["name"] for entry in json.loads((dataset / "refseg.json").read_text())["shards"]]
    return [row for name in names for row in pq.read_table(dataset / f"{name}.parquet").to_pylist()]


def settled(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#status').textContent.startsWith(text)", arg=text)


def counted(rows: list[dict[str, Any]], keep: Callable[[dict[str, Any], str], bool]) -> tuple[int, int]:
    """Refs with a sentence that is kept, and such sentences."""
    kept = [sum(keep(row, sentence["sent"]) for sentence in row["sentences"]) for row in rows]
    return sum(map(bool, kept)), sum(kept)


def said_of(rows: list[dict[str, Any]], keep: Callable[[dict[str, Any], str], bool]) -> str:
    refs, sentences = counted(rows, keep)
    assert 0 < refs < len(rows)
    return f"{refs} of {len(rows)} refs, {sentences} sentence"


def test_samples_are_filtered_by_what_they_are_and_say(
    open_page: Open, either_page: Path, rows: list[dict[str, Any]]
) -> None:
    page = open_page(either_page)
    settled(page, f"{len(rows)} of {len(rows)} refs")

    page.get_by_label("Sentence", exact=True).fill("the SQUARE")
    settled(page, said_of(rows, lambda row, text: "square" in text and "the" in text))
    assert page.locator("mark").first.inner_text() in ("the", "square")
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Sentence", exact=True).fill('"the square"')
    settled(page, said_of(rows, lambda row, text: "the square" in text))
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Split").select_option(label=f"val ({sum(row['split'] == 'val' for row in rows)})")
    settled(page, said_of(rows, lambda row, text: row["split"] == "val"))
    page.get_by_label("Category").select_option(label="triangle")
    page.get_by_label("Split").select_option("")
    settled(page, said_of(rows, lambda row, text: row["category"] == "triangle"))
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Words, at least").fill("3")
    page.get_by_label("Words, at most").fill("4")
    settled(page, said_of(rows, lambda row, text: 3 <= len(text.split()) <= 4))
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Target in percent of the picture, at least").fill("3")
    settled(page, said_of(rows, lambda row, text: row["area"] >= 0.03 * 96 * 128))
    page.get_by_label("Kind").select_option(label="no target")
    settled(page, "0 of")
    assert page.get_by_text("No sample fits these filters.").is_visible()


def test_samples_are_put_in_order_and_the_address_keeps_it(
    open_page: Open, browse_page: Path, rows: list[dict[str, Any]]
) -> None:
    page = open_page(browse_page)
    page.get_by_label("Order").select_option(label="smallest target first")
    smallest = min(rows, key=lambda row: row["area"])["ref_id"]
    page.wait_for_function(f"() => document.querySelector('.card .ids').textContent.includes('ref {smallest}')")
    page.get_by_label("Order").select_option(label="longest sentence first")
    page.wait_for_function("() => location.hash.includes('order=long')")
    longest = max(len(sentence["sent"].split()) for row in rows for sentence in row["sentences"])
    assert max(
        len(line.split()) for line in page.locator(".card .sentences").first.locator("li").all_inner_texts()
    ) == (longest)
    again = open_page(browse_page, fragment=page.evaluate("location.hash"))
    settled(again, f"{len(rows)} of")
    assert again.locator(".card .open").first.get_attribute("aria-label") == page.locator(
        ".card .open"
    ).first.get_attribute("aria-label")


def test_a_sample_is_opened_walked_and_closed_by_keyboard(
    open_page: Open, browse_page: Path, rows: list[dict[str, Any]]
) -> None:
    page = open_page(browse_page)
    page.wait_for_selector(".card")
    page.get_by_role("radio", name="outline").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").first.inner_text() == rows[0]["sentences"][0]["sent"]
    assert str(rows[0]["file_name"]) in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => location.hash === '#open=1'")
    assert f"{rows[1]['ref_id']}" in dialog.locator("dl").inner_text()
    assert page.evaluate(UNNAMED) == []
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.className") == "open"
    page.keyboard.press("m")
    page.keyboard.press("m")
    assert not page.locator(".card .masks").first.is_visible()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"


def mask_of(counts: list[int]) -> np.ndarray:
    """A mask of 96 x 128 pixels from its run lengths."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(128, 96).T


def test_the_outline_drawn_is_that_of_the_target(
    open_page: Open, either_page: Path, rows: list[dict[str, Any]]
) -> None:
    page = open_page(either_page)
    page.wait_for_function("() => document.querySelector('.card .ids').textContent.includes('ref ')")
    drawn = page.locator(".card .masks").first

    assert drawn.get_attribute("viewBox") == "0 0 128 96"
    assert drawn.locator("path").count() == 1
    assert drawn.locator("path").get_attribute("d") == outline_path(mask_of(rows[0]["mask"]["counts"]))


def test_a_sample_is_enlarged_and_moved(open_page: Open, browse_page: Path) -> None:
    page = open_page(browse_page, fragment="#open=0")
    page.wait_for_selector("dialog[open]")
    dialog = page.get_by_role("dialog")
    frame, shown = dialog.locator(".frame"), dialog.locator("output")
    size = "frame => [frame.scrollWidth / frame.clientWidth, frame.scrollLeft]"

    assert frame.evaluate(size) == [1, 0]
    dialog.get_by_role("button", name="Zoom in").click()
    page.keyboard.press("+")
    assert shown.inner_text() == "200 %"
    scale, left = frame.evaluate(size)
    assert scale == pytest.approx(2, abs=0.02)
    assert left > 0  # the middle stays in the middle
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    page.mouse.up()
    assert frame.evaluate(size)[1] == pytest.approx(left + 40, abs=2)
    page.keyboard.press("0")
    assert shown.inner_text() == "100 %"
    frame.dblclick()
    assert shown.inner_text() == "300 %"


@pytest.fixture(scope="module")
def predicted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with predictions for val: of each second sentence nothing, of the others the target."""
    index = ManifestIndex.open(dataset, ["val"])
    row = np.repeat(np.arange(index.num_rows), np.diff(index.sentence_start))
    targets = [mask_of(index.counts(int(number)).tolist()) for number in row]
    found = [target & (number % 2 == 0) for number, target in enumerate(targets)]
    pixels = np.array([[(t & f).sum(), f.sum(), t.sum()] for t, f in zip(targets, found, strict=True)], np.int64)
    counted = Counted(
        row=row,
        sentence=np.arange(index.num_sentences) - index.sentence_start[row],
        pixels=pixels[:, None],
        predictions=[[encode_runs(mask) for mask in found]],
    )
    facts = RowFacts(protocols=(ORIGINAL,), mask_rule="union", sentence_order="own", num_left_out=0)
    origin = read_origin({
        "checkpoint": "runs/toy/checkpoints/step-00001200", "step": 1200, "trained_on": "toy/refseg",
        "trained_on_digest": "a" * 64, "data": str(dataset), "dataset": index.descriptor.dataset,
        "dataset_digest": index.descriptor.digest, "split": "val",
    })  # fmt: skip
    run = tmp_path_factory.mktemp("predicted")
    save_results(run, Results(rows=make_table(index, np.arange(index.num_rows), counted, facts), origin=origin))
    return run


@pytest.fixture(scope="module")
def predictions_page(dataset: Path, predicted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_browse_page(dataset, tmp_path_factory.mktemp("browse") / "folder", predictions=predicted).path


def test_predictions_are_shown_beside_the_targets_and_filtered_by_their_iou(
    open_page: Open, predictions_page: Path, rows: list[dict[str, Any]]
) -> None:
    page = open_page(predictions_page)
    val = [row for row in rows if row["split"] == "val"]
    settled(page, f"{len(val)} of {len(val)} refs")
    assert "Predictions: step 1,200 of runs/toy" in page.locator(".lead").first.inner_text()

    page.get_by_label("IoU in percent, at least").fill("50")
    num = sum(len(row["sentences"]) for row in val)
    page.wait_for_function(
        f"() => document.querySelector('#status').textContent.endsWith(', {-(-num // 2)} sentences')"
    )
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Order").select_option(label="lowest IoU first")
    page.locator(".card .iou", has_text="IoU 0.0 %").first.wait_for()
    page.locator(".card .open").first.click()
    page.wait_for_selector("dialog[open]")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="IoU 0.0 %").first.click()
    assert dialog.locator(".prediction").get_attribute("d") == ""
    dialog.get_by_role("button", name="IoU 100.0 %").first.click()
    assert dialog.locator(".prediction").get_attribute("d") == dialog.locator(".target").get_attribute("d")


def test_markup_in_a_sentence_stays_text(open_page: Open, either_page: Path, evil: str) -> None:
    page = open_page(either_page)
    page.get_by_label("Sentence", exact=True).fill("onerror")
    settled(page, "1 of")

    assert page.locator(".card .sentences li").all_inner_texts()[0] == evil
    page.locator(".card .open").click()
    page.wait_for_selector("dialog[open]")
    assert page.get_by_role("dialog").get_by_role("heading").first.inner_text() == evil
    assert page.title() == "toy/refseg – refseg browse"
    assert page.locator("main script, main img[src=x], dialog script").count() == 0


def test_a_long_sentence_is_cut_in_its_card_and_whole_where_it_is_opened(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    long = "square " * 700
    monkeypatch.setattr(browse, "_read_images", _with_sentence(browse._read_images, long))
    page = open_page(write_browse_page(dataset, tmp_path / "one.html").path)
    page.wait_for_selector(".card")
    height = "element => element.getBoundingClientRect().height"

    assert page.locator(".card").first.evaluate(height) < 600
    assert len(page.locator(".card .open").first.get_attribute("aria-label")) < 120
    page.locator(".card .open").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator(".toolbar").evaluate(height) < 140
    assert dialog.locator(".others button").first.evaluate(height) < 160
    sentence = dialog.locator(".sentences li").first
    assert sentence.inner_text().split() == long.split()
    assert sentence.evaluate("element => element.scrollHeight <= element.clientHeight + 1")


def _with_sentence(read_images: Callable[..., Any], text: str) -> Callable[..., Any]:
    """The same images; the first sentence of each is `text`."""

    def read(*args: Any) -> Any:
        for image in read_images(*args):
            image.rows[0]["sentences"][0].update(raw=text, sent=text)
            yield image

    return read


def test_rejects_are_listed_with_their_reasons(open_page: Open, either_page: Path) -> None:
    page = open_page(either_page)
    page.get_by_role("button", name="Rejects 1").click()

    page.wait_for_selector("#rejects tbody tr")
    assert "unknown_image" in page.locator("#rejects tbody").inner_text()
    assert page.locator("#reject-status").inner_text() == "1 of 1 reject"
    page.keyboard.press("/")
    assert not page.locator("#samples").is_visible()
    page.keyboard.type("nothing like it")
    page.wait_for_function("() => document.querySelector('#reject-status').textContent === '0 of 1 reject'")
    assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tabs_can_be_read_selected_and_under_the_pointer(open_page: Open, browse_page: Path, scheme: str) -> None:
    page = open_page(browse_page, scheme=scheme)
    for tab in page.locator("header nav button").all():
        tab.click()  # the pointer stays on it
        page.mouse.move(0, 0)
        contrasts = {"selected": tab.evaluate(CONTRAST)}
        tab.hover()
        contrasts["hovered"] = tab.evaluate(CONTRAST)

        assert tab.get_attribute("aria-pressed") == "true"
        assert min(contrasts.values()) >= 4.5, contrasts


@pytest.mark.parametrize("view", ["#", "#open=0", "#view=rejects"])
def test_the_page_fits_a_phone_and_names_its_controls(open_page: Open, browse_page: Path, view: str) -> None:
    page = open_page(browse_page, width=360, fragment=view)
    page.wait_for_selector({"#": ".card", "#open=0": "dialog[open]", "#view=rejects": "#rejects:not([hidden])"}[view])

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 360
    assert page.evaluate(UNNAMED) == []


def test_an_incomplete_folder_is_reported(browser: Any, dataset: Path, tmp_path: Path) -> None:
    path = write_browse_page(dataset, tmp_path / "page").path
    (tmp_path / "page/parts/images-0.js").unlink()
    page = browser.new_page()
    page.goto(path.as_uri())

    page.wait_for_selector("#fault:not([hidden])")
    assert "parts/images-0.js cannot be read: the folder is incomplete" in page.inner_text("#fault")
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("fragment", ["", "#open=0", "#view=rejects"])
def test_axe_finds_no_fault(
    open_page: Open, axe_faults: Faults, predictions_page: Path, fragment: str, scheme: str, width: int
) -> None:
    page = open_page(predictions_page, width=width, scheme=scheme, fragment=fragment)
    page.wait_for_selector(
        {"": ".card .masks path", "#open=0": "dialog[open]", "#view=rejects": "#rejects:not([hidden])"}[fragment]
    )

    assert axe_faults(page) == []
