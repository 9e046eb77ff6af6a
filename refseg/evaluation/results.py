"""Writes and reads evaluation results. Rows are stored as Parquet, and scores with rules and origin as JSON."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import ValidationError

from refseg.aside import file_aside, write_aside
from refseg.errors import ResultsError, UsageError
from refseg.evaluation.bootstrap import LEVEL, NUM_DRAWS, confidence_intervals
from refseg.evaluation.origin import Origin, read_origin
from refseg.evaluation.protocols import ORIGINAL, Protocol
from refseg.evaluation.rows import RowFacts, check_table
from refseg.evaluation.scores import Scores, score
from refseg.sealed import BrokenSealError, open_seal, parse_object, seal


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one evaluated split.

    Attributes:
        rows: Table with one row per sentence.
        origin: The checkpoint or masks that were scored, and the split.
    """

    rows: pa.Table
    origin: Origin

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols of the rows. The first one gives the headline scores."""
        return RowFacts.of(self.rows).protocols

    @cached_property
    def scores(self) -> Scores:
        """Scores by the first protocol."""
        return score(self.rows, self.protocols[0])

    @cached_property
    def other_scores(self) -> list[Scores]:
        """Scores by the other protocols."""
        return [score(self.rows, protocol) for protocol in self.protocols[1:]]

    @property
    def is_control(self) -> bool:
        """True for the shuffled control. Its scores are not scores of the model."""
        return RowFacts.of(self.rows).sentence_order == "shuffled"

    @property
    def subject(self) -> str:
        """Description of what was scored."""
        return self.origin.subject

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file, which consists of origin, scores and rules."""
        others = {scores.protocol.name: self._of_one(scores) for scores in self.other_scores}
        return {**self.origin.to_json(), **self._of_one(self.scores), "other_protocols": others}

    def _of_one(self, scores: Scores) -> dict[str, Any]:
        intervals = confidence_intervals(self.rows, scores.protocol)
        found = scores.to_json()
        found["scores"] = {name: _finite(value) for name, value in found["scores"].items()}
        return {**found, "intervals": {name: [_finite(end) for end in ends] for name, ends in intervals.items()}}


def _finite(value: float) -> float | None:
    """Replace NaN by None, because JSON has no NaN. A score for which no sentence counts becomes null."""
    return None if math.isnan(value) else value


INTERVAL_RULE = f"intervals: {LEVEL:.0%} of {NUM_DRAWS:,} draws of the images with replacement"
"""Line of text that is shown with intervals."""


def results_name(results: Results) -> str:
    """Return the file name stem of results. It contains dataset, split, non-default protocols and `shuffled`.

    Examples are `refcoco.unc-val`, `refcoco.unc-val-original+cris` and `refcoco.unc-val-shuffled`.
    """
    names = "+".join(protocol.name for protocol in results.protocols)
    parts = [results.origin.dataset.replace("/", "."), results.origin.split]
    parts += [names] * (names != ORIGINAL.name) + ["shuffled"] * results.is_control
    return "-".join(parts)


def rows_file(folder: Path, results: Results) -> Path:
    """Return the path to which `save_results` writes the rows."""
    return folder / f"rows-{results_name(results)}.parquet"


def save_results(folder: Path, results: Results) -> Path:
    """Write `rows-<name>.parquet` and `scores-<name>.json`, with the name that `results_name` returns.

    Each file is written under a temporary name and then renamed. The rows are renamed first. The scores file contains a
    hash of the rows file and a hash of its own content, so that `load_results` detects a change of either file.

    Returns:
        Path of the Parquet file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = results_name(results)
    rows, scores = rows_file(folder, results), folder / f"scores-{name}.json"
    scores.unlink(missing_ok=True)
    with file_aside(rows) as aside:
        pq.write_table(results.rows, aside, compression="zstd")
        rows_hash = _file_hash(aside)
    sealed = seal({**results.to_json(), _ROWS_HASH: rows_hash})
    write_aside(scores, json.dumps(sealed, indent=1) + "\n")
    return rows


def find_results(run: Path) -> Path:
    """Return the folder of a run's results.

    It is `RUN/evaluation`, or `RUN` itself after `refseg evaluate --out RUN`.

    Raises:
        ResultsError: If neither folder has results. If both folders have results, so that the choice is not clear.
    """
    folders = [folder for folder in (run, run / "evaluation") if any(folder.glob("scores-*.json"))]
    if not folders:
        raise ResultsError(
            f"{run}: found no scores-*.json here or in {run / 'evaluation'}; run `refseg evaluate` first"
        )
    if len(folders) > 1:
        raise ResultsError(
            f"{run}: found scores-*.json here and in {run / 'evaluation'}, expected them in one of the two; move those "
            f"in {run} and their rows to another folder, or give {run / 'evaluation'} instead"
        )
    return folders[0]


def load_results(folder: Path) -> list[Results]:
    """Read all results of a folder. Scores come before controls, and both are ordered by dataset and split.

    Raises:
        ResultsError: If there are no results. If a file was changed, or was not written by `save_results`.
    """
    found = []
    for path in sorted(folder.glob("scores-*.json")):
        rows = path.with_name(path.name.replace("scores-", "rows-", 1)).with_suffix(".parquet")
        try:
            fields = open_seal(parse_object(path.read_bytes()))
            if _file_hash(rows) != fields[_ROWS_HASH]:
                raise UsageError(f"{rows.name} was changed after it was written, or belongs to other scores")
            origin = read_origin(fields)
            table = pq.read_table(rows)
            check_table(table)  # checked here, because the error can name the file
            found.append(Results(rows=table, origin=origin))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultsError(f"{path}: {where}: {first['msg']}; run `refseg evaluate` again") from error
        except (OSError, KeyError, ValueError, pa.ArrowException, UsageError, BrokenSealError) as error:
            raise ResultsError(
                f"{path}: cannot be read with its rows ({error}); run `refseg evaluate` again"
            ) from error
    if not found:
        raise ResultsError(f"{folder}: found no scores-*.json; run `refseg evaluate` first")
    return sorted(found, key=_order)


_ROWS_HASH = "rows_xxh3_128"
"""Key of the hash of the rows' file."""


def _file_hash(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def _order(results: Results) -> tuple[bool, str, tuple[int, str]]:
    split = results.origin.split
    usual = ("val", "testA", "testB", "test", "train")
    position = usual.index(split) if split in usual else len(usual)
    return results.is_control, results.origin.dataset, (position, split)
