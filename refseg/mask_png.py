"""Reads mask PNGs by one rule: for the targets of a table and for predictions that are scored.

By default 0 is the background and one other value is the object. A file with more values is ambiguous: it may have
smooth edges, numbers of instances, or values to ignore. So is a file whose alpha channel shows another shape. Both are
refused until the user names a rule.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from refseg.errors import AnnotationError, UsageError
from refseg.file_kinds import describe_other_kind

CHANNELS = ("colour", "alpha")
MAX_PIXELS = 2**28
"""Largest number of pixels of a mask that is read, because a file of a few kilobytes may claim to hold billions."""

_MAX_VALUE = 65535
_REMEDY = (
    "apply the threshold to it first or give --mask-threshold (smooth edges), or say which value is the object "
    "(--mask-object-value: instances, classes) or counts as background (--mask-ignore-value)"
)
_NUM_LISTED = 4
_ALPHA_MODES = ("LA", "RGBA")


@dataclass(frozen=True, slots=True, kw_only=True)
class PngRule:
    """The user's rule for reading mask PNGs; values are those stored in the file, 0 to 65535.

    Attributes:
        channel: Channel of a mask PNG that holds the object; by default the colour, with which an alpha channel must
            agree if it has more than one value.
        threshold: Pixels of a mask PNG with this value or a larger one are the object, for smooth edges; by default 0
            is background, one other value is the object, and more values are refused.
        object_value: Pixels of a mask PNG with this value are the object, for label maps.
        ignore_value: Pixels of a mask PNG with this value count as background.

    Raises:
        UsageError: If a value is not allowed, or two options contradict each other.
    """

    channel: str = ""
    threshold: int | None = None
    object_value: int | None = None
    ignore_value: int | None = None

    def __post_init__(self) -> None:
        if self.channel not in ("", *CHANNELS):
            raise UsageError(f"--mask-channel {self.channel}: expected {' or '.join(CHANNELS)}")
        for name, value, least in (
            ("--mask-threshold", self.threshold, 1),
            ("--mask-object-value", self.object_value, 0),
            ("--mask-ignore-value", self.ignore_value, 1),
        ):
            if value is not None and not least <= value <= _MAX_VALUE:
                raise UsageError(f"{name} {value}: expected {least} to {_MAX_VALUE}")
        if self.threshold is not None and self.object_value is not None:
            raise UsageError("found --mask-threshold and --mask-object-value, expected one of them")
        if self.object_value is not None and self.object_value == self.ignore_value:
            raise UsageError(
                f"--mask-ignore-value {self.ignore_value}: is also --mask-object-value, expected two different values"
            )

    def __str__(self) -> str:
        """Describe what differs from the default rule; empty for the default rule."""
        differences = {
            f"object in the {self.channel} channel": bool(self.channel),
            f"object >= {self.threshold}": self.threshold is not None,
            f"object = {self.object_value}": self.object_value is not None,
            f"{self.ignore_value} ignored, counted as background": self.ignore_value is not None,
        }
        return ", ".join(text for text, differs in differences.items() if differs)


DEFAULT_RULE = PngRule()


@dataclass(frozen=True, slots=True)
class PngMask:
    """A mask that was read from a PNG.

    Attributes:
        pixels: `(H, W)`, True on the object.
        object_value: The object's value in the file; a colour is written as `#ff0000`. Empty if there is no object, or
            if a `PngRule` names its values.
    """

    pixels: NDArray[np.bool_]
    object_value: str = ""


def read_mask_png(data: bytes, rule: PngRule) -> PngMask:
    """Read a mask from a PNG of any type: grey of 1 to 16 bits, a palette (its indices are the values), or colours.

    Args:
        data: Bytes of the file.
        rule: Rule that says which values are the object.

    Raises:
        AnnotationError: If the file is not a complete PNG, or does not fit the rule. The message continues a text that
            names the file.
    """
    try:
        picture = PngImagePlugin.PngImageFile(BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise AnnotationError(
                f"is {picture.width} x {picture.height} pixels, expected at most {MAX_PIXELS}; save it at the size of "
                "its picture"
            )
        picture.load()
    except SyntaxError as error:
        if data.startswith(b"\x89PNG"):
            raise AnnotationError(f"cannot be read as a PNG ({error}); save it again") from error
        raise AnnotationError(describe_other_kind(data, "PNG")) from error
    except (OSError, ValueError, LookupError, struct.error, zlib.error) as error:
        reason = " ".join(str(error).split()).partition(" <")[0] or type(error).__name__
        raise AnnotationError(f"cannot be read as a PNG ({reason}); save it again") from error
    if rule.channel == "alpha":
        return _select(_alpha(picture), rule)
    if not rule.channel and picture.mode in _ALPHA_MODES:
        alpha = _alpha(picture)
        if alpha.min() != alpha.max():
            return _select_agreeing(picture, alpha, rule)
    return _select(_colour(picture, rule), rule)


def note_object_values(found: Mapping[str, int]) -> str:
    """Return a note if the object's value differs between masks, which may be a mistake; else an empty text.

    Args:
        found: Number of masks with each `PngMask.object_value`.
    """
    values = sorted(filter(None, found), key=lambda value: (len(value), value))
    if len(values) < 2:
        return ""
    counted = ", ".join(f"{value} in {found[value]:,}" for value in values)
    return f"the object's value differs between pictures; each of these values was read as the object: {counted}"


def _alpha(picture: Image.Image) -> NDArray[Any]:
    """Return the alpha channel `(H, W)`, 0 to 255; the colours of a palette may have one, too."""
    if not picture.has_transparency_data:
        raise AnnotationError("has no alpha channel, expected one (--mask-channel alpha)")
    return np.asarray(picture.convert("RGBA"))[..., 3]


def _colour(picture: Image.Image, rule: PngRule) -> NDArray[Any]:
    """Return the values without alpha, `(H, W)`: grey values or palette indices; a colour becomes 0xrrggbb + 2**24.

    The added 2**24 keeps colours apart from grey values: the colour #0000ff becomes 16777471 and not the grey 255.
    """
    if picture.mode == "P" and rule.threshold is None:
        background = (picture.getpalette("RGB") or [0, 0, 0])[:3]
        if rule.object_value is None and any(background):
            raise AnnotationError(
                f"has a palette that shows index 0, the background, as {tuple(background)}, expected black; save it as "
                "a picture in shades of grey, or name the object's index (--mask-object-value)"
            )
        return np.asarray(picture)
    if picture.mode in ("1", "LA"):
        return np.asarray(picture.convert("L"))
    if picture.mode not in ("P", "RGB", "RGBA"):
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB")).astype(np.int32)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    if (red == green).all() and (green == blue).all():
        return red
    packed: NDArray[Any] = (red << 16) + (green << 8) + blue
    return np.where(packed > 0, packed + 2**24, 0)


def _select(values: NDArray[Any], rule: PngRule) -> PngMask:
    is_coloured = int(values.max(initial=0)) > _MAX_VALUE
    names_values = rule.threshold is not None or rule.object_value is not None or rule.ignore_value is not None
    if is_coloured and names_values:
        raise AnnotationError(
            f"is in colours, expected shades of grey ({rule}); save it in shades of grey, or leave out the options"
        )
    if rule.threshold is not None:
        return PngMask((values >= rule.threshold) & (values != rule.ignore_value))
    if rule.object_value is not None:
        return PngMask(values == rule.object_value)
    found = np.unique(values) if is_coloured else np.flatnonzero(np.bincount(values.reshape(-1)))
    objects = [value for value in found.tolist() if value not in (0, rule.ignore_value)]
    if len(objects) > 1:
        remedy = "save it in shades of grey, the object white" if is_coloured else _REMEDY
        names = [_name(value) for value in found.tolist()]
        listed = ", ".join(names if len(names) <= _NUM_LISTED else [*names[: _NUM_LISTED - 1], "...", names[-1]])
        raise AnnotationError(f"holds {len(names)} values ({listed}), expected 0 and another one; {remedy}")
    if not objects:
        return PngMask(np.zeros(values.shape, np.bool_))
    return PngMask(values == objects[0], "" if rule.ignore_value is not None else _name(objects[0]))


def _select_agreeing(picture: Image.Image, alpha: NDArray[Any], rule: PngRule) -> PngMask:
    """Return the object if the colours and the alpha channel show the same shape; else raise an error."""
    try:
        mask = _select(_colour(picture, rule), rule)
        agrees = bool((mask.pixels == (alpha > 0)).all())
    except AnnotationError:
        agrees = False
    if not agrees:
        raise AnnotationError(
            "has an alpha channel that shows another shape than its colours, expected the same; say which holds the "
            "object (--mask-channel alpha or colour)"
        )
    return mask


def _name(value: int) -> str:
    return f"#{value - 2**24:06x}" if value > _MAX_VALUE else str(value)
