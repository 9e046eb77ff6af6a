"""Tells what is wrong with an image file: its kind, its size, its end, its codes."""

import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
"""EXIF orientations that swap height and width when shown."""
_HEAD_BYTES = 1 << 16
"""Of a JPEG, mostly more than all that stands before its pixels; one EXIF or ICC segment takes as many at most."""


class JpegFault(NamedTuple):
    """What is wrong with an image file.

    Attributes:
        reason: One of `rejects.REASONS`.
        found: What was found, what was expected and what to do; the text continues a message after the file's name.
    """

    reason: str
    found: str


def read_jpeg_sizes(images: Sequence[SourceImage]) -> list[tuple[int, int] | JpegFault]:
    """`(height, width)` of each image in pixels as stored, or why there is none; remote ones several at a time.

    A picture that EXIF lays on its side has no such size: nothing would tell which of its two sizes annotations mean.

    Raises:
        StorageError: If remote storage fails.
    """
    if any(is_remote(image.address) for image in images):
        with ThreadPoolExecutor(FETCHES) as pool:
            return list(pool.map(_read_jpeg_size, images))
    return list(map(_read_jpeg_size, images))


def _read_jpeg_size(image: SourceImage) -> tuple[int, int] | JpegFault:
    """Read only the start of a file, of a remote one too, where that is enough."""
    try:
        picture = _open_jpeg(read_file(image.address, 0, _HEAD_BYTES))
        if isinstance(picture, JpegFault) and image.num_bytes > _HEAD_BYTES:
            picture = _open_jpeg(read_file(image.address))
    except StorageError:
        raise  # says nothing of the image
    except OSError as error:
        return JpegFault("missing_image", f"cannot be read ({error.strerror or error}); fetch the file again")
    if isinstance(picture, JpegFault):
        return picture
    orientation = _exif_orientation(picture)
    if orientation in _TURNED:
        width, height = picture.size
        return JpegFault(
            "size_mismatch",
            f"is stored rotated (EXIF orientation {orientation}): {width} x {height} pixels as stored, {height} x "
            f"{width} as shown; rotate the pixels and take the tag away, or give height {height} and width {width} if "
            "its targets are in stored pixels",
        )
    return picture.height, picture.width


def _open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile | JpegFault:
    """Read a JPEG's head and none of its pixels."""
    try:
        return open_stored_jpeg(data)
    except ImageError:
        if data.startswith(_JPEG_START):
            found = f"ends or is damaged within its first {len(data)} bytes; fetch the file again"
            return JpegFault("truncated_image", found)
        return JpegFault("not_a_jpeg", describe_other_kind(data, "JPEG"))


def find_jpeg_fault(data: bytes, height: int, width: int, *, decode: bool, size_from: str = "") -> JpegFault | None:
    """Compare a JPEG's size with the annotated one and decode it from its first to its last byte.

    Greyscale and CMYK are fine. The size is compared before decoding, so a picture of a billion pixels costs nothing.
    Pixels are made at an eighth of the size, without colour: libjpeg still reads every code and meets the same faults,
    in 2/3 of the time.

    Args:
        data: Content of the file.
        height: As annotated, in pixels.
        width: As annotated, in pixels.
        decode: False: look at the header and the end alone.
        size_from: What gave the annotated size, such as a mask; empty: annotations that belong to the image.

    Returns:
        None if all is well.
    """
    picture = _open_jpeg(data)
    if isinstance(picture, JpegFault):
        return picture
    if picture.size != (width, height):
        found_width, found_height = picture.size
        orientation = _exif_orientation(picture)
        if picture.size == (height, width) and orientation in _TURNED:
            remedy = (
                f"it is stored rotated (EXIF orientation {orientation}) and read as stored: rotate the pixels "
                "and take the tag away"
            )
        elif picture.size == (height, width):
            remedy = "width and height are exchanged: correct them in the annotations, or turn the picture as annotated"
        elif size_from:
            remedy = f"{size_from} gives that size: correct it, or take the picture it was made for"
        else:
            remedy = "was it resized? take the original file"
        found = f"is {found_width} x {found_height} pixels, expected {width} x {height} as annotated; {remedy}"
        return JpegFault("size_mismatch", found)
    if not decode:
        return None if _has_end(data) else JpegFault("truncated_image", "has no end marker; fetch the file again")
    picture.draft("L", (max(1, width // 8), max(1, height // 8)))
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        return JpegFault("truncated_image", f"cannot be decoded whole ({error}); fetch the file again")
    return None


def _has_end(data: bytes) -> bool:
    """Whether the picture's own end marker is there; what follows it, such as a phone's video, is not looked at.

    Markers are followed from the start: a thumbnail in a segment has an end of its own, and so may what follows. After
    the header of a scan the next marker is looked for in its codes, in which 0xff stands before 0 or a restart marker.
    """
    place = 2
    while (marker := _MARKER.search(data, place)) is not None:
        place = marker.end()
        if data[place - 1] == _END_OF_IMAGE:
            return True
        if data[place - 1] not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2])
    return False


def _exif_orientation(picture: JpegImagePlugin.JpegImageFile) -> int | None:
    """How the picture is to be turned when shown; None if nothing says so, or nothing readable."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):
        return None
    return orientation if isinstance(orientation, int) else None
