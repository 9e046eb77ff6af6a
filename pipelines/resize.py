"""Reduces pictures to training size if the user requests it. Masks and recorded sizes stay unchanged."""

import re
from io import BytesIO

from PIL import Image

from refseg.dataset.descriptor import StoredImages
from refseg.dataset.schema import MAX_SIDE
from refseg.errors import UsageError
from refseg.jpeg_header import open_stored_jpeg


def parse_store(text: str, quality: int) -> StoredImages:
    """Parse `letterbox:480` or `stretch:480x640` (height x width).

    Args:
        text: Value of the option `--store`.
        quality: JPEG quality, 1 to 100.

    Raises:
        UsageError: If the text has another form, or the quality is not 1 to 100.
    """
    found = re.fullmatch(r"(letterbox|stretch):(\d+)(?:x(\d+))?", text)
    if found is None or not all(0 < int(side) <= MAX_SIDE for side in found.groups()[1:] if side):
        raise UsageError(
            f"--store {text}: expected letterbox:SIZE or stretch:SIZE, where SIZE is 480 or 480x640 pixels, for example"
        )
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
    """Reduce a JPEG to its size in the network's input. A JPEG that would become larger is not changed.

    Args:
        data: Bytes of a complete JPEG.
        stored: Size and quality of the new JPEG.
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
