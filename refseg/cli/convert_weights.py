"""`refseg convert-weights`: converts published or other projects' encoder weights to safetensors."""

import argparse
import json
from dataclasses import asdict

from refseg.cli.options import add_json, add_options, given
from refseg.wording import counted

EXAMPLE = """refseg convert-weights clip RN101.pt --out weights/clip-rn101.safetensors
  refseg convert-weights cris best_model.pth --out weights/cris-r101.safetensors
  refseg convert-weights lavt model_best_refcoco.pth --out weights/lavt-swin.safetensors --allow-namespace"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.models.convert import convert_weights

    add_options(
        parser, convert_weights, positional=("kind", "source"), source={"metavar": "FILE"}, out={"metavar": "FILE"},
        accepted_sha256={"flag": "--accept-hash", "metavar": "SHA256"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.models.convert import convert_weights

    converted = convert_weights(**given(args, convert_weights))
    if args.json:
        print(json.dumps({**asdict(converted), "out": str(converted.out)}, indent=1))
        return 0
    print(
        f"{converted.out}: {counted(converted.num_tensors, 'tensor')}, "
        f"{counted(converted.num_parameters, 'number')} in float32"
    )
    print(f"source SHA-256 {converted.source_sha256}")
    for name, count in sorted(converted.left_out.items()):
        print(f"left out: {name} ({count})")
    return 0
