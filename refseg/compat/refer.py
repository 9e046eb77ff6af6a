"""REFER's own API over built shards: a project that reads RefCOCO through `refer.py` changes one import line.

    from refseg.compat.refer import REFER          # LAVT, LISA, ReLA, CRIS, PolyFormer and their descendants
    from refseg.compat.refer import MergedREFER as REFER   # CARIS, MaskRIS, DMMI: parts of a mask are merged
    from refseg.compat.refer import G_REFER        # gRefCOCO

`data_root` is then the folder or URL that holds built datasets. Names and habits are those of lichengunc/refer
(`refer.py`) and henghuiding/gRefCOCO (`grefer.py`), as their clients use them; `showRef` and `showMask`, which draw
with Matplotlib and which no client calls, are left out. Two of refer's answers that fail or ignore an argument
(`getRefIds(image_ids=...)`, `getAnnIds(ref_ids=...)`) are given as their names say.
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
"""One id, or several; an empty list stands for all."""


class _Index:
    """What REFER and G_REFER have in common: the tables, and the lookups that clients read as attributes.

    Attributes:
        data: `dataset`, and the records `refs`, `images`, `annotations`, `categories`.
        ROOT_DIR: The root given.
        DATA_DIR: The built dataset.
        IMAGE_DIR: Folder whose images are there once their `file_name` is read.
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
        """Ids of the images of refs, each once, in no order; of all images for no refs."""
        wanted = _listed(ref_ids)
        return list({self.Refs[ref_id]["image_id"] for ref_id in wanted}) if wanted else list(self.Imgs)

    def getCatIds(self) -> list[int]:
        """Ids of all categories, in the order of `data`."""
        return list(self.Cats)

    def _targets(self, ref: Record) -> list[Record]:
        """Annotation records of a ref; none for no target."""
        return [self.Anns[ann_id] for ann_id in _listed(ref["ann_id"]) if ann_id != NO_TARGET]

    def _parts(self, annotations: Iterable[Record], image: Record) -> NDArray[np.uint8]:
        """All parts of annotations, `(H, W, parts)`."""
        size = image["height"], image["width"]
        drawn = [decode_segmentation(annotation["segmentation"], *size) for annotation in annotations]
        return np.concatenate([np.zeros((*size, 0), np.uint8), *drawn], axis=2)


class REFER(_Index):
    """RefCOCO, RefCOCO+, RefCOCOg, RefClef and what has their form.

    Args:
        data_root: Folder or URL with built datasets, or a built dataset itself.
        dataset: As in REFER's layout: `refcoco`, `refcoco+`, `refcocog`, ...
        splitBy: The partition: `unc`, `umd`, `google`, ...
        ref_root: CARIS's name for where annotations are; if given, built datasets are looked for there.
        mix: CARIS's prebuilt union, which is not served.

    Raises:
        UsageError: If there is no such dataset below the root, or `mix` is asked for.
        DatasetError: If it is unfinished or damaged.
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
                "REFER(mix=True): ids of different datasets collide in REFER's form, so a mix has none; "
                "open each dataset, or train on a mix made by `refseg mix`"
            )
        super().__init__(data_root if ref_root is None else ref_root, dataset, splitBy)

    @cached_property
    def refToAnn(self) -> dict[int, Any]:
        """The annotation of each ref by its id; a list where a ref has several or none."""
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
        """Ids of the refs that all filters let through, in the order of `data`.

        `test` is any split with "test" in its name, `testA` any with an A in it.

        Raises:
            SystemExit: If REFER knows no such split.
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
        """Ids of the annotations that all filters let through, in the order of `data`."""
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
        """Records of refs; None for anything but a list or an int, NumPy's integers included, as in REFER."""
        return _load(self.Refs, ref_ids)

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record] | None:
        """Records of annotations, as `loadRefs`."""
        return _load(self.Anns, ann_ids)

    def loadImgs(self, image_ids: Ids = ()) -> list[Record] | None:
        """Records of images, as `loadRefs`."""
        return _load(self.Imgs, image_ids)

    def loadCats(self, cat_ids: Ids = ()) -> list[str] | None:
        """Names of categories, as `loadRefs`."""
        return _load(self.Cats, cat_ids)

    def getRefBox(self, ref_id: int) -> list[Any]:
        """The box of a ref's annotation: left, top, width, height in pixels; of several annotations a list of them."""
        target = self.refToAnn[ref_id]
        return [annotation["bbox"] for annotation in target] if isinstance(target, list) else list(target["bbox"])

    def getMask(self, ref: Record) -> dict[str, Any]:
        """The mask of a ref as REFER draws it.

        Returns:
            `mask` `(H, W)` uint8: the **number** of parts that cover a pixel, so 2 where two of them overlap; and
            `area`, the sum of the parts' areas in pixels.
        """
        parts = self._parts(self._targets(ref), self.Imgs[ref["image_id"]])
        return {"mask": parts.sum(axis=2).astype(np.uint8), "area": int(parts.sum())}

    def getPolygon(self, ref: Record) -> dict[str, Any]:
        """The shapes of a ref as annotated and their area in pixels, as PolyFormer's REFER gives them."""
        targets = self._targets(ref)
        parts = self._parts(targets, self.Imgs[ref["image_id"]])
        shapes = (target["segmentation"] for target in targets)
        listed = (shape if isinstance(shape, list) else [shape] for shape in shapes)  # a crowd's is one dict
        return {"polygon": list(itertools.chain.from_iterable(listed)), "area": int(parts.sum())}


