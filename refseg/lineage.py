"""What a model was trained on: its own training set, and those of the models that its weights started from.

One record, which checkpoints (`state.json`), published folders (`config.json`), `environment.json`, scores and the
search for leaks share.
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
"""Of dataclasses that are read from JSON: values of another type and unknown keys are refused."""

Leaks = Mapping[str, Mapping[str, int]]
"""By training set, how many of its images each `<dataset id> <split>` has too: `Descriptor.leaks`."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainingSet:
    """A set of images and sentences that weights were trained on.

    Attributes:
        dataset: Dataset id, for example `refcoco/unc`.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of it.
        split: The split that was trained on; empty: not recorded.
        root: Its folder or URL, whole where it is known so; empty: not recorded, as of a published model.
        leaks_allowed: True for a mix that kept training images although a member evaluates on them.
        leaks: How many images of which splits such a mix contains (`refseg.dataset.descriptor.Descriptor.leaks`).
    """

    dataset: str
    dataset_digest: str
    split: str = ""
    root: str = ""
    leaks_allowed: bool = False
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the training set may be found, the likeliest first."""
        return (self.root,) if self.root else ()


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Ancestor(TrainingSet):
    """A model whose weights another training started from, by way of `train.init_from`, and its training set.

    Attributes:
        path: As `train.init_from` named it; of a published model's ancestor, its last part alone.
        weights_sha256: SHA-256 of the file of weights, in hex: it identifies the model wherever the file lies now.
        step: Optimiser steps it had done.
    """

    path: str
    weights_sha256: str
    step: NonNegativeInt

    def without_paths(self) -> "Ancestor":
        """The same without the paths of the machine that trained: the model's name alone."""
        return replace(self, path=PurePath(self.path).name, root="")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Lineage(TrainingSet):
    """A model's own training set, and the models that its weights come from.

    Attributes:
        recipe_root: `data.root` of the recipe, which may count from another folder; empty: not recorded.
        ancestors: The models that its weights come from, the nearest first.
    """

    recipe_root: str = ""
    ancestors: tuple[Ancestor, ...] = ()

    @classmethod
    def from_json(
        cls, fields: Mapping[str, Any], *, split: str = "", root: str = "", recipe_root: str = ""
    ) -> "Lineage":
        """Read what `to_json` gave from among the fields of a file; other fields are passed over.

        Args:
            fields: The file's content.
            split: What the file says elsewhere of the split.
            root: What the file says elsewhere of the dataset's folder.
            recipe_root: `data.root` of the recipe in the file.

        Raises:
            pydantic.ValidationError: If a field is missing, unknown or of another type.
        """
        own = {key: value for key, value in fields.items() if key in RECORDED}
        return _ADAPTER.validate_json(json.dumps({**own, "split": split, "root": root, "recipe_root": recipe_root}))

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the training set may be found, the likeliest first."""
        return tuple(filter(None, dict.fromkeys((self.root, self.recipe_root))))

    @property
    def training_sets(self) -> tuple[TrainingSet, ...]:
        """All that the weights were trained on: the model's own, then those of its ancestors."""
        return self, *self.ancestors

    def as_ancestor(self, *, path: str, weights_sha256: str, step: int) -> Ancestor:
        """What a model with this lineage is to a run that starts from its weights; arguments as of `Ancestor`."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(TrainingSet)}
        own["root"] = next(iter(self.roots), "")
        return Ancestor(**own, path=path, weights_sha256=weights_sha256, step=step)

    def without_paths(self) -> "Lineage":
        """The same without the paths of the machine that trained."""
        return replace(
            self, root="", recipe_root="", ancestors=tuple(ancestor.without_paths() for ancestor in self.ancestors)
        )

    def to_json(self) -> dict[str, Any]:
        """The fields that every file records, as JSON types; the recipe beside them names split and folder."""
        return _ADAPTER.dump_python(self, mode="json", include=set(RECORDED))


RECORDED = ("dataset", "dataset_digest", "leaks_allowed", "leaks", "ancestors")
"""Fields of a lineage that stand under these names in files."""
_ADAPTER = TypeAdapter(Lineage)


def describe_leaks(leaks: Leaks) -> str:
    """Say what leaked, for example `refcoco/unc has 5 training images in refcocog/umd val, 3 in refcocog/umd test`."""
    if not leaks:
        return "no training image is in an evaluation split of a member"
    return "; ".join(f"{dataset} has {_describe_splits(splits)}" for dataset, splits in leaks.items())


def _describe_splits(splits: Mapping[str, int]) -> str:
    first, *others = splits.items()
    images = "training image" if first[1] == 1 else "training images"
    return ", ".join([f"{first[1]:,} {images} in {first[0]}", *(f"{number:,} in {split}" for split, number in others)])
