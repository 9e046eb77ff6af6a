"""What was scored: a model or the masks of another project, and on which split. Recorded beside every score."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from refseg.evaluation.leak_check import LeakCheck, leak_statement, leak_warning
from refseg.lineage import Lineage

_CONFIG = ConfigDict(strict=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Origin:
    """The split that was scored.

    Attributes:
        data: Folder or URL of the dataset.
        dataset: Dataset id, for example `refcoco/unc`.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of it.
        split: Its name.
        refseg: Version of the package that scored it; empty: not recorded.
    """

    data: str
    dataset: str
    dataset_digest: str
    split: str
    refseg: str = ""

    @property
    def scored_on(self) -> str:
        """The split as `<dataset id> <split>`."""
        return f"{self.dataset} {self.split}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfMasks(Origin):
    """Masks of another project, whose training is not known.

    Attributes:
        predictions: The file or folder of masks.
    """

    predictions: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "OriginOfMasks":
        """Undo `to_json`; other fields of the file are passed over.

        Raises:
            pydantic.ValidationError: If a field is missing or of another type.
        """
        return _read(cls, fields)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return _dump(self)

    @property
    def subject(self) -> str:
        """What was scored, in words."""
        return f"masks of {self.predictions}"

    @property
    def leak_warning(self) -> str:
        """Empty: nothing is known of what the masks' model was trained on."""
        return ""

    @property
    def leak_statement(self) -> str:
        """Empty, for the same reason."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfModel(Origin):
    """A checkpoint.

    Attributes:
        checkpoint: Its folder.
        step: Optimiser steps done.
        lineage: What it was trained on; read from a file, without splits and folders of its own training set.
        leak_check: Whether it was trained on images of the split; None: not recorded.
        num_processes: Processes that scored it; None: not recorded.
        seconds: How long that took; None: not recorded.
    """

    checkpoint: str
    step: NonNegativeInt
    lineage: Lineage
    leak_check: LeakCheck | None = None
    num_processes: PositiveInt | None = None
    seconds: float | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "OriginOfModel":
        """Undo `to_json`; other fields of the file are passed over.

        Raises:
            KeyError: If there is no `trained_on` or `trained_on_digest`.
            pydantic.ValidationError: If another field is missing, or one is of another type.
        """
        trained_on = {"dataset": fields["trained_on"], "dataset_digest": fields["trained_on_digest"]}
        lineage = Lineage.from_json({**fields, **trained_on})
        return _read(cls, {**fields, "lineage": lineage.to_json()})

    def to_json(self) -> dict[str, Any]:
        """As JSON types; the fields of the lineage stand among the others, its dataset as `trained_on`."""
        fields = _dump(self)
        del fields["lineage"]
        lineage = self.lineage.to_json()
        trained_on = {"trained_on": lineage.pop("dataset"), "trained_on_digest": lineage.pop("dataset_digest")}
        return {**fields, **trained_on, **lineage}

    @property
    def subject(self) -> str:
        """What was scored, in words."""
        return f"step {self.step:,} of {self.checkpoint}"

    @property
    def leak_warning(self) -> str:
        """What must stand beside the scores of a model that was or may have been trained on the split's images."""
        return leak_warning(self.lineage, self.leak_check, scored=self.scored_on)

    @property
    def leak_statement(self) -> str:
        """What was compared, where no image of the split was found to be trained on."""
        return leak_statement(self.lineage, self.leak_check, scored=self.scored_on)


_Kind = TypeVar("_Kind", OriginOfMasks, OriginOfModel)


def _read(kind: type[_Kind], fields: Mapping[str, Any]) -> _Kind:
    return TypeAdapter(kind).validate_json(json.dumps(dict(fields)), strict=True)


def _dump(origin: Origin) -> dict[str, Any]:
    """The fields that are recorded."""
    fields: dict[str, Any] = TypeAdapter(type(origin)).dump_python(origin, mode="json")
    return {key: value for key, value in fields.items() if value not in (None, "")}
