"""`refseg unpack-images`: write the pictures in Parquet files to a folder, which `refseg build` then reads."""

import argparse

from refseg.addresses import path_argument
from refseg.wording import counted

EXAMPLE = "refseg unpack-images ref-adv-s/data --out ref-adv-s/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", type=path_argument, nargs="+", metavar="PARQUET", help="file with a column image, or a folder of them"
    )
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="folder for the pictures")


def run(args: argparse.Namespace) -> int:
    from pipelines.sources.pictures import unpack_images

    written = [is_new for _, is_new in unpack_images(args.files, args.out)]
    kept = len(written) - sum(written)
    print(f"{args.out}: wrote {counted(sum(written), 'picture')}" + (f", {kept} already existed" if kept else ""))
    return 0
