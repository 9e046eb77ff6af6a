"""One prediction pass over a dataset: one row of pixel counts per sentence, on any number of processes."""

import logging
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.transforms import Geometry, normalise
from refseg.errors import TrainingError
from refseg.evaluation.control import target_rows
from refseg.evaluation.inference import ReferringModel, masks_at_original_size
from refseg.evaluation.protocols import ORIGINAL, Protocol, RowFacts, SentenceOrder
from refseg.evaluation.rows import PREDICTION_FIELD, ROWS_SCHEMA
from refseg.run_lengths import encode_runs

logger = logging.getLogger(__name__)

MAX_EXPRESSIONS = 32
"""Sentences decoded at once: bounds the memory of images with many."""


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
    protocol: Protocol = ORIGINAL,
    sentence_order: SentenceOrder = "own",
    save_predictions: bool = False,
) -> pa.Table:
    """Predict every sentence of an index and count pixels against its target at the image's own size.

    Each image is encoded once for all its sentences. Batches hold the same images whatever the number of processes,
    so the rows are the same too. Every process calls this, and every process gets all rows.

    Args:
        model: On the accelerator's device, not wrapped for gradients; its mode (training or not) is restored.
        index: The split or splits to score.
        accelerator: Names device, rank and number of processes.
        geometry: To the network's input; the one the model was trained with.
        num_tokens: Longer sentences are cut to this.
        images_per_batch: Images encoded at once by each process.
        num_workers: Reading processes per rank.
        protocol: How masks are made.
        sentence_order: `shuffled`: the control that shows whether language is read.
        save_predictions: Add the column `predicted_counts`.

    Returns:
        Rows of `ROWS_SCHEMA` in the order of the index, carrying `RowFacts`.

    Raises:
        DatasetError: If an image cannot be read.
        TrainingError: If the processes together did not see every sentence exactly once.
    """
    targets = target_rows(index, sentence_order)
    is_scored = np.repeat(targets >= 0, np.diff(index.sentence_start))
    if sentence_order != "own":
        is_scored &= index.sentence_exists  # a sentence that names nothing shows nothing about reading
    loader = RefLoader(
        index,
        geometry=geometry,
        sampling="images",
        expressions_per_image="all",
        global_batch=images_per_batch * accelerator.num_processes,
        num_tokens=num_tokens,
        seed=0,
        shuffle=False,
        remainder="pad",
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=num_workers,
    )
    found = _Found()
    was_training = model.training
    model.train(False)
    try:
        # `disable=None`: a bar on a terminal, silence elsewhere.
        progress = tqdm(
            prepare_loader(accelerator, loader),
            desc=f"evaluate {'+'.join(index.splits)}",
            unit="batch",
            disable=None if accelerator.is_main_process else True,
        )
        for batch in progress:
            images = normalise(batch.images, model.image_mean, model.image_std)
            _evaluate_batch(
                model,
                images,
                batch,
                index=index,
                targets=targets,
                is_scored=is_scored,
                geometry=geometry,
                protocol=protocol,
                found=found,
                save_predictions=save_predictions,
            )
    finally:
        model.train(was_training)

    rows, predictions = _gather(found)
    table = _make_table(index, targets, rows, predictions if save_predictions else None)
    if not np.array_equal(_positions(index, rows), np.flatnonzero(is_scored)):
        raise TrainingError(
            f"{index.folder}: the {accelerator.num_processes} processes evaluated {len(rows)} sentences, expected each "
            f"of {np.count_nonzero(is_scored)} exactly once; start every process on the same dataset and recipe"
        )
    facts = RowFacts(
        protocol=protocol,
        mask_rule=index.descriptor.mask_rule,
        sentence_order=sentence_order,
        num_left_out=int(np.count_nonzero(~is_scored)),
    )
    return facts.attach(table)


