"""Checks, decodes and encodes uploaded pictures, and keeps the last few of them for expressions."""

import hashlib
import io
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from refseg.apps.predict import EncodedPicture, PictureSize, Segmenter, decode_picture
from refseg.errors import UsageError

logger = logging.getLogger(__name__)

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted image formats, by Pillow's names; some readers of other formats start programs."""
_LARGEST_PICTURE = PictureSize(pixels=50_000_000, side=20_000, aspect=50.0)
_LONGEST_NAME = 255
_LONGEST_SHOWN_SIDE = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of what clients send.

    Attributes:
        upload_bytes: Largest size of one request in bytes.
        upload_seconds: Maximum time in seconds from the head of a request to its last byte.
        picture: Largest size of one image, by its header.
        text_characters: Maximum length of a text. The rest is ignored.
        kept_pictures: Number of encoded pictures in memory. The least recently used picture is removed first.
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 120.0
    picture: PictureSize = _LARGEST_PICTURE
    text_characters: int = 1000
    kept_pictures: int = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptPicture:
    """An uploaded picture that is kept.

    Attributes:
        image_id: SHA-256 of the file's bytes, in hexadecimal.
        encoded: The model's encoding of the picture, and the size of the masks.
        shown_jpeg: The upright picture, scaled down for the page.
    """

    image_id: str
    encoded: EncodedPicture
    shown_jpeg: bytes

    def shown(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return the picture as the page shows it, as RGB."""
        return np.asarray(Image.open(io.BytesIO(self.shown_jpeg)).convert("RGB"))


class PictureShelf:
    """Encoded pictures by the hash of their files. Several threads may use it at the same time."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter = segmenter
        self.limits = limits
        # Held while a picture is decoded, encoded or scored: the model uses all cores, a large picture much memory.
        self.turn = threading.Lock()
        self._kept: OrderedDict[str, KeptPicture] = OrderedDict()
        self._access = threading.Lock()

    def put(self, data: bytes, name: str) -> tuple[KeptPicture, bool]:
        """Decode and encode an upload, unless it is kept already.

        Args:
            data: The file's bytes.
            name: The file's name, as the client sent it.

        Returns:
            The kept picture, and True if it had been kept before.

        Raises:
            UsageError: If the name is a path.
            ImageError: If the file is not an image of `KINDS`. If it is damaged, too large or too elongated.
        """
        check_name(name)
        image_id = hashlib.sha256(data).hexdigest()
        with self.turn:
            kept = self.find(image_id)
            if kept is not None:
                return kept, True
            started = time.perf_counter()
            picture = decode_picture(data, name=name, kinds=KINDS, largest=self.limits.picture)
            kept = KeptPicture(
                image_id=image_id, encoded=self.segmenter.encode(picture), shown_jpeg=_shown_jpeg(picture)
            )
        with self._access:
            self._kept[image_id] = kept
            while len(self._kept) > self.limits.kept_pictures:
                self._kept.popitem(last=False)
        height, width = kept.encoded.size
        logger.info("encoded a picture of %d x %d pixels in %.2f s", width, height, time.perf_counter() - started)
        return kept, False

    def find(self, image_id: str) -> KeptPicture | None:
        """Return a picture that is still kept, and mark it as the most recently used."""
        with self._access:
            if image_id in self._kept:
                self._kept.move_to_end(image_id)
            return self._kept.get(image_id)


def check_name(name: str) -> None:
    """Check that a file's name is not a path. No file is opened by it, but answers and downloads contain it.

    Raises:
        UsageError: If the name is empty, too long, a path, or not printable.
    """
    if (
        not name
        or len(name) > _LONGEST_NAME
        or name in (".", "..")
        or set(name) & {"/", "\\"}
        or not name.isprintable()
    ):
        raise UsageError(
            f"file name {name[:_LONGEST_NAME]!r}: expected a plain name of at most {_LONGEST_NAME} characters, "
            "no path; rename the file"
        )


def _shown_jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    shown = Image.fromarray(picture)
    scale = _LONGEST_SHOWN_SIDE / max(shown.size)
    if scale < 1:
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        shown = shown.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=90)
    return file.getvalue()
