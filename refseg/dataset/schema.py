"""The types that every stage shares: a record, a manifest row, and the table of known datasets.

A manifest row is a `RefRecord` with the `ImageLocation` of its picture. `MANIFEST_SCHEMA` defines the row in
Parquet. `manifests/COLUMNS.md` explains each column to readers who do not use this package.
"""

import re
from dataclasses import dataclass

import pyarrow as pa

from refseg.errors import AnnotationError, UsageError
from refseg.wording import did_you_mean

FORMAT_VERSION = 3
"""Version of the folder format. It increases whenever an older reader could misread a newer folder."""

MAX_SIDE = 65_500
"""Largest height or width of a picture in pixels: libjpeg's limit."""

MAX_PIXELS = 2**28
"""Largest number of pixels of a picture (16,384 x 16,384). Decoding a larger one, or its mask, takes gigabytes."""

IMAGE_KIND = "jpg"
"""The only kind of picture that this release writes and reads."""

MASK_RULES = ("union", "legacy")
"""How the parts of a target are joined. `union`: pixels that any part covers. `legacy`: pixels that exactly one part
covers, which is what LAVT and its forks compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """One dataset with its partition.

    Attributes:
        dataset: Name without the partition, for example `refcoco`.
        split_by: Name of the partition, for example `unc`. It is part of every dataset id and has no default.
        folder: Name of the folder in REFER's layout, for example `refcoco+`.
        splits: Splits of the partition in canonical order; `train` is the first if it exists. Empty for `custom`
            and `refer`, whose source names its splits.
        is_coco: True if image ids are COCO's, so that an id means the same picture in every such dataset.
        refs_prefix: Prefix of the refs file in REFER's layout: `refs` for `refs(unc).p`, `grefs` for `grefs(unc).json`.
    """

    dataset: str
    split_by: str
    folder: str
    splits: tuple[str, ...]
    is_coco: bool = True
    refs_prefix: str = "refs"

    @property
    def dataset_id(self) -> str:
        """Name with the partition, for example `refcoco/unc`."""
        return f"{self.dataset}/{self.split_by}"


_UNC = ("train", "val", "testA", "testB")
_THREE = ("train", "val", "test")

DATASETS: dict[str, DatasetSpec] = {
    spec.dataset_id: spec
    for spec in (
        DatasetSpec(dataset="refcoco", split_by="unc", folder="refcoco", splits=_UNC),
        DatasetSpec(dataset="refcoco", split_by="google", folder="refcoco", splits=_THREE),
        DatasetSpec(dataset="refcocoplus", split_by="unc", folder="refcoco+", splits=_UNC),
        DatasetSpec(dataset="refcocog", split_by="umd", folder="refcocog", splits=_THREE),
        DatasetSpec(dataset="refcocog", split_by="google", folder="refcocog", splits=("train", "val")),
        # Targets are one object, several or none; some annotations are crowds.
        DatasetSpec(dataset="grefcoco", split_by="unc", folder="grefcoco", splits=_UNC, refs_prefix="grefs"),
        # Photographs of SAIAPR TC-12.
        DatasetSpec(dataset="refclef", split_by="unc", folder="refclef", splits=(*_UNC, "testC"), is_coco=False),
        DatasetSpec(dataset="refclef", split_by="berkeley", folder="refclef", splits=_THREE, is_coco=False),
        # Ref-ZOM: targets of zero, one or many objects, on images of COCO's train2014 and val2014.
        DatasetSpec(dataset="refzom", split_by="final", folder="ref-zom", splits=_THREE),
        # R-RefCOCO: RefCOCO plus altered sentences whose target is absent. The authors publish one folder per dataset.
        # Only the file's name says which partition of RefCOCOg it is.
        DatasetSpec(dataset="rrefcoco", split_by="unc", folder="rrefcoco", splits=_UNC),
        DatasetSpec(dataset="rrefcocoplus", split_by="unc", folder="rrefcoco+", splits=_UNC),
        DatasetSpec(dataset="rrefcocog", split_by="unc", folder="rrefcocog", splits=_UNC),
        DatasetSpec(dataset="rrefcocog", split_by="umd", folder="rrefcocog", splits=_THREE),
        # The bundled pictures and the toy generator, in the same source format.
        DatasetSpec(dataset="sample", split_by="ccby", folder="sample", splits=("test",)),
        DatasetSpec(dataset="toy", split_by="refseg", folder="toy", splits=_UNC),
    )
}

CUSTOM = "custom"
"""Dataset of users' own tables; the partition is the name they give it: `custom/my-photos`."""


