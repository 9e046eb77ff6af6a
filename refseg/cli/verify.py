"""`refseg verify`: check a built dataset; exit 1 on any fault, each named."""

import argparse
import json
from dataclasses import asdict

from refseg.addresses import address_argument
from refseg.wording import counted

EXAMPLE = """refseg verify shards/refcoco-unc
  refseg verify s3://bucket/refcoco-unc --fast"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=address_argument, metavar="DIR", help="the dataset's folder, or its URL")
    parser.add_argument(
        "--fast", action="store_true", help="only the descriptor, which files there are and their sizes"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, each with one shard in memory at a time (default: as many as are worth their start)",
    )
    parser.add_argument("--json", action="store_true", help="print the faults as JSON")


def run(args: argparse.Namespace) -> int:
    from pipelines.shared_images import find_shared_images
    from pipelines.verify import verify_dataset
    from refseg.dataset.descriptor import load_descriptor
    from refseg.storage import open_folder

    faults = verify_dataset(args.folder, fast=args.fast, workers=args.workers)
    notes = []
    if not faults and not args.fast:
        descriptor = load_descriptor(args.folder)
        shared = find_shared_images(open_folder(args.folder), descriptor.dataset, descriptor.shards)
        notes = [shared.describe()] if shared.describe() else []
    if args.json:
        summary = {"folder": args.folder, "faults": [asdict(fault) for fault in faults], "notes": notes}
        print(json.dumps(summary, indent=1))
    else:
        for fault in faults:
            print(fault)
        for note in notes:
            print(f"{args.folder}: note, which is not a fault: {note}")
        checked = "descriptor, files and sizes" if args.fast else "everything"
        print(
            f"{args.folder}: {counted(len(faults), 'fault')}"
            if faults
            else f"{args.folder}: no fault ({checked} checked)"
        )
    return 1 if faults else 0
