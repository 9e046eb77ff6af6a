"""`refseg export`: writes a built dataset in the formats of other projects."""

import argparse
import json
from dataclasses import asdict

from refseg.addresses import path_argument
from refseg.cli.options import add_json, add_options, given
from refseg.progress import report_progress
from refseg.wording import counted

EXAMPLE = """refseg export shards/refcoco-unc --to refer --out refer-data
  refseg export shards/refcoco-unc --to cris-lmdb --out datasets
  refseg export s3://bucket/refcoco-unc --to parquet-hf --splits val testA --out refcoco-hf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.export.run import ExportOptions

    add_options(
        parser, ExportOptions, positional=("folder",), out={"type": path_argument, "metavar": "DIR"},
        splits={"metavar": "SPLIT"}, images={"help": "write no images (refer, coco)"}, annotations={"metavar": "DIR"},
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.export.run import ExportOptions, export_dataset

    with report_progress(f"export {args.folder}", "shards") as progress:
        result = export_dataset(ExportOptions(**given(args, ExportOptions)), progress=progress)
    report = result.report
    if args.json:
        print(json.dumps({"folder": str(args.out), "was_complete": result.was_complete, **asdict(report)}, indent=1))
        return 0
    done = "was already finished, nothing was changed: " if result.was_complete else ""
    print(
        f"{args.out}: {done}{report.dataset} as {report.format}: {counted(report.num_refs, 'ref')}, "
        f"{counted(report.num_sentences, 'sentence')}"
    )
    print(
        "\nDifferences from the sources:"
        if report.differences
        else "\nThe annotation files are unchanged copies of the sources."
    )
    for difference in report.differences:
        print(f"- {difference}")
    return 0
