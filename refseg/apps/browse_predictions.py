"""Reads the predicted masks of a run by sentence. The browse page shows them beside the targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg.addresses import local_path
from refseg.dataset.descriptor import Descriptor
from refseg.errors import UsageError
from refseg.evaluation.results import Results, find_results, load_results
from refseg.evaluation.rows import column_name, has_predictions
from refseg.evaluation.scores import row_ious


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The predictions of a run for some splits of a dataset.

    Attributes:
        subject: Description of the model and of the protocol by which the masks were made.
        splits: Splits that were predicted.
        size: `(height, width)` of all masks. None if each mask has the size of its image.
        by_sentence: IoU, 0 to 1, and COCO's uncompressed run lengths, by split, id of the ref and id of the sentence.
    """

    subject: str
    splits: tuple[str, ...]
    size: tuple[int, int] | None
    by_sentence: Mapping[tuple[str, int, int], tuple[float, Sequence[int]]]

    def of_row(self, row: Mapping[str, Any]) -> list[list[Any] | None] | None:
        """Return IoU and run lengths for each sentence of a manifest row, or None if there is no prediction.

        Args:
            row: With `split`, `ref_id` and `sentences`.
        """
        found = [self.by_sentence.get((row["split"], row["ref_id"], s["sent_id"])) for s in row["sentences"]]
        return [None if one is None else [round(one[0], 4), one[1]] for one in found] if any(found) else None


def read_predictions(run: Path, descriptor: Descriptor, splits: Sequence[str] = ()) -> Predictions:
    """Read the predicted masks that an evaluation kept.

    Args:
        run: Folder of a run with results.
        descriptor: Descriptor of the dataset that is shown.
        splits: Splits whose predictions are wanted. If empty, all available splits are read.

    Raises:
        ResultsError: If the run has no results, or they cannot be read.
        UsageError: If no result of this dataset and these splits has predicted masks.
    """
    run = local_path(run)
    kept: list[Results] = []
    reasons = []
    for results in load_results(find_results(run)):
        origin = results.origin
        if results.is_control:
            continue
        if splits and origin.split not in splits:
            reasons.append(f"{origin.scored_on} is not shown")
        elif origin.dataset_digest != descriptor.digest:
            reasons.append(f"{origin.scored_on} was scored on another build ({origin.dataset_digest[:12]})")
        elif not has_predictions(results.rows, results.protocols[0]):
            reasons.append(f"{origin.scored_on} was scored without --save-predictions")
        elif kept and results.protocols[0] != kept[0].protocols[0]:
            reasons.append(f"{origin.scored_on} has masks of protocol {results.protocols[0].name}")
        else:
            kept.append(results)
    if not kept:
        raise UsageError(
            f"{run}: found no predicted masks of {descriptor.dataset} with digest {descriptor.digest[:12]}"
            f"{'; ' * bool(reasons)}{'; '.join(reasons)}; run `refseg evaluate` with --save-predictions on this dataset"
        )
    by_sentence: dict[tuple[str, int, int], tuple[float, Sequence[int]]] = {}
    for results in kept:
        rows, protocol = results.rows, results.protocols[0]
        keys = zip(*(rows.column(name).to_pylist() for name in ("split", "ref_id", "sent_id")), strict=True)
        masks = rows.column(column_name(protocol, "predicted_counts")).to_pylist()
        by_sentence.update(zip(keys, zip(row_ious(rows, protocol).tolist(), masks, strict=True), strict=True))
    return Predictions(
        subject=f"{kept[0].subject}, protocol {kept[0].protocols[0].name}",
        splits=tuple(dict.fromkeys(results.origin.split for results in kept)),
        size=kept[0].protocols[0].size,
        by_sentence=by_sentence,
    )
