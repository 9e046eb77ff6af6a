"""Writes and reads a trained model as a folder for the Hugging Face Hub.

The folder has `config.json`, `model.safetensors` and `README.md`. It holds all that prediction needs and a record of
the training, but no path of the machine on which the model was trained.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file

from refseg import __version__, tokenizer
from refseg.aside import folder_aside
from refseg.config import Recipe, make_recipe
from refseg.errors import CheckpointError, RecipeError, UsageError
from refseg.lineage import RECORDED, STRICT, Lineage
from refseg.model_config import Count, Natural
from refseg.models import build_model
from refseg.models.model import SegmentationModel
from refseg.models.weight_files import file_sha256, save_weights
from refseg.sealed import BrokenSealError, open_seal, parse_object, seal

FOLDER_VERSION = 2
"""Version of the folder's format; it is increased when older releases could misread a new folder."""

CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT | ConfigDict(arbitrary_types_allowed=True))
class PublishedModel:
    """A trained model with its settings and a record of its training.

    Attributes:
        model: The trained model.
        recipe: Settings of the run. They contain no paths if the model was read from a published folder.
        lineage: What the model was trained on. It contains no paths if the model was read from a published folder.
        step: Number of optimiser steps.
        epoch: Number of completed epochs.
        num_processes: Number of processes that trained.
    """

    model: SegmentationModel
    recipe: Recipe
    lineage: Lineage
    step: Natural
    epoch: Natural
    num_processes: Count

    def save_pretrained(self, folder: Path | str, *, card: str = "") -> Path:
        """Write the model as a new folder. The folder appears only when it is complete.

        Args:
            folder: Path of the folder. It must not exist.
            card: The Hub's model card in Markdown, which is written as `README.md`. If empty, no card is written.

        Returns:
            The path of the folder.

        Raises:
            UsageError: If something already exists at the path.
        """
        folder = Path(folder)
        if folder.exists():
            raise UsageError(f"{folder}: already exists, expected a new folder; remove it or choose another path")
        with folder_aside(folder, synced=True) as aside:
            save_weights(aside / WEIGHTS_NAME, self.model.state_dict())
            config = self._config(weights_sha256=file_sha256(aside / WEIGHTS_NAME))
            (aside / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            if card:
                (aside / CARD_NAME).write_text(card, encoding="utf-8")
        return folder

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: torch.device | str = "cpu") -> "PublishedModel":
        """Read a folder that `save_pretrained` wrote. The model is in evaluation mode.

        Args:
            folder: A local folder, for example one that `hf download OWNER/NAME --local-dir FOLDER` made.
            device: Device to which the model is moved.

        Raises:
            CheckpointError: If the folder is not a published model, or is damaged. If the model requires preprocessing
                that differs from this release.
        """
        folder = Path(folder)
        config = _read_config(folder / CONFIG_NAME)
        release = config.get("refseg", "unknown")
        try:
            sections = {name: config[name] for name in Recipe.model_fields}
            recipe = make_recipe(sections, where=str(folder / CONFIG_NAME))
            lineage = Lineage.from_json(config["origin"], split=recipe.data.train_split)
            progress = {key: value for key, value in config["origin"].items() if key not in RECORDED}
            expected_sha256 = config["weights_sha256"]
            preprocessing = config["preprocessing"]
            model = build_model(recipe.model, input_size=recipe.data.input_size)
            published = cls(model=model, recipe=recipe, lineage=lineage, **progress)
        except RecipeError as error:
            raise CheckpointError(f"{error}\n  use the refseg release that wrote this folder: {release}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            # A RuntimeError is raised for layer sizes that exceed the memory of any machine.
            raise CheckpointError(f"{folder / CONFIG_NAME}: unexpected content ({error}); fetch it again") from error
        if preprocessing != _preprocessing(model):
            raise CheckpointError(
                f"{folder / CONFIG_NAME}: found preprocessing {preprocessing}, expected {_preprocessing(model)}; "
                f"use the refseg release that wrote this folder: {release}"
            )
        weights = folder / WEIGHTS_NAME
        try:
            found_sha256 = file_sha256(weights)
            if found_sha256 != expected_sha256:
                raise CheckpointError(
                    f"{weights}: found SHA-256 {found_sha256}, {CONFIG_NAME} expects {expected_sha256}; fetch it again"
                )
            model.load_state_dict(load_file(weights))
        except (RuntimeError, SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{weights}: missing, or not the weights of the model in {CONFIG_NAME} ({error}); fetch it again"
            ) from error
        model.to(device).eval()
        return published

    def _config(self, *, weights_sha256: str) -> dict[str, Any]:
        """Return the content of `config.json`.

        It has the recipe's sections and everything else that affects predictions.
        """
        fields = {
            "format": "refseg-model",
            "format_version": FOLDER_VERSION,
            "refseg": __version__,
            "library_name": "refseg",
            **without_paths(self.recipe).to_dict(),
            "preprocessing": _preprocessing(self.model),
            "weights_sha256": weights_sha256,
            "origin": {
                "step": self.step,
                "epoch": self.epoch,
                "num_processes": self.num_processes,
                **self.lineage.without_paths().to_json(),
            },
        }
        return seal(fields)


def without_paths(recipe: Recipe) -> Recipe:
    """Return a recipe without paths of the training machine. For start weights, the last part of the path is kept."""
    data = dataclasses.replace(recipe.data, root="", val_root="")
    named = {key: Path(getattr(recipe.model, key)).name for key in ("image_weights", "text_weights")}
    train = recipe.train.model_copy(update={"init_from": Path(recipe.train.init_from).name})
    return recipe.model_copy(update={"data": data, "train": train, "model": recipe.model.model_copy(update=named)})


def _preprocessing(model: SegmentationModel) -> dict[str, Any]:
    """Return the preprocessing that the recipe's `data.input_size`, `geometry` and `num_tokens` do not describe."""
    return {
        "image_mean": list(model.image_mean),
        "image_std": list(model.image_std),
        "tokenizer": dict(tokenizer.IDENTITY),
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse_object(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a folder that `refseg publish` wrote") from error
    except (OSError, BrokenSealError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch it again") from error
    if config.get("format") != "refseg-model":
        raise CheckpointError(
            f"{path}: not the configuration of a refseg model; expected a folder that `refseg publish` wrote"
        )
    if config.get("format_version") != FOLDER_VERSION:
        raise CheckpointError(
            f"{path}: found format version {config.get('format_version')}, expected {FOLDER_VERSION}; "
            f"use the refseg release that wrote this folder: {config.get('refseg')}"
        )
    try:
        return open_seal(config)
    except BrokenSealError as error:
        raise CheckpointError(f"{path}: changed since it was written ({error}); fetch it again") from error
