"""REFER's API for built datasets: a project that reads RefCOCO through `refer.py` changes one import line.

    from refseg.compat.refer import REFER          # LAVT, LISA, ReLA, CRIS, PolyFormer and their descendants
    from refseg.compat.refer import MergedREFER as REFER   # CARIS, MaskRIS, DMMI: parts of a mask are merged
    from refseg.compat.refer import G_REFER        # gRefCOCO

`data_root` is then the folder or URL that contains built datasets. Names and behaviour are those of lichengunc/refer
(`refer.py`) and henghuiding/gRefCOCO (`grefer.py`), with two exceptions. `showRef` and `showMask`, which draw with
Matplotlib and which no client calls, do not exist. `getRefIds(image_ids=...)`, which fails in refer, and
`getAnnIds(ref_ids=...)`, which ignores its argument there, return what their names say.
"""

import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg.compat.refer_records import NO_TARGET, Record, decode_segmentation
from refseg.compat.refer_source import open_refer
from refseg.errors import UsageError

logger = logging.getLogger(__name__)

Ids = Any
"""One id or several; an empty list means all."""


class _Index:
    """The common base of REFER and G_REFER: the tables, and the lookups that clients read as attributes.

    Attributes:
        data: `dataset`, and the records `refs`, `images`, `annotations`, `categories`.
        ROOT_DIR: The given root.
        DATA_DIR: Folder or URL of the built dataset.
        IMAGE_DIR: Folder of images; an image's file is written when its `file_name` is first read.
        Refs: Records by ref id, in the order of `data["refs"]`.
        Anns: Records by annotation id.
        Imgs: Records by image id.
        Cats: Names by category id.
        Sents: Sentences by their id.
    """

    def __init__(self, data_root: str | Path, dataset: str, split_by: str) -> None:
        source = open_refer(data_root, dataset, split_by)
        self.ROOT_DIR = str(data_root)
        self.DATA_DIR = source.folder
        self.IMAGE_DIR = str(source.image_folder)
        self.data: dict[str, Any] = {
            "dataset": dataset,
            "refs": source.tables.refs,
            "images": source.tables.images,
            "annotations": source.tables.annotations,
            "categories": source.tables.categories,
        }
        self.Refs: dict[int, Record] = {ref["ref_id"]: ref for ref in self.data["refs"]}
        self.Anns: dict[int, Any] = {annotation["id"]: annotation for annotation in self.data["annotations"]}
        self.Imgs: dict[int, Record] = {image["id"]: image for image in self.data["images"]}
        self.Cats: dict[int, str] = {category["id"]: category["name"] for category in self.data["categories"]}
        self.Sents: dict[int, Record] = {
            sentence["sent_id"]: sentence for ref in self.data["refs"] for sentence in ref["sentences"]
        }
        logger.info("%s: %d refs, %d sentences", source.folder, len(self.Refs), len(self.Sents))

    @cached_property
    def imgToRefs(self) -> dict[int, list[Record]]:
        """Refs by image id."""
        return _group((ref["image_id"], ref) for ref in self.data["refs"])

    @cached_property
    def imgToAnns(self) -> dict[int, list[Record]]:
        """Annotations by image id."""
        return _group((annotation["image_id"], annotation) for annotation in self.data["annotations"])

    @cached_property
    def catToRefs(self) -> dict[int, list[Record]]:
        """Refs by category id."""
        return _group(
            (number, ref) for ref in self.data["refs"] for number in dict.fromkeys(_listed(ref["category_id"]))
        )

    @cached_property
    def sentToRef(self) -> dict[int, Record]:
        """The ref of each sentence, by the sentence's id."""
        return {sentence["sent_id"]: ref for ref in self.data["refs"] for sentence in ref["sentences"]}

    @cached_property
    def sentToTokens(self) -> dict[int, list[str]]:
        """The words of each sentence, by its id."""
        return {sent_id: sentence["tokens"] for sent_id, sentence in self.Sents.items()}

    def getImgIds(self, ref_ids: Ids = ()) -> list[int]:
        """Return the ids of the refs' images, each once and in arbitrary order; without refs, those of all images."""
        wanted = _listed(ref_ids)
        return list({self.Refs[ref_id]["image_id"] for ref_id in wanted}) if wanted else list(self.Imgs)

    def getCatIds(self) -> list[int]:
        """Return the ids of all categories in the order of `data`."""
        return list(self.Cats)

    def _targets(self, ref: Record) -> list[Record]:
        """Return the annotation records of a ref; empty if it has no target."""
        return [self.Anns[ann_id] for ann_id in _listed(ref["ann_id"]) if ann_id != NO_TARGET]

    def _parts(self, annotations: Iterable[Record], image: Record) -> NDArray[np.uint8]:
        """Draw all parts of annotations, `(H, W, parts)`."""
        size = image["height"], image["width"]
        drawn = [decode_segmentation(annotation["segmentation"], *size) for annotation in annotations]
        return np.concatenate([np.zeros((*size, 0), np.uint8), *drawn], axis=2)


