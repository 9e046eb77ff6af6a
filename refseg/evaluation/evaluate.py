"""Evaluates a model on a dataset. Each sentence is predicted once, and its pixels are counted for every protocol."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor

from refseg import __version__
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.transforms import Geometry, normalise
from refseg.errors import TrainingError
from refseg.evaluation.ground_truth import GroundTruth
from refseg.evaluation.inference import ReferringModel, compared_masks
from refseg.evaluation.partial import CountedParts, Found
from refseg.evaluation.protocols import ORIGINAL, Protocol
from refseg.evaluation.rows import Counted, RowFacts, SentenceOrder, make_table
from refseg.models.model import SegmentationModel
from refseg.models.text_cache import TextCache
from refseg.progress import report_progress
from refseg.reading import DecodePlace, Reading
from refseg.run_lengths import encode_runs

logger = logging.getLogger(__name__)

MAX_EXPRESSIONS = 32
"""Largest number of sentences that are decoded at once, which limits the memory for images with many sentences."""


@torch.inference_mode()
def evaluate_model(
    model: ReferringModel,
    index: ManifestIndex,
    *,
    accelerator: Accelerator,
    geometry: Geometry,
    num_tokens: int,
    images_per_batch: int,
    num_workers: int = 0,
    decode: DecodePlace = "cpu",
    protocols: Sequence[Protocol] = (ORIGINAL,),
    sentence_order: SentenceOrder = "own",
    save_predictions: bool = False,
    only_images: NDArray[np.int64] | None = None,
    parts: CountedParts | None = None,
) -> pa.Table:
    """Predict a mask for every sentence of an index, and compare it with the target under each protocol.

    Each image is encoded once for all its sentences, and each sentence is decoded once for all protocols. The batches
    contain the same images for any number of processes, so the rows are the same too. Every process must call this
    function. Each process receives all rows.

    Args:
        model: Model on the accelerator's device, without training wrappers. The function restores its mode (training or
            evaluation) at the end.
        index: Index of the split or splits to score.
        accelerator: Accelerator that provides device, rank and number of processes.
        geometry: Geometry with which the model was trained.
        num_tokens: Number of token ids to which longer sentences are truncated.
        images_per_batch: Number of images that each process encodes at once.
        num_workers: Number of workers per rank that read images.
        decode: Device that decodes the images. With CPU decoding, the decoded images are the same on every machine.
        protocols: Protocols by which masks are made and compared. The first one gives the headline scores.
        sentence_order: `own` scores each sentence against its own target. `shuffled` is the control that shows whether
            the model uses language.
        save_predictions: True to keep the predicted masks in the rows, at the size that each protocol requires.
        only_images: Positions of the images to score, in ascending order. None scores all images.
        parts: Stores pixel counts during the evaluation, so that an interrupted evaluation can resume. Its folder must
            be on a file system that all processes share. The caller removes the stored counts after saving the rows. If
            None, nothing is saved or resumed.

    Returns:
        Rows (`refseg.evaluation.rows`) in the order of the index, with `RowFacts` in the table's metadata.

    Raises:
        DatasetError: If an image cannot be read.
        TrainingError: If the processes together did not score every sentence exactly once. If `parts` cannot be
            written.
    """
    targets = target_rows(index, sentence_order)
    is_scored = np.repeat(targets >= 0, np.diff(index.sentence_start))
    if sentence_order != "own":
        is_scored &= index.sentence_exists  # a sentence without a target does not test whether language is used
    if only_images is not None:
        of_sentence = np.repeat(index.row_image, np.diff(index.sentence_start))
        is_scored &= np.isin(of_sentence, only_images)
    found = Found()
    images_left = only_images
    if parts is not None:
        settings = {
            "dataset": index.digest,
            "geometry": asdict(geometry),
            "num_tokens": num_tokens,
            "images_per_batch": images_per_batch,
            "decode": decode,
            "protocols": [asdict(protocol) for protocol in protocols],
            "sentence_order": sentence_order,
            "save_predictions": save_predictions,
            "only_images": None if only_images is None else only_images.tolist(),
            "device": accelerator.device.type,
            "versions": [__version__, torch.__version__],
        }
        parts.open(settings)
        if accelerator.is_main_process:  # other processes would read later and might find other files
            wanted = np.arange(index.num_images) if only_images is None else only_images
            found = parts.read()
            images_left = _images_left(found, index, wanted, images_per_batch, is_scored)
            if found.rows:
                logger.info("resuming: %d of %d sentences are done", len(found.rows), np.count_nonzero(is_scored))
        (images_left,) = broadcast_object_list([images_left])
        parts.skip(found)
    reading = Reading(
        geometry=geometry.kind, input_size=geometry.size, image_mean=geometry.mean, num_tokens=num_tokens,
        sampling="images", expressions_per_image="all", global_batch=images_per_batch * accelerator.num_processes,
        shuffle=False, remainder="pad", num_workers=num_workers, decode=decode,
    )  # fmt: skip
    loader = RefLoader(
        index, reading, rank=accelerator.process_index, world_size=accelerator.num_processes, only=images_left
    )
    ground_truth = GroundTruth(index, protocols)
    # The cache needs a `TextState`, which only the models of this project are known to return.
    encode_text = TextCache(model) if isinstance(model, SegmentationModel) else model.encode_text
    was_training = model.training
    model.train(False)
    try:
        batches: Iterable[Batch] = prepare_loader(accelerator, loader) if len(loader) else ()
        task = f"evaluate {'+'.join(index.splits)}"
        with report_progress(task, "batches", shown=accelerator.is_main_process) as progress:
            for number, batch in enumerate(batches, 1):
                images = normalise(batch.images, model.image_mean, model.image_std)
                _evaluate_batch(
                    model,
                    images,
                    batch,
                    encode_text=encode_text,
                    ground_truth=ground_truth,
                    targets=targets,
                    is_scored=is_scored,
                    geometry=geometry,
                    protocols=protocols,
                    found=found,
                    save_predictions=save_predictions,
                )
                if parts is not None:
                    parts.keep(found)
                progress(number, len(loader))
        if parts is not None:
            parts.keep(found, at_once=True)
    finally:
        model.train(was_training)

    counted = _gather(found, num_protocols=len(protocols), save_predictions=save_predictions)
    if not np.array_equal(index.sentence_start[counted.row] + counted.sentence, np.flatnonzero(is_scored)):
        raise TrainingError(
            f"{index.folder}: the {accelerator.num_processes} processes evaluated {len(counted.row)} sentences, "
            f"expected each of {np.count_nonzero(is_scored)} exactly once; start every process on the same dataset and "
            "recipe"
        )
    facts = RowFacts(
        protocols=tuple(protocols),
        mask_rule=index.descriptor.mask_rule,
        sentence_order=sentence_order,
        num_left_out=int(np.count_nonzero(~is_scored)),
    )
    return make_table(index, targets, counted, facts)


def target_rows(index: ManifestIndex, order: SentenceOrder) -> NDArray[np.int64]:
    """Return, for each row, the row whose target its sentences are scored against, shape (rows,).

    A row that is left out has the value -1. In shuffled order, the targets of an image are rotated, so that no sentence
    is scored against its own target. For example, with the targets A, B and C, the sentences for A are scored against
    B, the sentences for B against C, and the sentences for C against A. The score of a model that finds salient objects
    without using language stays the same. The score of a model that uses language drops strongly. Refs with equal masks
    count as one target. Refs without a target, and images with a single target, are left out.
    """
    if order == "own":
        return np.arange(index.num_rows)
    targets = np.full(index.num_rows, -1)
    for first, end in zip(index.row_start[:-1].tolist(), index.row_start[1:].tolist(), strict=True):
        groups: dict[bytes, list[int]] = {}
        for row in range(first, end):
            if not index.no_target[row]:
                groups.setdefault(index.counts(row).tobytes(), []).append(row)
        circle = list(groups.values())
        if len(circle) > 1:
            for rows, others in zip(circle, circle[1:] + circle[:1], strict=True):
                targets[rows] = others[0]
    return targets


def _images_left(
    found: Found,
    index: ManifestIndex,
    images: NDArray[np.int64],
    images_per_batch: int,
    is_scored: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the positions of the images that an interrupted evaluation has not scored, in the original order.

    All images of an incomplete batch are returned, so that the remaining batches equal those of an uninterrupted
    evaluation. This matters because the last bit of a convolution may depend on the number of images in a batch.

    Args:
        found: Counts of the interrupted evaluation.
        index: Index of the splits that are scored.
        images: Positions of all images to score.
        images_per_batch: Number of images in a batch of one process.
        is_scored: True for sentences to score, shape (sentences,).
    """
    of_sentence = np.repeat(index.row_image, np.diff(index.sentence_start))
    counted = np.array([row[:2] for row in found.rows], np.int64).reshape(-1, 2)
    is_left = is_scored.copy()
    is_left[index.sentence_start[counted[:, 0]] + counted[:, 1]] = False
    batch = np.arange(len(images)) // images_per_batch
    return images[np.isin(batch, batch[np.isin(images, of_sentence[is_left])])]


