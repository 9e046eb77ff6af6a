"""Defines the content of a checkpoint's `state.json`, with which a run resumes. Tensors are stored in other files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from refseg import __version__
from refseg.config import Recipe, make_recipe
from refseg.data.order import Cursor
from refseg.lineage import RECORDED, STRICT, Lineage
from refseg.model_config import Count, Natural


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Best:
    """The best validation so far.

    Attributes:
        overall_iou: oIoU, 0 to 1.
        step: Optimiser step after which the validation took place.
    """

    overall_iou: float
    step: Natural


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CheckpointState:
    """The content of `state.json`. Types are checked when an instance is created.

    Attributes:
        recipe: Resolved settings of the run.
        step: Number of completed optimiser steps.
        epoch: Number of completed epochs.
        cursor: The loader's position in the data. None for a published model, which cannot be resumed.
        window: Sums over the steps since the last line of `metrics.jsonl`.
        best: The best validation up to and including this step. None before the first validation.
        lineage: The training set, and the models from which the training started.
        val_dataset_digest: Digest of the validation dataset. Empty without validation.
        num_processes: Number of processes that trained.
        validation_due: True if SIGTERM stopped the run when a validation was due. The resumed run then validates first.
        refseg_version: Version of the package that wrote the checkpoint.
    """

    recipe: Recipe
    step: Natural
    epoch: Natural
    cursor: Cursor | None
    window: dict[str, float]
    best: Best | None
    lineage: Lineage
    num_processes: Count
    val_dataset_digest: str = ""
    validation_due: bool = False
    refseg_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types. The fields of the lineage are merged with the others."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        lineage: Lineage = fields.pop("lineage")
        return {
            **fields,
            **lineage.to_json(),
            "dataset_folder": lineage.root,
            "recipe": self.recipe.to_dict(),
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "cursor": None if self.cursor is None else self.cursor.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, where: str) -> "CheckpointState":
        """Read a state from the fields that `to_dict` returned.

        Args:
            fields: Fields of `state.json`.
            where: Source of the fields, for errors about the recipe.

        Raises:
            RecipeError: If the recipe is not valid in this release.
            DatasetError: If the cursor is not valid.
            KeyError, TypeError, ValueError: If another field is missing, unknown or of another type.
        """
        recipe = make_recipe(fields["recipe"], where=where)
        best = fields["best"]
        lineage = Lineage.from_json(
            fields,
            split=recipe.data.train_split,
            root=fields.get("dataset_folder", ""),
            recipe_root=recipe.data.root,
        )
        others = {
            # Checkpoints of earlier releases use the name `owes_validation`.
            "validation_due" if key == "owes_validation" else key: value
            for key, value in fields.items()
            if key not in (*RECORDED, "dataset_folder")
        }
        return cls(
            **{
                **others,
                "recipe": recipe,
                "lineage": lineage,
                "cursor": Cursor.from_dict(dict(fields["cursor"])),
                "best": None if best is None else Best(**best),
            }
        )