class REFER(_Index):
    """REFER's API for RefCOCO, RefCOCO+, RefCOCOg, RefClef and datasets in their form.

    Args:
        data_root: Folder or URL that contains built datasets, or a built dataset itself.
        dataset: Name in REFER's layout: `refcoco`, `refcoco+`, `refcocog`, ...
        splitBy: The partition: `unc`, `umd`, `google`, ...
        ref_root: CARIS's argument for the folder of annotations; if given, built datasets are searched there.
        mix: CARIS's argument for its prebuilt union of datasets, which is not supported.

    Raises:
        UsageError: If there is no such dataset below the root, or `mix` is True.
        DatasetError: If the dataset is unfinished or damaged.
        StorageError: If storage refuses or fails.
    """

    def __init__(
        self,
        data_root: str | Path,
        dataset: str = "refcoco",
        splitBy: str = "unc",
        *,
        ref_root: str | Path | None = None,
        mix: bool = False,
    ) -> None:
        if mix:
            raise UsageError(
                "REFER(mix=True): is not supported, because ids of different datasets collide in REFER's records; "
                "open each dataset by itself, or train on a mix made by `refseg mix`"
            )
        super().__init__(data_root if ref_root is None else ref_root, dataset, splitBy)

    @cached_property
    def refToAnn(self) -> dict[int, Any]:
        """The annotation of each ref by its id; a list if the ref has several or none."""
        found = ((ref_id, ref["ann_id"], self._targets(ref)) for ref_id, ref in self.Refs.items())
        return {
            ref_id: targets if isinstance(ann_id, list) or ann_id == NO_TARGET else targets[0]
            for ref_id, ann_id, targets in found
        }

    @cached_property
    def annToRef(self) -> dict[int, Record]:
        """The last ref of each annotation, by its id."""
        return {ann_id: ref for ref in self.data["refs"] for ann_id in _listed(ref["ann_id"])}

    def getRefIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str = "") -> list[int]:
        """Return the ids of the refs that match all filters, in the order of `data`.

        `test` matches all splits with "test" in their name, and `testA` all with an A in it.

        Raises:
            SystemExit: If REFER does not define the split; `refer.py` does the same.
        """
        images, categories, wanted = map(_listed, (image_ids, cat_ids, ref_ids))
        refs: Iterable[Record] = self.data["refs"]
        if images:
            refs = itertools.chain.from_iterable(self.imgToRefs[image_id] for image_id in images)
        if categories:
            refs = [ref for ref in refs if not set(_listed(ref["category_id"])).isdisjoint(categories)]
        if wanted:
            refs = [ref for ref in refs if ref["ref_id"] in set(wanted)]
        if split in ("testA", "testB", "testC"):
            refs = [ref for ref in refs if split[-1] in ref["split"]]
        elif split == "test":
            refs = [ref for ref in refs if "test" in ref["split"]]
        elif split in ("train", "val", "testAB", "testBC", "testAC"):
            refs = [ref for ref in refs if ref["split"] == split]
        elif split:
            sys.exit(f"No such split [{split}]")
        return [ref["ref_id"] for ref in refs]

    def getAnnIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = ()) -> list[int]:
        """Return the ids of the annotations that match all filters, in the order of `data`."""
        images, categories, refs = (set(_listed(ids)) for ids in (image_ids, cat_ids, ref_ids))
        of_refs = {ann_id for ref_id in refs for ann_id in _listed(self.Refs[ref_id]["ann_id"])}
        return [
            annotation["id"]
            for annotation in self.data["annotations"]
            if (not images or annotation["image_id"] in images)
            and (not categories or annotation["category_id"] in categories)
            and (not refs or annotation["id"] in of_refs)
        ]

    def loadRefs(self, ref_ids: Ids = ()) -> list[Record] | None:
        """Return records of refs. As in REFER, the result is None for NumPy integers and other unsupported types."""
        return _load(self.Refs, ref_ids)

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record] | None:
        """Return records of annotations, like `loadRefs`."""
        return _load(self.Anns, ann_ids)

    def loadImgs(self, image_ids: Ids = ()) -> list[Record] | None:
        """Return records of images, like `loadRefs`."""
        return _load(self.Imgs, image_ids)

    def loadCats(self, cat_ids: Ids = ()) -> list[str] | None:
        """Return names of categories, like `loadRefs`."""
        return _load(self.Cats, cat_ids)

    def getRefBox(self, ref_id: int) -> list[Any]:
        """Return the box of a ref's annotation (left, top, width, height in pixels); for several, a list of boxes."""
        target = self.refToAnn[ref_id]
        return [annotation["bbox"] for annotation in target] if isinstance(target, list) else list(target["bbox"])

    def getMask(self, ref: Record) -> dict[str, Any]:
        """Return the mask of a ref as REFER draws it.

        Returns:
            `mask` `(H, W)` uint8: the **number** of parts that cover a pixel, which is 2 where two parts overlap; and
            `area`: the sum of the parts' areas in pixels.
        """
        parts = self._parts(self._targets(ref), self.Imgs[ref["image_id"]])
        return {"mask": parts.sum(axis=2).astype(np.uint8), "area": int(parts.sum())}

    def getPolygon(self, ref: Record) -> dict[str, Any]:
        """Return the shapes of a ref as annotated and their area in pixels, like PolyFormer's REFER."""
        targets = self._targets(ref)
        parts = self._parts(targets, self.Imgs[ref["image_id"]])
        shapes = (target["segmentation"] for target in targets)
        listed = (shape if isinstance(shape, list) else [shape] for shape in shapes)  # the shape of a crowd is one dict
        return {"polygon": list(itertools.chain.from_iterable(listed)), "area": int(parts.sum())}


