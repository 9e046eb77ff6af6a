"""What `state.json` of a checkpoint holds: all that a run must know to resume, besides tensors."""

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
        step: After which it was reached.
    """

    overall_iou: float
    step: Natural


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CheckpointState:
    """The content of `state.json`: what a run must know to resume, besides tensors. Types are checked when it is made.

    Attributes:
        recipe: Resolved settings of the run.
        step: Optimiser steps done.
        epoch: Epochs done.
        cursor: The loader's position in the data; None for a published model, which is not resumed.
        window: What has been summed up since the last line of `metrics.jsonl`.
        best: The best validation, this step's included; None before the first.
        lineage: What was trained on, and the models that the weights come from.
        val_dataset_digest: Digest of what was validated on; empty without validation.
        num_processes: Ranks that trained.
        owes_validation: True if the run was asked to leave when a validation was due: it comes first.
        refseg_version: Version of the package that wrote it.
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
    owes_validation: bool = False
    refseg_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; the lineage's fields stand among the others."""
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
        """Undo `to_dict`.

        Args:
            fields: As `to_dict` gave them.
            where: Named in errors about the recipe.

        Raises:
            RecipeError: If the recipe is not one of this release.
            DatasetError: If the cursor is not one.
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
        others = {key: value for key, value in fields.items() if key not in (*RECORDED, "dataset_folder")}
        return cls(
            **{
                **others,
                "recipe": recipe,
                "lineage": lineage,
                "cursor": Cursor.from_dict(dict(fields["cursor"])),
                "best": None if best is None else Best(**best),
            }
        )