@dataclass(slots=True)
class _Found:
    """What one process counted: six numbers per sentence, and its prediction where asked for."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    """Row, sentence, intersection, union, predicted area, target area."""
    predictions: list[NDArray[np.uint32]] = field(default_factory=list)


def _evaluate_batch(
    model: ReferringModel,
    images: Tensor,
    batch: Batch,
    *,
    index: ManifestIndex,
    targets: NDArray[np.int64],
    is_scored: NDArray[np.bool_],
    geometry: Geometry,
    protocol: Protocol,
    found: _Found,
    save_predictions: bool,
) -> None:
    """Encode the images of a batch once, decode its sentences a chunk at a time, and count."""
    positions = index.sentence_start[batch.row_index.cpu().numpy()] + batch.sentence_index.cpu().numpy()
    scored = ~batch.is_pad.cpu().numpy() & is_scored[positions]
    chosen = torch.from_numpy(np.flatnonzero(scored)).to(images.device)
    if not len(chosen):
        return
    image_state = model.encode_image(images)
    for chunk in chosen.split(MAX_EXPRESSIONS):
        text_state = model.encode_text(batch.token_ids[chunk], batch.token_mask[chunk])
        mask_logits = model.decode(image_state, text_state, batch.image_index[chunk])
        of_image = batch.image_index[chunk].cpu().numpy()
        rows, sentences = batch.row_index[chunk].tolist(), batch.sentence_index[chunk].tolist()
        for places in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(of_image)) + 1):
            masks = masks_at_original_size(
                mask_logits[places[0] : places[-1] + 1],
                original_size=index.size(rows[places[0]]),
                geometry=geometry,
                protocol=protocol,
            )
            for mask, place in zip(masks, places.tolist(), strict=True):
                row = int(targets[rows[place]])
                own_sentence = sentences[place] if row == rows[place] else None
                target = torch.from_numpy(np.ascontiguousarray(index.target_mask(row, own_sentence)))
                counts = _count(mask, target.to(mask.device).bool())
                found.rows.append((rows[place], sentences[place], *counts))
                if save_predictions:
                    found.predictions.append(encode_runs(mask.cpu().numpy()))


def _count(mask: Tensor, target: Tensor) -> tuple[int, int, int, int]:
    """Intersection, union, predicted area, target area, in pixels."""
    areas = torch.stack([(mask & target).sum(), mask.sum(), target.sum()])
    intersection, predicted_area, target_area = areas.tolist()
    return intersection, predicted_area + target_area - intersection, predicted_area, target_area


def _gather(found: _Found) -> tuple[NDArray[np.int64], list[NDArray[np.uint32]]]:
    """Put the findings of all processes together, in the order of the index.

    Objects are gathered, of any length on each rank; accelerate's `gather_for_metrics` would trim by its own count.
    """
    parts = gather_object([(np.array(found.rows, np.int64).reshape(-1, 6), found.predictions)])
    rows = np.concatenate([part for part, _ in parts])
    predictions = [prediction for _, part in parts for prediction in part]
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    return rows[order], [predictions[place] for place in order] if predictions else []


def _positions(index: ManifestIndex, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the sentences in the index."""
    positions: NDArray[np.int64] = index.sentence_start[rows[:, 0]] + rows[:, 1]
    return positions


def _make_table(
    index: ManifestIndex,
    targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    predictions: list[NDArray[np.uint32]] | None,
) -> pa.Table:
    """Join the counts with what the index knows of each sentence."""
    row, positions = rows[:, 0], _positions(index, rows)
    target = targets[row]
    image = index.row_image[row]
    columns = {
        "dataset": pa.array([index.descriptor.dataset] * len(rows), pa.string()),
        "split": pa.array([index.splits[split] for split in index.row_split[row]], pa.string()),
        "ref_id": index.ref_id[row],
        "target_ref_id": index.ref_id[target],
        "sent_id": index.sent_id[positions],
        "image_id": index.image_id[image],
        "sentence": index.sent.take(pa.array(positions)),
        "height": index.height[image],
        "width": index.width[image],
        "num_tokens": (index.token_start[positions + 1] - index.token_start[positions]).astype(np.int32),
        "category": index.category.take(pa.array(target)),
        "intersection": rows[:, 2],
        "union": rows[:, 3],
        "predicted_area": rows[:, 4],
        "target_area": rows[:, 5],
        "no_target": pa.array(np.where(target == row, ~index.sentence_exists[positions], index.no_target[target])),
    }
    table = pa.table(columns, schema=ROWS_SCHEMA)
    if predictions is not None:
        table = table.append_column(PREDICTION_FIELD, pa.array(predictions, PREDICTION_FIELD.type))
    return table
