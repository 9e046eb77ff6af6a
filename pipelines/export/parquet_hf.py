"""Exports to Parquet with embedded images, one row per image, for Hugging Face's `datasets` and dataset viewer."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.export.dataset import ExportedDataset
from pipelines.export.run import ExportOptions, Progress
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.row_images import IMAGE_COLUMNS
from refseg.dataset.schema import MANIFEST_SCHEMA

_ROW_GROUP_ROWS = 100
"""Number of images per row group. The viewer reads one row group per page."""
_SENTENCE = pa.struct(
    [
        ("sent_id", pa.int64()),
        ("raw", pa.string()),
        ("sent", pa.string()),
        ("words", pa.list_(pa.string())),
        ("exists", pa.bool_()),
    ]
)
_AS_IN_MANIFEST = ("category", "box_xywh", "area", "no_target", "box_only", "mask")
_REF = pa.struct(
    [
        ("ref_id", pa.int64()),
        ("ann_ids", pa.list_(pa.int64())),
        *((name, MANIFEST_SCHEMA.field(name).type) for name in _AS_IN_MANIFEST),
        ("sentences", pa.list_(_SENTENCE)),
    ]
)
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("refs", pa.list_(_REF)),
    ]
)
"""Columns of a split, which has one row per image. `mask` holds COCO's uncompressed run lengths."""
DIFFERENCES = (
    "token ids are left out, because they depend on the tokenizer",
    "annotations are given by their ids; polygons, crowd flags and single boxes are only in the shards' manifests",
    "an image of several splits is in the files of each of them",
)
_COLUMNS = (
    *("ref_id", "image_id", "file_name", "height", "width"),
    *_AS_IN_MANIFEST,
    *(f"sentences.list.element.{name}" for name in ("sent_id", "raw", "sent", "words.list.element", "exists")),
    "annotations.list.element.ann_id",
    *IMAGE_COLUMNS,
)


def write(dataset: ExportedDataset, out: Path, _options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write one file `data/<split>-<number>-of-<count>.parquet` per shard, and the dataset's card.

    Args:
        dataset: The dataset to export.
        out: Folder to write to.
        progress: Called after each shard.

    Returns:
        The differences to the dataset's sources, in sentences.
    """
    (out / "data").mkdir()
    for split in dataset.splits:
        entries = dataset.built.entries_of(split)
        for number, entry in enumerate(entries):
            path = out / "data" / f"{split}-{number:05d}-of-{len(entries):05d}.parquet"
            pq.write_table(_table(dataset, entry), path, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
            progress()
    (out / "README.md").write_text(card(dataset.descriptor, dataset.splits), encoding="utf-8")
    return DIFFERENCES


def card(descriptor: Descriptor, splits: tuple[str, ...]) -> str:
    """Return the dataset's card. It names the splits for the hub, and gives users a description and the licences."""
    lines = ["---", "license: other", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    licences = descriptor.licences or ("none named by the sources",)
    lines += [
        "---",
        "",
        f"# {descriptor.dataset}",
        "",
        f"Exported by refseg {descriptor.refseg_version} from the build with digest `{descriptor.digest}`. One row per",
        "image; `refs` are its referred regions with their sentences. A mask in NumPy:",
        "`numpy.repeat(numpy.arange(len(counts)) % 2, counts).reshape(width, height).T`.",
        "",
        "Licences, as far as the sources name them:",
        "",
        *(f"- {licence}" for licence in licences),
    ]
    return "\n".join(lines) + "\n"


def _table(dataset: ExportedDataset, entry: ShardEntry) -> pa.Table:
    images: dict[str, dict[str, Any]] = {}
    for row in dataset.rows(entry, _COLUMNS):
        key = f"{row['shard']} {row['image_offset']}"
        if key not in images:
            images[key] = {
                "image": {"bytes": dataset.image(row), "path": row["file_name"]},
                **{name: row[name] for name in ("image_id", "file_name", "height", "width")},
                "refs": [],
            }
        images[key]["refs"].append({**row, "ann_ids": [annotation["ann_id"] for annotation in row["annotations"]]})
    features = {name: _feature(SCHEMA.field(name).type) for name in SCHEMA.names}
    features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.Table.from_pylist(list(images.values()), schema=SCHEMA.with_metadata(metadata))


def _feature(kind: pa.DataType) -> Any:
    """Return an Arrow type in the notation of `datasets`. A list is written as `[type]`, which releases 2 to 5 read."""
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": "float64" if pa.types.is_float64(kind) else str(kind), "_type": "Value"}