ANY_REFER = "refer"
"""Dataset of any files in REFER's layout; the partition is the name of their folder: `refer/rrsisd`."""

_NAMED_BY_USERS = (CUSTOM, ANY_REFER)


def find_dataset(dataset_id: str) -> DatasetSpec:
    """Return a dataset's specification by its id.

    Args:
        dataset_id: Name and partition, for example `refcoco/unc`, `custom/<name>` for a user's own table or
            `refer/<name>` for any files in REFER's layout.
            `refcoco+/unc` is accepted for `refcocoplus/unc`.

    Raises:
        UsageError: If the dataset is unknown. If only the partition is missing, the message lists the partitions.
    """
    dataset, _, split_by = dataset_id.replace("refcoco+", "refcocoplus").partition("/")
    if dataset in _NAMED_BY_USERS:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split_by):
            raise UsageError(
                f"unknown dataset {dataset_id!r}; expected {dataset}/<name>, a name of letters, digits, - and _"
            )
        return DatasetSpec(dataset=dataset, split_by=split_by, folder=split_by, splits=(), is_coco=False)
    spec = DATASETS.get(f"{dataset}/{split_by}")
    if spec is None:
        known = [*DATASETS, *(f"{name}/{split_by or '<name>'}" for name in _NAMED_BY_USERS)]
        folded = dataset.casefold().replace("refcoco+", "refcocoplus")
        partitions = [name for name in DATASETS if name.split("/")[0] == folded]
        raise UsageError(
            f"unknown dataset {dataset_id!r}; expected one of {', '.join(partitions or known)} "
            f"(the partition is part of the name){did_you_mean(f'{folded}/{split_by}', partitions or known)}"
        )
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rle:
    """A binary mask as COCO's uncompressed run lengths.

    Attributes:
        size: `(height, width)` in pixels.
        counts: Run lengths in column order (top to bottom, then left to right). Runs alternate between 0 and 1 and
            begin with 0: the mask `[[0, 1], [0, 1]]` has the counts `(2, 2)`.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One expression.

    Attributes:
        sent_id: Id in the source, unique within a split.
        raw: Text as the annotator typed it.
        sent: Text as the dataset's authors cleaned it; models read this by default.
        words: The authors' word list of `sent`.
        token_ids: CLIP BPE ids of `sent` with SOS and EOS, neither truncated nor padded.
        exists: True if the sentence names the ref's target. False if it names nothing in the image, so that its target
            is empty even if other sentences of the ref have one (R-RefCOCO).
    """

    sent_id: int
    raw: str
    sent: str
    words: tuple[str, ...]
    token_ids: tuple[int, ...]
    exists: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One COCO annotation with the source's values.

    `polygons` or `rles` holds the shape; both are empty if only a box is known.

    Attributes:
        ann_id: COCO annotation id.
        category_id: COCO category id (1 to 90).
        iscrowd: COCO's crowd flag.
        area: COCO's `area` field, square pixels.
        box_xywh: COCO's box: left, top, width, height in pixels.
        polygons: Flat `x, y, x, y, ...` lists in pixels, one per part.
        rles: Run lengths, one per part (a crowd annotation has one; RefClef has several).
    """

    ann_id: int
    category_id: int
    iscrowd: bool
    area: float
    box_xywh: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...]
    rles: tuple[Rle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefRecord:
    """One referred region of one image and every sentence that names it: a row of the manifest.

    Attributes:
        dataset: Name without the partition, for example `refcoco`.
        split_by: The partition, for example `unc`.
        split: Name of the split, for example `testA`.
        ref_id: Id in the source, unique within a dataset and its `split_by`.
        image_id: COCO image id.
        file_name: File name of the image in `instances.json`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        category: COCO category name. Empty if there is no target or the source has no categories.
        box_xywh: COCO's box of the target in pixels; for several annotations, the box around their boxes.
        area: Number of pixels of `mask`.
        no_target: True if the sentences name nothing in this image.
        box_only: True if an annotation has only a box and no shape, so that `mask` holds the filled box.
        mask: Mask of the target at the image's size, by the dataset's mask rule.
        sentences: Sentences as annotated, at least one.
        annotations: The COCO annotations whose shapes form the mask. Empty if `no_target`.
        source_rank: Position of the ref in its source, from 0.
        ignore: Pixels that losses and scores leave out. None if every pixel counts.

    Raises:
        AnnotationError: If there is no sentence, or if `no_target` or `box_only` contradict annotations or sentences.
    """

    dataset: str
    split_by: str
    split: str
    ref_id: int
    image_id: int
    file_name: str
    height: int
    width: int
    category: str
    box_xywh: tuple[float, float, float, float]
    area: int
    no_target: bool
    box_only: bool = False
    mask: Rle
    sentences: tuple[Sentence, ...]
    annotations: tuple[Annotation, ...]
    source_rank: int = 0
    ignore: Rle | None = None

    def __post_init__(self) -> None:
        if not self.sentences:
            raise AnnotationError(f"{self.where}: found no sentence, expected at least one")
        if self.no_target != (not self.annotations):
            raise AnnotationError(
                f"{self.where}: no_target is {self.no_target} but there are {len(self.annotations)} annotations"
            )
        if self.no_target and any(sentence.exists for sentence in self.sentences):
            raise AnnotationError(f"{self.where}: no_target is True but a sentence exists, expected none")
        if self.box_only != any(not (annotation.polygons or annotation.rles) for annotation in self.annotations):
            raise AnnotationError(
                f"{self.where}: box_only is {self.box_only}, expected {not self.box_only}: it must be True if and only "
                "if an annotation has neither polygons nor run lengths"
            )

    @property
    def where(self) -> str:
        """Dataset, split and ref id, for messages."""
        return f"{self.dataset}/{self.split_by} {self.split} ref {self.ref_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLocation:
    """The tar that holds an image, with its offset, length and hashes.

    Attributes:
        shard: File name of the tar beside the manifest, or `<pool>/<file name>` for a tar of an image pool.
        image_offset: Offset of the first byte of the JPEG in the tar.
        image_bytes: Length of the JPEG in bytes.
        image_xxh3: XXH3-64 of the JPEG, 16 hexadecimal digits.
        sample_bytes: Length of the whole sample in the tar. It consists of header, JPEG, header and JSON, with padding.
            The sample starts one block (512 bytes) before `image_offset`.
        sample_xxh3: XXH3-64 of the whole sample. It is checked whenever the image is read.
        image_kind: File suffix of the image in the tar, such as `jpg`. It gives the encoding.
    """

    shard: str
    image_offset: int
    image_bytes: int
    image_xxh3: str
    sample_bytes: int
    sample_xxh3: str
    image_kind: str = IMAGE_KIND


_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.list_(pa.uint32()))])
_BOX = pa.list_(pa.float64())

MANIFEST_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("split_by", pa.string()),
        ("split", pa.string()),
        ("ref_id", pa.int64()),
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("category", pa.string()),
        ("box_xywh", _BOX),
        ("area", pa.int64()),
        ("no_target", pa.bool_()),
        ("box_only", pa.bool_()),
        ("mask", _RLE),
        (
            "sentences",
            pa.list_(
                pa.struct(
                    [
                        ("sent_id", pa.int64()),
                        ("raw", pa.string()),
                        ("sent", pa.string()),
                        ("words", pa.list_(pa.string())),
                        ("token_ids", pa.list_(pa.uint16())),
                        ("exists", pa.bool_()),
                    ]
                )
            ),
        ),
        (
            "annotations",
            pa.list_(
                pa.struct(
                    [
                        ("ann_id", pa.int64()),
                        ("category_id", pa.int32()),
                        ("iscrowd", pa.bool_()),
                        ("area", pa.float64()),
                        ("box_xywh", _BOX),
                        (
                            "segmentation",
                            pa.struct([("polygons", pa.list_(pa.list_(pa.float64()))), ("rles", pa.list_(_RLE))]),
                        ),
                    ]
                )
            ),
        ),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
        ("image_xxh3", pa.string()),
        ("sample_bytes", pa.int64()),
        ("sample_xxh3", pa.string()),
        ("source_rank", pa.int64()),
        ("image_kind", pa.string()),
        ("ignore", _RLE),
    ]
)
"""One row per ref. Rows of one image are adjacent and follow the order of the images in the tar."""

NOT_DIGESTED = {"source_rank": None, "image_kind": IMAGE_KIND, "ignore": None}
"""Columns that are left out of the digest: `source_rank` always, each other one if it has the value given here."""
