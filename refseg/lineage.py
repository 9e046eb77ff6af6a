"""Records what a model was trained on: its own training set, and those of the models that its weights started from.

The same record is stored in checkpoints (`state.json`), published folders (`config.json`), `environment.json` and
scores, and is used to search for leaks.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import PurePath
from typing import Any

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(strict=True, extra="forbid")
"""Configuration of dataclasses that are read from JSON: unknown keys and values of another type are refused."""

Leaks = Mapping[str, Mapping[str, int]]
"""For each training set, the number of its images that each `<dataset id> <split>` shares: `Descriptor.leaks`."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainingSet:
    """A set of images and sentences that weights were trained on.

    Attributes:
        dataset: Dataset id, for example `refcoco/unc`.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of the dataset.
        split: The split that was trained on; empty: not recorded.
        root: Folder or URL of the dataset, absolute if known; empty: not recorded, as in a published model.
        leaks_allowed: True for a mix that kept training images although they are in a member's evaluation splits.
        leaks: Number of such images by evaluation split (`refseg.dataset.descriptor.Descriptor.leaks`).
    """

    dataset: str
    dataset_digest: str
    split: str = ""
    root: str = ""
    leaks_allowed: bool = False
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def roots(self) -> tuple[str, ...]:
        """Folders or URLs where the training set may be found, the most likely one first."""
        return (self.root,) if self.root else ()


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Ancestor(TrainingSet):
    """A model whose weights another run started from (`train.init_from`), with its training set.

    Attributes:
        path: Path in `train.init_from`; for an ancestor of a published model, only its last component.
        weights_sha256: SHA-256 of the weight file in hex; it identifies the model wherever the file lies.
        step: Number of optimiser steps that the model had been trained for.
    """

    path: str
    weights_sha256: str
    step: NonNegativeInt

    def without_paths(self) -> "Ancestor":
        """Return a copy without the paths of the training machine: only the model's name is kept."""
        return replace(self, path=PurePath(self.path).name, root="")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Lineage(TrainingSet):
    """A model's own training set, and the models that its weights come from.

    Attributes:
        recipe_root: `data.root` of the recipe, maybe relative to another folder; empty: not recorded.
        ancestors: The models that its weights come from, the nearest first.
    """

    recipe_root: str = ""
    ancestors: tuple[Ancestor, ...] = ()

    @classmethod
    def from_json(
        cls, fields: Mapping[str, Any], *, split: str = "", root: str = "", recipe_root: str = ""
    ) -> "Lineage":
        """Read a lineage from a file's fields that `to_json` wrote; other fields are ignored.

        Args:
            fields: The file's content.
            split: The training split, which the file records in another field.
            root: The dataset's folder or URL, which the file records in another field.
            recipe_root: `data.root` of the recipe in the file.

        Raises:
            pydantic.ValidationError: If a field is missing, unknown or of another type.
        """
        own = {key: value for key, value in fields.items() if key in RECORDED}
        return _ADAPTER.validate_json(json.dumps({**own, "split": split, "root": root, "recipe_root": recipe_root}))

    @property
    def roots(self) -> tuple[str, ...]:
        """Folders or URLs where the training set may be found, the most likely one first."""
        return tuple(filter(None, dict.fromkeys((self.root, self.recipe_root))))

    @property
    def training_sets(self) -> tuple[TrainingSet, ...]:
        """All training sets of the weights: the model's own one, then those of its ancestors."""
        return self, *self.ancestors

    def as_ancestor(self, *, path: str, weights_sha256: str, step: int) -> Ancestor:
        """Return the ancestor record for a run that starts from this model; `Ancestor` describes the arguments."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(TrainingSet)}
        own["root"] = next(iter(self.roots), "")
        return Ancestor(**own, path=path, weights_sha256=weights_sha256, step=step)

    def without_paths(self) -> "Lineage":
        """Return a copy without the paths of the training machine."""
        return replace(
            self, root="", recipe_root="", ancestors=tuple(ancestor.without_paths() for ancestor in self.ancestors)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields that every file records, as JSON types; the file's recipe names split and folder."""
        return _ADAPTER.dump_python(self, mode="json", include=set(RECORDED))


RECORDED = ("dataset", "dataset_digest", "leaks_allowed", "leaks", "ancestors")
"""Fields of a lineage that files record under these names."""
_ADAPTER = TypeAdapter(Lineage)


def describe_leaks(leaks: Leaks) -> str:
    """Describe leaks, for example `refcoco/unc has 5 training images in refcocog/umd val, 3 in refcocog/umd test`."""
    if not leaks:
        return "no training image is in an evaluation split of a member"
    return "; ".join(f"{dataset} has {_describe_splits(splits)}" for dataset, splits in leaks.items())


def _describe_splits(splits: Mapping[str, int]) -> str:
    first, *others = splits.items()
    images = "training image" if first[1] == 1 else "training images"
    return ", ".join([f"{first[1]:,} {images} in {first[0]}", *(f"{number:,} in {split}" for split, number in others)])
