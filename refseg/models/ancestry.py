"""The models that a model's weights come from, by way of `train.init_from`: what they were trained on counts too."""

from dataclasses import field, replace
from pathlib import PurePath

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from refseg.model_config import Natural

STRICT = ConfigDict(strict=True, extra="forbid")
"""Of dataclasses that are read from JSON: values of another type and unknown keys are refused."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Ancestor:
    """A model whose weights another training started from.

    Attributes:
        path: As `train.init_from` named it; of a published model's ancestor, its last part alone.
        weights_sha256: SHA-256 of the file of weights, in hex: who it was, wherever it lies now.
        step: Optimiser steps it had done.
        root: Where its training data were; empty: not known.
        split: Their split.
        dataset: Their id.
        dataset_digest: `refseg.dataset.descriptor.Descriptor.digest` of them.
        leaks_allowed: True if they were a mix that kept training images although a member evaluates on them.
        leaks: How many images of which splits those are (`refseg.dataset.descriptor.Descriptor.leaks`).
    """

    path: str
    weights_sha256: str
    step: Natural
    root: str
    split: str
    dataset: str
    dataset_digest: str
    leaks_allowed: bool = False
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)

    def without_paths(self) -> "Ancestor":
        """As others may read it: its name alone."""
        return replace(self, path=PurePath(self.path).name, root="")
