"""A cache of decoded and resized images. It is a memory-mapped file that all processes of a machine share."""

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
"""Version of the file. It increases when the layout changes, or when a decoder or resizer gives other pixels."""
_CHECK_BYTES = 8
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ImageCache:
    """The first images of an index at the network's input size. Each image is stored when it is first decoded.

    The file has one slot per image. A slot contains the XXH3-64 of the image's pixels, followed by the pixels. A slot
    counts as empty if the hash does not match the pixels. A stored hash of 0 means that nothing was written yet. Each
    process checks the hash of a slot once. Therefore any process may fill any slot at any time. An image that was lost,
    truncated or overwritten, for example by a power failure, is decoded again.

    Args:
        folder: Folder of the machine's caches. It is created if it does not exist.
        digest: Digest of the index.
        geometry: Geometry by which the images were resized.
        num_images: Number of images of the index.
        max_bytes: Largest total size of the pixels. Images that do not fit are decoded each time.

    Raises:
        UsageError: If not even one image fits. If the file cannot be created. If the disk is full even after unused
            caches were removed, the least recently used first.
    """

    def __init__(self, folder: Path, *, digest: str, geometry: Geometry, num_images: int, max_bytes: int) -> None:
        height, width = geometry.size
        image_bytes = height * width * 3
        self._slot_bytes = _CHECK_BYTES + image_bytes
        self.num_slots = min(num_images, max_bytes // image_bytes)
        if self.num_slots == 0:
            raise UsageError(
                f"a cache of {max_bytes} bytes is too small for an image of {height} x {width} pixels; "
                f"expected at least {image_bytes}, or 0 for no cache"
            )
        colour = "-".join(f"{channel:.4f}" for channel in geometry.mean)
        self._path = folder / f"{digest[:32]}-{geometry.kind}-{height}x{width}-{colour}.v{_VERSION}"
        self._has_warned = False
        self._file: _File | None = None
        self._open()  # at once, so that an error is raised before a run starts

    def read(self, image: int, out: UInt8[Tensor, "H W 3"]) -> bool:
        """Copy an image into `out`. Return False if it is not stored. The content of `out` is then undefined."""
        if image >= self.num_slots:
            return False
        file, start = self._open(), image * self._slot_bytes
        if os.fstat(file.descriptor).st_size < start + self._slot_bytes:
            return False  # another process truncated the file: reading the map there would kill this process
        check = int.from_bytes(file.map[start : start + _CHECK_BYTES].data, "little")
        if check == 0:
            return False
        pixels = out.numpy().reshape(-1)
        pixels[:] = file.map[start + _CHECK_BYTES : start + self._slot_bytes]
        # The hash is compared once per process: comparing it at every read would cost a tenth of the cache's speed.
        if file.is_sound[image] or xxhash.xxh3_64_intdigest(pixels.data) == check:
            file.is_sound[image] = True
            return True
        self._warn(f"image {image} is damaged in it; damaged images are decoded again")
        return False

    def write(self, image: int, pixels: UInt8[Tensor, "H W 3"]) -> None:
        """Store an image if its number is below `num_slots`. The first failure is logged as a warning."""
        if image >= self.num_slots:
            return
        file, start, data = self._open(), image * self._slot_bytes, pixels.numpy().reshape(-1)
        check = xxhash.xxh3_64_intdigest(data.data).to_bytes(_CHECK_BYTES, "little")
        try:
            # Not through the map: if the file system has no space in spite of the reservation, that kills the process.
            os.pwrite(file.descriptor, data.data, start + _CHECK_BYTES)
            os.pwrite(file.descriptor, check, start)  # last, so that a process that reads the hash finds all pixels
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror}); images that are not in it yet are decoded each time")

    def _open(self) -> "_File":
        """Return the file. Each process opens it at the first use."""
        if self._file is None:
            num_bytes = self.num_slots * self._slot_bytes
            try:
                self._file = _File(self._path, num_bytes, num_slots=self.num_slots)
            except OSError as error:
                raise UsageError(
                    f"{self._path}: the cache of decoded images, {num_bytes / 1e9:.3f} GB, cannot be created "
                    f"({error.strerror}); set REFSEG_CACHE to a folder on this machine with enough space, or make the "
                    "cache smaller (0: no cache)"
                ) from error
        return self._file

    def _warn(self, words: str) -> None:
        if not self._has_warned:
            logger.warning("%s: the cache of decoded images: %s", self._path, words)
        self._has_warned = True

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the file. Another process opens the file for itself."""
        return {**self.__dict__, "_file": None}


class _File:
    """A file with reserved disk space, mapped for reading. While this object exists, a lock prevents its removal.

    Raises:
        OSError: If it cannot be created.
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
    """Reserve disk space for a file. If the disk is full, remove unused caches one by one."""
    size = os.fstat(descriptor).st_size
    others = [entry.path for entry in least_recently_used(path.parent) if entry.path != path]
    for other in (*others, None):
        try:
            reserve_space(descriptor, num_bytes)  # this never shrinks the file: another process may use more of it
            return
        except OSError as error:
            if other is None or error.errno not in _NO_SPACE:
                os.truncate(descriptor, size)  # release the part that was reserved
                raise
            with suppress(OSError):
                remove_unused(other)