class MergedREFER(REFER):
    """REFER as CARIS, MaskRIS and DMMI have changed it: a pixel of any part is 1."""

    def getMask(self, ref: Record) -> dict[str, Any]:
        """The union of a ref's parts, `(H, W)` uint8 of 0 and 1, and its area in pixels."""
        mask = self._parts(self._targets(ref), self.Imgs[ref["image_id"]]).any(axis=2).astype(np.uint8)
        return {"mask": mask, "area": int(mask.sum())}


class G_REFER(_Index):
    """gRefCOCO: refs with any number of annotations; `[-1]` stands for none.

    Args:
        data_root: Folder or URL with built datasets, or a built dataset itself.
        dataset: `grefcoco`.
        splitBy: `unc`.

    Raises:
        UsageError: If there is no such dataset below the root.
        DatasetError: If it is unfinished or damaged.
    """

    def __init__(self, data_root: str | Path, dataset: str = "grefcoco", splitBy: str = "unc") -> None:
        super().__init__(data_root, dataset, splitBy)
        self.Anns[NO_TARGET] = None
        self.availableSplits = list(dict.fromkeys(ref["split"] for ref in self.data["refs"]))

    @cached_property
    def refToAnn(self) -> dict[int, list[Record | None]]:
        """The annotations of each ref by its id; `[None]` for no target."""
        return {ref_id: self.loadAnns(ref["ann_id"]) for ref_id, ref in self.Refs.items()}

    @cached_property
    def annToRef(self) -> dict[int, list[Record]]:
        """The refs of each annotation, by its id; those without a target by -1."""
        return _group((ann_id, ref) for ref in self.data["refs"] for ann_id in _listed(ref["ann_id"]))

    def getRefIds(self, image_ids: Ids = (), cat_ids: Ids = (), split: str | Sequence[str] = ()) -> list[int]:
        """Ids of the refs that all filters let through, in the order of `data`.

        Raises:
            ValueError: If there is no such split.
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
        """Ids of the annotations of images and refs, in the order of `data`; `[-1]` for one ref without a target.

        `grefer.py` gives `[]` there, and its `getMaskByRef(ref_id=...)` therefore no mask.
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
        """Records of refs, by one id or several."""
        return [self.Refs[ref_id] for ref_id in _listed(ref_ids)]

    def loadAnns(self, ann_ids: Ids = ()) -> list[Record | None]:
        """Records of annotations, by one id or several; None for -1."""
        return [self.Anns[ann_id] for ann_id in _listed(int(ann_ids) if isinstance(ann_ids, str) else ann_ids)]

    def loadImgs(self, image_ids: Ids = ()) -> list[Record]:
        """Records of images, by one id or several."""
        return [self.Imgs[image_id] for image_id in _listed(image_ids)]

    def loadCats(self, cat_ids: Ids = ()) -> list[str]:
        """Names of categories, by one id or several."""
        return [self.Cats[category_id] for category_id in _listed(cat_ids)]

    def getRefBox(self, ref_id: int) -> list[list[float]]:
        """The boxes of a ref's annotations: left, top, width, height in pixels; none for no target."""
        return [annotation["bbox"] for annotation in self._targets(self.Refs[ref_id])]

    def getMask(self, ann: Record | None) -> dict[str, Any] | None:
        """The mask of one annotation, as `REFER.getMask`; None for None.

        Raises:
            ValueError: If it is a crowd.
        """
        if not ann:
            return None
        if ann["iscrowd"]:
            raise ValueError("Crowd object")
        parts = self._parts([ann], self.Imgs[ann["image_id"]])
        return {"mask": parts.sum(axis=2).astype(np.uint8), "area": int(parts.sum())}

    def getMaskByRef(self, ref: Record | None = None, ref_id: int | None = None, merge: bool = False) -> Any:
        """The mask of a ref, without the crowds among its annotations: `grefer.py` leaves them out.

        Returns:
            `{"mask", "empty": True}` for no target; with `merge` the union and `"empty": False`; else a list of
            `getMask` of each annotation.

        Raises:
            ValueError: If neither ref nor id is given.
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
    """Ids as a list, from one or several."""
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
