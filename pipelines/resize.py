"""Pictures stored at training size: lossy, asked for, and recorded; masks and sizes stay the original's."""

import re
from io import BytesIO

from PIL import Image

from refseg.dataset.descriptor import StoredImages
from refseg.dataset.schema import MAX_SIDE
from refseg.errors import UsageError
from refseg.jpeg_header import open_stored_jpeg


def parse_store(text: str, quality: int) -> StoredImages:
    """Read `letterbox:480`, `stretch:480x640` (height x width).

    Raises:
        UsageError: If it is neither, or the quality is not 1 to 100.
    """
    found = re.fullmatch(r"(letterbox|stretch):(\d+)(?:x(\d+))?", text)
    if found is None or not all(0 < int(side) <= MAX_SIDE for side in found.groups()[1:] if side):
        raise UsageError(f"--store {text}: expected letterbox:SIZE or stretch:SIZE, SIZE as 480 or 480x640 pixels")
    if not 1 <= quality <= 100:
        raise UsageError(f"--store-quality {quality}: expected 1 to 100")
    height = int(found[2])
    return StoredImages(
        geometry="letterbox" if found[1] == "letterbox" else "stretch",
        height=height,
        width=int(found[3] or height),
        quality=quality,
    )


def shrink_jpeg(data: bytes, stored: StoredImages) -> bytes:
    """Make a JPEG of the size at which the network sees it; one that would have to grow stays as it is.

    Args:
        data: A whole JPEG.
        stored: The size, and the quality of the new JPEG.
    """
    with open_stored_jpeg(data) as picture:
        original_size = picture.height, picture.width
        height, width = stored.picture_size(original_size)
        if (height, width) == original_size:
            return data
        small = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    file = BytesIO()
    small.save(file, "jpeg", quality=stored.quality)
    return file.getvalue()
