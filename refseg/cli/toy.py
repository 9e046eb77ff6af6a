"""`refseg toy`: draws a toy dataset in the real source formats."""

import argparse
import json

from refseg.cli.options import add_json, add_options, given
from refseg.exits import print_next
from refseg.wording import counted

EXAMPLE = "refseg toy --out toy-source --images 400 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.toy import draw_toy

    add_options(
        parser, draw_toy, out={"metavar": "DIR"}, num_images={"flag": "--images"}, image_size={"flag": "--size"}
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pipelines.toy import draw_toy

    summary = draw_toy(**given(args, draw_toy))
    if args.json:
        print(json.dumps({"out": str(args.out), **asdict(summary)}))
        return 0
    print(
        f"{args.out}: {counted(sum(summary.num_images.values()), 'image')}, "
        f"{counted(sum(summary.num_refs.values()), 'ref')}, "
        f"{counted(sum(summary.num_sentences.values()), 'sentence')}"
        + ("" if summary.drawn else " (existed already, nothing was changed)")
    )
    for split, images in summary.num_images.items():
        print(
            f"  {split:6} {images:6} images {summary.num_refs[split]:6} refs {summary.num_sentences[split]:6} sentences"
        )
    print(
        f"refs whose shape or colour another object also has: {summary.twin_share:.1%}; "
        f"both shape and colour: {summary.double_twin_share:.1%}"
    )
    print_next("refseg", "build-shards", "toy/refseg", "--annotations", args.out, "--out", "shards/toy")
    return 0
