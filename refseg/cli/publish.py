"""`refseg publish`: writes a run's best checkpoint as a folder for the Hugging Face Hub."""

import argparse
import json
from dataclasses import asdict

from refseg.addresses import path_argument
from refseg.cli.options import add_json
from refseg.exits import print_next

EXAMPLE = """refseg publish runs/toy --out published/fcnet-toy
  hf upload OWNER/fcnet-toy published/fcnet-toy"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path_argument,
        metavar="RUN",
        help="folder of a run (its best checkpoint and the scores in RUN/evaluation are used) or of a checkpoint",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        required=True,
        metavar="FOLDER",
        help="new folder; its name becomes the model's name",
    )
    parser.add_argument(
        "--licence", default="", metavar="NAME", help="licence of the weights by the Hub's name, such as apache-2.0"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.publish import publish

    published = publish(args.checkpoint, args.out, licence=args.licence)
    if args.json:
        print(json.dumps(asdict(published), indent=1, default=str))
        return 0
    print(f"{published.folder}: wrote config.json, model.safetensors, README.md from {published.checkpoint}")
    print(f"scores on the card: {', '.join(published.splits) or 'none; run `refseg evaluate` and then publish again'}")
    print_next("hf", "upload", published.folder.resolve().name, published.folder)
    return 0
