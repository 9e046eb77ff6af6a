"""Reads Ref-ZOM: REFER's layout, where `source` says of a ref how many objects it names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.sources.raw import RawSource
from pipelines.sources.refer import read_refer
from refseg.dataset.schema import DatasetSpec


def read_zom(spec: DatasetSpec, annotations: Path) -> RawSource:
    """Read `ref-zom/refs(final).p`, as the authors ask to rename their `Ref-ZOM(final).p`.

    A ref with `source` `zero` has no target, whatever its `ann_id` (DMMI, `refer.py`, `getMask`).

    Raises:
        UsageError: If the files are not there.
        AnnotationError: If a file cannot be read or is not of the expected form.
    """
    raw = read_refer(spec, annotations)
    return replace(raw, refs=_Refs(raw.refs))


@dataclass(frozen=True, slots=True)
class _Refs:
    """The refs with the targets of `zero` taken away."""

    refs: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        for ref in self.refs:
            yield {**ref, "ann_id": -1} if isinstance(ref, dict) and ref.get("source") == "zero" else ref
