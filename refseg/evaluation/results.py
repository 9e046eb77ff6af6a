"""Evaluation results on disk: rows as Parquet and, beside them, the scores with their rules and origin as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.errors import UsageError
from refseg.evaluation.protocols import RowFacts, Scores, score


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One evaluated split.

    Attributes:
        rows: One per sentence.
        origin: What was evaluated, as plain JSON values: checkpoint, step, dataset, dataset digest, split, and so on.
    """

    rows: pa.Table
    origin: dict[str, Any]

    @property
    def scores(self) -> Scores:
        """Scores by the rules the rows were made by."""
        return score(self.rows, RowFacts.of(self.rows).protocol)

    @property
    def is_control(self) -> bool:
        """True for the shuffled control, which is no score of the model."""
        return RowFacts.of(self.rows).sentence_order == "shuffled"

    def to_json(self) -> dict[str, Any]:
        """Origin, scores and rules: the content of the JSON file."""
        return {**self.origin, **self.scores.to_json()}


def save_results(folder: Path, results: Results) -> Path:
    """Write `rows-<split>.parquet` and `scores-<split>.json` (the control's names end in `-shuffled`).

    Each file is written aside and renamed, the rows first: scores never stand beside rows they do not come from.

    Returns:
        The Parquet file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{results.origin['split']}-shuffled" if results.is_control else str(results.origin["split"])
    rows, scores = folder / f"rows-{name}.parquet", folder / f"scores-{name}.json"
    scores.unlink(missing_ok=True)
    aside = folder / f".rows-{name}.part"
    pq.write_table(results.rows, aside, compression="zstd")
    aside.replace(rows)
    aside = folder / f".scores-{name}.part"
    aside.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    aside.replace(scores)
    return rows


def load_results(folder: Path) -> list[Results]:
    """Read all results of a folder: scores before controls, each in the order of the splits' names.

    Raises:
        UsageError: If there are none, or a file is not what `save_results` wrote.
    """
    found = []
    for path in sorted(folder.glob("scores-*.json")):
        rows = path.with_name(path.name.replace("scores-", "rows-", 1)).with_suffix(".parquet")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            origin = {key: value for key, value in fields.items() if key not in _COMPUTED}
            found.append(Results(rows=pq.read_table(rows), origin=origin))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UsageError(f"{path}: cannot be read with its rows ({error}); run `refseg evaluate` again") from error
    if not found:
        raise UsageError(f"{folder}: found no scores-*.json; run `refseg evaluate` first")
    return sorted(found, key=lambda results: (results.is_control, _split_order(results.origin["split"])))


_COMPUTED = {"scores", "num_sentences", "num_refs", "num_images", "num_no_target", "rules", "facts"}


def _split_order(split: str) -> tuple[int, str]:
    usual = ("val", "testA", "testB", "test", "train")
    return (usual.index(split) if split in usual else len(usual), split)
