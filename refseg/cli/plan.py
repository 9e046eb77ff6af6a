"""`refseg plan`: computes what a training run on N nodes x G GPUs will read."""

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from refseg.addresses import address_argument
from refseg.cli.options import add_json, add_options, given
from refseg.errors import UsageError
from refseg.reading import Reading
from refseg.wording import counted

if TYPE_CHECKING:
    from refseg.data.plan import ReadPlan

EXAMPLE = """refseg plan shards/refcoco-unc --world 2x8 --global-batch 64
  refseg plan s3://bucket/refcoco-unc --world 1x8 --sampling images --expressions-per-image 4 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=address_argument, metavar="DIR", help="path or URL of the dataset's folder")
    parser.add_argument(
        "--world", type=world, default=(1, 1), metavar="NxG", help="nodes x GPUs per node (default: 1x1)"
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="split to read (default: train)")
    add_options(
        parser, Reading, leave_out=("geometry", *NOT_ASKED, "worker_kind", "cache_gigabytes"),
        global_batch={"default": 64}, num_workers={"flag": "--workers", "default": 2},
    )  # fmt: skip
    add_json(parser)


NOT_ASKED = ("num_tokens", "decode", "seed", "shuffle", "trim_tokens", "image_mean")
"""Attributes of a reading that hardly change its plan or speed, and are therefore not offered as options."""


def world(text: str) -> tuple[int, int]:
    """Parse `2x8` as 2 nodes with 8 GPUs each."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected nodes x GPUs per node, for example 2x8")
    return int(found[1]), int(found[2])


def run(args: argparse.Namespace) -> int:
    if args.num_workers < 0:
        raise UsageError(f"--workers {args.num_workers}: expected 0 (the training process packs batches) or more")
    from refseg.data.index import ManifestIndex
    from refseg.data.plan import plan_reading

    reading = Reading(**given(args, Reading))
    index = ManifestIndex.open(args.folder, [args.split])
    plan = plan_reading(index, reading, num_nodes=args.world[0], ranks_per_node=args.world[1])
    if args.json:
        fields = asdict(plan) | {"diversity": plan.diversity._asdict(), "memory_per_node": plan.memory_per_node}
        print(json.dumps(fields, indent=1))
    else:
        print(_page(plan))
    return 0


def _page(plan: "ReadPlan") -> str:
    per_node = plan.num_ranks // plan.num_nodes
    left = f"{plan.padded:,} repeats added" if plan.padded else f"{plan.dropped:,} left out"
    variety = plan.diversity
    facts = {
        "world": f"{counted(plan.num_nodes, 'node')} x {counted(per_node, 'process', 'processes')}, "
        f"{counted(plan.num_workers, 'worker')} each",
        "an epoch": f"{plan.samples:,} samples, {plan.steps:,} steps on every rank, {left}",
        "a step": f"{plan.global_batch:,} samples, {plan.global_batch / plan.num_ranks:g} on each rank",
        "a batch": (
            f"{variety.expressions:.1f} expressions of {variety.images:.1f} images, effective number of images "
            f"{variety.effective_images:.1f}"
        ),
        "images": f"{plan.images_per_rank:,} read and decoded by each rank in an epoch",
        "bytes": f"{_gigabytes(plan.image_bytes_per_node)} of images read by each node in an epoch",
        "shards": _gigabytes(plan.shard_bytes)
        + (f", {_gigabytes(plan.remote_shard_bytes)} of it downloaded once by each node" if plan.cache_bytes else ""),
        "cache": "" if plan.cache_bytes is None else f"at most {_gigabytes(plan.cache_bytes)} of remote shards",
        "memory": (
            f"{_gigabytes(plan.memory_per_node)} per node: index {_megabytes(plan.index_bytes)} per rank, batches "
            f"{_megabytes(plan.worker_bytes)} per worker; all resized images: {_gigabytes(plan.decoded_bytes)}"
        ),
        "cursor": f"{plan.cursor_bytes} bytes in a checkpoint",
    }
    lines = [f"{plan.dataset} {'+'.join(plan.splits)}, digest {plan.digest[:12]}", ""]
    lines += [f"{name:<9} {words}" for name, words in facts.items() if words]
    lines += ["", *(f"warning: {warning}" for warning in plan.warnings)] if plan.warnings else []
    return "\n".join(lines)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.3f} GB"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
