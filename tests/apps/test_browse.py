"""The page of a dataset without a browser: what is in its files, what is refused, what stays text."""

import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.apps import browse, browse_pictures
from refseg.apps.browse import write_browse_page
from refseg.apps.browse_pictures import small_jpeg
from refseg.cli import main
from refseg.data.index import ManifestIndex
from refseg.dataset.built import BuiltDataset
from refseg.errors import DatasetError, ImageError, UsageError
from refseg.evaluation.origin import read_origin
from refseg.evaluation.protocols import ORIGINAL
from refseg.evaluation.results import Results, save_results
from refseg.evaluation.rows import Counted, RowFacts, make_table


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    """All manifest rows, in order of the descriptor."""
    names = [entry["name"] for entry in json.loads((dataset / "refseg.json").read_text())["shards"]]
    return [row for name in names for row in pq.read_table(dataset / f"{name}.parquet").to_pylist()]


def parts_of(page: Path) -> dict[str, Any]:
    """The parts of a folder, without a browser: each file is one call."""
    parts = {}
    for path in (page / "parts").iterdir():
        call = re.fullmatch(r'refsegPart\("([a-z0-9-]+)", (.*)\);\n', path.read_text("utf-8"), re.DOTALL)
        assert call is not None
        assert f"{call[1]}.js" == path.name
        parts[call[1]] = json.loads(call[2])
    return parts


def blocks_of(page: Path) -> dict[str, Any]:
    """The blocks of JSON of a page by their ids."""
    text = page.read_text("utf-8")
    blocks = re.findall(r'<script type="application/json" id="([a-z0-9-]+)">(.*?)</script>', text, re.DOTALL)
    return {name: json.loads(content) for name, content in blocks}


