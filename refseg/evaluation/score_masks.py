"""Counts the pixels of masks that another project predicted. The result is a table as `evaluate.py` returns it."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from numpy.typing import NDArray

from refseg import __version__
from refseg.data.index import ManifestIndex
from refseg.errors import PredictionError, UsageError
from refseg.evaluation.ground_truth import GroundTruth, stretch
from refseg.evaluation.options import ScoreOptions
from refseg.evaluation.origin import OriginOfMasks
from refseg.evaluation.predictions import GivenMask, Key, Predictions, read_predictions
from refseg.evaluation.protocols import Protocol, find_protocols
from refseg.evaluation.results import Results, save_results
from refseg.evaluation.rows import Counted, RowFacts, make_table
from refseg.progress import report_progress
from refseg.run_lengths import count_ones, count_shared, draw_runs, encode_runs
from refseg.wording import counted

logger = logging.getLogger(__name__)

NUM_NAMED = 10
"""Number of keys that a message lists; further ones are only counted."""


def score_predictions(options: ScoreOptions) -> Results:
    """Score the masks of another project. With `options.out`, write rows and scores to its subfolder `evaluation`.

    Raises:
        UsageError: If the path of the masks does not exist. If `save_predictions` is set without an output folder. If
            the dataset does not have the split. If a protocol is unknown.
        PredictionError: If masks cannot be read, are missing, or do not have the image's size.
        DatasetError: If the dataset is unusable.
    """
    if not options.predictions.exists():
        raise UsageError(f"{options.predictions}: no such file or folder; expected predicted masks")
    if options.save_predictions and options.out is None:
        raise UsageError("--save-predictions: found no --out; give it, to name the folder in which masks are kept")
    protocols = find_protocols(options.protocol)
    index = ManifestIndex.open(options.data, [options.split])
    predictions = read_predictions(options.predictions, protocols, options.split, options.png_rule)
    origin = OriginOfMasks(
        predictions=str(options.predictions),
        data=str(options.data),
        dataset=index.descriptor.dataset,
        dataset_digest=index.descriptor.digest,
        split=options.split,
        refseg=__version__,
    )
    rows = score_masks(index, predictions, protocols, save_predictions=options.save_predictions)
    results = Results(rows=rows, origin=origin)
    if options.out is not None:
        save_results(options.out / "evaluation", results)
    return results


def score_masks(
    index: ManifestIndex, predictions: Predictions, protocols: Sequence[Protocol], *, save_predictions: bool = False
) -> pa.Table:
    """Compare masks with the targets of all sentences of a split, under each protocol.

    A mask must have the size of the image or the size that the protocol requires. A mask of the protocol's size is
    compared unchanged. Other masks are resized to this size with nearest-neighbour interpolation. No threshold is
    applied, because the other project has already made binary masks. Masks of sentences that are not in the split are
    left out and named in a note.

    Args:
        index: Index of one split.
        predictions: Masks that `read_predictions` read for these protocols.
        protocols: Protocols by which masks are compared. The first one gives the headline scores.
        save_predictions: True to keep the masks in the rows, at the size that each protocol requires.

    Returns:
        Rows as `evaluate_model` returns them, with the predictions' notes.

    Raises:
        PredictionError: If a sentence has no mask, or a mask of another size. The message names the sentence.
    """
    num_sentences = np.diff(index.sentence_start)
    row = np.repeat(np.arange(index.num_rows), num_sentences)
    sentence = np.arange(index.num_sentences) - np.repeat(index.sentence_start[:-1], num_sentences)
    keys = [Key(*ids) for ids in zip(index.ref_id[row].tolist(), index.sent_id.tolist(), strict=True)]
    pixels = np.empty((len(keys), len(protocols), 3), np.int64)
    ground_truth = GroundTruth(index, protocols)
    notes = predictions.notes + _check_keys(index, keys, predictions.masks[0])
    for note in notes:
        logger.warning("%s", note)
    saved: list[list[NDArray[np.uint32]]] = [[] for _ in protocols] if save_predictions else []
    with report_progress(f"score {'+'.join(index.splits)}", "masks") as progress:
        for number, (protocol, masks) in enumerate(zip(protocols, predictions.masks, strict=True)):
            for place, key in enumerate(keys):
                of_row, of_sentence = int(row[place]), int(sentence[place])
                given = masks[key]
                pixels[place, number] = _count(ground_truth, protocol, of_row, of_sentence, key, given)
                if save_predictions:
                    size = protocol.compared_size(index.size(of_row))
                    saved[number].append(given.counts if given.size == size else encode_runs(_draw(given, size)))
                progress(number * len(keys) + place + 1, len(protocols) * len(keys))
    said = [predictions.masks[0][key].predicted_none for key in keys]
    counted = Counted(row=row, sentence=sentence, pixels=pixels, predictions=saved, predicted_none=said)
    facts = RowFacts(
        protocols=tuple(protocols),
        mask_rule=index.descriptor.mask_rule,
        sentence_order="own",
        num_left_out=0,
        given_masks=True,
        notes=notes,
    )
    return make_table(index, np.arange(index.num_rows), counted, facts)


def _check_keys(index: ManifestIndex, keys: Sequence[Key], masks: Mapping[Key, GivenMask]) -> tuple[str, ...]:
    """Refuse sentences without a mask, and return a note about masks without a sentence."""
    where = f"{index.folder} {'+'.join(index.splits)}"
    if len(known := set(keys)) < len(keys):
        twice = next(key for key, number in Counter(keys).items() if number > 1)
        raise PredictionError(
            f"{where}: {twice} occurs more than once, so that its mask is ambiguous; score the members of a mix "
            "separately"
        )
    if missing := [key for key in keys if key not in masks]:
        raise PredictionError(
            f"{where}: {len(missing):,} of {counted(len(keys), 'sentence')} without a mask: {_name(missing)}; "
            "predict all sentences, with an empty mask if the model finds nothing"
        )
    extra = sorted(set(masks) - known)
    return (f"{counted(len(extra), 'mask')} without a sentence in the split left out: {_name(extra)}",) if extra else ()


def _name(keys: Sequence[Key]) -> str:
    more = f" and {len(keys) - NUM_NAMED:,} more" if len(keys) > NUM_NAMED else ""
    return ", ".join(map(str, keys[:NUM_NAMED])) + more


def _count(
    ground_truth: GroundTruth, protocol: Protocol, row: int, sentence: int, key: Key, given: GivenMask
) -> tuple[int, int, int]:
    """Count intersection, predicted area and target area in pixels."""
    original_size = ground_truth.index.size(row)
    size = protocol.compared_size(original_size)
    if given.size not in (size, original_size):
        expected = " or ".join(f"{h} x {w}" for h, w in dict.fromkeys((original_size, size)))
        raise PredictionError(
            f"{key}: found a mask of {given.size[0]} x {given.size[1]} pixels (height x width), expected {expected}; "
            "resize masks to the image's own size"
        )
    if size == original_size and (runs := ground_truth.dataset_runs(protocol, row, sentence)) is not None:
        return count_shared(runs, given.counts), count_ones(given.counts), count_ones(runs)
    target = ground_truth.mask(protocol, row, sentence)
    mask = _draw(given, size)
    shared, predicted, wanted = (int(np.count_nonzero(each)) for each in (target & mask, mask, target))
    return shared, predicted, wanted


def _draw(given: GivenMask, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Draw the mask at `(height, width)`. A mask of another size is resized with nearest-neighbour interpolation."""
    return draw_runs(given.counts, size) if given.size == size else stretch(given.counts, given.size, size) > 0
