"""Finds the images that two datasets share, so that mixes have no leaks and evaluations report them.

Two images are the same if their bytes are equal, or if both datasets use COCO's image ids and the ids are equal. Ids
are compared, too, because a COCO image that was resized or saved again has other bytes.
"""

import pyarrow as pa
import pyarrow.compute as pc

from refseg.dataset.schema import find_dataset

IDENTITY_COLUMNS = ("dataset", "split_by", "image_id", "image_xxh3")
"""Columns of the manifest that identify the image of a row."""


def image_identities(rows: pa.Table) -> pa.Table:
    """Return the values that identify the image of each row.

    Args:
        rows: Rows with `IDENTITY_COLUMNS`.

    Returns:
        A table of `image_id`, `image_xxh3` and `is_coco` (True if the id is COCO's).
    """
    dataset = pc.binary_join_element_wise(rows["dataset"], rows["split_by"], "/")
    coco = [name for name in pc.unique(dataset).to_pylist() if find_dataset(name).is_coco]
    is_coco = pc.is_in(dataset, value_set=pa.array(coco, pa.string()))
    return rows.select(["image_id", "image_xxh3"]).append_column("is_coco", is_coco)


def find_same_images(rows: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    """Find the rows whose image is also in another table.

    Args:
        rows: Table from `image_identities`.
        others: Another table from `image_identities`.

    Returns:
        `(rows,)` booleans. True if the row's image is one of `others`.
    """
    same = pc.is_in(rows["image_xxh3"], value_set=pc.unique(others["image_xxh3"]))
    coco_ids = pc.unique(others.filter(others["is_coco"])["image_id"])
    return pc.or_(same, pc.and_(rows["is_coco"], pc.is_in(rows["image_id"], value_set=coco_ids)))


def unique_images(rows: pa.Table) -> pa.Table:
    """Return each image of a table from `image_identities` once."""
    return rows.group_by(["image_id", "image_xxh3", "is_coco"]).aggregate([])
