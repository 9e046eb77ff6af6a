"""Writes a page that shows a built dataset. The page opens from the file system without a server."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from refseg.addresses import local_path
from refseg.apps.browse_files import PageFiles, open_page
from refseg.apps.browse_pictures import note_jpeg, small_jpeg
from refseg.apps.browse_predictions import Predictions, read_predictions
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.row_images import IMAGE_COLUMNS, RowImages
from refseg.errors import ImageError, UsageError

logger = logging.getLogger(__name__)

ONE_FILE_IMAGES = 500
"""Largest number of images in a page that is one file, which is then about 25 MB."""

_IMAGES_PER_PART = 16  # masks and ids, which are read when one of these images is shown
_REFS_PER_PART = 4000  # the input of filters, which is read part by part when the page opens
_NO_TARGET, _BOX_ONLY, _NOTHING = 1, 2, 4
_COLUMNS = [
    "dataset", "split_by", "split", "ref_id", "category", "box_xywh", "area", "no_target", "box_only", "mask.counts",
    *(f"sentences.list.element.{name}" for name in ("sent_id", "raw", "sent", "exists")),
    "annotations.list.element.ann_id", *IMAGE_COLUMNS,
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowsePage:
    """The written page, with counts of its contents.

    Attributes:
        path: The file to open.
        num_images: Number of images in the page.
        num_dataset_images: Number of images in the chosen splits.
        num_refs: Number of refs in the page.
        num_sentences: Number of sentences in the page.
        num_rejects: Number of rejects in the page. Rejects of the chosen splits and rejects with unknown split are
            counted.
        num_not_shown: Number of images whose picture cannot be shown. The page marks these images, and the log gives
            the reason.
    """

    path: Path
    num_images: int
    num_dataset_images: int
    num_refs: int
    num_sentences: int
    num_rejects: int
    num_not_shown: int


def write_browse_page(
    folder: Path | str,
    out: Path | None = None,
    *,
    splits: Sequence[str] = (),
    num_images: int | None = None,
    predictions: Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> BrowsePage:
    """Write a page that shows a dataset. The same dataset gives the same bytes.

    Args:
        folder: The dataset's folder, or its URL.
        out: If the name ends in .html, one file is written, for up to a few hundred images. Any other name is a folder
            with index.html, for any number of images. An earlier page is replaced. The default is the folder
            browse-DATASET.
        splits: Splits to show. The default is all splits or, with predictions, the predicted splits.
        num_images: Maximum number of images, spread evenly over the splits. The default is all images.
        predictions: Folder of a run that was evaluated with `refseg evaluate --save-predictions`. The predicted masks
            are shown beside the targets.
        progress: Called after each shard with (images done, total images).

    Raises:
        DatasetError: If the dataset is unfinished, damaged or changed.
        ResultsError: If the run has no results, or the results cannot be read.
        StorageError: If remote storage refuses access or fails.
        UsageError: If a split does not exist. If there are too many images for one file. If the run has no predicted
            masks for this dataset. If `out` exists and is not a browse page. If `out` is inside a dataset.
    """
    dataset = BuiltDataset.open(folder, splits or None)
    predicted = None if predictions is None else read_predictions(predictions, dataset.descriptor, splits)
    if predicted is not None and not splits:
        splits = predicted.splits
        dataset = BuiltDataset.open(folder, splits)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", dataset.descriptor.dataset)
    out = Path(f"browse-{name}") if out is None else local_path(out)
    total = sum(entry.num_images for entry in dataset.entries)
    shown = total if num_images is None else min(num_images, total)
    if out.suffix == ".html" and shown > ONE_FILE_IMAGES:
        raise UsageError(
            f"--out: {out} would hold {shown:,} images, expected at most {ONE_FILE_IMAGES} in one file; "
            f"give a folder (a name without .html), or --images {ONE_FILE_IMAGES}"
        )
    with open_page(out) as files, ThreadPoolExecutor() as pool:
        writer = _Writer(files=files, splits=dataset.splits, predictions=predicted)
        first = 0
        for entry in dataset.entries:
            # Image p of all is shown where p * shown / total passes a whole number, which spreads them evenly: of 5
            # images, 2 are shown where 0, 0.4, 0.8, 1.2, 1.6, 2 passes 1 and 2: images 2 and 4.
            chosen = {
                i for i in range(entry.num_images) if (first + i + 1) * shown // total > (first + i) * shown // total
            }
            first += entry.num_images
            if chosen:
                for image in _read_images(dataset, entry, chosen, pool):
                    writer.add(image)
            if progress:
                progress(writer.num_images, shown)
        rejects = [
            reject
            for reject in dataset.rejects().to_pylist()
            if not splits or not reject["split"] or reject["split"] in splits
        ]
        writer.finish(dataset.descriptor, rejects, total)
    return BrowsePage(
        path=out if files.in_one_file else out / "index.html",
        num_images=writer.num_images,
        num_dataset_images=total,
        num_refs=writer.num_refs,
        num_sentences=writer.num_sentences,
        num_rejects=len(rejects),
        num_not_shown=writer.num_not_shown,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShownImage:
    """An image with its manifest rows and the JPEG for the page.

    If the JPEG is only a note, `fault` gives the reason.
    """

    rows: list[dict[str, Any]]
    jpeg: bytes
    fault: str = ""


@dataclass(slots=True, kw_only=True)
class _Writer:
    """Collects images and refs, and writes a part of the page as soon as it is complete."""

    files: PageFiles
    splits: tuple[str, ...]
    predictions: Predictions | None
    num_images: int = 0
    num_refs: int = 0
    num_sentences: int = 0
    num_not_shown: int = 0
    datasets: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    per_split: Counter[str] = field(default_factory=Counter)
    images: list[dict[str, Any]] = field(default_factory=list)
    refs: list[list[Any]] = field(default_factory=list)
    num_image_parts: int = 0
    num_ref_parts: int = 0

    def add(self, image: _ShownImage) -> None:
        """Add an image with all its refs."""
        number, first = self.num_images, image.rows[0]
        self.num_images += 1
        if image.fault:
            self.num_not_shown += 1
            logger.warning("%s", image.fault)
        details: dict[str, Any] = {
            "id": first["image_id"], "file": first["file_name"], "height": first["height"], "width": first["width"],
            "first": self.num_refs, "refs": [self._details(row) for row in image.rows],
        }  # fmt: skip
        if picture := self.files.add_picture(number, image.jpeg):
            details["picture"] = picture
        self.images.append(details)
        for row in image.rows:
            self.refs.append(self._summary(row, number))
            self.per_split[row["split"]] += 1
            self.num_refs += 1
            self.num_sentences += len(row["sentences"])
            if len(self.refs) == _REFS_PER_PART:
                self._end_refs()
        if len(self.images) == _IMAGES_PER_PART:
            self._end_images()

    def finish(self, descriptor: Descriptor, rejects: list[dict[str, Any]], total: int) -> None:
        """Write the last, incomplete parts, the rejects and the page itself."""
        if self.refs:
            self._end_refs()
        if self.images:
            self._end_images()
        self.files.add_part(
            "rejects", [[r["split"] or "", r["ref_id"], r["image_id"], r["reason"], r["message"]] for r in rejects]
        )
        self.files.finish(
            {
                "dataset": descriptor.dataset,
                "digest": descriptor.digest,
                "maskRule": descriptor.mask_rule,
                "licences": list(descriptor.licences),
                "splits": [[split, self.per_split[split]] for split in self.splits],
                "datasets": list(self.datasets),
                "categories": list(self.categories),
                "numImages": self.num_images,
                "numDatasetImages": total,
                "numRefs": self.num_refs,
                "numSentences": self.num_sentences,
                "numRejects": len(rejects),
                "rejectReasons": sorted(Counter(reject["reason"] for reject in rejects).items()),
                "numRefParts": self.num_ref_parts,
                "imagesPerPart": _IMAGES_PER_PART,
                "predictions": self.predictions and self.predictions.subject,
                "predictionSize": self.predictions and self.predictions.size,
            }
        )

    def _summary(self, row: dict[str, Any], image: int) -> list[Any]:
        """Return the values that the filters of the page use.

        Returns:
            Positions of image, split, dataset and category in the page's lists, the fraction of the image that the
            target covers, flags, the sentences, and the positions of sentences that name nothing. With predictions, the
            IoU of each sentence is added.
        """
        dataset = self.datasets.setdefault(f"{row['dataset']}/{row['split_by']}", len(self.datasets))
        category = self.categories.setdefault(row["category"], len(self.categories))
        nothing = [number for number, sentence in enumerate(row["sentences"]) if not sentence["exists"]]
        flags = _NO_TARGET * row["no_target"] + _BOX_ONLY * row["box_only"] + _NOTHING * bool(nothing)
        part = float(f"{row['area'] / (row['height'] * row['width']):.4g}")
        sentences = [sentence["sent"] for sentence in row["sentences"]]
        found = [image, self.splits.index(row["split"]), dataset, category, part, flags, sentences, nothing]
        if self.predictions is None:
            return found
        predicted = self.predictions.of_row(row) or []
        return [*found, [None if one is None else one[0] for one in predicted]]

    def _details(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what the page shows of a ref in addition to its sentences."""
        sentences = row["sentences"]
        details = {
            "id": row["ref_id"],
            "area": row["area"],
            "box": [round(side, 2) for side in row["box_xywh"]],
            "annotations": [annotation["ann_id"] for annotation in row["annotations"]],
            "counts": row["mask"]["counts"],
            # The annotator's original text, where it differs from the sentence.
            "raw": [sentence["raw"] if sentence["raw"] != sentence["sent"] else None for sentence in sentences],
        }
        if self.predictions is not None:
            details["predictions"] = self.predictions.of_row(row)
        return details

    def _end_refs(self) -> None:
        self.files.add_part(f"refs-{self.num_ref_parts}", self.refs)
        self.num_ref_parts += 1
        self.refs = []

    def _end_images(self) -> None:
        self.files.add_part(f"images-{self.num_image_parts}", self.images)
        self.num_image_parts += 1
        self.images = []


def _read_images(
    dataset: BuiltDataset, entry: ShardEntry, chosen: set[int], pool: ThreadPoolExecutor
) -> Iterator[_ShownImage]:
    """Read the images of a shard at the given positions of its manifest, in order."""
    rows = dataset.read(_COLUMNS, [entry]).to_pylist()
    groups = groupby(rows, key=lambda row: (row["shard"], row["image_offset"]))
    shown = [list(of_image) for position, (_, of_image) in enumerate(groups) if position in chosen]
    images = RowImages(dataset, (of_image[0]["shard"] for of_image in shown))

    def show(of_image: list[dict[str, Any]]) -> _ShownImage:
        row = of_image[0]
        jpeg = images.read(row)
        size = (row["height"], row["width"])
        try:
            images.check_size(row, jpeg)
            return _ShownImage(rows=of_image, jpeg=small_jpeg(jpeg, size))
        except ImageError as error:
            return _ShownImage(rows=of_image, jpeg=note_jpeg(size), fault=f"{images.where(row)}: is not shown: {error}")

    yield from pool.map(show, shown)
