"""Chooses the example sentences of a report, and draws their pictures."""

import base64
import hashlib
import io
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from refseg.data.index import ManifestIndex
from refseg.errors import DatasetError
from refseg.evaluation.explanation import Explain
from refseg.evaluation.ground_truth import GroundTruth
from refseg.evaluation.heat_maps import draw_explanation, draw_heat_map
from refseg.evaluation.overlay import draw_overlay
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import column_name, counts, has_predictions
from refseg.evaluation.scores import row_ious
from refseg.progress import report_progress
from refseg.run_lengths import draw_runs

logger = logging.getLogger(__name__)

_MISSING = 102
"""Grey value, 0 to 255, that is shown instead of a picture that cannot be read."""
_LONGEST_SIDE = 512
"""Length of an example's longer side on the page in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredExample:
    """One scored sentence with its picture.

    Attributes:
        sentence: The sentence.
        iou: IoU of prediction and target, 0 to 1.
        ref_id: Id of the ref.
        image_id: Id of the image.
        sent_id: Id of the sentence.
        picture: `data:` URL of a JPEG that shows the picture with target and prediction.
        alt: Description of the picture in words.
        target_share: Share of the picture that the target covers, 0 to 1.
        predicted_share: Share of the picture that the prediction covers, 0 to 1.
        words: Each word with its share of the attention; empty if not asked for, or if the model has none.
        location: `data:` URL of LTS's position prior over the picture; empty for other models.
        key_maps: `data:` URL of FCNet's key maps over the picture; empty for other models.
    """

    sentence: str
    iou: float
    ref_id: int
    image_id: int
    sent_id: int
    picture: str
    alt: str
    target_share: float
    predicted_share: float
    words: tuple[tuple[str, float], ...] = ()
    location: str = ""
    key_maps: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleGroup:
    """Examples that were chosen by one criterion: `Best`, `Worst` or `Random`."""

    name: str
    examples: tuple[ScoredExample, ...]


def choose_examples(
    table: pa.Table,
    protocol: Protocol,
    index: ManifestIndex,
    *,
    number: int,
    num_worst: int | None = None,
    explain: Explain | None = None,
) -> list[ExampleGroup]:
    """Choose and draw the best, the worst and some random sentences, at most one per image in each group.

    Among equally bad sentences, those with the largest targets come first, because these should be easy. The random
    choice is made by a hash of the ids, so that a report of the same rows shows the same examples. A table without
    predictions gives no examples.

    Args:
        table: Rows of a split of the index.
        protocol: Protocol by which the IoU is computed.
        index: Index of the split's images.
        number: Number of examples per group.
        num_worst: Number of the worst examples; None: `number`.
        explain: Function that explains each example, for the weights of words and the maps; None: these are not shown.
    """
    if not has_predictions(table, protocol):
        return []
    ground_truth = GroundTruth(index, [protocol])
    ious = row_ious(table, protocol)
    ids = zip(table.column("ref_id").to_pylist(), table.column("sent_id").to_pylist(), strict=True)
    chance = np.array([int.from_bytes(hashlib.sha256(f"{r} {s}".encode()).digest()[:4]) for r, s in ids])
    images = table.column("image_id").to_numpy()
    orders = {
        "Best": np.lexsort((chance, -ious)),
        "Worst": np.lexsort((chance, -counts(table, protocol, "target_area"), ious)),
        "Random": np.argsort(chance, kind="stable"),
    }
    images_of_rows = images.tolist()
    chosen = {
        name: _first_per_image(order.tolist(), images_of_rows, num_worst if name == "Worst" and num_worst else number)
        for name, order in orders.items()
    }
    drawn: dict[str, list[ScoredExample]] = {name: [] for name in chosen}
    places = [(name, place) for name, of_group in chosen.items() for place in of_group]
    with report_progress(f"draw examples of {'+'.join(index.splits)}", "examples") as progress:
        for count, (name, place) in enumerate(places, 1):
            row = table.slice(place, 1).to_pylist()[0]
            drawn[name].append(_draw(row, float(ious[place]), protocol, ground_truth, explain))
            progress(count, len(places))
    return [ExampleGroup(name=name, examples=tuple(examples)) for name, examples in drawn.items()]


def _first_per_image(order: list[int], images: list[int], number: int) -> list[int]:
    chosen: dict[int, int] = {}
    for place in order:
        if len(chosen) == number:
            break
        chosen.setdefault(images[place], place)
    return list(chosen.values())


def _draw(
    row: dict[str, object], iou: float, protocol: Protocol, ground_truth: GroundTruth, explain: Explain | None
) -> ScoredExample:
    index = ground_truth.index
    (ref,) = np.flatnonzero(
        (index.ref_id == row["ref_id"]) & (index.row_split == index.splits.index(str(row["split"])))
    )
    size = index.size(int(ref))
    explanation = None
    try:
        stored = index.decode_image(int(index.row_image[ref]))
        picture = stored.permute(1, 2, 0).numpy()
        explanation = explain(stored, str(row["sentence"]), size) if explain else None
    except DatasetError as error:
        logger.warning("%s: the example is shown without its picture", error)
        picture = np.full((*size, 3), _MISSING, np.uint8)
    if picture.shape[:2] != size:  # the dataset stores the picture smaller than the original
        picture = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
    predicted = draw_runs(
        np.array(row[column_name(protocol, "predicted_counts")], np.uint32), protocol.compared_size(size)
    )
    sent_ids = index.sent_id[index.sentence_start[ref] : index.sentence_start[ref + 1]]
    target = ground_truth.mask(protocol, int(ref), sent_ids.tolist().index(row["sent_id"]))
    # The overlay is drawn at the displayed size, so that lines have the same width in all pictures.
    scale = _LONGEST_SIDE / max(size)
    shown = (max(1, round(size[1] * scale)), max(1, round(size[0] * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    drawn = draw_overlay(
        np.asarray(Image.fromarray(picture).resize(shown, smooth)),
        np.asarray(Image.fromarray(predicted).resize(shown, Image.Resampling.NEAREST)),
        np.asarray(Image.fromarray(target).resize(shown, Image.Resampling.NEAREST)),
    )
    words: tuple[tuple[str, float], ...] = ()
    location = key_maps = ""
    if explanation is not None and explanation.mean_weights is not None:
        words = tuple(zip(explanation.words, explanation.mean_weights, strict=True))
    if explanation is not None and explanation.location is not None:
        location = _data_url(draw_heat_map(picture, explanation.location))
    if explanation is not None and explanation.key_maps is not None:
        maps = draw_explanation(picture, explanation)
        assert maps is not None, "there are key maps"
        key_maps = _data_url(maps)
    return ScoredExample(
        sentence=str(row["sentence"]),
        iou=iou,
        ref_id=int(str(row["ref_id"])),
        image_id=int(str(row["image_id"])),
        sent_id=int(str(row["sent_id"])),
        picture=_data_url(drawn),
        alt=f"Picture {row['image_id']} with the target of “{row['sentence']}” outlined and the prediction filled: "
        f"the target covers {target.mean():.1%}, the prediction {predicted.mean():.1%} of it",
        target_share=float(target.mean()),
        predicted_share=float(predicted.mean()),
        words=words,
        location=location,
        key_maps=key_maps,
    )


def _data_url(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
