"""`refseg download`: annotations and the images they need, checked, to a folder that `build-shards` reads."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from refseg.cli.options import add_json, add_options, given
from refseg.errors import UsageError
from refseg.progress import report_progress
from refseg.wording import counted

if TYPE_CHECKING:
    from pipelines.download.catalogue import Catalogue
    from pipelines.download.run import DownloadPlan

EXAMPLE = """refseg download --list
  refseg download refcoco/unc --out data
  refseg download refcoco/unc refcocoplus/unc refcocog/umd --out data --images all --mirror https://mirror.example/ris"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.download.run import DownloadOptions

    add_options(
        parser, DownloadOptions, positional=("datasets",), datasets={"metavar": "DATASET", "nargs": "*"},
        out={"metavar": "DIR", "required": False}, mirror={"metavar": "URL", "nargs": None, "action": "append"},
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show what would be fetched, or all datasets, and end")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.download.catalogue import load_catalogue
    from pipelines.download.run import DownloadOptions, download, plan_download

    found = given(args, DownloadOptions)
    if args.list and not found.get("datasets"):
        catalogue = load_catalogue(found.get("catalogue"))
        print(
            json.dumps(catalogue.model_dump(mode="json", by_alias=True), indent=1) if args.json else _table(catalogue)
        )
        return 0
    if "out" not in found and not args.list:
        raise UsageError("found no --out DIR, expected the folder to download to; --list shows what would be fetched")
    options = DownloadOptions(**{"datasets": (), "out": Path(), **found})
    plan = plan_download(options)
    if args.list:
        print(json.dumps(asdict(plan), indent=1) if args.json else _page(plan))
        return 0
    print(_page(plan), file=sys.stderr, flush=True)
    with report_progress(f"download to {options.out}", "bytes") as progress:
        report = download(options, progress=progress)
    if args.json:
        print(json.dumps({"folder": str(options.out), **asdict(report)}, indent=1))
        return 0
    fetched = [*report.files, *([counted(report.num_images, "image")] if report.num_images else [])]
    done = f"fetched {', '.join(fetched)}, {_size(report.num_bytes)}" if fetched else "complete, nothing was fetched"
    print(f"{options.out}: {done}\n\nnext:")
    for dataset in options.datasets:
        print(f"  refseg build-shards {dataset} --annotations {options.out} --out shards/{dataset.replace('/', '-')}")
    return 0


def _table(catalogue: "Catalogue") -> str:
    lines = []
    for dataset, needs in catalogue.datasets.items():
        by_hand = any(catalogue.files[name].by_hand for name in needs.annotations)
        what = f"{', '.join(needs.annotations)}{' (by hand)' if by_hand else ''}; images of {', '.join(needs.images)}"
        lines.append(f"{dataset:<18} {what}")
    lines += ["", "Sizes, addresses, licences and terms: refseg download DATASET --list"]
    return "\n".join(lines)


def _page(plan: "DownloadPlan") -> str:
    lines = []
    for file in plan.files:
        held = "" if not file.held_bytes else f", {_size(file.held_bytes)} of it there"
        size = "by hand" if file.num_bytes is None else f"{_size(file.num_bytes)}{held}"
        lines.append(f"{file.name}: {size}; from {file.source}")
        if file.sha256:
            lines.append(f"  SHA-256 {file.sha256}, stated in {file.found_in or 'the catalogue'}")
    if plan.num_images:
        lines.append(f"images: at most {plan.num_images:,}, about {_size(plan.image_bytes)}")
    lines += ["", "Licences and terms:", *(f"- {text}" for text in plan.terms), ""]
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
