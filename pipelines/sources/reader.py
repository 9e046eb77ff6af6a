"""Defines a reader of annotations: a name, a description, and a function from files to a `RawSource`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.raw import RawSource
from refseg.dataset.schema import CUSTOM, DatasetSpec
from refseg.mask_png import DEFAULT_RULE, PngRule


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """A user's options for reading annotations.

    Attributes:
        png_rule: How mask PNGs are read.
        as_split: Split for files that do not name one. If empty, these files are refused.
        ignored_regions: Handling of refs with regions whose pixels should not count, `refuse` or `background`.
    """

    png_rule: PngRule = DEFAULT_RULE
    as_split: str = ""
    ignored_regions: str = "refuse"


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One layout of annotation files.

    Attributes:
        name: Name of the reader for `--reader`.
        reads: Short description of the layout, for help and error messages.
        serves: Returns True if the layout can hold a dataset.
        read: Reads a dataset from a file or folder. It returns None if there are no files of the layout, and raises
            `UsageError` and `AnnotationError`.
    """

    name: str
    reads: str
    serves: Callable[[DatasetSpec], bool]
    read: Callable[[DatasetSpec, Path, ReadOptions], RawSource | None]


def serves_custom(spec: DatasetSpec) -> bool:
    """Return True for a user's own dataset, `custom/<name>`."""
    return spec.dataset == CUSTOM
