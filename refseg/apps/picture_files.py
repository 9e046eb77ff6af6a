"""Finds the pictures that a user names by files, folders or URLs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from refseg.addresses import parse_address
from refseg.errors import ImageError, MissingImageError, StorageError, UsageError
from refseg.storage import Folder, WebFolder, open_folder

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of files that are taken from a folder; a file that is given by its path may have any name."""
RESULT_KINDS = ("mask", "overlay", "explain")
"""`refseg predict` writes `<name>.<kind>.png`, which is not a picture to be segmented."""
_NUM_NAMED = 5
"""Largest number of files that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A picture that has not been read yet.

    Attributes:
        address: Path or URL of the picture, for messages.
        folder: Folder from which it is read.
        name: Name of the picture in the folder. If empty, the address of the folder is the address of the picture.
    """

    address: str
    folder: Folder
    name: str

    @property
    def stem(self) -> str:
        """File name without the suffix. For a URL, the part from `?` on is also removed."""
        name = self.name or unquote(urlsplit(self.address).path)
        return PurePosixPath(name).stem or "picture"

    def read(self) -> bytes:
        """Read the bytes of the file.

        Raises:
            ImageError: If there is no such file, or it cannot be read.
        """
        try:
            return self.folder.read(self.name)
        except FileNotFoundError as error:
            raise _missing(self.address) from error
        except StorageError as error:
            raise ImageError(str(error)) from error
        except OSError as error:
            raise ImageError(f"{self.address}: cannot be read ({error.strerror}); check its permissions") from error


def find_pictures(addresses: Sequence[Path | str]) -> list[PictureFile]:
    """List pictures in the order of the arguments, without duplicates. Pictures of a folder are sorted by name.

    Args:
        addresses: Paths and URLs of pictures and of folders. From a folder, only the pictures directly in it are used.
            The URL of a folder on a web server must end with `/`.

    Raises:
        MissingImageError: If a path does not exist.
        UsageError: If a folder contains no picture. If an address is neither a path nor a URL.
        StorageError: If remote storage refuses or fails.
    """
    found: dict[str, PictureFile] = {}
    for address in map(parse_address, addresses):
        for picture in _local(address) if isinstance(address, Path) else _remote(address):
            found.setdefault(picture.address, picture)
    return list(found.values())


def _local(path: Path) -> list[PictureFile]:
    if path.is_dir():
        return _listed(open_folder(path))
    if not path.exists():
        raise _missing(str(path))
    return [PictureFile(address=str(path), folder=open_folder(path.parent), name=path.name)]


def _remote(url: str) -> list[PictureFile]:
    folder = open_folder(url)
    if url.endswith("/") or (not isinstance(folder, WebFolder) and folder.exists()):
        return _listed(folder)
    return [PictureFile(address=url, folder=folder, name="")]


def _listed(folder: Folder) -> list[PictureFile]:
    names = sorted(folder.list())
    pictures = [name for name in names if _is_picture(name)]
    if not pictures:
        raise UsageError(f"{folder}: found no picture, expected files such as .jpg or .png directly in this folder")
    if others := [name for name in names if not _is_picture(name)]:
        more = f" and {len(others) - _NUM_NAMED:,} more" if len(others) > _NUM_NAMED else ""
        logger.info("%s: not pictures, left out: %s%s", folder, ", ".join(others[:_NUM_NAMED]), more)
    return [PictureFile(address=folder.join(name), folder=folder, name=name) for name in pictures]


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return path.suffix in SUFFIXES and path.suffixes[-2:-1] not in [[f".{kind}"] for kind in RESULT_KINDS]


def _missing(address: str) -> MissingImageError:
    return MissingImageError(f"{address}: no such file; expected an image")
