"""`refseg browse`: writes a page of a built dataset that opens in any browser without a server."""

import argparse
import json
import sys
from dataclasses import asdict

from refseg.cli.options import add_json, add_options, given
from refseg.progress import report_progress
from refseg.wording import counted

EXAMPLE = """refseg browse shards/refcoco-unc --out refcoco
  refseg browse shards/sample-ccby --out sample.html
  refseg browse shards/toy --predictions runs/toy --out predictions"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apps.browse import write_browse_page

    add_options(
        parser, write_browse_page, positional=("folder",), leave_out=("progress",), out={"metavar": "PAGE"},
        splits={"flag": "--split"}, num_images={"flag": "--images", "type": _positive, "metavar": "N"},
        predictions={"metavar": "RUN"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from refseg.apps.browse import write_browse_page

    with report_progress("draw pages", "images") as progress:
        page = write_browse_page(**given(args, write_browse_page), progress=progress)
    if args.json:
        print(json.dumps({**asdict(page), "path": str(page.path)}, indent=1))
        return 0
    part = f"{page.num_images:,} of " if page.num_images < page.num_dataset_images else ""
    if page.num_not_shown:
        print(f"pictures that cannot be shown: {page.num_not_shown:,}; they are named above", file=sys.stderr)
    print(
        f"{part}{counted(page.num_dataset_images, 'image')}, {counted(page.num_refs, 'ref')}, "
        f"{counted(page.num_sentences, 'sentence')}, {counted(page.num_rejects, 'reject')}\nopen {page.path.resolve()}"
    )
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 1 or more")
    return number
