"""`refseg score`: scores masks that another project predicted."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from refseg.cli.options import add_json, add_options, given
from refseg.exits import print_next
from refseg.mask_png import CHANNELS, PngRule

if TYPE_CHECKING:
    from refseg.evaluation.results import Results

EXAMPLE = """refseg score predictions.jsonl --data shards/refcoco-unc --split val --protocol original lavt
  refseg score masks/ --data shards/refcoco-unc --split testA --out runs/theirs --save-predictions
  refseg report runs/theirs

  predictions.jsonl, one object per line (.json: a list of them; .parquet: the same columns):
    {"ref_id": 12, "sent_id": 34, "segmentation": {"size": [480, 640], "counts": [1200, 30, ...]}}
  counts: COCO's RLE, a list or compressed text. Optional: "no_target": true, "split": "val".
  masks/: REF_SENT.png, in which 0 is the background and one other value is the object"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation.options import ScoreOptions

    add_options(
        parser, ScoreOptions, positional=("predictions",), leave_out=("png_rule",),
        predictions={"metavar": "PREDICTIONS"}, out={"metavar": "DIR"},
    )  # fmt: skip
    add_options(parser, PngRule, prefix="mask_", channel={"choices": CHANNELS})
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.evaluation.options import ScoreOptions
    from refseg.evaluation.results import rows_file
    from refseg.evaluation.score_masks import score_predictions

    rule = PngRule(**given(args, PngRule, prefix="mask_"))
    options = ScoreOptions(**given(args, ScoreOptions), png_rule=rule)
    results = score_predictions(options)
    rows = rows_file(options.out / "evaluation", results) if options.out else None
    if args.json:
        print(json.dumps({"rows": rows and str(rows), **results.to_json()}, indent=1))
    else:
        print_results(results, rows)
        if options.out is not None:
            print_next("refseg", "report", options.out)
    return 0


def print_results(results: "Results", rows: Path | None) -> None:
    """Print the scores of each protocol with their intervals and rules, and the path of the rows."""
    from refseg.evaluation.bootstrap import confidence_intervals
    from refseg.evaluation.results import INTERVAL_RULE

    origin = results.origin
    print(f"{origin.scored_on}, {origin.subject}")
    for scores in (results.scores, *results.other_scores):
        print()
        intervals = confidence_intervals(results.rows, scores.protocol)
        for name, value in scores.by_name().items():
            low, high = intervals[name]
            if math.isnan(value):
                print(f"  {name:8}     –    no sentence counts for this score")
            else:
                print(f"  {name:8}{100 * value:6.2f} %  [{100 * low:5.2f}, {100 * high:5.2f}]")
        print()
        for rule in (*scores.rules(), INTERVAL_RULE):
            print(f"  - {rule}")
    if said := origin.leak_warning or origin.leak_statement:
        print(f"  - {said}")
    if rows is not None:
        print()
        print(f"rows: {rows}")
