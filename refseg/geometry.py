"""Computes the rectangle that a resized picture fills in the network's input; without torch.

The build and the loader both use it, so that stored and decoded pictures agree.
"""

from typing import Literal

GeometryKind = Literal["letterbox", "stretch"]
"""`letterbox` keeps the aspect ratio and centres the picture (CRIS); `stretch` fills the whole input (LAVT)."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean colour of OpenAI's CLIP, which was subtracted from images in its training; RGB from 0 to 1."""


def place(kind: GeometryKind, size: tuple[int, int], original_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the rectangle that the resized picture fills: `(top, left, height, width)` in pixels.

    Args:
        kind: How the picture is fitted, as `GeometryKind` defines.
        size: `(height, width)` of the network's input in pixels.
        original_size: `(height, width)` of the picture in pixels.
    """
    if kind == "stretch":
        return (0, 0, *size)
    scale = min(size[0] / original_size[0], size[1] / original_size[1])
    # A picture of 1 x 1000 pixels would be scaled to a height of 0; it keeps one row.
    height, width = (max(1, round(scale * side)) for side in original_size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width
