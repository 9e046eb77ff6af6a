"""`refseg evaluate`: score a checkpoint on a split."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg.addresses import address_argument, path_argument
from refseg.cli.score_text import print_results

if TYPE_CHECKING:
    from refseg.evaluation.partial import CountedParts
    from refseg.evaluation.results import Results

EXAMPLE = """refseg evaluate runs/toy --split val --save-predictions
  refseg evaluate runs/toy --split val --protocol original cris lavt
  refseg evaluate runs/toy --split val --shuffled-sentences
  accelerate launch --config_file refseg/configs/accelerate_cpu2.yaml -m refseg evaluate runs/toy --split val"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path_argument,
        metavar="RUN",
        help="a run's folder (its best checkpoint), a checkpoint's, or what `refseg publish` wrote",
    )
    parser.add_argument(
        "--data", type=address_argument, metavar="DIR", help="the dataset's folder or URL (default: that of the recipe)"
    )
    parser.add_argument("--split", metavar="NAME", help="split to score (default: the recipe's val_split)")
    parser.add_argument(
        "--protocol",
        nargs="+",
        metavar="NAME",
        help="rules to score by, from one pass: original, cris, lavt, lisa, rela, or all; the first is the headline "
        "(default: the recipe's)",
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="DIR", help="where rows and scores go (default: RUN/evaluation)"
    )
    parser.add_argument(
        "--shuffled-sentences",
        action="store_true",
        help="the control: score each sentence against another target of its image",
    )
    parser.add_argument(
        "--save-predictions",
        action="store_true",
        help="keep predicted masks with the rows, as `refseg report` needs and `refseg score` reads",
    )
    parser.add_argument(
        "--allow-leak", action="store_true", help="score images that were trained on, too; the report says so in red"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from refseg.config import TrainConfig
    from refseg.evaluation.results import save_results
    from refseg.training.launch import start_accelerator
    from refseg.training.trainer import leave_process_group

    # Scores are computed in float32 whatever precision the run trained in: TrainConfig's default.
    accelerator = start_accelerator(TrainConfig())
    out = args.out or args.checkpoint / "evaluation"
    results, parts = _evaluate(args, accelerator, out)
    if accelerator.is_main_process:
        rows = save_results(out, results)
        parts.remove()
        if args.json:
            print(json.dumps({"rows": str(rows), **results.to_json()}, indent=1))
        else:
            print_results(results, rows)
    leave_process_group()
    return 0


def _evaluate(args: argparse.Namespace, accelerator: Any, out: Path) -> "tuple[Results, CountedParts]":
    import time

    from refseg import __version__
    from refseg.data.index import ManifestIndex
    from refseg.data.transforms import Geometry
    from refseg.errors import UsageError
    from refseg.evaluation.evaluate import evaluate_model
    from refseg.evaluation.leak_check import check_leaks, refuse_leaks
    from refseg.evaluation.origin import OriginOfModel
    from refseg.evaluation.partial import CountedParts, weights_digest
    from refseg.evaluation.protocols import find_protocols
    from refseg.evaluation.results import Results
    from refseg.evaluation.rows import SentenceOrder
    from refseg.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint, accelerator.device)
    recipe, model = checkpoint.recipe, checkpoint.model
    protocols = find_protocols(args.protocol or [recipe.eval.protocol])
    split = args.split or recipe.data.val_split
    data = args.data or recipe.data.val_root or recipe.data.root
    if not data:  # a published folder names no path
        raise UsageError(f"{args.checkpoint}: names no dataset, expected --data DIR beside a published model")
    index = ManifestIndex.open(data, [split])
    leak_check = check_leaks(checkpoint.state.lineage.training_sets, index)
    if not args.allow_leak:
        refuse_leaks(leak_check, where=f"{data} {split}")
    sentence_order: SentenceOrder = "shuffled" if args.shuffled_sentences else "own"
    names = [index.descriptor.dataset.replace("/", "."), split, *(protocol.name for protocol in protocols)]
    parts = CountedParts(
        out / ".parts-{}".format("-".join([*names, sentence_order])),
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
        save_predictions=args.save_predictions,
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
