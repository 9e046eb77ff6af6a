"""`refseg export`: a built dataset as the files that other projects read."""

import argparse
import json
import sys
from dataclasses import asdict

from refseg.addresses import address_argument, path_argument
from refseg.wording import counted

EXAMPLE = """refseg export shards/refcoco-unc --to refer --out refer-data
  refseg export shards/refcoco-unc --to cris-lmdb --out datasets
  refseg export s3://bucket/refcoco-unc --to parquet-hf --splits val testA --out refcoco-hf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=address_argument, metavar="DIR", help="a finished dataset, path or URL")
    parser.add_argument(
        "--to",
        required=True,
        choices=("refer", "cris-lmdb", "coco", "parquet-hf"),
        help="refer: REFER's pickles, JSON and images; cris-lmdb: records and masks of CRIS, ETRIS and DETRIS; "
        "coco: a JSON per split for detection tools; parquet-hf: Parquet with images for Hugging Face's datasets",
    )
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all)")
    parser.add_argument("--no-images", action="store_true", help="leave images out (refer, coco)")
    parser.add_argument(
        "--annotations",
        type=path_argument,
        metavar="DIR",
        help="refer: the files the dataset was built from, put back as they were instead of made from the shards",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipelines.export.run import ExportOptions, export_dataset

    options = ExportOptions(
        folder=args.folder,
        to=args.to,
        out=args.out,
        splits=tuple(args.splits) if args.splits else None,
        images=not args.no_images,
        annotations=args.annotations,
    )
    with tqdm(unit="shard", file=sys.stderr, disable=None) as bar:

        def show(done: int, in_all: int) -> None:
            bar.total = in_all
            bar.update(done - bar.n)

        result = export_dataset(options, progress=show)
    report = result.report
    if args.json:
        print(json.dumps({"folder": str(args.out), "was_complete": result.was_complete, **asdict(report)}, indent=1))
        return 0
    done = "was finished before, nothing changed: " if result.was_complete else ""
    print(
        f"{args.out}: {done}{report.dataset} as {report.format}: {counted(report.num_refs, 'ref')}, "
        f"{counted(report.num_sentences, 'sentence')}"
    )
    print("\nOtherwise than in the sources:" if report.differences else "\nThe annotation files are the sources' own.")
    for difference in report.differences:
        print(f"- {difference}")
    return 0
