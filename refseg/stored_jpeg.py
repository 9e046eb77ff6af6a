"""A JPEG of a dataset, opened by its own reader: its annotated size is the limit, not Pillow's.

`Image.open` refuses pictures over 179 million pixels, since a small file of unknown origin could ask for all memory. A
dataset says the size of each picture, which the build compares with the file, so its pictures have no other limit; a
file that is larger than its dataset says is refused here by its header. Pictures of unknown origin are opened by
`refseg.apps.predict`.
"""

import struct
from io import BytesIO

from PIL import JpegImagePlugin

from refseg.errors import ImageError


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
