"""`refseg build-shards`: annotations and images to verified shards."""

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = "refseg build-shards refcoco/unc --annotations data/refer --images data/coco --out shards/refcoco-unc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="with its partition: refcoco/unc, refcocog/umd, ...")
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder in REFER's layout: refcoco/, refcoco+/, ... with refs(...).p or .json and instances.json",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the JPEGs or a COCO layout of them (default: beside the annotations)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the dataset's own folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that have refs)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core); same bytes with any"
    )
    parser.add_argument("--images-per-shard", type=int, default=512, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of images (default: %(default)s)"
    )
    parser.add_argument(
        "--mask-rule",
        choices=("union", "legacy"),
        default="union",
        help="of several parts: their union, or pixels of exactly one part, as LAVT has it (default: %(default)s)",
    )
    parser.add_argument(
        "--on-bad-sample",
        choices=("fail", "skip"),
        default="fail",
        help="fail: the first fault ends the build; skip: faulty refs go to rejects.parquet (default: %(default)s)",
    )
    parser.add_argument("--max-bad", type=int, metavar="N", help="with skip: more faulty refs end the build")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipelines.build import BuildOptions, build_dataset

    options = BuildOptions(
        dataset=args.dataset,
        annotations=args.annotations,
        out=args.out,
        images=args.images,
        splits=tuple(args.splits) if args.splits else None,
        workers=args.workers,
        images_per_shard=args.images_per_shard,
        seed=args.seed,
        mask_rule=args.mask_rule,
        on_bad_sample=args.on_bad_sample,
        max_bad=args.max_bad,
    )
    if sys.stderr.isatty():
        with tqdm(unit=" images", desc=args.dataset, leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            result = build_dataset(options, progress=show)
    else:
        result = build_dataset(options)

    descriptor = result.descriptor
    summary = {
        "dataset": descriptor.dataset,
        "folder": str(args.out),
        "was_complete": result.was_complete,
        "shards": len(descriptor.shards),
        "images": sum(shard.num_images for shard in descriptor.shards),
        "refs": sum(shard.num_refs for shard in descriptor.shards),
        "sentences": sum(shard.num_sentences for shard in descriptor.shards),
        "rejects": descriptor.num_rejects,
        "bytes": sum(shard.tar_bytes + shard.parquet_bytes for shard in descriptor.shards),
        "digest": descriptor.digest,
    }
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        done = "was finished before, nothing changed" if result.was_complete else "built"
        print(
            f"{args.out}: {done}: {summary['shards']} shards, {summary['images']} images, {summary['refs']} refs, "
            f"{summary['sentences']} sentences, {summary['rejects']} rejects, {int(str(summary['bytes'])) / 1e6:.1f} MB"
        )
    return 0
