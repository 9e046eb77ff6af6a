"""Target masks by the rule of each protocol, from a dataset's masks or, where they do not tell, its annotations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.dataset.built import BuiltDataset
from refseg.evaluation.protocols import Protocol
from refseg.run_lengths import draw_runs, encode_runs
from refseg.storage import open_folder

Runs = NDArray[np.uint32]
Parts = Sequence[Mapping[str, Any]]
"""Annotations as the manifest has them: `segmentation` with `polygons` and `rles`, `box_xywh`, `iscrowd`."""


class GroundTruth:
    """The targets of a dataset's sentences under some protocols.

    A dataset holds one mask per ref, built by one rule. Another rule differs only where a target has several parts,
    whose annotations are read when this is made; polygons are drawn when a target is asked for.
    """

    def __init__(self, index: ManifestIndex, protocols: Sequence[Protocol]) -> None:
        self.index = index
        rules = {_rule(protocol, index) for protocol in protocols}
        self._parts = _read_parts(index, every="scaled" in rules) if rules - {"dataset"} else {}
        self._last: tuple[str, int, NDArray[np.bool_]] | None = None
        """What was drawn last: the next sentence is mostly of the same ref."""

    def mask(self, protocol: Protocol, row: int, sentence: int | None) -> Bool[np.ndarray, "H W"]:
        """The target of a sentence at the protocol's size.

        Args:
            protocol: One of those this was made for.
            row: Of the ref whose target it is.
            sentence: Its target, which is empty if it names nothing; None: the ref's.
        """
        size = protocol.compared_size(self.index.size(row))
        if sentence is not None and not self.index.sentence_exists[self.index.sentence_start[row] + sentence]:
            return np.zeros(size, np.bool_)
        if self._last is None or self._last[:2] != (protocol.name, row):
            self._last = protocol.name, row, self._draw(protocol, row, size)
        return self._last[2]

    def _draw(self, protocol: Protocol, row: int, size: tuple[int, int]) -> NDArray[np.bool_]:
        if _rule(protocol, self.index) == "scaled":
            return draw_scaled(self._parts.get(row, ()), self.index.size(row), size)
        runs = self.dataset_runs(protocol, row, None)
        if runs is None:
            drawn = draw_parts(self._parts[row], self.index.size(row), _rule(protocol, self.index))
            if protocol.size is None:
                return drawn
            runs = encode_runs(drawn)
        elif protocol.size is None:
            return draw_runs(runs, size)
        return stretch(runs, self.index.size(row), size).astype(np.bool_)

    def dataset_runs(self, protocol: Protocol, row: int, sentence: int | None) -> Runs | None:
        """Run lengths of the target at the image's size if the dataset's own mask is the one; None: it is not."""
        rule = _rule(protocol, self.index)
        if rule == "scaled" or (rule != "dataset" and row in self._parts):
            return None
        return self.index.counts(row, sentence)


def draw_parts(annotations: Parts, size: tuple[int, int], rule: str) -> Bool[np.ndarray, "H W"]:
    """Draw a target from its annotations at the image's size.

    Args:
        annotations: At least one, none empty of parts.
        size: `(height, width)` of the image in pixels.
        rule: `union`: pixels of any part. `legacy`: pixels of exactly one, as `refer.py` sums the parts of a mask and
            LAVT and its forks keep those that are 1.
    """
    covered = np.zeros(size, np.int32)
    for annotation in annotations:
        for part in _runs_of(annotation, size, size):
            covered += coco_mask.decode(part)
    return covered == 1 if rule == "legacy" else covered > 0


def draw_scaled(annotations: Parts, original_size: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Draw the union of a target's parts whose polygons were stretched to a size first, crowds left out.

    Source: ReLA's `refcoco_mapper.py`: polygons go through detectron2's resize transform, then through pycocotools.
    Parts that are run lengths are drawn at the image's size and brought there by nearest pixels.
    """
    drawn = np.zeros(size, np.bool_)
    for annotation in annotations:
        if not annotation["iscrowd"]:
            for part in _runs_of(annotation, original_size, size):
                drawn |= coco_mask.decode(part).astype(np.bool_)
    return drawn


def stretch(runs: Runs, original_size: tuple[int, int], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Draw a mask of an image's size at another by nearest pixels, as Pillow does, without keeping the aspect."""
    return Geometry(kind="stretch", size=size).apply_mask(runs, original_size)


def _runs_of(annotation: Mapping[str, Any], original_size: tuple[int, int], size: tuple[int, int]) -> list[Any]:
    """Compressed run lengths at `size` of each part of an annotation; its box is its part if it has no shape."""
    shape = annotation["segmentation"]
    polygons = shape["polygons"]
    if not polygons and not shape["rles"]:
        left, top, width, height = annotation["box_xywh"]
        (x, right), (y, bottom) = (
            np.clip([start, start + length], 0, side).tolist()
            for start, length, side in ((left, width, original_size[1]), (top, height, original_size[0]))
        )
        polygons = [[x, y, x, bottom, right, bottom, right, y]]
    parts = []
    if polygons:
        scale = (size[1] / original_size[1], size[0] / original_size[0])
        scaled = [(np.array(polygon).reshape(-1, 2) * scale).reshape(-1).tolist() for polygon in polygons]
        parts += coco_mask.frPyObjects(scaled, *size)
    for rle in shape["rles"]:
        runs = np.array(rle["counts"], np.uint32)
        if size != original_size:
            runs = encode_runs(stretch(runs, original_size, size).astype(np.bool_))
        parts.append(coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size))
    return parts


def _rule(protocol: Protocol, index: ManifestIndex) -> str:
    """The protocol's rule; `dataset` where the dataset's masks were built by it."""
    return "dataset" if protocol.mask_rule == index.descriptor.mask_rule else protocol.mask_rule


def _read_parts(index: ManifestIndex, *, every: bool) -> dict[int, Parts]:
    """Annotations of the refs, by row: of every one, or of those with several parts."""
    dataset = BuiltDataset(place=open_folder(index.folder), descriptor=index.descriptor, splits=index.splits)
    found: dict[int, Parts] = {}
    first = 0
    for entry in dataset.entries:
        table = dataset.read(["annotations"], [entry])
        for row, annotations in enumerate(table.column("annotations").to_pylist(), start=first):
            if every or sum(map(_num_parts, annotations)) > 1:
                found[row] = annotations
        first += len(table)
    return found


def _num_parts(annotation: Mapping[str, Any]) -> int:
    shape = annotation["segmentation"]
    return len(shape["polygons"]) + len(shape["rles"]) or 1
