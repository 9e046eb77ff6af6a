"""`refseg demo` over HTTP, as its page and other programs use it."""

import base64
import http.client
import io
import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from manifests import sample_folder
from refseg.apps.demo import make_demo
from refseg.apps.demo_pictures import Limits, PictureShelf
from refseg.apps.demo_validation import read_validation_set
from refseg.apps.predict import Segmenter
from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.errors import AnnotationError, RefsegError

MB = 1_000_000


@dataclass
class Server:
    """A demo on loopback."""

    port: int

    def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, body (JSON where it is) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content: Any = answer.read()
        connection.close()
        if answer.headers.get_content_type() == "application/json":
            content = json.loads(content)
        return answer.status, content, answer.headers

    def upload(self, data: bytes, name: str = "photo.png", **headers: str) -> tuple[int, Any]:
        kind, body = form(data, name)
        return self.send("POST", "/api/images", body, Content_Type=kind, **headers)[:2]

    def ask(self, image_id: str, text: str, **fields: Any) -> tuple[int, Any]:
        question = json.dumps({"image_id": image_id, "text": text, **fields})
        return self.send("POST", "/api/segment", question, Content_Type="application/json")[:2]


def form(data: bytes, name: str) -> tuple[str, bytes]:
    """A form with one file, and its type."""
    head = f'--cut\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return "multipart/form-data; boundary=cut", head.encode() + data + b"\r\n--cut--\r\n"


def png(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def photo(seed: int = 0) -> bytes:
    """60 x 40 pixels, red in the first 20 columns and blue in the last 20 but one for each seed; grey noise between."""
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 1), np.uint8).repeat(3, axis=2)
    pixels[:, :20], pixels[:, 40 + seed :] = (255, 0, 0), (0, 0, 255)
    return png(pixels)


def pixels_of(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)))


def picture_of(base64_png: str) -> np.ndarray:
    return pixels_of(base64.b64decode(base64_png))


@pytest.fixture(scope="module")
def server(demo_port: int) -> Server:
    return Server(demo_port)


