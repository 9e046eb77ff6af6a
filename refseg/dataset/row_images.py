"""The pictures of manifest rows, out of the tars that the rows name."""

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
    """Reads the picture of a row; any number of threads may read at once.

    Args:
        dataset: The dataset of the rows.
        names: What the rows call their tars, each once or several times.

    Raises:
        DatasetError: As of `BuiltDataset.tars`.
    """

    def __init__(self, dataset: BuiltDataset, names: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self._files = ShardFiles(dataset.tars(list(self._numbers)))

    def tar(self, row: Mapping[str, Any]) -> Tar:
        """The tar that holds a row's picture."""
        return self._files.tars[self._numbers[row["shard"]]]

    def where(self, row: Mapping[str, Any]) -> str:
        """A row's picture in words, for messages."""
        return f"{self.tar(row)}: image {row['image_id']} ({row['file_name']})"

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The JPEG of a row, out of its whole sample, whose hash is compared.

        Args:
            row: With `IMAGE_COLUMNS`, as plain values.

        Raises:
            DatasetError: If its tar is missing or cut short, or the sample is not the one that was built.
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
        """Check that the header of a row's picture says the size at which it was stored.

        Raises:
            ImageError: If it says another: a small file may claim a size that takes gigabytes to decode.
        """
        self.tar(row).check_picture(jpeg, (row["height"], row["width"]))
