"""Writes images of shards as files of a folder, each when a client first reads its name."""

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
    """A folder into which images are written when they are needed; several processes may use it at the same time.

    Args:
        path: Path of the folder; it is created with the first image. Existing files are used after one comparison.
        is_ours: True: the folder is refseg's cache, so a file with other bytes is damaged and is written again. False:
            the folder belongs to the user, so such a file may be another picture and is not changed.
        images: Reads the pictures from the tars.
        rows: A row of each image by image id, with `row_images.IMAGE_COLUMNS` and `image_xxh3`.
    """

    def __init__(self, path: Path, *, is_ours: bool, images: RowImages, rows: Mapping[int, Row]) -> None:
        self.path = path
        self._is_ours = is_ours
        self._images = images
        self._rows = rows
        self._there: set[int] = set()

    def provide(self, image_id: int) -> Path:
        """Write an image's file with the bytes of its JPEG, unless it exists, and return its path.

        Raises:
            DatasetError: If the sample is damaged, its path is outside the folder, or the user has another file of
                that name.
            StorageError: If storage refuses or fails, or the folder cannot be written.
        """
        row = self._rows[image_id]
        path = path_inside(self.path, row["file_name"])
        if image_id in self._there:
            return path
        found = path.read_bytes() if path.is_file() else None
        if found is None or (self._is_ours and not _is_image(found, row)):
            if found is not None:
                logger.warning("%s: found %d bytes that are not the image; it is written again", path, len(found))
            self._write(path, row)
        elif not _is_image(found, row):
            raise DatasetError(
                f"{path}: found {len(found)} bytes, expected the {row['image_bytes']} bytes in the shards; the file is "
                "another picture or damaged: remove it, and it is written again"
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
                "set REFSEG_CACHE to a folder on a disk with free space"
                if self._is_ours
                else "check permissions and free disk space"
            )
            raise StorageError(
                error.errno, f"pictures cannot be written there ({error.strerror}); {remedy}", str(self.path)
            ) from error


def _is_image(data: bytes, row: Row) -> bool:
    return len(data) == row["image_bytes"] and xxhash.xxh3_64_hexdigest(data) == row["image_xxh3"]


def path_inside(folder: Path, file_name: str) -> Path:
    """Return the path of an image below a folder.

    Args:
        folder: Folder for images.
        file_name: File name in a manifest, which may contain folders; the dataset may be untrusted.

    Raises:
        DatasetError: If the name is empty or absolute, or its path is outside the folder.
    """
    name = PurePosixPath(file_name)
    if not name.name or name.is_absolute() or ".." in name.parts or "\\" in file_name or "\0" in file_name:
        raise DatasetError(
            f"found file name {file_name!r}, expected a path below the folder of images; no file is written for it: "
            "get the dataset from a source that you trust"
        )
    return folder / name


class ImageRecord(dict[str, Any]):
    """An image's record of `instances.json`. Its file is written when `file_name` is first read.

    Clients get records long before they need files. To open a file they join `file_name` to a folder, so that reading
    this field, in whatever way, is the moment at which the file is needed.

    Args:
        fields: The record.
        folder: Folder for the image's file.
    """

    def __init__(self, fields: Mapping[str, Any], folder: ImageFolder) -> None:
        super().__init__(fields)
        self._folder = folder

    def __getitem__(self, key: str) -> Any:
        if key == "file_name":
            self._provide()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Like `dict.get`; for `file_name` the file is written."""
        return self[key] if key in self else default  # noqa: SIM401 - it would call itself

    def __iter__(self) -> Iterator[str]:
        # With an `__iter__` of its own, `dict(record)` and `{**record}` call `__getitem__`.
        return super().__iter__()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Like `dict.items`; the file is written."""
        self._provide()
        return super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Like `dict.values`; the file is written."""
        self._provide()
        return super().values()

    def copy(self) -> dict[str, Any]:
        """Return a plain dict; the file is written."""
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        # A plain dict, because otherwise the folder with the rows of all images would be copied with each record.
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling a record must not write its file, so this does not call `__getitem__`.
        return ImageRecord, ({key: super(ImageRecord, self).__getitem__(key) for key in self}, self._folder)

    def _provide(self) -> None:
        self._folder.provide(super().__getitem__("id"))
