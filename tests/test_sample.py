"""The bundled sample: what it holds, its credits, and that a build of it is the golden one."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from manifests import sample_folder
from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset

_spec = importlib.util.spec_from_file_location(
    "update_golden", Path(__file__).parents[1] / "scripts" / "update_golden.py"
)
assert _spec is not None
assert _spec.loader is not None
update_golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update_golden)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(update_golden.SAMPLE_GOLDEN.read_text(encoding="utf-8"))
    return facts


@pytest.fixture(scope="module")
def refs() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((sample_folder() / "sample" / "refs(ccby).json").read_text())
    return records


def test_a_build_of_the_sample_is_the_golden_one(golden: dict[str, Any], tmp_path: Path) -> None:
    facts = update_golden.sample_facts(tmp_path)

    assert facts == golden, "if the change is wanted: python scripts/update_golden.py"
    assert verify_dataset(tmp_path / "sample-ccby") == []


def test_the_golden_file_is_as_the_script_writes_it(golden: dict[str, Any]) -> None:
    assert update_golden.dump_golden(golden) == update_golden.SAMPLE_GOLDEN.read_text(encoding="utf-8")


def test_golden_masks_are_pycocotools_unions(golden: dict[str, Any], refs: list[dict[str, Any]]) -> None:
    instances = json.loads((sample_folder() / "sample" / "instances.json").read_text())
    annotations = {a["id"]: a for a in instances["annotations"]}
    sizes = {i["id"]: (i["height"], i["width"]) for i in instances["images"]}
    areas = {row["ref_id"]: row["mask_area"] for row in golden["rows"]}

    assert areas.keys() == {ref["ref_id"] for ref in refs}
    for ref in refs:
        if ref["ann_id"] == -1:
            assert areas[ref["ref_id"]] == 0
            continue
        parts = coco_mask.frPyObjects(annotations[ref["ann_id"]]["segmentation"], *sizes[ref["image_id"]])
        assert areas[ref["ref_id"]] == np.any(coco_mask.decode(parts), axis=2).sum() > 200


def test_five_refs_have_six_sentences_and_one_names_nothing(refs: list[dict[str, Any]]) -> None:
    assert [len(ref["sentences"]) for ref in refs] == [1, 1, 1, 1, 2]
    assert [(ref["image_id"], ref["category_id"]) for ref in refs if ref["ann_id"] == -1] == [(175364, -1)]
    assert {ref["split"] for ref in refs} == {"test"}


def test_every_picture_has_its_credit_and_is_unmodified() -> None:
    readme = (sample_folder() / "README.md").read_text(encoding="utf-8")
    instances = json.loads((sample_folder() / "sample" / "instances.json").read_text())
    files = sorted((sample_folder() / "images" / "train2014").iterdir())

    assert [path.name for path in files] == sorted(image["file_name"] for image in instances["images"])
    assert len(files) == 7
    for image in instances["images"]:
        data = (sample_folder() / "images" / "train2014" / image["file_name"]).read_bytes()
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {image['id']} | {image['width']}×")]
        assert image["flickr_url"] in line
        assert hashlib.sha256(data).hexdigest() in line
        # Only licences that allow redistribution: CC BY 2.0, or no known copyright restrictions.
        assert {4: "CC BY 2.0", 7: "no known copyright restrictions"}[image["license"]] in line


def test_no_picture_without_a_ref_is_built(tmp_path: Path) -> None:
    options = BuildOptions(dataset="sample/ccby", annotations=sample_folder(), out=tmp_path / "out", workers=1)
    result = build_dataset(options)

    (shard,) = result.descriptor.shards
    assert (shard.split, shard.num_images, shard.num_refs, shard.num_sentences) == ("test", 5, 5, 6)
    assert result.descriptor.num_rejects == 0
