"""COCO's layout for detection tools: one `instances_<split>.json` per split, refs and sentences beside annotations."""

from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from pipelines.export.dataset import ExportedDataset, ImageWriter
from pipelines.export.run import ExportOptions, Progress
from refseg.compat.refer_records import COLUMNS, refer_annotation, refer_order, refer_tables
from refseg.dataset.row_images import IMAGE_COLUMNS
from refseg.json_text import canonical_json

DIFFERENCES = (
    "annotations are those that refs name, each once; what else is in the images is not in the shards",
    "run lengths in several parts are one compressed mask, their union, since COCO has no list of them",
    "sentences are under `refs`, which COCO's tools pass over",
    "licences, dates and URLs of images are not in the shards",
)


def write(dataset: ExportedDataset, out: Path, options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write one JSON per split, and the images once; see `pipelines.export.run`."""
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
    """A split as COCO's JSON: `images`, `annotations` and `categories` as COCO has them, and `refs`.

    A ref has `ref_id`, `image_id`, `ann_ids` (none: it names nothing) and `sentences` of `sent_id`, `sent`, `raw` and
    `exists` (False: this sentence names nothing, whatever the ref's others do).
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
    """Polygons or a dict of run lengths as they are; a list of run lengths as their union."""
    if isinstance(segmentation, dict) or isinstance(segmentation[0], list):
        return segmentation
    merged = coco_mask.merge(segmentation)
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}