def _evaluate_batch(
    model: ReferringModel,
    images: Tensor,
    batch: Batch,
    *,
    encode_text: Callable[[Tensor, Tensor], Any],
    ground_truth: GroundTruth,
    targets: NDArray[np.int64],
    is_scored: NDArray[np.bool_],
    geometry: Geometry,
    protocols: Sequence[Protocol],
    found: Found,
    save_predictions: bool,
) -> None:
    """Encode the images of a batch once, decode its sentences in chunks, and count pixels."""
    index = ground_truth.index
    positions = index.sentence_start[batch.row_index.cpu().numpy()] + batch.sentence_index.cpu().numpy()
    scored = ~batch.is_pad.cpu().numpy() & is_scored[positions]
    chosen = torch.from_numpy(np.flatnonzero(scored)).to(images.device)
    if not len(chosen):
        return
    image_state = model.encode_image(images)
    for chunk in chosen.split(MAX_EXPRESSIONS):
        text_state = encode_text(batch.token_ids[chunk], batch.token_mask[chunk])
        mask_logits = model.decode(image_state, text_state, batch.image_index[chunk])
        of_image = batch.image_index[chunk].cpu().numpy()
        rows, sentences = batch.row_index[chunk].tolist(), batch.sentence_index[chunk].tolist()
        # Sentences of one image are consecutive: of_image 4 4 7 gives the groups 0 1 and 2.
        for group in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(of_image)) + 1):
            first, end = int(group[0]), int(group[-1]) + 1
            pixels: list[list[int]] = [[] for _ in group]
            runs: list[list[NDArray[np.uint32]]] = [[] for _ in group]
            for protocol in protocols:
                masks = compared_masks(
                    mask_logits[first:end],
                    original_size=index.size(rows[first]),
                    geometry=geometry,
                    protocol=protocol,
                )
                for number, (mask, position) in enumerate(zip(masks, group.tolist(), strict=True)):
                    row = int(targets[rows[position]])
                    own_sentence = sentences[position] if row == rows[position] else None
                    target = torch.from_numpy(np.ascontiguousarray(ground_truth.mask(protocol, row, own_sentence)))
                    pixels[number] += _count(mask, target.to(mask.device))
                    if save_predictions:
                        runs[number].append(encode_runs(mask.cpu().numpy()))
            found.rows += [
                (rows[position], sentences[position], *counts)
                for position, counts in zip(group.tolist(), pixels, strict=True)
            ]
            if save_predictions:
                found.predictions += runs


def _count(mask: Tensor, target: Tensor) -> list[int]:
    """Count intersection, predicted area and target area in pixels."""
    counts: list[int] = torch.stack([(mask & target).sum(), mask.sum(), target.sum()]).tolist()
    return counts


def _gather(found: Found, *, num_protocols: int, save_predictions: bool) -> Counted:
    """Join the counts of all processes in the order of the index.

    The counts are gathered as Python objects, because their lengths may differ between ranks. `gather_for_metrics` of
    accelerate is not used, because it would truncate them to its own count of samples.
    """
    parts = gather_object([(np.array(found.rows, np.int64).reshape(-1, 2 + 3 * num_protocols), found.predictions)])
    rows = np.concatenate([part for part, _ in parts])
    predictions = [prediction for _, part in parts for prediction in part]
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    rows = rows[order]
    return Counted(
        row=rows[:, 0],
        sentence=rows[:, 1],
        pixels=rows[:, 2:].reshape(-1, num_protocols, 3),
        predictions=[[predictions[position][number] for position in order] for number in range(num_protocols)]
        if save_predictions
        else (),
    )
