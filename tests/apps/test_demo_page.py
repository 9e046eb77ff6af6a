"""The demo's page as a person uses it: in headless Chromium, from an upload and a sentence to a mask."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from refseg.apps.demo_pictures import Limits
from refseg.evaluation.outlines import outline_path

from .conftest import Faults

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")


@pytest.fixture(scope="module")
def address(demo_port: int) -> str:
    return f"http://127.0.0.1:{demo_port}/"


@pytest.fixture
def open_tab(browser: Any, address: str) -> Iterator[Callable[[], Any]]:
    """Opens pages, which must complain of nothing and ask no other host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    said: list[str] = []

    def open_one() -> Any:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not _is_own(request.url, address) else None)
        page.goto(address)
        return page

    yield open_one
    context.close()
    # Chromium itself notes answers of status 4xx, which tests of refusals provoke.
    assert [line for line in said if "responded with a status of 4" not in line] == []


@pytest.fixture
def page(open_tab: Callable[[], Any]) -> Any:
    """One such page."""
    return open_tab()


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", f"blob:{address}"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A third is dark red, a third dark blue, with a gradient of grey between them."""
    pixels = np.linspace(0, 255, 180).astype(np.uint8)[None, :, None].repeat(120, axis=0).repeat(3, axis=2)
    pixels[:, :60], pixels[:, 120:] = (200, 0, 0), (0, 0, 200)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def ask(page: Any, text: str) -> None:
    page.get_by_label("One object, described in English").fill(text)
    page.get_by_role("button", name="Find").click()
    sync_api.expect(page.locator("#answer-text")).to_have_text(text)


def shown_pixels(page: Any) -> Any:
    """Of the canvas, as a list of 0 to 255: RGBA by rows."""
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return np.array(page.locator("#canvas").evaluate(script)).reshape(120, 180, 4)[:, :, :3]


def shows(mask: np.ndarray, side: str) -> bool:
    """Whether a mask of 120 x 180 pixels is a third at one side. Each edge is known to 12 pixels, the model's grid."""
    turned = mask if side == "left" else mask[:, ::-1]
    return bool(turned[12:-12, :48].all() and not turned[:, 72:].any())


