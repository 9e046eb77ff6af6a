"""Uploads made ready for questions: checked, decoded, encoded once, and kept while there is room."""

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
"""Kinds of images that uploads may be, by Pillow's names; some of its other readers start programs."""
_LARGEST_PICTURE = PictureSize(pixels=50_000_000, side=20_000, aspect=50.0)
_LONGEST_NAME = 255
_LONGEST_SHOWN_SIDE = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a stranger's goods is taken.

    Attributes:
        upload_bytes: Of one request.
        upload_seconds: From the head of a request to its last byte.
        picture: Of one image, by its header.
        text_characters: Of one text; the rest is not looked at.
        kept_pictures: Encoded pictures in memory; the one not asked about for longest goes first.
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 120.0
    picture: PictureSize = _LARGEST_PICTURE
    text_characters: int = 1000
    kept_pictures: int = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptPicture:
    """What is kept of an upload.

    Attributes:
        image_id: SHA-256 of the file's bytes, in hexadecimal.
        encoded: The model's part, and the size at which masks are given.
        shown_jpeg: The upright picture, scaled down for the page.
    """

    image_id: str
    encoded: EncodedPicture
    shown_jpeg: bytes

    def shown(self) -> UInt8[np.ndarray, "H W 3"]:
        """The picture as the page shows it: RGB."""
        return np.asarray(Image.open(io.BytesIO(self.shown_jpeg)).convert("RGB"))


class PictureShelf:
    """Encoded pictures by the hash of their files; safe to use from several threads."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter = segmenter
        self.limits = limits
        # One at a time for decoding, encoding and scoring: the model takes all cores, a large picture much memory.
        self.turn = threading.Lock()
        self._kept: OrderedDict[str, KeptPicture] = OrderedDict()
        self._access = threading.Lock()

    def put(self, data: bytes, name: str) -> tuple[KeptPicture, bool]:
        """Take an upload in.

        Args:
            data: The file's bytes.
            name: The file's, as its sender says.

        Returns:
            What is kept of it, and whether it was there before: then the model had nothing to do.

        Raises:
            UsageError: If the name is a path.
            ImageError: If it is not an image of `KINDS`, or is damaged, too large or too long.
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
        """A picture that is still kept; it was now asked about last."""
        with self._access:
            if image_id in self._kept:
                self._kept.move_to_end(image_id)
            return self._kept.get(image_id)


def check_name(name: str) -> None:
    """See that a file's name is a name: nothing is ever opened by it, but it goes into answers and downloads.

    Raises:
        UsageError: If it is empty, too long, a path, or not printable.
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
