"""`refseg publish`: writes a run's best checkpoint as a folder for the Hugging Face Hub."""

import argparse
import json
from dataclasses import asdict

from refseg.cli.options import add_json, add_options, given
from refseg.exits import print_next

EXAMPLE = """refseg publish runs/toy --out published/fcnet-toy
  hf upload OWNER/fcnet-toy published/fcnet-toy"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apps.publish import publish

    add_options(parser, publish, positional=("source",), source={"metavar": "RUN"}, out={"metavar": "FOLDER"})
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.publish import publish

    published = publish(**given(args, publish))
    if args.json:
        print(json.dumps(asdict(published), indent=1, default=str))
        return 0
    print(f"{published.folder}: wrote config.json, model.safetensors, README.md from {published.checkpoint}")
    print(f"scores on the card: {', '.join(published.splits) or 'none; run `refseg evaluate` and then publish again'}")
    print_next("hf", "upload", published.folder.resolve().name, published.folder)
    return 0