class MergedREFER(REFER):
    """REFER as CARIS, MaskRIS and DMMI have changed it: a pixel that any part covers is 1."""

    def getMask(self, ref: Record) -> dict[str, Any]:
        """Return the union of a ref's parts, `(H, W)` uint8 of 0 and 1, and its area in pixels."""
        mask = self._parts(self._targets(ref), self.Imgs[ref["image_id"]]).any(axis=2).astype(np.uint8)
        return {"mask": mask, "area": int(mask.sum())}


class G_REFER(_Index):
    """gRefCOCO's API: refs have any number of annotations; `[-1]` means none.

    Args:
        data_root: Folder or URL that contains built datasets, or a built dataset itself.
        dataset: Name in gRefCOCO's layout, `grefcoco`.
        splitBy: The partition, `unc`.

    Raises:
        UsageError: If there is no such dataset below the root.
        DatasetError: If the dataset is unfinished or damaged.
        StorageError: If storage refuses or fails.
    """

    def __init__(self, data_root: str | Path, dataset: str = "grefcoco", splitBy: str = "unc") -> None:
        super().__init__(data_root, dataset, splitBy)
        self.Anns[NO_TARGET] = None
        self.availableSplits = list(dict.fromkeys(ref["split"] for ref in self.data["refs"]))

    @cached_property
    def refToAnn(self) -> dict[int, list[Record | None]]:
        """The annotations of each ref by its id; `[None]` if it has no target."""
        return {ref_id: self.loadAnns(ref["ann_id"]) for ref_id, ref in self.Refs.items()}

    @cached_property
    def annToRef(self) -> dict[int, list[Record]]:
        """The refs of each annotation by its id; refs without a target have the key -1."""
        return _group((ann_id, ref) for ref in self.data["refs"] for ann_id in _listed(ref["ann_id"]))

    def getRefIds(self, image_ids: Ids = (), cat_ids: Ids = (), split: str | Sequence[str] = ()) -> list[int]:
        """Return the ids of the refs that match all filters, in the order of `data`.

        Raises:
            ValueError: If a split does not exist.
        """
        images, categories, splits = map(_listed, (image_ids, cat_ids, split))
        for name in splits:
            if name not in self.availableSplits:
                raise ValueError(f"Invalid split name: {name}")
        refs: Iterable[Record] = self.data["refs"]
        if images:
            refs = itertools.chain.from_iterable(self.imgToRefs[image_id] for image_id in images)
        return [
            ref["ref_id"]
            for ref in refs
            if (not categories or not set(_listed(ref["category_id"])).isdisjoint(categories))
            and (not splits or ref["split"] in splits)
        ]

    def getAnnIds(self, image_ids: Ids = (), ref_ids: Ids = ()) -> list[int]:
        """Return the ids of annotations of images and refs, in the order of `data`; `[-1]` for refs without a target.

        `grefer.py` returns `[]` in the last case, so that its `getMaskByRef(ref_id=...)` gives no mask.
        """
        images, refs = map(_listed, (image_ids, ref_ids))
        of_refs = {ann_id for ref_id in refs for ann_id in _listed(self.Refs[ref_id]["ann_id"])}
        if of_refs == {NO_TARGET} and not images:
            return [NO_TARGET]
        return [
            annotation["id"]
            for annotation in self.data["annotations"]
            if (not images or annotation["image_id"] in images) and (not refs or annotation["id"] in of_refs)
        ]

    def loadRefs(self, ref_ids: Ids = ()) -> list[Record]:
        """Return records of refs for one id or several."""
        return [self.Refs[ref_id] for ref_id in _listed(ref_ids)]

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record | None]:
        """Return records of annotations for one id or several; None for -1."""
        return [self.Anns[ann_id] for ann_id in _listed(int(ann_ids) if isinstance(ann_ids, str) else ann_ids)]

    def loadImgs(self, image_ids: Ids = ()) -> list[Record]:
        """Return records of images for one id or several."""
        return [self.Imgs[image_id] for image_id in _listed(image_ids)]

    def loadCats(self, cat_ids: Ids = ()) -> list[str]:
        """Return names of categories for one id or several."""
        return [self.Cats[category_id] for category_id in _listed(cat_ids)]

    def getRefBox(self, ref_id: int) -> list[list[float]]:
        """Return the boxes of a ref's annotations (left, top, width, height in pixels); empty without a target."""
        return [annotation["bbox"] for annotation in self._targets(self.Refs[ref_id])]

    def getMask(self, ann: Record | None) -> dict[str, Any] | None:
        """Return the mask of one annotation, like `REFER.getMask`; None for None.

        Raises:
            ValueError: If the annotation is a crowd.
        """
        if not ann:
            return None
        if ann["iscrowd"]:
            raise ValueError("Crowd object")
        parts = self._parts([ann], self.Imgs[ann["image_id"]])
        return {"mask": parts.sum(axis=2).astype(np.uint8), "area": int(parts.sum())}

    def getMaskByRef(self, ref: Record | None = None, ref_id: int | None = None, merge: bool = False) -> Any:
        """Return the mask of a ref. As in `grefer.py`, crowds among its annotations are left out.

        Returns:
            `{"mask", "empty": True}` if there is no target. Otherwise, with `merge`, the union and `"empty": False`;
            without it, a list of `getMask` of each annotation.

        Raises:
            ValueError: If neither `ref` nor `ref_id` is given.
        """
        if ref is None:
            if ref_id is None:
                raise ValueError("found neither ref nor ref_id, expected one of them")
            ref = self.Refs[ref_id]
        image = self.Imgs[ref["image_id"]]
        targets = self._targets(ref)
        if not targets:
            return {"mask": np.zeros((image["height"], image["width"]), np.uint8), "empty": True}
        drawn = [annotation for annotation in targets if not annotation["iscrowd"]]
        if merge:
            return {"mask": self._parts(drawn, image).any(axis=2).astype(np.uint8), "empty": False}
        return [self.getMask(annotation) for annotation in drawn]


def _listed(ids: Ids) -> list[Any]:
    """Return one id or several as a list."""
    return [ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else list(ids)


def _load(table: dict[int, Any], ids: Ids) -> list[Any] | None:
    if isinstance(ids, Iterable) and not isinstance(ids, str):
        return [table[key] for key in ids]
    return [table[ids]] if type(ids) is int else None


def _group(pairs: Iterable[tuple[int, Record]]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for key, record in pairs:
        groups.setdefault(key, []).append(record)
    return groups
