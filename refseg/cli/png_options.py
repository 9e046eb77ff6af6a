"""Options that say how mask PNGs are to be read, the same for `build-shards` and `score`."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refseg.mask_png import PngRule


def add_png_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, each of which says more than the default rule (`refseg.mask_png`)."""
    parser.add_argument(
        "--mask-threshold",
        type=int,
        metavar="N",
        help="mask PNGs: the object is what has value N or more, for smooth edges "
        "(default: 0 is background, one other value the object, and more values are refused)",
    )
    parser.add_argument(
        "--mask-object-value", type=int, metavar="N", help="mask PNGs: the object is what has value N, of a label map"
    )
    parser.add_argument(
        "--mask-ignore-value", type=int, metavar="N", help="mask PNGs: what has value N counts as background"
    )
    parser.add_argument(
        "--mask-channel",
        choices=("colour", "alpha"),
        help="mask PNGs: which channel holds the object (default: the colour; an alpha channel must show the same)",
    )


def read_png_rule(args: argparse.Namespace) -> "PngRule":
    """The rule that the options make.

    Raises:
        UsageError: If they contradict each other.
    """
    from refseg.mask_png import PngRule

    return PngRule(
        channel=args.mask_channel or "",
        threshold=args.mask_threshold,
        object_value=args.mask_object_value,
        ignore_value=args.mask_ignore_value,
    )
