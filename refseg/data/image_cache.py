"""Decoded, resized images in a memory-mapped file that all processes of a node share."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from refseg.data.transforms import Geometry
from refseg.errors import UsageError


class ImageCache:
    """The first images of an index, as the network sees them; filled as they are first decoded.

    Slots are filled in any order by any process: two that fill one write the same bytes, and a slot counts only once
    its flag is set. The file carries the boot's id in its name, for after a power cut flags may have reached the disk
    without their pixels; what other boots left is removed.

    Args:
        folder: Of the node's caches; made if it is not there.
        digest: Of the index.
        geometry: Of the images.
        num_images: Of the index.
        max_bytes: Of the file. Images beyond it are decoded each time.

    Raises:
        UsageError: If not even one image fits, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, digest: str, geometry: Geometry, num_images: int, max_bytes: int) -> None:
        height, width = geometry.size
        self._shape = (height, width, 3)
        self.num_slots = min(num_images, max_bytes // (height * width * 3))
        if self.num_slots == 0:
            raise UsageError(
                f"a cache of {max_bytes} bytes holds no image of {height} x {width} pixels; "
                f"expected at least {height * width * 3}, or 0 for no cache"
            )
        boot = Path("/proc/sys/kernel/random/boot_id")
        mark = boot.read_text(encoding="ascii").strip()[:8] if boot.exists() else "00000000"
        colour = "-".join(f"{channel:.4f}" for channel in geometry.mean)
        name = f"{digest[:32]}-{geometry.kind}-{height}x{width}-{colour}"
        self._pixels_path = folder / f"{name}.{mark}.pixels"
        self._flags_path = folder / f"{name}.{mark}.flags"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.pixels"):
                if path.name.split(".")[-2] != mark:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".flags").unlink(missing_ok=True)
            for path, num_bytes in ((self._pixels_path, height * width * 3), (self._flags_path, 1)):
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    # Grown, never cut: another process may have asked for a larger cache.
                    os.truncate(handle, max(os.fstat(handle).st_size, self.num_slots * num_bytes))
                finally:
                    os.close(handle)
        except OSError as error:
            raise UsageError(
                f"{error.filename or folder}: the cache of decoded images cannot be made ({error.strerror}); "
                "set REFSEG_CACHE to a folder with space, or the cache to 0"
            ) from error
        self._maps: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def read(self, image: int, out: UInt8[Tensor, "H W 3"]) -> bool:
        """Copy an image into `out`; False if it is not there."""
        if image >= self.num_slots:
            return False
        pixels, flags = self._open()
        if not flags[image]:
            return False
        out.numpy()[:] = pixels[image]
        return True

    def write(self, image: int, pixels: UInt8[Tensor, "H W 3"]) -> None:
        """Keep an image, if it is one of those that fit."""
        if image < self.num_slots:
            slots, flags = self._open()
            slots[image] = pixels.numpy()
            flags[image] = 1

    def _open(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The maps, opened on first use in each process."""
        if self._maps is None:
            self._maps = (
                np.memmap(self._pixels_path, np.uint8, "r+", shape=(self.num_slots, *self._shape)),
                np.memmap(self._flags_path, np.uint8, "r+", shape=(self.num_slots,)),
            )
        return self._maps

    def __getstate__(self) -> dict[str, object]:
        """Without the maps, which another process opens anew."""
        return {**self.__dict__, "_maps": None}
