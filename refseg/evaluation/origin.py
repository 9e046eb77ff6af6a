"""Records which model or masks were scored, and on which split. Every score is stored with this record."""

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
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of the dataset.
        split: Name of the split.
        refseg: Version of the package that computed the scores. None if it was not recorded.
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
        """Return the recorded fields as JSON types."""
        fields: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfMasks(_Scored):
    """Masks of another project. The training data of that project are unknown.

    Attributes:
        predictions: The file or folder of masks.
    """

    predictions: str
    leak_warning = leak_statement = ""  # nothing can be compared

    @property
    def subject(self) -> str:
        """Description of what was scored."""
        return f"masks of {self.predictions}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class OriginOfModel(_Scored):
    """The checkpoint that was scored.

    Attributes:
        checkpoint: Folder of the checkpoint.
        step: Number of optimiser steps that the model was trained for.
        lineage: What the model was trained on. The files of results do not record the split and folder of the model's
            own training set.
        leak_check: Comparison of the training images with the images of the split. None if it was not recorded.
        num_processes: Number of processes that evaluated the checkpoint. None if it was not recorded.
        seconds: Duration of the evaluation in seconds. None if it was not recorded.
    """

    checkpoint: str
    step: NonNegativeInt
    lineage: Lineage
    leak_check: LeakCheck | None = None
    num_processes: PositiveInt | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the recorded fields, merged with those of the lineage, as JSON types.

        The key of the training dataset is `trained_on`.
        """
        fields = _Scored.to_json(self)
        del fields["lineage"]
        lineage = self.lineage.to_json()
        trained_on = {"trained_on": lineage.pop("dataset"), "trained_on_digest": lineage.pop("dataset_digest")}
        return {**fields, **trained_on, **lineage}

    @property
    def subject(self) -> str:
        """Description of what was scored."""
        return f"step {self.step:,} of {self.checkpoint}"

    @property
    def leak_warning(self) -> str:
        """Warning to show with the scores of a model that was or may have been trained on images of the split."""
        return leak_warning(self.lineage, self.leak_check, scored=self.scored_on)

    @property
    def leak_statement(self) -> str:
        """Statement of what was compared. It is given if no image of the split was found among the training images."""
        return leak_statement(self.lineage, self.leak_check, scored=self.scored_on)


Origin: TypeAlias = OriginOfModel | OriginOfMasks
_OF_MODEL, _OF_MASKS = TypeAdapter(OriginOfModel), TypeAdapter(OriginOfMasks)


def read_origin(fields: Mapping[str, Any]) -> Origin:
    """Read an origin from the fields that `to_json` returned. Other fields are ignored.

    Raises:
        KeyError: If the origin is a model and `trained_on` or `trained_on_digest` is missing.
        pydantic.ValidationError: If another field is missing, or a field has another type.
    """
    if "predictions" in fields:
        return _OF_MASKS.validate_json(json.dumps(dict(fields)), strict=True)
    trained_on = {"dataset": fields["trained_on"], "dataset_digest": fields["trained_on_digest"]}
    lineage = Lineage.from_json({**fields, **trained_on})
    return _OF_MODEL.validate_json(json.dumps({**fields, "lineage": lineage.to_json()}), strict=True)
