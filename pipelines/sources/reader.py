"""What a reader of annotations is: a name, what it reads, and a function from files to a `RawSource`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.raw import RawSource
from refseg.dataset.schema import CUSTOM, DatasetSpec
from refseg.mask_png import DEFAULT_RULE, PngRule


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a user says about the annotations beside their place.

    Attributes:
        png_rule: How mask PNGs are read.
        as_split: Split of what names no split; empty: such files are refused.
    """

    png_rule: PngRule = DEFAULT_RULE
    as_split: str = ""


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One layout of annotation files.

    Attributes:
        name: As `--reader` takes it.
        reads: The layout in a few words, for help and error messages.
        serves: Tells whether the layout can hold a dataset.
        read: Reads a dataset from a file or folder; None if the layout's files are not there. Errors are `UsageError`
            and `AnnotationError`.
    """

    name: str
    reads: str
    serves: Callable[[DatasetSpec], bool]
    read: Callable[[DatasetSpec, Path, ReadOptions], RawSource | None]


def serves_custom(spec: DatasetSpec) -> bool:
    """True for a user's own dataset, `custom/<name>`."""
    return spec.dataset == CUSTOM