def test_an_upload_and_a_sentence_show_a_mask_probabilities_and_words(page: Any, photo: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    page.locator("#figure").wait_for()
    plain = shown_pixels(page)

    ask(page, "the red square")
    with page.expect_download() as download:
        page.get_by_role("link", name="Mask (PNG)").click()
    assert download.value.suggested_filename == "photo-the-red-square.mask.png"
    mask = np.array(Image.open(download.value.path()))
    assert mask.shape == (120, 180)
    assert shows(mask, "left")
    assert page.locator("#masks path").get_attribute("d") == outline_path(mask > 0)
    assert (shown_pixels(page) == plain).all()
    with page.expect_download() as download:
        page.get_by_role("link", name="RLE (JSON)").click()
    rle = json.loads(Path(download.value.path()).read_text())
    assert np.array_equal(coco_masks.decode(rle), mask)

    page.get_by_role("checkbox", name="probability").check()
    heat = shown_pixels(page)
    assert (heat != plain).any()
    assert (heat[:, :, 0] >= heat[:, :, 2]).all()  # grey to yellow
    page.get_by_role("checkbox", name="probability").uncheck()
    assert (shown_pixels(page) == plain).all()

    rows = page.locator("#words tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["[SOS]", "the", "red", "square", "[EOS]"]
    page.get_by_text("Where it looked").click()
    page.locator("#maps-picture").wait_for()
    assert page.locator("#maps-picture").evaluate("image => image.naturalWidth") > 256


def test_a_click_on_a_word_leaves_it_out_and_another_puts_it_back(page: Any, photo: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    words = page.locator("#spoken button")
    assert words.all_inner_texts() == ["the", "red", "square"]

    words.nth(1).click()
    sync_api.expect(page.locator("#answer-text")).to_have_text("the square")
    assert words.all_inner_texts() == ["the", "red", "square"]
    assert [word.get_attribute("aria-pressed") for word in words.all()] == ["true", "false", "true"]
    assert page.locator("#masks path").get_attribute("d") == ""  # the sentence names no colour
    assert "IoU with all words\n0.0 %" in page.locator("#answer-facts").inner_text()
    assert page.evaluate("document.activeElement.textContent") == "red"
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#answer-text")).to_have_text("the red square")
    words.nth(0).click()
    sync_api.expect(page.locator("#answer-text")).to_have_text("red square")
    words.nth(2).click()
    sync_api.expect(page.locator("#answer-text")).to_have_text("red")
    assert words.nth(1).is_disabled()  # one word has to stay
    assert "IoU with all words\n100.0 %" in page.locator("#answer-facts").inner_text()


def test_the_page_says_which_model_it_runs_and_offers_its_validation_set_first(page: Any) -> None:
    assert page.get_by_role("heading", level=1).inner_text() == "tiny <fcnet>"
    assert "Trained on toy/refseg train, 12 steps." in page.locator(".lead").inner_text()
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings.index("Examples of the validation set: toy/refseg val") < headings.index("Bundled photographs")

    page.locator("button.example").first.click()
    page.locator("#answer").wait_for()
    assert page.locator("#unlike").is_hidden()
    page.locator("button.example[data-picture^='/examples/']").first.click()
    sync_api.expect(page.locator("#unlike")).to_contain_text("This picture is unlike the")


def test_the_picture_is_enlarged_by_keys_and_buttons(page: Any, photo: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    page.locator("#frame").focus()
    page.keyboard.press("+")
    page.get_by_role("button", name="Zoom in").click()

    assert page.locator("#views output").inner_text() == "200 %"
    scale = page.locator("#frame").evaluate("frame => frame.scrollWidth / frame.clientWidth")
    assert scale == pytest.approx(2, abs=0.02)
    page.keyboard.press("m")
    page.keyboard.press("m")
    assert page.locator("#masks").evaluate("masks => getComputedStyle(masks).visibility") == "hidden"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_axe_finds_no_fault(page: Any, axe_faults: Faults, address: str, photo: Path, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    page.locator("#spoken button").first.click()
    sync_api.expect(page.locator("#answer-text")).to_have_text("red square")
    page.get_by_text("Where it looked").click()
    page.locator("#maps-picture").wait_for()

    assert axe_faults(page) == []
    page.goto(address + "docs")
    assert axe_faults(page) == []


def test_several_expressions_stay_at_hand(page: Any, photo: Path) -> None:
    later = "new Promise((done) => setTimeout(done, where === '/api/images' ? 500 : 0))"
    page.evaluate(f"const send = window.fetch; window.fetch = (where, how) => {later}.then(() => send(where, how))")
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")  # while the picture is on its way
    ask(page, "the blue circle")

    page.get_by_role("button", name="the red square", exact=True).click()

    assert page.locator("#answer-text").inner_text() == "the red square"
    assert "“the red square”" in page.locator("#canvas").get_attribute("aria-label")
    assert page.get_by_role("button", name="the red square", exact=True).get_attribute("aria-pressed") == "true"


def test_a_long_expression_is_shown_in_full_once(page: Any, photo: Path) -> None:
    long = ("square " * 140).strip()
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    ask(page, long)
    is_cut = "element => element.scrollHeight > element.clientHeight + 1"

    assert not page.locator("#answer-text").evaluate(is_cut)
    button = page.get_by_role("button", name=long, exact=True)
    assert button.locator("span").evaluate(is_cut)
    assert button.evaluate("element => element.offsetHeight") < 80


def test_two_tabs_do_not_mix_up_their_pictures(open_tab: Callable[[], Any], photo: Path, tmp_path: Path) -> None:
    # The other picture is this one upside down: its size is the same and its red is on the right.
    with Image.open(photo) as picture:
        picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png")
    tabs = {photo: open_tab(), tmp_path / "turned.png": open_tab()}
    for path, page in tabs.items():
        page.get_by_label("Choose a picture").set_input_files(path)
        page.get_by_label("One object, described in English").fill("the red square")
    for page in tabs.values():
        page.get_by_role("button", name="Find").click()
    masks = []
    for page in tabs.values():
        sync_api.expect(page.locator("#answer-text")).to_have_text("the red square")
        with page.expect_download() as download:
            page.get_by_role("link", name="Mask (PNG)").click()
        masks.append(np.array(Image.open(download.value.path())))
    for (path, page), mask in zip(tabs.items(), masks, strict=True):
        plain = shown_pixels(page)
        assert np.abs(plain.astype(int) - np.array(Image.open(path))).mean() < 5  # a JPEG; of the other picture 130
        assert page.locator("#masks path").get_attribute("d") == outline_path(mask > 0)
    assert [(shows(mask, "left"), shows(mask, "right")) for mask in masks] == [(True, False), (False, True)]


def test_a_picture_that_the_server_forgot_is_sent_again(page: Any, photo: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    upload = """async (seed) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 + seed });
        canvas.getContext("2d").fillRect(0, 0, 4, 4);
        const form = new FormData();
        form.append("file", await new Promise((take) => canvas.toBlob(take)), "other.png");
        return (await fetch("/api/images", { method: "POST", body: form })).status;
    }"""
    assert {page.evaluate(upload, seed) for seed in range(Limits().kept_pictures)} == {200}

    ask(page, "the blue circle")

    assert page.get_by_role("alert").is_hidden()


def test_all_is_done_from_the_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.locator("button.example").first.focus()
    page.keyboard.press("Enter")
    page.locator("#answer").wait_for()
    assert page.locator("#answer-text").inner_text() == page.locator("button.example").first.inner_text()
    page.locator("#text").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("it")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#answer-text")).to_have_text("it")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"mask-file", "rle-file", "Where it looked"} <= reached
    nameless = "[...document.querySelectorAll('input, button, a, img, canvas')].filter(e => !(e.labels?.length || "
    nameless += "e.textContent.trim() || e.getAttribute('aria-label') || e.alt || e.hidden)).map(e => e.outerHTML)"
    assert page.evaluate(nameless) == []


def test_refusals_are_read_out_and_the_page_goes_on(page: Any, photo: Path, tmp_path: Path) -> None:
    error = page.get_by_role("alert")
    page.get_by_role("button", name="Find").click()
    assert "There is no picture yet" in error.inner_text()
    (tmp_path / "notes.png").write_text("no picture")
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "notes.png")
    sync_api.expect(error).to_contain_text("notes.png: not an image")
    (tmp_path / "large.png").write_bytes(bytes(21_000_000))
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "large.png")
    sync_api.expect(error).to_contain_text("found 21.0 MB, expected at most 20 MB")

    page.get_by_label("Choose a picture").set_input_files(photo)
    sync_api.expect(page.locator("#name")).to_have_text("photo.png, 180 × 120")
    ask(page, "red " * 30)

    assert error.is_hidden()
    assert page.locator("#cut").inner_text().startswith("The text is too long for the model, which read: red red")


def test_a_picture_that_is_refused_is_named_at_its_card_and_the_one_before_stays_with_its_answers(
    page: Any, photo: Path, tmp_path: Path
) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")
    (tmp_path / "notes.png").write_text("no picture")

    page.get_by_label("Choose a picture").set_input_files(tmp_path / "notes.png")

    sync_api.expect(page.locator(".picture").get_by_role("alert")).to_contain_text("notes.png: not an image")
    refusal = page.locator(".picture").get_by_role("alert")
    assert refusal.inner_text().endswith("photo.png is still shown")
    assert page.locator("#name").inner_text() == "photo.png, 180 × 120"
    assert page.locator("#answer-text").inner_text() == "the red square"
    ask(page, "the blue circle")
    assert "the red square" in page.locator("#asked").inner_text()
    assert refusal.is_visible()
    page.get_by_label("Choose a picture").set_input_files(photo)
    sync_api.expect(page.locator("#status")).to_have_text("This picture was encoded before.")
    assert refusal.is_hidden()
    assert page.locator("#answer").is_hidden()


def test_shares_of_attention_are_drawn_against_the_largest_with_the_number_beside(page: Any, photo: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(photo)
    ask(page, "the red square")

    drawn = "rows => rows.map(r => r.querySelector('i').offsetWidth / r.querySelector('.bar span').offsetWidth)"
    bars = page.locator("#words tbody tr").evaluate_all(drawn)
    shares = [float(text.split("%")[0].split()[-1]) for text in page.locator("#words tbody tr").all_inner_texts()]
    assert max(bars) == pytest.approx(1, abs=0.02)
    assert bars == pytest.approx([share / max(shares) for share in shares], abs=0.03)
    assert "[SOS] and [EOS] are the tokens that start and end every sentence" in page.locator("#answer").inner_text()


@pytest.mark.parametrize("path", ["", "docs"])
def test_pages_fit_a_phone(page: Any, address: str, photo: Path, path: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(address + path)
    if not path:
        page.get_by_label("Choose a picture").set_input_files(photo)
        page.locator("#figure").wait_for()
        ask(page, "the red square")
        assert page.locator("#masks path").get_attribute("d")
        page.get_by_text("Where it looked").click()
        page.locator("#maps-picture").wait_for()

    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert Image.open(io.BytesIO(page.screenshot())).size == (360, 740)