def test_every_ref_and_mask_of_the_dataset_is_in_the_page(dataset: Path, tmp_path: Path) -> None:
    page = write_browse_page(dataset, tmp_path / "page")
    parts, rows = parts_of(tmp_path / "page"), rows_of(dataset)

    facts = blocks_of(page.path)["facts"]
    refs = [ref for number in range(facts["numRefParts"]) for ref in parts[f"refs-{number}"]]
    assert page.num_refs == len(refs) == len(rows) == facts["numRefs"]
    assert [ref[6] for ref in refs] == [[s["sent"] for s in row["sentences"]] for row in rows]
    assert [facts["splits"][ref[1]][0] for ref in refs] == [row["split"] for row in rows]
    assert [facts["categories"][ref[3]] for ref in refs] == [row["category"] for row in rows]
    assert [ref[4] for ref in refs] == pytest.approx([row["area"] / (96 * 128) for row in rows], rel=1e-3)
    images = [image for number in range((page.num_images + 15) // 16) for image in parts[f"images-{number}"]]
    assert [ref["counts"] for image in images for ref in image["refs"]] == [row["mask"]["counts"] for row in rows]
    assert [image["first"] + i for image in images for i in range(len(image["refs"]))] == list(range(len(rows)))
    assert [images[ref[0]]["id"] for ref in refs] == [row["image_id"] for row in rows]
    for number in range(page.num_images):
        with Image.open(tmp_path / f"page/pictures/0/{number}.jpg") as picture:
            assert picture.size == (128, 96)


def test_one_file_holds_what_the_folder_holds(dataset: Path, evil: str, tmp_path: Path) -> None:
    write_browse_page(dataset, tmp_path / "page")
    one = write_browse_page(dataset, tmp_path / "one.html")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "page"]
    parts, blocks = parts_of(tmp_path / "page"), blocks_of(one.path)
    assert blocks.pop("facts").items() < blocks_of(tmp_path / "page/index.html")["facts"].items()
    for number in range(2):
        for image in blocks[f"part-images-{number}"]:
            assert image.pop("picture").startswith("data:image/jpeg;base64,")
    assert blocks == {f"part-{name}": content for name, content in parts.items()}


def test_the_same_dataset_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    first, second = (write_browse_page(dataset, tmp_path / name).path.parent for name in ("a", "b"))

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(first) == contents(second)


def test_markup_in_an_annotation_is_nowhere_markup(dataset: Path, evil: str, tmp_path: Path) -> None:
    write_browse_page(dataset, tmp_path / "page")
    one = write_browse_page(dataset, tmp_path / "one.html").path

    assert any(evil in ref[6] for ref in parts_of(tmp_path / "page")["refs-0"])
    assert any(evil in ref[6] for ref in blocks_of(one)["part-refs-0"])
    for text in (one.read_text("utf-8"), *(path.read_text("utf-8") for path in tmp_path.rglob("*.js"))):
        assert "<script>document" not in text
        assert "<img src=x" not in text


def test_rejects_stand_with_reason_and_message(dataset: Path, tmp_path: Path) -> None:
    page = write_browse_page(dataset, tmp_path / "page")

    ((split, _ref, image, reason, message),) = parts_of(tmp_path / "page")["rejects"]
    assert (page.num_rejects, split, image, reason) == (1, "train", 999_999, "unknown_image")
    assert "999999" in message
    assert blocks_of(page.path)["facts"]["rejectReasons"] == [["unknown_image", 1]]


def test_rejects_are_those_of_the_splits_shown_and_of_no_split(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    told = {"ref_id": 1, "image_id": 2, "reason": "unknown_image", "message": "no such image"}
    found = [{"split": split, **told} for split in ("train", "val", None)]
    monkeypatch.setattr(BuiltDataset, "rejects", lambda _: pa.Table.from_pylist(found))

    page = write_browse_page(dataset, tmp_path / "page", splits=["val"])

    facts = blocks_of(page.path)["facts"]
    assert [reject[0] for reject in parts_of(tmp_path / "page")["rejects"]] == ["val", ""]
    assert (page.num_rejects, facts["numRejects"], facts["rejectReasons"]) == (2, 2, [["unknown_image", 2]])
    assert write_browse_page(dataset, tmp_path / "all").num_rejects == 3


def test_fewer_images_are_spread_over_the_splits(dataset: Path, tmp_path: Path) -> None:
    whole = write_browse_page(dataset, tmp_path / "whole")
    few = write_browse_page(dataset, tmp_path / "few", num_images=6)

    assert (few.num_images, few.num_dataset_images) == (6, whole.num_images)
    ids = [image["id"] for number in range(2) for image in parts_of(tmp_path / "whole")[f"images-{number}"]]
    # Position p of n is taken where (p + 1) * 6 // n is more than p * 6 // n.
    n = len(ids)
    expected = [ids[p] for p in range(n) if (p + 1) * 6 // n > p * 6 // n]
    assert [image["id"] for image in parts_of(tmp_path / "few")["images-0"]] == expected
    val = write_browse_page(dataset, tmp_path / "val", splits=["val"])
    assert blocks_of(val.path)["facts"]["splits"] == [["val", val.num_refs]]
    assert val.num_refs == sum(row["split"] == "val" for row in rows_of(dataset))


def test_pictures_have_the_annotated_shape_however_they_are_stored(tmp_path: Path) -> None:
    draw_toy(tmp_path / "source", num_images=10, seed=0, image_size=(96, 128))
    out = tmp_path / "shards"
    build_dataset(
        BuildOptions(
            dataset="toy/refseg", annotations=tmp_path / "source", out=out, workers=1, store="stretch:64",
            splits=("val",),
        )
    )  # fmt: skip
    write_browse_page(out, tmp_path / "page")

    with Image.open(tmp_path / "page/pictures/0/0.jpg") as picture:
        assert picture.size == (128, 96)


def test_large_pictures_are_made_smaller(monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(browse_pictures, "PICTURE_SIDE", 64)
    one = write_browse_page(dataset, tmp_path / "page", num_images=1).path.parent

    with Image.open(BytesIO((one / "pictures/0/0.jpg").read_bytes())) as picture:
        assert picture.size == (64, 48)


def test_a_page_is_replaced_and_nothing_else_is(dataset: Path, tmp_path: Path) -> None:
    write_browse_page(dataset, tmp_path / "page", num_images=3)
    write_browse_page(dataset, tmp_path / "page", num_images=1)
    assert len(list((tmp_path / "page/pictures/0").iterdir())) == 1

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("<html>my own</html>")
    with pytest.raises(UsageError, match="something else than a page of `refseg browse`"):
        write_browse_page(dataset, mine)
    assert (mine / "index.html").read_text() == "<html>my own</html>"
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        write_browse_page(dataset, Path(shutil.copyfile(mine / "index.html", tmp_path / "note")))
    with pytest.raises(UsageError, match="is not a page of `refseg browse`"):
        write_browse_page(dataset, Path(shutil.copyfile(mine / "index.html", tmp_path / "mine.html")))
    assert (tmp_path / "mine.html").read_text() == "<html>my own</html>"


def test_predictions_of_another_build_or_without_masks_are_refused(dataset: Path, tmp_path: Path) -> None:
    index = ManifestIndex.open(dataset, ["val"])
    nothing = np.zeros((index.num_sentences, 1, 3), np.int64)
    row = np.repeat(np.arange(index.num_rows), np.diff(index.sentence_start))
    counted = Counted(row=row, sentence=np.arange(index.num_sentences) - index.sentence_start[row], pixels=nothing)
    facts = RowFacts(protocols=(ORIGINAL,), mask_rule="union", sentence_order="own", num_left_out=0)
    rows = make_table(index, np.arange(index.num_rows), counted, facts)
    known = {"predictions": "masks.jsonl", "data": str(dataset), "dataset": "toy/refseg", "split": "val"}
    for digest, reason in (
        ("b" * 64, "toy/refseg val was scored on another build (bbbbbbbbbbbb)"),
        (index.descriptor.digest, "toy/refseg val was scored without --save-predictions"),
    ):
        save_results(tmp_path / "run", Results(rows=rows, origin=read_origin({**known, "dataset_digest": digest})))
        with pytest.raises(UsageError, match=re.escape(reason)):
            write_browse_page(dataset, tmp_path / "page", predictions=tmp_path / "run")
    with pytest.raises(UsageError, match="toy/refseg val is not shown"):
        write_browse_page(dataset, tmp_path / "page", predictions=tmp_path / "run", splits=["train"])


@pytest.mark.parametrize("name", ["page", "one.html", "deep/page"])
def test_a_page_within_a_dataset_is_refused(dataset: Path, name: str) -> None:
    before = sorted(dataset.rglob("*"))

    with pytest.raises(UsageError, match=f"is within the dataset {re.escape(str(dataset))}; give a folder outside"):
        write_browse_page(dataset, dataset / name)
    assert sorted(dataset.rglob("*")) == before


@pytest.mark.parametrize("name", ["page", "one.html"])
def test_a_page_that_fails_leaves_the_earlier_one(dataset: Path, tmp_path: Path, name: str) -> None:
    page = write_browse_page(dataset, tmp_path / name, num_images=2).path
    before = page.read_bytes()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_browse_page(dataset, tmp_path / name, progress=stop)
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda dataset, out: write_browse_page(dataset, out / "p", splits=["minival"]), "has no split 'minival'"),
        (lambda dataset, out: write_browse_page(dataset, out / "p.html"), "at most 10 in one file; give a folder"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path, call: Callable[[Path, Path], object], text: str
) -> None:
    monkeypatch.setattr(browse, "ONE_FILE_IMAGES", 10)
    with pytest.raises(UsageError, match=text):
        call(dataset, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_changed_rejects_are_refused(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in dataset.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "rejects.parquet").write_bytes(b"other")

    with pytest.raises(DatasetError, match=r"rejects\.parquet: found sha256"):
        write_browse_page(copy, tmp_path / "page")


def test_the_command_says_what_to_open(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["browse", str(dataset), "--images", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of ")
    assert f"open {tmp_path / 'browse-toy-refseg/index.html'}" in out
    assert main(["browse", str(dataset), "--out", "one.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "one.html"
    assert main(["browse", str(tmp_path / "nowhere"), "--out", "p"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_pictures_of_a_dataset_have_no_limit_but_their_annotated_size(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # beyond twice this, `Image.open` refuses a picture

    page = write_browse_page(dataset, tmp_path / "page", num_images=1)

    assert page.num_not_shown == 0


def test_a_picture_that_cannot_be_shown_is_named_and_the_page_is_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_every_third(data: bytes, size: tuple[int, int]) -> bytes:
        if len(data) % 3:
            return small_jpeg(data, size)
        return small_jpeg(data[: len(data) // 2], size)

    small_jpeg = browse.small_jpeg
    monkeypatch.setattr(browse, "small_jpeg", cut_every_third)
    cut = {row["image_id"]: row["file_name"] for row in rows_of(dataset) if row["image_bytes"] % 3 == 0}
    assert cut

    assert main(["browse", str(dataset), "--out", str(tmp_path / "page"), "--json"]) == 0

    printed = capsys.readouterr()
    page = json.loads(printed.out)
    assert page["num_not_shown"] == len(cut)
    assert (page["num_images"], len(list((tmp_path / "page/pictures/0").iterdir()))) == (24, 24)
    for image_id, name in cut.items():
        assert f"image {image_id} ({name}): is not shown: cannot be decoded" in printed.err


def test_a_file_that_is_larger_than_annotated_is_refused_by_its_header() -> None:
    file = BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG")
    data = file.getvalue()
    assert Image.open(BytesIO(small_jpeg(data, (48, 64)))).size == (64, 48)
    size = data.index(b"\xff\xc0") + 5
    bomb = data[:size] + (65000).to_bytes(2) * 2 + data[size + 4 :]

    with pytest.raises(ImageError, match=r"found 65000 x 65000 pixels, expected at most 48 x 64 \(height x width\)"):
        small_jpeg(bomb, (48, 64))
    with pytest.raises(ImageError, match="cannot be decoded"):
        small_jpeg(b"no picture", (48, 64))
