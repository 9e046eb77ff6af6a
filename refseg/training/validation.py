"""Validation while training goes on: when it is due, how it is done, and when there is no more to hope for."""

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
    """The recipe's validation of a run.

    Attributes:
        digest: Of the dataset; empty where the recipe wants no validation.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Open what is validated on, if anything is.

        Raises:
            DatasetError: If the dataset is unusable.
            UsageError: If it has no such split.
        """
        self._recipe = recipe
        self._accelerator = accelerator
        data = recipe.data
        self._index = (
            ManifestIndex.open(data.val_root or data.root, [data.val_split]) if recipe.train.val_every_epochs else None
        )
        self.digest = "" if self._index is None else self._index.descriptor.digest

    def warn_about_leaks(self, trained_on: TrainingSet) -> None:
        """Warn if images that are trained on are to be validated on: the best is then the one that remembers."""
        if self._index is None:
            return
        found = check_leaks([trained_on], self._index)
        if found.num_shared:
            logger.warning(
                "%s of the %s images of data.val_split %s are trained on (%s): validation says how well they are "
                "remembered, and so does the best checkpoint; name another data.val_split, or train.val_every_epochs=0",
                f"{found.num_shared:,}", f"{found.num_images:,}", self._recipe.data.val_split, found.says,
            )  # fmt: skip

    def is_due(self, step: int, *, steps_per_epoch: int) -> bool:
        """Whether it comes after a step."""
        every = self._recipe.train.val_every_epochs
        epoch, into_epoch = divmod(step, steps_per_epoch)
        return every > 0 and into_epoch == 0 and (epoch % every == 0 or epoch == self._recipe.train.epochs)

    def is_out_of_patience(self, step: int, best: Best | None, *, steps_per_epoch: int) -> bool:
        """Whether the last validations were not better, as of a step after which there was one."""
        config = self._recipe.train
        if not config.patience or best is None or not self.is_due(step, steps_per_epoch=steps_per_epoch):
            return False
        if (step - best.step) // (steps_per_epoch * config.val_every_epochs) < config.patience:
            return False
        logger.info("no better validation for %d: the run ends here", config.patience)
        return True

    def score(self, model: SegmentationModel, geometry: Geometry) -> tuple[Scores, dict[str, Any]]:
        """Score a model, which is the same on all processes, on all of them together.

        Returns:
            The scores, and their line of `metrics.jsonl`.
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
    """Choose images by a hash of their ids, so that neither seed nor order nor processes move them.

    Of two numbers the smaller one's images are among the larger one's.

    Args:
        index: Index of the split.
        num_images: How many; 0 or more than there are: all.

    Returns:
        Their positions in the index, ascending; None: all.
    """
    if not 0 < num_images < index.num_images:
        return None
    hashes = [xxhash.xxh3_64_intdigest(str(image_id).encode()) for image_id in index.image_id.tolist()]
    return np.sort(np.argsort(np.array(hashes, np.uint64), kind="stable")[:num_images])
