"""What the families of clients do with REFER, each written from the calls that were recorded of it.

Each takes an opened REFER (or G_REFER) and a split, and gives all that the client would get to see, as plain values.
`CLIENTS` says how each opens it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.plain_pickle import load_plain_pickle

Seen = Iterator[Any]


def read_image(refer: Any, image: dict[str, Any]) -> bytes:
    return Path(refer.IMAGE_DIR, image["file_name"]).read_bytes()


def lavt(refer: Any, split: str) -> Seen:
    """LAVT, MagNet, RefSegformer: `ReferDataset`; `exist` is R-RefCOCO's."""
    ref_ids = refer.getRefIds(split=split)
    yield [refer.Imgs[image_id]["id"] for image_id in refer.getImgIds(ref_ids)]
    for ref_id in ref_ids:
        (image_id,) = refer.getImgIds(ref_id)
        (ref,) = refer.loadRefs(ref_id)
        for sentence, sent_id in zip(ref["sentences"], ref["sent_ids"], strict=True):
            yield sentence["raw"], sent_id, sentence.get("exist", True)
        yield read_image(refer, refer.Imgs[image_id])
        mask = refer.getMask(refer.Refs[ref_id])["mask"]
        yield mask.dtype.str, mask.shape, (mask == 1).tobytes()


def dmmi(refer: Any, split: str) -> Seen:
    """DMMI: as LAVT, over all images; `source` is Ref-ZOM's."""
    ref_ids = refer.getRefIds(split=split)
    all_images = {refer.Imgs[image_id]["id"] for image_id in refer.getImgIds()}
    for ref_id in ref_ids:
        (image_id,) = refer.getImgIds(ref_id)
        assert image_id in all_images
        (ref,) = refer.loadRefs(ref_id)
        yield [(sentence["raw"], sent_id) for sentence, sent_id in zip(ref["sentences"], ref["sent_ids"], strict=True)]
        yield read_image(refer, refer.Imgs[image_id]), ref.get("source")
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


def lisa(refer: Any, split: str, images: Path) -> Seen:
    """LISA, GLaMM, EVF-SAM: `refer_seg_dataset.py`; images are at a path of the client's own, IMAGE_DIR is not read."""
    ref_ids = refer.getRefIds(split=split)
    image_ids = refer.getImgIds(ref_ids=ref_ids)
    refs = refer.loadRefs(ref_ids=ref_ids)
    for record in refer.loadImgs(image_ids=image_ids):
        item = record.copy()
        item["file_name"] = str(images / item["file_name"])
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


def files(root: Path, dataset: str, split_by: str, split: str) -> Seen:
    """mmdet, MDETR's converter, big_vision: the files themselves, without REFER."""
    refs = load_plain_pickle((root / dataset / f"refs({split_by}).p").read_bytes(), root)
    instances = json.loads((root / dataset / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    for ref in refs:
        if ref["split"] == split:
            image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
            yield (root / LISAS_IMAGES / image["file_name"]).read_bytes(), image["height"], image["width"]
            yield [annotation[name] for name in ("bbox", "area", "segmentation", "iscrowd", "category_id", "image_id")]
            yield [(sentence["sent"], sentence["raw"], sentence["sent_id"]) for sentence in ref["sentences"]]
            yield ref["ref_id"], categories[ref["category_id"]]


Opened = Callable[[Any, Path, str, str], Any]


@dataclass(frozen=True)
class Client:
    """A family of clients.

    Attributes:
        name: For reports.
        open: `(class, root, dataset, split_by) -> instance`, by the words in which the client calls it.
        see: `(instance, split, root) ->` all it sees.
        merges: Its REFER merges the parts of a mask.
    """

    name: str
    open: Opened
    see: Callable[[Any, str, Path], Seen]
    merges: bool = False


def positional(refer: Any, root: Path, dataset: str, split_by: str) -> Any:
    return refer(str(root), dataset, split_by)


def named(refer: Any, root: Path, dataset: str, split_by: str) -> Any:
    return refer(data_root=str(root), dataset=dataset, splitBy=split_by)


def with_ref_root(refer: Any, root: Path, dataset: str, split_by: str) -> Any:
    return refer(str(root), ref_root=str(root), dataset=dataset, splitBy=split_by, mix=False)


LISAS_IMAGES = "images/mscoco/images/train2014"
CLIENTS = (
    Client("lavt", positional, lambda refer, split, _: lavt(refer, split)),
    Client("dmmi", positional, lambda refer, split, _: dmmi(refer, split), merges=True),
    Client("caris", with_ref_root, lambda refer, split, _: caris(refer, split), merges=True),
    Client("lisa", positional, lambda refer, split, root: lisa(refer, split, root / LISAS_IMAGES)),
    Client("rela", named, lambda refer, split, _: rela(refer, split)),
    Client("cris", positional, lambda refer, split, _: cris(refer, split)),
    Client("polyformer", positional, lambda refer, split, _: polyformer(refer, split)),
)
GENERAL_CLIENTS = (
    Client("rela_general", named, lambda refer, split, _: rela_general(refer, split)),
    Client("lisa", positional, lambda refer, split, root: lisa(refer, split, root / LISAS_IMAGES)),
)
"""Of gRefCOCO."""
