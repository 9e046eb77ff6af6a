"""Finds the images that annotations refer to, and downloads only these.

Images are read from a remote archive with byte ranges, or as single files.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.images import FETCHES, ImageFinder
from pipelines.jpeg_faults import find_jpeg_fault
from pipelines.records import find_integer
from pipelines.sources import read_source
from pipelines.sources.source_file import local_annotations
from refseg.aside import write_aside
from refseg.dataset.schema import DatasetSpec
from refseg.errors import DownloadError, RefsegError
from refseg.storage import open_file, open_folder
from refseg.storage_requests import ask
from refseg.wording import counted

logger = logging.getLogger(__name__)

_MOST_MISSING = 3 * FETCHES
"""If a mirror has none of the first `_MOST_MISSING` images, the next mirror is tried."""


@dataclass(frozen=True, slots=True)
class NeededImage:
    """An image that at least one ref refers to.

    Attributes:
        image_id: COCO's id of the image.
        name: File name without folders.
        height: Annotated height in pixels.
        width: Annotated width in pixels.
    """

    image_id: int
    name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """A folder or archive from which single images can be read.

    Attributes:
        address: Path or URL of the folder or archive.
        folder: Folder of the images within the archive; empty if `address` is a folder.
        archive_bytes: Expected size of the archive in bytes; 0 if `address` is a folder.
    """

    address: str
    folder: str = ""
    archive_bytes: int = 0


def find_needed(specs: Iterable[DatasetSpec], annotations: Path) -> list[NeededImage]:
    """Find the images of some datasets that are not yet below the annotations' folder.

    The result is sorted by id and has no repetitions.

    Args:
        specs: Datasets with COCO's images.
        annotations: Folder of the annotations, which may be in archives.

    Raises:
        AnnotationError, UsageError, StorageError: If annotations are missing or cannot be read.
    """
    found: dict[int, NeededImage] = {}
    for spec in specs:
        with local_annotations(annotations, spec.folder) as folder:
            source = read_source(spec, folder)
            wanted = {find_integer(ref, "image_id") for ref in source.refs}
            for section, record in source.tables:
                if section == "images" and (image_id := find_integer(record, "id")) in wanted and image_id is not None:
                    name, size = record.get("file_name"), [find_integer(record, side) for side in ("height", "width")]
                    if isinstance(name, str) and (name := PurePosixPath(name).name) and None not in size:
                        found[image_id] = NeededImage(image_id, name, *(side or 0 for side in size))
    finder = ImageFinder([annotations], is_coco=True)
    missing = (image for image in found.values() if finder.find(image.image_id, image.name) is None)
    return sorted(missing, key=lambda image: image.image_id)


def fetch_images(
    images: Sequence[NeededImage], out: Path, places: Sequence[ImagePlace], progress: Callable[[int], None]
) -> None:
    """Download images, several at a time. A file appears under its name only when it is complete.

    Args:
        images: The images to download.
        out: Folder for the files.
        places: Folders and archives to read from, in order of preference.
        progress: Called after each image with its size in bytes.

    Raises:
        DownloadError: If some images are in none of the places.
        OSError: If an image cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    faults = []
    left = list(images)
    for place in places:
        if fault := _fetch_from(place, left, out, progress):
            faults.append(fault)
            logger.warning("%s", fault)
        left = [image for image in left if not (out / image.name).exists()]
        if not left:
            return
    listed = "".join(f"\n  {fault}" for fault in faults)
    raise DownloadError(
        f"{out}: {counted(len(left), 'image')} of {len(images):,} could not be downloaded ({left[0].name}); run the "
        f"same command again later to continue, or add --mirror URL{listed}"
    )


def _fetch_from(place: ImagePlace, images: Sequence[NeededImage], out: Path, progress: Callable[[int], None]) -> str:
    """Download the images that a place has. Return the first fault; empty if there is none."""
    folder = open_folder(f"zip://{place.folder}::{place.address}" if place.folder else place.address)
    try:
        if place.folder:
            found = ask("reading", place.address, open_file(place.address).size)
            if found != place.archive_bytes:
                return f"{place.address}: found {found:,} bytes, expected {place.archive_bytes:,}"
            if not folder.exists():
                return f"{place.address}: found no folder {place.folder} in the archive"
    except FileNotFoundError:
        return f"{place.address}: no such file"
    except RefsegError as error:
        return str(error)

    def fetch(image: NeededImage) -> str:
        try:
            data = folder.read(image.name) if place.folder else _read_whole(folder.join(image.name))
        except FileNotFoundError:
            return f"{folder.join(image.name)}: no such file"
        if fault := find_jpeg_fault(data, image.height, image.width, decode=False):
            return f"{folder.join(image.name)}: {fault.found}"
        write_aside(out / image.name, data)
        progress(len(data))
        return ""

    pool = ThreadPoolExecutor(FETCHES)
    faults: list[str] = []
    try:
        for number, fault in enumerate(pool.map(fetch, images)):
            faults += [fault] if fault else []
            if len(faults) == number + 1 == _MOST_MISSING:
                break
    except RefsegError as error:
        return str(error)
    finally:
        pool.shutdown(cancel_futures=True)
    return faults[0] if faults else ""


def _read_whole(address: str) -> bytes:
    """Return the content of a file that is not in an archive."""

    def request() -> bytes:
        with open_file(address).open_part() as part:
            data = b"".join(part.chunks)
        if part.num_bytes not in (None, len(data)):
            raise OSError(f"found {len(data)} bytes, expected {part.num_bytes}")
        return data

    return ask("reading", address, request)
