"""Decides when a validation is due during training, computes its scores, and ends runs without improvement."""

import logging
import time
from typing import Any

import numpy as np
import xxhash
from accelerate import Accelerator
from numpy.typing import NDArray

from refseg.config import Recipe
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.leak_check import check_leaks
from refseg.evaluation.protocols import find_protocol
from refseg.evaluation.scores import Scores, score
from refseg.lineage import TrainingSet
from refseg.models.model import SegmentationModel
from refseg.training.checkpoint_state import Best

logger = logging.getLogger(__name__)


class Validation:
    """The validation that a run's recipe asks for.

    Attributes:
        digest: Digest of the validation dataset. Empty if the recipe requests no validation.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Open the validation split if the recipe requests validation.

        Raises:
            DatasetError: If the dataset cannot be used.
            UsageError: If the dataset does not have the split.
        """
        self._recipe = recipe
        self._accelerator = accelerator
        data = recipe.data
        self._index = (
            ManifestIndex.open(data.val_root or data.root, [data.val_split]) if recipe.train.val_every_epochs else None
        )
        self.digest = "" if self._index is None else self._index.descriptor.digest

    def warn_about_leaks(self, trained_on: TrainingSet) -> None:
        """Warn if the validation split contains training images. Scores would then reward memorised images."""
        if self._index is None:
            return
        found = check_leaks([trained_on], self._index)
        if found.num_shared:
            logger.warning(
                "%s of the %s images of data.val_split %s are training images (%s): validation, and the choice of the "
                "best checkpoint, would measure memorised images; name another data.val_split, or set "
                "train.val_every_epochs=0",
                f"{found.num_shared:,}", f"{found.num_images:,}", self._recipe.data.val_split, found.says,
            )  # fmt: skip

    def is_due(self, step: int, *, steps_per_epoch: int) -> bool:
        """Return True if a validation is due after this number of steps."""
        every = self._recipe.train.val_every_epochs
        epoch, into_epoch = divmod(step, steps_per_epoch)
        return every > 0 and into_epoch == 0 and (epoch % every == 0 or epoch == self._recipe.train.epochs)

    def is_out_of_patience(self, step: int, best: Best | None, *, steps_per_epoch: int) -> bool:
        """Return True if the last `train.patience` validations, including the one after this step, did not improve."""
        config = self._recipe.train
        if not config.patience or best is None or not self.is_due(step, steps_per_epoch=steps_per_epoch):
            return False
        if (step - best.step) // (steps_per_epoch * config.val_every_epochs) < config.patience:
            return False
        logger.info("the last %d validations did not improve: the run ends here", config.patience)
        return True

    def score(self, model: SegmentationModel, geometry: Geometry) -> tuple[Scores, dict[str, Any]]:
        """Score a model on all processes together. The weights must be the same in each process.

        Returns:
            The scores, and the line for `metrics.jsonl`.
        """
        assert self._index is not None
        started = time.perf_counter()
        recipe = self._recipe
        rows = evaluate_model(
            model,
            self._index,
            accelerator=self._accelerator,
            geometry=geometry,
            num_tokens=recipe.data.num_tokens,
            images_per_batch=recipe.eval.images_per_batch,
            num_workers=recipe.data.num_workers,
            decode=recipe.data.decode,
            protocols=[find_protocol(recipe.eval.protocol)],
            only_images=choose_images(self._index, recipe.train.val_images),
        )
        scores = score(rows, find_protocol(recipe.eval.protocol))
        line = {
            "split": recipe.data.val_split,
            **scores.by_name(),
            "num_sentences": scores.num_sentences,
            "seconds": round(time.perf_counter() - started, 3),
        }
        return scores, line


def choose_images(index: ManifestIndex, num_images: int) -> NDArray[np.int64] | None:
    """Choose images by a hash of their ids. The choice does not depend on seed, order or number of processes.

    The images chosen for a smaller number are a subset of those for a larger number.

    Args:
        index: Index of the split.
        num_images: Number of images. If it is 0 or exceeds the images of the split, all images are chosen.

    Returns:
        Positions of the images in the index, in ascending order. None means all images.
    """
    if not 0 < num_images < index.num_images:
        return None
    hashes = [xxhash.xxh3_64_intdigest(str(image_id).encode()) for image_id in index.image_id.tolist()]
    return np.sort(np.argsort(np.array(hashes, np.uint64), kind="stable")[:num_images])
