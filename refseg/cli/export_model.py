"""`refseg export-model`: exports a checkpoint as two programs that run without this package."""

import argparse
import json

from refseg.cli.options import add_json, add_options, given

EXAMPLE = "refseg export-model runs/toy --out exported --format onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apps.export_model import export_checkpoint

    add_options(
        parser, export_checkpoint, positional=("checkpoint",), checkpoint={"metavar": "RUN"}, out={"metavar": "DIR"},
        kind={"flag": "--format"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.export_model import export_checkpoint

    error = export_checkpoint(**given(args, export_checkpoint))
    if args.json:
        print(json.dumps({"out": str(args.out), "largest_logit_error": error}, indent=1))
    else:
        said = f"their logits differ from the model's by at most {error:.1e}"
        print(f"{args.out}: programs for images and sentences; {said}")
    return 0
