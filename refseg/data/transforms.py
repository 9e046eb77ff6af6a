"""Geometry between original pixels and the network's input, for images, masks and scores alike; normalisation.

Images are resized as Pillow's BILINEAR does (antialiased, uint8), masks as its NEAREST does: what the published
pipelines train with. There is no augmentation: "left" and "tall" must stay true.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from refseg.arguments import check_number, check_word
from refseg.geometry import CLIP_MEAN, GeometryKind, place
from refseg.reading import Reading

_LOWEST_BITS = np.uint64(0x0101010101010101)
_ONE = np.uint8(1)  # a Python 1 would be cast for each pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How an original image fits the network's input, and how scores go back.

    Attributes:
        kind: `letterbox` keeps the aspect, centres, and fills the border with the mean colour (CRIS); `stretch` fills
            the input (LAVT).
        size: `(height, width)` of the network's input, in pixels.
        mean: Mean colour behind the border, RGB from 0 to 1: that of the normalisation, so that the border is zero.

    Raises:
        UsageError: If there is no such kind, or no such size.
    """

    kind: GeometryKind
    size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN

    def __post_init__(self) -> None:
        check_word("geometry", self.kind, GeometryKind)
        for side in self.size:
            check_number("a side of the input", side, least=1)

    @classmethod
    def of(cls, reading: Reading) -> "Geometry":
        """The geometry that a specification of reading asks for."""
        return cls(kind=reading.geometry, size=reading.input_size, mean=reading.image_mean)

    def placed(self, original_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where the picture lies in the input: `(top, left, height, width)` in pixels.

        Args:
            original_size: `(height, width)` of the image in pixels.
        """
        return place(self.kind, self.size, original_size)

    def apply_image(
        self,
        image: UInt8[Tensor, "3 h w"],
        original_size: tuple[int, int] | None = None,
        *,
        out: UInt8[Tensor, "H W 3"] | None = None,
    ) -> UInt8[Tensor, "3 H W"]:
        """Resize an image; fastest where its memory is `(h, w, 3)`.

        Args:
            image: RGB, 0 to 255, on any device.
            original_size: `(height, width)` of the picture it was made from, where it was stored smaller; its place is
                that of the original, as a mask's is.
            out: Contiguous memory to write to, on the same device; None: new.

        Returns:
            A view of `out`.
        """
        if out is None:
            out = torch.empty(*self.size, 3, dtype=torch.uint8, device=image.device)
        top, left, height, width = self.placed(original_size or (image.shape[1], image.shape[2]))
        # The batch axis is put in front of (h, w, 3): behind a permuted (3, h, w) torch takes a path half as fast.
        channels_last = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        rows = out[top : top + height]
        # Whole rows are one piece of memory, and torch resizes into it if the source is laid out as it is.
        if (height, width) == tuple(image.shape[1:]):
            rows[:, left : left + width] = image.permute(1, 2, 0)
        elif not image.is_cpu:
            rows[:, left : left + width] = resize_as_floats(image, (height, width)).permute(1, 2, 0)
        elif width == self.size[1] and image.permute(1, 2, 0).is_contiguous():
            resize = torch.ops.aten._upsample_bilinear2d_aa.out
            resize(channels_last, (height, width), False, None, None, out=rows[None].permute(0, 3, 1, 2))
        else:
            resized = F.interpolate(channels_last, (height, width), mode="bilinear", antialias=True)[0]
            rows[:, left : left + width] = resized.permute(1, 2, 0)
        if (height, width) != self.size:
            border = _constant(tuple(round(255 * channel) for channel in self.mean), torch.uint8, out.device)
            for band in (out[:top], out[top + height :], rows[:, :left], rows[:, left + width :]):
                band[:] = border
        return out.permute(2, 0, 1)

    def apply_mask(
        self,
        counts: NDArray[np.uint32],
        original_size: tuple[int, int],
        out: UInt8[np.ndarray, "H W"] | None = None,
    ) -> UInt8[np.ndarray, "H W"]:
        """Draw a mask at the input's size straight from its run lengths; the border is 0.

        Args:
            counts: COCO's run lengths: column-major, zeros first.
            original_size: `(height, width)` of the mask in pixels.
            out: Memory to draw into; None: new.
        """
        if out is None:
            out = np.empty(self.size, np.uint8)
        top, left, height, width = self.placed(original_size)
        columns, starts, ends = _split_runs(counts, original_size[0])
        # Where the input's rows and columns begin that take from a given row and column of the original.
        row_edges, column_edges = _edges(original_size[0], height), _edges(original_size[1], width)
        starts, ends = row_edges[starts], row_edges[ends]
        first = column_edges[columns]
        repeats = column_edges[columns + 1] - first
        if width > original_size[1]:  # enlarged: some columns are taken more than once
            pieces = np.repeat(np.arange(len(first)), repeats)
            first = first[pieces] + np.arange(len(pieces)) - (np.cumsum(repeats) - repeats)[pieces]
            starts, ends = starts[pieces], ends[pieces]
        else:
            is_taken = repeats > 0
            first, starts, ends = first[is_taken], starts[is_taken], ends[is_taken]
        if not len(first):
            out[:] = 0
            return out
        # A column's pixels change where a piece starts or ends; the sum of changes above a pixel, modulo 2, is its
        # value. Eight columns are summed at a time: in the lowest bit of each byte of a word.
        lowest, highest = int(starts.min()), int(ends.max())
        words = -(-self.size[1] // 8)
        changes = np.zeros((highest - lowest + 1, words * 8), np.uint8)
        flat = changes.reshape(-1)
        np.add.at(flat, (starts - lowest) * (words * 8) + first + left, _ONE)
        np.add.at(flat, (ends - lowest) * (words * 8) + first + left, _ONE)
        drawn = np.bitwise_xor.accumulate(changes[:-1].view(np.uint64), axis=0)
        drawn &= _LOWEST_BITS
        out[: top + lowest] = 0
        out[top + lowest : top + highest] = drawn.view(np.uint8)[:, : self.size[1]]
        out[top + highest :] = 0
        return out

    def invert(
        self, scores: Float[Tensor, "N H W"], original_size: tuple[int, int], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "N h w"]:
        """Bring scores (logits or probabilities) from the input's size to the original's, bilinearly.

        Args:
            scores: At the input's size; the border is cut off.
            original_size: `(height, width)` of the image in pixels.
            size: `(height, width)` to bring the picture's part to, in pixels; None: the original's.
        """
        assert tuple(scores.shape[-2:]) == self.size, "scores are brought to the input's size first"
        top, left, height, width = self.placed(original_size)
        inside = scores[None, :, top : top + height, left : left + width]
        return F.interpolate(inside, size or original_size, mode="bilinear", align_corners=False)[0]


def resize_as_floats(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Resize in float32 and round, for want of a uint8 kernel on GPUs: the same to one level."""
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round_().to(torch.uint8)


def normalise(
    images: UInt8[Tensor, "I 3 H W"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "I 3 H W"]:
    """Turn 0 to 255 into float32 with the given mean and deviation (of 0 to 1), on the device the images are on."""
    # One multiply and one add, whose constants are folded in double precision.
    scale = _constant(tuple(1 / (255 * s) for s in std), torch.float32, images.device)
    shift = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), torch.float32, images.device)
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant on a device, to be read only. Building one for each call would wait for the device's queued work."""
    return torch.tensor(values, dtype=dtype, device=device)


