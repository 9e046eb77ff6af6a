"""What `state.json` of a checkpoint holds: all that a run must know to resume, besides tensors."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from pydantic.dataclasses import dataclass

from refseg import __version__
from refseg.config import Recipe, make_recipe
from refseg.data.order import Cursor
from refseg.evaluation.leak_check import TrainedOn
from refseg.model_config import Count, Natural
from refseg.models.ancestry import STRICT, Ancestor


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
        dataset: Dataset id, for example `refcoco/unc`.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of what was trained on.
        dataset_folder: Where that was, whole path or URL: `recipe.data.root` may count from another folder. Empty: not
            known, as of a published model.
        val_dataset_digest: Digest of what was validated on; empty without validation.
        leaks_allowed: True for a mix that kept training images although a member evaluates on them.
        leaks: Of such a mix, how many images of which splits those are (`refseg.dataset.descriptor.Descriptor.leaks`).
        num_processes: Ranks that trained.
        owes_validation: True if the run was asked to leave when a validation was due: it comes first.
        ancestors: The models that the weights come from, by way of `train.init_from`; the nearest first.
        refseg_version: Version of the package that wrote it.
    """

    recipe: Recipe
    step: Natural
    epoch: Natural
    cursor: Cursor | None
    window: dict[str, float]
    best: Best | None
    dataset: str
    dataset_digest: str
    num_processes: Count
    dataset_folder: str = ""
    val_dataset_digest: str = ""
    owes_validation: bool = False
    leaks_allowed: bool = False
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)
    ancestors: tuple[Ancestor, ...] = ()
    refseg_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        best = None if self.best is None else dataclasses.asdict(self.best)
        cursor = None if self.cursor is None else self.cursor.to_dict()
        ancestors = [dataclasses.asdict(each) for each in self.ancestors]
        return {**fields, "recipe": self.recipe.to_dict(), "best": best, "cursor": cursor, "ancestors": ancestors}

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
        best = fields["best"]
        return cls(
            **{
                **fields,
                "recipe": make_recipe(fields["recipe"], where=where),
                "cursor": Cursor.from_dict(dict(fields["cursor"])),
                "best": None if best is None else Best(**best),
                "ancestors": tuple(Ancestor(**each) for each in fields["ancestors"]),
            }
        )

    def trained_on(self) -> tuple[TrainedOn, ...]:
        """All training sets that the weights come from, the run's own first."""
        own = TrainedOn(
            roots=tuple(filter(None, dict.fromkeys((self.dataset_folder, self.recipe.data.root)))),
            split=self.recipe.data.train_split,
            dataset=self.dataset,
            digest=self.dataset_digest,
            leaks=self.leaks,
        )
        before = (
            TrainedOn(
                roots=(each.root,) if each.root else (),
                split=each.split,
                dataset=each.dataset,
                digest=each.dataset_digest,
                leaks=each.leaks,
                by=each.path,
            )
            for each in self.ancestors
        )
        return own, *before
