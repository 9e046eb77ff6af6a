"""What the families of clients do with REFER, each written from the calls that were recorded of it.

Each takes an opened REFER (or G_REFER) and a split, and gives all that the client would get to see, as plain values.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Seen = Iterator[Any]


def read_image(refer: Any, image: dict[str, Any]) -> bytes:
    return Path(refer.IMAGE_DIR, image["file_name"]).read_bytes()


def lavt(refer: Any, split: str) -> Seen:
    """LAVT, MagNet, RefSegformer, DMMI: `ReferDataset`."""
    ref_ids = refer.getRefIds(split=split)
    yield [refer.Imgs[image_id]["id"] for image_id in refer.getImgIds(ref_ids)]
    for ref_id in ref_ids:
        (image_id,) = refer.getImgIds(ref_id)
        (ref,) = refer.loadRefs(ref_id)
        for sentence, sent_id in zip(ref["sentences"], ref["sent_ids"], strict=True):
            yield sentence["raw"], sent_id, sentence.get("exist", True), ref.get("source")
        yield read_image(refer, refer.Imgs[image_id])
        mask = refer.getMask(refer.Refs[ref_id])["mask"]
        yield mask.dtype.str, mask.shape, (mask == 1).tobytes()


def caris(refer: Any, split: str) -> Seen:
    """CARIS, MaskRIS."""
    names = refer.loadCats(refer.getCatIds())
    for ref_id in refer.getRefIds(split=split):
        ref = refer.Refs[ref_id]
        yield names.index(refer.loadCats(ref["category_id"])[0])
        yield [sentence["sent"] for sentence in ref["sentences"]], ref["sent_ids"]
        yield read_image(refer, refer.Imgs[refer.getImgIds(ref_id)[0]])
        yield refer.getMask(ref)["mask"].tobytes()


def lisa(refer: Any, split: str) -> Seen:
    """LISA, GLaMM, EVF-SAM: `refer_seg_dataset.py`; images are at a path of the client's own."""
    ref_ids = refer.getRefIds(split=split)
    image_ids = refer.getImgIds(ref_ids=ref_ids)
    refs = refer.loadRefs(ref_ids=ref_ids)
    for record in refer.loadImgs(image_ids=image_ids):
        item = record.copy()
        item["file_name"] = str(Path(refer.IMAGE_DIR, item["file_name"]))
        yield item["id"], item["height"], item["width"], Path(item["file_name"]).read_bytes()
    annotations = refer.Anns
    for ref in refs:
        yield ref["image_id"], [sentence["sent"].strip().lower() for sentence in ref["sentences"]]
        for ann_id in ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]:
            yield annotations[ann_id] and annotations[ann_id]["segmentation"]


def rela(refer: Any, split: str) -> Seen:
    """ReLA's `load_refcoco_json`."""
    ref_ids = refer.getRefIds(split=split)
    image_ids = refer.getImgIds(ref_ids)
    refs = refer.loadRefs(ref_ids)
    images = [refer.loadImgs(ref["image_id"])[0] for ref in refs]
    annotations = [refer.loadAnns(ref["ann_id"])[0] for ref in refs]
    yield image_ids
    for image, annotation, ref in zip(images, annotations, refs, strict=True):
        assert ref["split"] == split
        assert ref["ann_id"] == annotation["id"]
        assert ref["image_id"] == image["id"] == annotation["image_id"]
        yield read_image(refer, image), image["height"], image["width"], ref["ref_id"]
        yield [annotation[name] for name in ("iscrowd", "bbox", "category_id", "segmentation")]
        yield [(sentence["raw"], sentence["sent_id"]) for sentence in ref["sentences"]]


def rela_general(refer: Any, split: str) -> Seen:
    """ReLA's `load_grefcoco_json`."""
    ref_ids = refer.getRefIds(split=split)
    yield refer.getImgIds(ref_ids)
    refs = refer.loadRefs(ref_ids)
    for ref in refs:
        (image,) = refer.loadImgs(ref["image_id"])
        annotations = refer.loadAnns(ref["ann_id"])
        yield read_image(refer, image), ref["ann_id"], ref["no_target"], ref["category_id"]
        if ref["ann_id"] == [-1]:
            assert annotations == [None]
        for annotation in filter(None, annotations):
            yield [annotation[name] for name in ("id", "iscrowd", "bbox", "category_id", "segmentation")]
        yield [(sentence["raw"], sentence["sent_id"]) for sentence in ref["sentences"]]
        merged = refer.getMaskByRef(ref, merge=True)
        yield merged["mask"].dtype.str, merged["mask"].shape, merged["mask"].tobytes(), merged["empty"]


def cris(refer: Any, split: str) -> Seen:
    """CRIS, ETRIS, DETRIS, VLT: `data_process.py`."""
    yield len(refer.Sents), refer.getRefIds(), len(refer.getImgIds()) > 0  # it prints their number
    for ref_id in refer.getRefIds(split=split):
        ref = refer.Refs[ref_id]
        (image,) = refer.loadImgs(image_ids=ref["image_id"])
        yield refer.getRefBox(ref_id), ref["category_id"], read_image(refer, image)
        yield (refer.getMask(ref)["mask"] * 255).tobytes()
        yield [(sentence["sent_id"], sentence["sent"].strip()) for sentence in ref["sentences"]]


def polyformer(refer: Any, split: str) -> Seen:
    """PolyFormer's converter."""
    for ref_id in refer.getRefIds(split=split):
        (image_id,) = refer.getImgIds(ref_id)
        (ref,) = refer.loadRefs(ref_id)
        yield read_image(refer, refer.Imgs[image_id]), refer.getRefBox(ref_id)
        yield refer.getMask(ref)["mask"].tobytes(), refer.getPolygon(ref)["polygon"]
        yield ref["sent_ids"], [sentence["sent"] for sentence in ref["sentences"]]


CLIENTS = (lavt, caris, lisa, rela, cris, polyformer)
