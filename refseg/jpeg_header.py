"""Reads the headers of a dataset's JPEGs, so that a picture's size is checked before a decoder allocates memory.

`Image.open` refuses pictures over 179 million pixels, because a small file of unknown origin could otherwise use up all
memory. A dataset records the size of each picture, and a file whose header gives a larger size is refused. Pictures of
a dataset therefore need no other limit. Pictures of unknown origin are opened by `refseg.apps.predict`.
"""

import struct
from io import BytesIO

from PIL import JpegImagePlugin

from refseg.errors import ImageError

_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start-of-frame markers hold the size; C4, C8, CC differ
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_FORBIDDEN = (0xD8, 0xD9, 0xDA)  # start of image, end of image, start of scan: they may not precede the size


def jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return the stored `(height, width)` in pixels; bytes between markers are skipped, as libjpeg does.

    A JPEG is a sequence of segments `FF marker length payload`. In `FF D8 FF E0 00 10 ... FF C0 00 11 08 01 E0 02 80`
    the segment E0 has 16 bytes and is skipped; C0 starts the frame, of 0x1E0 = 480 rows and 0x280 = 640 columns.

    Args:
        data: Bytes of the file, at least of its header.

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
    """Compare the size in a JPEG's header with the expected `(height, width)` in pixels.

    Raises:
        ImageError: If the header has another size or none; the message does not name the file.
    """
    found = jpeg_size(data)
    if found != expected:
        raise ImageError(
            f"its header says {found[0]} x {found[1]} pixels (height x width), expected {expected[0]} x {expected[1]}"
        )


def open_stored_jpeg(data: bytes, at_most: tuple[int, int] | None = None) -> JpegImagePlugin.JpegImageFile:
    """Read the header of a JPEG without decoding its pixels.

    Args:
        data: Bytes of the file.
        at_most: Annotated `(height, width)` in pixels, which the picture may not exceed. A dataset may store smaller
            pictures. None: no limit.

    Raises:
        ImageError: If the file is not a JPEG, its header is damaged, or it is larger than `at_most`.
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
