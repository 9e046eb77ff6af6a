"""REFER and G_REFER over the original files, as short as clients allow: what ours is compared with."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.sources.plain_pickle import load_plain_pickle


def listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


class PlainTables:
    def __init__(self, data_root: str | Path, dataset: str, splitBy: str, prefix: str = "refs") -> None:
        folder = Path(data_root) / dataset
        pickled = folder / f"{prefix}({splitBy}).p"
        if pickled.is_file():
            self.refs = load_plain_pickle(pickled.read_bytes(), pickled)
        else:
            self.refs = json.loads(pickled.with_suffix(".json").read_text())
        instances = json.loads((folder / "instances.json").read_text())
        self.IMAGE_DIR = str(Path(data_root) / "images/mscoco/images/train2014")
        self.Refs = {ref["ref_id"]: ref for ref in self.refs}
        self.Anns: dict[int, Any] = {annotation["id"]: annotation for annotation in instances["annotations"]}
        self.Imgs = {image["id"]: image for image in instances["images"]}
        self.Cats = {category["id"]: category["name"] for category in instances["categories"]}
        self.Sents = {sentence["sent_id"]: sentence for ref in self.refs for sentence in ref["sentences"]}

    def getImgIds(self, ref_ids: Any = ()) -> list[int]:
        if ref_ids == ():
            return list(self.Imgs)
        return list({self.Refs[ref_id]["image_id"] for ref_id in listed(ref_ids)})

    def getCatIds(self) -> list[int]:
        return list(self.Cats)

    def loadRefs(self, ref_ids: Any) -> list[Any]:
        return [self.Refs[key] for key in listed(ref_ids)]

    def loadAnns(self, ann_ids: Any) -> list[Any]:
        return [self.Anns[key] for key in listed(ann_ids)]

    def loadImgs(self, image_ids: Any) -> list[Any]:
        return [self.Imgs[key] for key in listed(image_ids)]

    def loadCats(self, cat_ids: Any) -> list[Any]:
        return [self.Cats[key] for key in listed(cat_ids)]

    def summed(self, annotation: dict[str, Any]) -> dict[str, Any]:
        image = self.Imgs[annotation["image_id"]]
        runs = annotation["segmentation"]
        if isinstance(runs[0], list):
            runs = coco_mask.frPyObjects(runs, image["height"], image["width"])
        return {"mask": coco_mask.decode(runs).sum(axis=2).astype(np.uint8), "area": int(sum(coco_mask.area(runs)))}


class PlainREFER(PlainTables):
    def __init__(
        self, data_root: str | Path, dataset: str, splitBy: str, ref_root: str | Path | None = None, mix: bool = False
    ) -> None:
        assert not mix
        super().__init__(data_root if ref_root is None else ref_root, dataset, splitBy)

    def getRefIds(self, split: str = "") -> list[int]:
        letter = {"testA": "A", "testB": "B", "testC": "C", "test": "test"}.get(split)
        chosen = (ref for ref in self.refs if (letter in ref["split"] if letter else split in ("", ref["split"])))
        return [ref["ref_id"] for ref in chosen]

    def getRefBox(self, ref_id: int) -> list[float]:
        return self.Anns[self.Refs[ref_id]["ann_id"]]["bbox"]

    def getMask(self, ref: dict[str, Any]) -> dict[str, Any]:
        return self.summed(self.Anns[ref["ann_id"]])

    def getPolygon(self, ref: dict[str, Any]) -> dict[str, Any]:
        return {"polygon": self.Anns[ref["ann_id"]]["segmentation"], "area": self.getMask(ref)["area"]}


class PlainMergedREFER(PlainREFER):
    def getMask(self, ref: dict[str, Any]) -> dict[str, Any]:
        mask = (super().getMask(ref)["mask"] > 0).astype(np.uint8)
        return {"mask": mask, "area": int(mask.sum())}


class PlainG_REFER(PlainTables):
    def __init__(self, data_root: str | Path, dataset: str = "grefcoco", splitBy: str = "unc") -> None:
        super().__init__(data_root, dataset, splitBy, prefix="grefs")
        self.Anns[-1] = None
        self.imgToRefs = defaultdict(list)
        for ref in self.refs:
            self.imgToRefs[ref["image_id"]].append(ref)

    def getRefIds(self, split: str) -> list[int]:
        return [ref["ref_id"] for ref in self.refs if ref["split"] == split]

    def getMaskByRef(self, ref: dict[str, Any], merge: bool) -> Any:
        image = self.Imgs[ref["image_id"]]
        if ref["ann_id"] == [-1]:
            return {"mask": np.zeros((image["height"], image["width"]), np.uint8), "empty": True}
        masks = [self.summed(self.Anns[ann_id]) for ann_id in ref["ann_id"] if not self.Anns[ann_id]["iscrowd"]]
        if not merge:
            return masks
        return {
            "mask": np.minimum(sum(found["mask"].astype(int) for found in masks), 1).astype(np.uint8),
            "empty": False,
        }
