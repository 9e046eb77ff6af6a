"""Exports to COCO's layout for detection tools, with one `instances_<split>.json` per split.

Each file also holds the refs and sentences.
"""

from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from pipelines.export.dataset import ExportedDataset, ImageWriter
from pipelines.export.run import ExportOptions, Progress
from refseg.compat.refer_records import COLUMNS, refer_annotation, refer_order, refer_tables
from refseg.dataset.row_images import IMAGE_COLUMNS
from refseg.json_text import canonical_json

DIFFERENCES = (
    "annotations are those of refs, each once; other objects in the images are not in the shards",
    "run lengths in several parts become one compressed mask, their union, because COCO does not allow a list of them",
    "sentences are under `refs`, which COCO's tools ignore",
    "licences, dates and URLs of images are missing, because they are not in the shards",
)


def write(dataset: ExportedDataset, out: Path, options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write one JSON file per split, and each image once.

    Args:
        dataset: The dataset to export.
        out: Folder to write to.
        options: Options of the export.
        progress: Called after each shard.

    Returns:
        The differences to the dataset's sources, in sentences.
    """
    images = ImageWriter(dataset, out / "images")
    (out / "annotations").mkdir()
    for split in dataset.splits:
        rows: list[dict[str, Any]] = []
        for entry in dataset.built.entries_of(split):
            found = dataset.rows(entry, [*COLUMNS, *IMAGE_COLUMNS])
            if options.images:
                for row in found:
                    images.write(row)
            rows += found
            progress()
        content = coco_content(dataset, split, rows)
        (out / "annotations" / f"instances_{split}.json").write_bytes(canonical_json(content))
    return DIFFERENCES


def coco_content(dataset: ExportedDataset, split: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a split as COCO's JSON: `images`, `annotations` and `categories` in COCO's form, and `refs`.

    A ref has `ref_id`, `image_id`, `ann_ids` and `sentences`. `ann_ids` is empty if the ref has no target. A sentence
    has `sent_id`, `sent`, `raw` and `exists`. `exists` is False if the sentence names nothing in the image, even if
    other sentences of the ref have a target.
    """
    tables = refer_tables(rows, dataset.spec)
    annotations: dict[int, dict[str, Any]] = {}
    for row in rows:
        for annotation in row["annotations"]:
            record = annotations.setdefault(annotation["ann_id"], refer_annotation(row, annotation))
            record["segmentation"] = _one_mask(record["segmentation"])
    refs = [
        {
            "ref_id": row["ref_id"],
            "image_id": row["image_id"],
            "ann_ids": [annotation["ann_id"] for annotation in row["annotations"]],
            "sentences": [
                {name: sentence[name] for name in ("sent_id", "sent", "raw", "exists")} for sentence in row["sentences"]
            ],
        }
        for row in sorted(rows, key=lambda row: refer_order(row["image_id"], row["ref_id"]))
    ]
    return {
        "info": {"description": f"{dataset.descriptor.dataset} {split}, exported by refseg"},
        "licenses": [],
        "images": tables.images,
        "annotations": [annotations[key] for key in sorted(annotations)],
        "categories": dataset.categories(tables),
        "refs": refs,
    }


def _one_mask(segmentation: Any) -> Any:
    """Return the union of a list of run lengths; polygons and a dict of run lengths are returned unchanged."""
    if isinstance(segmentation, dict) or isinstance(segmentation[0], list):
        return segmentation
    merged = coco_mask.merge(segmentation)
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}
