"""Images of shards as files of a folder, each written when a client first takes its name."""

import logging
import os
import secrets
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from refseg.cache_files import make_cache_folder
from refseg.compat.file_names import path_inside
from refseg.dataset.shard_files import HEADER_BYTES, ShardFiles
from refseg.errors import DatasetError, StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """Where an image lies, in the terms of `ShardFiles`.

    Attributes:
        file_name: What its file will be called.
        shard: Position of the tar.
        image_offset: Of the JPEG in the tar.
        image_bytes: Length of the JPEG.
        image_xxh3: Of the JPEG.
        sample_bytes: Length of the whole sample.
        sample_xxh3: Of the whole sample.
    """

    file_name: str
    shard: int
    image_offset: int
    image_bytes: int
    image_xxh3: int
    sample_bytes: int
    sample_xxh3: int


class ImageFolder:
    """A folder that fills with the images asked for; any number of processes may ask at once.

    Args:
        path: Of the folder; made with the first image. Files that are there already are used, each compared once.
        is_ours: The folder is a cache, in which a file with other bytes (cut by a power cut, written over) is written
            anew. In a user's own folder it may be another picture, and is left alone.
        shards: The tars.
        places: By image id.
    """

    def __init__(self, path: Path, *, is_ours: bool, shards: ShardFiles, places: Mapping[int, ImagePlace]) -> None:
        self.path = path
        self._is_ours = is_ours
        self._shards = shards
        self._places = places
        self._there: set[int] = set()

    def provide(self, image_id: int) -> Path:
        """Write an image's file, with the JPEG's own bytes, unless it is there.

        Raises:
            DatasetError: If the sample is damaged, its name leads out of the folder, or another file of the user's
                has it.
            StorageError: If storage refuses or fails, or the folder cannot be written.
        """
        place = self._places[image_id]
        path = path_inside(self.path, place.file_name)
        if image_id in self._there:
            return path
        found = path.read_bytes() if path.is_file() else None
        if found is None or (self._is_ours and not _is_image(found, place)):
            if found is not None:
                logger.warning("%s: found %d bytes that are not the image's; it is written anew", path, len(found))
            self._write(path, place)
        elif not _is_image(found, place):
            raise DatasetError(
                f"{path}: found {len(found)} bytes, expected the {place.image_bytes} of the shards; it is another "
                "picture's, or damaged: remove it, and it is written again"
            )
        self._there.add(image_id)
        return path

    def _write(self, path: Path, place: ImagePlace) -> None:
        sample = self._shards.read_sample(
            place.shard,
            start=place.image_offset - HEADER_BYTES,
            num_bytes=place.sample_bytes,
            xxh3=place.sample_xxh3,
            where=f"{self._shards.tars[place.shard]}: {place.file_name}",
        )
        temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            if self._is_ours:
                make_cache_folder(self.path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(sample[HEADER_BYTES : HEADER_BYTES + place.image_bytes].tobytes())
            temporary.replace(path)  # whoever opens the name finds the whole file
        except OSError as error:
            remedy = (
                "set REFSEG_CACHE to a folder on a disk with room" if self._is_ours else "see to its rights and space"
            )
            raise StorageError(
                error.errno, f"pictures cannot be written there ({error.strerror}); {remedy}", str(self.path)
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()


def _is_image(data: bytes, place: ImagePlace) -> bool:
    return len(data) == place.image_bytes and xxhash.xxh3_64_intdigest(data) == place.image_xxh3


class ImageRecord(dict[str, Any]):
    """An image's record of `instances.json`, whose file is there as soon as somebody has read its name.

    A client joins `file_name` to a folder and opens that, often long after it got the record; so reading the name, in
    whatever way, is the moment at which the file is needed.

    Args:
        fields: The record.
        folder: Where its file belongs.
    """

    def __init__(self, fields: Mapping[str, Any], folder: ImageFolder) -> None:
        super().__init__(fields)
        self._folder = folder

    def __getitem__(self, key: str) -> Any:
        if key == "file_name":
            self._provide()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[key] if key in self else default  # noqa: SIM401 - it would call itself

    def __iter__(self) -> Iterator[str]:
        # Our own, so that `dict(record)` and `{**record}` come through `__getitem__`.
        return super().__iter__()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """As of a dict."""
        self._provide()
        return super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """As of a dict."""
        self._provide()
        return super().values()

    def copy(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        # Plain as well: the folder knows all images, and would be copied with each.
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A record that goes to another process needs no file for it, so nothing here comes through `__getitem__`.
        return ImageRecord, ({key: super(ImageRecord, self).__getitem__(key) for key in self}, self._folder)

    def _provide(self) -> None:
        self._folder.provide(super().__getitem__("id"))
