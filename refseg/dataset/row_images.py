"""Reads the pictures of manifest rows from the tars that the rows refer to."""

from collections.abc import Iterable, Mapping
from typing import Any

from refseg.dataset.built import BuiltDataset
from refseg.dataset.shard_cache import Tar
from refseg.dataset.shard_files import HEADER_BYTES, ShardFiles

IMAGE_COLUMNS = (
    *("image_id", "file_name", "height", "width"),
    *("shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3"),
)
"""Columns of the manifest that `RowImages` needs."""


class RowImages:
    """Reads the pictures of rows; any number of threads may read at once.

    Args:
        dataset: The dataset of the rows.
        names: Values of the rows' column `shard`; duplicates are allowed.

    Raises:
        DatasetError: If a tar is missing, differs from the one that was built, or is on a host that is not allowed.
        StorageError: If storage refuses or fails.
    """

    def __init__(self, dataset: BuiltDataset, names: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self._files = ShardFiles(dataset.tars(list(self._numbers)))

    def tar(self, row: Mapping[str, Any]) -> Tar:
        """Return the tar that holds a row's picture."""
        return self._files.tars[self._numbers[row["shard"]]]

    def where(self, row: Mapping[str, Any]) -> str:
        """Return the tar, id and file name of a row's picture, for messages."""
        return f"{self.tar(row)}: image {row['image_id']} ({row['file_name']})"

    def read(self, row: Mapping[str, Any]) -> bytes:
        """Return the JPEG of a row. The whole sample is read and its hash compared.

        Args:
            row: Plain values of at least `IMAGE_COLUMNS`.

        Raises:
            DatasetError: If the tar is missing or truncated, or the sample differs from the one that was built.
            StorageError: If storage refuses or fails.
        """
        sample = self._files.read_sample(
            self._numbers[row["shard"]],
            start=row["image_offset"] - HEADER_BYTES,
            num_bytes=row["sample_bytes"],
            xxh3=int(row["sample_xxh3"], 16),
            where=self.where(row),
        )
        return sample[HEADER_BYTES : HEADER_BYTES + row["image_bytes"]].tobytes()

    def check_size(self, row: Mapping[str, Any], jpeg: bytes) -> None:
        """Check that the header of a row's picture states the size at which it was stored.

        The check comes before decoding, because a small file may claim a size that takes gigabytes to decode.

        Raises:
            ImageError: If the sizes differ.
        """
        self.tar(row).check_picture(jpeg, (row["height"], row["width"]))
