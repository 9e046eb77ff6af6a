"""`refseg evaluate`: scores a checkpoint on a split."""

import argparse
import json

from refseg.cli.options import add_json, add_options, given
from refseg.cli.score import print_results
from refseg.exits import print_next

EXAMPLE = """refseg evaluate runs/toy --split val --save-predictions
  refseg evaluate runs/toy --split val --protocol original cris lavt
  refseg evaluate runs/toy --split val --shuffled-sentences
  accelerate launch --config_file refseg/configs/accelerate_cpu2.yaml -m refseg evaluate runs/toy --split val"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation.options import EvaluateOptions

    add_options(
        parser, EvaluateOptions, positional=("checkpoint",), checkpoint={"metavar": "RUN"}, out={"metavar": "DIR"}
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from accelerate import PartialState

    from refseg.apps.evaluate_checkpoint import evaluate_checkpoint
    from refseg.evaluation.options import EvaluateOptions
    from refseg.evaluation.results import rows_file
    from refseg.training.trainer import leave_process_group

    out = args.out if "out" in args else args.checkpoint / "evaluation"
    results = evaluate_checkpoint(EvaluateOptions(**given(args, EvaluateOptions) | {"out": out}))
    if PartialState().is_main_process:
        rows = rows_file(out, results)
        if args.json:
            print(json.dumps({"rows": str(rows), **results.to_json()}, indent=1))
        else:
            print_results(results, rows)
            if not results.is_control:
                print_next("refseg", "report", args.out if "out" in args else args.checkpoint)
    leave_process_group()
    return 0
