"""What was scored: a model or the masks of another project, and on which split. Recorded beside every score."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from refseg.evaluation.leak_check import LeakCheck, leak_statement, leak_warning
from refseg.lineage import Lineage

_CONFIG = ConfigDict(strict=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class _Scored:
    """The split that was scored.

    Attributes:
        data: Folder or URL of the dataset.
        dataset: Dataset id, for example `refcoco/unc`.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of it.
        split: Its name.
        refseg: Version of the package that scored it; None: not recorded.
    """

    data: str
    dataset: str
    dataset_digest: str
    split: str
    refseg: str | None = None

    @property
    def scored_on(self) -> str:
        """The split as `<dataset id> <split>`."""
        return f"{self.dataset} {self.split}"

    def to_json(self) -> dict[str, Any]:
        """The recorded fields as JSON types."""
        fields: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfMasks(_Scored):
    """Masks of another project, of whose training nothing is known.

    Attributes:
        predictions: The file or folder of masks.
    """

    predictions: str
    leak_warning = leak_statement = ""  # nothing can be compared

    @property
    def subject(self) -> str:
        """What was scored, in words."""
        return f"masks of {self.predictions}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfModel(_Scored):
    """A checkpoint.

    Attributes:
        checkpoint: Its folder.
        step: Optimiser steps done.
        lineage: What it was trained on; read from a file, without split and folder of its own training set.
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

    def to_json(self) -> dict[str, Any]:
        """The recorded fields as JSON types; those of the lineage stand among them, its dataset as `trained_on`."""
        fields = _Scored.to_json(self)
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


Origin: TypeAlias = OriginOfModel | OriginOfMasks
_OF_MODEL, _OF_MASKS = TypeAdapter(OriginOfModel), TypeAdapter(OriginOfMasks)


def read_origin(fields: Mapping[str, Any]) -> Origin:
    """Read what `to_json` gave from among the fields of a file; other fields are passed over.

    Raises:
        KeyError: If it is a model's, without `trained_on` or `trained_on_digest`.
        pydantic.ValidationError: If another field is missing, or one is of another type.
    """
    if "predictions" in fields:
        return _OF_MASKS.validate_json(json.dumps(dict(fields)), strict=True)
    trained_on = {"dataset": fields["trained_on"], "dataset_digest": fields["trained_on_digest"]}
    lineage = Lineage.from_json({**fields, **trained_on})
    return _OF_MODEL.validate_json(json.dumps({**fields, "lineage": lineage.to_json()}), strict=True)
