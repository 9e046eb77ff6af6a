"""Decoded, resized images in a memory-mapped file that all processes of a machine share."""

import errno
import logging
import mmap
import os
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from refseg.cache_files import least_recently_used, make_cache_folder, open_in_use, remove_unused, reserve_space
from refseg.data.transforms import Geometry
from refseg.errors import UsageError

logger = logging.getLogger(__name__)

_VERSION = 2
"""Raised when slots change, or what is in them: pixels of another decoder or resizer."""
_CHECK_BYTES = 8
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ImageCache:
    """The first images of an index, as the network sees them; filled as they are first decoded.

    A slot is the XXH3-64 of an image's pixels, then the pixels. A slot whose pixels have another hash (0: nothing was
    written yet) counts as empty; each process compares a slot once. So slots are filled in any order by any process,
    and whatever is cut, lost or written over, also by a power cut, is decoded anew.

    Args:
        folder: Of the machine's caches; made if it is not there.
        digest: Of the index.
        geometry: Of the images.
        num_images: Of the index.
        max_bytes: Of pixels. Images beyond it are decoded each time.

    Raises:
        UsageError: If not even one image fits, or the file cannot be made or have its space; a cache that nobody uses
            is removed before, the least recently used first.
    """

    def __init__(self, folder: Path, *, digest: str, geometry: Geometry, num_images: int, max_bytes: int) -> None:
        height, width = geometry.size
        image_bytes = height * width * 3
        self._slot_bytes = _CHECK_BYTES + image_bytes
        self.num_slots = min(num_images, max_bytes // image_bytes)
        if self.num_slots == 0:
            raise UsageError(
                f"a cache of {max_bytes} bytes holds no image of {height} x {width} pixels; "
                f"expected at least {image_bytes}, or 0 for no cache"
            )
        colour = "-".join(f"{channel:.4f}" for channel in geometry.mean)
        self._path = folder / f"{digest[:32]}-{geometry.kind}-{height}x{width}-{colour}.v{_VERSION}"
        self._has_warned = False
        self._file: _File | None = None
        self._open()  # now, so that what is wrong is said before a run has begun

    def read(self, image: int, out: UInt8[Tensor, "H W 3"]) -> bool:
        """Copy an image into `out`; False if it is not there, and `out` may hold anything."""
        if image >= self.num_slots:
            return False
        file, start = self._open(), image * self._slot_bytes
        if os.fstat(file.descriptor).st_size < start + self._slot_bytes:
            return False  # cut by somebody while in use: touching the map there would kill the process
        check = int.from_bytes(file.map[start : start + _CHECK_BYTES].data, "little")
        if check == 0:
            return False
        pixels = out.numpy().reshape(-1)
        pixels[:] = file.map[start + _CHECK_BYTES : start + self._slot_bytes]
        # Once in each process: a hash at every read costs a tenth of the cache's speed.
        if file.is_sound[image] or xxhash.xxh3_64_intdigest(pixels.data) == check:
            file.is_sound[image] = True
            return True
        self._warn(f"image {image} is damaged there; such images are decoded anew")
        return False

    def write(self, image: int, pixels: UInt8[Tensor, "H W 3"]) -> None:
        """Keep an image, if it is one of those that fit. A failure is warned of, once."""
        if image >= self.num_slots:
            return
        file, start, data = self._open(), image * self._slot_bytes, pixels.numpy().reshape(-1)
        check = xxhash.xxh3_64_intdigest(data.data).to_bytes(_CHECK_BYTES, "little")
        try:
            # Not through the map: where a file system has not kept its promise of space, that would kill the process.
            os.pwrite(file.descriptor, data.data, start + _CHECK_BYTES)
            os.pwrite(file.descriptor, check, start)  # last: who reads it finds all pixels
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror}); images that are not there yet are decoded each time")

    def _open(self) -> "_File":
        """The file, opened on first use in each process."""
        if self._file is None:
            num_bytes = self.num_slots * self._slot_bytes
            try:
                self._file = _File(self._path, num_bytes, num_slots=self.num_slots)
            except OSError as error:
                raise UsageError(
                    f"{self._path}: the cache of decoded images, {num_bytes / 1e9:.3f} GB, cannot be made "
                    f"({error.strerror}); set REFSEG_CACHE to a folder of this machine with space, or a smaller cache, "
                    "or 0 for none"
                ) from error
        return self._file

    def _warn(self, words: str) -> None:
        if not self._has_warned:
            logger.warning("%s: the cache of decoded images: %s", self._path, words)
        self._has_warned = True

    def __getstate__(self) -> dict[str, object]:
        """Without the file, which another process opens anew."""
        return {**self.__dict__, "_file": None}


class _File:
    """A file with its space taken, mapped for reading; while this lives, a lock keeps it from being removed.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, path: Path, num_bytes: int, *, num_slots: int) -> None:
        make_cache_folder(path.parent)
        self.descriptor = open_in_use(path, os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, self.descriptor)
        _reserve(self.descriptor, path, num_bytes)
        self.map: NDArray[np.uint8] = np.frombuffer(
            mmap.mmap(self.descriptor, num_bytes, prot=mmap.PROT_READ), np.uint8
        )
        self.is_sound = np.zeros(num_slots, np.bool_)  # slots whose hash this process has compared


def _reserve(descriptor: int, path: Path, num_bytes: int) -> None:
    """Take space for a file, from caches that nobody uses where it is short."""
    size = os.fstat(descriptor).st_size
    others = [entry.path for entry in least_recently_used(path.parent) if entry.path != path]
    for other in (*others, None):
        try:
            reserve_space(descriptor, num_bytes)  # never cut: another process may have a larger cache
            return
        except OSError as error:
            if other is None or error.errno not in _NO_SPACE:
                os.truncate(descriptor, size)  # what it has taken until there
                raise
            with suppress(OSError):
                remove_unused(other)
