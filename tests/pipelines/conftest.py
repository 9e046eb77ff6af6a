"""Tiny datasets in REFER's layout, written by hand, of which a test can change one value."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.options import BuildOptions
from pipelines.sources.raw import RawRef, RawShard, RawSource
from pipelines.verify.rows import read_rows
from refseg.dataset.manifest_writer import ManifestRow


def read_manifest(path: Path) -> list[ManifestRow]:
    """Return the rows of a manifest without checks."""
    return [ManifestRow.from_dict(fields) for fields in read_rows(path.read_bytes())]


@dataclass
class TinyRefer:
    """REFER's records of a few 20 x 10 pictures; `write` writes their current state to disk."""

    root: Path
    refs: list[Any] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=lambda: [{"id": 1, "name": "person"}])
    folder: str = "refcoco"
    split_by: str = "unc"

    @property
    def image_folder(self) -> Path:
        return self.root / "images" / "train2014"

    def add_image(self, image_id: int, splits: tuple[str, ...] = ("val",)) -> None:
        """Add a picture with one ref per split, each to a separate square of 4 x 4 pixels."""
        name = f"COCO_train2014_{image_id:012d}.jpg"
        self.images.append({"id": image_id, "file_name": name, "height": 10, "width": 20, "license": 4})
        for number, split in enumerate(splits):
            left, ann_id = 4 * number, 10 * image_id + number
            box = [left, 2, 4, 4]
            square = [left, 2, left + 4, 2, left + 4, 6, left, 6]
            self.annotations.append(
                {"id": ann_id, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": box}
                | {"segmentation": [square]}
            )
            sentence = {"sent_id": ann_id, "raw": "The Square", "sent": "the square", "tokens": ["the", "square"]}
            self.refs.append(
                {"ref_id": ann_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": [sentence]}
            )
        self.image_folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(image_id).integers(0, 256, (10, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.image_folder / name, quality=90)

    def image_path(self, image_id: int) -> Path:
        return self.image_folder / f"COCO_train2014_{image_id:012d}.jpg"

    def write(self, *, protocol: int = 2) -> Path:
        folder = self.root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"refs({self.split_by}).p").write_bytes(pickle.dumps(self.refs, protocol=protocol))
        licences = [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}]
        instances = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (folder / "instances.json").write_text(json.dumps({**instances, "licenses": licences}))
        return self.root

    def options(self, out: Path, **changes: Any) -> BuildOptions:
        """Write the dataset and return options that build it in this process with two images per shard."""
        given = {"dataset": f"{self.folder.replace('+', 'plus')}/{self.split_by}", "workers": 1, "images_per_shard": 2}
        given["accept_counts"] = True  # five pictures are not RefCOCO
        return BuildOptions(annotations=self.write(), out=out, **{**given, **changes})


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRefer:
    """Five pictures of `refcoco/unc`: three of val, two of testA; one ref each."""
    tiny = TinyRefer(root=tmp_path / "data")
    for image_id, split in ((7, "val"), (8, "val"), (9, "val"), (11, "testA"), (12, "testA")):
        tiny.add_image(image_id, (split,))
    return tiny


@pytest.fixture
def raw_shard() -> Callable[[RawSource], RawShard]:
    """Return a whole source in memory, as one shard."""

    def load(source: RawSource) -> RawShard:
        tables: dict[str, dict[int, Any]] = {"images": {}, "annotations": {}, "categories": {}, "licenses": {}}
        for section, record in source.tables:
            tables[section][record["id"]] = record
        return RawShard(
            spec=source.spec,
            refs=[RawRef(position=position, ref=ref) for position, ref in enumerate(source.refs)],
            images=tables["images"],
            annotations=tables["annotations"],
            categories={key: record["name"] for key, record in tables["categories"].items()},
            box_targets=source.box_targets,
        )

    return load


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return the content of all files below a folder, by relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
