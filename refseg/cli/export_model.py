"""`refseg export-model`: exports a checkpoint as two programs that run without this package."""

import argparse

from refseg.addresses import path_argument

EXAMPLE = "refseg export-model runs/toy --out exported --format onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path_argument, metavar="RUN", help="folder of a run or of a checkpoint")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch"),
        default="torch",
        help="ONNX, or the format of torch.export (default: torch)",
    )


def run(args: argparse.Namespace) -> int:
    from refseg.apps.export_model import export_model
    from refseg.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint)
    error = export_model(checkpoint.model, checkpoint.recipe, args.out, kind=args.format)
    print(f"{args.out}: programs for images and sentences; their logits differ from the model's by at most {error:.1e}")
    return 0
