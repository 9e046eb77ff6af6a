"""`refseg score`: score masks that another project predicted."""

import argparse
import json

from refseg.addresses import address_argument, path_argument
from refseg.cli.options import add_options, given
from refseg.cli.score_text import print_results
from refseg.mask_png import CHANNELS, PngRule

EXAMPLE = """refseg score predictions.jsonl --data shards/refcoco-unc --split val --protocol original lavt
  refseg score masks/ --data shards/refcoco-unc --split testA --out runs/theirs --save-predictions
  refseg report runs/theirs

  predictions.jsonl, one object a line (.json: a list of them; .parquet: the same columns):
    {"ref_id": 12, "sent_id": 34, "segmentation": {"size": [480, 640], "counts": [1200, 30, ...]}}
  counts: COCO's RLE, a list or compressed text. Optional: "no_target": true, "split": "val".
  masks/: REF_SENT.png, where 0 is background and one other value the object"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions",
        type=path_argument,
        metavar="PREDICTIONS",
        help="a .parquet, .json or .jsonl file of RLE masks, rows of `refseg evaluate --save-predictions`, or a folder "
        "of PNGs; one mask for each sentence, of the image's size",
    )
    parser.add_argument(
        "--data", type=address_argument, required=True, metavar="DIR", help="the dataset's folder or URL"
    )
    parser.add_argument("--split", required=True, metavar="NAME", help="split that was predicted")
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=["original"],
        metavar="NAME",
        help="rules to score by: original (default), cris, lavt, lisa, rela, or all; the first is the headline",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="keep rows and scores in DIR/evaluation, for `refseg report DIR`",
    )
    parser.add_argument(
        "--save-predictions", action="store_true", help="keep the masks with the rows, for examples in the report"
    )
    add_options(parser, PngRule, prefix="mask_", channel={"choices": CHANNELS})
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from refseg import __version__
    from refseg.data.index import ManifestIndex
    from refseg.errors import UsageError
    from refseg.evaluation.origin import OriginOfMasks
    from refseg.evaluation.predictions import read_predictions
    from refseg.evaluation.protocols import find_protocols
    from refseg.evaluation.results import Results, save_results
    from refseg.evaluation.score_masks import score_masks

    if not args.predictions.exists():
        raise UsageError(f"{args.predictions}: no such file or folder; expected predicted masks")
    if args.save_predictions and not args.out:
        raise UsageError("--save-predictions: found no --out, which names the folder to keep them in")
    png_rule = PngRule(**given(args, PngRule, prefix="mask_"))
    protocols = find_protocols(args.protocol)
    index = ManifestIndex.open(args.data, [args.split])
    predictions = read_predictions(args.predictions, protocols, args.split, png_rule)
    origin = OriginOfMasks(
        predictions=str(args.predictions),
        data=args.data,
        dataset=index.descriptor.dataset,
        dataset_digest=index.descriptor.digest,
        split=args.split,
        refseg=__version__,
    )
    rows_scored = score_masks(index, predictions, protocols, save_predictions=args.save_predictions)
    results = Results(rows=rows_scored, origin=origin)
    rows = save_results(args.out / "evaluation", results) if args.out else None
    if args.json:
        print(json.dumps({"rows": rows and str(rows), **results.to_json()}, indent=1))
    else:
        print_results(results, rows)
    return 0
