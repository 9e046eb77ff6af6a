"""Chooses the example sentences of a report, and prepares their pictures and the outlines of their masks."""

import base64
import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image

from refseg.data.index import ManifestIndex
from refseg.errors import DatasetError
from refseg.evaluation.explanation import Explain
from refseg.evaluation.ground_truth import GroundTruth
from refseg.evaluation.heat_maps import draw_explanation, draw_heat_map
from refseg.evaluation.outlines import outline_path
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import column_name, counts, has_predictions
from refseg.evaluation.scores import row_ious
from refseg.progress import report_progress
from refseg.run_lengths import draw_runs

logger = logging.getLogger(__name__)

_MISSING = 102
"""Grey of a picture that cannot be shown, 0 to 255."""
_LONGEST_SIDE = 512
"""Largest width and height of an example's picture in the page, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPicture:
    """A picture in a page.

    Attributes:
        url: `data:` URL of the JPEG.
        width: Width of the JPEG in pixels. The paths of masks use the pixels of this JPEG as units.
        height: Height of the JPEG in pixels.
    """

    url: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredExample:
    """One sentence with its picture and its masks.

    Attributes:
        sentence: Sentence as the model read it.
        iou: IoU, 0 to 1.
        ref_id: Id of the ref.
        image_id: Id of the image.
        sent_id: Id of the sentence.
        picture: The picture without masks.
        target: Outline of the target in the picture (`outline_path`).
        prediction: Outline of the prediction in the picture.
        alt: Text description of the picture and its masks.
        target_share: Fraction of the picture that the target covers, 0 to 1.
        predicted_share: Fraction of the picture that the prediction covers, 0 to 1.
        words: Each word that the model read, with its share of the attention. Empty if no explanation was requested, or
            if the model has no attention over words.
        location: `data:` URL of LTS's position prior over the picture. Empty for other models.
        key_maps: `data:` URL of FCNet's key maps over the picture. Empty for other models.
    """

    sentence: str
    iou: float
    ref_id: int
    image_id: int
    sent_id: int
    picture: ShownPicture
    target: str
    prediction: str
    alt: str
    target_share: float
    predicted_share: float
    words: tuple[tuple[str, float], ...] = ()
    location: str = ""
    key_maps: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleGroup:
    """Examples that were chosen by one rule. The rule is `Best`, `Worst` or `Random`."""

    name: str
    examples: tuple[ScoredExample, ...]


class ExamplePictures:
    """Pictures and masks of the sentences of a table. Each method receives the position of a row."""

    def __init__(self, index: ManifestIndex, protocol: Protocol) -> None:
        self.index = index
        self.protocol = protocol
        self._ground_truth = GroundTruth(index, [protocol])

    def ref(self, row: Mapping[str, Any]) -> int:
        """Position in the index of the ref that a row's sentence was written for."""
        index = self.index
        found = (index.ref_id == row["ref_id"]) & (index.row_split == index.splits.index(row["split"]))
        return int(np.flatnonzero(found)[0])

    def stored(self, row: Mapping[str, Any]) -> UInt8[np.ndarray, "H W 3"] | None:
        """The stored picture, RGB. If it cannot be read, a warning is logged and the result is None."""
        try:
            picture: NDArray[np.uint8] = (
                self.index.decode_image(int(self.index.row_image[self.ref(row)])).permute(1, 2, 0).numpy()
            )
        except DatasetError as error:
            logger.warning("%s: the example is shown without its picture", error)
            return None
        return picture

    def shown(self, row: Mapping[str, Any], stored: UInt8[np.ndarray, "h w 3"] | None) -> ShownPicture:
        """The picture for the page, with the aspect ratio of the annotated picture. Grey if it cannot be read."""
        width, height = self._shown_size(row)
        picture = Image.new("RGB", (width, height), (_MISSING,) * 3)
        if stored is not None:
            picture = Image.fromarray(stored).resize((width, height), Image.Resampling.LANCZOS)
        return ShownPicture(url=data_url(picture), width=width, height=height)

    def target(self, row: Mapping[str, Any]) -> Bool[np.ndarray, "H W"]:
        """The target of a row's sentence, at the size at which the protocol compares masks."""
        ref = self.ref(row)
        sent_ids = self.index.sent_id[self.index.sentence_start[ref] : self.index.sentence_start[ref + 1]]
        return self._ground_truth.mask(self.protocol, ref, sent_ids.tolist().index(row["sent_id"]))

    def prediction(self, row: Mapping[str, Any]) -> Bool[np.ndarray, "H W"]:
        """The predicted mask of a row's sentence, at the size at which the protocol compares masks."""
        runs = np.array(row[column_name(self.protocol, "predicted_counts")], np.uint32)
        return draw_runs(runs, self.protocol.compared_size((row["height"], row["width"])))

    def outline(self, row: Mapping[str, Any], mask: Bool[np.ndarray, "H W"]) -> str:
        """The outline of a mask of a row's picture, as a path in pixels of the shown picture."""
        return outline_path(np.asarray(Image.fromarray(mask).resize(self._shown_size(row), Image.Resampling.NEAREST)))

    def _shown_size(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height of the picture in the page."""
        scale = min(1.0, _LONGEST_SIDE / max(row["height"], row["width"]))
        return max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))


def choose_examples(
    table: pa.Table,
    protocol: Protocol,
    index: ManifestIndex,
    *,
    number: int,
    num_worst: int | None = None,
    explain: Explain | None = None,
) -> list[ExampleGroup]:
    """Choose and draw the best, the worst and some random sentences. Each group has at most one sentence per image.

    Among sentences with equally low IoU, those with the largest targets come first, because large targets should be
    easy. The random order is a hash of the ids, so repeating a report shows the same examples. A table without
    predictions gives no examples.

    Args:
        table: Rows of a split of the index.
        protocol: Rules of the IoU.
        index: The split's images.
        number: Number of examples per group.
        num_worst: Number of examples in the group of the worst. None means `number`.
        explain: Function that returns the explanation of an example. If None, words are not shaded and no maps are
            shown.
    """
    if not has_predictions(table, protocol):
        return []
    pictures = ExamplePictures(index, protocol)
    ious = row_ious(table, protocol)
    chance = chance_of(table)
    images = table.column("image_id").to_numpy()
    orders = {
        "Best": np.lexsort((chance, -ious)),
        "Worst": np.lexsort((chance, -counts(table, protocol, "target_area"), ious)),
        "Random": np.argsort(chance, kind="stable"),
    }
    images_of_rows = images.tolist()
    chosen = {
        name: first_per_image(order.tolist(), images_of_rows, num_worst if name == "Worst" and num_worst else number)
        for name, order in orders.items()
    }
    drawn: dict[str, list[ScoredExample]] = {name: [] for name in chosen}
    places = [(name, place) for name, of_group in chosen.items() for place in of_group]
    with report_progress(f"draw examples of {'+'.join(index.splits)}", "examples") as progress:
        for count, (name, place) in enumerate(places, 1):
            row = table.slice(place, 1).to_pylist()[0]
            drawn[name].append(_draw(row, float(ious[place]), pictures, explain))
            progress(count, len(places))
    return [ExampleGroup(name=name, examples=tuple(examples)) for name, examples in drawn.items()]


def chance_of(table: pa.Table) -> NDArray[np.int64]:
    """A pseudo-random number for each row, which depends only on the row's ids, shape (N,)."""
    ids = zip(table.column("ref_id").to_pylist(), table.column("sent_id").to_pylist(), strict=True)
    return np.array([int.from_bytes(hashlib.sha256(f"{r} {s}".encode()).digest()[:4]) for r, s in ids], np.int64)


def first_per_image(order: list[int], images: list[int], number: int) -> list[int]:
    """Return the first rows of a given order, at most one row per image.

    Args:
        order: Positions of rows.
        images: Id of the image of each row.
        number: Maximum number of rows to return.
    """
    chosen: dict[int, int] = {}
    for place in order:
        if len(chosen) == number:
            break
        chosen.setdefault(images[place], place)
    return list(chosen.values())


def _draw(row: dict[str, Any], iou: float, pictures: ExamplePictures, explain: Explain | None) -> ScoredExample:
    stored = pictures.stored(row)
    predicted, target = pictures.prediction(row), pictures.target(row)
    explanation = None
    if explain and stored is not None:
        size = (row["height"], row["width"])
        explanation = explain(torch.from_numpy(stored).permute(2, 0, 1), row["sentence"], size)
    words: tuple[tuple[str, float], ...] = ()
    location = key_maps = ""
    if explanation is not None and stored is not None:
        if explanation.mean_weights is not None:
            words = tuple(zip(explanation.words, explanation.mean_weights, strict=True))
        if explanation.location is not None:
            location = data_url(Image.fromarray(draw_heat_map(stored, explanation.location)))
        if explanation.key_maps is not None:
            maps = draw_explanation(stored, explanation)
            assert maps is not None, "there are key maps"
            key_maps = data_url(Image.fromarray(maps))
    return ScoredExample(
        sentence=row["sentence"],
        iou=iou,
        ref_id=row["ref_id"],
        image_id=row["image_id"],
        sent_id=row["sent_id"],
        picture=pictures.shown(row, stored),
        target=pictures.outline(row, target),
        prediction=pictures.outline(row, predicted),
        alt=f"Picture {row['image_id']} with the outlines of the target of “{row['sentence']}” and of the prediction: "
        f"the target covers {target.mean():.1%}, the prediction {predicted.mean():.1%} of it",
        target_share=float(target.mean()),
        predicted_share=float(predicted.mean()),
        words=words,
        location=location,
        key_maps=key_maps,
    )


def data_url(picture: Image.Image) -> str:
    """A picture as a JPEG in a `data:` URL."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
