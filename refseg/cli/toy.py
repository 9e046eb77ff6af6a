"""`refseg toy`: draw a toy dataset in the real source formats."""

import argparse
import json

from refseg.addresses import path_argument
from refseg.wording import counted

EXAMPLE = "refseg toy --out toy-source --images 400 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path_argument, required=True, help="folder to make")
    parser.add_argument("--images", type=int, default=400, help="number of scenes, 10 or more (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default %(default)s)")
    parser.add_argument("--size", type=int, default=192, help="side in pixels, 96 or more (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pipelines.toy import draw_toy

    summary = draw_toy(args.out, num_images=args.images, seed=args.seed, image_size=(args.size, args.size))
    if args.json:
        print(json.dumps({"out": str(args.out), **asdict(summary)}))
        return 0
    print(
        f"{args.out}: {counted(sum(summary.num_images.values()), 'image')}, "
        f"{counted(sum(summary.num_refs.values()), 'ref')}, "
        f"{counted(sum(summary.num_sentences.values()), 'sentence')}"
        + ("" if summary.drawn else " (was there already, left as it is)")
    )
    for split, images in summary.num_images.items():
        print(
            f"  {split:6} {images:6} images {summary.num_refs[split]:6} refs {summary.num_sentences[split]:6} sentences"
        )
    print(
        f"refs with a twin sharing shape or colour: {summary.twin_share:.1%}; "
        f"with both shape and colour found elsewhere in the picture: {summary.double_twin_share:.1%}"
    )
    return 0
