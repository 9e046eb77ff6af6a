"""Images of shards as files of a folder, each written when a client first takes its name."""

import logging
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from refseg.aside import file_aside
from refseg.cache_files import make_cache_folder
from refseg.dataset.row_images import RowImages
from refseg.errors import DatasetError, StorageError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class ImageFolder:
    """A folder that fills with the images asked for; any number of processes may ask at once.

    Args:
        path: Of the folder; made with the first image. Files that are there already are used, each compared once.
        is_ours: The folder is a cache, in which a file with other bytes (cut by a power cut, written over) is written
            anew. In a user's own folder it may be another picture, and is left alone.
        images: Reads the pictures out of the tars.
        rows: By image id: a row of the image, with `row_images.IMAGE_COLUMNS` and `image_xxh3`.
    """

    def __init__(self, path: Path, *, is_ours: bool, images: RowImages, rows: Mapping[int, Row]) -> None:
        self.path = path
        self._is_ours = is_ours
        self._images = images
        self._rows = rows
        self._there: set[int] = set()

    def provide(self, image_id: int) -> Path:
        """Write an image's file, with the JPEG's own bytes, unless it is there.

        Raises:
            DatasetError: If the sample is damaged, its name leads out of the folder, or another file of the user's
                has it.
            StorageError: If storage refuses or fails, or the folder cannot be written.
        """
        row = self._rows[image_id]
        path = path_inside(self.path, row["file_name"])
        if image_id in self._there:
            return path
        found = path.read_bytes() if path.is_file() else None
        if found is None or (self._is_ours and not _is_image(found, row)):
            if found is not None:
                logger.warning("%s: found %d bytes that are not the image's; it is written anew", path, len(found))
            self._write(path, row)
        elif not _is_image(found, row):
            raise DatasetError(
                f"{path}: found {len(found)} bytes, expected the {row['image_bytes']} of the shards; it is another "
                "picture's, or damaged: remove it, and it is written again"
            )
        self._there.add(image_id)
        return path

    def _write(self, path: Path, row: Row) -> None:
        jpeg = self._images.read(row)
        try:
            if self._is_ours:
                make_cache_folder(self.path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_aside(path, is_shared=True) as aside:
                aside.write_bytes(jpeg)
        except OSError as error:
            remedy = (
                "set REFSEG_CACHE to a folder on a disk with room" if self._is_ours else "see to its rights and space"
            )
            raise StorageError(
                error.errno, f"pictures cannot be written there ({error.strerror}); {remedy}", str(self.path)
            ) from error


def _is_image(data: bytes, row: Row) -> bool:
    return len(data) == row["image_bytes"] and xxhash.xxh3_64_hexdigest(data) == row["image_xxh3"]


def path_inside(folder: Path, file_name: str) -> Path:
    """The path of an image below a folder.

    Args:
        folder: Where images are put.
        file_name: File name in a manifest, perhaps with folders; the dataset may be untrusted.

    Raises:
        DatasetError: If the name is empty, absolute or leads out of the folder.
    """
    name = PurePosixPath(file_name)
    if not name.name or name.is_absolute() or ".." in name.parts or "\\" in file_name or "\0" in file_name:
        raise DatasetError(
            f"found file name {file_name!r}, expected a name below the folder of images; "
            "nothing is written for it: ask whoever built the dataset"
        )
    return folder / name


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