def _split_runs(
    counts: NDArray[np.uint32], height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Runs of ones as pieces of single columns: column, first row, row after the last."""
    num_runs = len(counts) // 2
    borders = np.cumsum(counts, dtype=np.int64)[: 2 * num_runs]
    starts, lasts = borders[::2], borders[1::2] - 1
    columns, last_columns = starts // height, lasts // height
    rows, end_rows = starts - columns * height, lasts - last_columns * height + 1
    num_pieces = last_columns - columns + 1
    if num_runs and num_pieces.max() > 1:
        runs = np.repeat(np.arange(num_runs), num_pieces)
        number = np.arange(len(runs)) - (np.cumsum(num_pieces) - num_pieces)[runs]
        rows = np.where(number == 0, rows[runs], 0)
        end_rows = np.where(number == num_pieces[runs] - 1, end_rows[runs], height)
        columns = columns[runs] + number
    return columns, rows, end_rows


@lru_cache(maxsize=4096)
def _edges(length: int, resized: int) -> NDArray[np.int64]:
    """`(length + 1,)`: of each original pixel the first of the resized line that takes it or a later one."""
    return np.searchsorted(_nearest(length, resized), np.arange(length + 1))


@lru_cache(maxsize=4096)
def _nearest(length: int, resized: int) -> NDArray[np.int32]:
    """Which of `length` pixels each of `resized` takes. Pillow itself is asked: at ties its rounding is no formula."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.array(line.resize((resized, 1), Image.Resampling.NEAREST))[0]
