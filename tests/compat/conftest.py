"""Sources in REFER's layout and the datasets built from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]
"""4 x 4 pixels."""
OVERLAPPING = [[2, 1, 8, 1, 8, 5, 2, 5], [6, 1, 10, 1, 10, 5, 6, 5]]
"""6 x 4 and 4 x 4 pixels, 2 x 4 of them in both."""
CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
]

WriteSource = Callable[..., Path]


def annotation(
    ann_id: int, image_id: int, segmentation: Any, *, category_id: int = 1, iscrowd: int = 0
) -> dict[str, Any]:
    return {
        "segmentation": segmentation, "area": 16.5, "iscrowd": iscrowd, "image_id": image_id,
        "bbox": [2.0, 1.0, 4.25, 4.0], "category_id": category_id, "id": ann_id,
    }  # fmt: skip


def ref(ref_id: int, image_id: int, ann_id: Any, *, split: str = "val", **more: Any) -> dict[str, Any]:
    """Two sentences, whose raw text is not the cleaned one."""
    sentences = [
        {"tokens": ["the", word], "raw": f"The {word.title()}!", "sent_id": 10 * ref_id + number, "sent": f"the {word}"}
        for number, word in enumerate(("one", "other"))
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_1.jpg", "ann_id": ann_id, "ref_id": ref_id,
        "image_id": image_id, "split": split, "sentences": sentences, "category_id": 1, **more,
    }  # fmt: skip


def write_files(
    root: Path, folder: str, refs_name: str, refs: list[dict[str, Any]], annotations: list[dict[str, Any]], name: str
) -> Path:
    """Write refs and annotations of 20 x 10 pictures in REFER's layout; gives the root."""
    pictures = root / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True)
    images = []
    for image_id in sorted({found["image_id"] for found in refs}, reverse=True):
        file_name = name.format(image_id)
        images.append({"file_name": file_name, "height": 10, "width": 20, "id": image_id, "license": 4})
        noise = np.random.default_rng(image_id).integers(0, 256, (10, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / file_name)
    (root / folder).mkdir()
    (root / folder / refs_name).write_text(json.dumps(refs))
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / folder / "instances.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def write_source(tmp_path: Path) -> WriteSource:
    """`write_files` below the test's folder."""

    def write(*content: Any, name: str = "COCO_train2014_{:012d}.jpg") -> Path:
        return write_files(tmp_path / "source", *content, name)

    return write


def build(dataset: str, source: Path, out: Path, **changes: Any) -> Path:
    """Build with one image to a shard, so that order is not kept by chance."""
    given = {"images_per_shard": 1, "workers": 1, "accept_counts": True, **changes}
    build_dataset(BuildOptions(dataset=dataset, annotations=source, out=out, **given))
    return out


@pytest.fixture(scope="session")
def mini_shards(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the four datasets of `refer-mini`, built."""
    root = tmp_path_factory.mktemp("built")
    for dataset in ("refcoco/unc", "refcocoplus/unc", "refcocog/umd", "refcocog/google"):
        build(dataset, shared_data / "refer-mini", root / dataset.replace("/", "-"), images_per_shard=2)
    return root
