"""What a source reader returns: refs, images and annotations as found, whatever files they came from."""

from dataclasses import dataclass
from typing import Any

from refseg.descriptor import SourceFile
from refseg.schema import DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """A dataset as its files have it: containers are checked, single records are not.

    `records.py` checks the records, so that one wrong record is one reject and not the end of the file.

    Attributes:
        spec: Which dataset and partition.
        refs: REFER's records: `ref_id, image_id, ann_id, split, sentences`; in the order of the file.
        images: By image id: COCO's image records.
        annotations: By annotation id: COCO's annotation records.
        categories: By category id: the name.
        licences: By the licence id of the image records: name and address.
        sources: The files read.
    """

    spec: DatasetSpec
    refs: list[Any]
    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    categories: dict[int, str]
    licences: dict[int, str]
    sources: tuple[SourceFile, ...]
