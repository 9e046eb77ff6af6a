"""`refseg browse`: a page of a built dataset that opens in any browser, without a server."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from refseg.addresses import address_argument, path_argument
from refseg.wording import counted

EXAMPLE = """refseg browse shards/refcoco-unc --out refcoco
  refseg browse shards/sample-ccby --out sample.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=address_argument, metavar="DIR", help="the dataset's folder, or its URL")
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="PAGE",
        help="FILE.html: all in one file, up to some hundred images; another name: a folder with index.html, for any "
        "number (default: browse-DATASET, a folder)",
    )
    parser.add_argument("--split", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    parser.add_argument("--images", type=_positive, metavar="N", help="at most N images, spread evenly (default: all)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from refseg.apps.browse import write_browse_page
    from refseg.dataset.descriptor import load_descriptor

    out: Path = args.out or Path("browse-" + re.sub(r"[^A-Za-z0-9_.-]", "-", load_descriptor(args.folder).dataset))
    with tqdm(unit=" images", file=sys.stderr, disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        page = write_browse_page(args.folder, out, splits=args.split, num_images=args.images, progress=progress)
    if args.json:
        print(json.dumps({**asdict(page), "path": str(page.path)}, indent=1))
        return 0
    part = f"{page.num_images:,} of " if page.num_images < page.num_dataset_images else ""
    if page.num_not_shown:
        print(f"pictures that cannot be shown: {page.num_not_shown:,}, each named above", file=sys.stderr)
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
