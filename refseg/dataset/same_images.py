"""Which images two datasets share: the rule by which mixes are kept free of leaks and models are checked for them.

Two images are the same if their bytes are, or if both datasets have COCO's ids and these are equal: the bytes of one
COCO image differ between copies that were resized or saved again.
"""

import pyarrow as pa
import pyarrow.compute as pc

from refseg.dataset.schema import find_dataset

IDENTITY_COLUMNS = ("dataset", "split_by", "image_id", "image_xxh3")
"""Columns of the manifest that tell which image a row is of."""


def image_identities(rows: pa.Table) -> pa.Table:
    """What tells the image of each row.

    Args:
        rows: With `IDENTITY_COLUMNS`.

    Returns:
        `image_id`, `image_xxh3`, and `is_coco`: True if the id is COCO's.
    """
    dataset = pc.binary_join_element_wise(rows["dataset"], rows["split_by"], "/")
    coco = [name for name in pc.unique(dataset).to_pylist() if find_dataset(name).is_coco]
    is_coco = pc.is_in(dataset, value_set=pa.array(coco, pa.string()))
    return rows.select(["image_id", "image_xxh3"]).append_column("is_coco", is_coco)


def find_same_images(rows: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    """Say of each row whether its image is one of the others.

    Args:
        rows: From `image_identities`.
        others: The same.

    Returns:
        `(rows,)` booleans.
    """
    same = pc.is_in(rows["image_xxh3"], value_set=pc.unique(others["image_xxh3"]))
    coco_ids = pc.unique(others.filter(others["is_coco"])["image_id"])
    return pc.or_(same, pc.and_(rows["is_coco"], pc.is_in(rows["image_id"], value_set=coco_ids)))


def unique_images(rows: pa.Table) -> pa.Table:
    """The images of rows from `image_identities`, each once."""
    return rows.group_by(["image_id", "image_xxh3", "is_coco"]).aggregate([])
