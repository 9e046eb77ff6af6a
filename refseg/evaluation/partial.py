"""What an evaluation has counted so far, kept in small files, so that one that was interrupted goes on."""

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
    """What one process counted, and the predictions where asked for."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    """Row, sentence; then intersection, predicted area and target area by each protocol."""
    predictions: list[list[NDArray[np.uint32]]] = field(default_factory=list)
    """By sentence, then by protocol."""


class CountedParts:
    """Part files of one evaluation: each holds sentences, named by their places in the index, that a process counted.

    They lie in a folder named by a hash of all that counts depend on, so what was counted of another model, dataset or
    rule is not seen. A file is named by the hash of its content, so a torn one is known. Any number of processes may
    write, and any number may go on.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any], *, seconds_apart: float = 20.0) -> None:
        """Name the place.

        Args:
            folder: For all evaluations whose results replace each other; `remove` removes it.
            subject: What tells the model from any other, as JSON values.
            seconds_apart: Between the files of one process: what an interruption costs at most.
        """
        self._folder = folder
        self._subject = subject
        self._seconds_apart = seconds_apart
        self._own = folder
        self._num_kept = 0
        self._last = 0.0

    def open(self, settings: Mapping[str, Any]) -> None:
        """Choose the evaluation; comes before all else.

        Args:
            settings: All else that counts depend on, as JSON values.
        """
        key = json.dumps({"subject": self._subject, "settings": settings}, sort_keys=True)
        self._own = self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self._num_kept, self._last = 0, time.monotonic()

    def read(self) -> Found:
        """What was counted of the evaluation so far, each sentence once; what cannot be read is left out."""
        found = Found()
        seen = set()
        for path in sorted(self._own.glob("*.parquet")):
            content = path.read_bytes()
            if path.stem != xxhash.xxh3_128_hexdigest(content):
                logger.warning("%s: torn; what it held is counted again", path)
                continue
            part = pq.read_table(pa.BufferReader(content))
            for counted in part.to_pylist():
                place = counted["row"], counted["sentence"]
                if place not in seen:
                    seen.add(place)
                    found.rows.append((*place, *counted["pixels"]))
                    found.predictions.append([np.array(runs, np.uint32) for runs in counted["predictions"]])
        return found

    def skip(self, found: Found) -> None:
        """Take what `found` holds as kept already."""
        self._num_kept = len(found.rows)

    def keep(self, found: Found, *, at_once: bool = False) -> None:
        """Write what was found since the last file, if that was long enough ago.

        Args:
            found: Of this process, whole batches only: it has grown since the last call.
            at_once: However short it is.

        Raises:
            TrainingError: If the disk refuses.
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
            self._own.mkdir(parents=True, exist_ok=True)  # each time: another evaluation may end and remove it
            write_aside(path, content)
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); see to the folder's rights and space, and the same "
                "command goes on"
            ) from error
        self._num_kept, self._last = len(found.rows), time.monotonic()

    def remove(self) -> None:
        """Drop all parts of this folder, also those of other models: the results that took their place are written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def weights_digest(model: torch.nn.Module) -> str:
    """Hash of the names, types, shapes and values of a model's weights and buffers."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
