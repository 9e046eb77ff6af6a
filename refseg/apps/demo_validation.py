"""Reads the model's validation set, for examples on the demo's page and for comparison with uploaded pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refseg.apps.demo_likeness import KnownPictures
from refseg.config import Recipe
from refseg.data.index import ManifestIndex
from refseg.errors import RefsegError

logger = logging.getLogger(__name__)

_NUM_EXAMPLES = 6
_NUM_COMPARED = 64
_SENTENCES_PER_EXAMPLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPicture:
    """A picture of the validation set. The demo offers it as an example.

    Attributes:
        image_id: Id of the image in its dataset.
        data: The file's bytes.
        sentences: Expressions that annotators wrote about the picture, at least one.
    """

    image_id: int
    data: bytes
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSet:
    """The part of a validation set that the demo uses.

    Attributes:
        name: Dataset and split, for example `toy/refseg val`.
        licences: Licences of the pictures.
        examples: Pictures with sentences, by their position in the page.
        known: The range of each measure over some of the pictures.
    """

    name: str
    licences: Sequence[str]
    examples: Mapping[int, ValidationPicture]
    known: KnownPictures


def read_validation_set(recipe: Recipe, data: Path | str | None) -> tuple[ValidationSet | None, str]:
    """Read examples of the validation set, spread evenly over it, and measure some of its pictures.

    Args:
        recipe: Recipe of the model. It names the split and the dataset.
        data: Folder or URL of the dataset. If None, the dataset of the recipe is used.

    Returns:
        The validation set and an empty text. If it cannot be read, None and the reason. The demo also works without a
        validation set.

    Raises:
        RefsegError: If `data` names a dataset that cannot be read.
    """
    folder = str(data or recipe.data.val_root or recipe.data.root)
    if not folder:
        return None, "the model does not record where its validation set is; name it with --data"
    try:
        index = ManifestIndex.open(folder, [recipe.data.val_split])
        return _read(index, recipe.data.val_split), ""
    except RefsegError as error:
        if data is not None:
            raise
        logger.warning("the demo offers no example of the validation set: %s", error)
        return None, f"the validation set cannot be read at {folder}; name its folder with --data"


def _read(index: ManifestIndex, split: str) -> ValidationSet:
    compared = np.unique(np.linspace(0, index.num_images - 1, _NUM_COMPARED).astype(int))
    offered = np.unique(np.linspace(0, index.num_images - 1, _NUM_EXAMPLES).astype(int))
    name = f"{index.descriptor.dataset} {split}"
    return ValidationSet(
        name=name,
        licences=index.descriptor.licences,
        examples={number: _example(index, int(image)) for number, image in enumerate(offered)},
        known=KnownPictures.measure(
            name, (index.decode_image(int(image)).permute(1, 2, 0).numpy() for image in compared)
        ),
    )


def _example(index: ManifestIndex, image: int) -> ValidationPicture:
    first, end = (int(index.sentence_start[row]) for row in index.row_start[image : image + 2])
    sentences = index.sent.slice(first, end - first).to_pylist()
    different = list(dict.fromkeys(sentences))
    chosen = np.unique(np.linspace(0, len(different) - 1, _SENTENCES_PER_EXAMPLE).astype(int))
    return ValidationPicture(
        image_id=int(index.image_id[image]),
        data=bytes(index.read_image_bytes(image)),
        sentences=tuple(different[place] for place in chosen),
    )
