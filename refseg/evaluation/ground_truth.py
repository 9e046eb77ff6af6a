"""Draws the target masks by the rule of each protocol, from a dataset's masks or, if needed, from its annotations."""

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
"""Annotations as stored in the manifest: `segmentation` with `polygons` and `rles`, `box_xywh`, `iscrowd`."""


class GroundTruth:
    """Draws the targets of a dataset's sentences under some protocols.

    A dataset stores one mask per ref, built by one rule. Another rule, except `scaled`, can give a different mask only
    if a target has several parts. The annotations of targets with several parts are read when an instance is created.
    Their polygons are drawn when a target is needed.
    """

    def __init__(self, index: ManifestIndex, protocols: Sequence[Protocol]) -> None:
        self.index = index
        rules = {_rule(protocol, index) for protocol in protocols}
        self._parts = _read_parts(index, every="scaled" in rules) if rules - {"dataset"} else {}
        self._last: tuple[str, int, NDArray[np.bool_]] | None = None
        """The last drawn mask with its protocol and row, because the next sentence is usually one of the same ref."""

    def mask(self, protocol: Protocol, row: int, sentence: int | None) -> Bool[np.ndarray, "H W"]:
        """Return the target of a sentence at the protocol's size.

        Args:
            protocol: One of the protocols that were given to the constructor.
            row: Row of the ref in the index.
            sentence: Position of the sentence within the ref. If the sentence refers to nothing, the target is empty.
                If None, the target of the ref is returned.
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
        """Return the run lengths of the dataset's own mask at the image's size.

        Return None if the protocol needs another mask.
        """
        rule = _rule(protocol, self.index)
        if rule == "scaled" or (rule != "dataset" and row in self._parts):
            return None
        return self.index.counts(row, sentence)


def draw_parts(annotations: Parts, size: tuple[int, int], rule: str) -> Bool[np.ndarray, "H W"]:
    """Draw a target from its annotations at the image's size.

    Args:
        annotations: Annotations of the target. There is at least one annotation, and each has at least one part.
        size: `(height, width)` of the image in pixels.
        rule: `union` selects the pixels that at least one part covers. `legacy` selects the pixels that exactly one
            part covers. It reproduces LAVT and its forks, where `refer.py` sums the parts and pixels with the sum 1 are
            kept.
    """
    covered = np.zeros(size, np.int32)
    for annotation in annotations:
        for part in _runs_of(annotation, size, size):
            covered += coco_mask.decode(part)
    return covered == 1 if rule == "legacy" else covered > 0


def draw_scaled(annotations: Parts, original_size: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Draw the union of a target's parts after scaling their polygons to a size. Crowd annotations are left out.

    Source: ReLA's `refcoco_mapper.py`, which resizes polygons with detectron2's transform and then draws them with
    pycocotools. Parts given as run lengths are drawn at the image's size and resized with nearest-neighbour
    interpolation.
    """
    drawn = np.zeros(size, np.bool_)
    for annotation in annotations:
        if not annotation["iscrowd"]:
            for part in _runs_of(annotation, original_size, size):
                drawn |= coco_mask.decode(part).astype(np.bool_)
    return drawn


def stretch(runs: Runs, original_size: tuple[int, int], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Resize a mask with Pillow's nearest-neighbour interpolation. The aspect ratio may change."""
    return Geometry(kind="stretch", size=size).apply_mask(np.cumsum(runs, dtype=np.int64), original_size)


def _runs_of(annotation: Mapping[str, Any], original_size: tuple[int, int], size: tuple[int, int]) -> list[Any]:
    """Return the compressed run lengths of each part at `size`.

    If an annotation has no shape, its box is used as the only part.
    """
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
    """Return the protocol's mask rule, or `dataset` if the dataset's masks were built by this rule."""
    return "dataset" if protocol.mask_rule == index.descriptor.mask_rule else protocol.mask_rule


def _read_parts(index: ManifestIndex, *, every: bool) -> dict[int, Parts]:
    """Read the annotations of the refs, by row. They are read for all refs, or only for refs with several parts."""
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
