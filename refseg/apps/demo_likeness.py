"""Measures whether a picture resembles the pictures on which a model was validated."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_MEASURES = ("brightness", "contrast", "saturation", "amount of fine detail", "share of even areas")
_COMPARED_SIDE = 128
"""Pixels of the longer side at which pictures are measured, so that a large picture compares with a small one."""
_EVEN = 1.5
"""Difference of neighbouring pixels, of 255, below which an area is even."""
_MARGIN = 0.5
"""How far beyond the range of the known pictures a number may lie, as a share of that range."""
_SMALLEST_RANGE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPictures:
    """The range of each measure over known pictures.

    Attributes:
        name: Name of the set of pictures, for example `toy/refseg val`.
        num_pictures: Number of measured pictures.
        low: Smallest values, shape (measures,), each 0 to 1.
        high: Largest values, shape (measures,).
    """

    name: str
    num_pictures: int
    low: Float[np.ndarray, "n"]
    high: Float[np.ndarray, "n"]

    @classmethod
    def measure(cls, name: str, pictures: Iterable[UInt8[np.ndarray, "H W 3"]]) -> "KnownPictures":
        """Measure RGB pictures. At least one picture is required."""
        found = np.stack([_measure(picture) for picture in pictures])
        return cls(name=name, num_pictures=len(found), low=found.min(0), high=found.max(0))

    def describe_difference(self, picture: UInt8[np.ndarray, "H W 3"]) -> str | None:
        """Describe in which measures a picture is outside the known range. Return None if it is inside.

        The known pictures are only a sample. Therefore a measure may exceed the range by half the width of the range.
        """
        found = _measure(picture)
        margin = _MARGIN * np.maximum(self.high - self.low, _SMALLEST_RANGE)
        apart = [
            f"{measure} {value:.0%} (there {low:.0%} to {high:.0%})"
            for measure, value, low, high, slack in zip(_MEASURES, found, self.low, self.high, margin, strict=True)
            if not low - slack <= value <= high + slack
        ]
        if not apart:
            return None
        return (
            f"This picture is unlike the {self.num_pictures:,} pictures of {self.name} that it was compared with: "
            f"{', '.join(apart)}. The model may not segment it well."
        )


def _measure(picture: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "n"]:
    """Return all measures of an RGB picture, 0 to 1, in the order of `_MEASURES`."""
    image = Image.fromarray(picture)
    image.thumbnail((_COMPARED_SIDE, _COMPARED_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float64)
    grey = pixels.mean(axis=2)
    steps = np.concatenate([np.abs(np.diff(grey, axis=axis)).ravel() for axis in (0, 1)])
    steps = steps if len(steps) else np.zeros(1)
    return np.array([
        grey.mean() / 255,
        grey.std() / 128,
        ((pixels.max(axis=2) - pixels.min(axis=2)) / np.maximum(pixels.max(axis=2), 1)).mean(),
        min(1.0, steps.mean() / 32),
        (steps < _EVEN).mean(),
    ])  # fmt: skip
