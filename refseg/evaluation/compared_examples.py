"""Chooses sentences that one run segments correctly and another run does not, and draws both masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.data.index import ManifestIndex
from refseg.evaluation.examples import ExamplePictures, ShownPicture, chance_of, first_per_image
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import has_predictions
from refseg.evaluation.scores import row_ious

RIGHT = 0.5
"""A sentence counts as right where its IoU reaches this, by the protocol's comparison for Pr@X."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedExample:
    """One sentence with the masks of two runs.

    Attributes:
        sentence: Sentence as the models read it.
        first_iou: IoU of the first run, 0 to 1.
        second_iou: IoU of the second run, 0 to 1.
        ref_id: Id of the ref.
        image_id: Id of the image.
        sent_id: Id of the sentence.
        picture: The picture without masks.
        target: Outline of the target in the picture (`outline_path`).
        first: Outline of the first run's prediction.
        second: Outline of the second run's prediction.
        gain: Outline of the pixels that the second run gets right and the first run gets wrong.
        loss: Outline of the pixels that the first run gets right and the second run gets wrong.
        target_share: Fraction of the picture that the target covers, 0 to 1.
        gain_share: Fraction of the picture covered by `gain`, 0 to 1.
        loss_share: Fraction of the picture covered by `loss`, 0 to 1.
    """

    sentence: str
    first_iou: float
    second_iou: float
    ref_id: int
    image_id: int
    sent_id: int
    picture: ShownPicture
    target: str
    first: str
    second: str
    gain: str
    loss: str
    target_share: float
    gain_share: float
    loss_share: float

    @property
    def difference(self) -> float:
        """IoU of the other run minus IoU of the first run, -1 to 1."""
        return self.second_iou - self.first_iou


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedGroup:
    """Sentences that two runs get right or wrong in the same way.

    Attributes:
        key: `right-wrong`, `wrong-right`, `right-right` or `wrong-wrong`. The first word is about the first run and the
            second word about the second run.
        name: Description of the group with the names of the runs.
        num_sentences: Number of sentences of the split that belong to this group.
        examples: The sentences that are shown, at most one per image.
    """

    key: str
    name: str
    num_sentences: int
    examples: tuple[ComparedExample, ...]


def choose_compared_examples(
    tables: tuple[pa.Table, pa.Table],
    names: tuple[str, str],
    protocol: Protocol,
    index: ManifestIndex,
    *,
    number: int,
) -> list[ComparedGroup]:
    """Choose and draw sentences of each of the four groups, with the largest IoU difference first.

    If either table has no predictions, no groups are returned.

    Args:
        tables: Rows of both runs, with the same sentences in the same order.
        names: Names of both runs.
        protocol: Rules of the IoU.
        index: The split's images.
        number: Number of examples in the groups in which the runs differ. The other two groups get half as many.
    """
    if not all(has_predictions(table, protocol) for table in tables):
        return []
    pictures = ExamplePictures(index, protocol)
    first, second = (row_ious(table, protocol) for table in tables)
    is_right = np.greater if protocol.precision_comparison == ">" else np.greater_equal
    first_right, second_right = is_right(first, RIGHT), is_right(second, RIGHT)
    order = np.lexsort((chance_of(tables[0]), -np.abs(second - first)))
    images = tables[0].column("image_id").to_pylist()
    groups = []
    for of_first, of_second in ((True, False), (False, True), (True, True), (False, False)):
        chosen: NDArray[np.bool_] = (first_right == of_first) & (second_right == of_second)
        shown = first_per_image(order[chosen[order]].tolist(), images, number if of_first != of_second else number // 2)
        words = ["right" if right else "wrong" for right in (of_first, of_second)]
        groups.append(
            ComparedGroup(
                key="-".join(words),
                name=", ".join(f"{name} {word}" for name, word in zip(names, words, strict=True)),
                num_sentences=int(np.count_nonzero(chosen)),
                examples=tuple(
                    _draw(
                        [table.slice(place, 1).to_pylist()[0] for table in tables],
                        (float(first[place]), float(second[place])),
                        pictures,
                    )
                    for place in shown
                ),
            )
        )
    return groups


def _draw(rows: list[Mapping[str, Any]], ious: tuple[float, float], pictures: ExamplePictures) -> ComparedExample:
    row = rows[0]
    target = pictures.target(row)
    first, second = (pictures.prediction(of_run) for of_run in rows)
    gain, loss = (second == target) & (first != target), (first == target) & (second != target)
    return ComparedExample(
        sentence=row["sentence"],
        first_iou=ious[0],
        second_iou=ious[1],
        ref_id=row["ref_id"],
        image_id=row["image_id"],
        sent_id=row["sent_id"],
        picture=pictures.shown(row, pictures.stored(row)),
        target=pictures.outline(row, target),
        first=pictures.outline(row, first),
        second=pictures.outline(row, second),
        gain=pictures.outline(row, gain),
        loss=pictures.outline(row, loss),
        target_share=float(target.mean()),
        gain_share=float(gain.mean()),
        loss_share=float(loss.mean()),
    )
