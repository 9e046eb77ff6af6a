"""Heads of a dataset's JPEGs: a picture's size is known before a decoder takes memory for it.

`Image.open` refuses pictures over 179 million pixels, since a small file of unknown origin could ask for all memory. A
dataset says the size of each picture, which the build compares with the file, so its pictures have no other limit: a
file that is larger than its dataset says is refused by its header. Pictures of unknown origin are opened by
`refseg.apps.predict`.
"""

import struct
from io import BytesIO

from PIL import JpegImagePlugin

from refseg.errors import ImageError

_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start of frame, not tables
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_FORBIDDEN = (0xD8, 0xD9, 0xDA)  # before the size: another file's start, the file's end, the header's end


def jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """`(height, width)` in pixels as stored, found as libjpeg finds it: what lies between markers is passed over.

    Args:
        data: The file, or its start.

    Raises:
        ImageError: If the header has no size; the message does not name the file.
    """
    length, at = len(data), 2
    if length < 2 or data[0] != 0xFF or data[1] != 0xD8:
        raise ImageError("is not a JPEG")
    while True:
        while at < length and data[at] != 0xFF:
            at += 1
        while at < length and data[at] == 0xFF:
            at += 1
        if at + 8 > length:
            raise ImageError("has no size in its header")
        marker = data[at]
        at += 1
        if marker in _SIZES:
            return data[at + 3] << 8 | data[at + 4], data[at + 5] << 8 | data[at + 6]
        if marker and marker not in _WITHOUT_LENGTH:
            num_bytes = data[at] << 8 | data[at + 1]
            if marker in _FORBIDDEN or num_bytes < 2:
                raise ImageError("has no size in its header")
            at += num_bytes


def check_jpeg_size(data: bytes | memoryview, expected: tuple[int, int]) -> None:
    """Compare a JPEG's header with the size that it must have, `(height, width)` in pixels.

    Raises:
        ImageError: If it has another size, or none; the message does not name the file.
    """
    found = jpeg_size(data)
    if found != expected:
        raise ImageError(
            f"its header says {found[0]} x {found[1]} pixels (height x width), expected {expected[0]} x {expected[1]}"
        )


def open_stored_jpeg(data: bytes, at_most: tuple[int, int] | None = None) -> JpegImagePlugin.JpegImageFile:
    """Read the head of a JPEG and none of its pixels.

    Args:
        data: The file's bytes.
        at_most: `(height, width)` as annotated; a dataset may store its pictures smaller. None: not known.

    Raises:
        ImageError: If it is not a JPEG, its head is damaged, or it is larger.
    """
    try:
        picture = JpegImagePlugin.JpegImageFile(BytesIO(data))
    except (SyntaxError, OSError, ValueError, LookupError, struct.error) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    if at_most is not None and (picture.height > at_most[0] or picture.width > at_most[1]):
        raise ImageError(
            f"found {picture.height} x {picture.width} pixels, expected at most {at_most[0]} x {at_most[1]} "
            "(height x width)"
        )
    return picture
