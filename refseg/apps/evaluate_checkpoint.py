"""Implements `refseg evaluate`. Scores a model on a split, using all launched processes."""

import time

from accelerate import Accelerator

from refseg import __version__
from refseg.config import TrainConfig
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import UsageError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.leak_check import check_leaks, refuse_leaks
from refseg.evaluation.options import EvaluateOptions
from refseg.evaluation.origin import OriginOfModel
from refseg.evaluation.partial import CountedParts, weights_digest
from refseg.evaluation.protocols import find_protocols
from refseg.evaluation.results import Results, save_results
from refseg.evaluation.rows import SentenceOrder
from refseg.training.checkpoint import Checkpoint, load_checkpoint
from refseg.training.launch import start_accelerator


def evaluate_checkpoint(options: EvaluateOptions) -> Results:
    """Score a checkpoint. With `options.out`, write rows and scores there, and resume an interrupted evaluation.

    Scores are computed in float32, independently of the precision of training. A GPU is used if there is one. Without a
    GPU, torch is set to deterministic algorithms for the whole process.

    Args:
        options: What to score, and where to write the results. Without `out`, nothing is written.

    Returns:
        Rows and scores. They are the same on every process, and the main process writes them.

    Raises:
        CheckpointError: If there is no undamaged checkpoint.
        DatasetError: If the dataset cannot be used.
        UsageError: If no dataset is named. If the dataset does not have the split. If a protocol is unknown. If the
            model was trained on images of the split and `allow_leak` is not set.
        TrainingError: If processes are missing. If files cannot be written.
    """
    accelerator = start_accelerator(TrainConfig())
    checkpoint = load_checkpoint(options.checkpoint, accelerator.device)
    results, parts = _evaluate(options, checkpoint, accelerator)
    if options.out is not None and accelerator.is_main_process:
        save_results(options.out, results)
        if parts is not None:
            parts.remove()
    return results


def _evaluate(
    options: EvaluateOptions, checkpoint: Checkpoint, accelerator: Accelerator
) -> tuple[Results, CountedParts | None]:
    recipe, model = checkpoint.recipe, checkpoint.model
    protocols = find_protocols(options.protocol or [recipe.eval.protocol])
    split = options.split or recipe.data.val_split
    data = str(options.data or recipe.data.val_root or recipe.data.root)
    if not data:  # a published folder names no path
        raise UsageError(f"{options.checkpoint}: names no dataset, expected --data DIR beside a published model")
    index = ManifestIndex.open(data, [split])
    leak_check = check_leaks(checkpoint.state.lineage.training_sets, index)
    if not options.allow_leak:
        refuse_leaks(leak_check, where=f"{data} {split}")
    sentence_order: SentenceOrder = "shuffled" if options.shuffled_sentences else "own"
    parts = None
    if options.out is not None:
        names = [index.descriptor.dataset.replace("/", "."), split, *(protocol.name for protocol in protocols)]
        parts = CountedParts(
            options.out / ".parts-{}".format("-".join([*names, sentence_order])),
            {"weights": weights_digest(model), "model": recipe.to_dict()["model"]},
        )
    started = time.monotonic()
    rows = evaluate_model(
        model,
        index,
        accelerator=accelerator,
        geometry=Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean),
        num_tokens=recipe.data.num_tokens,
        images_per_batch=recipe.eval.images_per_batch,
        num_workers=recipe.data.num_workers,
        protocols=protocols,
        sentence_order=sentence_order,
        save_predictions=options.save_predictions,
        parts=parts,
    )
    origin = OriginOfModel(
        checkpoint=str(checkpoint.folder),
        step=checkpoint.step,
        lineage=checkpoint.state.lineage,
        leak_check=leak_check,
        data=data,
        dataset=index.descriptor.dataset,
        dataset_digest=index.descriptor.digest,
        split=split,
        num_processes=accelerator.num_processes,
        seconds=round(time.monotonic() - started, 2),
        refseg=__version__,
    )
    return Results(rows=rows, origin=origin), parts
