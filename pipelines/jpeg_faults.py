"""Finds faults of image files: another kind of file, another size, a missing end, or damaged data."""

import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from PIL import JpegImagePlugin

from pipelines.images import FETCHES, SourceImage
from refseg.errors import ImageError, StorageError
from refseg.file_kinds import describe_other_kind
from refseg.jpeg_header import open_stored_jpeg
from refseg.storage import is_remote, read_file

_JPEG_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_END_OF_IMAGE = 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations with which a viewer exchanges height and width."""
_HEAD_BYTES = 1 << 16
"""Bytes that are read first. They usually contain everything before the pixels; an EXIF segment has at most as many."""


class JpegFault(NamedTuple):
    """A fault of an image file.

    Attributes:
        reason: A key of `rejects.REASONS`.
        found: What was found, what was expected and what to do. The text continues a message after the file's name.
    """

    reason: str
    found: str


Convert = Callable[[bytes], bytes | JpegFault]
"""A function from a file's content to the JPEG that is stored in its place, or to its fault."""


def read_jpeg_sizes(
    images: Sequence[SourceImage], *, convert: Convert | None = None
) -> list[tuple[int, int] | JpegFault]:
    """Return the stored `(height, width)` of each image in pixels, or the fault because of which there is none.

    A picture that EXIF rotates by 90 degrees is a fault, because annotations could mean either of its two sizes. Remote
    images are read several at a time.

    Args:
        images: Where the images are.
        convert: Applied to each file before its size is read; None: files are read as they are.

    Raises:
        StorageError: If remote storage fails.
    """
    read = partial(_read_jpeg_size, convert=convert)
    if any(is_remote(image.address) for image in images):
        with ThreadPoolExecutor(FETCHES) as pool:
            return list(pool.map(read, images))
    return list(map(read, images))


def _read_jpeg_size(image: SourceImage, *, convert: Convert | None) -> tuple[int, int] | JpegFault:
    """Read the size from the start of a file, or from the whole file if the start is not sufficient."""
    try:
        if convert is not None:
            data = convert(read_file(image.address))
            picture = data if isinstance(data, JpegFault) else open_jpeg(data)
        else:
            picture = open_jpeg(read_file(image.address, 0, _HEAD_BYTES))
        if convert is None and isinstance(picture, JpegFault) and image.num_bytes > _HEAD_BYTES:
            picture = open_jpeg(read_file(image.address))
    except StorageError:
        raise  # a fault of the storage, not of the image
    except OSError as error:
        return JpegFault("missing_image", f"cannot be read ({error.strerror or error}); fetch the file again")
    if isinstance(picture, JpegFault):
        return picture
    orientation = find_orientation(picture)
    if orientation in _TURNED:
        width, height = picture.size
        return JpegFault(
            "size_mismatch",
            f"is stored rotated (EXIF orientation {orientation}): {width} x {height} pixels as stored, {height} x "
            f"{width} as shown; rotate the pixels and remove the tag, or give height {height} and width {width} if "
            "its targets are in stored pixels",
        )
    return picture.height, picture.width


def open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile | JpegFault:
    """Read the header of a JPEG without decoding its pixels."""
    try:
        return open_stored_jpeg(data)
    except ImageError:
        if data.startswith(_JPEG_START):
            found = f"ends or is damaged within its first {len(data)} bytes; fetch the file again"
            return JpegFault("truncated_image", found)
        return JpegFault("not_a_jpeg", describe_other_kind(data, "JPEG"))


def find_jpeg_fault(data: bytes, height: int, width: int, *, decode: bool, size_from: str = "") -> JpegFault | None:
    """Compare a JPEG's size with the annotated one and decode it completely.

    Greyscale and CMYK are allowed. The size is compared before decoding, so that a picture of a billion pixels is
    refused at no cost. The picture is decoded at an eighth of its size and without colour. libjpeg still reads all of
    the data and finds the same faults, in 2/3 of the time.

    Args:
        data: Content of the file.
        height: Annotated height in pixels.
        width: Annotated width in pixels.
        decode: False: check only the header and the end marker.
        size_from: The row or file that gave the annotated size, such as a mask; empty: the image's own record.

    Returns:
        The fault, or None if there is none.
    """
    picture = open_jpeg(data)
    if isinstance(picture, JpegFault):
        return picture
    if picture.size != (width, height):
        found_width, found_height = picture.size
        orientation = find_orientation(picture)
        if picture.size == (height, width) and orientation in _TURNED:
            remedy = (
                f"it is stored rotated (EXIF orientation {orientation}) and is read as stored: rotate the pixels "
                "and remove the tag"
            )
        elif picture.size == (height, width):
            remedy = "width and height are exchanged: correct them in the annotations, or rotate the picture"
        elif size_from:
            remedy = f"{size_from} gives that size: correct it, or use the picture for which it was made"
        else:
            remedy = "it may have been resized: use the original file"
        found = f"is {found_width} x {found_height} pixels, expected {width} x {height} as annotated; {remedy}"
        return JpegFault("size_mismatch", found)
    if not decode:
        return None if _has_end(data) else JpegFault("truncated_image", "has no end marker; fetch the file again")
    picture.draft("L", (max(1, width // 8), max(1, height // 8)))
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        return JpegFault("truncated_image", f"cannot be decoded completely ({error}); fetch the file again")
    return None


def _has_end(data: bytes) -> bool:
    """Return True if the picture has its end marker; data after it, such as a phone's video, is ignored.

    The function follows the segments from the start, because a thumbnail within a segment has its own end marker. A
    segment is a marker, its length and its content. Example: at `ff e1 00 08` it skips 8 bytes from the length. After
    the segment that starts a scan, it searches the scan's data for the next marker. In such data, ff is always followed
    by 0 or a restart marker, and `_MARKER` matches neither.
    """
    position = 2
    while (marker := _MARKER.search(data, position)) is not None:
        position = marker.end()
        if data[position - 1] == _END_OF_IMAGE:
            return True
        if data[position - 1] not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return False


def find_orientation(picture: JpegImagePlugin.JpegImageFile) -> int | None:
    """Return the EXIF orientation of a picture; None if it has none or it cannot be read."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):
        return None
    return orientation if isinstance(orientation, int) else None