@pytest.fixture(autouse=True)
def _server_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test sent, the server still answers."""
    yield
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").send("GET", "/")[0] == 200


def test_an_answer_holds_the_models_mask_as_picture_and_as_run_lengths(server: Server, segmenter: Segmenter) -> None:
    status, uploaded = server.upload(photo())
    assert status == 200
    assert (uploaded["width"], uploaded["height"], uploaded["name"]) == (60, 40, "photo.png")

    status, answer = server.ask(uploaded["image_id"], "the red square", maps=True)

    assert status == 200
    encoded = segmenter.encode(pixels_of(photo()))
    mask_logits = segmenter.score(encoded, segmenter.read_text("the red square"))
    mask = segmenter.mask(encoded, mask_logits)
    assert mask[4:-4, :16].all()  # of a quarter of the input's size, so each edge is known to a few pixels
    assert not mask[:, 24:].any()
    assert np.array_equal(picture_of(answer["mask_png"]), mask)
    assert np.array_equal(coco_masks.decode(answer["rle"]), mask)
    assert answer["rle"]["size"] == [40, 60]
    assert answer["covered_share"] == pytest.approx(mask.mean())
    assert answer["box_xywh"] == list(coco_masks.toBbox(answer["rle"]))
    probability = picture_of(answer["probability_png"]) / 255
    assert probability.shape == (40, 60)
    assert np.abs(probability - segmenter.probabilities(encoded, mask_logits, (40, 60))).max() <= 0.5 / 255 + 1e-6
    assert answer["highest_probability"] == pytest.approx(probability.max(), abs=1 / 255)
    assert answer["threshold"] == 0.5
    assert [word["word"] for word in answer["words"]] == ["[SOS]", "the", "red", "square", "[EOS]"]
    assert sum(word["weight"] for word in answer["words"]) == pytest.approx(1)
    assert picture_of(answer["maps_png"]).shape[2] == 3


def test_several_expressions_and_the_same_file_again_are_one_pass_of_the_encoder(
    server: Server, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    encode = segmenter.model.encode_image
    monkeypatch.setattr(segmenter.model, "encode_image", lambda images: passes.append(1) or encode(images))

    first = server.upload(photo(1), "one.png")[1]
    answers = [server.ask(first["image_id"], text)[1] for text in ("the red square", "the blue circle", "it")]
    again = server.upload(photo(1), "two.png")[1]

    assert len(passes) == 1
    assert [answer["box_xywh"] is None for answer in answers] == [False, False, True]
    assert answers[0]["mask_png"] != answers[1]["mask_png"]
    assert (first["already_encoded"], again["already_encoded"]) == (False, True)
    assert (again["image_id"], again["name"]) == (first["image_id"], "two.png")


def test_only_the_pictures_asked_about_last_are_kept(segmenter: Segmenter) -> None:
    shelf = PictureShelf(segmenter, Limits(kept_pictures=2))
    first, second = (shelf.put(photo(seed), "a.png")[0].image_id for seed in (0, 1))
    assert shelf.find(first) is not None

    third = shelf.put(photo(2), "a.png")[0].image_id

    assert shelf.find(second) is None
    assert shelf.find(first) is not None
    assert shelf.find(third) is not None


def test_a_picture_that_is_not_kept_is_asked_for_again(server: Server) -> None:
    status, refusal = server.ask("0" * 64, "the red square")

    assert (status, refusal["detail"]) == (404, "no picture 000000000000... is kept (any more); upload it again")
    assert server.send("GET", f"/api/images/{'0' * 64}")[0] == 404


def test_two_requests_at_once_are_both_answered(server: Server) -> None:
    def use(seed: int) -> tuple[int, Any]:
        return server.ask(server.upload(photo(seed))[1]["image_id"], "the red square")

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(use, (5, 6, 5, 6)))

    assert [status for status, _ in at_once] == [200] * 4
    assert [answer["mask_png"] for _, answer in at_once] == [use(seed)[1]["mask_png"] for seed in (5, 6, 5, 6)]


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of black pixels, one bit each, whose file is a thousandth of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + width // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "message"),
    [(20000, "bomb.png: too large (Image size (200000000 pixels)"), (10000, "found 10000 x 10000 pixels, expected at")],
)
def test_a_small_file_of_very_many_pixels_is_refused_by_its_header(server: Server, width: int, message: str) -> None:
    bomb = png_bomb(width, 10000)
    assert len(bomb) < MB / 10

    status, refusal = server.upload(bomb, "bomb.png")

    assert status == 422
    assert message in refusal["detail"]


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (49_000_000, 1, "found 49000000 x 1 pixels, expected at most 20,000 a side; scale it down first"),
        (1, 49_000_000, "found 1 x 49000000 pixels, expected at most 20,000 a side; scale it down first"),
        (5100, 100, "found 5100 x 100 pixels, expected at most 50 times as long as wide; cut it into pieces first"),
    ],
)
def test_a_strip_within_the_limit_of_pixels_is_refused_at_once(
    server: Server, width: int, height: int, message: str
) -> None:
    strip = png_bomb(width, height)
    started = time.process_time()

    status, refusal = server.upload(strip, "strip.png")

    assert time.process_time() - started < 1  # of the server, which runs in this process, whatever else runs here
    assert (status, refusal["detail"]) == (422, f"strip.png: {message}")
    assert server.upload(png_bomb(5000, 100))[0] == 200


def test_an_upload_of_fifty_megabytes_is_refused(server: Server) -> None:
    status, refusal = server.upload(bytes(50 * MB))
    assert (status, refusal["detail"]) == (
        413, "found 50.0 MB, expected at most 20 MB; scale the picture down first",
    )  # fmt: skip

    kind, body = form(bytes(50 * MB), "photo.png")
    pieces = (body[start : start + MB] for start in range(0, len(body), MB))  # sent without its length
    status, refusal, _ = server.send("POST", "/api/images", pieces, Content_Type=kind)
    assert (status, refusal["detail"]) == (
        413, "found more, expected at most 20 MB; scale the picture down first",
    )  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"no picture",
        lambda: b"",
        lambda: photo()[:100],
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would start Ghostscript
    ],
    ids=["text", "nothing", "cut", "postscript"],
)
def test_what_is_no_picture_is_refused(server: Server, make: Callable[[], bytes]) -> None:
    status, refusal = server.upload(make(), "notes.txt")

    assert status == 422
    assert re.match(r"notes\.txt: (not an image of a kind that is read here|cannot be read as)", refusal["detail"])


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "/etc/passwd", "a/b.png", r"..\\boot.ini", "a\tb", "x" * 300]
)
def test_a_file_name_that_is_a_path_is_refused(server: Server, name: str) -> None:
    status, refusal = server.upload(photo(), name)

    assert status == 422
    assert "expected a plain name of at most 255 characters, no path" in refusal["detail"]


def test_a_file_name_in_any_writing_is_kept(server: Server) -> None:
    assert server.upload(photo(), "зонтик ☂.png")[1]["name"] == "зонтик ☂.png"


def test_a_form_without_a_file_is_refused(server: Server) -> None:
    kind, body = form(b"", "photo.png")
    for sent in (body.replace(b'name="file"', b'name="picture"'), body.replace(b'; filename="photo.png"', b""), b"--"):
        status, refusal, _ = server.send("POST", "/api/images", sent, Content_Type=kind)
        assert status in (400, 422)
        assert isinstance(refusal["detail"], str)


@pytest.mark.parametrize("text", ["", " \t\n", "\0", "\x1b\x7f\x85", "\ufeff"])
def test_an_empty_text_is_refused(server: Server, text: str) -> None:
    image_id = server.upload(photo())[1]["image_id"]

    status, refusal = server.ask(image_id, text)

    assert status == 422
    assert "the text is empty; expected an expression" in refusal["detail"]


def test_a_text_longer_than_the_model_reads_is_cut_and_said(server: Server) -> None:
    image_id = server.upload(photo())[1]["image_id"]

    short, long = server.ask(image_id, "red " * 15)[1], server.ask(image_id, "red " * 16)[1]
    endless = server.ask(image_id, "x" * 100_000)[1]

    assert (short["is_cut"], long["is_cut"], endless["is_cut"]) == (False, True, True)
    assert long["read_text"] == short["read_text"] == " ".join(["red"] * 15)
    assert len(endless["text"]) == 1000


def test_emoji_and_markup_are_words_like_others(server: Server) -> None:
    image_id = server.upload(photo())[1]["image_id"]

    status, answer = server.ask(image_id, "the 🐈 <b>&amp;</b> 猫")

    assert status == 200
    assert answer["text"] == "the 🐈 <b>&amp;</b> 猫"
    assert "🐈" in answer["read_text"]
    assert answer["words"][2]["word"] == "🐈"


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("half a \ud83d character", "half a ? character"),
        ("\udfff\ud800", "??"),
        ("the\0red\x1bsquare", "the red square"),
        ("the\r\nred\x9fone", "the  red one"),
        ("right\u202eto left", "right\u202eto left"),
    ],
)
def test_characters_that_nobody_can_type_are_answered(server: Server, text: str, taken: str) -> None:
    image_id = server.upload(photo())[1]["image_id"]

    status, answer = server.ask(image_id, text, maps=True)

    assert (status, answer["text"]) == (200, taken)
    assert "\0" not in answer["read_text"]


def test_questions_of_another_form_are_refused_field_by_field(server: Server) -> None:
    image_id = server.upload(photo())[1]["image_id"]

    assert "body.image_id: String should match pattern" in server.ask("../secret", "it")[1]["detail"]
    assert "body.txt: Extra inputs are not permitted" in server.ask(image_id, "it", txt="that")[1]["detail"]
    for body in (
        "{",
        "[" * 100_000,
        b"\xff",
        '{"text": "\\ud800", "\\ud800": 1}',
        '{"text": ' + "9" * 5000 + "}",
        "null",
        "",
    ):
        status, refusal, _ = server.send("POST", "/api/segment", body, Content_Type="application/json")
        assert status in (400, 422)
        assert isinstance(refusal["detail"], str)
    for path in ("/api/images/%ED%A0%80%00", f"/api/images/{'a' * 60_000}", f"/examples/{'9' * 5000}.jpg"):
        assert server.send("GET", path)[0] in (404, 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_question_that_is_not_declared_as_json_is_told_how(server: Server, kind: str) -> None:
    question = json.dumps({"image_id": "0" * 64, "text": "it"})

    status, refusal, _ = server.send("POST", "/api/segment", question, Content_Type=kind)

    assert status == 422
    assert f"found Content-Type: {kind}, expected Content-Type: application/json" in refusal["detail"]


@pytest.mark.parametrize(
    ("body", "what"), [(b"\xff", "can't decode byte 0xff"), ("[" * 100_000, "decoding a JSON array")]
)
def test_json_that_cannot_be_read_is_told_why_and_what_to_send(server: Server, body: bytes | str, what: str) -> None:
    status, refusal, _ = server.send("POST", "/api/segment", body, Content_Type="application/json")

    assert status == 400
    assert refusal["detail"].startswith("body: cannot be read (")
    assert what in refusal["detail"]
    assert "send JSON in UTF-8" in refusal["detail"]


def test_head_is_answered_without_the_page(server: Server) -> None:
    status, page, headers = server.send("HEAD", "/")

    assert (status, page, headers.get_content_type()) == (200, b"", "text/html")


def test_pictures_are_turned_upright_and_laid_on_white(server: Server) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right: what was left is up
    turned = server.upload(png(pixels, exif=exif))[1]
    assert (turned["width"], turned["height"]) == (40, 60)
    status, shown, headers = server.send("GET", f"/api/images/{turned['image_id']}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    upright = np.asarray(Image.open(io.BytesIO(shown)))
    assert upright.shape == (60, 40, 3)
    assert upright[5, 20, 0] > 200
    assert upright[55, 20, 0] < 50
    assert server.ask(turned["image_id"], "it")[1]["rle"]["size"] == [60, 40]

    clear = server.upload(png(np.zeros((40, 60, 4), np.uint8)))[1]
    shown = server.send("GET", f"/api/images/{clear['image_id']}")[1]
    assert (np.asarray(Image.open(io.BytesIO(shown))) > 250).all()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_the_usual_kinds_are_read(server: Server, kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, kind)

    status, uploaded = server.upload(file.getvalue())

    assert (status, uploaded["width"], uploaded["height"]) == (200, 60, 40)


def ramp(mode: str) -> Image.Image:
    """60 x 40 pixels, black at the left to white at the right, as `mode` holds them."""
    grey = np.tile(np.linspace(0, 1, 60), (40, 1))
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32))
    if mode.startswith("I"):
        return Image.fromarray(np.rint(65535 * grey).astype(np.uint16 if mode == "I;16" else np.int32))
    return Image.fromarray(np.rint(255 * grey).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"),
        ("L", "JPEG"), ("CMYK", "JPEG"), ("L", "WEBP"), ("P", "GIF"),
        ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF"),
    ],
)  # fmt: skip
def test_black_is_black_and_white_is_white_however_pixels_are_kept(server: Server, mode: str, kind: str) -> None:
    file = io.BytesIO()
    ramp(mode).save(file, kind)

    status, uploaded = server.upload(file.getvalue())
    shown = pixels_of(server.send("GET", f"/api/images/{uploaded['image_id']}")[1])

    assert (status, shown.shape) == (200, (40, 60, 3))
    assert shown[:, :2].max() < 30
    assert shown[:, -2:].min() > 225


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_a_moving_picture_the_first_frame_is_taken(server: Server, kind: str) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])

    status, uploaded = server.upload(file.getvalue())
    shown = pixels_of(server.send("GET", f"/api/images/{uploaded['image_id']}")[1])

    assert status == 200
    assert shown[:, :, 0].min() > 250
    assert shown[:, :, 2].max() < 5


def test_damage_that_hides_no_pixel_is_no_matter(server: Server) -> None:
    for extra in ({"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}, {"icc_profile": b"none"}):
        file = io.BytesIO()
        ramp("RGB").save(file, "JPEG", **extra)
        assert server.upload(file.getvalue())[0] == 200
    holes = io.BytesIO()
    Image.fromarray(np.full((40, 60), np.nan, np.float32)).save(holes, "TIFF")
    assert server.upload(holes.getvalue())[0] == 200


def test_a_large_picture_is_shown_smaller_and_its_mask_given_in_full(server: Server) -> None:
    uploaded = server.upload(png(np.zeros((1000, 2560, 3), np.uint8)))[1]

    shown = Image.open(io.BytesIO(server.send("GET", f"/api/images/{uploaded['image_id']}")[1]))
    answer = server.ask(uploaded["image_id"], "it")[1]

    assert shown.size == (1280, 500)
    assert picture_of(answer["mask_png"]).shape == (1000, 2560)
    assert picture_of(answer["probability_png"]).shape == (200, 512)


def test_other_sites_and_other_names_of_this_machine_are_refused(server: Server) -> None:
    own = f"127.0.0.1:{server.port}"
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost."):
        status, refusal, _ = server.send("GET", "/", Host=host)
        assert (status, refusal["detail"]) == (
            400, f"found Host: {host}, expected one of 127.0.0.1, localhost; open the demo by the address it printed",
        )  # fmt: skip
    assert server.send("GET", "/", Host=f"localhost:{server.port}")[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        status, refusal = server.upload(photo(), Origin=origin)
        assert (status, refusal["detail"].split(",")[0]) == (403, f"found a request of {origin}")
    assert server.upload(photo(), Origin=f"http://{own}")[0] == 200

    assert server.send("GET", "/demo.js", Host=f"[::1]:{server.port}")[0] == 400  # not among this server's names
    for site in ("cross-site", "same-site"):  # as a picture or script of their page, where browsers name no origin
        status, refusal, _ = server.send("GET", "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")
        assert (status, refusal["detail"].split(",")[0]) == (403, "found a request of another site")
        assert server.upload(photo(), Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 403
        assert server.send("GET", "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200  # a link was followed
    for site in ("same-origin", "none"):
        assert server.upload(photo(), Sec_Fetch_Site=site)[0] == 200

    _, _, headers = server.send("GET", "/", Origin=f"http://{own}")
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_pages_load_nothing_from_elsewhere(server: Server) -> None:
    for path in ("/", "/docs"):
        status, page, _ = server.send("GET", path)
        assert status == 200
        text = page.decode()
        loaded = re.findall(r'(?:src|<link[^>]*href)="([^"]*)"', text)
        assert loaded
        assert all(address == "data:," or re.match(r"/(?!/)", address) for address in loaded)
        for address in loaded:
            if address.startswith("/"):
                assert server.send("GET", address)[0] == 200
    for path in ("/demo.css", "/demo.js"):
        assert b"//" not in re.sub(rb"(?m)^// .*|; // .*|\{ // .*", b"", server.send("GET", path)[1])
    assert "tiny &lt;fcnet&gt;" in server.send("GET", "/")[1].decode()


def test_the_interface_is_described_for_people_and_programs(server: Server) -> None:
    described = server.send("GET", "/openapi.json")[1]
    page = server.send("GET", "/docs")[1].decode()

    assert f"curl -F file=@photo.jpg 127.0.0.1:{server.port}/api/images" in page
    assert set(described["paths"]) == {"/api/images", "/api/images/{image_id}", "/api/segment"}
    for path in described["paths"]:
        assert path in page
    answer = described["components"]["schemas"]["Answer"]["properties"]
    assert all(
        field["description"] in page.replace("&#39;", "'") for field in answer.values() if "description" in field
    )


def test_examples_come_with_their_sentences_and_credits(server: Server) -> None:
    page = server.send("GET", "/")[1].decode()

    assert page.count('data-picture="/examples/') == 6
    assert page.count("http://creativecommons.org/licenses/by/2.0/") == 5
    status, picture, _ = server.send("GET", "/examples/397133.jpg")
    assert (status, picture) == (200, (sample_folder() / "images/train2014/000000397133.jpg").read_bytes())
    assert b"Copyright (c) 2025 Kuo Yang" in server.send("GET", "/credits")[1]
    assert server.send("GET", "/examples/1.jpg")[1]["detail"].startswith("no example 1; expected one of 180239, 529")
    for path in ("/examples/..%2f..%2fREADME.jpg", "/../demo.py", "/examples/../../README.md", "/demo.html.j2"):
        assert server.send("GET", path)[0] in (404, 422)


def test_examples_of_the_validation_set_are_its_own_files(server: Server, dataset: Path) -> None:
    page = server.send("GET", "/")[1].decode()
    index = ManifestIndex.open(dataset, ["val"])

    offered = re.findall(r'<img src="/validation/(\d+)\.jpg" alt="Picture (\d+) of the validation set"', page)
    assert 1 < len(offered) <= 6
    for number, image_id in offered:
        (image,) = np.flatnonzero(index.image_id == int(image_id))
        assert server.send("GET", f"/validation/{number}.jpg")[1] == index.read_image_bytes(int(image))
    assert "there are" in server.send("GET", "/validation/99.jpg")[1]["detail"]
    assert server.send("GET", "/other.js")[1]["detail"].startswith("no file other.js; expected one of look.css")


def test_a_picture_unlike_the_validation_set_is_uploaded_with_a_warning(server: Server, dataset: Path) -> None:
    known = ManifestIndex.open(dataset, ["val"]).read_image_bytes(0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")

    assert server.upload(known)[1]["unlike"] is None
    said = server.upload(file.getvalue())[1]["unlike"]
    assert said.startswith("This picture is unlike the ")
    assert "amount of fine detail 1" in said
    assert "toy/refseg val" in said


def test_a_demo_runs_without_a_validation_set_and_says_why(
    tmp_path: Path, dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = load_recipe("toy-quick", [f"data.root={tmp_path / 'moved'}"])
    published = load_recipe("toy-quick", ["data.root="])

    assert read_validation_set(moved, None) == (
        None, f"the validation set cannot be read at {tmp_path / 'moved'}; name its folder with --data"
    )  # fmt: skip
    assert "the demo offers no example of the validation set" in caplog.text
    assert read_validation_set(published, None)[1].endswith("name it with --data")
    found, why = read_validation_set(published, dataset)
    assert found is not None
    assert (found.name, why) == ("toy/refseg val", "")
    with pytest.raises(RefsegError, match="moved"):
        read_validation_set(published, tmp_path / "moved")


def test_a_damaged_sample_is_said(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="the bundled sample is damaged"):
        make_demo(segmenter, sample=tmp_path, facts={}, allowed_hosts=["*"])
