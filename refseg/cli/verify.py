"""`refseg verify`: checks a built dataset, lists all faults, and exits with code 1 if there are any."""

import argparse
import json
from dataclasses import asdict

from refseg.cli.options import add_json, add_options, given
from refseg.wording import counted

EXAMPLE = """refseg verify shards/refcoco-unc
  refseg verify s3://bucket/refcoco-unc --fast"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.verify import verify_dataset

    add_options(parser, verify_dataset, positional=("folder",))
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.shared_images import describe_shared_images
    from pipelines.verify import verify_dataset

    chosen = given(args, verify_dataset)
    faults, fast = verify_dataset(**chosen), "fast" in chosen
    note = "" if faults or fast else describe_shared_images(args.folder)
    if args.json:
        notes = [note] if note else []
        summary = {"folder": args.folder, "faults": [asdict(fault) for fault in faults], "notes": notes}
        print(json.dumps(summary, indent=1))
    else:
        for fault in faults:
            print(fault)
        if note:
            print(f"{args.folder}: note (not a fault): {note}")
        checked = "descriptor, files and sizes" if fast else "everything"
        print(
            f"{args.folder}: {counted(len(faults), 'fault')}"
            if faults
            else f"{args.folder}: no fault ({checked} checked)"
        )
    return 1 if faults else 0
