"""Saves the pixel counts of an unfinished evaluation in small files, so that an interrupted evaluation can resume."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from numpy.typing import NDArray

from refseg.aside import write_aside
from refseg.errors import TrainingError

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "sentence": pa.int64(),
        "pixels": pa.list_(pa.int64()),
        "predictions": pa.list_(pa.list_(pa.uint32())),
    }
)


@dataclass(slots=True)
class Found:
    """Pixel counts computed by one process, and the predictions of this process if they are kept."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    """For each sentence its row and position; then intersection, predicted area and target area for each protocol."""
    predictions: list[list[NDArray[np.uint32]]] = field(default_factory=list)
    """Run lengths of the predicted masks, by sentence and then by protocol."""


class CountedParts:
    """The part files of one evaluation. Each file stores the counts of some sentences by index position.

    The name of the folder is a hash of everything that the counts depend on. Therefore counts of another model, dataset
    or protocol are never used. The name of a file is the hash of its content, so damaged files are detected. Several
    processes may write files, and an evaluation may be resumed by another number of processes.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any], *, seconds_apart: float = 20.0) -> None:
        """Set the folder. No file is read or written yet.

        Args:
            folder: Folder for all evaluations whose results replace each other. `remove` deletes this folder.
            subject: JSON values that identify the model.
            seconds_apart: Time in seconds between two files of one process. An interruption loses at most the work of
                this time.
        """
        self._folder = folder
        self._subject = subject
        self._seconds_apart = seconds_apart
        self._own = folder
        self._num_kept = 0
        self._last = 0.0

    def open(self, settings: Mapping[str, Any]) -> None:
        """Select the evaluation. This method must be called before all others.

        Args:
            settings: Everything that the counts depend on besides the model, as JSON values.
        """
        key = json.dumps({"subject": self._subject, "settings": settings}, sort_keys=True)
        self._own = self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self._num_kept, self._last = 0, time.monotonic()

    def read(self) -> Found:
        """Read the saved counts of the evaluation, each sentence once. Damaged files are skipped with a warning."""
        found = Found()
        seen = set()
        for path in sorted(self._own.glob("*.parquet")):
            content = path.read_bytes()
            if path.stem != xxhash.xxh3_128_hexdigest(content):
                logger.warning("%s: the file is damaged; its sentences are counted again", path)
                continue
            part = pq.read_table(pa.BufferReader(content))
            for counted in part.to_pylist():
                position = counted["row"], counted["sentence"]
                if position not in seen:
                    seen.add(position)
                    found.rows.append((*position, *counted["pixels"]))
                    found.predictions.append([np.array(runs, np.uint32) for runs in counted["predictions"]])
        return found

    def skip(self, found: Found) -> None:
        """Treat the counts in `found` as saved already."""
        self._num_kept = len(found.rows)

    def keep(self, found: Found, *, at_once: bool = False) -> None:
        """Write the counts that are not yet in a file, if enough time has passed since the last file.

        Args:
            found: All counts of this process so far. Only complete batches may be included.
            at_once: True to write regardless of the time.

        Raises:
            TrainingError: If the file cannot be written.
        """
        rows = found.rows[self._num_kept :]
        if not rows or (not at_once and time.monotonic() - self._last < self._seconds_apart):
            return
        predictions = found.predictions[self._num_kept :] or [[] for _ in rows]
        columns = [
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2:] for row in rows],
            predictions,
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(arrays, schema=_SCHEMA), buffer, compression="zstd")
        content = buffer.getvalue().to_pybytes()
        path = self._own / f"{xxhash.xxh3_128_hexdigest(content)}.parquet"
        try:
            self._own.mkdir(parents=True, exist_ok=True)  # another evaluation that ended may have removed the folder
            write_aside(path, content)
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); check the folder's permissions and the free disk "
                "space, then run the same command again to resume"
            ) from error
        self._num_kept, self._last = len(found.rows), time.monotonic()

    def remove(self) -> None:
        """Remove all part files of this folder, including those of other models. Call it after writing the results."""
        shutil.rmtree(self._folder, ignore_errors=True)


def weights_digest(model: torch.nn.Module) -> str:
    """Return a hash of the names, types, shapes and values of a model's weights and buffers."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
