"""Ref-Adv-s, and the pictures in its file."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.cli import main

from .example import Example, area


def jpeg(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def row(path: str | None, caption: str, shade: int) -> dict[str, object]:
    facts = {"width": 20, "height": 10, "distractors": "12", "use_negation": True, "image_source": "coco_val2017"}
    return {"image": {"bytes": jpeg(shade), "path": path}, "normal_caption": caption, "solution": [1, 2, 5, 6], **facts}


TABLE = pa.Table.from_pylist([row("a/b.jpg", "not the red cup", 9), row(None, "it", 99), row("../..", "that", 200)])

EXAMPLE = Example(
    reader="ref-adv-s",
    files={"train-00000-of-00001.parquet": TABLE},
    means={
        ("test", "b.jpg", "not the red cup"): area(1, 2, 5, 6),
        ("test", "train-00000-of-00001-000001.jpg", "it"): area(1, 2, 5, 6),
        ("test", "train-00000-of-00001-000002.jpg", "that"): area(1, 2, 5, 6),
    },
)


def test_unpacked_pictures_are_those_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = EXAMPLE.write(tmp_path / "set")
    pictures = tmp_path / "pictures"

    words = ["unpack-images", str(folder), "--out", str(pictures)]
    assert main(words) == main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{pictures}: wrote 3 pictures", f"{pictures}: wrote 0 pictures, 3 already existed"
    ]  # fmt: skip
    assert (pictures / "b.jpg").read_bytes() == jpeg(9)
    options = {"dataset": "custom/adv", "reader": "ref-adv-s", "annotations": folder, "images": pictures, "workers": 1}
    result = build_dataset(BuildOptions(**options, out=tmp_path / "out"))  # type: ignore[arg-type]
    assert [shard.num_images for shard in result.descriptor.shards] == [3]  # type: ignore[union-attr]


def test_two_pictures_of_one_name_are_not_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.Table.from_pylist([row("a.jpg", "x", 1), row("a.jpg", "y", 200)]), tmp_path / "t.parquet")

    assert main(["unpack-images", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "out")]) == 1

    assert "t.parquet row 2: its picture is called a.jpg" in capsys.readouterr().err
